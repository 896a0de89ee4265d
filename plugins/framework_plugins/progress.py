"""A progress bar on a terminal or in a notebook, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from tqdm import tqdm

from framework import Trainer, hookimpl


class Progress:
    """Steps, loss, rate and time left, on stderr.

    On a terminal and in a notebook a bar that is redrawn at most ten times a second; elsewhere (a file, a pipe) a line
    now and then. A notebook has tqdm's own bar for it where the package ipywidgets is there.
    Only a redraw reads the loss, so only a redraw waits for the device. Of several processes it is the first one's, of
    its own samples.

    Args:
        bar_seconds: the shortest time between two redraws of the bar
        line_seconds: the shortest time between two lines where there is no terminal
    """

    def __init__(self, bar_seconds: float = 0.1, line_seconds: float = 10.0, name: str = "progress") -> None:
        self.name = name
        self.bar_seconds = max(bar_seconds, 0.1)
        self.line_seconds = line_seconds
        self._bar: tqdm[Any] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._total = _steps(trainer)
        self._started, self._first = time.monotonic(), trainer.step
        notebook = _in_notebook()
        bar = notebook or sys.stderr.isatty()
        self._seconds = self.bar_seconds if bar else self.line_seconds
        self._next = self._started + self._seconds
        if bar:
            self._bar = _kind(notebook)(
                total=self._total, initial=trainer.step, unit="step", leave=notebook, ascii=True, dynamic_ncols=True
            )

    @hookimpl(split="train")
    def on_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._seconds
        if self._bar is not None:
            self._bar.n = trainer.step
            self._bar.set_postfix_str(f"epoch {trainer.epoch}/{trainer.epochs}, loss {loss.item():.4g}", refresh=True)
        else:
            print(self._line(trainer, loss.item(), now - self._started), file=sys.stderr, flush=True)

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer) -> Iterator[None]:
        if self._bar is not None:
            self._bar.n = self._bar.total = trainer.step  # a stop is an end too; a notebook keeps the bar
        self.on_teardown()  # before anyone prints at the end of a fit: a plain print would land behind the bar
        yield

    def on_teardown(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, trainer: Trainer, loss: float, seconds: float) -> str:
        rate = (trainer.step - self._first) / max(seconds, 1e-9)  # some clocks tick 60 times a second
        of, left = "", ""
        if self._total:
            of = f"/{self._total}"
            left = f"  {tqdm.format_interval((self._total - trainer.step) / rate)} left" if rate else ""
        epoch = f"epoch {trainer.epoch}/{trainer.epochs}"
        return f"{epoch}  step {trainer.step}{of}  loss {loss:.4g}  {rate:.1f} steps/s{left}"


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _kind(notebook: bool) -> type[tqdm[Any]]:
    """The kind of bar; tqdm.auto knows which a notebook can show, and is not imported for a terminal."""
    if notebook:
        from tqdm.auto import tqdm as automatic

        return automatic
    return tqdm


def _steps(trainer: Trainer) -> int | None:
    """Steps of the whole fit, where the loader knows its length."""
    try:
        return math.ceil(len(trainer.loaders["train"]) / trainer.accumulate) * trainer.epochs
    except TypeError:
        return None
