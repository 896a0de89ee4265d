"""The figures of each epoch in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from framework import Trainer, UsageError

AXES = "epoch", "step", "samples"


class TensorBoard:
    """Writes every figure of an epoch for TensorBoard, under its name in the table, such as val_loss::

        tensorboard --logdir runs

    The files are in `tensorboard/` of the run directory, or in that of another `name`; rows reach the disk with each
    checkpoint, and every ten seconds. A fit into a directory that holds an earlier one takes its place, and a fit that
    is resumed takes the place of what a killed one had written after the checkpoint. Without a run directory and a
    directory, and in a dry run, nothing is written.

    Args:
        directory: another place for the files
        x: what the curves are drawn over: "epoch", "step", or "samples" that were trained with

    Raises:
        UsageError: another x; the package tensorboard is missing
    """

    added_up = ("samples",)  # over the samples that this process sees

    def __init__(self, directory: str | Path | None = None, x: str = "epoch", name: str = "tensorboard") -> None:
        if x not in AXES:
            raise UsageError(f"x must be one of {', '.join(AXES)}; got {x!r}")
        self.name = name
        self.directory = None if directory is None else Path(directory)
        self.x = x
        self._writer: Any = None
        self._samples, self._last = 0, -1  # of this epoch, here; the place of the last row on the axis
        if x == "samples":  # else no batch is asked about it
            self.on_batch_end = self._after_batch

    def on_fit_start(self, trainer: Trainer) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            needs = 'needs the package tensorboard: pip install "framework-trainer[tensorboard]"'
            raise UsageError(f"{self.name} {needs}") from error
        self._make = SummaryWriter
        self._samples, self._last = 0, -1
        dry = trainer.plugins.keeps_nothing
        self._place = None if dry else self.directory or (trainer.run_dir and trainer.run_dir / self.name)

    def _after_batch(self, split: str, samples: int) -> None:
        self._samples += samples * (split == "train")

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        before, self._last = self._last, self._now(trainer, epoch)
        if self._place is None:
            return
        if self._writer is None:  # only now, since what a checkpoint tells of `last` comes after on_fit_start
            self._writer = self._make(str(self._place), purge_step=before + 1, flush_secs=10)
        for figure, value in metrics.items():
            if figure not in AXES:
                self._writer.add_scalar(figure, value, self._last)

    def _now(self, trainer: Trainer, epoch: int) -> int:
        """The place of this row on the axis."""
        if self.x != "samples":
            return epoch if self.x == "epoch" else trainer.step
        samples, self._samples = int(trainer.sum(torch.tensor(self._samples))), 0
        return max(self._last, 0) + samples

    def on_checkpoint(self) -> None:
        if self._writer is not None:  # the fit that is resumed from it counts on these rows
            self._writer.flush()

    def on_teardown(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def state_dict(self) -> dict[str, int]:
        return {"samples": self._samples, "last": self._last}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._samples, self._last = state["samples"], state["last"]
