"""Exact resume: `python benchmarks/resume.py --cases 5000`.

Each case is a small fit with random settings: an optimizer of torch.optim, a scheduler of torch.optim.lr_scheduler, batch
size, shuffling, accumulation, dropout, batch normalization, validation, data that draws from every generator. It is run
once without a break, and once killed at random steps, each time resumed by objects that are made anew. Some kills come
steps after the last checkpoint, so that these are taken again. The two must end alike in every bit: model, optimizer,
scheduler, random states, modes, rows.

`--case N` runs one and tells its settings; the number is the seed. 5,000 cases take about ten minutes on one core. It
ends with 1 if a case differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy
import torch
from framework_plugins.closure import Closure
from framework_plugins.schedule import Schedule
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.utils.data import Dataset, TensorDataset

from framework import Trainer

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adadelta": {"lr": 0.5}, "Adafactor": {"lr": 0.02}, "Adagrad": {"lr": 0.1}, "Adam": {"lr": 0.02, "amsgrad": True},
    "AdamW": {"lr": 0.02}, "Adamax": {"lr": 0.02}, "ASGD": {"lr": 0.05, "t0": 2}, "LBFGS": {"lr": 0.2, "max_iter": 3},
    "Muon": {"lr": 0.02}, "NAdam": {"lr": 0.02}, "RAdam": {"lr": 0.02}, "RMSprop": {"lr": 0.01, "momentum": 0.5},
    "Rprop": {"lr": 0.01}, "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True}, "SparseAdam": {"lr": 0.02},
}  # fmt: skip


def chained(optimizer: Optimizer) -> Any:
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


def sequential(optimizer: Optimizer) -> Any:
    """The second of the three begins with what torch does for no other: a step to an epoch that is told."""
    parts = [lr_scheduler.LinearLR(optimizer, 0.3, total_iters=2), lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.5)]
    return lr_scheduler.SequentialLR(optimizer, [*parts, lr_scheduler.ExponentialLR(optimizer, 0.9)], [2, 6])


def momentum(optimizer: Optimizer) -> bool:
    """Whether a cycle can move the momentum too."""
    return bool({"momentum", "betas"} & optimizer.defaults.keys())


# What makes each scheduler, for a fit in which it is stepped so many times; short enough for a few steps to see it move.
SCHEDULERS: dict[str, Callable[[Optimizer, int], Any]] = {
    "LambdaLR": lambda o, _: lr_scheduler.LambdaLR(o, lambda count: 1 / (1 + count)),
    "MultiplicativeLR": lambda o, _: lr_scheduler.MultiplicativeLR(o, lambda count: 0.9 if count % 2 else 1.05),
    "StepLR": lambda o, _: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o, _: lr_scheduler.MultiStepLR(o, [1, 2, 2, 5], 0.5),
    "ConstantLR": lambda o, _: lr_scheduler.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o, _: lr_scheduler.LinearLR(o, 0.2, total_iters=4),
    "ExponentialLR": lambda o, _: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o, _: sequential(o),
    "CosineAnnealingLR": lambda o, calls: lr_scheduler.CosineAnnealingLR(o, calls),
    "ChainedScheduler": lambda o, _: chained(o),
    "ReduceLROnPlateau": lambda o, _: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.3),
    "CyclicLR": lambda o, _: lr_scheduler.CyclicLR(o, 0.001, 0.02, 2, mode="exp_range", gamma=0.9,
                                                   cycle_momentum=momentum(o)),
    "CosineAnnealingWarmRestarts": lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "OneCycleLR": lambda o, calls: lr_scheduler.OneCycleLR(o, 0.02, calls, cycle_momentum=momentum(o)),
    "PolynomialLR": lambda o, calls: lr_scheduler.PolynomialLR(o, calls, 2.0),
    "SWALR": lambda o, _: swa_utils.SWALR(o, 0.001, 3),
}  # fmt: skip
BY_STEP = "CyclicLR", "OneCycleLR"


class Noisy(Dataset[Any]):
    """Rows with noise from every generator that there is."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + torch.randn(3) * random.random() * float(numpy.random.rand()), self.y[index]


class Looked(nn.Module):
    """A table of numbers with sparse gradients, the only ones that SparseAdam takes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 2, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x[:, 0].abs() * 10).long() % 6).sum(dim=1, keepdim=True)  # type: ignore[no-any-return]


class Kill(BaseException):
    """Ends a fit as the machine might: no plugin of these fits saves anything for it."""


class Killer:
    """Saves after a step, and kills the fit so many steps later."""

    def __init__(self, step: int, later: int = 0) -> None:
        self.save, self.kill = step, step + later

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split != "train" or not trainer.boundary:
            return
        if trainer.step == self.save:
            trainer.save()
        if trainer.step == self.kill:
            trainer.later(self._end)

    def _end(self) -> None:
        raise Kill
