"""Every optimizer of torch.optim with every scheduler: killed in the middle of an epoch, twice, and resumed.

The cases are those of benchmarks/resume.py, which draws thousands of them at random.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

FILE = Path(__file__).parents[3] / "benchmarks" / "resume.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resume", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["resume"] = module  # where dataclasses look up their types
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["resume"]
    return module


resume = load()


def test_no_optimizer_and_no_scheduler_of_torch_is_left_out() -> None:
    optimizers = {name for name, found in vars(torch.optim).items() if isinstance(found, type)} - {"Optimizer"}
    assert set(resume.OPTIMIZERS) == optimizers
    assert set(resume.SCHEDULERS) == {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.parametrize("scheduler", resume.SCHEDULERS)
@pytest.mark.parametrize("optimizer", resume.OPTIMIZERS)
def test_killed_twice_mid_epoch_it_ends_as_if_left_alone(
    oracle: Any, tmp_path: Path, optimizer: str, scheduler: str
) -> None:
    case = resume.Case(optimizer, scheduler, kills=((2, 0), (4, 1)))  # of three steps an epoch
    alone = resume.fit(case, resume.trainer(case))
    oracle.assert_same(alone, resume.killed(case, tmp_path))


@pytest.mark.parametrize("scheduler", resume.SCHEDULERS)
def test_a_fit_is_long_enough_for_its_scheduler_to_move_the_rate(scheduler: str) -> None:
    ended = resume.fit(case := resume.Case("SGD", scheduler), resume.trainer(case))
    assert ended["optimizer"]["param_groups"][0]["lr"] != resume.OPTIMIZERS["SGD"]["lr"]
