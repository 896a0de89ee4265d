"""Which plugins there are: those of installed packages, files, classes. None becomes active by being found."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.errors import FrameworkError, PluginError, did_you_mean
from framework.hooks import HOOKS, attributes
from framework.modules import load_file

GROUP = "framework"  # the entry points of plugins, by name
DISTRIBUTION = "framework-trainer"


def available() -> dict[str, importlib.metadata.EntryPoint]:
    """The plugins that installed packages offer, by name. Nothing is imported, nothing becomes active."""
    return {point.name: point for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name)}


def owner(point: importlib.metadata.EntryPoint) -> str | None:
    """The distribution of an entry point; None in a damaged installation, where asking for its name may be an error."""
    return point.dist.metadata["Name"] if point.dist and "Name" in point.dist.metadata else None


def _point(name: str, own: bool = False) -> importlib.metadata.EntryPoint:
    """The entry point of an available plugin; `own`: of our own distribution, whoever else offers the name."""
    points = {point.value: point for point in importlib.metadata.entry_points(group=GROUP, name=name)}
    ours = [point for point in points.values() if owner(point) == DISTRIBUTION]
    found = (ours if own else []) or list(points.values())
    if not found:
        raise PluginError(f"there is no plugin {name!r}.{did_you_mean(name, available())}")
    if len(found) > 1:
        offers = " and by ".join(sorted(f"{origin(point)} ({point.value})" for point in found))
        raise PluginError(f"plugin {name!r} is offered twice: by {offers}; name the one you mean as module:Class")
    return found[0]


def origin(point: importlib.metadata.EntryPoint) -> str:
    """Distribution and version of an entry point."""
    known = owner(point)
    return f"{known} {point.dist.version}" if point.dist and known else "an unknown distribution"


@dataclass(eq=False)
class Listed:
    """One plugin at its place in the order: its unique name, the object, and where it was listed."""

    name: str
    plugin: Any
    listed: str = "list"
    distribution: str | None = None


def find(spec: Any, listed: str = "list") -> list[Listed]:
    """The plugins that one entry of a list stands for.

    Args:
        spec: an instance; or the name of an available plugin, a `.py` file, or `module:Class`
        listed: where it was listed, for the reader

    Raises:
        PluginError: no such plugin (with a suggestion), or it fails to import
    """
    if isinstance(spec, Listed):
        return [spec]
    if not isinstance(spec, str):
        return [Listed(name_of(spec), spec, listed)]
    if spec.endswith(".py"):
        check(spec)
        return [Listed(name_of(found), found, listed, spec) for found in _in_file(spec)]
    if ":" in spec:
        module, _, attribute = spec.partition(":")
        with _blamed_on(spec):
            holds = vars(importlib.import_module(module))
            if attribute not in holds:
                raise PluginError(f"{module} has no {attribute!r}.{did_you_mean(attribute, _classes(holds))}")
            found = _instance(holds[attribute])
        return [Listed(name_of(found), found, listed, module)]
    point = _point(spec, own=listed == "default")
    _refuse_mixed_versions(point)
    with _blamed_on(spec, origin(point)):
        found = _instance(point.load())
    return [Listed(spec, found, listed, origin(point))]


def several(specs: Any) -> list[Any]:
    """A list of plugins, also where a single one or None was given."""
    single = isinstance(specs, str) or not isinstance(specs, Iterable)
    return ([] if specs is None else [specs]) if single else list(specs)


def check(spec: Any) -> None:
    """Whether there is such a plugin, without importing it.

    Raises:
        PluginError: no plugin of this name (with a suggestion), no such file
    """
    if isinstance(spec, str) and spec.endswith(".py"):
        if not Path(spec).is_file():
            raise PluginError(f"there is no plugin file {spec!r}")
    elif isinstance(spec, str) and ":" not in spec:
        _point(spec)


def name_of(plugin: Any) -> str:
    """The attribute `name` if there is one, a module's own name, else the class name in snake_case."""
    if isinstance(plugin, types.ModuleType):
        return plugin.__name__.rpartition(".")[2]
    name = getattr(plugin, "name", None)
    if isinstance(name, str) and name:
        return name
    kind = plugin if isinstance(plugin, type) else type(plugin)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()


@contextlib.contextmanager
def _blamed_on(name: str, distribution: str = "") -> Iterator[None]:
    """Turns any failure to import or to build a plugin into one sentence that names it."""
    what = f"plugin {name!r}" + (f" of {distribution}" if distribution else "")
    try:
        yield
    except FrameworkError as error:
        raise PluginError(f"{what}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() and pytest.skip() are no Exception
        raise PluginError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error


def _instance(found: Any) -> Any:
    return found() if isinstance(found, type) else found


def _in_file(path: str) -> list[Any]:
    """A file's plugins: the module if it defines hooks, and every class in it that does, misspelt ones too."""
    with _blamed_on(path):
        module = load_file(Path(path))
        here = [c for c in _classes(vars(module)).values() if c.__module__ == module.__name__ and _has_hooks(c)]
        found = [module] if attributes(module) else []
        found += [_instance(c) for c in here if not any(c is not other and issubclass(other, c) for other in here)]
    if not found:
        raise PluginError(f"{path} defines no hook and no class with one. python -m framework hooks lists them")
    return found


def _classes(names: Mapping[str, Any]) -> dict[str, type]:
    return {name: c for name, c in names.items() if isinstance(c, type) and not name.startswith("_")}


def _has_hooks(found: type) -> bool:
    """Whether a class of a file is meant as a plugin; a model or a data set of torch is only with an `on_` hook."""
    of_torch = any(base.__module__.partition(".")[0] == "torch" for base in found.__mro__)
    names = [name for name in dir(found) if name.startswith("on_") or (name in HOOKS and not of_torch)]
    return any(callable(getattr(found, name)) for name in names)


def _refuse_mixed_versions(point: importlib.metadata.EntryPoint) -> None:
    from framework import __version__

    if point.dist and owner(point) == DISTRIBUTION and point.dist.version != __version__:
        raise PluginError(
            f"framework {__version__} was imported from {Path(__file__).parent}, but the installed plugins are of "
            f"version {point.dist.version}: install both together, pip install -e ."
        )
