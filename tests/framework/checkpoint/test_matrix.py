"""Every optimizer of torch.optim with every scheduler: killed in the middle of an epoch, twice, and resumed.

The cases are those of benchmarks/resume.py, which draws thousands of them at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import resume
import torch
from torch.optim import lr_scheduler


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
