"""metrics.jsonl: a row an epoch, on the disk as soon as the epoch is over."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from framework import RunDirError, Trainer


class History:
    """Writes the figures of each epoch to `metrics.jsonl` in the run directory, one JSON object a line.

    A figure that is not finite stands there as NaN or Infinity, as Python's json reads and writes it. Without a run
    directory nothing is written; the rows are in `result.history` all the same.

    Raises:
        RunDirError: the file cannot be written, such as on a full disk
    """

    def __init__(self, name: str = "history") -> None:
        self.name = name
        self._file: BinaryIO | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.run_dir is not None:
            self._path = trainer.run_dir / "metrics.jsonl"
            with _said(self._path):
                trainer.run_dir.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("wb")

    def on_epoch_end(self, metrics: Mapping[str, Any]) -> None:
        if self._file is not None:
            with _said(self._path):
                self._file.write(f"{json.dumps(dict(metrics))}\n".encode())
                self._file.flush()

    def on_teardown(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # every row was flushed; one that was refused has been told
                self._file.close()
            self._file = None


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error
