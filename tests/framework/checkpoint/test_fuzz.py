"""A hostile checkpoint: CheckpointError, and nothing else comes of it. Nothing in a checkpoint can name code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILE = ROOT / "benchmarks" / "fuzzing.py"
CASES, PARTS = 5000, 2


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_but_checkpoint_errors_comes_of_hostile_files(part: int) -> None:
    """In a process of its own, since the hook that watches it cannot be removed."""
    cases = CASES // PARTS
    command = [sys.executable, str(FILE), "fuzz", "--json", "--first", str(part * cases), "--cases", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(found["outcomes"].values()) == cases
    for kind in ("header", "json", "sealed", "directory"):  # it is at the edge of what is sound
        assert found["outcomes"][f"{kind} read"], kind
        assert found["outcomes"][f"{kind} refused"], kind


SABOTAGE = """
import importlib.util, json, os, socket, subprocess, sys, time
spec = importlib.util.spec_from_file_location("fuzzing", sys.argv[1])
fuzzing = importlib.util.module_from_spec(spec)
sys.modules["fuzzing"] = fuzzing
spec.loader.exec_module(fuzzing)
fuzzing.WARM = 9  # cases that nobody looks at, before those that count
kept, code = [], compile("1", "", "eval")

def imports():
    sys.modules.pop("colorsys", None)
    import colorsys

def reads():
    open(sys.argv[1]).close()

def lists():
    os.listdir("/")

def writes():
    open(os.path.join(root[0], "new"), "w").close()

def waits():
    end = time.thread_time() + fuzzing.SLOW
    while time.thread_time() < end:
        pass

def swallowed():
    try:
        exec(code)
    except BaseException:
        pass

bad = {
    "KeyError": lambda: {}["nosuch"], "RecursionError": lambda: (_ for _ in ()).throw(RecursionError()),
    "import": imports, "exec": lambda: exec(code), "compile": lambda: compile("1", "", "eval"), "open": reads,
    "os.listdir": lists, "open (": writes, "socket": socket.socket, "os.mkdir": lambda: os.mkdir("/nosuch/nosuch"),
    "subprocess": lambda: subprocess.Popen(["true"]), "it took": waits, "exec (": swallowed,
    "has grown": lambda: kept.append(b"x" * 70_000_000), "a message of": lambda: (_ for _ in ()).throw(
        fuzzing.CheckpointError("x" * 10_000)),
}
found, root, sound = {}, [], fuzzing.Attacks
for name, act in bad.items():
    class Bad(sound):
        def __init__(self, folder):
            super().__init__(folder)
            root[:] = [str(folder)]
            self.calls = 0

        def draw(self, draw):
            self.calls += 1
            return ("bad", act) if self.calls == 11 else super().draw(draw)

    fuzzing.Attacks = Bad
    found[name] = fuzzing.fuzz(3, 0)["wrong"]
print(json.dumps(found))
"""


def test_what_must_not_happen_would_be_told() -> None:
    done = subprocess.run([sys.executable, "-c", SABOTAGE, str(FILE)], capture_output=True, text=True)
    assert done.stderr == ""
    for name, wrong in json.loads(done.stdout).items():
        assert len(wrong) == 1, name
        assert name in wrong[0]


# ----------------------------------------------------------------------------------------------------------- the source

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "copyreg", "yaml",
    "importlib", "imp", "runpy", "code", "codeop", "tarfile", "zipfile", "urllib", "http", "requests", "xml",
}  # fmt: skip
FORBIDDEN_NAMES = {
    "eval", "exec", "compile", "__import__", "import_module", "torch.load", "torch.save", "torch.jit.load",
    "numpy.load", "np.load", "os.system", "os.popen", "os.startfile", "torch.hub.load", "torch.package",
    "allow_pickle", "find_class",
}  # fmt: skip


def nodes(path: Path) -> list[ast.AST]:
    """The syntax of a file, but for what only the type checker sees."""
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return list(ast.walk(tree))


def reachable() -> list[Path]:
    """framework/checkpoint, and the files of the core that it imports, and they import."""
    found = sorted((ROOT / "framework" / "checkpoint").glob("*.py"))
    for path in found:  # which grows
        imports = [node for node in nodes(path) if isinstance(node, ast.ImportFrom)]
        names = [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
        for parts in (name.split(".") for name in names if name.startswith("framework.")):
            for place in (ROOT.joinpath(*parts), ROOT.joinpath(*parts[:-1])):
                for file in (place.with_suffix(".py"), place / "__init__.py"):
                    if file.is_file() and file not in found and file != ROOT / "framework" / "__init__.py":
                        found.append(file)
    return found


@pytest.mark.parametrize("path", reachable(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_reads_checkpoints_can_execute_what_it_reads(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES
            assert not {alias.name for alias in node.names} & FORBIDDEN_NAMES
            assert not {f"{node.module}.{alias.name}" for alias in node.names} & FORBIDDEN_NAMES
        elif isinstance(node, ast.Attribute | ast.Name):
            assert ast.unparse(node) not in FORBIDDEN_NAMES
        elif isinstance(node, ast.keyword):
            assert node.arg not in FORBIDDEN_NAMES


def test_the_codec_and_the_store_are_among_what_is_looked_at() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in reachable()}
    assert {f"framework/checkpoint/{name}.py" for name in ("codec", "tensors", "store", "files", "restore")} <= names
    assert {"framework/errors.py", "framework/device.py"} <= names
