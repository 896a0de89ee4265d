"""The best and the last checkpoint of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from framework import Monitor, Result, Snapshot, Trainer, hookimpl

SPACING = 20  # writing takes at most a twentieth of the time of a run


class BestCheckpoint:
    """Keeps the checkpoint of the best epoch by a monitored figure, and the last one.

    The best is kept as a copy in memory. Best and last are written at the end, at a stop, after an error, and during
    the fit whenever 20 times the duration of the last write has passed: a toy run of a thousand epochs writes once.

    Args:
        monitor: the figure; by default val_loss where there is a validation set, else train_loss
        mode: "min", "max", or "auto" by the name of the figure
        min_delta: by how much a figure must beat the best so far
        restore_best: leave the model with the weights of the best epoch at the end of the fit
        every_seconds: write at least so many seconds apart instead; 0 writes each epoch

    Raises:
        UsageError: the figure will not be there (before the first epoch, with a suggestion)
    """

    def __init__(
        self, monitor: str | None = None, mode: str = "auto", min_delta: float = 0.0, restore_best: bool = False,
        every_seconds: float | None = None, name: str = "best_checkpoint",
    ) -> None:  # fmt: skip
        self.name = name
        self.monitor = Monitor(monitor, mode, min_delta)
        self.restore_best = restore_best
        self.every_seconds = every_seconds
        self._started = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self.monitor.start(trainer)
        self._started = True
        self._best: Snapshot | None = None
        self._row: dict[str, Any] = {}
        self._written: dict[str, int] = {}  # label: step of the checkpoint that it points at
        self._path: Path | None = None
        self._duration = 0.05
        self._last_write = time.monotonic()

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self.monitor.update(epoch, metrics):
            self._best, self._row = trainer.snapshot(), dict(metrics)
        spacing = SPACING * self._duration if self.every_seconds is None else self.every_seconds
        if time.monotonic() - self._last_write >= spacing:
            self._write(trainer, trainer.snapshot())

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer, result: Result) -> Iterator[None]:
        self._started = False
        self._write(trainer, None)
        if self._best is not None:
            result.best = {
                **self._row, "monitor": self.monitor.name, "value": self.monitor.best, "path": self._path,
            }  # fmt: skip
            if self.restore_best:
                trainer.model.load_state_dict(self._best.model)
        yield  # whatever other plugins do at the end sees the restored weights

    def on_exception(self, trainer: Trainer) -> None:
        if self._started and trainer.step:
            self._started = False
            self._write(trainer, None)

    def _write(self, trainer: Trainer, last: Snapshot | None) -> None:
        """Write what is not on the disk yet: the best from its copy, and the present state as the last."""
        if trainer.run_dir is None:
            return
        begun = time.monotonic()
        labels = ["last"] if self._written.get("last") != trainer.step else []
        if self._best is not None and self._written.get("best") != self._best.step:
            together = self._best.step == trainer.step
            self._save(trainer, ["best", *labels] if together else ["best"], self._best)
            labels = [] if together else labels
        if labels:
            self._save(trainer, labels, last or trainer.snapshot())
        self._last_write = time.monotonic()
        self._duration = self._last_write - begun

    def _save(self, trainer: Trainer, labels: list[str], snapshot: Snapshot) -> None:
        self._saving = labels
        trainer.save(labels, snapshot)
        self._saving = []
        self._written |= dict.fromkeys(labels, snapshot.step)

    def on_checkpoint(self, path: Path) -> None:
        if "best" in getattr(self, "_saving", ()):
            self._path = path

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state)
