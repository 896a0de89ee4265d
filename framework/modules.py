"""Files as modules: a user's recipe or plugin, which worker processes can import again, and the installed recipes."""

from __future__ import annotations

import contextlib
import gc
import importlib.machinery
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

from framework.errors import UsageError

RECIPES = "framework_recipes"  # the package of the installed recipes

_loaded: dict[str, Path] = {}


def load_file(path: Path) -> ModuleType:
    """Run a Python file as the module of its own name, with its folder first on sys.path.

    A worker process that is spawned (Windows, macOS) gets sys.path and imports the module by name: so a Dataset
    defined in the file can be pickled. Loading a file again runs it again.

    Raises:
        UsageError: the name is not importable, or is that of a module which is already something else
        Exception: whatever the file itself raises
    """
    path = path.resolve()
    name = path.stem
    if path.suffix != ".py":
        raise UsageError(f"{path.name} is not a Python file: its name must end in .py")
    if not name.isidentifier():
        raise UsageError(
            f"{path.name}: the name of the file must be a Python identifier, such as {_identifier(name)}.py"
        )
    taken = name in sys.modules and name not in _loaded
    if taken or name in sys.stdlib_module_names:
        raise UsageError(f"{path.name} has the name of the module {name!r}; rename it, such as my_{name}.py")
    folder = str(path.parent)
    sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        if before is not None:
            sys.modules[name] = before
        raise
    _loaded[name] = path
    return module


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles what the file says now: a cached .pyc is taken for current by the second and the size alone."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _identifier(name: str) -> str:
    safe = "".join(letter if letter.isalnum() or letter == "_" else "_" for letter in name)
    return safe if safe.isidentifier() else f"lab_{safe}"


def installed() -> list[str]:
    """The names of the recipes that came with the framework. None of them is imported."""
    spec = importlib.util.find_spec(RECIPES)
    places = list(spec.submodule_search_locations or []) if spec else []
    return sorted(module.name for module in pkgutil.iter_modules(places))


def installed_file(name: str) -> Path:
    """The file of an installed recipe."""
    spec = importlib.util.find_spec(f"{RECIPES}.{name}")
    assert spec is not None
    return Path(str(spec.origin))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Imports without the garbage collector, which would look through all that is there each time, for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
