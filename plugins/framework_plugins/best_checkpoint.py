"""The best and the last checkpoint of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from framework import CheckpointError, Monitor, Result, Snapshot, Trainer, UsageError, hookimpl

SPACING = 20  # writing takes at most a twentieth of the time of a run
SHORTEST = 1.0  # seconds between two writes during a fit


class BestCheckpoint:
    """Keeps the checkpoint of the best epoch by a monitored figure, and the last one.

    The best is kept as a copy in memory, beside the one before it, whose memory the next one takes. Best and last are
    written at the end, at a stop, after an error, and during the fit whenever 20 times the duration of the last write
    has passed: a toy run of a thousand epochs writes once. Without a run directory nothing is written; `result.best`
    and `restore_best` work all the same.

    The weights are those at the end of the best epoch. A training loss is measured on the way there, before each step,
    so give a run a validation set where the best weights matter.

    Several instances keep the best of several figures: `BestCheckpoint("val_accuracy", name="best_accuracy")` labels
    its checkpoint best_accuracy. The first one listed writes the last checkpoint and fills `result.best`.

    Args:
        monitor: the figure; by default val_loss where there is a validation set, else train_loss
        mode: "min", "max", or "auto" by the name of the figure
        min_delta: by how much a figure must beat the best so far
        restore_best: leave the model with the weights of the best epoch at the end of the fit
        every_seconds: write at least so many seconds apart instead; 0 writes each epoch

    Raises:
        UsageError: the figure will not be there (before the first epoch, with a suggestion); a name that cannot be
            a label
        CheckpointError: a checkpoint cannot be written
    """

    def __init__(
        self, monitor: str | None = None, mode: str = "auto", min_delta: float = 0.0, restore_best: bool = False,
        every_seconds: float | None = None, name: str = "best_checkpoint",
    ) -> None:  # fmt: skip
        if not (name.isidentifier() and name.isascii() and name.islower()):
            raise UsageError(f"name={name!r} becomes a checkpoint's label: a word in small letters, like best_accuracy")
        self.name = name
        self.label = "best" if name == "best_checkpoint" else name
        self.monitor = Monitor(monitor, mode, min_delta)
        self.restore_best = restore_best
        self.every_seconds = every_seconds
        self._started = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self.monitor.start(trainer)
        self._started, self._asked_for = True, False
        self._leads = next(p for p in trainer.plugins.values() if isinstance(p, BestCheckpoint)) is self
        self._row: dict[str, Any] = {}
        self._best: Snapshot | None = None
        self._spare: Snapshot | None = None  # an earlier best, whose memory the next one takes
        self._unwritten = False  # whether the best is not on the disk yet
        self._last_step: int | None = None  # of the last checkpoint that was written
        self._path: Path | None = None
        self._duration = 0.0
        self._last_write = time.monotonic()

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self._asked_for:  # for the second time, at the step boundary: every other plugin remembers this epoch too
            self._asked_for = False
            self._keep(trainer)
            return
        self._is_best = self.monitor.update(epoch, metrics)
        if self._is_best:
            self._row = dict(metrics)
        spacing = max(SHORTEST, SPACING * self._duration) if self.every_seconds is None else self.every_seconds
        self._is_due = time.monotonic() - self._last_write >= spacing
        self._asked_for = self._is_best or self._is_due
        if self._asked_for:
            trainer.later(partial(self.on_epoch_end, trainer, epoch, metrics))

    def _keep(self, trainer: Trainer) -> None:
        if self._is_best:
            self._unwritten = trainer.run_dir is not None
            if self._unwritten or self.restore_best:  # over the one before, so that a Ctrl-C halfway harms neither
                self._best, self._spare = trainer.snapshot(over=self._spare), self._best
            else:
                self._best = None
        if self._is_due:
            self._write(trainer)

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer, result: Result) -> Iterator[None]:
        self._started = False
        self._write(trainer)
        if self._row and self._leads:
            figures = {"monitor": self.monitor.name, "value": self.monitor.best, "path": self._path}
            result.best = {**self._row, **figures}
        if self._best is not None and self.restore_best:
            trainer.model.load_state_dict(self._best.model)
        yield  # whatever other plugins do at the end sees the restored weights

    def on_exception(self, trainer: Trainer, exception: BaseException) -> None:
        if self._started and trainer.step and not isinstance(exception, CheckpointError):
            self._started = False
            self._write(trainer)

    def on_teardown(self) -> None:
        self._best = self._spare = None  # each may be as large as the model and its optimizer

    def on_checkpoint(self, path: Path) -> None:
        self._newest = path

    def _write(self, trainer: Trainer) -> None:
        """Write what is not on the disk yet: the best from its copy, and the present state as the last."""
        if trainer.run_dir is None:
            return
        begun = time.monotonic()
        last = ["last"] if self._leads and self._last_step != trainer.step else []
        if self._unwritten and self._best is not None:
            together = self._best.step == trainer.step  # then one checkpoint has both labels
            trainer.save([self.label, *last] if together else self.label, self._best)
            self._path, self._unwritten = self._newest, False
            last = [] if together else last
            self._best = self._best if self.restore_best else None
        if last:
            trainer.save(last, trainer.snapshot())
        self._last_step = trainer.step
        self._last_write = time.monotonic()
        self._duration = self._last_write - begun

    def state_dict(self) -> dict[str, Any]:
        return {**self.monitor.state_dict(), "row": self._row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state)
        self._row = state["row"]
