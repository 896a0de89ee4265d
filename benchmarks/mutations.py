"""Deletes what makes a checkpoint durable, sound and exact, a statement at a time, and expects a test to fail for each.

`python benchmarks/mutations.py` takes every call that stands alone (an fsync, a seed, putting a state back) and every
refusal (`if ...: raise`) in the functions below, makes a copy of the package without that one statement, and runs the
tests of its file against the copy. `--list` only lists them, `--only WORD` takes those whose text has the word. Ends
with 1 and names each statement that no test misses. What only another platform can run is left out.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKPOINT = "tests/framework/checkpoint"
_DISK = "test_store", "test_files", "test_runlock", "test_power_loss", "test_damage", "test_faults", "test_crash"
DISK = [f"{CHECKPOINT}/{name}.py" for name in _DISK]
ELSEWHERE = "cuda", "mps", "UNABLE"  # in a statement that another platform than this one runs
PLACES: dict[str, tuple[set[str] | None, list[str]]] = {  # a file: the functions looked at (None: all), and its tests
    "framework/checkpoint/files.py": (
        {"fsync", "write_file", "put", "write_whole", "read_file", "sync_directory", "rename", "sweep"}, DISK,
    ),
    "framework/checkpoint/store.py": (
        {"write", "_commit", "_retain", "_load", "_told", "_parsed", "newest", "_pointed", "_target"}, DISK,
    ),
    "framework/checkpoint/runlock.py": (None, [f"{CHECKPOINT}/test_runlock.py"]),
    "framework/checkpoint/place.py": (None, [f"{CHECKPOINT}/test_resume.py"]),
    "framework/checkpoint/restore.py": (None, [f"{CHECKPOINT}/test_resume.py"]),
    "framework/checkpoint/tensors.py": (
        {"load", "_memory", "written"}, [f"{CHECKPOINT}/test_tensors.py", f"{CHECKPOINT}/test_fuzz.py"],
    ),
    "framework/seed.py": (None, ["tests/framework/test_seed.py", f"{CHECKPOINT}/test_resume.py"]),
}  # fmt: skip


def statements(source: str, functions: set[str] | None) -> Iterator[ast.stmt]:
    """Calls that stand alone, refusals, and states that are kept under a name, in these functions."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not (functions is None or node.name in functions):
            continue
        for inner in ast.walk(node):
            alone = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Call)
            refusal = isinstance(inner, ast.If) and not inner.orelse and isinstance(inner.body[-1], ast.Raise)
            kept = isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Subscript)
            if isinstance(inner, ast.stmt) and (alone or refusal or kept):
                yield inner


def without(source: str, statement: ast.stmt) -> str:
    """The source with `pass` in place of a statement."""
    lines = source.splitlines(keepends=True)
    assert statement.end_lineno is not None
    gone = [" " * statement.col_offset + "pass\n"] + ["\n"] * (statement.end_lineno - statement.lineno)
    return "".join(lines[: statement.lineno - 1] + gone + lines[statement.end_lineno :])


def missed(file: str, changed: str, tests: list[str]) -> bool:
    """Whether a test fails with the changed file."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "framework", Path(folder, "framework"), ignore=shutil.ignore_patterns("__pycache__"))
        Path(folder, file).write_text(changed, encoding="utf-8")
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode not in (0, 1, 2):  # 2: a module that does not even import
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode != 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    mutants = []
    for file, (functions, tests) in PLACES.items():
        source = (ROOT / file).read_text(encoding="utf-8")
        for statement in sorted(statements(source, functions), key=lambda found: found.lineno):
            told = f"{file}:{statement.lineno}: {ast.unparse(statement).splitlines()[0]}"
            if options.only in told and not any(word in told for word in ELSEWHERE):
                mutants.append((told, file, without(source, statement), tests))
    if options.list:
        print("\n".join(told for told, *_ in mutants))
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [*pool.map(lambda mutant: missed(*mutant[1:]), mutants)]
    alive = [told for (told, *_), dead in zip(mutants, found, strict=True) if not dead]
    for told in alive:
        print(f"no test misses {told}")
    print(f"{len(mutants)} statements deleted one at a time, {len(alive)} of them without a failing test")
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main())
