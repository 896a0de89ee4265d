"""Going on with a run that has not finished."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from framework.cli import rundir
from framework.cli.building import recorded
from framework.cli.options import PluginOption, Quiet, Trust
from framework.cli.running import Job, perform
from framework.cli.signals import Signals
from framework.cli.train import silent
from framework.errors import RunDirError


def resume(
    run: Path, recipe: str = "", device: str = "", plugin: PluginOption = (), trust_run: Trust = False,
    quiet: Quiet = False,
) -> int:  # fmt: skip
    """Go on with a run that was stopped, failed or was killed, as if nothing had happened.

    Args:
        run: a run directory
        recipe: the recipe file to use, where the original has gone or changed
        device: in place of the one that the run was on
        plugin: as for a run; a file or module:Class of the run must be given again
        trust_run: run the copy of the recipe that is in the run directory
    """
    info, signals = rundir.unfinished(run), Signals()
    given = _given(run, info.get("given", []), plugin)
    with silent() if quiet else contextlib.nullcontext():
        lab, knobs, was = recorded(run, info, recipe, trust_run)
        lab.name = info["recipe"]  # under which its state was saved
        job = Job(lab, knobs, was.seed, device or info["device"], given, was.deterministic, signals, resumes=True)
        if trust_run:  # the next time it has to be said again
            job.about |= {"file": info["file"], "sha256": info["sha256"]}
        perform(job, run)
    return rundir.STOPS.get(signals.received, 0)


def _given(run: Path, recorded: Sequence[str], given: Sequence[str]) -> list[str]:
    """The plugins that a run was given, and those it is given now; `no:FILE` leaves out one of its files.

    Raises:
        RunDirError: one is code that is not named again: what a run directory says names none
    """
    code = {*rundir.code_in(recorded)}
    left_out = {spec for spec in code if f"no:{spec}" in given}
    if missing := code - left_out - {*given}:
        again = rundir.command("resume", run, *rundir.with_plugins((*given, *sorted(missing))))
        raise RunDirError(
            f"{run} ran with {', '.join(sorted(missing))}, and a run directory names no code to run: "
            f"if you trust that, name it yourself: {again}"
        )
    now = [spec for spec in given if spec not in recorded and spec.removeprefix("no:") not in left_out]
    return [*(spec for spec in recorded if spec not in left_out), *now]
