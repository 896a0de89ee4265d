"""What a run tells on stdout: data, model, device, plugins, the table of epochs, why it stopped, the result."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from framework import Result, Trainer, UsageError, described, hookimpl

WIDTH = 12  # letters of a figure: -1.2346e-100, 29661.800781


class Console:
    """The table of epochs, with what is trained above and the result below.

    However long the run, the table has about `rows` lines: epochs 0, 50, 100, ... of a thousand, and the last.

    Args:
        rows: about so many lines of the table

    Raises:
        UsageError: rows below 1
    """

    def __init__(self, rows: int = 20, name: str = "console") -> None:
        if rows < 1:
            raise UsageError(f"rows must be 1 or more, got {rows!r}")
        self.name = name
        self.rows = rows
        self._columns: list[str] = []
        self._pending: Mapping[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._digits = len(str(trainer.epochs - 1))
        self._every = _spacing(trainer.epochs, self.rows)
        self._columns, self._pending, self._started = [], None, time.monotonic()
        ways = trainer.engine.told()  # from memory, or why not
        for split, loader in trainer.loaders.items():
            way = f", {ways.pop(split)}" if split in ways else ""
            _say(f"{split if split != 'train' else 'data':<10}{_described(loader)}{way}")
        _say(f"model     {described(trainer.model)}")
        _say(f"device    {trainer.device}")
        _say(f"plugins   {', '.join(name for name in trainer.plugins if not name.startswith('_'))}")

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        self._pending = metrics
        if epoch % self._every == 0:
            self._print_pending()

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer, result: Result) -> Iterator[None]:
        self._print_pending()
        yield  # what others print at the end, such as the recipe, stands between the table and the result
        ways = trainer.engine.told()
        for name in [name for name in ways if name not in trainer.loaders]:
            _say(f"{name:<10}{ways[name]}")  # known only now: what was recorded, what could not be compiled
        amount = f"{_plural(result.epochs, 'epoch')}, {_plural(result.steps, 'step')}, {result.seconds:.1f} s"
        _say(f"stopped   {result.stop_reason}; {amount}" if result.stop_reason else f"stopped   after {amount}")
        if result.history:
            _say(f"result    {_figures(result.history[-1])}")
        if result.best and result.best["epoch"] != result.epochs - 1:
            _say(f"best      {_figures(result.best)} in epoch {result.best['epoch']}")

    def on_exception(self) -> None:
        self._print_pending()

    def _print_pending(self) -> None:
        row, self._pending = self._pending, None
        if row is None:
            return
        names = [name for name in row if name not in ("epoch", "step")]
        widths = [max(len(name), WIDTH) for name in names]
        if names != self._columns:
            self._columns = names
            _say("")
            self._line("epoch", names, widths, "seconds")
        cells = [_number(row[name]) for name in names]
        self._line(str(row["epoch"]), cells, widths, f"{time.monotonic() - self._started:.1f}")

    def _line(self, epoch: str, cells: list[str], widths: list[int], seconds: str) -> None:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        _say("  ".join([epoch.rjust(max(self._digits, 5)), *padded, seconds.rjust(7)]))


def _say(line: str) -> None:
    tqdm.write(line)  # clears a bar that is on the screen, and redraws it below


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _number(value: Any) -> str:
    """At most WIDTH letters, as long as a whole number has no more."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.6f}"
    return text if value == 0 or (abs(value) >= 1e-4 and len(text) <= WIDTH) else f"{value:.4e}"


def _figures(row: Mapping[str, Any]) -> str:
    skipped = ("epoch", "step", "monitor", "value", "path")
    return "  ".join(f"{name} {_number(value)}" for name, value in row.items() if name not in skipped)


def _spacing(epochs: int, rows: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that gives at most `rows` lines, and one for the last epoch."""
    for power in itertools.count():
        for step in (1, 2, 5):
            if (epochs - 1) // (step * 10**power) <= rows:
                return int(step * 10**power)
    raise AssertionError


def _described(loader: Any) -> str:
    data_set = getattr(loader, "dataset", None)
    try:
        batches = len(loader)
        samples = loader.samples if data_set is None else len(data_set)
    except (TypeError, AttributeError):
        return f"{type(loader if data_set is None else data_set).__name__} of unknown length"
    if data_set is None:
        return f"{_plural(samples, 'sample')}, all in one batch"
    size = getattr(loader, "batch_size", None)
    return f"{_plural(samples, 'sample')} in {batches} batch{'es' * (batches != 1)}{f' of {size}' if size else ''}"
