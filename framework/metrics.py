"""Figures: those of one split, and the best of a monitored one."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from framework.errors import DataError, UsageError, did_you_mean

if TYPE_CHECKING:
    from framework.trainer import Trainer


class SplitMetrics(UserDict[str, float]):
    """The figures of one pass over a split. A figure is written once, as a number; a second write is an error.

    Args:
        figures: those of the split, to which others are added
        taken: names that the row has already, from the split before
    """

    def __init__(self, figures: dict[str, float], taken: Iterable[str] = ()) -> None:
        self.taken = {"epoch", "step", *taken}
        self.data = figures

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.data or name in self.taken:
            raise UsageError(f"the metric {name!r} is there already; give yours another name")
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, (int, float)):
            raise UsageError(f"the metric {name!r} must be a number, got {type(value).__name__}")
        self.data[name] = value

    def __delitem__(self, name: str) -> None:
        raise UsageError(f"the metric {name!r} cannot be removed: other plugins may have seen it")

    def __ior__(self, figures: Any) -> Self:  # type: ignore[override, misc]
        self.update(figures)  # UserDict's own would go past __setitem__
        return self


def target_of(batch: Any, plugin: str) -> Any:
    """The y of a batch `(x, y)`, for a plugin that compares it with the output.

    Raises:
        DataError: the batch is no such pair
    """
    if isinstance(batch, tuple) and len(batch) == 2:
        return batch[1]
    count = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    held = f"dict of {', '.join(map(repr, batch))}" if isinstance(batch, dict) else f"{type(batch).__name__}{count}"
    raise DataError(f"{plugin} reads y of batches (x, y), and this one is a {held}; a collate_fn can make it a pair")


LARGER_IS_BETTER = ("accuracy", "precision", "recall", "f1", "auc", "auroc", "r2", "iou", "dice", "score")


def mode_of(name: str, mode: str = "auto") -> str:
    """ "max" for figures such as accuracy and F1, else "min"; `mode` itself where it is given.

    Raises:
        UsageError: another mode than "auto", "min" or "max"
    """
    if mode not in ("auto", "min", "max"):
        raise UsageError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
    if mode != "auto":
        return mode
    return "max" if name.rpartition("_")[2] in LARGER_IS_BETTER else "min"


class Monitor:
    """Follows one figure over the epochs: which was the best, and how many epochs have passed since.

    Args:
        name: the figure; None is "val_loss" where there is a validation set, else "train_loss"
        mode: "min", "max", or "auto" (by the name)
        min_delta: by how much a figure must beat the best so far; nan never does
    """

    def __init__(self, name: str | None = None, mode: str = "auto", min_delta: float = 0.0) -> None:
        if min_delta < 0:
            raise UsageError(f"min_delta must not be negative, got {min_delta!r}")
        self.wanted, self.wanted_mode, self.min_delta = name, mode, min_delta
        self._reset(name or "train_loss")

    def _reset(self, name: str) -> None:
        self.name, self.mode = name, mode_of(name, self.wanted_mode)
        self.best: float | None = None
        self.epoch: int | None = None
        self.waited = 0

    def start(self, trainer: Trainer) -> None:
        """Forget what was, and check the name: call it in on_fit_start.

        Raises:
            UsageError: no such figure will be there at the end of an epoch; with a suggestion
        """
        self._reset(self.wanted or ("val_loss" if "val_loss" in trainer.metric_names else "train_loss"))
        if self.name not in trainer.metric_names:
            raise UsageError(f"no metric {self.name!r} to monitor.{did_you_mean(self.name, trainer.metric_names)}")

    def update(self, epoch: int, metrics: Any) -> bool:
        """Take the figure of an epoch; True if it is the best so far.

        Raises:
            UsageError: the plugin that promised the figure in metric_names did not deliver it
        """
        if self.name not in metrics:
            raise UsageError(f"the metric {self.name!r} is missing in epoch {epoch}; there is: {', '.join(metrics)}")
        value = float(metrics[self.name])
        better = not math.isnan(value) and (
            self.best is None
            or (value < self.best - self.min_delta if self.mode == "min" else value > self.best + self.min_delta)
        )
        if better:
            self.best, self.epoch, self.waited = value, epoch, 0
        else:
            self.waited += 1
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.epoch, self.waited = state["best"], state["epoch"], state["waited"]
