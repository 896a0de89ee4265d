"""The structure: who imports whom, how large things may be, what is public."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = [  # each imports only those before it
    "errors", "modules", "hooks", "discovery", "plugins", "device", "architecture", "seed", "mistakes.case",
    "mistakes.labels", "mistakes.layers", "mistakes.samples", "mistakes.memory", "mistakes.nonfinite",
    "mistakes.first", "mistakes", "data", "metrics", "engine.private", "engine.losses", "engine.prefetch",
    "engine.vision", "engine.samples", "engine.loader", "engine.optimizers", "engine.step", "engine.graph",
    "engine.memory", "engine.precision", "engine.engine", "engine", "checkpoint.files", "checkpoint.runlock",
    "checkpoint.processes", "checkpoint.codec", "checkpoint.tensors", "checkpoint.snapshot", "checkpoint.contents",
    "checkpoint.store", "checkpoint.restore", "checkpoint.place", "checkpoint.writer", "checkpoint", "loop",
    "trainer", "recipe", "testing", "cli.pictures", "cli.rundir", "cli.lab", "cli", "cli.options", "cli.building",
    "cli.signals", "cli.running", "cli.show", "cli.train", "cli.resume",
]  # fmt: skip

spec = importlib.util.spec_from_file_location("budget", Path(__file__).with_name("budget.py"))
assert spec is not None
assert spec.loader is not None
budget = importlib.util.module_from_spec(spec)
spec.loader.exec_module(budget)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "framework").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """What a file imports, as dotted names; what is only for the type checker is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def home(name: str) -> str | None:
    """The module of the core that a dotted name is of or in."""
    import framework

    parts = framework._HOMES.get(name.split(".")[1], name.partition(".")[2]).split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ORDER:
            return ".".join(parts[:length])
    return None


def test_the_core_imports_strictly_downward():
    for path in files("framework"):
        module = module_of(path)
        if module in ("", "__main__"):
            continue
        # cli/__init__ loads its verbs when one is asked for; nothing else may look upward, not even inside a function
        found = imported(path, top_level_only=module == "cli")
        for name in found:
            other = home(name) if name.startswith("framework.") else None
            if other is not None and other != module:
                assert ORDER.index(other) < ORDER.index(module), f"{module} imports {name}"


def test_the_core_imports_neither_plugins_nor_recipes():
    for path in files("framework"):
        assert not [name for name in imported(path) if name.startswith(("framework_plugins", "framework_recipes"))]


def test_plugins_import_only_public_names_and_never_each_other():
    import framework

    public = {f"framework.{name}" for name in framework.__all__}
    for path in files("plugins/framework_plugins"):
        for name in imported(path):
            assert not name.startswith("framework_plugins"), f"{path.name} imports {name}"
            assert not name.startswith("framework.") or name in public, f"{path.name} imports {name}"


def test_recipes_import_only_the_framework_and_its_plugins():
    import framework

    public = {f"framework.{name}" for name in framework.__all__}
    for path in files("recipes"):
        for name in imported(path):
            assert not name.startswith("framework.") or name in public, f"{path.name} imports {name}"


def test_no_file_of_the_core_names_a_plugin():
    home = ROOT / "plugins/framework_plugins"
    names = {path.relative_to(home).parts[0].removesuffix(".py") for path in files("plugins/framework_plugins")}
    names -= {"__init__", "accuracy"}  # a figure's name too
    for path in files("framework"):
        words = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not names & words, f"{path.name} names {names & words}"


@pytest.mark.parametrize(
    ("folder", "lines"),
    [
        ("framework", 1500),
        ("framework/mistakes", 400),
        ("framework/engine", 1350),
        ("framework/checkpoint", 1350),
        ("framework/cli", 1215),
    ],
)
def test_a_folder_stays_within_its_budget(folder, lines):
    total = sum(len(budget.code_lines(path.read_text("utf-8"))) for path in (ROOT / folder).glob("*.py"))

    assert total <= lines


def test_no_file_is_above_300_lines_and_no_function_above_60():
    for path in (*files("framework"), *files("plugins"), *files("recipes")):
        source = path.read_text(encoding="utf-8")
        assert len(budget.code_lines(source)) <= 300, path
        for name, lines in budget.functions(source).items():
            assert lines <= 60, f"{path}: {name}"


def test_the_public_names_are_sorted_and_importable():
    import framework

    stub = ast.parse((ROOT / "framework" / "__init__.pyi").read_text(encoding="utf-8"))
    told = [alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]

    assert framework.__all__ == sorted(framework.__all__) == sorted(told)
    for name in framework.__all__:
        found = getattr(framework, name)
        assert found.__module__.startswith("framework.") or typing.get_origin(found) is typing.Annotated


@pytest.mark.parametrize("folder", ["framework", "framework_plugins"])
def test_every_module_imports_alone_with_warnings_as_errors(folder):
    base = ROOT / ("framework" if folder == "framework" else "plugins/framework_plugins")
    names = [
        ".".join((folder, *path.relative_to(base).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(base.rglob("*.py"))
        if path.name != "__main__.py"
    ]
    script = (  # one process forks a child for each module, so that torch is not read from the disk each time
        "import importlib, os, sys\n"
        "import torch\n"
        "for name in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        importlib.import_module(name)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1] != 0:\n"
        "        sys.exit(name + ' does not import alone')\n"
    )
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("needs os.fork")
    done = subprocess.run([sys.executable, "-W", "error", "-c", script, *names], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_nothing_private_of_torch_is_used_outside_of_the_module_for_it():
    private = ROOT / "framework" / "engine" / "private.py"
    for path in {*files("framework"), *files("plugins"), *files("recipes")} - {private}:
        for name in imported(path):
            assert not (name.startswith("torch.") and "._" in name), f"{path.name} imports {name}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                assert not ast.unparse(node).startswith("torch."), f"{path.name}: {ast.unparse(node)}"


def test_every_package_is_in_the_wheel():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    folders = [path.parent for home in ("", "plugins") for path in (ROOT / home).glob("framework*/**/__init__.py")]

    assert {".".join(folder.relative_to(ROOT).parts).removeprefix("plugins.") for folder in folders} <= set(told)
