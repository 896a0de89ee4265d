"""From a recipe to its objects: the Recipe, its plugins in their order, a Trainer; anew, or as a run has left them."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from framework import checkpoint
from framework.cli import rundir
from framework.cli.lab import Lab, find_lab
from framework.cli.options import Options, as_arguments, of_recipe, takes_several
from framework.discovery import DISTRIBUTION, Listed, find, owner, several
from framework.errors import PluginError, RecipeError, RunDirError, UsageError, did_you_mean
from framework.plugins import examine
from framework.recipe import Recipe
from framework.seed import seed_everything
from framework.trainer import Result, Trainer


def build(recipe: str | Path | Callable[..., Any] | Lab, *, seed: int = 0, **knobs: Any) -> Any:
    """Build a recipe without running it: a Recipe, a dict of label to Recipe, or None.

    Raises:
        RecipeError: it cannot be loaded, has no such knob, or returned something else
    """
    made = _make(find_lab(recipe), seed, knobs)
    if not isinstance(made, dict):
        return made
    return {label: drawn_anew(variant, seed) for label, variant in made.items()}


def drawn_anew(variant: Callable[[], Recipe], seed: int) -> Recipe:
    """A variant of a recipe: each starts from the same draws."""
    seed_everything(seed)
    return variant()


def _make(lab: Lab, seed: int, knobs: Mapping[str, Any]) -> Any:
    seed_everything(seed)
    # one that draws trains nothing, and calling it would be running it
    return None if lab.draws else lab.make(lab.settings(knobs))


def assemble(
    recipe: str | Path | Callable[..., Any] | Lab, *, label: str = "", seed: int = 0,
    device: str | torch.device = "auto", plugins: Iterable[Any] = (), run_dir: str | Path | None = None, **knobs: Any,
) -> tuple[Recipe, Trainer]:  # fmt: skip
    """Build a recipe and the Trainer of it, with the recipe's own plugins and without those that a run adds.

    Args:
        label: which one, of a recipe of several variants
        plugins: instances or names added at the end

    Raises:
        UsageError: it trains nothing, or several variants of which none is named
    """
    lab = find_lab(recipe)
    made = _make(lab, seed, knobs)
    if made is None:
        raise RecipeError(f"the recipe {lab.name} trains nothing")
    variants = made if isinstance(made, dict) else {}
    if bool(label or variants) and label not in variants:
        has = f"one of {', '.join(map(repr, variants))}" if variants else "none, since it has no variants"
        raise UsageError(f"{f'{label!r} is no variant' if label else 'name a variant'} of {lab.name}: {has}")
    if variants:
        made = drawn_anew(variants[label], seed)
    return made, trainer_of(made, line_up(lab, made.plugins, several(plugins), defaults=False), device, run_dir)


def knobs(recipe: str | Path | Callable[..., Any] | Lab, words: Iterable[str]) -> dict[str, Any]:
    """Knobs of a recipe by words such as `lr=0.1` and `widths=500 2000`, of the types that the command line gives them.

    Raises:
        UsageError: a word that sets nothing, no such knob (with a suggestion), or a value of the wrong type
    """
    lab, given = _given(recipe, words)
    typed, _ = of_recipe(lab, as_arguments(given, lab.knobs))
    return {name: typed[name] for name in given}


def _given(recipe: str | Path | Callable[..., Any] | Lab, words: Iterable[str]) -> tuple[Lab, dict[str, Any]]:
    """The recipe that is meant, and the values of its knobs, still as they are written."""
    lab, given = find_lab(recipe), {}  # type: Lab, dict[str, Any]
    for word in words:
        name, sets, value = word.partition("=")
        if not sets:
            raise UsageError(f"{word!r} sets no knob: write its name, = and the value, such as {word}=...")
        lab.settings({name: value})  # tells a wrong name
        flags = {"true": True, "false": False} if isinstance(lab.knobs[name].default, bool) else {}
        if flags and value.lower() not in flags:
            raise UsageError(f"{word!r}: write {name}=true or {name}=false")
        given[name] = value.split() if takes_several(lab, name) else flags.get(value.lower(), value)
    return lab, given


def command_of(recipe: str, words: Iterable[str]) -> str:
    """The command line of a run with knobs as `knobs` takes them; of several words for one the last counts."""
    lab, given = _given(recipe, words)
    return rundir.command(recipe, *as_arguments(given, lab.knobs))


def trainer_of(
    recipe: Recipe, plugins: Sequence[Any], device: str | torch.device, run_dir: str | Path | None
) -> Trainer:
    """The Trainer of a Recipe."""
    return Trainer(
        recipe.model, recipe.loss, recipe.optimizer, plugins=plugins, device=device, run_dir=run_dir,
        on_nonfinite=recipe.on_nonfinite, on_plugin_error=recipe.on_plugin_error, on_save_error=recipe.on_save_error,
        async_save=recipe.async_save,
    )  # fmt: skip


def fit_recipe(trainer: Trainer, recipe: Recipe, **changes: Any) -> Result:
    """`trainer.fit` as a Recipe says; `changes` are arguments of it in place of the Recipe's."""
    arguments = inspect.signature(Trainer.fit).parameters
    return trainer.fit(**{**{name: value for name, value in vars(recipe).items() if name in arguments}, **changes})


def names_in(plugin_set: str) -> list[str]:
    """The plugins of a set, such as those that are active by default; only our own distribution can offer one."""
    points = importlib.metadata.entry_points(group="framework.sets", name=plugin_set)
    return [name for point in points if owner(point) == DISTRIBUTION for name in point.load()]


def arounds(extra: Sequence[Any]) -> list[Callable[..., Any]]:
    """What plugins of `extra` put around a whole run: of a Job and the run directory that was named, if any, a context
    manager that gives the run directory to use."""
    points = importlib.metadata.entry_points(group="framework.around_run")  # by the name of the plugin
    return [point.load() for point in points if point.name in extra and f"no:{point.name}" not in extra]


def line_up(lab: Lab, listed: Sequence[Any], extra: Sequence[Any], defaults: bool = True) -> list[Listed]:
    """The plugins in their order: the recipe module, the recipe's list, the defaults, then `-p`.

    Raises:
        PluginError: `no:NAME` of a plugin that is not there
    """
    order: list[Listed] = []
    if lab.module is not None:
        itself = Listed(lab.name, lab.module, "recipe module")
        order += [itself] if any(examine(itself)) else []
    for spec in several(listed):
        order += find(spec, "recipe")
    if defaults:
        order += [found for name in names_in("default") if name not in _names(order) for found in find(name, "default")]
    removed = [spec[3:] for spec in extra if isinstance(spec, str) and spec.startswith("no:")]
    for spec in extra:
        if isinstance(spec, str) and (spec.startswith("no:") or spec in _names(order)):
            continue  # removed below; or asked for and active already
        order += find(spec, "-p")
    for name in removed:
        if name not in _names(order):
            raise PluginError(f"no:{name}: no such plugin is active.{did_you_mean(name, _names(order))}")
    return [entry for entry in order if entry.name not in removed]


def _names(order: Sequence[Listed]) -> list[str]:
    return [entry.name for entry in order if not entry.name.startswith("_")]  # those are the command line's own


def recorded(run_dir: Path, info: Mapping[str, Any], recipe: str, trust: bool) -> tuple[Lab, dict[str, Any], Options]:
    """The recipe of a run, with the knobs and the options that it ran with."""
    lab = find_lab(rundir.original(run_dir, info, recipe, trust))
    lab.settings(info["knobs"])  # tells best which knob another recipe does not have
    return lab, *of_recipe(lab, ["--config", str(run_dir / rundir.INFO)])


def rebuild(
    run_dir: Path, recipe: str = "", label: str = "", plugins: Sequence[Any] = (), trust: bool = False
) -> tuple[Recipe, Trainer, Path]:
    """The Recipe and a Trainer of a run with the weights of a checkpoint, and that checkpoint.

    Args:
        recipe: a recipe in place of the one that ran
        label: the checkpoint to take; by default the best if it was chosen on validation data, else the last. (The
            training loss of an epoch is that of weights before its steps; it cannot choose between weights after.)
        plugins: what to add to the recipe's own, as -p; what a run directory says never names code to run
        trust: run the copy of the recipe that is in the run directory

    Raises:
        RunDirError: no run, no checkpoint, or the recipe file is not the one that ran
    """
    info = rundir.read_info(run_dir)
    if "variants" in info:
        names = ", ".join(str(run_dir / name) for name in info["variants"])
        raise RunDirError(f"{run_dir} holds several runs; name one of them: {names}")
    on_validation = str((info.get("best") or {}).get("monitor", "")).startswith("val_")
    labels = [label] if label else ["best", "last"] if on_validation else ["last", "best"]
    path = checkpoint.find(run_dir, *labels)
    if path is None:
        hint = f" {label!r}" if label and checkpoint.find(run_dir, "best", "last") else ": did no plugin save one?"
        raise RunDirError(f"{run_dir} has no checkpoint{hint}")
    lab, knobs, options = recorded(run_dir, info, recipe, trust)
    made = build(lab, seed=options.seed, **knobs)
    one: Recipe | None = made.get(info.get("label")) if isinstance(made, dict) else made
    if one is None:
        raise RunDirError(f"{lab.file} does not build what ran in {run_dir}")
    checkpoint.restore_model(checkpoint.read(path), one.model)
    return one, trainer_of(one, line_up(lab, one.plugins, plugins, defaults=False), "auto", None), path
