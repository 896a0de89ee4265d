"""What a run tells on stdout: data, model, device, plugins, the table of epochs, why it stopped, the result."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from framework import Result, Trainer, described, hookimpl


class Console:
    """The table of epochs, with what is trained above and the result below.

    However long the run, the table has about `rows` lines: epochs 0, 50, 100, ... of a thousand, and the last.

    Args:
        rows: about so many lines of the table
    """

    def __init__(self, rows: int = 20, name: str = "console") -> None:
        self.name = name
        self.rows = rows
        self._columns: list[str] = []
        self._pending: Mapping[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._every = _spacing(trainer.epochs, self.rows)
        self._columns, self._pending, self._started = [], None, time.monotonic()
        for split, loader in trainer.loaders.items():
            _say(f"{split if split != 'train' else 'data':<10}{_described(loader)}")
        _say(f"model     {described(trainer.model)}")
        _say(f"device    {trainer.device}")
        _say(f"plugins   {', '.join(trainer.plugins)}")

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        self._pending = metrics
        if epoch % self._every == 0:
            self._print_pending()

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer, result: Result) -> Iterator[None]:
        self._print_pending()
        yield  # what others print at the end, such as the recipe, stands between the table and the result
        _say(
            f"stopped   {result.stop_reason or f'after {result.epochs} epochs'} ({result.steps} steps, {result.seconds:.1f} s)"
        )
        if result.history:
            _say(f"result    {_figures(result.history[-1])}")
        if result.best and result.best["epoch"] != trainer.epoch - 1:
            _say(f"best      {_figures(result.best)} in epoch {result.best['epoch']}")

    def on_exception(self) -> None:
        self._print_pending()

    def _print_pending(self) -> None:
        row, self._pending = self._pending, None
        if row is None:
            return
        names = [name for name in row if name != "step"]
        if names != self._columns:
            self._columns = names
            _say("\n" + "  ".join(f"{name:>{_width(name)}}" for name in (*names, "seconds")))
        cells = [f"{_number(row[name]):>{_width(name)}}" for name in names]
        _say("  ".join([*cells, f"{time.monotonic() - self._started:>7.1f}"]))


def _say(line: str) -> None:
    tqdm.write(line)  # clears a bar that is on the screen, and redraws it below


def _width(name: str) -> int:
    return max(len(name), 5 if name == "epoch" else 10)


def _number(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.6f}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.4e}"


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
        return type(loader).__name__
    if data_set is None:
        return f"{samples} samples, all in one batch"
    return f"{samples} samples in {batches} batch{'es' * (batches != 1)} of {getattr(loader, 'batch_size', None)}"
