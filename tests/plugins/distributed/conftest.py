"""Runs of several processes: one for a whole file of tests, and what each of its ranks has found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock

HERE = Path(__file__).parent
TOLD = 3000  # letters of the output that are shown
PATIENCE = 240  # seconds after which a run of several processes is given up: one that waits forever is a failure


@dataclass(frozen=True)
class Ended:
    """A run of several processes that is over: its exit status, its output, and what each rank has found."""

    folder: Path
    status: int
    output: str
    ranks: list[dict[str, Any]]

    def case(self, name: str) -> list[Any]:
        """What each rank has found in a case."""
        assert all(name in rank for rank in self.ranks), f"{name} was not reached on every rank:\n{self.output}"
        return [rank[name] for rank in self.ranks]


def _run(words: Sequence[str], world: int, folder: Path) -> None:
    """Run torchrun in a folder, and keep its output and its exit status there; all that it has started ends with it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), *words]
    unbound = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    data = os.environ.get("FRAMEWORK_DATA") or str(HERE.parents[3] / "shared" / "data")  # as the fixture mnist has it
    environment = {**unbound, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "FRAMEWORK_DATA": data}
    environment |= {"FOLDER": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = -1  # given up
        finally:
            _end(process)
    (folder / "status").write_text(str(status), encoding="utf-8")


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started, in whatever session that is."""
    if process.poll() is None:
        for started in [*psutil.Process(process.pid).children(recursive=True), process]:
            try:
                started.kill()
            except psutil.NoSuchProcess:
                continue
    process.wait()


@pytest.fixture(scope="session")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """Runs a script of this folder on so many processes, once in all: `torchrun("worker_numbers", 2)`.

    A process takes seconds to import torch, so a script runs all the cases of a file, and writes a line for each into
    `rank-N.jsonl` of the folder that it is given. Of several workers of pytest-xdist the first one runs it for all.
    Words that follow are what torchrun is given in place of the script and the folder.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "여러 프로세스"
    shared.mkdir(exist_ok=True)

    @cache
    def ended(name: str, world: int, *words: str) -> Ended:
        folder = shared / f"{name} on {world}"
        with FileLock(shared / "lock"):  # never two of them at a time
            if not folder.exists():
                folder.mkdir()
                _run(words or (str(HERE / f"{name}.py"), str(folder)), world, folder)
        output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        ranks = [_found(folder / f"rank-{rank}.jsonl") for rank in range(world)]
        return Ended(folder, int((folder / "status").read_text(encoding="utf-8")), output[-TOLD:], ranks)

    return ended


def _found(path: Path) -> dict[str, Any]:
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else [])
    return {line["case"]: line["found"] for line in lines}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """As the ranks have: a sum of several threads is another one in its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
