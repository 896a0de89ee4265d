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
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from framework import checkpoint
from framework.errors import RunDirError, UsageError
from framework.modules import installed, installed_file

INFO, ROWS, SOURCE, STACKS = "run.json", "metrics.jsonl", "recipe.py", "faulthandler.log"
STOPS = "Ctrl-C", "SIGTERM", "SIGHUP"  # what run.json says of a run that a signal stopped
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


def claim(path: Path) -> Path:
    """A directory that the user named: made, or taken over from a run that never got as far as a checkpoint.

    Raises:
        RunDirError: it holds a finished run, one with a checkpoint, or something that is no run; or cannot be written
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        held = sorted({entry.name for entry in path.iterdir()} - {checkpoint.LOCK})
        if held and INFO not in held:
            raise RunDirError(f"{path} is not empty and holds no run ({', '.join(held[:3])}); name another directory")
        if INFO in held:
            info = read_info(path)
            if not is_finished(info) and checkpoint.find(path, "last", "best"):
                raise RunDirError(
                    f"{path} holds an unfinished run with a checkpoint; go on with it: {command('resume', path)}"
                )
            if info.get("stop_reason") is not None:
                raise RunDirError(f"{path} holds a finished run; name another directory for a new run")
        probe = path / ".tmp-probe"
        probe.write_bytes(b"framework")
        probe.unlink()
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal into one sentence about the run directory."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"cannot write into the run directory {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside, then renamed."""
    with writing(path.parent):
        beside = path.with_name(f".tmp-{path.name}")
        beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")  # a path may be no Unicode
        os.replace(beside, path)


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


def _is_sound(info: dict[str, Any]) -> bool:
    """Whether what readers take for granted is of its kind."""
    best, variants = info.get("best"), info.get("variants", [])
    texts = [info.get(name) or "" for name in ("recipe", "file", "sha256", "device", "stop_reason", "label")]
    return (
        isinstance(info.get("knobs", {}), dict)
        and isinstance(info.get("test") or {}, dict)
        and isinstance(info.get("seconds", 0.0), (int, float))
        and isinstance(info.get("seed", 0), int)
        and (best is None or (isinstance(best, dict) and {"monitor", "value", "epoch"} <= best.keys()))
        and all(isinstance(part, list) for part in (variants, info.get("given", []), info.get("resumed", [])))
        and all(isinstance(text, str) for text in (*texts, *variants, *info.get("given", [])))
        and all(isinstance(entry, dict) for entry in info.get("resumed", []))
        and all(Path(name).name == name != ".." for name in variants)
    )


def is_finished(info: Mapping[str, Any]) -> bool:
    """Whether a run came to its own end, which an error, a signal and `kill -9` are not."""
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


def original(path: Path, info: Mapping[str, Any], recipe: str = "", trust: bool = False) -> str:
    """The recipe to use a run with: the one that ran, if it is still what it was then.

    What is in a run directory names no code: neither its copy of the recipe nor any other file in it is run.

    Args:
        recipe: a file, or the name of an installed recipe, that the user named instead
        trust: the user says that the copy may be run

    Raises:
        RunDirError: the recipe has gone, or has changed; with the difference
    """
    if recipe and trust:
        raise UsageError("--recipe names another recipe than --trust-run; leave out one of them")
    held = path.parent if "label" in info else path  # a variant is inside of its run
    if trust:
        print(f"recipe    {path / SOURCE}, the copy in the run directory")
    if recipe or trust:
        return recipe or str(path / SOURCE)
    name, file = info.get("recipe"), Path(info.get("file") or "")
    if not file.is_file() and name in installed():
        file = installed_file(str(name))
    other = f"name the one to use with --recipe FILE, or say --trust-run to run the copy {path / SOURCE}"
    if not file.is_file() or file.resolve().is_relative_to(held.resolve()):
        raise RunDirError(f"the recipe of {path} is gone ({info.get('file')}); {other}")
    if sha256(file) != info.get("sha256"):
        raise RunDirError("\n".join([f"{file} has changed since {path} ran; {other}", *_difference(path / SOURCE, file)]))
    return str(file)


def _difference(before: Path, after: Path) -> list[str]:
    """What was changed in a recipe, as much of it as can be read at a glance."""
    if not before.is_file():
        return []
    texts = [file.read_text(encoding="utf-8", errors="backslashreplace")[:100_000] for file in (before, after)]
    lines = [*difflib.unified_diff(*map(str.splitlines, texts), str(before), str(after), lineterm="", n=1)]
    return lines[:DIFFERENCE] + [f"... and {len(lines) - DIFFERENCE} more lines"] * (len(lines) > DIFFERENCE)


def command(*words: Any) -> str:
    """A command line of the framework, as it can be typed."""
    quoted = (f'"{word}"' if " " in str(word) else str(word) for word in words)
    return " ".join(("python -m framework", *quoted))


def keep_source(path: Path, file: str | None) -> None:
    """Keep a copy of the recipe as it ran, to read."""
    if file:
        with tokenize.open(file) as source:
            write_text(path / SOURCE, source.read())


@contextlib.contextmanager
def ending(
    path: Path, info: dict[str, Any], own: bool, mistaken: Callable[[BaseException], bool], who: str = ""
) -> Iterator[None]:
    """An error leaves its reason in run.json, behind `who`.

    Args:
        own: whether the directory is one of ours, which a mistake leaves behind no more than anything else
        mistaken: whether an error is a mistake of the user before anything was trained; then the directory can be
            used again
    """
    try:
        yield
    except BaseException as error:
        mistake = mistaken(error)
        if own and mistake:
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(RunDirError):
                reason = None if mistake else f"{who}{type(error).__name__}: {error}".removesuffix(": ")
                write_info(path, {**info, "stop_reason": reason})
        raise


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def environment() -> dict[str, Any]:
    """Versions, platform, git commit and command of this process."""
    from framework import __version__

    return {
        "framework": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
        "command": [os.path.basename(sys.executable), *sys.orig_argv[1:]],
    }


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
