"""Running a recipe, the verb that needs no name."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from framework.cli.building import names_in
from framework.cli.lab import find_lab
from framework.cli.options import of_recipe
from framework.cli.rundir import STOPS, command
from framework.cli.running import Job, perform
from framework.cli.signals import Signals
from framework.errors import UsageError


def train(recipe: str, arguments: list[str]) -> int:
    """Run a recipe; the exit status."""
    quiet = {"-q", "--quiet"} & set(arguments) and not {"-h", "--help"} & set(arguments)
    signals = Signals()
    with silent() if quiet else contextlib.nullcontext():  # a recipe may print on import
        lab = find_lab(recipe)
        knobs, options = of_recipe(lab, arguments)
        dry = options.dry_run
        if dry and (options.run_dir or lab.draws):
            raise UsageError("--dry-run keeps nothing: leave out " + ("it" if lab.draws else "--run-dir"))
        plugins = [*options.plugin, *(names_in("dry-run") if dry else ())]
        job = Job(lab, knobs, options.seed, options.device, plugins, options.deterministic, signals, dry=dry)
        perform(job, options.run_dir or None)
        for line in () if dry or signals.received else re.findall(r"^Next: (.+)$", lab.documentation, re.MULTILINE):
            print(f"next      {command(recipe)} {line}")  # what is worth trying now
    return STOPS.get(signals.received, 0)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Nothing is printed."""
    with open(os.devnull, "w", encoding="utf-8") as to, contextlib.redirect_stdout(to), contextlib.redirect_stderr(to):
        yield
