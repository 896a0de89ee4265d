"""The part of each batch that is for one process: rows one after another, so that all parts in order are the batch."""

from __future__ import annotations

import contextlib
import operator
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from framework import UsageError, apply

from .draws import Common

MARKED = 64  # numbers of a tensor, by which batches are compared

# What a DataLoader is made of, beside its batches and its generator.
SETTINGS = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
            "prefetch_factor", "persistent_workers")  # fmt: skip


def part(rows: int, rank: int, size: int) -> range:
    """The rows of a batch that are for one of `size` processes; the numbers of rows differ by at most one."""
    return range(rows * rank // size, rows * (rank + 1) // size)


class RankRows(Sampler[list[Any]]):
    """The batches of a batch sampler, each cut to the rows of one process. All processes draw the same batches.

    A process without a row in a batch gets its first one, as padding: a step is taken by all of them.

    Attributes:
        sizes: the rows of each whole batch of this pass, as far as they have been asked for
        mark: another one in a process that has drawn other batches; 0 where rows are no numbers
    """

    def __init__(self, batches: Any, rank: int, size: int, common: Common, seeds: Any, once: bool = False) -> None:
        self.batches, self.rank, self.size = batches, rank, size
        self.sampler = getattr(batches, "sampler", None)  # the user's generator is looked for there
        self.generator = common.generator
        self.sizes: list[int] = []
        self.mark = 0
        self._common, self._seeds = common, seeds
        self._once, self._seeded = once, False  # persistent workers are seeded in the first pass alone
        samplers = batches, self.sampler
        self._draws_at_once = all(type(each).__module__ == Sampler.__module__ for each in samplers if each is not None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        sizes: list[int] = []
        self.sizes, self.mark = sizes, 0
        with self._common:
            if not self._seeded:
                self._common.seed_of_workers(self._seeds)
            self._seeded = self._once
            batches = iter(self.batches)
            rows = next(batches, None)
        while rows is not None:
            rows = list(rows)
            sizes.append(len(rows))
            with contextlib.suppress(TypeError):  # rows that are no numbers
                self.mark = hash((self.mark, *map(operator.index, rows)))
            mine = part(len(rows), self.rank, self.size)
            yield rows[mine.start : mine.stop] or rows[:1]
            if self._draws_at_once:
                rows = next(batches, None)
            else:
                with self._common:
                    rows = next(batches, None)


class RankSlices(DataLoader[Any]):
    """The batches of any iterable, each cut to the rows of one process. All processes go through all of it.

    What it draws is drawn from the stream that the processes have in common: so they see the same batches.
    """

    whole: Any = None  # asked for before there is one when it is copied

    def __init__(self, whole: Any, rank: int, size: int, common: Common) -> None:  # not DataLoader's own
        self.whole, self.rank, self.size = whole, rank, size
        self.generator = common.generator
        self.sizes: list[int] = []
        self.mark = 0
        self._common = common

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Any:
        sizes: list[int] = []
        self.sizes, self.mark = sizes, 0
        with self._common:
            batches = iter(self.whole)
            batch = next(batches, None)
        while batch is not None:
            self.mark = _marked(batch, self.mark)
            yield cut(batch, self.rank, self.size, sizes)
            with self._common:
                batch = next(batches, None)


def _marked(batch: Any, mark: int) -> int:
    """The mark of a pass with one batch more: of some numbers of each of its tensors."""
    marks = [mark]

    def take(tensor: Tensor) -> None:
        some = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // MARKED)].contiguous().cpu()
        marks.append(zlib.crc32(some.view(torch.uint8).numpy().tobytes(), marks[-1]))  # the bits: a nan has no hash

    apply(take, batch)
    return marks[-1]


def cut(batch: Any, rank: int, size: int, sizes: list[int]) -> Any:
    """The rows of a batch that are for one process; how many the whole has is added to `sizes`."""
    lengths: list[int] = []
    apply(lambda tensor: lengths.append(len(tensor)) if tensor.dim() else None, batch)
    if not lengths or len(set(lengths)) > 1:
        told = ", ".join(map(str, lengths)) or "none"
        raise UsageError(
            f"a batch is cut over {size} processes along dimension 0 of its tensors, and theirs are {told}: let a "
            "Dataset give the samples, so that their numbers can be cut"
        )
    sizes.append(lengths[0])
    mine = part(lengths[0], rank, size) or range(1)
    return _rows(batch, mine, lengths[0])


def _rows(tree: Any, mine: range, rows: int) -> Any:
    """These rows of a tree, whose lists of plain values have one for each row."""
    if isinstance(tree, Tensor):
        return tree[mine.start : mine.stop] if tree.dim() else tree
    if isinstance(tree, dict):
        return {key: _rows(value, mine, rows) for key, value in tree.items()}
    if not isinstance(tree, (list, tuple)):
        return tree
    if tree and not any(isinstance(each, (Tensor, dict, list, tuple)) for each in tree):
        if len(tree) != rows:
            raise UsageError(f"a batch of {rows} rows has a {type(tree).__name__} of {len(tree)} values")
        return tree[mine.start : mine.stop]
    parts = [_rows(value, mine, rows) for value in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def of_rank(loader: Any, rank: int, size: int, common: Common) -> Any:
    """A loader of the rows of one process, with the attribute `whole`, the loader of all rows.

    Raises:
        UsageError: it is cut already, by a DistributedSampler
    """
    batches: Any = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        if isinstance(sampler, DistributedSampler):
            raise UsageError(
                "the DataLoader has a DistributedSampler: leave it out, and give shuffle=True and the size of the "
                "whole batch; the plugin distributed cuts each batch"
            )
    if hasattr(loader, "batch"):  # the whole data set
        sizes: list[int] = []
        made = type(loader)(cut(loader.batch, rank, size, sizes))
        made.sizes, made.mark, made.generator = sizes, 0, common.generator
    elif type(loader) is not DataLoader or batches is None or isinstance(loader.dataset, IterableDataset):
        return RankSlices(loader, rank, size, common)
    else:
        dataset: Dataset[Any] = loader.dataset
        rows = RankRows(batches, rank, size, common, loader.generator, loader.persistent_workers)
        made = DataLoader(dataset, batch_sampler=rows, **{name: getattr(loader, name) for name in SETTINGS})
    made.whole = loader
    return made


def cutter(loader: Any) -> Any:
    """What has the `sizes` and the `mark` of a loader that `of_rank` made; None for another one."""
    rows = getattr(loader, "batch_sampler", None)
    return rows if isinstance(rows, RankRows) else loader if hasattr(loader, "sizes") else None
