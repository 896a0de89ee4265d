"""What is explained and what is left alone, whatever the mistake."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework import DataError, Trainer, UsageError, hookimpl
from framework.mistakes import explain

COLUMN = torch.rand(5, 3), torch.rand(5, 1)


def rows_of(rows: list[Any]) -> torch.utils.data.Dataset[Any]:
    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> Any:
            return rows[index]

    return Rows()


@pytest.mark.parametrize(
    "error",
    [ValueError("batch_size"), RuntimeError("device"), KeyError("x"), IndexError("Target 3 is out of bounds"),
     RuntimeError("expected scalar type"), ZeroDivisionError("size mismatch"), TypeError("1D target")],
)  # fmt: skip
def test_an_error_whose_cause_is_not_found_is_not_explained(error: Exception) -> None:
    x, y = torch.rand(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert explain(error, nn.Linear(3, 3), F.cross_entropy, (x, y), None) is None


@pytest.mark.parametrize("error", [DataError("mine"), KeyboardInterrupt(), SystemExit()])
def test_what_is_said_already_and_what_is_no_error_is_not_explained(error: BaseException) -> None:
    assert explain(error, nn.Linear(3, 3), F.cross_entropy, {"x": 1}, None) is None


def test_an_explanation_keeps_torch_s_error_as_its_cause(fit: Callable[..., Any]) -> None:
    model = nn.Linear(4, 1)
    with pytest.raises(UsageError) as caught:
        fit(model, nn.MSELoss(), COLUMN)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_error_without_a_batch_is_not_explained_with_one() -> None:
    for batch in (None, (), (torch.ones(1),), torch.ones(2), "batch"):
        assert explain(ValueError("1D target"), nn.Linear(1, 1), F.mse_loss, batch, torch.ones(2, 2)) is None


@pytest.mark.parametrize("hook", ["forward", "compute_loss", "backward", "on_batch_end"])
def test_a_mistake_is_explained_under_a_wrap_as_well(refused: Callable[..., str], hook: str) -> None:
    wraps, space = SimpleNamespace(name="wraps"), {"hookimpl": hookimpl}
    exec(f"@hookimpl(wrapper=True)\ndef {hook}():\n    return (yield)", space)
    setattr(wraps, hook, space[hook])
    y = torch.tensor([0, 1, 2, 3, 0])
    assert "label 3 in row 3" in refused(nn.Linear(3, 3), F.cross_entropy, (torch.rand(5, 3), y), plugins=[wraps])
    assert "Linear(4, 3)" in refused(nn.Linear(4, 3), F.cross_entropy, (torch.rand(5, 3), y), plugins=[wraps])
    model = nn.Linear(3, 3).requires_grad_(False)
    data = torch.rand(5, 3), torch.zeros(5, dtype=torch.int64)
    assert "no parameter to train" in refused(model, F.cross_entropy, data, plugins=[wraps])


def test_a_dict_with_only_one_of_forward_and_compute_loss_replaced_is_told_as_such(refused: Callable[..., str]) -> None:
    class Forward:
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return model(batch["x"])

    model = nn.Linear(3, 1)
    rows = [{"x": torch.rand(3), "y": torch.rand(1)} for _ in range(4)]
    told = refused(model, nn.MSELoss(), rows_of(rows), plugins=[Forward()], batch_size=2)
    assert told.startswith("a batch must be a pair (x, y), this one is 2 parts: batch['x'] (2, 3) float32 on cpu")
    assert "a plugin with forward and compute_loss can take others" in told


def test_a_fit_inside_a_fit_is_refused(refused: Callable[..., str]) -> None:
    class Again:
        def on_epoch_start(self, trainer: Trainer) -> None:
            trainer.fit(COLUMN)

    assert "another one cannot begin inside it" in refused(
        nn.Linear(3, 1), nn.MSELoss(), COLUMN, kind=UsageError, plugins=[Again()]
    )


def test_workers_beside_a_data_loader_are_refused(refused: Callable[..., str]) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*COLUMN))
    told = refused(nn.Linear(3, 1), nn.MSELoss(), loader, kind=UsageError, num_workers=2)
    assert told == "the data is a DataLoader, which has its own batches: leave out num_workers=2"
