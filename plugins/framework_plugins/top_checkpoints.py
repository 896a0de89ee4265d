"""The checkpoints of the several best epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from tqdm import tqdm

from framework import CheckpointError, Monitor, Trainer, UsageError, write_whole


class TopCheckpoints:
    """Keeps a checkpoint of each of the `keep` best epochs by a figure, as for an ensemble or an average of weights.

    Each is written at the end of its epoch and has a label of its own, `top_1` to `top_3`; a better epoch takes over
    the label of the worst, whose checkpoint goes. Labels are places, not ranks: `top_checkpoints.json` in the run
    directory lists the epochs from the best on, each with its figure and its label::

        python -m framework evaluate runs/mnist_mlp/001 --checkpoint top_2

    Of two equal figures the earlier epoch stays. An epoch whose figure is nan is never kept.

    Args:
        monitor: the figure; by default val_loss where there is a validation set, else train_loss
        keep: so many epochs
        mode: "min", "max", or "auto" by the name of the figure

    Raises:
        UsageError: keep below 1; no run directory; or the figure will not be there (before the first epoch, with a
            suggestion)
        CheckpointError: a checkpoint cannot be written; or a fit is resumed that keeps more than `keep` already
    """

    def __init__(
        self, monitor: str | None = None, keep: int = 3, mode: str = "auto", name: str = "top_checkpoints"
    ) -> None:
        if type(keep) is not int or keep < 1:
            raise UsageError(f"keep must be a whole number from 1 up, got {keep!r}")
        if not (name.isidentifier() and name.isascii() and name.islower()):
            raise UsageError(
                f"name={name!r} begins the labels of checkpoints: a word in small letters, like top_accuracy"
            )
        self.name = name
        self.monitor = Monitor(monitor, mode)
        self.keep = keep
        self.prefix = "top" if name == "top_checkpoints" else name
        self.kept: list[dict[str, Any]] = []  # from the best on: epoch, value, label
        self._listed = True  # whether the file tells of them

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.run_dir is None:
            raise UsageError(f"{self.name} writes checkpoints: give the Trainer a run_dir")
        self.monitor.start(trainer)
        self.kept, self._listed = [], True

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        self.monitor.update(epoch, metrics)  # tells it where the figure is missing
        value = float(metrics[self.monitor.name])
        labels = [f"{self.prefix}_{place}" for place in range(1, self.keep + 1)]
        free = [label for label in labels if label not in {entry["label"] for entry in self.kept}]
        if math.isnan(value) or not (free or self._better(value, self.kept[-1]["value"])):
            return
        label = free[0] if free else self.kept.pop()["label"]
        self.kept.append({"epoch": epoch, "value": value, "label": label})
        self.kept.sort(key=lambda entry: entry["value"], reverse=self.monitor.mode == "max")  # equal ones stay in order
        self._listed = False
        trainer.later(partial(trainer.save, label))  # when every other plugin remembers this epoch too

    def _better(self, value: float, other: float) -> bool:
        return value < other if self.monitor.mode == "min" else value > other

    def on_checkpoint(self, trainer: Trainer) -> None:
        if not self._listed and trainer.run_dir is not None:  # now it is durable
            write_whole(trainer.run_dir / f"{self.name}.json", json.dumps(self.kept, indent=2) + "\n")
            self._listed = True

    def state_dict(self) -> dict[str, Any]:
        return {**self.monitor.state_dict(), "figure": [self.monitor.name, self.monitor.mode], "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["figure"] != (now := [self.monitor.name, self.monitor.mode]):
            raise CheckpointError(f"the figure was {' '.join(state['figure'])}, and now it is {' '.join(now)}")
        if len(state["kept"]) > self.keep:
            raise CheckpointError(f"{len(state['kept'])} epochs are kept already, more than keep={self.keep} now")
        self.monitor.load_state_dict(state)
        self.kept = state["kept"]
        self._listed = False  # it may tell of later ones

    def on_fit_end(self) -> None:
        if self.kept:
            told = ", ".join(f"{e['value']:.6g} in epoch {e['epoch']} ({e['label']})" for e in self.kept)
            tqdm.write(f"top {self.keep:<6}{self.monitor.name} {told}")
