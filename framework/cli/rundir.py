"""The run directory: what a run was, what it did, and where to find it again. All text in it is UTF-8.

::

    runs/softmax/001/
        run.json         recipe, knobs, seed, device, plugins, versions, command, why it ended
        recipe.py        a copy of the recipe as it ran, to read
        metrics.jsonl    a row an epoch (plugin history)
        checkpoints/     (framework/checkpoint/)
        curves.svg       (plugin plot)
        run.lock         held while a process writes here
        faulthandler.log where a crash in C code left the stacks
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from framework import checkpoint
from framework.errors import RunDirError, UsageError
from framework.modules import installed, installed_file

INFO, ROWS, SOURCE, LOCK, STACKS = "run.json", "metrics.jsonl", "recipe.py", "run.lock", "faulthandler.log"
STOPS = {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129}  # a run that a signal stopped: its stop reason, exit status
ENDED = "epochs", "steps", "seconds", "best", "test"  # what run.json says only of a run that has come to an end
DIFFERENCE = 20  # lines of a changed recipe that are shown


def new(recipe: str, base: Path = Path("runs")) -> Path:
    """The next free directory `runs/RECIPE/001`, made; two runs started together get two."""
    folder = base / recipe
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(path.name) for path in folder.iterdir() if re.fullmatch(r"\d{3,}", path.name)]
        for number in itertools.count(max(taken, default=0) + 1):
            with contextlib.suppress(FileExistsError):
                (folder / f"{number:03d}").mkdir()
                return folder / f"{number:03d}"
    raise AssertionError


def claim(path: Path, failed: bool = False) -> None:
    """Look whether a new run can be put into a directory: a new one, or that of a run without a checkpoint.

    Args:
        failed: also that of a run which ended with an error before its first checkpoint

    Raises:
        RunDirError: it holds a finished run, one with a checkpoint, or something that is no run
    """
    held = sorted({entry.name for entry in path.iterdir()} - {LOCK}) if path.is_dir() else []
    if held and INFO not in held:
        raise RunDirError(f"{path} is not empty and holds no run ({', '.join(held[:3])}); name another directory")
    if held and checkpoint.candidates(path) and not is_finished(path):
        again = command("resume", path)
        raise RunDirError(f"{path} holds an unfinished run with a checkpoint; go on with it: {again}")
    if held and (is_finished(path) or (read_info(path).get("stop_reason") is not None and not failed)):
        raise RunDirError(f"{path} holds a finished run; name another directory for a new run")


@contextlib.contextmanager
def held(path: Path, check: Callable[[Path], Any]) -> Iterator[None]:
    """Keep other processes from writing into a run directory. One that nothing was put into is not left behind.

    Args:
        check: raises if the directory cannot be used; called before even the lock is put there, and again under it

    Raises:
        RunDirError: it is in use, and by whom
    """
    check(path)
    lock = checkpoint.lock(path, by="run")
    try:
        check(path)
        yield
    finally:
        lock.close()  # Windows removes no file that is open
        with contextlib.suppress(OSError):
            if {entry.name for entry in path.iterdir()} <= {LOCK}:
                shutil.rmtree(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal into one sentence about the run directory."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write into the run directory {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and durably."""
    with writing(path.parent):
        checkpoint.write_whole(path, text)


def write_info(path: Path, info: dict[str, Any]) -> None:
    """Write run.json."""
    write_text(path / INFO, json.dumps(info, indent=2, ensure_ascii=False, default=str) + "\n")


def read_info(path: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
        RunDirError: there is none, or it is damaged
    """
    try:
        info = json.loads((path / INFO).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirError(f"{path} is not a run directory: it has no {INFO}") from None
    except (OSError, ValueError) as error:
        raise RunDirError(f"{path / INFO} cannot be read: {error}") from error
    if not isinstance(info, dict) or not _is_sound(info):
        raise RunDirError(f"{path / INFO} is damaged: it does not hold what a run writes")
    return info


_NONE = type(None)
_KINDS: dict[Any, tuple[str, ...]] = {
    dict: ("knobs",), (dict, _NONE): ("test", "best"), list: ("variants", "given", "resumed"), int: ("seed",),
    (int, float): ("seconds",), str: ("recipe", "device", "label"), (str, _NONE): ("file", "sha256", "stop_reason"),
}  # fmt: skip
_BEST = {"monitor": "", "value": 0.0, "epoch": 0}


def _is_sound(info: dict[str, Any]) -> bool:
    """Whether what readers take for granted is of its kind."""
    return (
        all(isinstance(info[name], kind) for kind, names in _KINDS.items() for name in names if name in info)
        and _BEST.keys() <= (info.get("best") or _BEST).keys()
        and all(isinstance(text, str) for name in ("variants", "given") for text in info.get(name, []))
        and all(Path(name).name == name != ".." for name in info.get("variants", []))
        and all(isinstance(session, dict) for session in info.get("resumed", []))
    )


def is_finished(path: Path) -> bool:
    """Whether a run is there that came to its own end, which an error, a signal and `kill -9` are not."""
    info = read_info(path) if (path / INFO).is_file() else {}
    reason = info.get("stop_reason")
    return reason == "completed" or ("seconds" in info and reason not in (None, *STOPS))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, an epoch each; a last line that was cut off by a crash is left out."""
    file = path / ROWS
    if not file.is_file():
        raise RunDirError(f"{path} has no {ROWS}: was the run without the plugin history, or stopped before an epoch?")
    rows = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise RunDirError(f"{file}, line {number} is damaged: {error}") from error
            continue
        if not isinstance(row, dict) or not all(isinstance(value, (int, float)) for value in row.values()):
            raise RunDirError(f"{file}, line {number} is damaged: it holds no figures of an epoch")
        rows.append(row)
    if not rows:
        raise RunDirError(f"{file} is empty: the run stopped before its first epoch was over")
    return rows


def read_runs(path: Path) -> dict[str, tuple[Path, dict[str, Any], list[dict[str, Any]]]]:
    """A run by its label: directory, what run.json says, rows. A directory of several variants gives each of them.

    Raises:
        RunDirError: it is no run directory, or has no figures
    """
    info = read_info(path)
    if "variants" in info:
        return {name: run for name in info["variants"] for run in read_runs(path / name).values()}
    return {str(info.get("label", path)): (path, info, read_rows(path))}


def unfinished(path: Path) -> dict[str, Any]:
    """What run.json says of a run that can go on.

    Raises:
        RunDirError: there is no run, it is damaged, finished, or has nothing to go on from
    """
    info = read_info(path)
    if "label" in info:
        raise RunDirError(f"{path} is one of several variants; go on with all: {command('resume', path.parent)}")
    if is_finished(path):
        raise RunDirError(f"{path} is finished: {info['stop_reason']}")
    if "variants" not in info and not checkpoint.candidates(path):
        anew = ["--config", path / INFO, "--device", info.get("device", "auto")]
        anew += with_plugins(info.get("given", []))
        anew += ["--run-dir", path] if info.get("stop_reason") is None else []
        again = command(info.get("file") or "RECIPE", *anew)
        raise RunDirError(f"{path} has no checkpoint yet; start it again: {again}")
    return info


def resumed(path: Path, about: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What run.json says of a run that goes on from a step."""
    was, now = read_info(path), environment()
    session = {"step": step, "command": now.pop("command"), "versions": now}
    kept = {name: value for name, value in was.items() if name not in ENDED}
    return {**kept, **about, "stop_reason": None, "resumed": [*was.get("resumed", []), session]}


def original(path: Path, info: Mapping[str, Any], recipe: str = "", trust: bool = False) -> str:
    """The recipe to use a run with: the one that ran, if it is still what it was then.

    What is in a run directory names no code: neither its copy of the recipe nor any other file in it is run.

    Args:
        recipe: a file, or the name of an installed recipe, that the user named instead
        trust: the user says that the copy may be run

    Raises:
        RunDirError: the recipe has gone, or has changed; with the difference
    """
    if not {"recipe", "file", "sha256", "knobs", "seed", "device"} <= info.keys():
        raise RunDirError(f"{path / INFO} is damaged: it does not hold what a run writes")
    if recipe and trust:
        raise UsageError("--recipe names another recipe than --trust-run; leave out one of them")
    if trust:
        print(f"recipe    the copy {path / SOURCE} (--trust-run)")
    if recipe or trust:
        return recipe or str(path / SOURCE)
    file = Path(info["file"] or "")
    if not file.is_file() and info["recipe"] in installed():
        file = installed_file(info["recipe"])
    run = path.parent if "label" in info else path  # a variant is inside of its run
    other = f"name the one to use with --recipe FILE, or say --trust-run to run the copy {path / SOURCE}"
    if not file.is_file() or file.resolve().is_relative_to(run.resolve()):
        raise RunDirError(f"the recipe of {path} is gone ({info['file']}); {other}")
    if sha256(file) != info["sha256"]:
        difference = "".join(f"\n{line}" for line in _difference(path / SOURCE, file))
        raise RunDirError(f"{file} has changed since {path} ran; {other}{difference}")
    return str(file)


def _difference(before: Path, after: Path) -> list[str]:
    """What was changed in a recipe, as much of it as can be read at a glance."""
    if not before.is_file():
        return []
    then, now = (f.read_text("utf-8", errors="backslashreplace")[:100_000].splitlines() for f in (before, after))
    lines = [*difflib.unified_diff(then, now, str(before), str(after), lineterm="", n=1)]
    return lines[:DIFFERENCE] + [f"... and {len(lines) - DIFFERENCE} more lines"] * (len(lines) > DIFFERENCE)


def command(*words: Any) -> str:
    """A command line of the framework, as it can be typed."""
    texts = ["python", "-m", "framework", *map(str, words)]
    if os.name == "nt":
        return subprocess.list2cmdline(texts)
    return re.sub(r"'([\w@%+=:,./-]+)'", r"\1", shlex.join(texts))  # Hangul needs no quotes


def code_in(given: Iterable[str]) -> list[str]:
    """Those of the -p of a run that name code, a file or module:Class: who resumes it has to give them again."""
    return [spec for spec in given if spec.endswith(".py") or ":" in spec.removeprefix("no:")]


def with_plugins(given: Iterable[str]) -> list[str]:
    """The words of a command line that give these plugins."""
    return [word for spec in given for word in ("-p", spec)]


def keep_source(path: Path, file: str | None) -> None:
    """Keep a copy of the recipe as it ran, to read."""
    if file:
        with tokenize.open(file) as source:
            write_text(path / SOURCE, source.read())


@contextlib.contextmanager
def ending(path: Path, info: dict[str, Any], own: bool, trained: Callable[[], bool], who: str = "") -> Iterator[None]:
    """An error leaves its reason in run.json, behind `who`.

    Args:
        own: whether the directory is one of ours, which a mistake leaves behind no more than anything else
        trained: whether anything was; before that, the directory of a mistake can be used again
    """
    try:
        yield
    except BaseException as error:
        mistake = isinstance(error, UsageError) and not trained()
        if own and mistake:
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(RunDirError):
                reason = None if mistake else f"{who}{type(error).__name__}: {error}".removesuffix(": ")
                write_info(path, {**info, "stop_reason": reason})
        raise


def holds_more(path: Path) -> bool:
    """Whether a directory holds more than what was put there before anything was trained or drawn."""
    return not {entry.name for entry in path.iterdir()} <= {INFO, SOURCE, LOCK}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment() -> dict[str, Any]:
    """Versions, platform, git commit and command of this process."""
    from framework import __version__

    return {
        "framework": __version__, "python": platform.python_version(), "torch": torch.__version__,
        "platform": platform.platform(), "threads": torch.get_num_threads(), "git_commit": _git_commit(),
        "command": [os.path.basename(sys.executable), *sys.orig_argv[1:]],
    }  # fmt: skip


def _git_commit() -> str | None:
    """The commit of the current directory with "+" where files differ from it; None outside of git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True, errors="replace")
    return done.stdout.strip()
