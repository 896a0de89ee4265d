"""Recipe: what it holds is what Trainer and fit take."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import nn

from framework import Recipe, Trainer, UsageError, run

QUICK = ["no:plot", "no:progress", "no:console", "no:history", "no:best_checkpoint"]


def made(**settings) -> Recipe:
    model = nn.Linear(1, 1)
    x = torch.arange(6.0).reshape(6, 1)
    defaults = {
        "model": model, "loss": nn.MSELoss(), "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
        "train": (x, 2 * x),
    }  # fmt: skip
    return Recipe(**{**defaults, **settings})


def test_only_what_a_run_cannot_do_without_has_no_default() -> None:
    fields = dataclasses.fields(Recipe)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    assert needed == ["model", "loss", "optimizer", "train"]
    assert all(field.kw_only for field in fields)


def test_the_settings_are_those_of_fit_with_the_same_defaults() -> None:
    parameters = inspect.signature(Trainer.fit).parameters
    fields = {field.name: field.default for field in dataclasses.fields(Recipe)}
    for name, parameter in parameters.items():
        if name in ("self", "train", "resume"):
            continue
        assert name in fields, f"Recipe has no field {name}"
        assert fields[name] == parameter.default, name


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 1),
        ({"epochs": 4}, 4),
        ({"batch_size": 2}, 3),
        ({"batch_size": 4}, 2),
        ({"batch_size": 4, "drop_last": True}, 1),
        ({"batch_size": 2, "accumulate": 2}, 2),
        ({"batch_size": 2, "accumulate": 3, "epochs": 2}, 2),
    ],
)
def test_each_setting_reaches_the_fit(tmp_path, settings, steps) -> None:
    assert run(lambda: made(**settings), plugins=QUICK, run_dir=tmp_path / "run").steps == steps


def test_shuffle_reaches_the_fit(tmp_path) -> None:
    seen: list[list[float]] = []

    class Sees:
        def on_batch_start(self, batch):
            seen[-1] += batch[0].flatten().tolist()

    def recipe(shuffle: bool = False) -> Recipe:
        return made(batch_size=1, shuffle=shuffle)

    for shuffle in (True, False):
        seen.append([])
        run(recipe, shuffle=shuffle, plugins=[Sees(), *QUICK], run_dir=tmp_path / str(shuffle))
    assert seen[1] == [0, 1, 2, 3, 4, 5]
    assert sorted(seen[0]) == seen[1] != seen[0]


def test_a_validation_and_a_test_set_reach_the_result(tmp_path) -> None:
    x = torch.arange(4.0).reshape(4, 1)
    result = run(lambda: made(val=(x, x), test=(x, 3 * x)), plugins=QUICK, run_dir=tmp_path / "run")
    assert "val_loss" in result.history[0]
    assert list(result.test) == ["test_loss"]


def test_a_loader_brings_its_own_batches(tmp_path) -> None:
    x = torch.arange(6.0).reshape(6, 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), batch_size=3)
    assert run(lambda: made(train=loader), plugins=QUICK, run_dir=tmp_path / "a").steps == 2
    with pytest.raises(UsageError, match="leave out batch_size=2"):
        run(lambda: made(train=loader, batch_size=2), plugins=QUICK, run_dir=tmp_path / "b")


def test_divergence_can_be_shown_on_purpose(tmp_path) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    settings = {"model": model, "optimizer": optimizer, "on_nonfinite": "continue", "epochs": 5}
    result = run(lambda: made(**settings), plugins=QUICK, run_dir=tmp_path / "run")
    assert result.epochs == 5
    assert not all(abs(row["train_loss"]) < float("inf") for row in result.history)
