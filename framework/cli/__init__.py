"""The command line: `python -m framework [VERB] ...`; without a verb it runs a recipe.

Exit status: 0; 1 the training failed; 2 the user's mistake, told in a line or two; 130 after Ctrl-C, 143 after SIGTERM,
129 after SIGHUP.
"""

from __future__ import annotations

import ast
import errno
import gc
import importlib
import importlib.metadata
import importlib.util
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from framework.errors import FrameworkError, UsageError, did_you_mean

COMMANDS = "framework.commands"  # entry points: verbs that packages bring along
VERBS = {"hooks": "show", "plugins": "show", "recipes": "show", "resume": "resume"}

USUAL = warnings.formatwarning
DISK_FAULTS = (errno.ENOSPC, errno.EIO, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # nobody's mistake

USAGE = """\
usage: python -m framework RECIPE [--knob value ...]     run a recipe: a file, or the name of an installed one
       python -m framework RECIPE --help                 its knobs
       python -m framework VERB ...
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command line; the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no console encoding may end a run
            stream.reconfigure(errors="backslashreplace", line_buffering=True)  # and a pipe is not to wait for the end
    verbose = bool({"-v", "--verbose"} & set(arguments))
    warnings.formatwarning = USUAL if verbose else _in_a_line
    try:
        return _dispatch(arguments)
    except FrameworkError as error:
        _tell(error, verbose)
        of_the_disk = isinstance(error.__cause__, OSError) and error.__cause__.errno in DISK_FAULTS
        return 2 if isinstance(error, UsageError) and not of_the_disk else 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _in_a_line(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    """A UserWarning without its place, somewhere in torch; where a RuntimeWarning of NumPy arose is worth telling."""
    return f"warning: {message}\n" if category is UserWarning else USUAL(message, category, filename, lineno, line)


def _tell(error: FrameworkError, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    else:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n  ", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    first, rest = arguments[0], arguments[1:]
    if "--version" in arguments:
        from framework import __version__

        print(f"framework {__version__}")
        return 0
    options = [argument for argument in rest if argument not in ("-v", "--verbose")]  # main has seen it
    commands = verbs()
    module = VERBS.get(first, "" if first in commands else "train")
    from framework.modules import installed, uncollected

    if module == "train":
        if first.startswith("-"):
            raise UsageError(f"the recipe comes first: python -m framework RECIPE {first} ...")
        known = [*VERBS, *commands, *installed()]
        if not Path(first).suffix and not Path(first).exists() and first not in known:
            raise UsageError(f"{first!r} is neither a verb nor a recipe.{did_you_mean(first, known)}")
    first_time = "torch" not in sys.modules
    with uncollected():
        own = importlib.import_module(f"framework.cli.{module or 'options'}")
    if first_time:  # what stays to the end need not be looked through at the end either, which is half a second
        gc.freeze()
    if module == "train":
        return int(own.train(first, rest))
    from framework.cli.options import parse

    verb = getattr(own, first) if module else _loaded(commands[first])
    return int(parse(verb, options, f"python -m framework {first}") or 0)


def verbs() -> dict[str, importlib.metadata.EntryPoint]:
    """The verbs of the command line that packages bring along: functions of run directories and the like."""
    return {p.name: p for p in sorted(importlib.metadata.entry_points(group=COMMANDS), key=lambda p: p.name)}


def _loaded(point: importlib.metadata.EntryPoint) -> Callable[..., Any]:
    """A verb that a package brings along; a UsageError that names the package if it cannot be imported."""
    try:
        return point.load()  # type: ignore[no-any-return]
    except (Exception, SystemExit) as error:
        from framework.discovery import origin

        said = f"{type(error).__name__}: {error}"
        raise UsageError(f"the verb {point.name!r} of {origin(point)} cannot be loaded: {said}") from error


def _help() -> str:
    """The overview. It reads the first line of each verb from its source, so that nothing heavy is imported."""
    lines = [USAGE, "verbs:"]
    found = {verb: (f"framework.cli.{module}", verb) for verb, module in VERBS.items()}
    found |= {name: (point.module, point.attr) for name, point in verbs().items()}
    for verb, (module, function) in sorted(found.items()):
        lines.append(f"  {verb:<11} {_first_line(module, function)}")
    lines.append("\npython -m framework VERB --help tells more of one. python -m framework recipes lists the recipes.")
    return "\n".join(lines) + "\n"


def _first_line(module: str, function: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else None
    except Exception:  # of a package that is broken: it may raise anything when its parent is imported
        tree = None
    for node in tree.body if tree else []:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
