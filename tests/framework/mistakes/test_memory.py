"""Memory that does not suffice is told with the step, the batch and what needs less, in an error of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from framework import FrameworkError, Trainer
from framework.mistakes import explain

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.77 GiB of which 3.00 MiB is "
    "free. Process 1 has 15.70 GiB memory in use."
)
DATA = torch.rand(6, 3), torch.rand(6, 1)


class Short(nn.Module):
    """A layer for which memory does not suffice in one of its calls."""

    def __init__(self, at: int, needs: Callable[[], Any]) -> None:
        super().__init__()
        self.layer, self.at, self.needs = nn.Linear(3, 1), at, needs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.at -= 1
        return self.layer(x) if self.at >= 0 else self.layer(x) + self.needs()


def of_cuda() -> Any:
    raise torch.OutOfMemoryError(CUDA)


def of_python() -> Any:
    raise MemoryError


def of_the_machine() -> Any:
    return torch.empty(10**15)


@pytest.mark.parametrize(
    ("needs", "asked"),
    [
        (of_cuda, ", 20.00 MiB of 15.77 GiB could not be had"),
        (of_the_machine, ", 4000000000000000 bytes could not be had"),
        (of_python, ""),
    ],
)
def test_what_could_not_be_had_is_told_with_step_batch_and_remedy(needs: Callable[[], Any], asked: str) -> None:
    model = Short(2, needs)
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.fit(DATA, epochs=3, batch_size=6)
    assert str(caught.value) == (
        f"out of memory at step 2, epoch 2{asked}; batch: x (6, 3) float32 on cpu, y (6, 1) float32 on cpu; "
        "try batch_size=3 and accumulate=2"
    )
    assert isinstance(caught.value, (FrameworkError, RuntimeError, MemoryError))
    assert isinstance(caught.value.__cause__, (RuntimeError, MemoryError))
    assert trainer.step == 2


@pytest.mark.parametrize("kind", [FrameworkError, torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_whoever_catches_one_kind_of_it_catches_it(kind: type[Exception]) -> None:
    assert isinstance(explain(torch.OutOfMemoryError(CUDA), nn.Linear(1, 1), None, None, None), kind)


def test_the_weights_are_those_of_the_last_finished_step(fit: Callable[..., Any]) -> None:
    made = []
    for steps in (2, 9):
        torch.manual_seed(0)
        model = Short(2, of_cuda)
        if steps == 2:
            fit(model, nn.MSELoss(), DATA, epochs=2)
        else:
            with pytest.raises(torch.OutOfMemoryError):
                fit(model, nn.MSELoss(), DATA, epochs=9)
        made.append(list(model.layer.parameters()))
    assert all(map(torch.equal, *made))


@pytest.mark.parametrize("where", ["backward", "step"])
def test_it_is_told_in_the_backward_pass_and_in_the_optimizer_too(where: str) -> None:
    class Raises(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, grad: torch.Tensor) -> Any:
            return of_cuda()

    class Steps(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return of_cuda()

    model = nn.Linear(3, 1)
    kind = Steps if where == "step" else torch.optim.SGD
    loss = nn.MSELoss() if where == "step" else lambda output, y: nn.functional.mse_loss(Raises.apply(output), y)
    trainer = Trainer(model, loss, kind(model.parameters(), lr=0.1), device="cpu")
    with pytest.raises(torch.OutOfMemoryError, match=r"out of memory at step 0, .* batch: x \(6, 3\)"):
        trainer.fit(DATA)


def test_a_batch_of_one_sample_cannot_be_halved(fit: Callable[..., Any]) -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"x \(1, 3\) .*; use a smaller model or input$"):
        fit(Short(0, of_cuda), nn.MSELoss(), DATA, batch_size=1)


def test_a_model_that_does_not_fit_on_the_device_is_told(fit: Callable[..., Any]) -> None:
    class Large(nn.Linear):
        def to(self, *given: Any, **named: Any) -> Any:
            return of_cuda()

    with pytest.raises(torch.OutOfMemoryError, match=r"at step 0, .*20.00 MiB of 15.77 GiB .* batch: none;"):
        fit(Large(3, 1), nn.MSELoss(), DATA)


def test_a_checkpoint_for_which_it_does_not_suffice_is_told(tmp_path: Path) -> None:
    class Heavy(nn.Linear):
        full = False

        def state_dict(self, *given: Any, **named: Any) -> Any:
            return of_python() if self.full else super().state_dict(*given, **named)

    class Saves:
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.model.full = True
            trainer.save()

    model = Heavy(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, plugins=[Saves()], device="cpu", run_dir=tmp_path)
    with pytest.raises(
        MemoryError, match="out of memory while a checkpoint was taken at step 1, epoch 0; those before"
    ):
        trainer.fit(DATA, batch_size=3)


@pytest.mark.parametrize("error", [RuntimeError("my memory is short"), ValueError("out of memory")])
def test_other_errors_are_none_of_it(error: Exception) -> None:
    assert explain(error, nn.Linear(1, 1), None, None, None) is None
