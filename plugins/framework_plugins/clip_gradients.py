"""Gradients of a bounded size."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from framework import Trainer, UsageError, hookimpl


class ClipGradients:
    """Makes gradients smaller that are too large, before each step of the optimizer.

    By `norm`, all gradients are taken as one vector, which is made shorter where it is longer than that: its direction
    stays. By `value`, each number of each gradient is cut off at so much above and below zero. Both are torch's own,
    `clip_grad_norm_` and `clip_grad_value_`::

        ClipGradients()             # to a norm of 1
        ClipGradients(norm=0.5)
        ClipGradients(value=0.1)

    With `accumulate` it is the gradient of the whole window that is clipped, once, and with the plugin mixed_precision
    the true gradient, without its scale, in whichever order the two are listed.

    By norm it adds `clipped`, the share of an epoch's gradients that were too long (`NAME_clipped` for an instance with
    a name of its own).

    Args:
        norm: the largest norm of all gradients together; 1 where no value is given either
        value: the largest absolute value of each number, in place of a norm

    Raises:
        UsageError: both of them, or one that is not a number above 0
    """

    def __init__(self, norm: float | None = None, value: float | None = None, name: str = "clip_gradients") -> None:
        if norm is not None and value is not None:
            raise UsageError(f"{name}: clip by norm={norm!r} or by value={value!r}; for both, list two")
        self.name = name
        self.value = value
        self.norm = 1.0 if norm is None and value is None else norm
        for setting, limit in (("norm", self.norm), ("value", value)):
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
                raise UsageError(f"{name}: {setting} must be a number above 0, got {limit!r}")
        self._figure = "clipped" if name == "clip_gradients" else f"{name}_clipped"
        self._seen, self._clipped = 0, torch.zeros(())

    def metric_names(self, split: str) -> list[str]:
        return [self._figure] if split == "train" and self.norm is not None else []

    def on_fit_start(self, trainer: Trainer) -> None:
        self._device = trainer.device
        self.on_epoch_start()

    def on_epoch_start(self) -> None:
        self._seen, self._clipped = 0, torch.zeros((), dtype=torch.int64, device=self._device)

    def on_gradients(self, trainer: Trainer) -> None:
        parameters = trainer.model.parameters()
        if self.norm is None:
            assert self.value is not None
            clip_grad_value_(parameters, self.value)
        else:
            norm = clip_grad_norm_(parameters, self.norm)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients
            self._seen += 1
            self._clipped += norm > self.norm  # stays on the device: reading it here would wait

    @hookimpl(split="train")
    def on_split_end(self, metrics: MutableMapping[str, float]) -> None:
        if self.norm is not None:
            metrics[self._figure] = self._clipped.item() / max(1, self._seen)  # none yet: it came with a resume

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "clipped": self._clipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        clipped: Tensor = state["clipped"]
        self._seen, self._clipped = state["seen"], clipped.to(self._device)
