"""Every built-in plugin is on in a run of two processes, by the command that a user types."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).with_name("recipe_plugins.py")
LABELS = ("classes", "plane", "numbers")
OF_THE_PROCESS = ("mib", "per_second", "seconds", "share")  # figures that are a process's own, by a part of their names


@pytest.fixture(scope="session")
def ended(torchrun: Callable[..., Any]) -> Any:
    return torchrun(
        "plugins", 2, "-m", "framework", str(FILE), "--run-dir", "run", "--device", "cpu", "-p", "distributed"
    )


def test_the_run_goes_through(ended: Any) -> None:
    assert ended.status == 0, ended.output
    assert [list(rank) for rank in ended.ranks] == [[*LABELS]] * 2


def test_no_built_in_plugin_is_left_out(ended: Any) -> None:
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    for rank in ended.ranks:
        assert {plugin for label in LABELS for plugin in rank[label]["plugins"]} >= {*recipe.BUILT_IN}


@pytest.mark.parametrize("label", LABELS)
def test_figures_and_weights_are_the_same_on_both_ranks(ended: Any, label: str) -> None:
    first, second = ended.case(label)
    assert first["weights"] == second["weights"]
    assert shared(first["history"]) == shared(second["history"])
    assert all(math.isfinite(value) for row in shared(first["history"]) for value in row.values())
    assert [row["epoch"] for row in first["history"]] == [0, 1]


def shared(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The figures of the model, without those of the process."""
    return [
        {name: value for name, value in row.items() if not any(part in name for part in OF_THE_PROCESS)} for row in rows
    ]
