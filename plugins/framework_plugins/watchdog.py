"""Where a fit hangs: in the data set, in a plugin, in the model."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch.utils.data import Dataset

from framework import Trainer, UsageError, hookimpl

LOOP, LOADER = "framework.loop", "torch.utils.data.dataloader"  # the modules in which a fit waits for hooks and batches


class Watchdog:
    """Says on stderr, once a stall, where the fit is when nothing has moved for a while.

    A thread of its own looks now and then how far the fit is: epoch, step, batch of validation, place in the loop. A
    step pays nothing for that. The stacks of all threads are added to RUN/watchdog.log; without a run directory they go
    to stderr too. What holds Python's lock all the while, such as a loop in a C extension, cannot be seen.

    Of several processes the first one speaks. Where another one hangs, it is seen waiting for that one, in its backward
    pass or in the plugin distributed.

    Args:
        seconds: without any progress
    """

    def __init__(self, seconds: float = 60.0, name: str = "watchdog") -> None:
        if not seconds > 0:
            raise UsageError(f"watchdog: seconds must be more than 0, got {seconds!r}")
        self.name, self.seconds = name, seconds
        self._ended = threading.Event()
        self._batches = 0

    def on_fit_start(self, trainer: Trainer) -> None:
        self._trainer, self._fit = trainer, threading.get_ident()
        self._seen: Any = None
        self._since, self._told, self._ended = time.monotonic(), False, threading.Event()
        threading.Thread(target=self._watch, args=(self._ended,), name=self.name, daemon=True).start()

    @hookimpl(split="val")
    def on_batch_end(self) -> None:
        self._batches += 1  # the trainer counts only those of train

    def on_teardown(self) -> None:
        self._ended.set()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(self.seconds / 12):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Compare how far the fit is with the last look, and say so, once, if it has stood still for too long.

        Args:
            now: seconds of a clock that only goes forward
        """
        stack = list(self._stack())
        places = [frame.f_lasti for frame in stack if frame.f_globals.get("__name__") == LOOP]
        seen = self._trainer.epoch, self._trainer.step, self._batches, places
        if seen != self._seen:
            self._seen, self._since, self._told = seen, now, False
        elif now - self._since >= self.seconds and not self._told:
            self._told = True
            self._tell(f"watchdog: {self._where(stack, f'for {now - self._since:.0f} s')}\n")

    def _stack(self) -> Iterator[FrameType]:
        """The frames of the fit's thread, the innermost first."""
        frame = sys._current_frames().get(self._fit)
        while frame is not None:
            yield frame
            frame = frame.f_back

    def _where(self, stack: list[FrameType], long: str) -> str:
        for frame in reversed(stack):
            for name, plugin in self._trainer.plugins.items():
                if plugin is not self and _is_hook(frame, plugin):
                    return f"plugin {name!r} has been in {frame.f_code.co_name} {long}, at {_place(stack[0])}"
        for frame in stack:
            if isinstance(owner := _itself(frame), Dataset):
                at = f"{type(owner).__name__}.{frame.f_code.co_name} ({_place(frame)})"
                return f"no batch {long}: the data set is at {at}"
        if any(frame.f_globals.get("__name__") == LOADER for frame in stack):
            return f"no batch {long}: the DataLoader waits for its workers; num_workers=0 shows what they do"
        return f"no step {long}: it is in {stack[0].f_code.co_qualname} ({_place(stack[0])})"

    def _tell(self, line: str) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = [
            f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
            for ident, frame in sys._current_frames().items()
        ]
        details = f"{line}{''.join(stacks)}"
        if self._trainer.run_dir is not None:
            try:
                with (self._trainer.run_dir / "watchdog.log").open("a", encoding="utf-8") as log:
                    log.write(details)
                details = line
            except OSError as error:  # the disk may be what hangs
                details = f"{details}watchdog: cannot write watchdog.log: {error}\n"
        print(details, end="", file=sys.stderr, flush=True)


def _itself(frame: FrameType) -> Any:
    """The first argument of a function that is running, which is `self` in a method."""
    return frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None


def _is_hook(frame: FrameType, plugin: Any) -> bool:
    """Whether a function is a method of a plugin, or an on_... of a plugin that is a module."""
    name = frame.f_code.co_name
    if not isinstance(plugin, type(sys)):
        return _itself(frame) is plugin
    return name.startswith("on_") and getattr(getattr(plugin, name, None), "__code__", None) is frame.f_code


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
