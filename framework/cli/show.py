"""What there is: plugins, hooks, recipes."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shutil
import textwrap
from pathlib import Path
from typing import Annotated

import tyro

from framework.cli.options import PluginOption
from framework.discovery import available, find, origin
from framework.errors import PluginError, RecipeError, UsageError
from framework.hooks import HOOKS
from framework.modules import RECIPES, installed, installed_file
from framework.plugins import examine


def plugins(
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = "", plugin: PluginOption = ()
) -> int:
    """The available plugins; with a recipe, those of its run in their order.

    Args:
        recipe: a recipe, built with its defaults
        plugin: as for a run: a name, a file, module:Class, or no:NAME
    """
    if recipe:
        _print_order(recipe, plugin)
        return 0
    from framework.cli.building import names_in

    active = names_in("default")
    for name, point in available().items():
        wrong = "broken"
        try:
            (found,) = find(name)
            impls, findings = examine(found)
        except PluginError as error:
            wrong = "needs arguments" if isinstance(error.__cause__, UsageError) else wrong
            findings = [" ".join(str(error).split())]
        if findings:
            print(f"{name:<18} {origin(point):<26} {wrong}: {'; '.join(findings)}")
            continue
        summary = (found.plugin.__doc__ or "").strip().partition("\n")[0]
        print(f"{name:<18} {origin(point):<26} {'default' if name in active else 'available':<9}  {summary}")
        print(f"{'':<18} {'':<26} {'':<9}  {', '.join(impl.hook.name for impl in impls)}")
    return 0


def _print_order(recipe: str, extra: tuple[str, ...]) -> None:
    from framework.cli.building import build, line_up
    from framework.cli.lab import find_lab

    lab = find_lab(recipe)
    made = build(lab)
    if made is None:
        raise RecipeError(f"the recipe {lab.name} trains nothing, so it has no plugins")
    for label, one in made.items() if isinstance(made, dict) else [("", made)]:
        order = line_up(lab, one.plugins, extra)
        print(f"{label + ': ' if label else ''}the plugins of {lab.name}; the first runs first and wraps outermost")
        for place, entry in enumerate(order, start=1):
            impls, findings = examine(entry)
            if findings:
                raise PluginError("\n".join(findings))
            hooks = ", ".join(impl.hook.name for impl in impls)
            print(f"{place:>3}  {entry.name:<18} {entry.listed:<14} {entry.distribution or 'this session':<26} {hooks}")


def hooks() -> int:
    """Every hook: signature, kind, when it is called, and which available plugins implement it."""
    users: dict[str, list[str]] = {name: [] for name in HOOKS}
    for name in available():
        with contextlib.suppress(PluginError):
            for impl in examine(find(name)[0])[0]:
                users[impl.hook.name].append(name)
    for hook in HOOKS.values():
        print(f"{hook.signature}\n    {hook.kind}{', hot' if hook.hot else ''}{', isolated' if hook.isolated else ''}")
        print(textwrap.indent(textwrap.fill(hook.when, 100), "    "))
        implemented = f"implemented by: {', '.join(users[hook.name]) or 'none of the available plugins'}"
        print(textwrap.indent(textwrap.fill(implemented, 100), "    "))
    return 0


def recipes(copy: str = "") -> int:
    """The recipes that came with the framework: their lab, what they show, the figure to expect.

    Args:
        copy: copy their files into this directory, to change them
    """
    names = installed()
    if copy:
        target = Path(copy)
        taken = [name for name in names if (target / f"{name}.py").exists()]
        if taken:
            raise UsageError(f"{target / taken[0]}.py is there already; nothing was copied")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(installed_file(name), target / f"{name}.py")
        except OSError as error:
            raise UsageError(f"cannot copy the recipes into {target}: {error.strerror or error}") from error
        print(f"copied {len(names)} recipes into {target}")
        return 0
    course = importlib.import_module(RECIPES).COURSE
    for name in (*course, *(name for name in names if name not in course)):
        documentation = ast.get_docstring(ast.parse(installed_file(name).read_text(encoding="utf-8"))) or ""
        lab, _, title = documentation.partition("\n")[0].partition(": ")
        print(f"{name:<25} {lab:<10} {title.removesuffix('.')}")
        for figure in re.findall(r"^Expect: (.+)$", documentation, flags=re.MULTILINE):
            print(f"  expect {figure.removesuffix('.')}")
    return 0
