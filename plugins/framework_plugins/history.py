"""metrics.jsonl: a row an epoch, on the disk as soon as the epoch is over."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from framework import RunDirError, Trainer


class History:
    """Writes the figures of each epoch to `metrics.jsonl` in the run directory, one JSON object a line.

    A figure that is not finite stands there as NaN or Infinity, as Python's json reads and writes it. A fit that is
    resumed leaves the file as it is until it has a row of its own, or has come to its end; then the rows from before
    are written anew, without those that a killed fit had written after the checkpoint. Without a run directory nothing
    is written; the rows are in `result.history` all the same.

    Raises:
        RunDirError: the file cannot be written, such as on a full disk
    """

    def __init__(self, name: str = "history") -> None:
        self.name = name
        self._file: BinaryIO | None = None
        self._path: Path | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._path = None
        if trainer.run_dir is not None:
            self._path = trainer.run_dir / "metrics.jsonl"
            with _said(self._path):
                trainer.run_dir.mkdir(parents=True, exist_ok=True)
                if not trainer.step:
                    self._file = self._path.open("wb")

    def on_epoch_end(self, trainer: Trainer, metrics: Mapping[str, Any]) -> None:
        if self._file is None:
            self._write_anew(trainer.history)
        else:
            with _said(self._path):
                self._file.write(_lines([metrics]))
                self._file.flush()

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._file is None:
            self._write_anew(trainer.history)

    def on_teardown(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # every row was flushed; one that was refused has been told
                self._file.close()
            self._file = None

    def _write_anew(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """All rows of a fit that was resumed, beside the file and then in its place."""
        if self._path is None:
            return
        beside = self._path.with_name(".tmp-metrics.jsonl")
        with _said(self._path):
            try:
                with beside.open("wb") as file:
                    file.write(_lines(rows))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, self._path)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
            self._file = self._path.open("ab")


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(f"{json.dumps(dict(row))}\n".encode() for row in rows)


@contextlib.contextmanager
def _said(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error
