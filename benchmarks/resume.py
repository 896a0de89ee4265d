"""Exact resume: `python benchmarks/resume.py --cases 5000`.

Each case is a small fit with random settings: an optimizer of torch.optim, a scheduler of torch.optim.lr_scheduler,
batch size, shuffling, accumulation, dropout, batch normalization, validation, data that draws from every generator. It
is run once without a break, and once killed at random steps, each time resumed by objects that are made anew. Some
kills come steps after the last checkpoint, so that these steps are taken again. The two must end alike in every bit:
model, optimizer, scheduler, random states, modes, rows.

`--case N` runs one and tells its settings; the number is the seed. 5,000 cases take about five minutes on one core. It
ends with 1 if a case differs.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from framework.checkpoint.restore import differing
from framework.seed import random_states, seed_everything

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
    return lr_scheduler.SequentialLR(optimizer, [*parts, lr_scheduler.ExponentialLR(optimizer, 0.9)], [1, 6])


def momentum(optimizer: Optimizer) -> bool:
    """Whether a cycle can move the momentum too."""
    return bool({"momentum", "betas"} & optimizer.defaults.keys())


# What makes each scheduler, for a fit in which it is stepped so many times; a few steps are enough to see it move.
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
    "ReduceLROnPlateau": lambda o, _: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.9),
    "CyclicLR": lambda o, _: lr_scheduler.CyclicLR(o, 0.001, 0.02, 2, mode="exp_range", gamma=0.9,
                                                   cycle_momentum=momentum(o)),
    "CosineAnnealingWarmRestarts": lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
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
    """Ends a fit as a machine might."""


class Killer:
    """Saves after a step, and ends the fit there or so many steps later, in the middle of a step."""

    def __init__(self, step: int, later: int = 0) -> None:
        self.step, self.later = step, later

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.boundary and trainer.step == self.step:
            trainer.save()
            if not self.later:
                trainer.stop("killed")
        elif split == "train" and trainer.step == self.step + self.later:
            raise Kill


@dataclass(frozen=True)
class Case:
    """One fit: all that it is made from, and the steps at which it is killed, each with how many steps later."""

    optimizer: str
    scheduler: str
    every: str | None = None
    rows: int = 6
    batch_size: int | None = 2
    shuffle: bool = True
    drop_last: bool = False
    accumulate: int = 1
    epochs: int = 2
    dropout: float = 0.5
    norm: bool = True
    val: bool = True
    noisy: bool = False
    loader: str = "auto"
    fast: str = "exact"
    kills: tuple[tuple[int, int], ...] = ()

    @property
    def steps(self) -> int:
        size = self.batch_size or self.rows
        batches = self.rows // size if self.drop_last else math.ceil(self.rows / size)
        return self.epochs * math.ceil(batches / self.accumulate)


def schedule(case: Case) -> Schedule:
    every = case.every or ("step" if case.scheduler in BY_STEP else "epoch")
    calls = case.steps if every == "step" else case.epochs
    return Schedule(lambda optimizer: SCHEDULERS[case.scheduler](optimizer, calls), every)


def trainer(case: Case, *others: Any, run_dir: Path | None = None) -> Trainer:
    """Model, optimizer and plugins of a case, made anew from the same seed."""
    seed_everything(7)
    norm = nn.BatchNorm1d(4) if case.norm else nn.Identity()
    layers = nn.Linear(3, 4), norm, nn.Dropout(case.dropout), nn.ReLU(), nn.Linear(4, 1)
    model: nn.Module = Looked() if case.optimizer == "SparseAdam" else nn.Sequential(*layers)
    weights = [held for held in model.parameters() if case.optimizer != "Muon" or held.dim() == 2]
    optimizer = getattr(torch.optim, case.optimizer)(weights, **OPTIMIZERS[case.optimizer])
    plugins = [schedule(case), *[Closure()] * (case.optimizer == "LBFGS"), *others]
    return Trainer(model, nn.functional.mse_loss, optimizer, plugins, "cpu", run_dir, on_nonfinite="continue")


def fit(case: Case, of: Trainer, resume: Path | None = None) -> dict[str, Any]:
    """Fit, and everything that a fit changes but the gradients, which no checkpoint holds."""
    generator = torch.Generator().manual_seed(case.rows)
    x = torch.randn(case.rows, 3, generator=generator)
    y = x.sum(dim=1, keepdim=True)
    data = Noisy(x, y) if case.noisy else TensorDataset(x, y)
    options: dict[str, Any] = {
        "batch_size": case.batch_size, "shuffle": case.shuffle, "drop_last": case.drop_last, "epochs": case.epochs,
        "accumulate": case.accumulate, "loader": case.loader, "fast": case.fast,
    }  # fmt: skip
    of.fit(data, (x[:2], y[:2]) if case.val else None, **options, resume=resume)
    return {
        "model": dict(of.model.state_dict()), "optimizer": of.optimizer.state_dict(), "plugins": of.plugins.states(),
        "rows": of.history, "random": random_states(), "modes": [module.training for module in of.model.modules()],
    }  # fmt: skip


def killed(case: Case, run_dir: Path) -> dict[str, Any]:
    """The same of a fit that is killed and resumed, each time by others than those that had begun it."""
    resume = None
    for step, later in case.kills:
        begun = trainer(case, Killer(step, later), run_dir=run_dir)
        with contextlib.suppress(Kill):
            fit(case, begun, resume)
        resume = run_dir
    last = trainer(case)
    seed_everything(99)
    return fit(case, last, resume)


def drawn(seed: int) -> Case:
    """A case with random settings, those among them that go together."""
    draw = random.Random(seed)
    rows, accumulate, epochs = draw.randint(2, 9), draw.choice([1, 1, 2, 3]), draw.randint(1, 3)
    optimizer, scheduler, noisy = draw.choice([*OPTIMIZERS]), draw.choice([*SCHEDULERS]), draw.random() < 0.4
    size = draw.choice([*range(1, rows + 1), *[None] * (not noisy)])  # as a whole it is drawn once, before the fit
    case = Case(
        optimizer, scheduler, "epoch" if scheduler == "ReduceLROnPlateau" else draw.choice(["step", "epoch"]), rows,
        size, draw.random() < 0.7, draw.random() < 0.3, 1 if optimizer == "LBFGS" else accumulate, epochs,
        draw.choice([0.0, 0.5]), size is None or (size > 1 and rows % size != 1), draw.random() < 0.5, noisy,
        draw.choice(["auto", "torch"]), draw.choice(["exact", "exact", "plain"]),
    )  # fmt: skip
    steps = sorted(draw.sample(range(1, case.steps + 1), min(case.steps, draw.randint(1, 4))))
    return replace(case, kills=tuple((step, draw.choice([0, 0, 1, 2])) for step in steps))


def wrong_with(case: Case) -> list[str]:
    """Where a fit that was killed and resumed differs from the one that was left alone."""
    alone = fit(case, trainer(case))
    with tempfile.TemporaryDirectory() as run_dir:
        return [*differing(alone, killed(case, Path(run_dir)))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first, to share them out")
    parser.add_argument("--case", type=int, help="only the one of this number")
    told = parser.parse_args(arguments)
    numbers = range(told.first, told.first + told.cases) if told.case is None else [told.case]
    if told.case is not None:
        print(drawn(told.case))
    torch.set_num_threads(1)
    begun, kills, failed = time.monotonic(), 0, 0
    for number in numbers:
        case = drawn(number)
        kills += len(case.kills)
        if wrong := wrong_with(case):
            failed += 1
            print(f"case {number}: {len(wrong)} differences, the first: {wrong[0]}\n  {case}")
    print(f"{len(numbers)} fits killed {kills} times, {failed} ended otherwise; {time.monotonic() - begun:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
