"""More validation than once an epoch on one data set: inside of an epoch, every few epochs, on other data."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Generator, MutableMapping
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from framework import Monitor, RunDirError, Trainer, UsageError, hookimpl, write_whole


class Validation:
    """Evaluates a data set every so many steps, at parts of an epoch, or every so many epochs.

    ::

        Validation(every_steps=500)                                 # the fit's own validation set
        Validation(fraction=0.25)                                   # it too, four times an epoch
        Validation(hard, name="hard")                               # another one, after each epoch
        Validation(large, every_epochs=5, batch_size=256, name="large", save_best=True)

    It is `trainer.evaluate`: in eval mode, without gradients, at a step boundary; training goes on as if nothing had
    been. What it finds gets the name of the plugin: `hard_loss`, `hard_accuracy`. The figures of the last look stand in
    the row of each epoch, nan before the first one, so other plugins may follow them: `EarlyStopping("hard_loss")`.
    To those an epoch without a look is one without an improvement: give a patience of several times `every_epochs`.

    With `every_steps` or `fraction` each look also is a line of the output, a dict in `rows` (step, epochs completed,
    figures), and a line of `NAME.jsonl` in the run directory.

    With `save_best` the weights that were evaluated are saved as the checkpoint `best_NAME` whenever they are the best.

    Args:
        data: what `trainer.evaluate` takes; by default the validation set of the fit, then with every_steps or fraction
        every_steps: after each so many steps, counted over all epochs
        every_epochs: after each so many epochs, once training and validation are over; 1 where nothing else is given
        fraction: 0.25 looks four times an epoch, at equal distances, the last one at its end
        batch_size: of a Dataset or a pair of tensors; None takes all of it at once
        save_best: keep a checkpoint of the best
        monitor: the figure that tells the best, without the name of the plugin, such as "loss" and "accuracy"
        mode: "min", "max", or "auto" by the name of the figure

    Raises:
        UsageError: before the first step: no data; several of every_steps, every_epochs and fraction; no such figure
        RunDirError: the file cannot be written
    """

    def __init__(
        self, data: Any = None, every_steps: int | None = None, every_epochs: int | None = None,
        fraction: float | None = None, batch_size: int | None = None, save_best: bool = False, monitor: str = "loss",
        mode: str = "auto", name: str = "validation",
    ) -> None:  # fmt: skip
        counts = {"every_steps": every_steps, "every_epochs": every_epochs}
        for knob, value in counts.items():
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{knob} must be a whole number from 1 up, got {value!r}")
        if fraction is not None and not (isinstance(fraction, (int, float)) and 0 < fraction <= 1):
            raise UsageError(f"fraction is a part of an epoch, above 0 and at most 1, got {fraction!r}")
        if len(given := [knob for knob, v in {**counts, "fraction": fraction}.items() if v is not None]) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other: list two plugins of different names")
        if data is None and every_steps is None and fraction is None:
            raise UsageError(
                "a fit evaluates its own validation set after each epoch anyway; Validation(every_steps=500) and "
                "Validation(fraction=0.25) do so inside of an epoch, Validation(hard, name='hard') evaluates other data"
            )
        if data is None and batch_size is not None:
            raise UsageError(f"batch_size={batch_size!r} is for data; the fit's own validation set has its batches")
        if isinstance(data, DataLoader) and batch_size is not None:
            raise UsageError(f"{name}: a DataLoader has batches of its own: leave out batch_size={batch_size!r}")
        if not (name.isidentifier() and name.isascii() and name.islower()) or name in ("train", "val", "test"):
            raise UsageError(f"name={name!r}: figures are called by it, so it is a word of its own, such as hard")
        self.name, self.data, self.batch_size = name, data, batch_size
        self.every_steps, self.fraction, self.save_best = every_steps, fraction, save_best
        self.every_epochs = every_epochs or 1
        self.inside = not (every_steps is None and fraction is None)  # looks inside of an epoch
        self.monitor = Monitor(f"{name}_{monitor}", mode)
        self.rows: list[dict[str, Any]] = []
        self._figures: list[str] = []
        self._last = "train"  # split of an epoch
        self._forget()
        if self.inside:  # else no batch is asked about it
            self.on_batch_end = self._after_batch

    def _forget(self) -> None:
        self.rows = []
        self._latest: dict[str, float] = {}
        self._is_due = False  # asked for, and not done yet
        self._is_written = False  # whether the file has all rows but the newest

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Generator[None, nn.Module, nn.Module]:
        names = ["test_loss", *trainer.plugins.metric_names("test")]
        self._figures = [self._own(name) for name in names]
        return (yield)

    def _own(self, figure: str) -> str:
        return f"{self.name}_{figure.removeprefix('test_')}"

    def metric_names(self, split: str) -> list[str]:
        return self._figures if split == "train" else []

    def on_fit_start(self, trainer: Trainer) -> None:
        self._forget()
        self._last = "val" if "val" in trainer.loaders else "train"
        if self.data is None and self._last == "train":
            raise UsageError(f"{self.name}: this fit has no validation set: give one to fit, or data to Validation")
        if self.save_best:
            self.monitor.start(trainer)
            if trainer.run_dir is None:
                raise UsageError(f"{self.name}: save_best needs a place to save to: give the Trainer a run_dir")
        windows = math.ceil(operator.length_hint(trainer.loaders["train"]) / trainer.accumulate)  # 0 is unknown
        if self.fraction is not None and not windows:
            raise UsageError(f"{self.name}: the training data does not tell its length: give every_steps, not fraction")
        self._interval = float(self.every_steps or windows * (self.fraction or 1))  # steps between two looks
        if trainer.step:  # resumed, maybe from the boundary at which it was to look; everything is loaded by then
            trainer.later(partial(self._look, trainer))

    def _after_batch(self, trainer: Trainer) -> None:
        if trainer.boundary and self._comes_now(trainer):
            self._is_due = True
            trainer.later(partial(self._look, trainer))

    def _comes_now(self, trainer: Trainer) -> bool:
        begun = trainer.history[-1]["step"] if trainer.history and self.fraction else 0
        before, now = ((steps - begun) / self._interval + 1e-9 for steps in (trainer.step - 1, trainer.step))
        return math.floor(before) < math.floor(now)

    def _look(self, trainer: Trainer) -> None:
        """At a step boundary inside of an epoch."""
        if not self._is_due:
            return
        self._is_due = False
        self._evaluate(trainer)
        self.rows.append({"step": trainer.step, "epoch": trainer.epoch, **self._latest})
        figures = (f"{name.removeprefix(self.name)[1:]} {value:.4g}" for name, value in self._latest.items())
        tqdm.write(f"{self.name:<9} step {trainer.step} {' '.join(figures)}")
        self._write(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        data = trainer.loaders["val"] if self.data is None else self.data
        found = trainer.evaluate(data, self.batch_size)
        self._latest = {self._own(name): value for name, value in found.items()}
        if self.save_best and self.monitor.update(trainer.epoch, self._latest):
            trainer.save(f"best_{self.name}")

    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        if split != self._last:
            return
        if not self.inside and (trainer.epoch + 1) % self.every_epochs == 0:
            self._evaluate(trainer)
        for name in self._figures:
            metrics[name] = self._latest.get(name, math.nan)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self.inside and not self._is_written:  # a fit that was resumed, and has not looked again
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        """A resumed fit writes all rows anew, without those that a killed one had written after the checkpoint."""
        if trainer.run_dir is None:
            return
        path = trainer.run_dir / f"{self.name}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._is_written:
                with path.open("a", encoding="utf-8", newline="\n") as file:
                    file.write(_lines(self.rows[-1:]))
            elif self.rows or path.exists():
                write_whole(path, _lines(self.rows))
        except OSError as error:
            raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error
        self._is_written = True

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows, "latest": self._latest, "is_due": self._is_due, "monitor": self.monitor.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self._latest, self._is_due = state["rows"], state["latest"], state["is_due"]
        self.monitor.load_state_dict(state["monitor"])


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)
