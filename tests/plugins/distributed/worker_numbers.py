"""The fits of test_same_numbers.py: `torchrun --nproc-per-node 2 worker_numbers.py FOLDER`.

A case is a function that makes a fit, alike on each rank and on one process. Each row of the data carries its own
number, so that it can be told who has seen it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from framework_plugins.accuracy import Accuracy
from framework_plugins.average_weights import AverageWeights
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.early_stopping import EarlyStopping
from framework_plugins.limits import Limits
from framework_plugins.mixed_precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from framework import Trainer
from framework.checkpoint import find, read

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
SCALE = 32  # the first number of a row is its own number divided by this, which is exact


def mlp(outputs: int = 1, *more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), *more, nn.Linear(8, outputs)).double()


def rows(count: int, classes: int = 0) -> tuple[Tensor, Tensor]:
    """x of three numbers, of which the first tells the row; y a number, or a class."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    x[:, 0] = torch.arange(count) / SCALE
    return x, torch.arange(count) % classes if classes else (x.sum(dim=1, keepdim=True) + 1).sin()


@dataclass
class Fit:
    """A model, its data, and how it is trained.

    Attributes:
        fit: arguments of Trainer.fit
        plugins: made anew for each fit
        knobs: arguments of the plugin distributed
        test: what is evaluated before the fit and after it
        saves: whether what several processes end with is saved, and read again
    """

    model: nn.Module
    train: Any
    val: Any = None
    fit: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[..., Tensor] = F.mse_loss
    plugins: list[Any] = field(default_factory=list)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    test: Any = None
    saves: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] = SGD


class Seen:
    """Which rows came in each batch of each pass, without those that only pad, and the loss of each batch."""

    def __init__(self) -> None:
        self.rows: dict[str, list[list[list[int]]]] = {}
        self.losses: list[float] = []
        self.name = "seen"

    def on_split_start(self, split: str) -> None:
        self.rows.setdefault(split, []).append([])

    def on_batch_end(self, split: str, batch: Any, loss: Tensor, samples: int) -> None:
        x = batch[0]["left"] if isinstance(batch[0], dict) else batch[0]
        self.rows[split][-1].append((x[:samples, 0] * SCALE).round().long().tolist())


class SavesEnd:
    """Saves what the fit ends with."""

    def on_fit_end(self, trainer: Trainer) -> None:
        trainer.save()


def trained(make: Callable[[], Fit], plugins: Callable[..., list[Any]], folder: Path | None = None) -> dict[str, Any]:
    """Train it here; everything that is compared. `plugins` are what is added, given the knobs of `distributed`."""
    torch.manual_seed(0)
    fit, seen = make(), Seen()
    run_dir = folder if fit.saves else None
    trainer = Trainer(
        fit.model, fit.loss, fit.optimizer(fit.model.parameters()),
        [*fit.plugins, seen, *([SavesEnd()] if run_dir else []), *plugins(**fit.knobs)], device="cpu", run_dir=run_dir,
    )  # fmt: skip
    before = trainer.evaluate(fit.test, fit.fit.get("batch_size")) if fit.test is not None else {}
    result = trainer.fit(fit.train, fit.val, **fit.fit)
    found = {
        "history": result.history, "steps": result.steps, "stop": result.stop_reason, "before": before,
        "test": trainer.evaluate(fit.test, fit.fit.get("batch_size")) if fit.test is not None else {},
    }  # fmt: skip
    state = read(find(run_dir, "last")).model if run_dir else trainer.model.state_dict()
    return {
        **found, "rows": seen.rows, "digest": digest(state),
        "weights": {name: value.detach().double().flatten().tolist() for name, value in state.items()},
        **{name: value for plugin in fit.plugins for name, value in getattr(plugin, "found", {}).items()},
    }  # fmt: skip


def digest(state: Mapping[str, Tensor]) -> str:
    """The bits of all tensors."""
    found = hashlib.sha256()
    for value in state.values():
        found.update(value.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


CASES: dict[str, Callable[[], Fit]] = {}


def case(make: Callable[[], Fit]) -> Callable[[], Fit]:
    CASES[make.__name__] = make
    return make


# --------------------------------------------------------------------------------------------------- sizes of batches


@case
def batches_that_do_not_divide() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 3, "batch_size": 5})


@case
def a_last_batch_of_one_row() -> Fit:
    return Fit(mlp(), rows(21), rows(11), {"epochs": 3, "batch_size": 5})


@case
def batches_of_one_row() -> Fit:
    return Fit(mlp(), rows(5), rows(1), {"epochs": 2, "batch_size": 1})


@case
def in_order() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 2, "batch_size": 6, "shuffle": False})


@case
def without_the_last_batch() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 3, "batch_size": 5, "drop_last": True})


@case
def all_in_one_batch() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 3})


@case
def windows_of_two_and_a_last_row() -> Fit:  # batches of 4, 4 | 4, 4 | 1: the last window is a row of the first rank
    return Fit(mlp(), rows(17), rows(7), {"epochs": 3, "batch_size": 4, "accumulate": 2})


@case
def windows_of_three_and_a_short_one() -> Fit:  # 5, 5, 5 | 5, 3
    return Fit(mlp(), rows(23), rows(7), {"epochs": 3, "batch_size": 5, "accumulate": 3})


@case
def three_batches_in_windows_of_two() -> Fit:  # 5, 5 | 5, while the workers have fetched all
    options = {"epochs": 3, "batch_size": 5, "accumulate": 2, "num_workers": 2}
    return Fit(mlp(), rows(23), rows(7), options, plugins=[Limits(train_batches=3)])


@case
def three_batches_of_a_stream_in_windows_of_two() -> Fit:
    options = {"epochs": 3, "batch_size": 5, "accumulate": 2}
    return Fit(mlp(), Stream(23), Stream(7), options, plugins=[Limits(train_batches=3)])


# ----------------------------------------------------------------------------------------------------- kinds of data


@case
def a_loader_with_a_generator() -> Fit:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(*rows(23)), 5, shuffle=True, generator=generator)
    return Fit(mlp(), loader, DataLoader(TensorDataset(*rows(7)), 3), {"epochs": 3})


@case
def a_loader_without_a_generator() -> Fit:
    return Fit(mlp(), DataLoader(TensorDataset(*rows(23)), 5, shuffle=True), fit={"epochs": 3})


@case
def a_weighted_sampler() -> Fit:
    sampler = WeightedRandomSampler([1.0, 2.0] * 10, 17)
    return Fit(mlp(), DataLoader(TensorDataset(*rows(20)), 4, sampler=sampler), fit={"epochs": 3})


@case
def a_sampler_of_batches() -> Fit:
    batches = [[0, 1, 2], [3], [4, 5, 6, 7, 8], [10, 9]]
    return Fit(mlp(), DataLoader(TensorDataset(*rows(11)), batch_sampler=batches), fit={"epochs": 2})


class Stream(IterableDataset[Any]):
    """Rows that come one after the other, and nobody knows how many."""

    def __init__(self, count: int) -> None:
        self.x, self.y = rows(count)

    def __iter__(self) -> Iterator[Any]:
        return zip(self.x, self.y, strict=True)


@case
def a_stream() -> Fit:
    return Fit(mlp(), Stream(17), Stream(7), {"epochs": 2, "batch_size": 4})


@case
def two_workers() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 2, "batch_size": 5, "num_workers": 2})


class Sides(nn.Module):
    """Takes a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(), mlp()

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        both: Tensor = self.left(x["left"]) + self.right(x["right"])
        return both


@case
def dicts() -> Fit:
    x, y = rows(23)
    return Fit(Sides(), ({"left": x, "right": x.flip(0)}, y), fit={"epochs": 2, "batch_size": 5})


# ----------------------------------------------------------------------------------------------------------- figures


@case
def figures_of_classes() -> Fit:
    plugins = ["accuracy", Accuracy(top_k=2, name="top2"), "confusion_matrix", "f1_score", Matrix()]
    options = {"epochs": 2, "batch_size": 4}
    return Fit(mlp(3), rows(23, 3), rows(7, 3), options, F.cross_entropy, plugins, test=rows(11, 3))


class Matrix:
    """The confusion matrix of the validation set."""

    def on_fit_end(self, trainer: Trainer) -> None:
        self.found = {"matrix": trainer.plugins["confusion_matrix"].matrix["val"].tolist()}


@case
def figures_of_numbers() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 2, "batch_size": 4}, plugins=["regression"], test=rows(11))


@case
def figures_of_a_stream() -> Fit:
    return Fit(mlp(), Stream(17), Stream(7), {"epochs": 2, "batch_size": 4}, plugins=["regression"], test=Stream(11))


@case
def figures_of_a_sharded_model() -> Fit:
    options = {"epochs": 2, "batch_size": 4}
    return Fit(
        mlp(), rows(23), rows(7), options, knobs={"shard": True}, plugins=["regression"], test=rows(11), saves=True
    )


class Looks:
    """Evaluates the validation set in the middle of an epoch."""

    def on_fit_start(self) -> None:
        self.found = {"looked": list[dict[str, float]]()}

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step % 2:
            self.found["looked"].append(trainer.evaluate(trainer.loaders["val"]))


@case
def a_stream_looked_at() -> Fit:
    return Fit(mlp(), rows(23), Stream(7), {"epochs": 2, "batch_size": 4}, plugins=["regression", Looks()])


@case
def rows_looked_at() -> Fit:
    return Fit(mlp(), Stream(23), rows(7), {"epochs": 2, "batch_size": 4}, plugins=["regression", Looks()])


# ----------------------------------------------------------------------------------------------------------- plugins


class Masks:
    """What dropout has left of each batch."""

    def on_fit_start(self, trainer: Trainer) -> None:
        masks: list[list[bool]] = []
        self.found = {"masks": masks}
        dropout = next(module for module in trainer.model.modules() if isinstance(module, nn.Dropout))

        def look(module: nn.Module, _: Any, output: Tensor) -> None:
            if module.training:
                masks.append((output != 0).flatten().tolist())

        dropout.register_forward_hook(look)


@case
def dropout() -> Fit:
    options = {"epochs": 3, "batch_size": 8}  # as many rows for each rank, so that equal masks would be seen
    return Fit(mlp(1, nn.Dropout()), rows(24), rows(7), options, plugins=[Masks()])


@case
def batch_norm() -> Fit:
    model = mlp(1, nn.BatchNorm1d(8).double())
    return Fit(model, rows(24), rows(7), {"epochs": 2, "batch_size": 8})


@case
def bf16() -> Fit:
    return Fit(mlp().float(), floats(23), floats(7), {"epochs": 2, "batch_size": 5}, plugins=[MixedPrecision("bf16")])


def floats(count: int) -> tuple[Tensor, Tensor]:
    x, y = rows(count)
    return x.float(), y.float()


@case
def clipped() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 2, "batch_size": 5}, plugins=[ClipGradients(0.1)])


@case
def clipped_windows() -> Fit:
    options = {"epochs": 2, "batch_size": 5, "accumulate": 2}
    return Fit(mlp(), rows(23), rows(7), options, plugins=[ClipGradients(0.1)])


@case
def averaged() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 3, "batch_size": 5}, plugins=[AverageWeights(decay=0.5)])


@case
def adam_with_a_schedule() -> Fit:
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    return Fit(mlp(), rows(23), rows(7), {"epochs": 3, "batch_size": 5}, plugins=["schedule"], optimizer=optimizer)


# ------------------------------------------------------------------------------------------------------------ the end


@case
def early_stopping() -> Fit:
    stopping = EarlyStopping("val_loss", patience=2, min_delta=10.0)
    return Fit(mlp(), rows(23), rows(7), {"epochs": 9, "batch_size": 5}, plugins=[stopping])


@case
def limited() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 9, "batch_size": 5}, plugins=[Limits(steps=7)])


class StopsAt:
    """Asks for the end after a step, on every rank."""

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == 3:
            trainer.stop("enough")


@case
def stopped_by_all() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 9, "batch_size": 5}, plugins=[StopsAt()])


class LastRankAsks:
    """Only the last rank wants to stop; there is one where there is one process."""

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        processes = trainer.processes
        if split == "train" and trainer.step == 3 and processes.rank == processes.size - 1:
            trainer.ask(partial(trainer.stop, "the last rank has had enough"))


@case
def asked_by_one() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 5000, "batch_size": 5}, plugins=[LastRankAsks()])


# -------------------------------------------------------------------------------------------------- reduced gradients


class Rounds:
    """How often gradients were reduced, by the hook that DDP has for that."""

    def on_fit_start(self, trainer: Trainer) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self.found = {"rounds": 0}
        if hasattr(trainer.prepared, "register_comm_hook"):  # else it is one process

            def counted(state, bucket):  # torch takes no other annotations than its own
                self.found["rounds"] += bucket.is_last()
                return allreduce_hook(state, bucket)

            trainer.prepared.register_comm_hook(None, counted)


@case
def rounds_of_a_step() -> Fit:
    return Fit(mlp(), rows(23), fit={"epochs": 2, "batch_size": 5}, plugins=[Rounds()])


@case
def rounds_of_a_window() -> Fit:
    return Fit(mlp(), rows(23), fit={"epochs": 2, "batch_size": 5, "accumulate": 2}, plugins=[Rounds()])


class Branches(nn.Module):
    """Has a part that no batch uses."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = mlp(), mlp()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.used(x)
        return output


@case
def unused_parameters() -> Fit:
    return Fit(Branches(), rows(23), rows(7), {"epochs": 2, "batch_size": 5}, knobs={"find_unused": True})


@case
def unused_parameters_untold() -> Fit:
    return Fit(Branches(), rows(23), rows(7), {"epochs": 2, "batch_size": 5})


class Past:
    """Calls the model itself, and not what it was wrapped into."""

    def forward(self, trainer: Trainer, batch: Any) -> Tensor:
        output: Tensor = trainer.model(batch[0])
        return output


@case
def past_the_prepared_model() -> Fit:
    return Fit(mlp(), rows(23), rows(7), {"epochs": 2, "batch_size": 5}, plugins=[Past()])


@case
def a_sampler_of_torch_for_ranks() -> Fit:
    data = TensorDataset(*rows(23))
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=2, rank=0)
    return Fit(mlp(), DataLoader(data, 5, sampler=sampler))


# ------------------------------------------------------------------------------------------------------------ sharded


@case
def sharded() -> Fit:
    return Fit(mlp(), rows(21), rows(7), {"epochs": 3, "batch_size": 5}, knobs={"shard": True}, saves=True)


@case
def sharded_windows() -> Fit:
    options = {"epochs": 2, "batch_size": 4, "accumulate": 2}
    return Fit(mlp(), rows(17), rows(7), options, knobs={"shard": True}, saves=True)


@case
def sharded_and_clipped() -> Fit:
    options = {"epochs": 2, "batch_size": 5}
    return Fit(mlp(), rows(23), rows(7), options, plugins=[ClipGradients(0.1)], knobs={"shard": True}, saves=True)


@case
def sharded_and_averaged() -> Fit:
    plugins = [AverageWeights(decay=0.5)]
    options = {"epochs": 2, "batch_size": 5}
    return Fit(mlp(), rows(23), rows(7), options, plugins=plugins, knobs={"shard": True}, saves=True)


@case
def sharded_adam() -> Fit:
    optimizer = partial(torch.optim.AdamW, lr=0.01)
    options = {"epochs": 2, "batch_size": 5}
    return Fit(mlp(), rows(23), rows(7), options, optimizer=optimizer, knobs={"shard": True}, saves=True)


FOUR = (  # those that four processes run too: where more ranks make a difference
    "batches_that_do_not_divide", "a_last_batch_of_one_row", "windows_of_two_and_a_last_row", "all_in_one_batch",
    "a_loader_with_a_generator", "a_sampler_of_batches", "a_stream", "figures_of_classes", "dropout", "clipped",
    "asked_by_one", "sharded", "sharded_and_clipped",
)  # fmt: skip


if __name__ == "__main__":
    import os

    import worker_recipes
    from framework_plugins.distributed import Distributed
    from running import work

    two = os.environ["WORLD_SIZE"] == "2"
    work(
        {
            name: partial(trained, CASES[name], lambda **knobs: [Distributed(**knobs)])
            for name in (CASES if two else FOUR)
        }
        | worker_recipes.cases([] if two else worker_recipes.FEW)  # four processes are started once for both files
    )
