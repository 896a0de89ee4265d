"""Command lines from signatures, by tyro; its errors in a line or two."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import json
import re
import typing
import warnings
from collections.abc import Callable, Container, Mapping
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import docstring_parser
import tyro

from framework.errors import RecipeError, UsageError, did_you_mean

if TYPE_CHECKING:
    from framework.cli.lab import Lab

PluginOption = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(aliases=["-p"], metavar="NAME|FILE|MODULE:CLASS|no:NAME",
                  help="add a plugin, or remove one with no:NAME; repeatable"),
]  # fmt: skip
Trust = tyro.conf.FlagCreatePairsOff[bool]
Quiet = tyro.conf.FlagCreatePairsOff[Annotated[bool, tyro.conf.arg(aliases=["-q"], help="print nothing but errors")]]


def _text(help_text: str, metavar: str) -> Any:
    return Annotated[str, tyro.conf.arg(help=help_text, metavar=metavar)]


def _flag(help_text: str, *short: str) -> Any:
    return tyro.conf.FlagCreatePairsOff[Annotated[bool, tyro.conf.arg(aliases=short, help=help_text)]]


@dataclasses.dataclass
class Options:
    """What the command line itself takes beside the knobs of a recipe."""

    seed: Annotated[int, tyro.conf.arg(help="sets every random generator before the recipe builds anything")] = 0
    device: _text("auto (cuda, else mps, else cpu), or a device by name", "NAME") = "auto"  # type: ignore[valid-type]
    plugin: PluginOption = ()
    run_dir: _text("keep the run here; by default in runs/RECIPE/NNN", "DIR") = ""  # type: ignore[valid-type]
    config: _text("take knobs and seed from a JSON file, such as an earlier run.json", "FILE") = ""  # type: ignore[valid-type]
    deterministic: _flag("refuse operations whose result can differ from run to run") = False  # type: ignore[valid-type]
    dry_run: _flag("try one step of everything, and keep nothing") = False  # type: ignore[valid-type]
    quiet: Quiet = False
    verbose: _flag("show the full traceback of an error", "-v") = False  # type: ignore[valid-type]


def parse(verb: Callable[..., Any], arguments: list[str], prog: str) -> Any:
    """Call a verb with what the arguments say; its parameters without a default are positional.

    Raises:
        UsageError: an option that does not exist (with a suggestion), or a value of the wrong type
        SystemExit: 0 after --help
    """

    def keep(*values: Any, **named: Any) -> Callable[[], Any]:
        return lambda: verb(*values, **named)  # tyro must not run it: what it prints is caught below

    keep.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    keep.__annotations__ = typing.get_type_hints(verb, include_extras=True)
    keep.__doc__ = verb.__doc__
    return _parsed(keep, arguments, prog, None, tyro.conf.PositionalRequiredArgs)()


def of_recipe(lab: Lab, arguments: list[str]) -> tuple[dict[str, Any], Options]:
    """The knobs of a recipe, and the options of the command line itself.

    Raises:
        UsageError: as `parse`; or a --config that cannot be read or names other knobs
    """
    prog = f"python -m framework {lab.name}"
    helps = {p.arg_name: p.description for p in docstring_parser.parse(lab.function.__doc__ or "").params}
    types = _types(lab)
    own = typing.get_type_hints(Options, include_extras=True)
    file = _value_of("--config", arguments)
    config = as_arguments(_config(file, [*lab.knobs, *own]), lab.knobs)
    fields: list[Any] = []
    for name, parameter in lab.knobs.items():
        help_text = (helps.get(name) or "").replace("\n", " ")
        kind: Any = types.get(name, type(parameter.default))
        fields.append((name, Annotated[kind, tyro.conf.arg(help=help_text)], _default(parameter.default, kind)))
    fields += [(option.name, own[option.name], _default(option.default)) for option in dataclasses.fields(Options)]
    target = dataclasses.make_dataclass("Knobs", fields)
    # tyro joins the lines of a paragraph, so these become paragraphs
    about = re.sub(r"^((?:Expect|Next): .+)$", r"\1\n", lab.documentation, flags=re.MULTILINE)
    try:  # alone first, so that a wrong value in the file is told as one
        _parsed(target, config, prog, about)
    except UsageError as error:
        raise UsageError(f"--config {file}: {error}") from None
    _refuse_values_of_flags(lab, arguments)
    values = vars(_parsed(target, [*config, *arguments], prog, about))
    return {name: values.pop(name) for name in lab.knobs}, Options(**values)


def _refuse_values_of_flags(lab: Lab, arguments: list[str]) -> None:
    """--flag=False and --flag False, which are clear enough to be told what to write instead."""
    for name in [name for name, parameter in lab.knobs.items() if isinstance(parameter.default, bool)]:
        option = "--" + name.replace("_", "-")
        for argument, following in pairwise([*arguments, ""]):
            if argument.startswith(f"{option}=") or (argument == option and following.lower() in ("true", "false")):
                raise UsageError(f"{option} takes no value: write {option} or --no-{option[2:]}")


def takes_several(lab: Lab, name: str) -> bool:
    """Whether a knob is a list or a tuple, or may be one."""
    kind = _types(lab).get(name, type(lab.knobs[name].default))
    return any((typing.get_origin(one) or one) in (list, tuple) for one in (kind, *typing.get_args(kind)))


def _types(lab: Lab) -> dict[str, Any]:
    """The types of the knobs that have one written down."""
    written = {name: knob.annotation for name, knob in lab.knobs.items() if knob.annotation is not knob.empty}
    holder = SimpleNamespace(__annotations__=written)
    try:
        return typing.get_type_hints(holder, getattr(lab.function, "__globals__", {}), include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise RecipeError(f"{lab.name}: the types of the knobs of recipe() cannot be read: {error}") from error


def _default(value: Any, kind: Any = None) -> Any:
    origin = typing.get_origin(kind) or kind
    value = origin(value) if origin in (list, tuple) and isinstance(value, (list, tuple)) else value
    return dataclasses.field(default_factory=lambda: value)


def as_arguments(config: Mapping[str, Any], knobs: Container[str]) -> list[str]:
    """Settings as they would be written on the command line, so that their types are checked as there."""
    given: list[str] = []
    for name, value in config.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, dict):  # the keys of a dict are options of their own
            given += as_arguments(value, value)
        elif isinstance(value, bool):
            given += [option] if value else [f"--no-{option[2:]}"] if name in knobs else []
        elif name == "plugin":
            given += [part for spec in _flat(value) for part in (option, spec)]
        else:
            joined = not isinstance(value, list) and str(value)[:1] in ("", "-")
            given += [f"{option}={value}"] if joined else [option, *_flat(value)]
    return given


def _flat(value: Any) -> list[str]:
    return [text for part in value for text in _flat(part)] if isinstance(value, list) else [str(value)]


def _parsed(target: Any, arguments: list[str], prog: str, description: str | None, *config: Any) -> Any:
    settings = (tyro.conf.OmitArgPrefixes, *config)
    if {"-h", "--help"} & set(arguments):
        return tyro.cli(target, args=["--help"], prog=prog, description=description, config=settings)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tyro, about defaults of another type than the annotation's
            return tyro.cli(target, args=arguments, prog=prog, description=description, config=settings)
    except SystemExit:
        raise UsageError(_shortened(said.getvalue(), prog)) from None


def _shortened(text: str, prog: str) -> str:
    """tyro's message without its frame: what was wrong, and which option is near."""
    lines = [re.sub(r"[\u2500-\u257f]", " ", line).strip() for line in text.splitlines()]
    sections = groupby(lines[1:], key=lambda line: bool(line.strip("- ")))  # the first is the title of the frame
    told = [" ".join(section) for written, section in sections if written]
    message = told[0].removeprefix("Error parsing ").rstrip(".") if told else "the command line cannot be parsed"
    near = next((part.removeprefix("Perhaps you meant: ").split() for part in told if part.startswith("Perhaps")), [])
    option = next((word.rstrip(",") for word in near if word.startswith("--")), None)
    suggestion = f" Did you mean {option}?" if option else ""
    return f"{message}.{suggestion}\n  {prog} --help lists the options"


def _value_of(option: str, arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _config(file: str | None, known: list[str]) -> Mapping[str, Any]:
    """The settings in a file: those of an earlier run.json, or a plain object of names and values."""
    if file is None:
        return {}
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--config {file} is not JSON: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("knobs"), dict):
        found = {**found["knobs"], "seed": found.get("seed", 0), "deterministic": bool(found.get("deterministic"))}
    if not isinstance(found, dict):
        raise UsageError(f"--config {file} must hold an object of knobs and their values")
    for name in found:
        if name not in known:
            raise UsageError(f"--config {file}: there is no knob {name!r}.{did_you_mean(name, known)}")
    return found
