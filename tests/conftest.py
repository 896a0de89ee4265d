"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch

FIND = PathFinder.__dict__["find_distributions"]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the real MNIST, which recipes find in FRAMEWORK_DATA; a test is skipped where there is none."""
    root = Path(os.environ.get("FRAMEWORK_DATA") or DATA)
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        reason = f"MNIST is not in {root}; fetch it with: python -m framework data fetch mnist --to {root}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    monkeypatch.setenv("FRAMEWORK_DATA", str(root))
    return root


@pytest.fixture(autouse=True)
def _the_same_draws_each_time() -> None:
    """Else a test whose numbers are not its point would fail once in a thousand runs."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _metadata_by_the_standard_library() -> Iterator[None]:
    """The package importlib_metadata, which MLflow imports, puts its own finder in the place of Python's."""
    yield
    if FIND is not PathFinder.__dict__.get("find_distributions"):
        PathFinder.find_distributions = FIND  # type: ignore[method-assign]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "importlib_metadata"]


@pytest.fixture(autouse=True)
def _forget_loaded_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A recipe or plugin file that a test loads is gone after it: from sys.modules, and its folder from sys.path."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    scratch = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and str(Path(file).resolve()).startswith(scratch):
            del sys.modules[name]
