"""Running a recipe, the verb that needs no name."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from framework.cli.lab import Lab, find_lab
from framework.cli.options import Options, of_recipe
from framework.cli.running import run
from framework.discovery import Listed
from framework.trainer import Trainer


class Signals:
    """Ctrl-C ends the run after the step in hand, so that plugins save; a second one ends it at once."""

    def __init__(self) -> None:
        self.interrupted = False
        self._before: Any = None
        self._trainer: Trainer | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        if self.interrupted:  # when the fit of the variant before was over already
            raise KeyboardInterrupt
        if threading.current_thread() is threading.main_thread():
            self._trainer = trainer
            self._before = signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted or self._trainer is None:
            raise KeyboardInterrupt
        self.interrupted = True
        self._trainer.stop("Ctrl-C")
        print("\nstopping after this step and saving; press Ctrl-C again to quit at once", file=sys.stderr)

    def on_teardown(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = self._trainer = None


def train(recipe: str, arguments: list[str]) -> int:
    """Run a recipe; the exit status."""
    signals = Signals()
    quiet = {"-q", "--quiet"} & set(arguments) and not {"-h", "--help"} & set(arguments)
    with _silent() if quiet else contextlib.nullcontext():  # a recipe may print on import
        lab = find_lab(recipe)
        knobs, options = of_recipe(lab, arguments)
        _run(lab, knobs, options, signals)
        quoted = f'"{recipe}"' if " " in recipe else recipe
        for line in re.findall(r"^Next: (.+)$", lab.documentation, flags=re.MULTILINE):
            print(f"next      python -m framework {quoted} {line}")  # what is worth trying now
    return 130 if signals.interrupted else 0


def _run(lab: Lab, knobs: dict[str, Any], options: Options, signals: Signals) -> None:
    plugins = [Listed("_signals", signals, "command line"), *options.plugin]
    run(
        lab, seed=options.seed, device=options.device, plugins=plugins,
        run_dir=options.run_dir or None, deterministic=options.deterministic, **knobs,
    )  # fmt: skip


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
