"""The exact mean of a loss over samples, read from a device now and then."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FLUSH = 256  # a 0-dim tensor pins a block of 512 bytes on a GPU, so the pending ones are read now and then


class Mean:
    """The mean over samples of a loss per batch: `sum(loss * samples) / sum(samples)` in step order, in doubles.

    On a CPU each loss is read at once. On a device it stays there, and 256 of them are read together: the same
    numbers in the same order, without a wait a step.

    Args:
        device: where the losses are
        refuse: called with the number of a batch whose loss is inf or nan, and the loss; None lets it pass
    """

    __slots__ = "_lazy", "_pending", "_refuse", "batches", "count", "total"

    def __init__(self, device: torch.device, refuse: Callable[[int, float], None] | None = None) -> None:
        self.total = 0.0
        self.count = 0
        self.batches = 0
        self._refuse = refuse
        self._lazy = device.type != "cpu"
        self._pending: list[tuple[Tensor, int]] = []

    def add(self, loss: Tensor, samples: int) -> None:
        if self._lazy:
            self._pending.append((loss.detach(), samples))
            if len(self._pending) == FLUSH:
                self.flush()
        else:
            self._take(loss.item(), samples)

    def _take(self, loss: float, samples: int) -> None:
        if self._refuse is not None and not math.isfinite(loss):
            self._refuse(self.batches, loss)
        self.batches += 1
        self.total += loss * samples
        self.count += samples

    def flush(self) -> None:
        """Read what is pending: one wait for the device."""
        pending, self._pending = self._pending, []
        if pending:
            losses = torch.stack([loss.reshape(()) for loss, _ in pending]).tolist()
            for loss, (_, samples) in zip(losses, pending, strict=True):
                self._take(loss, samples)
