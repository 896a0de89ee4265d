"""Checkpoints under power failures and kills, and what a save costs: `python benchmarks/reliability.py PART`.

`power-loss` saves on a disk in memory, and looks at what may be left of it if the power fails after any operation:
entries of directories and contents of files that were not fsynced are there or not, each by itself, or torn. What was
durable must be there, and nothing damaged may be seen. `--states N` different disks (200,000 take about two minutes).

`kill-points` kills a forked process before every operation of several saves and in the middle of every write, on the
disk of this machine, and makes each operation fail with each of eight errors; with strace it also checks that there is
no operation that it does not know of. Both ask the tests, in tests/framework/checkpoint.

`cost` times a save of a model with 25 million parameters and the state of Adam, 300 MB, beside plain Python that writes
and fsyncs the same bytes to one file; the median of the ratios is told. `--check` ends with 1 where it is above 1.3.

Each ends with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework.checkpoint import read, take, write

TESTS = Path(__file__).parents[1] / "tests" / "framework" / "checkpoint"
PARAMETERS, LIMIT = 25_000_000, 1.3


def power_loss(states: int, seed: int) -> int:
    spec = importlib.util.spec_from_file_location("disk", TESTS / "disk.py")
    assert spec is not None
    assert spec.loader is not None
    disk = importlib.util.module_from_spec(spec)
    sys.modules["disk"] = disk
    spec.loader.exec_module(disk)
    loss, saves, begun = disk.PowerLoss(seed, limit=500, again=20), 0, time.perf_counter()
    while loss.states < states:
        loss.run(disk.scenario(loss.draw))
        saves += 5
        told = f"{loss.states:,} disks after a power failure during {saves:,} saves, {len(loss.lost)} with a loss"
        print(f"\r{told}", end="", flush=True)
    print(f" ({time.perf_counter() - begun:.0f} s, seed {seed})")
    print("\n".join(loss.lost))
    return bool(loss.lost)


def kill_points() -> int:
    command = [sys.executable, "-m", "pytest", "-rP", str(TESTS / "test_crash.py"), str(TESTS / "test_faults.py")]
    return subprocess.run(command, cwd=TESTS.parents[2]).returncode


def cost(turns: int, folder: Path, check: bool) -> int:
    side = int((PARAMETERS / 10) ** 0.5)
    model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(10)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, side)).sum().backward()
    optimizer.step()
    snapshot = take(1, 1, model, optimizer, {})
    paused, _ = timed(lambda: take(1, 1, model, optimizer, {}, over=snapshot))
    print(f"the copy that training waits for where async_save=True: {paused:.3f} s")
    for _ in range(2):  # from the third on a save removes an older one
        path = write(snapshot, folder, ["last"])
    data = b"".join(file.read_bytes() for file in path.iterdir())
    ratios = []
    for _ in range(turns):
        plain, _ = timed(lambda: plainly(folder / "plain", data))
        ours, path = timed(lambda: write(snapshot, folder, ["last"]))
        ratios.append(ours / plain)
        print(f"{len(data) / 1e6:,.0f} MB: plain Python {plain:.3f} s, a save {ours:.3f} s, {ratios[-1]:.2f} times")
    back, _ = timed(lambda: read(path))
    print(f"read back, with its checksums, in {back:.3f} s")
    ratio = statistics.median(ratios)
    print(f"a save takes {ratio:.2f} times as long as writing the same bytes (median of {turns}; at most {LIMIT})")
    return check and ratio > LIMIT


def plainly(path: Path, data: bytes) -> None:
    """Write and fsync as one would by hand; and remove it, as a save removes an older one."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    os.sync() if hasattr(os, "sync") else None  # what others have written is not to be waited for
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["power-loss", "kill-points", "cost"])
    parser.add_argument("--states", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where cost writes; by default beside other temporary files")
    parser.add_argument("--check", action="store_true")
    told = parser.parse_args()
    if told.part == "power-loss":
        return power_loss(told.states, told.seed)
    if told.part == "kill-points":
        return kill_points()
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        return cost(told.turns, Path(folder), told.check)


if __name__ == "__main__":
    sys.exit(main())
