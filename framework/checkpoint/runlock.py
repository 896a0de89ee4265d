"""One process at a time writes into a run directory."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from datetime import datetime
from pathlib import Path

from framework.checkpoint import files
from framework.errors import CheckpointError, RunDirError

NAME = "run.lock"
_held: dict[str, tuple[int, set[str]]] = {}  # by the real path of a run: its open lock file, and who uses it


def lock(run_dir: Path, by: str) -> contextlib.ExitStack:
    """Holds RUN/run.lock until it is closed, or until the end of a `with`.

    However a process dies, that frees its locks. Reading a run needs none.

    Args:
        by: "run" for a command, "fit" for a fit, which may be inside a run of the same process

    Raises:
        RunDirError: the directory is in use, and by whom; or it cannot be written
    """
    place = os.path.realpath(run_dir)
    if place not in _held:
        try:
            _held[place] = _locked(run_dir), set()
        except OSError as error:
            raise RunDirError(f"cannot write into the run directory {run_dir}: {error.strerror or error}") from error
    users = _held[place][1]
    if by in users:
        raise _in_use(run_dir)
    users.add(by)
    held = contextlib.ExitStack()
    held.callback(_free, place, by)
    return held


def _free(place: str, by: str) -> None:
    if place in _held:  # not in a forked child
        descriptor, users = _held[place]
        users.remove(by)
        if not users:
            del _held[place]
            files.system.close(descriptor)


def _locked(run_dir: Path) -> int:
    files.make_directory(run_dir)
    descriptor = files.system.open(run_dir / NAME, os.O_RDWR | os.O_CREAT | files.SAFE)
    try:
        _take(descriptor, run_dir)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        text = f"pid {os.getpid()} on host {socket.gethostname()} since {since}"
        files.system.write(descriptor, memoryview(f"{text:<200}\n".encode()))  # of one length, so never half another's
        files.sweep(run_dir)
    except BaseException:
        files.system.close(descriptor)
        raise
    return descriptor


def _take(descriptor: int, run_dir: Path) -> None:
    try:
        if not files.system.lock(descriptor):
            raise _in_use(run_dir)
    except OSError as error:
        if error.errno not in files.UNABLE:
            raise
        warnings.warn(f"{run_dir}: this file system has no locks; use it by one run at a time", stacklevel=5)


def _in_use(run_dir: Path) -> RunDirError:
    text = ""
    with contextlib.suppress(OSError, ValueError, CheckpointError):
        text = files.read_file(run_dir / NAME, 1000).decode("ascii").strip()
    return RunDirError(f"{run_dir} is in use by {text if text.isprintable() and text else 'another process'}")


def _forget() -> None:
    """A forked child holds nothing, and its copy of the handle may outlive its parent: workers of a DataLoader do."""
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
