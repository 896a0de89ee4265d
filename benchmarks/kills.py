"""Kills training with SIGKILL at random instants, resumes it, and compares the end: `python benchmarks/kills.py`.

Each case is a run that is killed up to five times, wherever it happens to be: in a step, in a write, in a rename. It
is resumed from what is on the disk each time, and must end with the bits of the run that was left alone: parameters,
buffers, optimizer and scheduler, the states of all generators and plugins, `metrics.jsonl`. The model has dropout and
batch normalization, and the data set draws from Python's, NumPy's and torch's generators for each sample.

`--cases N` runs so many (2000 take about ten minutes on two cores), `--seed S` chooses the instants; every tenth case
fetches its batches with two workers. Ends with 1 if a case ended otherwise, and names it. Needs os.fork.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils.data import Dataset

from framework import Trainer
from framework.checkpoint import encode
from framework.seed import random_states, seed_everything

ROWS, EPOCHS, KILLS = 11, 6, 5


class Noisy(Dataset[Any]):
    """Rows that all differ, with noise from every generator that there is."""

    def __init__(self) -> None:
        self.x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        noise = 0.1 * torch.randn(3) * random.random() * float(numpy.random.rand())
        return self.x[index] + noise, self.x[index].sum().reshape(1)


class Often:
    """Asks for a checkpoint after every second step."""

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.boundary and trainer.step % 2 == 0:
            trainer.save()


def trainer_of(run_dir: Path) -> Trainer:
    seed_everything(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 1))
    plugins = [Often(), "history", "best_checkpoint", "early_stopping"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    return Trainer(model, nn.functional.mse_loss, optimizer, plugins=plugins, device="cpu", run_dir=run_dir)


def train(run_dir: Path, workers: int) -> str:
    """Train in `run_dir`, from its newest checkpoint if there is one; the SHA-256 of each part of the end, as JSON."""
    trainer = trainer_of(run_dir)
    begun = any((run_dir / "checkpoints").glob("step-*"))
    val = torch.eye(3), torch.ones(3, 1)
    trainer.fit(
        Noisy(), val, epochs=EPOCHS, batch_size=3, accumulate=2, num_workers=workers, resume=run_dir if begun else None
    )
    state = {
        "model": dict(trainer.model.state_dict()), "optimizer": trainer.optimizer.state_dict(),
        "plugins": {name: state for name, state in trainer.plugins.states().items() if name != "best_checkpoint"},
        "random": random_states(), "rows": (run_dir / "metrics.jsonl").read_text("utf-8"),
    }  # fmt: skip
    return json.dumps({name: digest(part) for name, part in state.items()})


def digest(tree: Any) -> str:
    tensors: dict[str, torch.Tensor] = {}
    found = hashlib.sha256(json.dumps(encode(tree, tensors)).encode())
    for name in sorted(tensors):
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def attempt(run_dir: Path, workers: int, seconds: float | None) -> str | None:
    """Train in a process of its own that is killed after so many seconds; what it ended with, None if it was killed.

    Raises:
        RuntimeError: it failed, with its traceback
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()  # its workers are killed with it
        try:
            said = train(run_dir, workers)
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    ended, _, _ = select.select([reading], [], [], seconds)
    if not ended:
        os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = os.read(reading, 1 << 16).decode()
    os.close(reading)
    if said.startswith("Traceback"):
        raise RuntimeError(said)
    return said or None


def case(chance: random.Random, workers: int, wanted: str, usual: float) -> tuple[int, str]:
    """How often one run was killed, and what was wrong with its end, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        ended, killed = None, 0
        while ended is None:
            try:
                ended = attempt(Path(folder), workers, chance.uniform(0, usual) if killed < KILLS else None)
            except RuntimeError as error:
                return killed, str(error)
            killed += ended is None
        parts, others = json.loads(wanted), json.loads(ended)
        wrong = [name for name in parts if parts[name] != others[name]]
        return killed, f"it ended with another {' and '.join(wrong)}" if wrong else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the threads of OpenMP do not live on in a forked process
    warnings.simplefilter("ignore")  # of checkpoints that a kill has left unfinished
    wanted, usual = {}, {}
    for workers in (0, 2):
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            wanted[workers] = attempt(Path(folder), workers, None) or ""
            usual[workers] = time.perf_counter() - began
    killed, wrong, began = Counter[int](), 0, time.perf_counter()
    for number in range(options.cases):
        workers = 2 if number % 10 == 9 else 0
        times, why = case(random.Random(f"{options.seed} {number}"), workers, wanted[workers], usual[workers])
        killed[times] += 1
        if why:
            wrong += 1
            print(f"case {number} of seed {options.seed}, killed {times} times: {why}")
    kills = sum(times * runs for times, runs in killed.items())
    seconds = time.perf_counter() - began
    print(f"{options.cases} runs, {kills} kills, {wrong} ended otherwise than the run left alone ({seconds:.0f} s)")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
