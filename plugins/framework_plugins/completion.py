"""Completion of the command line: a script for the shell, and what the script asks at each press of Tab.

What can stand at a place is read from the sources of verbs and recipes without importing them, so neither torch nor
the recipe is waited for, and a recipe of one's own is completed as it is saved.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import pkgutil
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CORE = {  # the verbs that are no plugins
    "hooks": "framework.cli.show:hooks", "plugins": "framework.cli.show:plugins",
    "recipes": "framework.cli.show:recipes", "resume": "framework.cli.resume:resume",
}  # fmt: skip
OPTIONS = (  # of a recipe, beside its knobs
    "--config", "--deterministic", "--device", "--dry-run", "--help", "--plugin", "--quiet", "--run-dir", "--seed",
    "--verbose",
)  # fmt: skip
DEVICES = "auto", "cpu", "cuda", "mps"
RECIPES = "framework_recipes"

SCRIPTS = {
    "bash": """\
_framework_complete() {
    local program=$python begin=1
    if [[ ${COMP_WORDS[0]} == *python* ]]; then
        if [[ ${COMP_WORDS[1]} != -m || ${COMP_WORDS[2]} != framework || COMP_CWORD -lt 3 ]]; then
            compopt -o default 2>/dev/null
            return
        fi
        program=${COMP_WORDS[0]} begin=3
    fi
    local IFS=$'\\n'
    COMPREPLY=($("$program" -m framework_plugins.completion --current="${COMP_WORDS[COMP_CWORD]}" \\
        "${COMP_WORDS[@]:begin:COMP_CWORD-begin}" 2>/dev/null))
    compopt -o filenames 2>/dev/null
}
complete -F _framework_complete framework python python3
""",
    "zsh": """\
_framework_complete() {
    local program=$python
    local -a before found
    before=("${(@Q)words[2,CURRENT-1]}")
    if [[ ${words[1]} == *python* ]]; then
        if [[ ${words[2]} != -m || ${words[3]} != framework ]] || (( CURRENT < 4 )); then
            (( $+functions[_python] )) && _python || _default
            return
        fi
        program=${(Q)words[1]}
        shift 2 before
    fi
    found=("${(@f)$("$program" -m framework_plugins.completion --current="${(Q)PREFIX}" "${(@)before}" 2>/dev/null)}")
    compadd -S '' -- ${(M)found:#*/}
    compadd -- ${found:#(*/|)}
}
compdef _framework_complete framework python python3
""",
    "fish": """\
function __framework_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l program $python
    if string match -q '*python*' -- $before[1]
        set program $before[1]
        set -e before[1..2]
    end
    $program -m framework_plugins.completion --current="$current" $before[2..-1] 2>/dev/null
end
function __framework_is_meant
    set -l before (commandline -opc)
    test (count $before) -ge 3; and test "$before[2] $before[3]" = "-m framework"
end
complete -c framework -f -a '(__framework_complete)'
complete -c python -n __framework_is_meant -f -a '(__framework_complete)'
complete -c python3 -n __framework_is_meant -f -a '(__framework_complete)'
""",
    "powershell": """\
Register-ArgumentCompleter -Native -CommandName framework, python, python3 -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $words = @($commandAst.CommandElements | ForEach-Object { if ($_.Value) { $_.Value } else { $_.ToString() } })
    if ($wordToComplete) { $words = @($words | Select-Object -SkipLast 1) }
    $begin = 1
    if ($words[0] -match 'python') {
        if ($words[1] -ne '-m' -or $words[2] -ne 'framework') { return }
        $begin = 3
    }
    $before = @($words | Select-Object -Skip $begin)
    $current = $wordToComplete.Trim("'", '"')
    & $python -m framework_plugins.completion "--current=$current" $before 2>$null | ForEach-Object {
        $quoted = if ($_ -match '[^\\w./\\\\:=-]') { "'" + $_.Replace("'", "''") + "'" } else { $_ }
        [System.Management.Automation.CompletionResult]::new($quoted, $_, 'ParameterValue', $_)
    }
}
""",
}
WHERE = {
    "bash": "~/.bashrc", "zsh": "~/.zshrc, behind compinit", "fish": "~/.config/fish/completions/framework.fish",
    "powershell": "the file $PROFILE",
}  # fmt: skip


def completion(shell: Literal["bash", "zsh", "fish", "powershell"]) -> None:
    """Print a script that completes verbs, recipes and their options: eval "$(python -m framework completion bash)".

    Args:
        shell: the shell that is to read it
    """
    python = f"'{sys.executable}'" if shell == "powershell" else shlex.quote(sys.executable)
    print(f"# Completion of python -m framework for {shell}; for each session, put this into {WHERE[shell]}")
    print(SCRIPTS[shell].replace("$python", python), end="")


# ------------------------------------------------------------------------------------------- what the script asks for


@dataclass(frozen=True)
class Argument:
    """A parameter of a verb or a recipe, as its source has it."""

    name: str
    kind: str
    default: ast.expr | None

    @property
    def positional(self) -> bool:
        return self.default is None or "Positional" in self.kind

    @property
    def flag(self) -> bool:
        return isinstance(self.default, ast.Constant) and isinstance(self.default.value, bool)

    @property
    def choices(self) -> list[str]:
        """The values of a Literal."""
        found = ast.walk(ast.parse(self.kind, mode="eval")) if "Literal" in self.kind else ()
        return [node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def candidates(before: list[str], current: str) -> list[str]:
    """What can stand at the cursor, as it would be typed.

    Args:
        before: the words behind `framework` and before the cursor
        current: what is typed of the word at the cursor
    """
    return sorted({found for found in _all(before, current) if found.startswith(current)})


def _all(before: list[str], current: str) -> Iterator[str]:
    if not before:
        yield from (*_verbs(), *_recipes(), *_paths(current, ".py"))
        return
    first, last = before[0], before[-1]
    verb = _verbs().get(first)
    arguments = _of_verb(verb) if verb else _of_recipe(first)
    asked = {f"--{argument.name.replace('_', '-')}": argument for argument in arguments if not argument.positional}
    if last in ("-p", "--plugin"):
        yield from (*_points("framework"), *_paths(current, ".py"))
    elif last == "--device":
        yield from DEVICES
    elif last in asked and not asked[last].flag:
        yield from asked[last].choices or _paths(current)
    elif current.startswith("-"):
        yield from asked
        yield from ("--help", "--verbose") if verb else OPTIONS
        yield from (f"--no-{name[2:]}" for name, argument in asked.items() if argument.flag and not verb)
    elif verb:
        places = [argument for argument in arguments if argument.positional]
        filled = sum(not word.startswith("-") for word in before[1:])
        yield from _values(places[min(filled, len(places) - 1)], current) if places else ()
    else:
        yield from _paths(current)


def _values(argument: Argument, current: str) -> Iterator[str]:
    if argument.name == "recipe":
        yield from (*_recipes(), *_paths(current, ".py"))
    else:
        yield from argument.choices or _paths(current)


def _points(group: str) -> dict[str, str]:
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


def _verbs() -> dict[str, str]:
    return {**CORE, **_points("framework.commands")}


def _recipes() -> list[str]:
    spec = importlib.util.find_spec(RECIPES)
    return [module.name for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else [])]


def _of_verb(place: str) -> list[Argument]:
    module, _, function = place.partition(":")
    return _arguments(_source(module), function)


def _of_recipe(recipe: str) -> list[Argument]:
    return _arguments(recipe if recipe.endswith(".py") else _source(f"{RECIPES}.{recipe}"), "recipe")


def _source(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:  # of a name that is none, or of a package that is broken
        return ""
    return (spec.origin if spec else "") or ""


def _arguments(file: str, function: str) -> list[Argument]:
    """The parameters of a function, by its source; none where there is none, or it is just being written."""
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            named = [*node.args.posonlyargs, *node.args.args]
            defaults: list[ast.expr | None] = [None] * (len(named) - len(node.args.defaults))
            pairs = [*zip(named, [*defaults, *node.args.defaults], strict=True)]
            pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return [Argument(a.arg, ast.unparse(a.annotation) if a.annotation else "", d) for a, d in pairs]
    return []


def _paths(current: str, suffix: str = "") -> Iterator[str]:
    """Files and folders that begin so; a folder ends in a slash. Hidden ones only where a dot is typed."""
    folder, typed = os.path.split(current)
    try:
        entries = [*os.scandir(os.path.expanduser(folder) or ".")]
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(typed) and (typed.startswith(".") or not entry.name.startswith((".", "__"))):
            shown = os.path.join(folder, entry.name)
            if entry.is_dir():
                yield shown + "/"
            elif entry.name.endswith(suffix):
                yield shown


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
    for candidate in candidates(sys.argv[2:], sys.argv[1].removeprefix("--current=")):
        print(candidate)
