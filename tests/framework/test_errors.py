"""The exception tree, and the suggestion for a name that was misspelt."""

from __future__ import annotations

import inspect
import re

import pytest

import framework
from framework import errors
from framework.errors import did_you_mean


def test_the_tree_is_the_one_that_the_docstring_draws() -> None:
    drawing = (errors.__doc__ or "").partition("::\n\n")[2]
    drawn: dict[str, str] = {}
    last: dict[int, str] = {-1: "Exception"}
    for line in drawing.splitlines():
        indent, name = re.match(r"([ |]*(?:\+-- )?)(\w+)", line).groups()
        depth = len(indent) // 4 - 1
        drawn[name], last[depth] = last[depth - 1], name
    found = {
        name: thing.__mro__[1].__name__
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, Exception)
    }
    assert found == drawn


@pytest.mark.parametrize("name", ["RecipeError", "PluginError", "DataError", "DeviceError", "RunDirError"])
def test_the_users_mistakes_are_value_errors(name) -> None:
    error = getattr(framework, name)
    assert issubclass(error, framework.UsageError)
    assert issubclass(error, ValueError)
    assert issubclass(error, framework.FrameworkError)


@pytest.mark.parametrize("name", ["NonFiniteError", "CheckpointError"])
def test_a_failed_training_is_no_mistake_of_the_user(name) -> None:
    error = getattr(framework, name)
    assert issubclass(error, framework.FrameworkError)
    assert not issubclass(error, framework.UsageError)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("acuracy", ["accuracy", "plot"], " Did you mean 'accuracy'?"),
        ("zzz", ["b", "a"], " There is: a, b."),
        ("zzz", [], ""),
        ("", ["a"], " There is: a."),
        ("val_los", ("val_loss", "train_loss", "val_loss"), " Did you mean 'val_loss'?"),
    ],
)
def test_the_nearest_name_is_suggested_else_all_are_listed(name, known, expected) -> None:
    assert did_you_mean(name, known) == expected
