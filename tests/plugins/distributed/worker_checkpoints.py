"""Fits that are stopped in the middle of an epoch, and gone on with by as many processes or by others.

`torchrun --nproc-per-node 2 worker_checkpoints.py FOLDER` writes the checkpoints; what four processes go on from is
beside their folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.distributed import Distributed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from framework import Result, Trainer
from framework.checkpoint import store

STOP = 7  # the step in which a fit is stopped; an epoch has five
ROWS = 23
SCALE = 32  # the first number of a row is its own number divided by this, which is exact
WRITTEN = "worker_checkpoints on 2"


class Watch:
    """Which rows came in each batch, what was told of checkpoints, and the state at the end; stops in a step."""

    def __init__(self, stop: int) -> None:
        self.stop, self.name = stop, "watch"
        self.rows: list[list[int]] = []
        self.told: list[list[Any]] = []
        self.end: dict[str, Any] = {}

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, samples: int) -> None:
        if split == "train":
            self.rows.append((batch[0][:samples, 0] * SCALE).round().long().tolist())
            if trainer.step == self.stop:
                trainer.stop("enough for today")

    def on_checkpoint(self, path: Path) -> None:
        store.read(path)  # it is whole on the disk
        names = [each.name for each in store.candidates(path.parents[1])]
        self.told.append([path.name, path.name in names, len(names)])

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        optimizer = trainer.optimizer.state_dict()
        averages = trainer.plugins["average_weights"].state_dict()
        self.end = {"model": whole(dict(trainer.model.state_dict())), "optimizer": whole(optimizer)}
        self.end["averages"] = whole(averages)


class Order(Sampler[int]):
    """A new order for each epoch that it is told of."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return ROWS

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(ROWS, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class TellsEpoch:
    """Tells a sampler of the epoch, as one does for torch's DistributedSampler."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def on_epoch_start(self, epoch: int) -> None:
        self.order.set_epoch(epoch)


def whole(tree: Any) -> Any:
    """A tree of tensors that are not cut, which all processes ask for together."""
    if isinstance(tree, Tensor):
        return tree.full_tensor().clone() if hasattr(tree, "full_tensor") else tree.detach().clone()
    if isinstance(tree, dict):
        return {name: whole(value) for name, value in tree.items()}
    return type(tree)(map(whole, tree)) if isinstance(tree, (list, tuple)) else tree


def fit(
    run_dir: Path, *plugins: Any, dropout: float = 0.0, stop: int = 0, resume: Path | None = None, again: bool = False,
    told: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """A fit of 15 steps in three epochs; what was seen of it. The state at its end goes into `end.pt`.

    Args:
        again: saved once more after it was stopped, and gone on with by the same trainer
        told: the order of the data is that of a sampler which is told of each epoch
    """
    torch.manual_seed(0)
    x = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, 0] = torch.arange(ROWS) / SCALE
    data = x, (x.sum(1, keepdim=True) + 1).sin()
    order = Order()
    train: Any = DataLoader(TensorDataset(*data), 5, sampler=order) if told else data
    sizes: dict[str, Any] = {} if told else {"batch_size": 5}
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    watch = Watch(stop)
    often = BestCheckpoint(every_steps=3, every_seconds=1e9)
    every = [AverageWeights(0.9), often, watch, TellsEpoch(order), *plugins]
    trainer = Trainer(model, nn.MSELoss(), optimizer, every, device="cpu", run_dir=run_dir)
    val = x[:7], data[1][:7]
    result = trainer.fit(train, val, epochs=3, resume=resume, **sizes)
    if again:
        trainer.save("by_hand")
        result = trainer.fit(train, val, epochs=3, resume=run_dir, **sizes)
    if rank() == 0:
        torch.save(watch.end, run_dir / "end.pt")
    rows = [{name: row[name] for name in ("epoch", "step", "train_loss", "val_loss")} for row in result.history]
    return {"rows": watch.rows, "history": rows, "told": watch.told, "run_dir": str(run_dir)}


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def together(run_dir: Path, shard: bool, **options: Any) -> dict[str, Any]:
    return fit(run_dir, Distributed(shard=shard), **options)


def alone(run_dir: Path) -> dict[str, Any]:
    """Written by one process, while the others wait."""
    found = fit(run_dir, stop=STOP) if rank() == 0 else {}
    dist.barrier()
    return found


def gone_on(source: str, shard: bool, **options: Any) -> Callable[[Path], dict[str, Any]]:
    """Goes on from a copy of what `source` has left."""

    def case(run_dir: Path) -> dict[str, Any]:
        there = run_dir.parents[1] / WRITTEN / source
        if rank() == 0:
            shutil.copytree(there, run_dir)
        dist.barrier()
        return together(run_dir, shard, resume=run_dir, **options)

    return case


NOISE = {"dropout": 0.3}
WRITE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "copies": lambda run_dir: together(run_dir, False, stop=STOP),
    "shards": lambda run_dir: together(run_dir, True, stop=STOP),
    "alone": alone,
    "copies, whole": lambda run_dir: together(run_dir, False),
    "shards, whole": lambda run_dir: together(run_dir, True),
    "noisy copies": lambda run_dir: together(run_dir, False, stop=STOP, **NOISE),
    "noisy shards": lambda run_dir: together(run_dir, True, stop=STOP, **NOISE),
    "noisy copies, whole": lambda run_dir: together(run_dir, False, **NOISE),
    "noisy shards, whole": lambda run_dir: together(run_dir, True, **NOISE),
    "noisy copies, again": lambda run_dir: together(run_dir, False, stop=STOP, again=True, **NOISE),
    "noisy shards, again": lambda run_dir: together(run_dir, True, stop=STOP, again=True, **NOISE),
    "told copies": lambda run_dir: together(run_dir, False, stop=STOP, told=True),
    "told copies, whole": lambda run_dir: together(run_dir, False, told=True),
    "told copies, gone on": gone_on("told copies", False, told=True),
    "noisy copies, gone on": gone_on("noisy copies", False, **NOISE),
    "noisy shards, gone on": gone_on("noisy shards", True, **NOISE),
}
GO_ON: dict[str, Callable[[Path], dict[str, Any]]] = {
    f"{source} to {'shards' if shard else 'copies'}": gone_on(source, shard)
    for source in ("alone", "copies", "shards")
    for shard in (False, True)
}

if __name__ == "__main__":
    from running import work

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work({**(WRITE if os.environ["WORLD_SIZE"] == "2" else {}), **GO_ON})
