"""metrics.jsonl: a row an epoch, on the disk as soon as the epoch is over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from framework import RunDirError, Trainer


class History:
    """Writes the figures of each epoch to `metrics.jsonl` in the run directory, one JSON object a line.

    A figure that is not finite stands there as NaN or Infinity, as Python's json reads and writes it. Without a run
    directory nothing is written; the rows are in `result.history` all the same.
    """

    def __init__(self, name: str = "history") -> None:
        self.name = name
        self._file: TextIO | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.run_dir is not None:
            self._path = trainer.run_dir / "metrics.jsonl"
            try:
                trainer.run_dir.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("w", encoding="utf-8", newline="\n")
            except OSError as error:
                raise _refused(self._path, error) from error

    def on_epoch_end(self, metrics: Mapping[str, Any]) -> None:
        if self._file is not None:
            try:
                self._file.write(json.dumps(dict(metrics)) + "\n")
                self._file.flush()
            except OSError as error:
                raise _refused(self._path, error) from error

    def on_teardown(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                raise _refused(self._path, error) from error


def _refused(path: Path, error: OSError) -> RunDirError:
    return RunDirError(f"cannot write {path}: {error.strerror or error}")
