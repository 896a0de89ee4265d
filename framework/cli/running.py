"""Running a recipe: train what it builds, and keep what it was in the run directory."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from framework import checkpoint
from framework.cli import rundir, verbs
from framework.cli.building import arounds, drawn_anew, fit_recipe, line_up, names_in, trainer_of
from framework.cli.lab import Lab, find_lab
from framework.cli.pictures import drawn
from framework.cli.signals import Signals
from framework.device import resolve
from framework.discovery import Listed, check, several
from framework.errors import PluginError, RunDirError, UsageError
from framework.recipe import Recipe
from framework.seed import seed_everything
from framework.trainer import Result, Trainer


@dataclass
class Job:
    """What is run, and with what beside the recipe's own.

    Attributes:
        device: a device or its name; `target` is the one that is used
        extra: what -p lists
        signals: hears Ctrl-C and the like; None in the library, which leaves them to its user
        resumes: whether to go on where a run that has not finished was
        dry: whether to try one step of everything, in a directory that is thrown away
        about: what run.json says of it
        path: its run directory, as soon as there is one

    Raises:
        UsageError: what was asked for does not exist or does not fit together
    """

    lab: Lab
    settings: Mapping[str, Any]
    seed: int
    device: str | torch.device
    extra: list[Any]
    deterministic: bool = False
    signals: Signals | None = None
    resumes: bool = False
    dry: bool = False
    about: dict[str, Any] = field(init=False)
    target: torch.device = field(init=False)
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.target = resolve(self.device)
        _check_all(self.extra)  # a misspelt name is told before anything is built or downloaded
        self.target = _drawn_on(self.lab, str(self.device), self.extra) if self.lab.draws else self.target
        if not -(2**63) <= self.seed < 2**64:
            raise UsageError(f"seed must be a whole number of at most 64 bits, got {self.seed}")
        digest = rundir.sha256(Path(self.lab.file)) if self.lab.file else None
        knobs = {name: knob.name if isinstance(knob, Enum) else knob for name, knob in self.settings.items()}
        self.about = {
            "recipe": self.lab.name, "file": self.lab.file, "sha256": digest, "knobs": knobs,
            "seed": self.seed, "device": str(self.target), "deterministic": self.deterministic,
            "given": [spec if isinstance(spec, str) else f"{type(spec).__module__}:{type(spec).__qualname__}"
                      for spec in self.extra],
        }  # fmt: skip


def run(
    recipe: str | Path | Callable[..., Any] | Lab, *, seed: int = 0, device: str | torch.device = "auto",
    plugins: Iterable[Any] = (), run_dir: str | Path | None = None, deterministic: bool = False, **knobs: Any,
) -> Any:  # fmt: skip
    """Run a recipe as the command line does.

    Args:
        recipe: a recipe file, the name of an installed recipe, or the function itself
        seed: set before the recipe builds anything
        plugins: instances or names added at the end; "no:NAME" removes one
        run_dir: where the run is kept; by default the next `runs/RECIPE/NNN`
        deterministic: refuse operations whose result can differ from run to run
        knobs: arguments of the recipe

    Returns:
        the Result; a dict of label to Result for a recipe of several variants; None for one that trains nothing

    Raises:
        UsageError: what was asked for does not exist or does not fit together
        NonFiniteError: the loss became inf or nan
    """
    lab = find_lab(recipe)
    return perform(Job(lab, lab.settings(knobs), seed, device, several(plugins), deterministic), run_dir)


def perform(job: Job, run_dir: str | Path | None) -> Any:
    """Run a job in a run directory; what `run` gives."""
    lab, named = job.lab, None if run_dir is None else Path(run_dir)
    with contextlib.ExitStack() as stack:
        if job.dry:
            named = Path(stack.enter_context(tempfile.TemporaryDirectory())) / lab.name / "001"
        for around in arounds(job.extra):
            named = stack.enter_context(around(job, named))
        if named is not None:
            stack.enter_context(rundir.held(named, rundir.unfinished if job.resumes else rundir.claim))
        seed_everything(job.seed)
        made: Any = None if lab.draws else lab.make(job.settings)
        held = rundir.read_info(named) if job.resumes and named else None
        if held and (made is None or isinstance(made, Mapping) != ("variants" in held)):
            raise RunDirError(f"{lab.file} does not build what ran in {named}")
        if made is None and not lab.draws:
            return None
        path, own, results = named or rundir.new(lab.name), named is None, None
        if own:
            stack.enter_context(rundir.held(path, rundir.claim))
        job.path = path
        print(f"recipe    {lab.name}    {lab.title}".rstrip())
        print(f"seed      {job.seed}")
        with _deterministic(job.deterministic):
            if lab.draws:
                _draw(job, path, own)
            else:
                results = (_run_one if isinstance(made, Recipe) else _run_variants)(job, made, path, own)
    if job.dry:
        print("dry run   one step of everything went through; nothing was kept")
        return results
    print(f"saved     {path}{os.sep}")
    if pictures := drawn(path):
        print(f"pictures  {', '.join(pictures)}")
    if not rundir.is_finished(path):
        again = rundir.with_plugins(rundir.code_in(job.about["given"]))
        print(f"next      {rundir.command('resume', path, *again)}")
    return results


def _drawn_on(lab: Lab, device: str, extra: Iterable[Any]) -> torch.device:
    """The CPU, for a recipe that trains nothing; what it cannot use is refused."""
    unused = [f"--device {device}"] if device not in ("auto", "cpu") else []
    unused += [f"-p {spec}" for spec in extra if spec not in [f"no:{name}" for name in names_in("default")]]
    if unused:
        raise UsageError(f"the recipe {lab.name} trains nothing: leave out {', '.join(unused)}")
    return torch.device("cpu")


def _draw(job: Job, path: Path, own: bool) -> None:
    """Call a recipe that trains nothing, in a directory that keeps what it was and what it draws."""
    info = {**job.about, **rundir.environment(), "stop_reason": None}
    rundir.write_info(path, info)
    rundir.keep_source(path, job.lab.file)
    with rundir.ending(path, info, own, lambda: rundir.holds_more(path)):
        job.lab.draw(job.settings, path)
    rundir.write_info(path, {**info, "stop_reason": "completed"})


@contextlib.contextmanager
def _deterministic(asked: bool) -> Iterator[None]:
    """Refuse operations whose result can differ from run to run, if that was asked for; for this run alone."""
    if not asked:  # asking torch for anything here imports its compiler, which takes a second
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark


def _check_all(specs: Iterable[Any]) -> None:
    findings = []
    for spec in specs:
        try:
            check(spec if not (isinstance(spec, str) and spec.startswith("no:")) else None)
        except PluginError as error:
            findings.append(str(error))
    if findings:
        raise PluginError("\n".join(findings))


def _run_variants(job: Job, made: Mapping[str, Any], parent: Path, own: bool) -> dict[str, Result]:
    """Train the variants of a recipe one after another, each in its own directory, and compare them."""
    results: dict[str, Result] = {}
    info = {**job.about, "variants": [], **rundir.environment(), "stop_reason": None}
    rundir.write_info(parent, info)
    rundir.keep_source(parent, job.lab.file)
    for label, variant in made.items():
        if not (job.resumes and rundir.is_finished(parent / label)):
            print(f"\nvariant   {label}")
            with rundir.ending(parent, info, own, lambda: rundir.holds_more(parent), f"{label}: "):
                results[label] = _run_one(job, drawn_anew(variant, job.seed), parent / label, own, label=label)
        info["variants"].append(label)
        rundir.write_info(parent, info)
        if stopped := job.signals and job.signals.received:
            break
    done = all(rundir.is_finished(parent / label) for label in made)
    rundir.write_info(parent, {**info, "stop_reason": "completed" if done else stopped or None})
    if done and len(made) > 1 and not job.dry:
        _compare(parent)
    return results


def _compare(parent: Path) -> None:
    """The variants in one table and one picture, where a package offers the verb and the runs have kept their rows."""
    compare = verbs().get("compare")
    if compare is not None:
        print()
        try:
            compare.load()((parent,))
        except RunDirError as error:
            print(f"compare   {error}")


def _run_one(job: Job, recipe: Recipe, path: Path, own: bool = False, **label: str) -> Result:
    """Train one Recipe in a directory that keeps what it was."""
    trainer: Trainer | None = None
    info, source = _begun(job, path, {**job.about, **label})
    with rundir.ending(path, info, own, lambda: trainer is not None and trainer.step > 0):
        heard = [Listed("_signals", job.signals, "command line")] if job.signals else []
        trainer = trainer_of(recipe, line_up(job.lab, recipe.plugins, [*job.extra, *heard]), job.target, path)
        order = [p for p in trainer.plugins.order if not p.name.startswith("_")]  # without the command line's own
        info["plugins"] = [{"name": p.name, "listed": p.listed, "distribution": p.distribution} for p in order]
        rundir.write_info(path, info)
        rundir.keep_source(path, job.lab.file)
        result = fit_recipe(trainer, recipe, resume=source)
        if recipe.test is not None and result.stop_reason not in rundir.STOPS:
            result.test = trainer.evaluate(recipe.test, recipe.batch_size)
            print("test      " + "  ".join(f"{name} {value:.6g}" for name, value in result.test.items()))
    ended = {name: getattr(result, name) for name in rundir.ENDED}
    rundir.write_info(path, {**info, "stop_reason": result.stop_reason or "completed", **ended})
    return result


def _begun(job: Job, path: Path, about: dict[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """What run.json says at the start, and the checkpoint to go on from."""
    if job.resumes and checkpoint.candidates(path):
        source, snapshot, told = checkpoint.newest(path)
        told += [f"{left.name} was never finished" for left in source.parent.glob(".tmp-*") if left.is_dir()]
        then = checkpoint.manifest(source)["fingerprint"]
        now = checkpoint.fingerprint({"": torch.empty(0, device=job.target)})
        if changed := [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]:
            told += [f"exact data order; the last bits may differ: {', '.join(changed)}"]
        print(f"resumed   from step {snapshot.step} (epoch {snapshot.epoch}, {source})", *told, sep="\n          ")
        return rundir.resumed(path, about, snapshot.step), source
    rundir.claim(path, failed=job.resumes)
    with rundir.writing(path):
        path.mkdir(exist_ok=True)
        (path / rundir.ROWS).unlink(missing_ok=True)
    return {**about, **rundir.environment(), "stop_reason": None}, None
