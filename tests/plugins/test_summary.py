from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from framework_plugins.summary import Summary, summary
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Recipe, Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer


def printed(model: nn.Module, capsys: pytest.CaptureFixture[str], x: Tensor, plugins: Any = ()) -> list[str]:
    """What a fit with Summary prints for this model."""

    def loss(output: Any, target: Tensor) -> Tensor:
        return (output[0] if isinstance(output, tuple) else output).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, loss, optimizer, plugins=[Summary(), *plugins], device="cpu")
    trainer.fit((x, torch.zeros(len(x))), epochs=2, batch_size=2)
    return capsys.readouterr().out.splitlines()


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_layers_their_shapes_and_parameters_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 500), nn.ReLU(), nn.Linear(500, 1), nn.Sigmoid())
    assert printed(model, capsys, torch.ones(4, 3)) == [
        "layer  kind    output    parameters",
        "0      Linear  (2, 500)       2,000",
        "2      Linear  (2, 1)           501",
        "Sequential, 2,501 parameters in 2 layers (1 hidden)",
    ]


@pytest.mark.parametrize(
    ("model", "counted"),
    [
        (nn.Linear(3, 1), "1 layer (0 hidden)"),
        (nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), "1 layer (0 hidden)"),
        (nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Dropout(), nn.Linear(2, 1)), "2 layers (1 hidden)"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 1)), "4 layers (3 hidden)"),
    ],
)
def test_layers_are_counted_as_the_labs_count_them(
    model: nn.Module, counted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(model, capsys, torch.ones(4, 3))[-1].endswith(f" in {counted}")


class Odd(nn.Module):
    """A parameter of its own, a layer that is never used, a recurrent layer, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.spare = nn.Linear(3, 3)
        self.memory = nn.GRU(3, 5, batch_first=True)
        self.twice = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        states, _ = self.memory(x)
        return self.twice(self.twice(states)) * self.scale, "and more"


def test_layers_of_any_kind_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = Odd()
    assert [re.split("  +", line) for line in printed(model, capsys, torch.ones(4, 7, 3))] == [
        ["layer", "kind", "output", "parameters"],
        ["(the model)", "Odd", "(2, 7, 5)", "1"],
        ["spare", "Linear", "not used", "12"],
        ["memory", "GRU", "(2, 7, 5)", "150"],
        ["twice", "Linear", "(2, 7, 5)", "30"],
        ["Odd, 193 parameters in 4 layers (3 hidden)"],
    ]


def test_its_hooks_are_removed_after_the_first_batch(capsys: pytest.CaptureFixture[str]) -> None:
    class Counts:
        def on_batch_end(self, trainer: Trainer) -> None:
            seen.append(hooks_on(trainer.model))

    seen: list[int] = []
    printed(nn.Linear(3, 1), capsys, torch.ones(4, 3), [Counts()])
    assert seen == [0] * 4


def test_its_hooks_are_removed_after_an_error_in_the_first_batch(
    capsys: pytest.CaptureFixture[str], fails: Any
) -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("broken")

    model = Broken(3, 1)
    with pytest.raises(RuntimeError, match="broken"):
        printed(model, capsys, torch.ones(4, 3))
    assert hooks_on(model) == 0
    assert capsys.readouterr().out == ""


def test_a_second_fit_prints_again_and_evaluate_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_trainer([Summary()])
    trainer.evaluate(tiny_data())
    assert capsys.readouterr().out == ""
    for _ in range(2):
        trainer.fit(tiny_data(), epochs=2)
        assert capsys.readouterr().out.count("kind") == 1


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    assert trained([Summary()]) == trained([])


# ------------------------------------------------------------------------------------------------ the verb


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(zip(*tiny_data(), strict=True)))


def doubled(batch: list[Any]) -> tuple[Tensor, Tensor]:
    x, y = zip(*batch, strict=True)
    return torch.stack(x).repeat(1, 2), torch.stack(y)


@pytest.mark.parametrize(
    ("train", "inputs"),
    [
        (tiny_data(), 3),
        (TensorDataset(*tiny_data()), 3),
        (Stream(), 3),
        (DataLoader(Stream(), batch_size=2), 3),
        (DataLoader(TensorDataset(*tiny_data()), batch_size=2, collate_fn=doubled), 6),
    ],
    ids=["tensors", "Dataset", "IterableDataset", "DataLoader of a stream", "collate_fn"],
)
def test_the_verb_shows_the_shapes_for_one_sample(train: Any, inputs: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def recipe() -> Recipe:
        optimizer = torch.optim.SGD(model.parameters())
        return Recipe(model=model, loss=nn.functional.mse_loss, optimizer=optimizer, train=train)

    summary(recipe)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["0", "1", "3"]
    assert ["(1, 4)" in line for line in lines] == [False, True, True, False, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks_on(model) == 0


def test_the_verb_takes_the_name_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    summary("softmax")
    assert capsys.readouterr().out.splitlines() == [
        "layer        kind     output  parameters",
        "(the model)  Softmax  (1, 3)          13",
        "Softmax, 13 parameters in 1 layer (0 hidden)",
    ]


def test_the_verb_shows_every_variant(capsys: pytest.CaptureFixture[str]) -> None:
    summary("batch_or_minibatch")
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(":")] == ["batch:", "minibatch:"]


def test_the_verb_shows_the_layers_where_the_shapes_cannot_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(7, 1)

    def recipe() -> Recipe:
        optimizer = torch.optim.SGD(model.parameters())
        return Recipe(model=model, loss=nn.functional.mse_loss, optimizer=optimizer, train=tiny_data())

    summary(recipe)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert re.search(r"^\(the shapes are unknown: RuntimeError: .*1x3 and 7x1", out)
    assert re.search(r"^\(the model\)  Linear  unknown +8$", out, flags=re.MULTILINE)
    assert "Linear, 8 parameters in 1 layer (0 hidden)" in out


def test_the_verb_refuses_a_recipe_that_trains_nothing() -> None:
    def tensors() -> None:
        return None

    with pytest.raises(UsageError, match="trains nothing: it has no model"):
        summary(tensors)  # type: ignore[arg-type]
