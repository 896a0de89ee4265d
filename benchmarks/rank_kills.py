"""Kills processes that train together at random instants, and compares the end: `python benchmarks/rank_kills.py`.

Each run is started by torchrun. One of its processes is killed with SIGKILL, wherever it happens to be: in a step, in
the sum of the gradients, in a write, while it starts. torchrun starts all of them again, and the run goes on from what
is on the disk; up to `--kills` times. It must end with the bits of the run of as many processes that was left alone:
parameters, buffers, optimizer, averages, plugins, the states of the generators of every process, `metrics.jsonl`, and
the best checkpoint. The model has dropout and batch normalization.

`--runs N` runs so many, `--ranks W` with so many processes, `--seed S` chooses the instants, `--run N` runs one and
shows what it printed. Ends with 1 if a run ended otherwise or hung, and names it. Needs a system with signals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from kills import digest

from framework import CheckpointError
from framework.checkpoint import find, store

PATIENCE = 60.0  # seconds that a process may take from its start to its end, or until it is started again
EARLY = 0.15  # of the kills come while the processes still start
RECIPE = '''"""A fit that draws in every part."""
import os
from pathlib import Path

import torch
from torch import nn
from framework import Recipe
from framework_plugins.accuracy import Accuracy
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint


class Marks:
    """Leaves a file where this process begins to train, so that whoever kills it knows."""

    def on_fit_start(self):
        Path(f"{os.environ['TORCHELASTIC_RESTART_COUNT']}-{os.environ['RANK']}.mark").touch()


def recipe(ranks: int = 2, epochs: int = 20):
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    batch = 2 * ranks + 1  # of which the ranks get different numbers, at least two each
    x = torch.randn(9 * batch - 1, 3)
    y = x.argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    plugins = [Accuracy(), AverageWeights(0.9), BestCheckpoint(every_steps=4, every_seconds=0), Marks()]
    return Recipe(model=model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, train=(x, y), val=(x[:7], y[:7]),
                  batch_size=batch, epochs=epochs, plugins=plugins)
'''


def command(arguments: Sequence[str], ranks: int, restarts: int = 0) -> list[str]:
    """A command line of torchrun."""
    options = [f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *arguments]


@contextlib.contextmanager
def started(words: Sequence[str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose output goes to `output.txt` in its folder; at the end nothing that it started is left running."""
    (folder / "tmp").mkdir(exist_ok=True)  # torchrun leaves its logs there
    own = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "TMPDIR": str(folder / "tmp"), **environment}
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(words, cwd=folder, env={**os.environ, **own}, stdout=output, stderr=output)
        try:
            yield process
        finally:
            workers = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
            for worker in workers:  # each is in a session of its own
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.kill()
            process.kill()
            process.wait()


def said(folder: Path) -> str:
    return (folder / "output.txt").read_text("utf-8", "replace")


def workers_of(process: subprocess.Popen[bytes], attempt: int) -> dict[int, psutil.Process]:
    """The processes that torchrun started for an attempt, by their ranks."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error, OSError):
                told = child.environ()
                if told.get("TORCHELASTIC_RESTART_COUNT") == str(attempt) and "RANK" in told:
                    found[int(told["RANK"])] = child
    return found


def wait(process: subprocess.Popen[bytes], happened: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Whether it happened before the process ended.

    Raises:
        TimeoutError: neither did
    """
    until = time.monotonic() + seconds
    while not happened():
        if process.poll() is not None:
            return False
        if time.monotonic() > until:
            raise TimeoutError(f"nothing moved for {seconds:.0f} s")
        time.sleep(0.005)
    return True


def strike(
    process: subprocess.Popen[bytes], folder: Path, ranks: int, attempt: int, chance: random.Random, longest: float,
    start: float,
) -> bool:  # fmt: skip
    """Kill one process of an attempt; False where all had come to their end before.

    Args:
        longest: so many seconds at most after the last of them began to train
        start: so many seconds at most after it was started, for an early kill
    """
    early = chance.random() < EARLY
    marks = [folder / f"{attempt}-{rank}.mark" for rank in range(ranks)]
    alive = wait(process, lambda: len(workers_of(process, attempt)) == ranks)
    if alive and not early:
        alive = wait(process, lambda: all(mark.exists() for mark in marks))
    if not alive:
        return False
    time.sleep(chance.uniform(0, start if early else longest))
    with contextlib.suppress(psutil.NoSuchProcess):
        victim = workers_of(process, attempt).get(chance.randrange(ranks))
        if victim is not None and victim.status() != psutil.STATUS_ZOMBIE:
            victim.kill()
            return True
    return False


def run(folder: Path, ranks: int, kills: int, chance: random.Random, usual: Sequence[float]) -> tuple[int, str]:
    """How often processes of one run were killed, and what was wrong, or nothing.

    Args:
        usual: the seconds from the start of torchrun to the first step, and those of the training
    """
    (folder / "lab.py").write_text(RECIPE, "utf-8")
    words = ["-m", "framework", "lab.py", "--ranks", str(ranks), "--run-dir", "run", "--device", "cpu"]
    words += ["-p", "distributed", "-p", "no:plot", "-p", "no:progress"]
    # a few are spread over the whole training; of many the last shall come before the end, on a slow machine as well
    killed, longest = 0, min(2.0, 8 / max(kills, 1)) * usual[1] / (kills + 1)
    with started(command(words, ranks, kills), folder) as process:
        try:
            while killed < kills and process.poll() is None:  # one that has just ended by itself is no kill
                killed += strike(process, folder, ranks, killed, chance, longest, usual[0])
            process.wait(PATIENCE)
        except (TimeoutError, subprocess.TimeoutExpired):
            return killed, f"it hung: {said(folder)[-2000:]}"
    return killed, "" if process.returncode == 0 else f"exit status {process.returncode}: {said(folder)[-2000:]}"


def end(run_dir: Path) -> dict[str, str]:
    """The SHA-256 of each part of the end of a run; what best_checkpoint knows to be on the disk depends on the kills.

    Raises:
        CheckpointError: a checkpoint of it is damaged
    """
    found = {"metrics.jsonl": (run_dir / "metrics.jsonl").read_text("utf-8")}
    for label in ("last", "best"):
        path = find(run_dir, label)
        held = store.read(path) if path else None
        trees: Mapping[str, Any] = {} if held is None else vars(held)
        parts = trees.keys() - {"live", "rows"}
        found |= {f"{label} {name}": digest(_plain(trees[name])) for name in sorted(parts)}
    return found


def _plain(tree: Any) -> Any:
    """A tree without what best_checkpoint tells."""
    if isinstance(tree, dict):
        return {name: _plain(part) for name, part in tree.items() if name != "best_checkpoint"}
    return [*map(_plain, tree)] if isinstance(tree, list) else tree


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in {"runs": 100, "kills": 3, "ranks": 2, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--run", type=int, default=None)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as path:
        begun = time.monotonic()
        _, why = run(Path(path), options.ranks, 0, random.Random(0), (0, 0))
        if why:
            print(f"the run that was left alone: {why}")
            return 1
        training = float(json.loads(Path(path, "run", "run.json").read_text("utf-8"))["seconds"])
        wanted, usual = end(Path(path, "run")), (time.monotonic() - begun - training, training)
    killed = wrong = 0
    for number in range(options.runs) if options.run is None else [options.run]:
        with tempfile.TemporaryDirectory() as path:
            chance = random.Random(f"{options.seed} {number}")
            kills, why = run(Path(path), options.ranks, options.kills, chance, usual)
            with contextlib.suppress(CheckpointError, OSError) if why else contextlib.nullcontext():
                ended = end(Path(path, "run"))
                different = [name for name, part in wanted.items() if ended.get(name) != part]
                why = why or (f"it ended with another {' and '.join(different)}" if different else "")
            if options.run is not None:
                print(said(Path(path)))
        killed += kills
        if why:
            wrong += 1
            print(f"run {number} of seed {options.seed}, killed {kills} times: {why}", flush=True)
    seconds = time.monotonic() - begun
    runs = f"{options.runs} runs of {options.ranks} processes"
    print(f"{runs}, {killed} kills, {wrong} ended otherwise than the run left alone ({seconds:.0f} s)")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
