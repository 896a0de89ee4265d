"""What all tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


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
