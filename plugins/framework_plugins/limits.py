"""Where a fit ends before its last epoch, and an epoch before its last batch."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Generator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from framework import Monitor, Trainer, UsageError, hookimpl


class Limits:
    """Ends a fit after so many steps, after so much time, or when a figure is good enough; makes epochs shorter.

    ::

        Limits(steps=10_000)                               # of the optimizer, in all
        Limits(seconds=3600)                               # before a resume and after it, together
        Limits(monitor="val_accuracy", target=0.98)
        Limits(train_batches=100, val_batches=20)          # of each epoch

    Several limits may be given; the first that is reached ends the fit, and `result.stop_reason` tells which. A fit
    also ends after the `epochs` that it was asked for. One that ends on the last step of an epoch completes the epoch.
    A fit that is resumed at its limit ends at once.

    An epoch of `train_batches` takes what `islice(loader, train_batches)` takes, and the next epoch begins anew: with
    shuffle=True it sees other samples. An epoch that has no more batches than that is left as it is.

    Args:
        steps: of the optimizer; a step that a scaler skipped counts
        seconds: looked at after each step and after each epoch; of several processes the first that is over ends it
        train_batches: with accumulate=k a step takes k of them
        val_batches: of each pass over the validation set
        monitor: the figure that shall reach `target`; by default val_loss where there is a validation set, else
            train_loss
        target: a value from which on the figure is good enough
        mode: "min", "max", or "auto" by the name of the figure

    Raises:
        UsageError: no limit, or one that can be none; no such figure (before the first epoch, with a suggestion)
    """

    def __init__(
        self, steps: int | None = None, seconds: float | None = None, train_batches: int | None = None,
        val_batches: int | None = None, monitor: str | None = None, target: float | None = None, mode: str = "auto",
        name: str = "limits",
    ) -> None:  # fmt: skip
        counts = {"steps": steps, "train_batches": train_batches, "val_batches": val_batches}
        for knob, value in counts.items():
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{knob} must be a whole number from 1 up, got {value!r}")
        if seconds is not None and not (isinstance(seconds, (int, float)) and seconds > 0):
            raise UsageError(f"seconds must be a number above 0, got {seconds!r}")
        if target is not None and not (isinstance(target, (int, float)) and math.isfinite(target)):
            raise UsageError(f"target must be a number, got {target!r}")
        if target is None and (monitor, mode) != (None, "auto"):
            figure = monitor or "val_accuracy"
            raise UsageError(f"a figure is monitored for a target: Limits(monitor={figure!r}, target=0.98)")
        if all(limit is None for limit in (*counts.values(), seconds, target)):
            raise UsageError(
                "no limit is given: such are Limits(steps=10_000), Limits(seconds=3600), Limits(train_batches=100) and "
                "Limits(monitor='val_accuracy', target=0.98)"
            )
        self.name = name
        self.steps, self.seconds, self.target = steps, seconds, target
        self.batches = {"train": train_batches, "val": val_batches}
        self.monitor = Monitor(monitor, mode)
        self._begun, self._spent = 0.0, 0.0  # when the fit began, without its breaks, and its seconds at the last look
        self._asked = False  # for the end, since the time is over
        if steps or seconds:  # else no batch is asked about it
            self.on_batch_end = self._after_batch

    @hookimpl(wrapper=True)
    def make_loader(self, split: str) -> Generator[None, Any, Any]:
        loader, most = (yield), self.batches.get(split)
        if most is None or 0 < operator.length_hint(loader) <= most:  # 0 is unknown
            return loader
        return FirstBatches(loader, most)

    def on_fit_start(self, trainer: Trainer) -> None:
        self._begun, self._spent, self._asked = time.monotonic(), 0.0, False
        if self.batches["val"] and "val" not in trainer.loaders:
            raise UsageError(f"val_batches={self.batches['val']}, and this fit has no validation set")
        if self.target is not None:
            self.monitor.start(trainer)
        if trainer.step and not _is_trained(trainer):  # resumed, maybe at the limit; everything is loaded by then
            trainer.later(partial(self._look_again, trainer))

    def _after_batch(self, trainer: Trainer) -> None:
        if trainer.boundary:
            self._look(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self.target is not None:
            self.monitor.update(epoch, metrics)
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Ask for the end where a limit is reached."""
        if self.steps is not None and trainer.step >= self.steps:
            trainer.stop(f"{self.steps} steps")
        if self._is_over() and not self._asked:
            self._asked = True
            trainer.ask(partial(trainer.stop, f"{self.seconds:g} s"))  # of several processes each has its own clock
        best, target = self.monitor.best, self.target
        reaches = operator.le if self.monitor.mode == "min" else operator.ge
        if best is not None and target is not None and reaches(best, target):
            trainer.stop(f"{self.monitor.name} reached {target:g} ({best:.6g})")

    def _look_again(self, trainer: Trainer) -> None:
        """At the step boundary where a fit goes on, of all processes."""
        if trainer.sum(torch.tensor(int(self._is_over()))):
            self._asked = True
            trainer.stop(f"{self.seconds:g} s")
        self._look(trainer)

    def _is_over(self) -> bool:
        self._spent = time.monotonic() - self._begun
        return self.seconds is not None and self._spent >= self.seconds

    def state_dict(self) -> dict[str, Any]:
        spent = {} if self.seconds is None else {"seconds": self._spent}
        return {**spent, "monitor": self.monitor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._spent = state.get("seconds", 0.0)
        self._begun = time.monotonic() - self._spent
        self.monitor.load_state_dict(state["monitor"])


class DryRun:
    """One batch of each data set, and one epoch: all that a fit does, once. It is what `--dry-run` adds."""

    keeps_nothing = True  # plugins that tell services beyond the run directory look for it

    @hookimpl(wrapper=True)
    def make_loader(self) -> Generator[None, Any, Any]:
        loader = yield
        return loader if operator.length_hint(loader) == 1 else FirstBatches(loader, 1)

    def on_epoch_end(self, trainer: Trainer) -> None:
        if trainer.epochs > 1:
            trainer.stop("dry run")


class FirstBatches(DataLoader[Any]):
    """The first batches of each pass over a loader; in all else it is that loader."""

    loader: Any = None  # asked for before there is one when it is copied

    def __init__(self, loader: Any, most: int) -> None:  # not DataLoader's own, which would build another one
        self.loader, self.most = loader, most

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return min(len(self.loader), self.most)

    def __iter__(self) -> Any:
        return islice(self.loader, self.most)


def _is_trained(trainer: Trainer) -> bool:
    """Whether a resumed fit is behind the last step of an epoch that is not completed."""
    begun = trainer.history[-1]["step"] if trainer.history else 0
    steps = math.ceil(operator.length_hint(trainer.loaders["train"]) / trainer.accumulate)
    return 0 < steps <= trainer.step - begun
