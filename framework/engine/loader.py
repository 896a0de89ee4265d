"""The twin of torch's DataLoader for data in memory: the same batches and draws bit for bit, without work per sample.

It is taken only where that is certain; else `in_memory` says why not. Tensors may be changed in place at any time; what
else is changed about a loader or its data set counts from the next pass on, which may be left to the loader itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from framework.device import apply, leaves, move
from framework.engine.prefetch import on_device
from framework.engine.private import overridden, profiling, undisturbed, version
from framework.engine.samples import as_before, difference, fetched, kept_samples, refused, unfit
from framework.engine.vision import Images, columns_of
from framework.errors import DataError

SPAN = 512  # batches whose row numbers are cut at once, so that memory does not grow with the number of batches


def in_memory(loader: Any, device: torch.device, cache: bool = False) -> InMemory | str:
    """The twin of `loader` with its batches on `device`, or why there can be none.

    Args:
        cache: each sample is always the same, so fetch all of them once and never ask the data set again

    Raises:
        DataError: `cache` with samples that cannot be kept, or that are not always the same
    """
    twin = InMemory(loader, device, kept_samples(loader, device) if cache else None)
    reason = ("" if cache else twin.read()) or difference(loader, twin.size, twin.batch)
    if reason and cache:
        raise DataError(f"cache=True needs samples that are always the same: {reason}")
    return reason or twin


class InMemory:
    """Iterates as the loader does, over batches that are tuples of tensors on the device.

    Attributes:
        pairs: whether each batch is a pair (x, y)
        size: the number of samples
        why: why the last pass was left to the loader itself, if it was
        usual: if the last pass was over two tensors in an order that torch drew: what it relied on, and was made of
    """

    def __init__(self, loader: Any, device: torch.device, kept: Any = None) -> None:
        self.loader, self.device, self.why = loader, device, ""
        self._kept = kept  # all samples as one batch, with cache=True
        self._tree = None if isinstance(kept, list) and all(type(part) is Tensor for part in kept) else kept
        self._columns: tuple[Any, ...] = tuple(tensor for _, tensor in leaves(kept))
        self.size = len(self._columns[0]) if self._columns else 0
        self._rows: Tensor | None = None  # those of a Subset, in its order
        self._indices: list[list[Any]] = []  # what they were made of
        self._sequence: tuple[Any, tuple[Tensor, ...]] = ((), ())  # row numbers in their own order, cut for batches
        self._copies: list[tuple[Any, Any, Any]] = []  # columns, their marks, and their copies on the device
        with torch.inference_mode(False):  # else a pass outside of that mode could not draw into it
            self._draw = torch.empty((), dtype=torch.int64, device="cpu")
        self._generator = torch.Generator()
        self.usual: Any = None

    @property
    def pairs(self) -> bool:
        return len(self._columns) == 2 and self._tree is None

    def __iter__(self) -> Iterator[Any]:
        if self.usual is not None and self._as_it_was():
            self._draw.random_()
            return self._usual_pass()
        loader, self.why = self.loader, self.read()
        if self.why:
            return on_device(iter(loader), self.device)  # begins now, not when the first batch is asked for
        columns = self._placed()
        order = None if self._is_plain() else iter(loader.batch_sampler)
        self._remember(order is None)
        self._draw.random_(generator=loader.generator)  # torch's seed for workers, which it draws without workers too
        where = columns[0].device
        return self._gathered(columns, self._cut(where) if order is None else self._given(order, where))

    def _remember(self, plain: bool) -> None:
        """A pass over two tensors on the CPU, shuffled by torch's own draws, is made the short way from now on."""
        batches, size = self.loader.batch_sampler, self.size
        fit = plain and self.pairs and not any(type(column) is Images for column in self._columns)
        short = fit and self.device.type == "cpu" and self._rows is None and size <= SPAN * batches.batch_size
        self.usual = None
        if short and self.loader.generator is None and getattr(batches.sampler, "generator", None) is None:
            sequential = type(batches.sampler) is data.SequentialSampler
            pieces = torch.arange(size).split(batches.batch_size) if sequential else None
            owners = self.loader, batches, batches.sampler, self.loader.dataset
            self.usual = list(map(vars, owners)), [dict(vars(owner)) for owner in owners], pieces

    def _as_it_was(self) -> bool:
        """Whether all that the last pass relied on is still there."""
        now, then, _ = self.usual
        try:
            same = now == then and now[3]["tensors"] is then[3]["tensors"]
        except Exception:  # what else hangs on them need not be comparable: then it is another one
            return False
        return same and undisturbed() and as_before(self._columns, self.size)

    def _usual_pass(self) -> Iterator[Any]:
        """Draws and batches are those of `_cut` and `_gathered`, in fewer calls."""
        (x, y), batches, pieces = self._columns, self.loader.batch_sampler, self.usual[2]
        if pieces is None:
            own = self._generator.manual_seed(self._draw.random_().item())  # type: ignore[arg-type]
            order = torch.randperm(self.size, generator=own)
            pieces = order.unsafe_split(batches.batch_size) if self.size > batches.batch_size else (order,)
        if batches.drop_last and self.size % batches.batch_size:
            pieces = pieces[:-1]
        for index in pieces:
            yield x.index_select(0, index), y.index_select(0, index)

    def read(self) -> str:
        """Look at the loader and its data as they are now. Why the next pass cannot be made from memory, or nothing."""
        mode = "a mode of torch is on, such as that of torch.set_default_device" * overridden()
        reason = refused(self.loader, self.device) or mode or "a profiler is on" * profiling()
        if reason or self._kept is not None:
            return reason
        dataset, subsets = self.loader.dataset, []
        while type(dataset) is data.Subset:
            subsets.append(dataset)
            dataset = dataset.dataset
        if any("__getitems__" in getattr(part, "__dict__", ()) for part in (dataset, *subsets)):
            return f"the {type(dataset).__name__} has a __getitems__ of its own"
        plain = type(dataset) is data.TensorDataset
        columns = tuple(dataset.tensors) if plain else columns_of(dataset)
        if not isinstance(columns, tuple):
            stream = isinstance(dataset, data.IterableDataset)
            hint = ", an IterableDataset" if stream else "; cache=True would keep its samples"
            return columns or f"the data set is a {type(dataset).__name__}{hint}"
        if plain and (reason := unfit(columns, self.device)):
            return f"a tensor of the data set {reason}"
        self._columns = columns
        return self._select(subsets, columns[0].shape[0])

    def _select(self, subsets: list[Any], size: int) -> str:
        """Find the rows that nested Subsets, if any, the outermost first, lead to. Why there are none, or nothing."""
        indices = [[size], *(_listed(subset.indices) for subset in subsets)]
        if subsets and indices != self._indices:
            rows = torch.arange(size)
            for subset, listed in zip(reversed(subsets), reversed(indices), strict=False):
                index = _index(listed, len(rows))
                plain = type(subset.indices) in (list, tuple, range) or hasattr(subset.indices, "ndim")
                if index is None or not plain:
                    return "the indices of a Subset are not row numbers from 0 up"
                rows = rows.index_select(0, index)
            self._rows, self._indices, self._sequence = rows, indices, ((), ())
        self.size = len(indices[1]) if subsets else size
        return ""

    def batch(self, rows: list[int]) -> Any:
        """The samples of these rows, where the data is."""
        return self._gather(self._columns, _led(torch.tensor(rows), self._rows, self._columns[0].device))

    def _is_plain(self) -> bool:
        """Whether the batches are those of shuffle=True or False, whose draws are known."""
        batches: Any = self.loader.batch_sampler
        sampler: Any = batches.sampler if type(batches) is data.BatchSampler else None
        known = type(sampler) in (data.SequentialSampler, data.RandomSampler)
        if not known or sampler.data_source is not self.loader.dataset:
            return False
        own = getattr(sampler, "generator", None)
        followed = (own is None or own.device.type == "cpu") and getattr(sampler, "replacement", None) is False
        return type(sampler) is data.SequentialSampler or (followed and sampler.num_samples == self.size)

    def _cut(self, device: torch.device) -> Iterator[Tensor]:
        """The row numbers of each batch, drawn when torch's sampler draws them: not before the first one is asked for.

        A generator of the user's gives a second order when the sampler runs out: for the last batch if that is short,
        else when the batch after the last one is asked for. torch drops that order, and so do we.
        """
        batches, size, generator = self.loader.batch_sampler, self.size, None
        sampler, batch_size = batches.sampler, batches.batch_size
        key, (known, pieces) = (size, batch_size, device), self._sequence
        shuffled = type(sampler) is data.RandomSampler
        if shuffled or known != key:
            if shuffled:
                generator = sampler.generator
                own = generator or self._generator.manual_seed(int(self._draw.random_().item()))
            order = torch.randperm(size, generator=own) if shuffled else torch.arange(size)
            *spans, last = _led(order, self._rows, device).split(SPAN * batch_size)
            for span in spans:
                yield from span.unsafe_split(batch_size)
            pieces = last.unsafe_split(batch_size)
            if not shuffled and not spans:
                self._sequence = key, pieces
        short = size % batch_size
        yield from pieces[:-1] if short else pieces
        if generator is not None:
            torch.randperm(size, generator=generator)
        if short and not batches.drop_last:
            yield pieces[-1]

    def _gathered(self, columns: tuple[Any, ...], indices: Iterator[Any]) -> Iterator[Any]:
        x, y, there = columns[0], columns[-1], columns[0].device == self.device
        usual = there and self.pairs
        for index in indices:
            if type(index) is list:
                yield from on_device([fetched(self.loader, index)], self.device)
            elif usual:
                yield x.index_select(0, index), y.index_select(0, index)
            else:
                batch = self._gather(columns, index)
                yield batch if there else move(batch, self.device)

    def _given(self, order: Iterator[Iterable[Any]], device: torch.device) -> Iterator[Tensor | list[Any]]:
        """The row numbers of each batch of any other sampler, which torch's loader asks for them in the same way.

        A list: rows from the end, rows that are not there, or none at all, which only the data set knows.
        """
        size, rows = self.size, self._rows
        for listed in map(_listed, order):
            index = _index(listed, size)
            if index is None and self._kept is not None:
                raise DataError(f"the sampler gives {listed}; with cache=True a row is a number from 0 to {size - 1}")
            yield listed if index is None else _led(index, rows, device)

    def _gather(self, columns: tuple[Any, ...], index: Tensor) -> Any:
        batch = tuple([column.index_select(0, index) for column in columns])
        if self._tree is None:
            return batch
        parts = iter(batch)
        made = apply(lambda _: next(parts), self._tree)
        return tuple(made) if isinstance(made, list) else made

    def _placed(self) -> tuple[Any, ...]:
        """The columns from which to gather: on a GPU with ample room copies of them, made anew after a change.

        What torch does not count as one is not seen there: through NumPy, or through `.data`.
        """
        columns, device = self._columns, self.device
        if device.type != "cuda" or columns[0].device == device:
            return columns
        marks = [_mark(column) for column in columns]
        old = {mark: copy for _, mark, copy in self._copies if mark in marks}
        self._copies = []  # what has changed goes before the new copies come
        needed = sum(column.nbytes for column, mark in zip(columns, marks, strict=True) if mark not in old)
        if needed > torch.cuda.mem_get_info(device)[0] // 4:
            return columns
        self._copies = [(c, m, old[m] if m in old else c.to(device)) for c, m in zip(columns, marks, strict=True)]
        return tuple(copy for *_, copy in self._copies)


def _listed(rows: Any) -> list[Any]:
    """What a loop over `rows` gives, as Python's own numbers where they mean the same."""
    plain = rows.dtype in (torch.int32, torch.int64) if type(rows) is Tensor else type(rows).__name__ == "ndarray"
    return list(rows.tolist() if plain and rows.ndim == 1 else rows)


def _index(rows: list[Any], size: int) -> Tensor | None:
    """Row numbers as a tensor; None where only the data set can tell what is meant."""
    if any(kind is bool or not issubclass(kind, Integral) for kind in set(map(type, rows))):
        return None
    return torch.tensor(rows, dtype=torch.int64) if rows and min(rows) >= 0 and max(rows) < size else None


def _led(order: Tensor, rows: Tensor | None, device: torch.device) -> Tensor:
    """The rows of the tensors that those of a data set lead to; `rows` are those of its Subset."""
    return (order if rows is None else rows.index_select(0, order)).to(device)


def _mark(column: Any) -> Any:
    """What is another one after a column has been changed, as far as torch knows. A nan is never the same."""
    if type(column) is Images:
        return column.mark()
    return column.data_ptr(), version(column) if version(column) >= 0 else float("nan"), column.shape, column.dtype
