"""The best and the last checkpoint of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.parameter import is_lazy

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

    A fit that is resumed ends with the best that it would have had without the break: as long as the best is not on the
    disk by itself, whatever checkpoint is written holds it too.

    Args:
        monitor: the figure; by default val_loss where there is a validation set, else train_loss
        mode: "min", "max", or "auto" by the name of the figure
        min_delta: by how much a figure must beat the best so far
        restore_best: leave the model with the weights of the best epoch at the end of the fit
        every_seconds: write at least so many seconds apart instead; 0 writes each epoch
        every_steps: write after every so many steps as well, inside of an epoch too

    Raises:
        UsageError: the figure will not be there (before the first epoch, with a suggestion); a name that cannot be
            a label
        CheckpointError: a checkpoint cannot be written; or a fit is resumed with restore_best that had begun without
    """

    def __init__(
        self, monitor: str | None = None, mode: str = "auto", min_delta: float = 0.0, restore_best: bool = False,
        every_seconds: float | None = None, every_steps: int | None = None, name: str = "best_checkpoint",
    ) -> None:  # fmt: skip
        if not (name.isidentifier() and name.isascii() and name.islower()):
            raise UsageError(f"name={name!r} becomes a checkpoint's label: a word in small letters, like best_accuracy")
        if every_steps is not None and (type(every_steps) is not int or every_steps < 1):
            raise UsageError(f"every_steps must be a whole number from 1 up, got {every_steps!r}")
        self.name = name
        self.label = "best" if name == "best_checkpoint" else name
        self.monitor = Monitor(monitor, mode, min_delta)
        self.restore_best = restore_best
        self.every_seconds = every_seconds
        self.every_steps = every_steps
        if every_steps is not None:  # else no batch is asked about it
            self.on_batch_end = self._after_batch
        self._started = False
        self._forget()

    def _forget(self) -> None:
        self._row: dict[str, Any] = {}  # of the best epoch
        self._best: Snapshot | None = None  # a copy, until it is on the disk; with restore_best until the end
        self._spare: Snapshot | None = None  # an earlier best, whose memory the next one takes
        self._is_here = False  # whether the present state is the best, and has not been copied yet
        self._is_on_disk = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self.monitor.start(trainer)
        self._forget()
        self._leads = next(p for p in trainer.plugins.values() if isinstance(p, BestCheckpoint)) is self
        self._started, self._asked_for, self._is_due = True, False, False
        self._rows = trainer.history
        self._begun_at = trainer.epoch, trainer.step
        self._written_at: tuple[int, int] | None = self._begun_at  # where the last checkpoint is of
        self._duration = 0.0
        self._last_write = time.monotonic()
        if trainer.step:  # resumed, maybe from the best itself; everything is loaded by then
            trainer.later(partial(self._keep, trainer))
        elif trainer.run_dir and _in_any(trainer, any((trainer.run_dir / "checkpoints").glob("step-*"))):
            self._written_at = None  # those are of an older fit, which would be gone on with after a kill
            trainer.later(partial(self._begin, trainer))

    def _begin(self, trainer: Trainer) -> None:
        model = trainer.model
        if any(map(is_lazy, (*model.parameters(), *model.buffers()))):  # it has no numbers before its first batch
            trainer.later(partial(self._begin, trainer))
        else:
            self._write(trainer)

    def _after_batch(self, trainer: Trainer) -> None:
        if trainer.boundary and self.every_steps and trainer.step % self.every_steps == 0:
            trainer.later(partial(self._write, trainer))

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self._asked_for:  # for the second time, at the step boundary: every other plugin remembers this epoch too
            self._asked_for = False
            self._keep(trainer)
            return
        if self.monitor.update(epoch, metrics):
            self._row, self._is_here, self._is_on_disk = dict(metrics), True, False
        spacing = max(SHORTEST, SPACING * self._duration) if self.every_seconds is None else self.every_seconds
        self._is_due = _in_any(trainer, time.monotonic() - self._last_write >= spacing)
        self._asked_for = self._is_here or self._is_due
        if self._asked_for:
            trainer.later(partial(self.on_epoch_end, trainer, epoch, metrics))

    def _keep(self, trainer: Trainer) -> None:
        if self._is_here:
            if trainer.run_dir is not None or self.restore_best:
                # over the one before, so that a Ctrl-C halfway harms neither
                self._best, self._spare = trainer.snapshot(over=self._spare), self._best
            self._is_here = False
        if self._is_due:
            self._write(trainer)

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer, result: Result) -> Iterator[None]:
        self._started = False
        if not _in_any(trainer, self._labelled(trainer, "last", trainer.step) is not None):
            self._written_at = None  # it failed, or this fit had nothing to do
        self._write(trainer)
        if self._row and self._leads:
            path = self._labelled(trainer, self.label, self._row["step"])
            figures = {"monitor": self.monitor.name, "value": self.monitor.best, "path": path}
            result.best = {**self._row, **figures}
        if self._best is not None and self.restore_best:
            weights = trainer.model.state_dict()  # it also tells which version of each module these are
            weights.update(self._best.model)
            trainer.model.load_state_dict(weights)
        yield  # whatever other plugins do at the end sees the restored weights

    def on_exception(self, trainer: Trainer, exception: BaseException) -> None:
        if not self._started or isinstance(exception, CheckpointError) or trainer.processes.size > 1:
            return  # with several processes each would write its part, and the others do not know of the error
        if trainer.step > self._begun_at[1]:  # else it may be that not everything was loaded
            self._started = False
            self._write(trainer)

    def on_teardown(self) -> None:
        self._started = False  # a fit that fails before it has begun has nothing to write
        self._best = self._spare = None  # each may be as large as the model and its optimizer

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Now it is durable; where checkpoints are written in the background that is some steps later."""
        is_best = bool(self._row) and self._labelled(trainer, self.label, self._row["step"]) == path
        if _in_any(trainer, is_best):
            self._is_on_disk = True
            self._best = self._best if self.restore_best else None

    def _write(self, trainer: Trainer) -> None:
        """Write what is not on the disk yet: the best from its copy, and the present state as the last."""
        if trainer.run_dir is None:
            return
        begun, place = time.monotonic(), (trainer.epoch, trainer.step)
        last = ["last"] if self._leads and self._written_at != place else []
        if self._best is not None and not self._is_on_disk:
            together = self._best.step == trainer.step  # then one checkpoint has both labels
            trainer.save([self.label, *last] if together else self.label, self._best)
            last = [] if together else last
        if last:
            trainer.save(last, trainer.snapshot())
        self._written_at = place
        self._last_write = time.monotonic()
        self._duration = self._last_write - begun

    @staticmethod
    def _labelled(trainer: Trainer, label: str, step: int) -> Path | None:
        """The checkpoint that a label points at, if it is of this step."""
        if trainer.run_dir is None:
            return None
        directory = trainer.run_dir / "checkpoints"
        try:
            name = json.loads((directory / label.upper()).read_text(encoding="utf-8"))["name"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return next((path for path in directory.glob(f"step-{step:012d}*") if path.name == name), None)

    def state_dict(self) -> dict[str, Any]:
        copy: Any = "here" if self._is_here else None
        if self._best is not None and not self._is_here:
            copy = {name: value for name, value in vars(self._best).items() if name != "live"}
            copy["rows"] = self._best.rows[1]
            kept = {name: state for name, state in self._best.plugins.items() if isinstance(state, dict)}
            others = {
                name: {**state, "copy": None} for name, state in kept.items() if isinstance(state.get("copy"), dict)
            }
            copy["plugins"] = {**self._best.plugins, **others}  # else two of them would hold copies of copies of copies
        return {**self.monitor.state_dict(), "row": self._row, "on_disk": self._is_on_disk, "copy": copy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        copy = state["copy"]
        if self.restore_best and state["row"] and copy is None:
            raise CheckpointError("the weights of the best epoch were not kept: the fit had begun without restore_best")
        self.monitor.load_state_dict(state)
        self._written_at = self._begun_at
        self._row, self._is_on_disk, self._is_here = state["row"], state["on_disk"], copy == "here"
        if isinstance(copy, dict):
            self._best = Snapshot(**{**copy, "rows": (self._rows, copy["rows"])})


def _in_any(trainer: Trainer, found: bool) -> bool:
    """Whether one process finds it so. Each has its own clock and sees the disk by itself; they write together."""
    return bool(trainer.sum(torch.tensor(int(found))))
