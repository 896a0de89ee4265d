"""The plain torch script that a recipe amounts to: the way out of the framework, and a look at what it does."""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro

from framework import UsageError, assemble, kept_random_states, write_whole
from framework import knobs as typed

from .source_text import Source
from .whole_script import Script


def eject(
    recipe: str, knobs: Annotated[tuple[str, ...], tyro.conf.Positional] = (), seed: int = 0, label: str = "",
    to: str = "",
) -> int:  # fmt: skip
    """Write the plain torch script of a recipe, which ends with the same numbers.

    Args:
        recipe: a recipe file, or the name of an installed one
        knobs: their values, such as lr=0.5 hidden=20
        seed: sets every random generator
        label: which one, of a recipe of several variants
        to: the file to write; by default the script is printed
    """
    path = Path(to)
    if to and path.exists():
        raise UsageError(f"{path} is there already; name another file, or remove it")
    script = script_of(recipe, knobs, seed, label)
    if to:
        write_whole(path, script)
        print(f"written   {path} ({len(script.splitlines())} lines)\nnext      python {path}")
    else:
        print(script, end="")
    return 0


def script_of(recipe: str, words: Sequence[str] = (), seed: int = 0, label: str = "") -> str:
    """The script, which was seen to build the same model, optimizer and random state as the recipe.

    Raises:
        UsageError: a plugin that acts on the steps, a recipe that trains nothing, or one that is written in a way that
            cannot be followed
    """
    settings = typed(recipe, words)
    with kept_random_states():
        made, trainer = assemble(recipe, label=label, seed=seed, device="cpu", **settings)
        drawn = torch.get_rng_state()
        script = Script(Source(_file_of(recipe)), made, trainer, seed, settings, label)
        script.check(drawn)
    what = [Path(recipe).as_posix(), *words, *[f"seed {seed}"] * bool(seed), *[f"variant {label!r}"] * bool(label)]
    told = [f"The plain loop of {' '.join(what)}: the same numbers, without the framework."]
    if script.left_out:
        told.append(f"Left out, since they only look: {', '.join(script.left_out)}.")
    title = (ast.get_docstring(script.source.tree) or script.source.name).partition("\n")[0]
    about = "\n".join(textwrap.fill(sentence, 118, break_long_words=False) for sentence in told)
    documentation = f"{title}\n\n{about}\n".replace("\\", "/").replace('"' * 3, "'''")
    return f'"""{documentation}"""\n\n{script.building}\n{script.loop}'


def _file_of(recipe: str) -> Path:
    path = Path(recipe)
    spec = importlib.util.find_spec(f"framework_recipes.{recipe}") if path.suffix != ".py" else None
    return Path(spec.origin) if spec and spec.origin else path
