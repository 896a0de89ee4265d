"""What the tests of the checkpoints share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def disk() -> ModuleType:
    """tests/framework/checkpoint/disk.py: disks that fail."""
    spec = importlib.util.spec_from_file_location("disk", Path(__file__).with_name("disk.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["disk"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
