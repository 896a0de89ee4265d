"""Validation beside that of the fit: what it finds, when it looks, and that training goes on as if nothing had been."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.accuracy import Accuracy
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.early_stopping import EarlyStopping
from framework_plugins.limits import Limits
from framework_plugins.validation import Validation
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from framework import Trainer, UsageError
from framework.checkpoint import find, read
from framework.testing import Recorder, tiny_data, tiny_trainer

VAL, HARD = tiny_data(5, seed=1), tiny_data(4, seed=2)


class StopAt:
    """Saves and stops after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


class Weights:
    """The weights after each step."""

    def on_fit_start(self, trainer: Trainer) -> None:
        self.after: dict[int, dict[str, torch.Tensor]] = {}

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train":
            self.after[trainer.step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}


def fitted(
    plugins: list[Any], run_dir: Path | None = None, resume: Path | None = None, val: Any = VAL, **sizes: Any
) -> tuple[Trainer, Any]:
    """A model with dropout and batch normalization; five steps an epoch."""
    torch.manual_seed(0 if resume is None else 9)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    trainer = Trainer(model, F.mse_loss, torch.optim.Adam(model.parameters(), lr=0.1), plugins, "cpu", run_dir)
    torch.manual_seed(1 if resume is None else 8)
    result = trainer.fit(tiny_data(15), val, **{"epochs": 3, "batch_size": 3, **sizes}, resume=resume)
    return trainer, result


def loss_of(weights: dict[str, torch.Tensor], data: Any) -> float:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        return F.mse_loss(model(data[0]), data[1]).item()


# --------------------------------------------------------------------------------------------- when, and what it finds


@pytest.mark.parametrize(
    ("knobs", "steps"),
    [
        ({"every_steps": 4}, [4, 8, 12]),
        ({"every_steps": 5}, [5, 10, 15]),
        ({"fraction": 1.0}, [5, 10, 15]),
        ({"fraction": 0.5}, [3, 5, 8, 10, 13, 15]),
        ({"fraction": 0.01}, [*range(1, 16)]),
        ({"every_steps": 100}, []),
    ],
    ids=str,
)
def test_it_looks_when_it_is_to_look_at_the_weights_that_are_there(knobs: dict[str, Any], steps: list[int]) -> None:
    plugin, weights = Validation(HARD, **knobs, name="hard"), Weights()
    fitted([weights, plugin])
    assert [row["step"] for row in plugin.rows] == steps
    assert [row["epoch"] for row in plugin.rows] == [(step - 1) // 5 for step in steps]
    for row in plugin.rows:
        assert row["hard_loss"] == pytest.approx(loss_of(weights.after[row["step"]], HARD), rel=1e-6)


@pytest.mark.parametrize("looks", [1, 2, 3, 4, 7, 10])
def test_a_fraction_gives_as_many_looks_in_each_epoch_the_last_one_at_its_end(looks: int) -> None:
    for windows in range(1, 31, 3):
        plugin = Validation(HARD, fraction=1 / looks, name="hard")
        tiny_trainer([plugin]).fit(tiny_data(windows), epochs=2, batch_size=1)
        steps = sorted({-(-look * windows // looks) for look in range(1, looks + 1)})  # rounded up
        assert [row["step"] for row in plugin.rows] == [*steps, *(windows + step for step in steps)]
        assert steps[-1] == windows


def test_steps_are_those_of_the_optimizer() -> None:
    plugin = Validation(HARD, every_steps=1, name="hard")
    tiny_trainer([plugin]).fit(tiny_data(5), epochs=1, batch_size=1, accumulate=2)
    assert [row["step"] for row in plugin.rows] == [1, 2, 3]


def test_without_data_it_is_the_validation_set_of_the_fit() -> None:
    plugin = Validation(fraction=0.5)
    _, result = fitted([plugin])
    assert [row["validation_loss"] for row in plugin.rows[1::2]] == [row["val_loss"] for row in result.history]
    assert [row["validation_loss"] for row in result.history] == [row["val_loss"] for row in result.history]


def test_limited_validation_is_limited_here_too() -> None:
    recorder = Recorder(["on_batch_end"])
    tiny_trainer([Limits(val_batches=2), Validation(fraction=1), recorder]).fit(tiny_data(1), tiny_data(5), 1, 1)
    assert [call.arguments["split"] for call in recorder.calls] == ["train", "test", "test", "val", "val"]


def test_several_sets_have_figures_of_their_own_in_each_row() -> None:
    sets = [Validation(HARD, name="hard"), Validation(VAL, batch_size=3, name="again")]
    trainer, result = fitted(sets)
    assert trainer.metric_names == ("train_loss", "hard_loss", "again_loss", "val_loss")
    assert [row["again_loss"] for row in result.history] == [row["val_loss"] for row in result.history]
    assert [row["hard_loss"] for row in result.history] != [row["val_loss"] for row in result.history]
    assert trainer.evaluate(HARD) == {"test_loss": result.history[-1]["hard_loss"]}


def test_the_figures_of_other_plugins_are_there_as_well() -> None:
    x, y = torch.randn(12, 3), torch.arange(12) % 3
    model = nn.Linear(3, 3)
    plugins = [Accuracy(), Validation((x[:6], y[:6]), 2, name="hard")]
    trainer = Trainer(model, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1), plugins, "cpu")
    row = trainer.fit((x, y), epochs=1, batch_size=3).history[-1]
    right = (model(x[:6]).argmax(1) == y[:6]).float().mean().item()
    assert row["hard_accuracy"] == pytest.approx(right)
    assert "hard_accuracy" in trainer.metric_names


def test_between_looks_a_row_has_the_figures_of_the_last_one_and_nan_before_the_first() -> None:
    _, result = fitted([Validation(HARD, every_epochs=2, name="hard")], epochs=5)
    figures = [row["hard_loss"] for row in result.history]
    assert math.isnan(figures[0])
    assert figures[1] == figures[2] != figures[3] == figures[4]


def test_without_a_validation_set_of_the_fit_it_looks_at_the_end_of_the_epoch() -> None:
    trainer, result = fitted([Validation(HARD, name="hard")], val=None)
    assert result.history[-1]["hard_loss"] == pytest.approx(trainer.evaluate(HARD)["test_loss"])


def test_other_plugins_can_follow_its_figures() -> None:
    plugins = [Validation(HARD, name="hard"), EarlyStopping("hard_loss", patience=1, min_delta=100.0)]
    assert "hard_loss has not improved" in str(fitted(plugins)[1].stop_reason)


def test_each_look_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    plugins = [Validation(HARD, every_steps=10, name="hard"), Validation(fraction=1)]
    fitted(plugins)
    hard, usual = (plugin.rows[0] for plugin in plugins)
    lines = capsys.readouterr().out.splitlines()
    assert f"hard      step 10 loss {hard['hard_loss']:.4g}" in lines
    assert f"validation step 5 loss {usual['validation_loss']:.4g}" in lines
    assert len(lines) == 4


# ------------------------------------------------------------------------------------------------ training is as before


class Draws(Dataset[Any]):
    """Samples that draw random numbers."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.rand(4), torch.tensor(row % 3)


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    loader = DataLoader(Draws(), 2, shuffle=True, generator=torch.Generator().manual_seed(3))
    plugins = [
        Validation(every_steps=3), Validation(fraction=0.5, name="half"), Validation(Draws(), name="draws"),
        Validation(loader, every_steps=1, name="loader"),
    ]  # fmt: skip
    assert trained(plugins) == trained([])


def test_a_module_that_is_in_eval_mode_stays_so() -> None:
    class Freezes:
        def on_split_start(self, trainer: Trainer, split: str) -> None:
            if split == "train":
                trainer.model[1].eval()

        def on_batch_start(self, trainer: Trainer, split: str) -> None:
            if split == "train":
                modes.append([module.training for module in trainer.model])

    modes: list[list[bool]] = []
    fitted([Freezes(), Validation(every_steps=1)])
    assert modes == [[True, False, True, True]] * 15


# -------------------------------------------------------------------------------------------- checkpoints and resuming


def test_what_is_saved_as_the_best_is_what_was_evaluated(tmp_path: Path) -> None:
    # Lightning #17417, #20185: the checkpoint was chosen by a figure of other weights
    plugin, weights = Validation(HARD, every_steps=2, save_best=True, name="hard"), Weights()
    fitted([weights, plugin], tmp_path)
    best = min(plugin.rows, key=lambda row: row["hard_loss"])
    path = find(tmp_path, "best_hard")
    assert path is not None
    snapshot = read(path)
    assert snapshot.step == best["step"]
    assert loss_of(snapshot.model, HARD) == pytest.approx(best["hard_loss"], rel=1e-6)


def test_the_best_epoch_by_another_set_is_saved(tmp_path: Path) -> None:
    _, result = fitted([Validation(HARD, save_best=True, mode="max", name="hard")], tmp_path)
    best = max(result.history, key=lambda row: row["hard_loss"])
    path = find(tmp_path, "best_hard")
    assert path is not None
    assert read(path).step == best["step"]
    assert loss_of(read(path).model, HARD) == pytest.approx(best["hard_loss"], rel=1e-6)


@pytest.mark.parametrize("knobs", [{"every_steps": 2}, {"fraction": 0.5}, {"every_epochs": 2}], ids=str)
def test_stopped_after_any_step_and_resumed_it_has_found_the_same(
    oracle: Any, tmp_path: Path, knobs: dict[str, Any]
) -> None:
    def plugin() -> Validation:
        return Validation(HARD, **knobs, save_best=True, name="hard")

    alone = plugin()
    trainer, result = fitted([alone], tmp_path / "alone")
    for step in (1, 4, 5, 8, 10):  # inside of epochs and at their ends, at looks and between them
        run_dir = tmp_path / str(step)
        fitted([plugin(), StopAt(step)], run_dir)
        if (run_dir / "hard.jsonl").exists():  # what a fit wrote that was killed later
            with (run_dir / "hard.jsonl").open("a", encoding="utf-8") as file:
                file.write('{"step": 1000}\n')
        resumed = plugin()
        again, got = fitted([resumed], run_dir, resume=run_dir)
        assert str(got.history) == str(result.history)  # nan is nan
        assert resumed.rows == alone.rows
        oracle.assert_same(dict(trainer.model.state_dict()), dict(again.model.state_dict()))
        oracle.assert_same(str(trainer.plugins.states()), str(again.plugins.states()))
        best, wanted = find(run_dir, "best_hard"), find(tmp_path / "alone", "best_hard")
        assert best is not None
        assert wanted is not None
        assert read(best).step == read(wanted).step
        if alone.rows:
            assert (run_dir / "hard.jsonl").read_bytes() == (tmp_path / "alone" / "hard.jsonl").read_bytes()


def test_a_look_that_a_checkpoint_came_before_is_made_after_the_resume(tmp_path: Path) -> None:
    """BestCheckpoint, which is listed first, copies the state at the very boundary at which the look was due."""

    def plugins() -> list[Any]:
        return [BestCheckpoint(every_steps=4), Validation(HARD, every_steps=4, name="hard")]

    class Dies:
        def on_batch_start(self, trainer: Trainer, split: str) -> None:
            if split == "train" and trainer.step == 4:
                raise SystemExit

    both = plugins()
    fitted(both, tmp_path / "alone")
    with pytest.raises(SystemExit):
        fitted([*plugins(), Dies()], tmp_path / "died")
    (path,) = (tmp_path / "died" / "checkpoints").glob("step-000000000004*")
    assert read(path).plugins["hard"]["rows"] == []
    resumed = plugins()
    fitted(resumed, resume=path)
    assert resumed[1].rows == both[1].rows


def test_a_file_of_an_earlier_fit_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "hard.jsonl").write_text('{"step": 99}\n', encoding="utf-8")
    plugin = Validation(HARD, every_steps=5, name="hard")
    for _ in range(2):
        fitted([plugin], tmp_path)
        lines = (tmp_path / "hard.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == plugin.rows
    fitted([Validation(HARD, every_steps=99, name="hard")], tmp_path)
    assert (tmp_path / "hard.jsonl").read_bytes() == b""


def test_without_a_run_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fitted([Validation(every_steps=2)])
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, r"after each epoch anyway; Validation\(every_steps=500\) .* Validation\(hard, name='hard'\)"),
        ({"every_epochs": 2}, "after each epoch anyway"),
        ({"data": HARD, "every_steps": 0}, "every_steps must be a whole number from 1 up, got 0"),
        ({"data": HARD, "every_epochs": 1.5}, "every_epochs must be a whole number from 1 up, got 1.5"),
        ({"fraction": 2}, "fraction is a part of an epoch, above 0 and at most 1, got 2"),
        ({"fraction": 0.0}, "fraction is a part of an epoch, above 0 and at most 1, got 0.0"),
        ({"fraction": 0.5, "every_steps": 3}, "every_steps and fraction exclude each other"),
        ({"every_steps": 3, "batch_size": 3}, "batch_size=3 is for data"),
        ({"every_steps": 3, "name": "a b"}, "name='a b': figures are called by it"),
        ({"every_steps": 3, "name": "val"}, "name='val': figures are called by it"),
        ({"every_steps": 3, "mode": "up"}, "mode must be 'auto', 'min' or 'max', got 'up'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_when_it_is_made(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Validation(**knobs)


def test_a_loader_is_given_without_a_batch_size() -> None:
    with pytest.raises(UsageError, match="hard: a DataLoader has batches of its own: leave out batch_size=3"):
        Validation(DataLoader(TensorDataset(*HARD)), batch_size=3, name="hard")


def test_without_a_fit_it_adds_nothing_to_what_is_evaluated() -> None:
    assert set(tiny_trainer([Validation(HARD, name="hard"), Validation(fraction=1)]).evaluate(VAL)) == {"test_loss"}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(TensorDataset(*tiny_data(4)))


@pytest.mark.parametrize(
    ("plugin", "train", "val", "message"),
    [
        (Validation(every_steps=3), tiny_data(), None, "validation: this fit has no validation set"),
        (Validation(HARD, save_best=True), tiny_data(), None, "save_best needs a place to save to"),
        (
            Validation(HARD, save_best=True, monitor="los"), tiny_data(), None,
            "no metric 'validation_los' to monitor. Did you mean 'validation_loss'",
        ),
        (Validation(fraction=0.5), Stream(), VAL, "does not tell its length: give every_steps, not fraction"),
    ],
    ids=["no set", "no place", "no figure", "no length"],
)  # fmt: skip
def test_what_cannot_be_in_this_fit_is_told_before_the_first_step(
    plugin: Validation, train: Any, val: Any, message: str
) -> None:
    trainer = tiny_trainer([plugin])
    with pytest.raises(UsageError, match=message):
        trainer.fit(train, val, batch_size=1)
    assert trainer.step == 0
