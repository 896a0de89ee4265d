"""Writing the checkpoints of a fit: at once, or while training goes on."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from framework.checkpoint.processes import ALONE, Processes
from framework.checkpoint.snapshot import Snapshot
from framework.checkpoint.store import write
from framework.errors import CheckpointError


class Writer:
    """Writes checkpoints in the order in which they are asked for, one at a time; in the background at most two wait.

    A checkpoint counts only once it is durable: `write` and `finished` give the paths of those that have become so.

    Attributes:
        bad: the names of checkpoints that a resumed fit passed over

    Args:
        background: training goes on while one is written; what goes wrong then is raised by the next call
        forgiving: a checkpoint that cannot be written is a warning in place of a CheckpointError
    """

    def __init__(self, background: bool = False, forgiving: bool = False) -> None:
        self._background, self._forgiving = background, forgiving
        self._thread: ThreadPoolExecutor | None = None
        self._writing: deque[tuple[Snapshot, Future[Path]]] = deque()
        self.bad: Iterable[str] = ()

    @property
    def busy(self) -> bool:
        return bool(self._writing)

    def write(
        self, snapshot: Snapshot, run_dir: Path, labels: Iterable[str], wait: bool = False,
        processes: Processes = ALONE,
    ) -> list[Path]:  # fmt: skip
        """Write a snapshot; with `wait` it is durable afterwards in any case.

        Raises:
            CheckpointError: this one, or the one before it, cannot be written
        """
        done, labels = self.finished(leave=0 if wait or not self._background else 1), list(labels)
        if self._background and not wait:
            self._thread = self._thread or ThreadPoolExecutor(1, "checkpoint")
            self._writing.append((snapshot, self._thread.submit(write, snapshot, run_dir, labels, self.bad, processes)))
            return done
        try:
            return [*done, write(snapshot, run_dir, labels, self.bad, processes)]
        except CheckpointError as error:
            self._forgive(error)
            return done

    def finished(self, leave: int | None = None) -> list[Path]:
        """The paths of those that were written in the background and are durable by now.

        Args:
            leave: wait until no more than so many are being written
        """
        done: list[Path] = []
        while self._writing and (self._writing[0][1].done() or (leave is not None and len(self._writing) > leave)):
            future = self._writing[0][1]
            try:
                done.append(future.result())
            except CheckpointError as error:
                self._forgive(error)
            finally:
                if future.done():  # not after a Ctrl-C while waiting: it is still being written
                    self._writing.popleft()
        return done

    def holds(self, snapshot: Snapshot | None) -> bool:
        """Whether it is being written, so that nothing may be copied over it."""
        return any(waiting is snapshot for waiting, _ in self._writing)

    def close(self, failure: BaseException | None) -> None:
        """Wait for the one in hand, and end the thread. What went wrong with it becomes a note on `failure`."""
        try:
            self.finished(leave=0)
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
