"""Recipes on the command line: finding the function, reading its knobs from its signature, calling it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from framework.errors import FrameworkError, RecipeError, did_you_mean
from framework.modules import RECIPES, installed, load_file
from framework.recipe import Recipe

OWNED = (
    "config", "deterministic", "device", "dry_run", "help", "plugin", "plugins", "quiet", "recipe", "resume", "run_dir",
    "seed", "verbose", "version",
)  # fmt: skip


@dataclass
class Lab:
    """A recipe function with what is known of it: name, first line of its docstring, file."""

    name: str
    function: Callable[..., Any]
    module: ModuleType | None = None

    @property
    def file(self) -> str | None:
        return str(Path(self.module.__file__).resolve()) if self.module and self.module.__file__ else None

    @property
    def documentation(self) -> str:
        return inspect.getdoc(self.module) or inspect.getdoc(self.function) or ""

    @property
    def title(self) -> str:
        return self.documentation.partition("\n")[0]

    @property
    def draws(self) -> bool:
        """Whether the recipe asks for `run_dir`, as one that trains nothing may: the directory for its pictures."""
        asked = inspect.signature(self.function).parameters.get("run_dir")
        return asked is not None and asked.default is asked.empty

    @property
    def knobs(self) -> dict[str, inspect.Parameter]:
        """The arguments of the recipe but `run_dir`; each has a default, which tells its type.

        Raises:
            RecipeError: one has no default, or a name that the command line owns
        """
        asked = inspect.signature(self.function).parameters
        found = {name: parameter for name, parameter in asked.items() if not (self.draws and name == "run_dir")}
        for name, parameter in found.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise RecipeError(f"{self.name}: recipe() takes {parameter}; knobs are named arguments with a default")
            if parameter.default is parameter.empty:
                raise RecipeError(f"{self.name}: the knob {name!r} of recipe() needs a default")
            if name in OWNED:
                raise RecipeError(
                    f"{self.name}: the knob {name!r} of recipe() has a name that the command line owns; "
                    f"those are {', '.join(OWNED)}"
                )
        return found

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every knob with its value: as given, else its default.

        Raises:
            RecipeError: no such knob; with a suggestion
        """
        knobs = self.knobs
        for name in given:
            if name not in knobs:
                there = did_you_mean(name, knobs) or " It has none."
                raise RecipeError(f"the recipe {self.name} has no knob {name!r}.{there}")
        return {name: given.get(name, parameter.default) for name, parameter in knobs.items()}

    def make(self, settings: Mapping[str, Any]) -> Any:
        """Call the recipe: a Recipe, a mapping of label to what makes its Recipe, or None.

        Raises:
            RecipeError: it raised, or returned something else
        """
        with _blamed_on(self.name, self.file):
            made = self.function(**settings)
        if isinstance(made, Mapping):
            if not made:
                raise RecipeError(f"{self.name}: recipe() returned an empty dict: there is nothing to train")
            for label, variant in made.items():
                _check_label(self.name, label)
                if not callable(variant):
                    self.checked(variant)
            return {label: self._building(variant) for label, variant in made.items()}
        return made if made is None else self.checked(made)

    def draw(self, settings: Mapping[str, Any], run_dir: Path) -> None:
        """Call a recipe that trains nothing and draws into `run_dir`.

        Raises:
            RecipeError: it raised, or returned something
        """
        with _blamed_on(self.name, self.file):
            made = self.function(run_dir=run_dir, **settings)
        if made is not None:
            raise RecipeError(
                f"{self.name}: recipe() asks for run_dir, so it must train nothing and return None; it returned "
                f"{_shown(made)}. Plugins and hooks find the directory as trainer.run_dir"
            )

    def _building(self, variant: Any) -> Callable[[], Recipe]:
        def build() -> Recipe:
            with _blamed_on(self.name, self.file):
                return self.checked(variant() if callable(variant) else variant)

        return build

    def checked(self, made: Any) -> Recipe:
        """`made`, if it is a Recipe."""
        if not isinstance(made, Recipe):
            raise RecipeError(
                f"{self.name}: recipe() must return a Recipe, a dict of them, or None; it returned {_shown(made)}"
            )
        return made


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) < 60 else f"a {type(value).__name__}"


def _check_label(name: str, label: Any) -> None:
    if not isinstance(label, str) or not label.strip(" .") or any(c in '/\\:*?"<>|' or ord(c) < 32 for c in label):
        raise RecipeError(f"{name}: the label {label!r} must be a text that can name a directory")


def find_lab(recipe: str | Path | Callable[..., Any] | Lab) -> Lab:
    """The recipe that is meant: a file, the name of an installed one, or the function itself.

    Raises:
        RecipeError: it is not there, cannot be imported, or has no function `recipe`
    """
    if isinstance(recipe, Lab):
        return recipe
    if callable(recipe):
        return Lab(getattr(recipe, "__name__", type(recipe).__name__).strip("<>"), recipe)  # of <lambda>
    path, name = Path(recipe), str(recipe)
    if path.suffix != ".py" and name in installed():
        with _blamed_on(name, None):
            module = importlib.import_module(f"{RECIPES}.{name}")
    elif path.is_file():
        name = path.stem
        with _blamed_on(str(recipe), str(path.resolve())):
            module = load_file(path)
    else:
        names = [str(other) for other in path.parent.glob("*.py")] if path.suffix == ".py" else installed()
        raise RecipeError(f"there is no recipe {name!r}.{did_you_mean(name, names) if names else ''}")
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise RecipeError(f"{recipe} has no function recipe(); it must define one that returns a Recipe")
    return Lab(name, function, module)


@contextlib.contextmanager
def _blamed_on(name: str, file: str | None) -> Iterator[None]:
    """Turns what a recipe file raises into one sentence with the line of the file."""
    try:
        yield
    except SyntaxError as error:
        place = name if error.filename in (None, file) else error.filename  # or a file that the recipe imports
        raise RecipeError(f"{place}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}") from error
    except FrameworkError:
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if file and frame.filename == file]
        where = f", line {frames[-1].lineno} ({frames[-1].line})" if frames else ""
        raise RecipeError(f"{name}{where}: {type(error).__name__}: {error}") from error
