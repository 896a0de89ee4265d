"""What a step costs beside torch's bare DDP loop: `python benchmarks/ddp.py`, two processes on the CPU.

torchrun starts two processes of one thread each, and in these same two processes the bare loop and the trainer with the
plugin distributed take turns, every second time the other way round. The ratio of each pair is taken, and the median of
the ratios is told with its quartiles, so that a machine whose speed drifts does not decide; quote the ratios, not the
microseconds.

The bare loop is the one of torch's tutorials: a DataLoader with a DistributedSampler, which gives each process its half
of a batch, the model in DistributedDataParallel, and for each batch zero_grad, forward, loss, backward and step; it
adds up `loss.item() * len(x)`, of its own half alone. It compares nothing between the processes, and its figures are
not those of all samples. The trainer has no plugin but distributed, and no run directory.

What is timed is an epoch with all that belongs to it: the steps, and here also the sums over the processes and the look
whether their batches and weights are still the same. Before it come model, data, optimizer, the wrapping into DDP and
the first meeting of the processes; what the trainer takes for that is told apart, in milliseconds a fit.

Both go through the rows in their order, so they see the same whole batches. From the same start both take a few steps
before anything is timed, and must come to the same weights but for rounding: where they do not, or with `--check` where
a ratio is above 1.05, the exit status is 1. An idle machine decides.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from framework_plugins.distributed import Distributed
from speed import BUSY, counted, drawn, load, quartiles, told
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from framework import Trainer

RANKS, TURNS, AT_MOST = 2, 15, 1.05
FIRST, ALIKE = 4, 1e-3  # steps after which the two sides are compared, before rounding has grown, and how closely
PATIENCE = 1800  # seconds after which the processes are given up


def mlp() -> nn.Module:
    """The network of recipes/mnist_mlp.py."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def cnn() -> nn.Module:
    """The network of recipes/mnist_cnn.py."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 49, 10),
    )  # fmt: skip


Turns = list[dict[str, Any]]  # what both sides measured, one after the other; the first one is not timed


@dataclass(frozen=True)
class Workload:
    """A row: the model, and the size and number of its whole batches, of random images of 28 x 28 pixels."""

    id: str
    title: str
    model: Callable[[], nn.Module]
    batch_size: int
    steps: int


ROWS = (
    Workload("mlp", "MLP 784-256-10, 0.2 million weights, Adam, batch 100", mlp, 100, 550),
    Workload("wide", "MLP 784-1024-1024-10, 1.9 million weights, Adam, batch 128", wide, 128, 100),
    Workload("cnn", "the CNN of mnist_cnn, 0.05 million weights, Adam, batch 64", cnn, 64, 100),
)

# ------------------------------------------------------------------------------------------------- in each process


class Clock:
    """When the first step begins, and when the last epoch is over."""

    def on_fit_start(self) -> None:
        self.begun = time.perf_counter()

    def on_fit_end(self) -> None:
        self.ended = time.perf_counter()


def bare(model: nn.Module, optimizer: torch.optim.Optimizer, data: TensorDataset, row: Workload) -> dict[str, float]:
    """Seconds of the loop by hand."""
    loss = nn.CrossEntropyLoss()
    sampler: DistributedSampler[Any] = DistributedSampler(data, shuffle=False)
    loader = DataLoader(data, batch_size=row.batch_size // RANKS, sampler=sampler)
    wrapped = DistributedDataParallel(model)
    begun = time.perf_counter()
    sampler.set_epoch(0)
    wrapped.train()
    total = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        l = loss(wrapped(x), y)  # noqa: E741
        l.backward()
        optimizer.step()
        total += l.item() * len(x)
    return {"seconds": time.perf_counter() - begun, "before": 0.0}


def ours(model: nn.Module, optimizer: torch.optim.Optimizer, data: TensorDataset, row: Workload) -> dict[str, float]:
    """Seconds of the same epoch by the trainer."""
    clock = Clock()
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [Distributed(), clock], "cpu")
    begun = time.perf_counter()
    trainer.fit(data, batch_size=row.batch_size, shuffle=False)
    return {"seconds": clock.ended - clock.begun, "before": clock.begun - begun}


SIDES = {"bare": bare, "ours": ours}


def measured(side: str, row: Workload, data: TensorDataset) -> dict[str, Any]:
    """One side of a turn; the time is that of the process that took longest."""
    torch.manual_seed(0)
    model = row.model()
    optimizer = torch.optim.Adam(model.parameters())
    dist.barrier()
    with contextlib.redirect_stdout(io.StringIO()):
        found = SIDES[side](model, optimizer, data, row)
    slowest = torch.tensor([found["seconds"], found["before"]], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    weights = [weight.detach().double().norm().item() for weight in model.parameters()]
    return {"seconds": slowest[0].item(), "before": slowest[1].item(), "weights": weights}


def measure(rows: Sequence[Workload], turns: int, file: Path) -> None:
    """All turns of all rows; the first process writes them down."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found: dict[str, Turns] = {}
    for row in rows:
        torch.manual_seed(1)
        count = row.steps * row.batch_size
        data = TensorDataset(torch.rand(count, 1, 28, 28), torch.randint(10, (count,)))
        few = TensorDataset(*(part[: FIRST * row.batch_size] for part in data.tensors))
        found[row.id] = [{side: measured(side, row, few) for side in SIDES}]  # the first use of anything is not timed
        for number in range(turns):
            order = [*SIDES] if number % 2 == 0 else [*SIDES][::-1]
            found[row.id].append({side: measured(side, row, data) for side in order})
    if dist.get_rank() == 0:
        file.write_text(json.dumps(found), encoding="utf-8")
    gc.collect()  # a DDP module that hangs in a cycle holds the group
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------ the verdict


def ratios(turns: Turns) -> tuple[float, float, float]:
    """The median of the ratios, and their quartiles."""
    return quartiles([turn["ours"]["seconds"] / turn["bare"]["seconds"] for turn in turns[1:]])


def findings(row: Workload, turns: Turns, check: bool) -> list[str]:
    """Why the figures of a row mean nothing; with `check` also what falls short."""
    found = []
    one, other = (torch.tensor(turns[0][side]["weights"]) for side in SIDES)
    if not torch.allclose(one, other, rtol=ALIKE):
        found.append(f"row {row.id}: the two sides do not come to the same weights")
    if check and (ratio := ratios(turns)[0]) > AT_MOST:
        found.append(f"row {row.id}: a step takes {ratio:.3f} times that of the bare loop, at most {AT_MOST:.2f}")
    return found


def line(row: Workload, turns: Turns) -> list[str]:
    """What is told of a row."""
    steps = [statistics.median(turn[side]["seconds"] for turn in turns[1:]) / row.steps * 1e6 for side in SIDES]
    before = statistics.median(turn["ours"]["before"] for turn in turns[1:])
    each = [f"{microseconds:,.0f}" for microseconds in steps]
    return [row.id, row.title, *each, told(ratios(turns)), f"{before * 1e3:,.0f} ms"]


HEAD = ["row", "workload", "bare DDP, us a step", "framework, us a step", "ratio", "before the first step"]


def in_processes(rows: Sequence[Workload], steps: int | None, turns: int) -> dict[str, Turns]:
    """What two processes of torchrun have measured."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "turns.json"
        words = ["--rows", *(row.id for row in rows), "--turns", str(turns), "--measure", str(file)]
        words += [] if steps is None else ["--steps", str(steps)]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), __file__, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
        measured: dict[str, Turns] = json.loads(file.read_text(encoding="utf-8"))
        return measured


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parsed(arguments)
    rows = [row for row in ROWS if row.id in asked.rows]
    if asked.steps:
        rows = [Workload(row.id, row.title, row.model, row.batch_size, asked.steps) for row in rows]
    if asked.measure:
        measure(rows, asked.turns, asked.measure)
        return 0
    print(f"torch {torch.__version__}, {RANKS} processes of one thread, gloo, {counted('turn', asked.turns)}")
    busy = load()
    if busy is not None and busy > BUSY:
        print(f"others are at work on this machine (load {busy:.1f}): what it measures decides nothing")
    turns = in_processes(rows, asked.steps, asked.turns)
    print(f"\n{drawn([HEAD, *(line(row, turns[row.id]) for row in rows)], asked.markdown)}\n")
    sentences = [sentence for row in rows for sentence in findings(row, turns[row.id], asked.check)]
    print("".join(f"{sentence}\n" for sentence in sentences), end="")
    return int(bool(sentences))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [row.id for row in ROWS]
    parser.add_argument("--rows", nargs="+", metavar="ID", choices=names, default=names, help=" ".join(names))
    parser.add_argument("--turns", type=int, default=TURNS, help="how many (%(default)s)")
    parser.add_argument("--steps", type=int, help="in place of those of each row, to try it out")
    parser.add_argument("--check", action="store_true", help="exit with 1 and name each row that falls short")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # a process of torchrun
    asked = parser.parse_args(arguments)
    if min(asked.turns, 1 if asked.steps is None else asked.steps) < 1:
        parser.error("--turns and --steps are whole numbers from 1 up")
    return asked


if __name__ == "__main__":
    sys.exit(main())
