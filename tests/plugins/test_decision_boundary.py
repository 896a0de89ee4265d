"""The plane is divided where the model divides it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.decision_boundary import DecisionBoundary
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from framework import DataError, Trainer

X = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = torch.tensor([[0.0], [0.0], [1.0], [1.0]])


def trainer_of(model: nn.Module, loss: nn.Module, run_dir: Path | None, *plugins: Any) -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # the model stays as it is made
    return Trainer(model, loss, optimizer, plugins or [DecisionBoundary()], device="cpu", run_dir=run_dir)


def upright(scale: float, *behind: nn.Module) -> nn.Module:
    """Class 1 to the right of x[0] = 0.5."""
    line = nn.Linear(2, 1)
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[scale, 0.0]]))
        line.bias.fill_(-scale / 2)
    return nn.Sequential(line, *behind)


def boundaries(path: Path) -> list[list[tuple[float, float]]]:
    """The points of the black lines, as shares of the axes; a contour is the only path that is not filled."""
    svg = path.read_text("utf-8")
    found = []
    for path_data in re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: #000000; stroke-width: 1.5', svg):
        found.append([(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path_data)])
    return found


@pytest.mark.parametrize("logits", [True, False])
def test_the_boundary_is_where_the_probability_is_a_half(logits: bool, tmp_path: Path) -> None:
    model = upright(20) if logits else upright(20, nn.Sigmoid())
    trainer = trainer_of(model, nn.BCEWithLogitsLoss() if logits else nn.BCELoss(), tmp_path)
    trainer.fit((X, Y), epochs=1)
    (line,) = boundaries(tmp_path / "decision_boundary.svg")
    frame = re.search(
        r'<g id="axes_1">.*?<path d="([^"]+)"', (tmp_path / "decision_boundary.svg").read_text("utf-8"), re.S
    )
    assert frame is not None
    corners = [(float(x), float(y)) for x, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", frame[1])]
    left, right = min(x for x, _ in corners), max(x for x, _ in corners)
    assert [x for x, _ in line] == pytest.approx([(left + right) / 2] * len(line), abs=1)  # x[0] = 0.5 is the middle
    assert max(y for _, y in line) - min(y for _, y in line) > 300  # from top to bottom


def test_a_flat_half_has_no_boundary(tmp_path: Path) -> None:
    trainer_of(upright(1e-7), nn.BCEWithLogitsLoss(), tmp_path).fit((X, Y), epochs=1)
    assert boundaries(tmp_path / "decision_boundary.svg") == []


def test_several_classes_and_uneven_batches_are_drawn(tmp_path: Path) -> None:
    x, y = torch.randn(23, 2), torch.arange(23) % 3
    trainer_of(nn.Linear(2, 3), nn.CrossEntropyLoss(), tmp_path).fit((x, y), epochs=2, batch_size=5)
    said = re.findall(r"<!-- (.*?) -->", (tmp_path / "decision_boundary.svg").read_text("utf-8"))
    assert [text for text in said if text.startswith("class ")] == ["class 0", "class 1", "class 2"]
    assert {"x[0]", "x[1]"} <= set(said)


def test_large_data_are_drawn_in_part(tmp_path: Path) -> None:
    x = torch.randn(50_000, 2)
    trainer_of(nn.Linear(2, 2), nn.CrossEntropyLoss(), tmp_path).fit(
        (x, (x[:, 0] > 0).long()), epochs=1, batch_size=500
    )
    assert (tmp_path / "decision_boundary.svg").stat().st_size < 500_000


@pytest.mark.parametrize("x", [torch.zeros(4, 3), torch.zeros(4, 2, 1), torch.zeros(4)])
def test_other_features_than_two_are_refused_at_the_first_batch(x: Tensor, tmp_path: Path) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * self.weight if x.dim() > 1 else x.unsqueeze(1) * self.weight

    with pytest.raises(DataError, match=r"decision_boundary draws a plane of two features, x of shape \(N, 2\)"):
        trainer_of(First(), nn.BCEWithLogitsLoss(), tmp_path).fit((x, Y), epochs=3)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (Y / 2, "the target y has 0.5, which is no class"),
        (-Y, "the target y has -1, which is no class"),
        (torch.cat([Y, 1 - Y], dim=1), r"y of shape \(N,\) or \(N, 1\); a batch has \([24], 2\)"),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_targets_that_are_no_classes_are_refused(y: Tensor, said: str, batch_size: int | None, tmp_path: Path) -> None:
    trainer = trainer_of(nn.Linear(2, y.size(1)), nn.L1Loss(), tmp_path)
    with pytest.raises(DataError, match=f"decision_boundary draws classes.*{said}"):
        trainer.fit((X, y), epochs=3, batch_size=batch_size)
    assert trainer.epoch == 0


def test_classes_may_be_true_and_false_and_some_ignored(tmp_path: Path) -> None:
    class Loss(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return nn.functional.binary_cross_entropy_with_logits(output, target.float())

    trainer_of(upright(1), Loss(), tmp_path).fit((X, Y == 1), epochs=1)
    assert (tmp_path / "decision_boundary.svg").is_file()
    y = torch.tensor([0, -100, 1, 2])
    trainer_of(nn.Linear(2, 3), nn.CrossEntropyLoss(), tmp_path).fit((X, y), epochs=1)
    said = re.findall(r"<!-- (.*?) -->", (tmp_path / "decision_boundary.svg").read_text("utf-8"))
    assert [text for text in said if text.startswith("class ")] == ["class 0", "class 1", "class 2"]


def test_points_whose_memory_is_used_again_are_drawn_where_they_were(tmp_path: Path) -> None:
    """A loader, or a faster loop, may give each batch in the same memory."""
    memory = torch.zeros(1, 2), torch.zeros(1, 1)

    def collate(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        for part, value in zip(memory, pairs[0], strict=True):
            part.copy_(value)
        return memory

    loader = DataLoader(TensorDataset(X, Y), collate_fn=collate)

    def drawn(data: Any, batch_size: int | None = None) -> list[str]:
        trainer_of(upright(20), nn.BCEWithLogitsLoss(), tmp_path).fit(data, epochs=1, batch_size=batch_size)
        return sorted((tmp_path / "decision_boundary.svg").read_text("utf-8").splitlines())  # in any order

    assert drawn(loader) == drawn((X, Y), 1)


def test_nothing_is_drawn_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer_of(upright(1), nn.BCEWithLogitsLoss(), None).fit((X, Y), epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_it_changes_no_bit_of_training(tmp_path: Path) -> None:
    def trained(*plugins: Any) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, nn.BCEWithLogitsLoss(), optimizer, plugins, device="cpu", run_dir=tmp_path)
        trainer.fit((X, Y), epochs=5, batch_size=3)
        return [*model.weight.flatten().tolist(), *torch.get_rng_state().tolist()]

    assert trained(DecisionBoundary()) == trained()
