"""Ranks that disagree, ranks that see other data, and ranks that cannot save: what each of them is told.

A case is run on each rank, and may give other arguments there.
"""

import errno
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.distributed import Distributed
from running import work
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset, random_split

from framework import Trainer
from framework.checkpoint import files, store

RANK = int(os.environ["RANK"])
OPTIONS = "on_save_error", "on_plugin_error", "async_save", "samples"  # of a Trainer


class Broken(files.System):
    """A disk that writes nothing any more."""

    def __init__(self, code: int) -> None:
        self.code = code

    def fsync(self, descriptor: int) -> None:
        raise OSError(self.code, os.strerror(self.code))


class Steps:
    """Counts the steps of a fit, and is told of its checkpoints."""

    def __init__(self, name: str = "steps") -> None:
        self.name, self.steps, self.told = name, 0, list[str]()

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        self.steps += split == "train"

    def on_checkpoint(self, path: Path) -> None:
        self.told.append(path.name)


class FailsFrom:
    """The disk of this rank is broken from a step on."""

    def __init__(self, step: int, code: int) -> None:
        self.step, self.code = step, code

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            files.system = Broken(self.code)


def fit(run_dir: Path, *plugins: Any, hidden: int = 4, lr: float = 0.1, rows: int = 20, **more: Any) -> dict[str, Any]:
    """A fit of 10 steps; what it was told."""
    torch.manual_seed(0)
    first = nn.LazyLinear(hidden) if more.pop("lazy", False) else nn.Linear(3, hidden)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, 1))
    optimizer = more.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=lr)
    x = torch.randn(rows, 3)
    steps = Steps()
    options = {name: more.pop(name) for name in OPTIONS if name in more}
    data = more.pop("data", tensors)(x)
    more |= {} if isinstance(data, DataLoader) else {"batch_size": 4}
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, [*plugins, steps, Distributed()], device="cpu", run_dir=run_dir, **options
    )
    found: dict[str, Any] = {"error": "", "kind": ""}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            trainer.fit(data, epochs=2, **more)
        except Exception as error:
            found = {"error": "\n".join([str(error), *getattr(error, "__notes__", ())]), "kind": type(error).__name__}
        finally:
            files.system = files.System()
    found["warnings"] = [str(each.message) for each in seen if issubclass(each.category, UserWarning)]
    return {**found, "steps": steps.steps, "told": steps.told, "saved": saved(run_dir)}


def saved(run_dir: Path) -> list[int]:
    """The steps of all checkpoints, each of which must be whole; and nothing unfinished."""
    assert not [*run_dir.glob("checkpoints/.tmp-*")]
    return sorted(store.read(path).step for path in store.candidates(run_dir))


def here(first: Any, other: Any) -> Any:
    """What this rank is given."""
    return other if RANK else first


def tensors(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x.sum(1, keepdim=True)


def noise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Data that each process draws for itself."""
    torch.manual_seed(RANK)
    return tensors(torch.randn_like(x))


def half(x: Tensor) -> Any:
    """The half of the data that each process draws for itself."""
    torch.manual_seed(RANK)
    return random_split(TensorDataset(*tensors(x)), [0.5, 0.5])[0]


class Order(Sampler[int]):
    """An order that a function draws."""

    def __init__(self, drawn: Callable[[int], list[int]]) -> None:
        self.drawn = drawn

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        return iter(self.drawn(20))


def by_numpy(count: int) -> list[int]:
    return numpy.random.permutation(count).tolist()  # type: ignore[no-any-return]


def by_python(count: int) -> list[int]:
    return random.sample(range(count), count)


def in_order_of(drawn: Callable[[int], list[int]]) -> Callable[[Tensor], DataLoader[Any]]:
    return lambda x: DataLoader(TensorDataset(*tensors(x)), 4, sampler=Order(drawn))


class Shuffled(IterableDataset[Any]):
    """A stream in an order of Python's own generator; in the order of the rows up to a place."""

    def __init__(self, x: Tensor, begin: int) -> None:
        self.rows, self.begin = [*zip(*tensors(x), strict=True)], begin

    def __iter__(self) -> Iterator[Any]:
        rest = self.rows[self.begin :]
        return iter([*self.rows[: self.begin], *random.sample(rest, len(rest))])


def going_on(run_dir: Path) -> dict[str, Any]:
    """Each rank is to go on from another checkpoint of the same fit."""
    whole = fit(run_dir, BestCheckpoint(every_steps=3))
    assert whole["steps"] == 10, whole
    steps = sorted((run_dir / "checkpoints").glob("step-*"))[-2:]
    return fit(run_dir, BestCheckpoint(), resume=here(*steps))


def failing(code: int, rank: int, then: str) -> Callable[[Path], dict[str, Any]]:
    """A fit whose disk fails for one rank from step 5 on."""
    fails = FailsFrom(5 if rank == RANK else -1, code)
    often = BestCheckpoint(every_steps=2, every_seconds=1e9)
    return lambda run_dir: fit(run_dir, fails, often, on_save_error=then)


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "model": lambda run_dir: fit(run_dir, hidden=here(4, 5)),
    "optimizer": lambda run_dir: fit(run_dir, optimizer=here(torch.optim.SGD, torch.optim.Adam)),
    "learning rate": lambda run_dir: fit(run_dir, lr=here(0.1, 0.2)),
    "plugins": lambda run_dir: fit(run_dir, *here([], [Steps("another")])),
    "rows": lambda run_dir: fit(run_dir, rows=here(20, 24)),
    "step": going_on,
    "noise": lambda run_dir: fit(run_dir, data=noise),
    "half": lambda run_dir: fit(run_dir, data=half),
    "a sampler of NumPy": lambda run_dir: fit(run_dir, data=in_order_of(by_numpy)),
    "a sampler of Python": lambda run_dir: fit(run_dir, data=in_order_of(by_python)),
    "a stream": lambda run_dir: fit(run_dir, data=lambda x: Shuffled(x, 0)),
    "a stream, later": lambda run_dir: fit(run_dir, data=lambda x: Shuffled(x, 8)),
    "disable": lambda run_dir: fit(run_dir, on_plugin_error="disable"),
    "async_save": lambda run_dir: fit(run_dir, async_save=True),
    "samples": lambda run_dir: fit(run_dir, samples=lambda batch: len(batch[0])),
    "lazy layers": lambda run_dir: fit(run_dir, lazy=True),
    **{
        f"{errno.errorcode[code]} on {rank}, {then}": failing(code, rank, then)
        for code in (errno.ENOSPC, errno.EIO)
        for rank in (0, 1)
        for then in ("stop", "continue")
    },
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    work(CASES)
