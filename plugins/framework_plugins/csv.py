"""metrics.csv: a row an epoch, for a spreadsheet."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from framework import RunDirError, Trainer, UsageError, hookimpl, write_whole


class Csv:
    """Writes the figures of each epoch to `metrics.csv` in the run directory, with a header, as soon as it is over.

    The first columns are three clocks to draw the others over: `epoch`, which counts from 0, and `step` and `samples`,
    how many steps were taken and how many samples were trained on by the end of the epoch. A row is appended and
    flushed; the file is written anew only where an epoch has figures that none before it had (they get columns at the
    end, empty in the rows above), and where a fit is resumed, without the rows that a killed fit had written after the
    checkpoint. A figure that an epoch does not have is an empty cell; nan and inf stand there as such.

    The file is UTF-8, and begins with a byte order mark where the header is not plain ASCII, since Excel would take it
    for another encoding. Without a run directory and a path, and in a dry run, nothing is written; of several
    processes the first one writes.

    Args:
        path: another file

    Raises:
        RunDirError: the file cannot be written, such as on a full disk
        UsageError: two instances would write one file
    """

    added_up = ("samples",)  # over the samples that this process sees

    def __init__(self, path: str | Path | None = None, name: str = "csv") -> None:
        self.name = name
        self.path = None if path is None else Path(path)
        self._file: TextIO | None = None
        self._target: Path | None = None
        self._columns: list[str] = []
        self._samples: int | None = 0  # of this epoch, here; None where a resumed fit had not counted them
        self._by_epoch: dict[int, int] = {}  # how many they were at the end of each epoch

    def on_fit_start(self, trainer: Trainer) -> None:
        self._samples, self._by_epoch = None if trainer.step else 0, {}
        dry = trainer.plugins.keeps_nothing
        self._target = None if dry else self._target_of(trainer)
        for plugin in trainer.plugins.values():
            if (
                isinstance(plugin, Csv)
                and plugin is not self
                and self._target == plugin._target_of(trainer) is not None
            ):
                raise UsageError(f"{self.name} and {plugin.name} would both write {self._target}; give one a path")
        if self._target is not None:
            with _said(self._target):
                self._target.parent.mkdir(parents=True, exist_ok=True)
                if not trainer.step:
                    write_whole(self._target, "")

    @hookimpl(split="train")
    def on_batch_end(self, samples: int) -> None:
        if self._samples is not None:
            self._samples += samples

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self._samples is not None:
            everywhere = int(trainer.sum(torch.tensor(self._samples)))
            self._by_epoch[epoch], self._samples = self._by_epoch.get(epoch - 1, 0) + everywhere, 0
        if self._file is None or not metrics.keys() <= set(self._columns):
            self._write_anew(trainer.history)
        else:
            with _said(self._target):
                self._file.write(self._lines([metrics]))
                self._file.flush()

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._file is None:  # resumed, and no row came
            self._write_anew(trainer.history)

    def on_teardown(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # every row was flushed; one that was refused has been told
                self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._samples, "by_epoch": self._by_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._samples, self._by_epoch = state["samples"], state["by_epoch"]

    def _target_of(self, trainer: Trainer) -> Path | None:
        return self.path or (trainer.run_dir and trainer.run_dir / "metrics.csv")

    def _write_anew(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.on_teardown()  # Windows replaces no file that is open
        if self._target is None:
            return
        self._columns = list(dict.fromkeys(("epoch", "step", "samples", *(name for row in rows for name in row))))
        text = self._lines(rows, header=True)
        with _said(self._target):
            write_whole(self._target, text if text.isascii() else f"\ufeff{text}")
            self._file = self._target.open(
                "a", encoding="utf-8", newline=""
            )  # kept open: Excel locks those that are not

    def _lines(self, rows: Iterable[Mapping[str, Any]], header: bool = False) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows({"samples": self._by_epoch.get(row["epoch"]), **row} for row in rows)
        return text.getvalue()


@contextlib.contextmanager
def _said(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error
