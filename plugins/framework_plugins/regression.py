"""How far a regression is off, exact over batches of any size."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor

from framework import DataError, Trainer, target_of, unpadded

FIGURES = "mae", "rmse", "r2"


class Regression:
    """Adds `{split}_mae`, `{split}_rmse` and `{split}_r2`: mean absolute error, root of the mean squared error, R2.

    R2 is the share of the targets' variance that the model explains: 1 is perfect, 0 is no better than their mean, and
    a bad model falls below it. Where a sample has several targets it is the mean of theirs. Targets that are all alike
    have none to explain: R2 is 1 where the model gives them exactly, else 0. Of a single sample it is nan.

    Outputs and targets must have one shape: (N,) and (N, 1) would be compared each with each. The sums are kept on the
    device until the end of a split, in double precision where the device has it, and about the mean of the targets, so
    that targets of a million with differences of one lose nothing. A second instance needs a name, which its figures
    have too: `Regression(name="second")` adds `{split}_second_r2`.

    Where a fit goes on inside of an epoch with another number of processes, its figures of that epoch are of a part of
    the samples.

    Raises:
        DataError: output and target are not of one shape
    """

    of_samples = ("sums",)  # that this process sees

    def __init__(self, name: str = "regression") -> None:
        self.name = name
        self._prefix = "" if name == "regression" else f"{name}_"
        # By split: the samples; and of shape (4, targets) the sums of |error| and error^2, the mean, and the sum of the
        # squares of what deviates from it.
        self._sums: dict[str, tuple[int, Tensor]] = {}

    def metric_names(self, split: str) -> list[str]:
        return [f"{split}_{self._prefix}{figure}" for figure in FIGURES]

    def on_fit_start(self, trainer: Trainer) -> None:
        self._sums, self._device = {}, trainer.device

    def on_split_start(self, split: str) -> None:
        self._sums.pop(split, None)

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, output: Any) -> None:
        batch, output = unpadded(trainer, batch, output)
        target = target_of(batch, self.name)
        shapes = [tuple(getattr(part, "shape", ())) for part in (output, target)]
        if not shapes[0] or shapes[0] != shapes[1]:
            raise DataError(
                f"{self.name} needs outputs and targets of one shape: the model gives "
                f"{shapes[0] or type(output).__name__}, and the target is {shapes[1] or type(target).__name__}"
            )
        exact = torch.float32 if output.device.type == "mps" else torch.float64
        rows, targets = len(target), math.prod(shapes[1][1:])
        if not rows:  # all of it is padding: other processes have the batch
            self._sums.setdefault(split, (0, torch.zeros(4, targets, dtype=exact, device=output.device)))
            return
        output, target = (part.to(exact).reshape(rows, targets) for part in (output, target))
        error, mean = output - target, target.mean(dim=0)
        sums = torch.stack([error.abs().sum(0), error.square().sum(0), mean, (target - mean).square().sum(0)])
        self._sums[split] = _merged(self._sums[split], (rows, sums)) if split in self._sums else (rows, sums)

    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        figures = [math.nan] * 3
        if split in self._sums:
            figures = _figures(trainer, *self._sums.pop(split))
        metrics.update(zip(self.metric_names(split), figures, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = {split: (count, sums.to(self._device)) for split, (count, sums) in state["sums"].items()}


def _merged(before: tuple[int, Tensor], batch: tuple[int, Tensor]) -> tuple[int, Tensor]:
    """Both parts as one (Chan, Golub and LeVeque, 1979): a sum of squares less a square of sums would cancel out."""
    (count, sums), (more, added) = before, batch
    total, shift = count + more, added[2] - sums[2]
    mean = sums[2] + shift * (more / total)
    deviation = sums[3] + added[3] + shift.square() * (count * more / total)
    return total, torch.stack([sums[0] + added[0], sums[1] + added[1], mean, deviation])


def _figures(trainer: Trainer, count: int, sums: Tensor) -> list[float]:
    """Over all processes: the mean comes first, then what each deviates from it."""
    added = trainer.sum(torch.cat([sums[:2].flatten(), sums[2] * count, sums.new_tensor([count])]))
    samples = int(added[-1])
    errors, squares, mean = added[:-1].reshape(3, -1) / samples
    deviation = trainer.sum(sums[3] + count * (sums[2] - mean).square()) / samples
    rounding = (8 * torch.finfo(sums.dtype).eps * mean).square()
    r2 = torch.where(deviation <= rounding, (squares == 0).to(sums.dtype), 1 - squares / deviation).mean()
    return [float(errors.mean()), float(squares.mean().sqrt()), float(r2) if samples > 1 else math.nan]
