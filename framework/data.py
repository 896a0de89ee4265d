"""From a data set to batches: torch's DataLoader, or the whole as one batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, StackDataset, TensorDataset, default_collate

from framework.device import apply, leaves, move, named
from framework.errors import DataError, UsageError
from framework.mistakes import guarded, kind_of, repeated


class Whole:
    """Gradient descent: all samples in their own order as one batch, made once. Draws nothing from any generator."""

    def __init__(self, batch: Any) -> None:
        self.batch = tuple(batch) if isinstance(batch, list) else batch

    @property
    def samples(self) -> int:
        return count_samples(self.batch)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.batch


def make_loader(
    data: Any, split: str, batch_size: int | None, shuffle: bool, drop_last: bool, num_workers: int = 0,
    device: torch.device | None = None,
) -> Any:  # fmt: skip
    """An iterable of batches. A DataLoader is taken as it is; without a batch size the whole is one batch.

    Raises:
        DataError: nothing in it, x and y of different length, or no batch left by drop_last
    """
    if isinstance(data, (DataLoader, Whole)):
        if length(data) == 0:
            raise DataError(f"{split}: the DataLoader gives no batch")
        return data
    dataset = _dataset(data, split)
    size = length(dataset)
    if size == 0:
        raise DataError(f"{split}: the data set is empty")
    if size is None and not isinstance(dataset, IterableDataset):
        raise DataError(f"{split}: the Dataset {type(dataset).__name__} has no length; give it a __len__")
    if batch_size is None:
        batch = _whole(data, dataset)
        return Whole(move(batch, device or torch.device("cpu")))
    if drop_last and size is not None and size < batch_size:
        raise DataError(
            f"{split}: drop_last=True leaves no batch: {size} samples are fewer than batch_size={batch_size}"
        )
    dataset = guarded(dataset, split, num_workers)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


def _dataset(data: Any, split: str) -> Dataset[Any]:
    if isinstance(data, Dataset):
        return data
    if isinstance(data, (tuple, list)) and len(data) == 2:
        found = dict(named(data))
        if found and all(tensor.dim() for tensor in found.values()):
            lengths = {tensor.size(0) for tensor in found.values()}
            if len(lengths) > 1:
                shown = ", ".join(f"{name} {tensor.size(0)}" for name, tensor in found.items())
                raise DataError(f"{split}: x and y must have the same number of samples; there are: {shown}")
            if all(isinstance(part, Tensor) for part in data):
                return TensorDataset(*data)
            return StackDataset(*(_stacked(part, split) for part in data))
    parts = f" of {', '.join(type(part).__name__ for part in data[:3])}" if isinstance(data, (tuple, list)) else ""
    held = data.values() if isinstance(data, dict) else data if isinstance(data, (tuple, list)) else ()
    made = "StackDataset(**data)" if isinstance(data, dict) else "TensorDataset(*data)"
    hint = f"; of these tensors make a {made}, whose batches a plugin with forward and compute_loss takes"
    raise DataError(
        f"{split} is of type {type(data).__name__}{parts}; it must be a Dataset, a pair of tensors (x, y) with the "
        "samples in dimension 0, or a DataLoader"
        + hint
        * (len(held) != 2 and all(isinstance(t, Tensor) for t in held or [0]))
    )


def _stacked(tree: Any, split: str) -> Any:
    """Samples of x and y that are dicts, lists or tuples of tensors, by torch's own data set for that."""
    if isinstance(tree, Tensor):
        return tree
    if not isinstance(tree, (dict, list, tuple)):
        raise DataError(f"{split}: x and y are tensors in dicts, lists and tuples; one is a {type(tree).__name__}")
    parts = tree.values() if isinstance(tree, dict) else tree
    stacked = StackDataset(*(_stacked(part, split) for part in parts))
    if isinstance(tree, dict):
        stacked.datasets = dict(zip(tree, stacked.datasets, strict=True))  # its own way takes only names for keys
    return stacked


def length(data: Any) -> int | None:
    """Its length; None where it does not know."""
    try:
        return len(data)
    except (TypeError, NotImplementedError, ValueError):  # an IterableDataset need not know
        return None


def _whole(data: Any, dataset: Dataset[Any]) -> Any:
    if not isinstance(data, Dataset):
        return tuple(data)
    if isinstance(dataset, IterableDataset):
        return default_collate(list(dataset))
    return default_collate([dataset[index] for index in range(length(dataset) or 0)])


def promised(loader: Any) -> tuple[float, int] | None:
    """How many batches a pass gives that begins now, and what difference from that is too much; None if unknown."""
    if type(loader) is not DataLoader:
        return None
    if isinstance(loader.dataset, IterableDataset):
        size = length(loader.dataset)  # the last batch of each worker may be short, or be left out
        return None if size is None else (size / (loader.batch_size or 1), max(1, loader.num_workers))
    samplers = loader.batch_sampler, getattr(loader.batch_sampler, "sampler", loader.sampler)
    known = all(sampler is None or type(sampler).__module__ == Sampler.__module__ for sampler in samplers)
    return (len(loader), 1) if known else None


def complete(split: str, loader: Any, promise: tuple[float, int] | None, seen: int) -> None:
    """Look at a pass that gave `seen` batches.

    Raises:
        DataError: samples were lost, or came once from each worker
    """
    if promise is None or abs(seen - promise[0]) < promise[1]:
        return
    kind, workers = kind_of(loader.dataset), loader.num_workers
    if not isinstance(loader.dataset, IterableDataset):
        why = f"{kind} raised StopIteration, which ends it; every row from 0 up to its length must give a sample"
        raise DataError(f"{split}: the pass ended after {seen} of {promise[0]} batches: {why}")
    told = length(loader.dataset)
    said = f"{split}: {seen} batches of {loader.batch_size} came from {kind}, whose length is {told}"
    if seen > promise[0] and workers > 1:
        raise DataError(f"{said}: {repeated(loader.dataset, workers)}")
    warnings.warn(f"{said}: correct its __len__, or leave it out", stacklevel=2)


def windows(batches: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Groups of `size` batches, each fetched before its first step; the last one may be shorter."""
    iterator = iter(batches)
    return zip(iterator, strict=False) if size == 1 else iter(lambda: tuple(islice(iterator, size)), ())


def count_samples(batch: Any) -> int:
    """The leading dimension of a batch.

    Raises:
        DataError: its tensors differ in it, or have none
    """
    if type(batch) is tuple and len(batch) == 2:  # the usual batch, without building a dict
        x, y = batch
        if type(x) is type(y) is Tensor and x.dim() and y.dim() and (count := x.size(0)) == y.size(0) != 0:
            return count
    shapes = {name: tuple(tensor.shape) for name, tensor in named(batch)}
    counts = {shape[0] for shape in shapes.values() if shape}
    if len(counts) != 1 or counts == {0} or () in shapes.values():
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or f"a {type(batch).__name__}"
        raise DataError(
            f"cannot tell how many samples this batch has: {shown}. All tensors need the samples in dimension 0; "
            "if yours differ, pass Trainer(samples=function of the batch)"
        )
    return counts.pop()


def unpadded(trainer: Any, batch: Any, output: Any) -> tuple[Any, Any]:
    """A batch and the output for it without the rows that an on_batch_start has declared padding."""
    if (samples := trainer.samples) >= trainer.count(batch):
        return batch, output
    rows = apply(lambda tensor: tensor[:samples] if tensor.dim() else tensor, (batch, output))
    return rows[0], rows[1]


def sizes(
    batch_size: Any, shuffle: Any, drop_last: Any, data: Any, num_workers: Any = None
) -> tuple[int | None, bool, bool]:
    """What `fit` was asked for, checked. With a DataLoader none of them may be given.

    Raises:
        UsageError: a batch size that is not a whole number from 1 up, or one beside a DataLoader
    """
    given = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last, "num_workers": num_workers}
    if isinstance(data, DataLoader):
        extra = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        if extra:
            raise UsageError(f"the data is a DataLoader, which has its own batches: leave out {extra}")
    if batch_size is not None:
        positive("batch_size", batch_size)
    for name in ("shuffle", "drop_last"):
        if not isinstance(given[name], (bool, type(None))):
            raise UsageError(f"{name} must be True or False, got {given[name]!r}")
    if isinstance(data, IterableDataset):
        if shuffle:
            raise UsageError(
                "train is an IterableDataset, which gives its samples in its own order: leave out shuffle=True"
            )
        shuffle = False
    return batch_size, True if shuffle is None else bool(shuffle), bool(drop_last)


def positive(name: str, value: Any, least: int = 1) -> int:
    """`value`, a whole number from `least` up; else a UsageError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number from {least} up, got {value!r}")
    return value


def generators(data: Any) -> list[torch.Generator]:
    """The generators that a pass over a DataLoader of the user's draws from, beside the global one."""
    batches = getattr(data, "batch_sampler", None)
    owners = data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None)
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners)}
    return [generator for generator in found.values() if isinstance(generator, torch.Generator)]


def in_chunks(inputs: Any, size: int | None) -> Iterator[Any]:
    """Inputs without targets, `size` samples at a time; all at once for None.

    Raises:
        DataError: no tensor in them, or not the same number of samples in each
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in leaves(inputs, "inputs")}
    counts = {shape[0] for shape in shapes.values() if shape}
    if len(counts) != 1:
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or f"a {type(inputs).__name__}"
        raise DataError(f"inputs must be a tensor, or a nest of them, with the samples in dimension 0; got {shown}")
    total = max(1, *counts)  # no samples are one chunk too
    step = total if size is None else positive("batch_size", size)
    for start in range(0, total, step):
        rows = slice(start, start + step)
        yield apply(lambda tensor: tensor[rows] if tensor.dim() else tensor, inputs) if step < total else inputs  # noqa: B023


def joined(outputs: list[Any]) -> Any:
    """The outputs of chunks as one, row after row."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if isinstance(first, dict):
        return {key: joined([output[key] for output in outputs]) for key in first}
    if not isinstance(first, (list, tuple)):
        return first if all(output == first for output in outputs) else outputs
    parts = [joined(list(part)) for part in zip(*outputs, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
