"""Writing the checkpoints of a fit: at once, or while training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from framework.checkpoint.snapshot import Snapshot
from framework.checkpoint.store import write
from framework.errors import CheckpointError


class Writer:
    """Writes checkpoints in the order in which they are asked for, one at a time.

    A checkpoint counts only once it is durable: `write` and `finished` give the paths of those that have become so.

    Args:
        background: training goes on while one is written; what goes wrong then is raised by the next call
        forgiving: a checkpoint that cannot be written is a warning in place of a CheckpointError
    """

    def __init__(self, background: bool = False, forgiving: bool = False) -> None:
        self._background, self._forgiving = background, forgiving
        self._thread: ThreadPoolExecutor | None = None
        self._writing: tuple[Snapshot, Future[Path]] | None = None

    @property
    def busy(self) -> bool:
        return self._writing is not None

    def write(self, snapshot: Snapshot, run_dir: Path, labels: Iterable[str], wait: bool = False) -> list[Path]:
        """Write a snapshot; with `wait` it is durable afterwards in any case.

        Raises:
            CheckpointError: this one, or the one before it, cannot be written
        """
        done, labels = self.finished(wait=True), list(labels)
        if self._background and not wait:
            self._thread = self._thread or ThreadPoolExecutor(1, "checkpoint")
            self._writing = snapshot, self._thread.submit(write, snapshot, run_dir, labels)
            return done
        try:
            return [*done, write(snapshot, run_dir, labels)]
        except CheckpointError as error:
            self._forgive(error)
            return done

    def finished(self, wait: bool = False) -> list[Path]:
        """The path of the one that was being written in the background, if it is durable by now."""
        if self._writing is None or not (wait or self._writing[1].done()):
            return []
        future, self._writing = self._writing[1], None
        try:
            return [future.result()]
        except CheckpointError as error:
            self._forgive(error)
            return []

    def holds(self, snapshot: Snapshot | None) -> bool:
        """Whether it is being written, so that nothing may be copied over it."""
        return self._writing is not None and self._writing[0] is snapshot

    def close(self, failure: BaseException | None) -> None:
        """Wait for the one in hand, and end the thread. What went wrong with it becomes a note on `failure`."""
        try:
            self.finished(wait=True)
        except CheckpointError as error:
            if failure is None:
                raise
            failure.add_note(f"then a checkpoint failed: {error}")
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def _forgive(self, error: CheckpointError) -> None:
        if not self._forgiving:
            raise error
        warnings.warn(f"{error}; training goes on", stacklevel=4)
