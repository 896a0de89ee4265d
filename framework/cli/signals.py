"""Signals of a run on the command line.

====================  =====================================================================  ===========
signal                what happens                                                           exit status
====================  =====================================================================  ===========
SIGINT (Ctrl-C)       the run ends after the step in hand and is saved                       130
SIGINT once more      the process ends at once; what was saved before stays as it is         130
SIGTERM               as the first SIGINT: of a scheduler that will soon kill                143
SIGHUP                as the first SIGINT: the terminal has gone                             129
SIGUSR1               the run is saved after the step in hand and goes on
====================  =====================================================================  ===========

A handler runs between any two bytecodes, in the middle of a print or of a save too. So it writes its line past Python's
streams and leaves a request with the trainer, which honours it at the next step boundary.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from framework.cli import rundir
from framework.trainer import Result, Trainer

REASONS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}  # why the run stopped, by signal
ASKED = "stopping after this step and saving; press Ctrl-C again to quit at once"


class Signals:
    """Hears signals while a fit runs in the main thread; one that the process was told to ignore stays ignored.

    The handlers that were there before are called as well, and put back at the end of the fit. A crash in C code
    leaves the stacks of all threads in the run directory.
    """

    def __init__(self) -> None:
        self.received = ""  # why the run is to stop
        self._wanted = sys.maxsize  # the step from which on a checkpoint is one that was asked for
        self._trainer: Any = None
        self._before, self._undo = {}, contextlib.ExitStack()  # type: dict[int, Any], Any

    def on_fit_start(self, trainer: Trainer) -> None:
        # the last is the step of the last checkpoint
        self._trainer, self._process, self._saved = trainer, os.getpid(), trainer.step or -1
        if threading.current_thread() is threading.main_thread():
            for number in filter(None, (getattr(signal, name, None) for name in (*REASONS, "SIGUSR1"))):
                # ignored: under nohup, or behind a shell's &
                if (before := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
                    self._undo.callback(signal.signal, number, before)
            for loader in (each for each in trainer.loaders.values() if isinstance(each, DataLoader)):
                loader.worker_init_fn = alone = partial(_alone, loader.worker_init_fn)
                self._undo.callback(_put_back, loader, alone)
        if trainer.run_dir is not None and not faulthandler.is_enabled():
            self._undo.enter_context(_stacks(trainer.run_dir / rundir.STACKS))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked: the signal is for the process that it works for
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        name, ask = signal.Signals(number).name, self._trainer.ask  # what is asked for cannot be lost
        self._wanted = self._trainer.step
        if name == "SIGUSR1":
            ask(partial(self._trainer.save, "last"))
            _say("saving after this step\n")
        elif not self.received:
            self.received = REASONS[name]
            ask(partial(self._trainer.stop, self.received))
            if name == "SIGHUP":
                _leave_the_terminal()
            _say(f"\n{ASKED}\n")
        elif name == "SIGINT":
            _say("\ninterrupted\n")
            os._exit(128 + number)  # the disk is as safe as from kill -9
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        self._saved = int(path.name.split("-")[1])
        if self._saved >= self._wanted:  # not a best one of before, nor one that was being written in the background
            safe = "; it is safe to kill this process now" if self.received else ""
            print(f"saved step {self._saved}{safe}", file=sys.stderr)
            self._wanted = self._wanted if self.received else sys.maxsize

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        if trainer.processes.size > 1:  # it may be for the signal of another one; or they had no step left to agree in
            self.received = str(result.stop_reason) if result.stop_reason in REASONS.values() else ""
        if self.received and self._saved != trainer.step:  # no plugin did
            trainer.save("last")

    def on_teardown(self) -> None:
        self._undo.close()
        self._trainer = None  # and with it the model, which the next variant needs the memory of


@contextlib.contextmanager
def _stacks(path: Path) -> Iterator[None]:
    """A crash in C code leaves the stacks of all threads in this file of the run directory."""
    with rundir.writing(path.parent), path.open("ab") as file:
        faulthandler.enable(file)
        yield
        faulthandler.disable()
    with contextlib.suppress(OSError):  # the run directory may have gone
        if not path.stat().st_size:
            path.unlink()


def _alone(init: Callable[[int], None] | None, worker: int) -> None:
    """Start a worker process of a DataLoader in a group of its own: what a terminal or a scheduler sends to a group is
    for the process that it works for. Its handlers stay torch's, which end it even where it hangs in C code."""
    getattr(os, "setpgrp", lambda: None)()  # Windows has no groups
    if init is not None:
        init(worker)


def _put_back(loader: Any, alone: Any) -> None:
    if loader.worker_init_fn is alone:
        (loader.worker_init_fn,) = alone.args


def _say(text: str) -> None:
    """Write to stderr past its buffer, which the print that a handler interrupts may hold."""
    try:
        os.write(sys.stderr.fileno(), text.encode("ascii"))
    except OSError as error:  # nobody reads it any more
        if isinstance(error, io.UnsupportedOperation):  # or it is a stream without a file, of a notebook or a test
            sys.stderr.write(text)


def _leave_the_terminal() -> None:
    """Let what is printed from now on go nowhere where the terminal has gone; it would end the run before its save."""
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            try:
                os.write(descriptor, b"")
            except OSError:
                os.dup2(nowhere.fileno(), descriptor)
