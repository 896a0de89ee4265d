"""Every recipe that trains, on two and on four processes, against one process.

Weights are of single precision here, and the sum of two parts is rounded in another way than that of the whole: after
two epochs what is compared is equal to about one part in 10,000.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

spec = importlib.util.spec_from_file_location("worker_recipes", Path(__file__).with_name("worker_recipes.py"))
assert spec is not None
assert spec.loader is not None
worker = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

MASKS = "each rank draws masks of its own for its rows, as it must"
OWN_ROWS = "batch normalization takes mean and deviation of a rank's own rows, as under DDP"
OTHER = {  # variants whose numbers are others than those of one process, and why
    ("batch_norm", "with batch norm"): OWN_ROWS,
    ("dropout", "p = 0.5"): MASKS,
    ("overfitting", "dropout"): MASKS,
    ("overfitting", "batch norm"): OWN_ROWS,
}
REFUSED = {  # variants that several processes cannot train, with what is told
    ("gradient_descent", "by hand"): "after epoch 0 the weights of rank 1 are not those of rank 0 any more",
}
CASES = [*((2, name) for name in worker.TRAIN), *((4, name) for name in worker.FEW)]

every_recipe = pytest.mark.parametrize(("world", "name"), CASES, ids=[f"{name}-on-{world}" for world, name in CASES])


@pytest.fixture
def ranks(torchrun: Callable[..., Any], world: int, name: str, request: pytest.FixtureRequest) -> list[Any]:
    """What each rank has found of a recipe: a dict of its variants."""
    if name.startswith("mnist"):
        request.getfixturevalue("mnist")
    return torchrun("worker_recipes" if world == 2 else "worker_numbers", world).case(name)


@cache
def alone(name: str) -> Any:
    """The same recipe on this process."""
    return worker.trained(name, [])


@every_recipe
def test_a_recipe_gives_the_figures_of_one_process(ranks: Any, name: str) -> None:
    wanted = alone(name)
    for rank in ranks:
        assert list(rank) == list(wanted), rank
        for label, found in rank.items():
            if (name, label) in REFUSED:
                assert REFUSED[name, label] in found["error"]
            elif (name, label) in OTHER:
                assert figures(found) != pytest.approx(figures(wanted[label]), rel=1e-4)
                assert all(map(math.isfinite, figures(found).values()))
            else:
                assert "error" not in found, found["error"]
                assert figures(found) == pytest.approx(figures(wanted[label]), rel=1e-4, abs=1e-6, nan_ok=True)
                assert found["kept"] == wanted[label]["kept"]


@every_recipe
def test_all_ranks_tell_the_same(ranks: Any) -> None:
    first, *others = ({label: {**found, "error": ""} for label, found in rank.items()} for rank in ranks)
    assert all(repr(other) == repr(first) for other in others)


def figures(found: Any) -> dict[str, float]:
    """All numbers of a variant: those of each epoch, those of the test set, and how large its weights are."""
    rows = {f"{name} of epoch {row['epoch']}": value for row in found["history"] for name, value in row.items()}
    return {**rows, **found["test"], **{f"weights {index}": size for index, size in enumerate(found["size"])}}


def test_the_ranks_go_through_all_recipes(torchrun: Callable[..., Any]) -> None:
    ended = torchrun("worker_recipes", 2)
    assert ended.status == 0, ended.output


@pytest.mark.usefixtures("mnist")
def test_the_convolutional_network_reaches_its_figure(torchrun: Callable[..., Any]) -> None:
    """That of its first epoch; that of both takes a minute: the same command without --epochs."""
    words = (
        "-m",
        "framework",
        "mnist_cnn",
        "--epochs",
        "1",
        "--run-dir",
        "run",
        "--device",
        "cpu",
        "-p",
        "distributed",
    )
    ended = torchrun("mnist_cnn", 2, *words)
    assert ended.status == 0, ended.output
    info = json.loads((ended.folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert info["epochs"] == 1
    assert info["test"]["test_accuracy"] >= 0.98


def test_no_recipe_is_left_out() -> None:
    from framework.cli.lab import find_lab

    draw = [name for name in worker.installed() if find_lab(worker.installed_file(name)).draws]
    assert draw == [*worker.DRAW]
