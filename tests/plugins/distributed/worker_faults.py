"""A plugin with which a process kills itself, raises, or gets a signal, at a place that the environment tells.

FAULTS is a list of faults in JSON, one for each time that torchrun starts the processes: {"rank", "at", "step"}. What
each rank goes through is written into FAULTS_FOLDER, a line for each thing in `rank-N.txt`.
"""

import json
import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

from framework_plugins.distributed import agreement

from framework import Result, Trainer, hookimpl
from framework.checkpoint import files, store

PARTS = "optimizer.safetensors", "rank-00001.safetensors", "rank-00003.safetensors"  # what a rank writes, one of each


agreement.MOST_STEPS = 20  # from one agreement to the next, however fast the steps are


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """Does what FAULTS says to this process."""

    def __init__(self) -> None:
        self.rank, self.attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        faults = json.loads(os.environ["FAULTS"])
        fault = faults[self.attempt] if self.attempt < len(faults) else {}
        self.at, self.step = (fault["at"], fault["step"]) if fault.get("rank") == self.rank else ("", -1)
        self.first, self.written = 0, False

    def note(self, *words: Any) -> None:
        with Path(os.environ["FAULTS_FOLDER"], f"rank-{self.rank}.txt").open("a", encoding="utf-8") as file:
            print(self.attempt, *words, file=file)

    def due(self, at: str) -> bool:
        return self.at == at and self.trainer.step == self.step

    def on_fit_start(self, trainer: Trainer) -> None:
        assert trainer.run_dir is not None
        self.trainer = trainer
        for path in store.candidates(trainer.run_dir):
            store.read(path)  # or it was half written
        next(trainer.model.parameters()).register_hook(lambda _: die() if self.due("all-reduce") else None)
        if self.at in ("save", "commit"):
            files.system = Disk(self)  # type: ignore[assignment]
            gather = trainer.processes.gather

            def gathered(value: Any) -> list[Any]:
                found = gather(value)
                if self.rank and self.written and self.due("commit"):
                    die()
                return found

            trainer.processes.gather = gathered  # type: ignore[method-assign]

    def on_batch_start(self, trainer: Trainer, split: str) -> None:
        if not self.first and split == "train":  # everything is loaded
            self.first = trainer.step + 1
            self.note("begins", trainer.step)

    @hookimpl(wrapper=True)
    def forward(self, split: str) -> Generator[None, Any, Any]:
        if split == "train" and self.due("forward"):
            die()
        return (yield)

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split != "train":
            return
        if self.due("raise"):
            raise RuntimeError("the disk fell off")
        if self.at.startswith("SIG") and trainer.step == self.first + self.step:
            os.kill(os.getpid(), getattr(signal, self.at))

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        store.read(path)
        self.note("told of", path.name)
        if self.at == "SIGUSR1":  # that was the save which it asked for; now an end
            self.at, self.step = "SIGTERM", trainer.step + 5 - self.first

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        self.note("ends", trainer.step, result.stop_reason)


class Disk(files.System):
    """The disk of a process that is killed while it writes its part, or when it commits."""

    def __init__(self, faults: Faults) -> None:
        self.faults, self.mine = faults, -1

    def open(self, path: Path, flags: int) -> int:
        descriptor = super().open(path, flags)
        if flags & os.O_CREAT and path.name in PARTS:
            self.mine = descriptor
            if self.faults.due("save"):
                die()
        if flags & os.O_CREAT and path.name == "MANIFEST.json" and self.faults.due("commit"):
            die()
        return descriptor

    def close(self, descriptor: int) -> None:  # type: ignore[override]
        os.close(descriptor)
        self.faults.written = self.faults.written or descriptor == self.mine
