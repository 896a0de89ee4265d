"""A recipe to begin with, and a plugin as a package of its own with its tests: both work as they are written."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import os
import re
import tempfile
from pathlib import Path
from string import Template
from typing import Literal

from framework import UsageError, write_whole

RECIPE = '''\
"""My lab: what it shows, in a line.

What one sees in it, in a few sentences. Whatever is behind "Next:" is what the program proposes at the end of a run.

Next: --hidden 2
Next: --lr 0.001
"""

import torch
from framework import Recipe, Trainer
from torch import Tensor, nn


def points(count: int) -> tuple[Tensor, Tensor]:
    """Points of the plane in two classes, in the middle and around it. Your data goes here.

    A pair of tensors (x, y), a Dataset or a DataLoader will do.
    """
    x = torch.randn(count, 2)
    return x, (x.norm(dim=1) > 1.2).long()


# The arguments are the knobs: python -m framework $name.py --lr 0.001 --hidden 64
# Each needs a type and a default, and what "Args:" says of it is its help. The seed is set before recipe() is called,
# so that the same data and the same first weights are drawn again.
def recipe(lr: float = 0.01, epochs: int = 20, batch_size: int = 50, hidden: int = 16) -> Recipe:
    """
    Args:
        lr: learning rate of Adam
        epochs: passes over the training data
        batch_size: samples in a batch
        hidden: nodes of the hidden layer
    """
    model = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    return Recipe(
        model=model,  # any nn.Module
        loss=nn.CrossEntropyLoss(),  # any function of the model's output and y
        optimizer=torch.optim.Adam(model.parameters(), lr=lr),
        train=points(1000),
        val=points(500),  # looked at after each epoch; it chooses the best weights
        epochs=epochs,
        batch_size=batch_size,
        plugins=["accuracy"],  # names, or instances with settings; python -m framework plugins lists them
        class_names=["middle", "around"],  # for python -m framework predict
    )


# A recipe file is a plugin too: a function with the name of a hook is called. python -m framework hooks lists them.
def on_fit_end(trainer: Trainer) -> None:
    sure = trainer.predict(torch.zeros(1, 2)).softmax(dim=1)[0, 0]
    print(f"middle    {sure:.4f} is the probability that (0, 0) is in the middle")
'''

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$dist"
version = "0.1.0"
description = "A plugin of framework-trainer: the largest loss of each epoch."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["framework-trainer>=$version"]

[project.optional-dependencies]
test = ["pytest>=8"]

# The name by which a run takes it, and what it stands for. Installing it makes it available, never active.
[project.entry-points.framework]
$name = "$name:$Class"

[tool.setuptools.package-data]
$name = ["py.typed"]

[tool.mypy]
strict = true
untyped_calls_exclude = ["torch"]
"""

PLUGIN = '''\
"""The largest loss of each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from framework import Trainer, hookimpl
from torch import Tensor


class $Class:
    """Adds `largest_loss`, the largest loss of a training batch in each epoch.

    A plugin is a plain class with methods that are named like hooks (python -m framework hooks). A hook asks by name
    for the arguments that it wants, and a misspelt one is an error as soon as the plugin is listed.
    """

    def __init__(self, name: str = "$name") -> None:
        self.name = name  # settings are arguments, each with a default, so that the name is enough behind -p

    def metric_names(self, split: str) -> list[str]:
        # Promised before the first epoch, so that another plugin can be told to follow the figure.
        return ["largest_loss"] if split == "train" else []

    def on_fit_start(self, trainer: Trainer) -> None:
        # What a run needs is made here, so that an instance can be used again.
        self._largest = torch.tensor(-math.inf, device=trainer.device)

    @hookimpl(split="train")
    def on_split_start(self) -> None:
        self._largest = torch.full_like(self._largest, -math.inf)

    @hookimpl(split="train")
    def on_batch_end(self, loss: Tensor) -> None:
        # Called for each batch: float(loss), loss.item() and print(loss) would wait for the GPU each time.
        self._largest = torch.maximum(self._largest, loss)

    @hookimpl(split="train")
    def on_split_end(self, metrics: MutableMapping[str, float]) -> None:
        metrics["largest_loss"] = float(self._largest)

    # A run can be stopped after any step and resumed, in the middle of an epoch too, whose on_split_start is not called
    # again. What is added up in an epoch belongs into the state: numbers, text, lists, dicts, tensors.
    def state_dict(self) -> dict[str, Any]:
        return {"largest": self._largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._largest = state["largest"].to(self._largest.device)
'''

TEST = '''\
"""What every plugin wants to be tested for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from framework import Trainer
from framework.testing import tiny_data, tiny_trainer
from torch.nn.functional import mse_loss

from $name import $Class

SIZES: dict[str, Any] = {"epochs": 2, "batch_size": 2, "shuffle": False}


def test_it_says_what_a_loop_by_hand_says() -> None:
    x, y = tiny_data()
    trainer = tiny_trainer()  # only for its model and its optimizer
    largest = []
    for _ in range(2):
        losses = []
        for start in range(0, len(x), 2):
            trainer.optimizer.zero_grad()
            loss = mse_loss(trainer.model(x[start : start + 2]), y[start : start + 2])
            loss.backward()
            trainer.optimizer.step()
            losses.append(loss.item())
        largest.append(max(losses))
    result = tiny_trainer(plugins=[$Class()]).fit(tiny_data(), **SIZES)
    assert [row["largest_loss"] for row in result.history] == largest


def test_it_changes_nothing_of_the_training() -> None:
    watched, alone = tiny_trainer(plugins=[$Class()]), tiny_trainer()
    for trainer in (watched, alone):
        trainer.fit(tiny_data(), **SIZES)
    for one, other in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_instance_can_be_used_again() -> None:
    plugin = $Class()
    first, second = (tiny_trainer(plugins=[plugin]).fit(tiny_data(), **SIZES) for _ in range(2))
    assert first.history == second.history


class StopAfter:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


@pytest.mark.parametrize("step", range(1, 6))
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_was_not(step: int, tmp_path: Path) -> None:
    whole = tiny_trainer(plugins=[$Class()]).fit(tiny_data(), **SIZES)
    tiny_trainer(plugins=[$Class(), StopAfter(step)], run_dir=tmp_path).fit(tiny_data(), **SIZES)
    resumed = tiny_trainer(plugins=[$Class()]).fit(tiny_data(), **SIZES, resume=tmp_path)
    assert resumed.history == whole.history


def test_it_is_found_by_its_name() -> None:
    result = tiny_trainer(plugins=["$name"]).fit(tiny_data(), **SIZES)
    assert "largest_loss" in result.history[-1]
'''

README = """\
# $dist

A plugin of framework-trainer: the largest loss of each epoch, in the table, the curves and `metrics.jsonl`.

    pip install -e ".[test]"
    python -m framework softmax -p $name
    python -m pytest

The plugin is `src/$name/__init__.py`. `pyproject.toml` offers it under its name.
"""


def new(kind: Literal["recipe", "plugin"], name: str, to: str = "") -> None:
    """Write a recipe or a plugin to begin with: new recipe NAME, new plugin NAME.

    A recipe is a file, NAME.py, that runs at once. A plugin is a package in a folder NAME, with its tests.

    Args:
        kind: recipe or plugin
        name: of the module, such as my_lab
        to: the folder to write it in; by default this one

    Raises:
        UsageError: no name for a module, one that is taken, or a file that is there already; nothing is written then
    """
    name = name.removesuffix(".py")
    target = Path(to) / (f"{name}.py" if kind == "recipe" else name)
    _check(kind, name, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "recipe":
            write_whole(target, _filled(RECIPE, name))
        else:
            _write_package(name, target)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from error
    print(f"written   {target}{os.sep if kind == 'plugin' else ''}")
    shown = f'"{target}"' if " " in str(target) else target
    if kind == "recipe":
        print(f"next      python -m framework {shown}")
    else:
        print(f"next      pip install -e {shown}", f"python -m framework softmax -p {name}", sep="\n          ")
        print(f"          python -m pytest {shown}")


def _check(kind: str, name: str, target: Path) -> None:
    wrong = not name.isidentifier() or keyword.iskeyword(name)
    if wrong or (kind == "plugin" and not re.fullmatch("[a-z][a-z0-9_]*", name)):
        letters = "letters" if kind == "recipe" else "small letters from a to z"
        better = re.sub(r"\W", "_", name if kind == "recipe" else name.lower(), flags=re.ASCII).strip("_")
        raise UsageError(
            f"{name!r} cannot be the name of a {kind}: {letters}, digits and _, with a letter first, such as "
            f"{better if better.isidentifier() and not keyword.iskeyword(better) else f'my_{better or kind}'}"
        )
    if target.exists():
        raise UsageError(f"{target} is there already; nothing was written")
    taken = ""
    if kind == "recipe" and importlib.util.find_spec(f"framework_recipes.{name}"):
        taken = "a recipe that came with the framework"
    elif kind == "plugin" and (points := [*importlib.metadata.entry_points(group="framework", name=name)]):
        taken = f"a plugin of {points[0].dist.name if points[0].dist else 'an installed package'}"
    elif importlib.util.find_spec(name):
        taken = "a Python module that is there already"
    if taken:
        raise UsageError(f"{name} is the name of {taken}; choose another, such as my_{name}")


def _write_package(name: str, target: Path) -> None:
    """Write the files beside the target, and give the folder its name when all are there."""
    files = {
        "pyproject.toml": PYPROJECT, "README.md": README, f"src/{name}/__init__.py": PLUGIN, f"src/{name}/py.typed": "",
        f"tests/test_{name}.py": TEST,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as beside:
        folder = Path(beside, name)
        for file, text in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled(text, name), encoding="utf-8", newline="\n")
        os.rename(folder, target)


def _filled(text: str, name: str) -> str:
    class_name = "".join(part.capitalize() for part in name.split("_"))
    version = ".".join(importlib.metadata.version("framework-trainer").split(".")[:2])
    return Template(text).substitute(name=name, Class=class_name, dist=name.replace("_", "-"), version=version)
