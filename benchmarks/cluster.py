"""What a step and a run cost over N processes, from 1 to 10,000: `python benchmarks/cluster.py`.

A small model, in the order of its formulas: a rank computes its step; the slowest of N ranks is waited for; so is what
of the all-reduce the backward pass does not hide; the state is saved now and then; and a rank that fails sends all of
them back to the last save. Weak scaling: every rank has as many samples a step as one process would have.

Its constants are in benchmarks/cluster.json, each with where it comes from: published, or measured on this machine.
This prints them and what follows from them, and puts the tables and the picture into docs/distributed.md.

`--measure` measures anew and keeps: compute and its spread, gloo's all_reduce by size, a save by the framework's own
writer, a start. `--check` measures too, and ends with 1 where a step of DDP with 2 processes, timed in the same run,
is not what the model says to a factor of 1.5. A process has one thread; a minute and a half on two cores, which must
have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scaling import machine
from torch import nn

from framework import picture
from framework.checkpoint import take, write

ROOT = Path(__file__).resolve().parents[1]
FILE, PICTURE = ROOT / "benchmarks" / "cluster.json", ROOT / "docs" / "img" / "cluster.svg"
PAGES = [ROOT / "docs" / "distributed.md", ROOT / "docs" / "ko" / "distributed.md"]
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000]
TOLD = [1, 2, 8, 64, 512, 4096, 10_000]
FACTOR = 1.5  # by which a step of DDP may differ from what the model says
BUCKET = 25 * 2**20  # bytes of a bucket of DDP, by torch's default
LEVELS = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1]  # of the quantiles of a spread
STEPS = {"mnist_mlp": 2000, "mnist_cnn": 200}
PROCESSES = (2, 4)  # of gloo; the model is of the first
TURNS, WARM = 100, 5  # of an all_reduce; what is not counted
SIZES, SAVES = [2**power for power in range(10, 25)], [2**power for power in range(20, 28)]  # bytes

# --------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Network:
    """What joins the ranks: bytes a second and seconds a hop, within a node and between nodes."""

    node: int  # ranks
    bandwidth: tuple[float, float]
    latency: tuple[float, float]
    start: float = 0

    def seconds(self, ranks: int, size: float, rounds: int = 2) -> float:
        """Of an all-reduce of so many bytes; with one round of an all-gather or a reduce-scatter."""
        if ranks == 1:
            return 0.0
        nodes = math.ceil(ranks / self.node)
        within, between = self.latency
        hops = rounds * ((ranks - nodes) * within + (nodes - 1) * between)
        if self.node > 1 and rounds == 2:  # NCCL goes along a tree where that is quicker
            hops = min(hops, 2 * ((min(ranks, self.node) - 1) * within + math.log2(nodes) * between))
        return self.start + hops + rounds * (ranks - 1) / ranks * size / self.bandwidth[nodes > 1]


@dataclass(frozen=True)
class Case:
    """What is trained on what."""

    name: str
    parameters: float
    compute: float  # seconds of a step of one rank
    backward: float  # how much of that is the backward pass
    spread: Callable[[float], float]  # quantiles of the time of a step, of which the mean is 1
    network: Network
    saving: Callable[[int, float], float]  # seconds of so many ranks for so many bytes
    failure: float  # seconds of one rank from one to the next, in the mean
    restart: float
    layers: int = 0  # that FSDP gathers one after the other; without, DDP

    def slowest(self, ranks: int) -> float:
        """The expected maximum of so many draws of the spread, of the mean of one."""
        one, most = (
            statistics.fmean(self.spread(((k + 0.5) / 1000) ** (1 / draws)) for k in range(1000))
            for draws in (1, ranks)
        )
        return most / one

    def waiting(self, ranks: int) -> float:
        """Seconds of the communication that no computation hides: at least the last bucket, or two layers."""
        size = 4 * self.parameters
        if self.layers:  # gathered for the forward and for the backward pass, and gradients scattered
            one = self.network.seconds(ranks, size / self.layers, rounds=1)
            return max(2 * one, 3 * self.layers * one - self.compute * (1 - 1 / self.layers))
        one = self.network.seconds(ranks, size / (buckets := math.ceil(size / BUCKET)))
        return max(one, buckets * one - self.backward * self.compute * (1 - 1 / buckets))

    def step(self, ranks: int) -> float:
        return self.compute * self.slowest(ranks) + self.waiting(ranks)

    def shares(self, ranks: int) -> dict[str, float]:
        """How much of the time of a run each part takes. The first is the efficiency."""
        step, failure = self.step(ranks), self.failure / ranks
        saving = self.saving(ranks, 12 * self.parameters)  # with the state of Adam
        interval = math.sqrt(2 * saving * failure)  # Young 1974, Daly 2006
        parts = {
            "computing": self.compute,
            "waiting for the slowest": self.compute * (self.slowest(ranks) - 1),
            "communication": self.waiting(ranks),
            "saving": step * saving / interval,
            "done again, restarts": step * (interval / 2 + self.restart) / failure,
        }
        return {part: seconds / sum(parts.values()) for part, seconds in parts.items()}


def here(name: str, kept: Mapping[str, Any]) -> Case:
    """A model of the labs on processes like those of this machine, as if there were as many cores as one likes."""
    value, spread = {key: row[0] for key, row in kept["constants"].items()}, kept["spread"][name]
    latency, bandwidth = value["gloo, 2 processes: a hop"], value["gloo, 2 processes"]
    return Case(
        f"{name}, gloo on this CPU", value[f"{name}: parameters"], value[f"{name}: a step"],
        value[f"{name}: backward pass"], lambda level: float(np.interp(level, LEVELS, spread)),
        Network(1, (bandwidth, bandwidth), (latency, latency)),
        lambda ranks, size: value["a checkpoint: any"] + size / value["a checkpoint: writing"],
        value["a rank fails every"], value["a start"],
    )  # fmt: skip


def on_gpus(name: str, parameters: float, layers: int, kept: Mapping[str, Any]) -> Case:
    """A language model on nodes of 8 GPUs."""
    value = {key: row[0] for key, row in kept["constants"].items()}

    def saving(ranks: int, size: float) -> float:
        writers = math.ceil(ranks / 8) if layers else 1  # with DDP every rank has all of it, and the first writes
        bandwidth = min(writers * value["writing of a node"], math.ceil(ranks / 256) * value["writing of 32 nodes"])
        return value["a checkpoint: any"] + size / bandwidth

    flop = value["work of a token"] * parameters * value["tokens of a rank and step"]
    return Case(
        name, parameters, flop / value["H100"] / value["of which used"], 2 / 3,
        statistics.NormalDist(1, value["spread of GPUs"] / 5.4).inv_cdf,
        Network(8, (value["NVLink"], value["network of a node"]), (value["NVLink: a hop"], value["network: a hop"]),
                value["NCCL: any"]), saving, value["a rank fails every"], value["a restart on GPUs"], layers,
    )  # fmt: skip


def cases(kept: Mapping[str, Any]) -> list[Case]:
    return [
        *(here(name, kept) for name in STEPS),
        on_gpus("100 M parameters, DDP, H100", 1e8, 0, kept),
        on_gpus("7 B parameters, FSDP, H100", 7e9, 32, kept),
    ]


# --------------------------------------------------------------------------------------------- what is measured here


def model_of(name: str) -> tuple[nn.Module, int]:
    """The model and the batch size of a recipe, without its data."""
    if name == "mnist_mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), 100
    layers = [(nn.Conv2d(*sizes, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)) for sizes in ((1, 32), (32, 64))]
    return nn.Sequential(*layers[0], *layers[1], nn.Flatten(), nn.Linear(3136, 10)), 64


def steps(name: str, count: int) -> list[tuple[float, float]]:
    """Seconds of each step and of its backward pass; of DDP where there are several processes."""
    torch.manual_seed(0)
    model, batch = model_of(name)
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters())
    x, y = torch.randn(batch, 1, 28, 28), torch.randint(10, (batch,))
    taken = []
    for _ in range(count + WARM):
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        optimizer.step()
        taken.append((time.perf_counter() - begun, backward - forward))
    return taken[WARM:]


def all_reduces(sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Bytes of each all_reduce and its seconds, after some computing, as in a step: else nobody has to be woken up."""
    matrix = torch.rand(256, 256)
    computing = partial(torch.mm, matrix, matrix)
    return [(size, timed(partial(dist.all_reduce, torch.ones(size // 4)), TURNS, computing)) for size in sizes]


def saves(sizes: Sequence[int], folder: Path) -> list[tuple[int, float]]:
    """Bytes of each checkpoint of the framework, and the seconds to write it."""
    points = []
    for size in sizes:
        model = nn.Linear(size // 4, 1, bias=False)
        snapshot = take(1, 1, model, torch.optim.SGD(model.parameters()), {})
        points.append((size, timed(partial(write, snapshot, folder, ["last"]), TURNS // 20)))
    return points


def timed(call: Callable[[], Any], turns: int, before: Callable[[], Any] = int) -> float:
    """The mean of the seconds of so many calls after the first few."""
    taken = []
    for _ in range(turns + WARM):
        before()
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.fmean(taken[WARM:])


def line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds at no byte and seconds a byte: least squares of the relative errors, as sizes differ a thousandfold."""
    rows = np.array([[1 / seconds, size / seconds] for size, seconds in points])
    start, slope = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    return max(0.0, float(start)), max(1e-12, float(slope))  # what noise turns around is nothing, or 1 TB/s


def together(processes: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives in the first of so many processes, joined by gloo, with one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (processes, folder, work, arguments), nprocs=processes)
        return json.loads(Path(folder, "told.json").read_text(encoding="utf-8"))


def _rank(rank: int, processes: int, folder: str, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    told = work(*arguments)
    if rank == 0:
        Path(folder, "told.json").write_text(json.dumps(told), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure() -> dict[str, Any]:
    """The constants of this machine, and the steps of DDP that the model is to foretell."""
    torch.set_num_threads(1)
    constants: dict[str, Any] = {}
    spread, ddp = {}, {}
    for name, count in STEPS.items():
        whole, backward = np.array(steps(name, count)).T
        model, batch = model_of(name)
        constants[f"{name}: parameters"] = sum(parameter.numel() for parameter in model.parameters()), "", "counted"
        constants[f"{name}: a step"] = float(whole.mean()), "s", f"measured: {batch} samples, one thread"
        constants[f"{name}: backward pass"] = round(float(backward.mean() / whole.mean()), 3), "of it", "measured"
        spread[name] = (np.quantile(whole, LEVELS) / whole.mean()).round(4).tolist()
        ddp[name] = statistics.fmean(whole for whole, _ in together(2, steps, name, count))
    for processes in PROCESSES:
        seconds, slope = line(together(processes, all_reduces, SIZES))
        name, source = f"gloo, {processes} processes", "measured: a line through all_reduce of 1 KiB to 16 MiB"
        constants[name] = 2 * (processes - 1) / processes / slope, "B/s", source
        constants[f"{name}: a hop"] = seconds / 2 / (processes - 1), "s", source
    with tempfile.TemporaryDirectory() as folder:
        seconds, slope = line(saves(SAVES, Path(folder)))
        source = "measured: a line through checkpoints of 1 to 128 MiB"
        constants |= {"a checkpoint: any": (seconds, "s", source), "a checkpoint: writing": (1 / slope, "B/s", source)}
        begun, words = time.perf_counter(), ["--epochs", "1", "--quiet", "-p", "no:plot", "--run-dir", f"{folder}/run"]
        subprocess.run([sys.executable, "-m", "framework", ROOT / "recipes" / "softmax.py", *words], check=True)
        constants["a start"] = time.perf_counter() - begun, "s", "measured: softmax.py, one epoch, start to exit"
    return {"machine": {**machine(), "threads": 1}, "constants": constants, "spread": spread, "ddp": ddp}


def steps_of_ddp(kept: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """A step of DDP with 2 processes: what the model says, and what it took when the constants were measured."""
    return {name: (here(name, kept).step(2), took) for name, took in kept["ddp"].items()}


def wrong(kept: Mapping[str, Any]) -> list[str]:
    return [name for name, (said, took) in steps_of_ddp(kept).items() if not 1 / FACTOR <= took / said <= FACTOR]


# --------------------------------------------------------------------------------------------------- tables, picture


def tables(kept: Mapping[str, Any]) -> list[str]:
    """The efficiency by ranks with what takes most beside computing, the steps of DDP, and the constants."""
    told, constants, ddp = cases(kept), kept["constants"].items(), steps_of_ddp(kept).items()
    efficiencies = [[f"{ranks:,}", *(_cell(case.shares(ranks)) for case in told)] for ranks in TOLD]
    return [
        _table(["ranks", *(case.name for case in told)], efficiencies),
        _table(
            ["DDP, 2 processes", "the model", "measured"],
            [[name, *(_value(seconds, "s") for seconds in both)] for name, both in ddp],
        ),
        _table(["constant", "value", "from"], [[name, _value(*one), source] for name, (*one, source) in constants]),
    ]


def _cell(shares: dict[str, float]) -> str:
    (_, efficiency), *rest = shares.items()
    return f"{efficiency:.3f} ({max(rest, key=lambda part: part[1])[0]})"


def _value(value: float, unit: str) -> str:
    if unit not in ("s", "B/s", "FLOP/s") or not value:
        return f"{value:,g} {unit}".strip()
    thousands = math.floor(math.log10(value) / 3)
    return f"{value / 1000**thousands:.3g} {'num kMGT'[thousands + 3].strip()}{unit}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, ["---"] * len(heads), *rows))


def with_tables(text: str, kept: Mapping[str, Any]) -> str:
    """A page with these tables in place of those that begin in the same way."""
    for table in tables(kept):
        begin = re.escape(table.partition("|")[2].partition("|")[0])
        text = re.sub(rf"^\|{begin}\|.*\n(\|.*\n)*", lambda _, table=table: table, text, flags=re.MULTILINE)
    return text


def draw(kept: Mapping[str, Any], file: Path) -> None:
    """The efficiency of all cases, and below what the time of each goes to."""
    told = cases(kept)
    with picture(file, 12, 7.5) as figure:
        axes = figure.subplot_mosaic([[-1] * len(told), [*range(len(told))]], height_ratios=[3, 2])
        for number, case in enumerate(told):
            shares = [case.shares(ranks) for ranks in RANKS]
            layers = np.array([[*share.values()] for share in shares]).T
            axes[-1].plot(RANKS, layers[0], marker="o", label=case.name)
            axes[number].stackplot(RANKS, *layers, labels=shares[0], alpha=0.8)
            axes[number].set_title(case.name, fontsize=9)
            axes[number].set_ylim(0, 1)
        axes[-1].set_title("efficiency, by a model of measured and published constants", fontsize=10, loc="left")
        axes[-1].legend(fontsize=9)
        axes[-1].grid(alpha=0.3)
        axes[0].set_ylabel("share of the time")
        axes[2].legend(fontsize=7, loc="lower left")
        for each in axes.values():
            each.set_xscale("log")
            each.set_xlabel("ranks")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a step and a run cost over N processes, from 1 to 10,000.")
    parser.add_argument("--measure", action="store_true", help="measure the constants of this machine and keep them")
    parser.add_argument("--check", action="store_true", help="measure; exit with 1 if a step of DDP is not as foretold")
    given = parser.parse_args(arguments)
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    if given.measure or given.check:
        new = measure()
        kept = {**new, "constants": {**kept["constants"], **new["constants"]}}
    print("\n".join(tables(kept)))
    if given.measure:
        FILE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8", newline="\n")
    if not given.check:
        draw(kept, PICTURE)
        for page in PAGES:
            page.write_text(with_tables(page.read_text(encoding="utf-8"), kept), encoding="utf-8", newline="\n")
        return 0
    for name in wrong(kept):
        print(f"wrong     {name}: the model and a step of DDP differ by more than a factor of {FACTOR}")
    return 1 if wrong(kept) else 0


if __name__ == "__main__":
    sys.exit(main())
