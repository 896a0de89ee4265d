"""A run of the command line in several processes: the first one prints and writes, the others are as in a dry run.

The first one has the run directory. Each other one works in a directory that is thrown away, which says what the run
had said, and in which `checkpoints` is a link: so a run is resumed from there, and the plugins write what they write
without being in each other's way.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from framework import FrameworkError, UsageError, is_finished, write_whole

from .ranks import Store, attempt, is_of_connection, leave, own_gpu, world

RUN, CHECKPOINTS = "run.json", "checkpoints"
SAME = "recipe", "sha256", "knobs", "seed"  # of a run that is gone on with by the command that began it

job: Any = None  # of this process, while it runs
_numbers = itertools.count()  # of the runs of this process
_streams = sys.stdout, sys.stderr


@contextlib.contextmanager
def around_run(run: Any, run_dir: Path | None) -> Iterator[Path | None]:
    """Around a run of the command line that was given `-p distributed`; gives the run directory of this process.

    The same command goes on with a run that has not finished: where torchrun starts it anew, or where it names the run
    directory with --run-dir, as after a preemption.
    """
    global job
    rank, size = world()
    job, stderr = run, sys.stderr
    try:
        if size == 1:
            yield run_dir
        else:
            with _errors_told(rank, size), contextlib.ExitStack() as stack:
                if run.target.type == "cuda":
                    run.target = own_gpu(rank)
                found = _agreed(run, run_dir, rank)
                if rank:
                    run_dir = _apart(run, found, stack)
                elif found:
                    run_dir = found
                Store.of_torchrun().meet(rank, size)  # all have read what the first one will write anew
                yield run_dir
            leave()
    finally:
        job, sys.stderr = None, stderr  # what goes wrong after the run is heard


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What is printed goes nowhere."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as to,
        contextlib.redirect_stdout(to),
        contextlib.redirect_stderr(to),
    ):
        yield


def _is_silent() -> bool:
    return getattr(sys.stdout, "name", "") == os.devnull


def remember(path: Path) -> None:
    """Keep in torchrun's store where the run is, for the processes that it may start anew."""
    Store.of_torchrun().remember("run_dir", str(path))


def _agreed(run: Any, run_dir: Path | None, rank: int) -> Path | None:
    """The directory of a run to go on with, or that was named, as the first process has found it for all of them."""
    store, key = Store.of_torchrun().now, f"run/{next(_numbers)}"
    path: Path | None = None
    if rank == 0:
        known = Store.of_torchrun().remembered("run_dir") if attempt() else ""
        path = run_dir or (Path(known) if known else None)
        resumes, finished = _goes_on(run, path) if path else (False, False)
        store.set(key, json.dumps([path and os.path.abspath(path), resumes, finished]))
    told, resumes, finished = json.loads(store.get(key))
    if finished and attempt():
        print(f"finished  {told} before torchrun started it anew")
        raise SystemExit(0)
    run.resumes = run.resumes or resumes
    return path if rank == 0 else told and Path(told)


def _goes_on(run: Any, path: Path) -> tuple[bool, bool]:
    """Whether the run that is in a directory can be gone on with, and whether it has finished."""
    try:
        info = json.loads((path / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False, False
    if run.resumes or any(info.get(name) != json.loads(json.dumps(run.about[name], default=str)) for name in SAME):
        return False, False  # it was asked for, or will be refused
    if is_finished(path):
        return False, True
    if any(path.glob(f"{CHECKPOINTS}/step-*")) or any(path.glob(f"*/{CHECKPOINTS}/step-*")):
        return True, False
    if info.get("stop_reason") is not None:
        # it failed before its first checkpoint, and begins anew in its own directory
        write_whole(path / RUN, json.dumps({**info, "stop_reason": None}, indent=2, ensure_ascii=False) + "\n")
    return False, False


def _apart(run: Any, real: Path | None, stack: contextlib.ExitStack) -> Path:
    """The directory of a process that is not the first. From now on what it prints goes nowhere, but for an error."""
    faulthandler.enable()  # to stderr; else it would be a file of the directory that is thrown away
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (to the end of the process)
    scratch: Path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / run.lab.name / "001"
    if real is not None and run.resumes:
        for info in (real / RUN, *real.glob(f"*/{RUN}")):
            here = scratch / info.parent.relative_to(real)
            here.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(info, here / RUN)
            if (info.parent / CHECKPOINTS).is_dir():
                link(here, info.parent)
    return scratch


def link(here: Path, real: Path) -> None:
    """Make the checkpoints of a run directory those of another one.

    Raises:
        UsageError: this process cannot see that one, or may make no links
    """
    target = real / CHECKPOINTS
    if not target.is_dir():
        raise UsageError(f"there is no {target} on this machine: all processes write into one directory, on a file "
                         "system that all machines share")  # fmt: skip
    here.mkdir(parents=True, exist_ok=True)
    if (here / CHECKPOINTS).is_symlink():
        return
    try:
        (here / CHECKPOINTS).symlink_to(os.path.abspath(target), target_is_directory=True)
    except OSError as error:
        raise UsageError(
            f"{here} cannot have a link to {target} ({error}); on Windows, turn on the developer mode"
        ) from error


@contextlib.contextmanager
def _errors_told(rank: int, size: int) -> Iterator[None]:
    """An error says of which process it is; one that all have is told once.

    Raises:
        FrameworkError: another process has gone, and which
    """
    global _streams
    if not _is_silent():
        _streams = sys.stdout, sys.stderr
    before = signal.signal(signal.SIGTERM, _hear) if threading.current_thread() is threading.main_thread() else None
    Store.of_torchrun().begin(rank)
    try:
        yield
    except Exception as error:
        sys.stdout, sys.stderr = _streams
        said = "" if (lost := is_of_connection(error)) else f"{type(error).__name__}: {error}"
        words: dict[int, str | None] = {}
        with contextlib.suppress(RuntimeError):  # the store has gone as well, with its machine
            Store.of_torchrun().say(said, rank)
            words = Store.of_torchrun().words(range(size) if lost else range(min(rank, 1)))
        gone = [other for other, word in words.items() if word is None]
        others = [f"rank {other} has gone: it was killed, or its machine failed" for other in gone]
        others += [f"rank {other} failed: {word}" for other, word in words.items() if word]
        if lost and others:
            reason = "; ".join(others)
            if rank == 0:
                _correct_reason(reason)
            if rank != min(other for other, word in words.items() if word == ""):  # the first one left tells it
                raise SystemExit(1) from error
            raise FrameworkError(reason) from error
        if words.get(0) == said != "":  # the first one tells it
            raise SystemExit(2 if isinstance(error, UsageError) else 1) from error
        error.add_note(f"rank {rank} of {size}")
        raise
    if before is not None:
        signal.signal(signal.SIGTERM, before)


def _hear(number: int, frame: Any) -> None:
    """Where one process has gone, torchrun sends SIGTERM to the others at once: they say first which it was.

    While a fit runs the command line hears that signal, and calls this one as well.
    """
    if signal.getsignal(number) is _hear and sys.exc_info()[0] is None:
        raise SystemExit(128 + number)


def _correct_reason(reason: str) -> None:
    """Put into run.json why the run ended, in place of what torch has said of a connection."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there need not be one
        info = json.loads((job.path / RUN).read_text(encoding="utf-8"))
        write_whole(job.path / RUN, json.dumps({**info, "stop_reason": reason}, indent=2, ensure_ascii=False) + "\n")
