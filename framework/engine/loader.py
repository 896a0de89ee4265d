"""The twin of torch's DataLoader for data in memory: the same batches and draws bit for bit, without work per sample.

It is taken only where that is certain; else `in_memory` says why not. Tensors may be changed in place at any time; what
else is changed about a loader or its data set counts from the next pass on, which may be left to the loader itself.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from framework.data import generators, length, on_device
from framework.device import apply, leaves, move
from framework.engine.private import collates_plainly, overridden, profiling, undisturbed, version
from framework.engine.vision import Images, columns_of
from framework.errors import DataError
from framework.seed import kept_random_states

SPAN = 512  # batches whose row numbers are cut at once, so that memory does not grow with the number of batches
COMPARED = 256  # rows, at most, of the batch that is made in both ways


def in_memory(loader: Any, device: torch.device, cache: bool = False) -> InMemory | str:
    """The twin of `loader` with its batches on `device`, or why there can be none.

    Args:
        cache: each sample is always the same, so fetch all of them once and never ask the data set again

    Raises:
        DataError: `cache` with samples that cannot be kept, or that are not always the same
    """
    twin = InMemory(loader, device, _kept(loader, device) if cache else None)
    reason = ("" if cache else twin.read()) or twin.difference()
    if reason and cache:
        raise DataError(f"cache=True needs samples that are always the same: {reason}")
    return reason or twin


class InMemory:
    """Iterates as the loader does, over batches that are tuples of tensors on the device.

    Attributes:
        pairs: whether each batch is a pair (x, y)
        why: why the last pass was left to the loader itself, if it was
        move: takes a batch to the device where that has no room for all the data; may be replaced
    """

    def __init__(self, loader: Any, device: torch.device, kept: Any = None) -> None:
        self.loader, self.device, self.why, self.move = loader, device, "", partial(move, device=device)
        self._kept = kept  # all samples as one batch, with cache=True
        self._tree = None if isinstance(kept, list) and all(type(part) is Tensor for part in kept) else kept
        self._columns: tuple[Any, ...] = tuple(tensor for _, tensor in leaves(kept))
        self._size = self._length = len(self._columns[0]) if self._columns else 0  # with and without Subsets
        self._rows: Tensor | None = None  # those of a Subset, in its order
        self._indices: list[list[Any]] = []  # what they were made of
        self._sequence: tuple[Any, tuple[Tensor, ...]] = ((), ())  # row numbers in their own order, cut for batches
        self._copies: list[tuple[Any, Any, Any]] = []  # columns, their marks, and their copies on the device
        with torch.inference_mode(False):  # else a pass outside of that mode could not draw into it
            self._draw = torch.empty((), dtype=torch.int64, device="cpu")
            self._draws = torch.empty(2, dtype=torch.int64, device="cpu")
        self._generator = torch.Generator()
        self._usual: Any = (
            None  # what the last pass was made of, if it was one of the usual kind, and what it relied on
        )

    @property
    def pairs(self) -> bool:
        return len(self._columns) == 2 and self._tree is None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        if self._usual is not None and self._as_it_was():
            return self._usual_pass()
        loader, self.why = self.loader, self.read()
        if self.why:
            return on_device(iter(loader), self.device)  # begins now, not when the first batch is asked for
        columns = self._placed()
        order = None if self._is_plain() else iter(loader.batch_sampler)
        self._remember(order is None)
        self._draw.random_(generator=loader.generator)  # torch's seed for workers, which it draws without workers too
        if order is None:
            return self._gathered(columns, self._cut(columns[0].device))
        return self._given(columns, order)

    def _remember(self, plain: bool) -> None:
        """A pass over two tensors on the CPU, shuffled by torch's own draws, is made the short way from now on."""
        batches, size, pieces = self.loader.batch_sampler, self._size, None
        fit = plain and self.pairs and not any(type(column) is Images for column in self._columns)
        short = fit and self.device.type == "cpu" and self._rows is None and size <= SPAN * batches.batch_size
        self._usual = None
        if short and self.loader.generator is None and getattr(batches.sampler, "generator", None) is None:
            if type(batches.sampler) is data.SequentialSampler:
                pieces = torch.arange(size).split(batches.batch_size)
            owners = self.loader, batches, batches.sampler, self.loader.dataset
            self._usual = list(map(vars, owners)), [dict(vars(owner)) for owner in owners], pieces

    def _as_it_was(self) -> bool:
        """Whether all that the last pass relied on is still there."""
        now, then, _ = self._usual
        try:
            same = now == then
        except RuntimeError:  # tensors that are others cannot be compared as one
            return False
        return same and undisturbed() and _as_before(self._columns, self._size)

    def _usual_pass(self) -> Iterator[Any]:
        """The draws are those of `_cut`: the seed for workers and that of the order are next to each other."""
        (x, y), batches, pieces = self._columns, self.loader.batch_sampler, self._usual[2]
        if pieces is None:
            _, seed = self._draws.random_().tolist()
            order = torch.randperm(self._size, generator=self._generator.manual_seed(seed))
            pieces = order.unsafe_split(batches.batch_size) if self._size > batches.batch_size else (order,)
        else:
            self._draw.random_()
        if batches.drop_last and self._size % batches.batch_size:
            pieces = pieces[:-1]
        for index in pieces:
            yield x.index_select(0, index), y.index_select(0, index)

    def read(self) -> str:
        """Look at the loader and its data as they are now. Why the next pass cannot be made from memory, or nothing."""
        if reason := _refused(self.loader, self.device) or _disturbed():
            return reason
        if self._kept is not None:
            return ""
        dataset, subsets = self.loader.dataset, []
        while type(dataset) is data.Subset:
            subsets.append(dataset)
            dataset = dataset.dataset
        if any("__getitems__" in vars(part) for part in (dataset, *subsets)):
            return f"the {type(dataset).__name__} has a __getitems__ of its own"
        columns = self._columns
        if type(dataset) is not data.TensorDataset:
            found = columns_of(dataset)
            if isinstance(found, str):
                return found
            if found is None:
                stream = isinstance(dataset, data.IterableDataset)
                hint = ", an IterableDataset" if stream else "; cache=True would keep its samples"
                return f"the data set is a {type(dataset).__name__}{hint}"
            columns = found
        elif dataset.tensors is not columns or not _as_before(columns, self._length):
            columns = tuple(dataset.tensors)
            for column in columns:
                if reason := _unfit(column, columns[0], self.device):
                    return f"a tensor of the data set {reason}"
        self._columns, self._length = columns, columns[0].shape[0]
        if subsets:
            return self._select(subsets, self._length)
        self._size = self._length
        return ""

    def _select(self, subsets: list[Any], size: int) -> str:
        """Find the rows that nested Subsets, the outermost first, lead to. Why there are none, or nothing."""
        indices = [[size], *(_listed(subset.indices) for subset in subsets)]
        if indices != self._indices:
            rows: Tensor | None = None
            for subset, listed in zip(reversed(subsets), reversed(indices), strict=False):
                index = _index(listed, size if rows is None else len(rows))
                plain = type(subset.indices) in (list, tuple, range) or hasattr(subset.indices, "ndim")
                if index is None or not plain:
                    self._indices = []
                    return "the indices of a Subset are not row numbers from 0 up"
                rows = index if rows is None else rows.index_select(0, index)
            self._rows, self._indices, self._sequence = rows, indices, ((), ())
        self._size = len(indices[1])
        return ""

    def difference(self) -> str:
        """What differs between batches made in both ways, or nothing. Nothing is drawn for it."""
        loader, size = self.loader, self._size
        with kept_random_states(*generators(loader)):
            first = list(range(min(loader.batch_size or size, size, COMPARED)))
            for rows in first, sorted({size // 3, size // 2, size - 1}):
                before = _states(loader)
                try:
                    index = torch.tensor(rows) if self._rows is None else self._rows[rows]
                    ours = self._gather(self._columns, index.to(self._columns[0].device))
                    real = _fetched(loader, rows)
                except Exception as error:  # torch's loader will meet it again, and raise it where it belongs
                    return f"its first batch cannot be made ({type(error).__name__}: {error})"
                if _states(loader) != before:
                    return "its samples draw random numbers"
                if not _equal(real, ours):
                    return "its samples are not the rows of its tensors"
        return ""

    def _is_plain(self) -> bool:
        """Whether the batches are those of shuffle=True or False, whose draws are known."""
        batches: Any = self.loader.batch_sampler
        sampler: Any = batches.sampler if type(batches) is data.BatchSampler else None
        if type(sampler) is data.SequentialSampler:
            return sampler.data_source is self.loader.dataset
        return (
            type(sampler) is data.RandomSampler
            and sampler.data_source is self.loader.dataset
            and sampler.replacement is False
            and sampler.num_samples == self._size
            and (sampler.generator is None or sampler.generator.device.type == "cpu")
        )

    def _cut(self, device: torch.device) -> Iterator[Tensor]:
        """The row numbers of each batch, drawn when torch's sampler draws them: not before the first one is asked for.

        A generator of the user's gives a second order when the sampler runs out: for the last batch if that is short,
        else when the batch after the last one is asked for. torch drops that order, and so do we.
        """
        batches, size = self.loader.batch_sampler, self._size
        sampler, batch_size, generator = batches.sampler, batches.batch_size, None
        key = None
        if type(sampler) is data.RandomSampler:
            generator = sampler.generator
            own = generator or self._generator.manual_seed(int(self._draw.random_().item()))
            order = torch.randperm(size, generator=own)
        elif self._sequence[0] != (key := (size, batch_size, device)):
            order = torch.arange(size)
        if key is None or self._sequence[0] != key:
            if self._rows is not None:
                order = self._rows.index_select(0, order)
            if device.type != "cpu":
                order = order.to(device)
            if size > SPAN * batch_size:
                *spans, order = order.split(SPAN * batch_size)
                for span in spans:
                    yield from span.unsafe_split(batch_size)
                key = None
            pieces = order.unsafe_split(batch_size)
            if key is not None:
                self._sequence = key, pieces
        else:
            pieces = self._sequence[1]
        short = size % batch_size
        yield from pieces[:-1] if short else pieces
        if generator is not None:
            torch.randperm(size, generator=generator)
        if short and not batches.drop_last:
            yield pieces[-1]

    def _gathered(self, columns: tuple[Any, ...], indices: Iterator[Tensor]) -> Iterator[Any]:
        there = columns[0].device == self.device
        if there and self.pairs:
            x, y = columns  # the usual batch, without a loop
            for index in indices:
                yield x.index_select(0, index), y.index_select(0, index)
            return
        for index in indices:
            batch = self._gather(columns, index)
            yield batch if there else self.move(batch)

    def _given(self, columns: tuple[Any, ...], order: Iterator[Iterable[Any]]) -> Iterator[Any]:
        """The batches of any other sampler, which torch's loader asks for row numbers in the same way."""
        size, subset, there = self._size, self._rows, columns[0].device
        for rows in order:
            listed = _listed(rows)
            index = _index(listed, size)
            if index is not None:
                index = index if subset is None else subset.index_select(0, index)
                batch = self._gather(columns, index.to(there))
                yield batch if there == self.device else self.move(batch)
            elif self._kept is not None:
                raise DataError(f"the sampler gives {listed}; with cache=True a row is a number from 0 to {size - 1}")
            else:  # rows from the end, rows that are not there, none at all: the data set knows
                yield from on_device([_fetched(self.loader, listed)], self.device)

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
        for column, mark in zip(columns, marks, strict=True):
            self._copies.append((column, mark, old[mark] if mark in old else column.to(device)))
        return tuple(copy for *_, copy in self._copies)


def _refused(loader: Any, device: torch.device) -> str:
    """What it is about a loader that only torch's own way can do, or nothing."""
    if type(loader) is not data.DataLoader:
        return f"the loader is a {type(loader).__name__}"
    if loader.num_workers or loader.timeout:
        return f"num_workers={loader.num_workers}" if loader.num_workers else f"timeout={loader.timeout}"
    if loader.batch_sampler is None:
        return "batch_size=None"
    if not collates_plainly(loader.collate_fn):
        return "its collate_fn is one of your own"
    if loader.pin_memory and device.type == "cpu" and torch.accelerator.is_available():
        return "pin_memory=True"
    if loader.generator is not None and loader.generator.device.type != "cpu":
        return f"its generator is on {loader.generator.device}"
    return ""


def _disturbed() -> str:
    if overridden():
        return "a mode of torch is on, such as that of torch.set_default_device"
    return "a profiler is on" if profiling() else ""


def _as_before(columns: tuple[Any, ...], size: int) -> bool:
    """Whether tensors that were fit still are, by all that a method of theirs can change."""
    for column in columns:
        if column.requires_grad or not _in_order(column) or not column.dim() or column.size(0) != size:
            return False
    return True


def _in_order(tensor: Tensor) -> bool:
    """Whether stacked rows lie in memory as index_select lays them: of more dimensions some keep a layout of theirs."""
    return tensor.dim() <= 2 or tensor.is_contiguous()


def _unfit(tensor: Any, other: Any, device: torch.device) -> str:
    """Why rows of a tensor, stacked, may be something else than what index_select gives, or nothing."""
    if type(tensor) is not Tensor:
        return f"is a {type(tensor).__name__}"
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return "is sparse, nested or quantized"
    if not _in_order(tensor) or tensor.is_conj() or tensor.is_neg():
        return "is not contiguous"
    if tensor.requires_grad:
        return "requires a gradient"
    if not tensor.dim() or not len(tensor) or len(tensor) != len(other):
        return "has no rows" if not tensor.dim() or not len(tensor) else f"has {len(tensor)} rows, not {len(other)}"
    if tensor.device != other.device or tensor.device not in (torch.device("cpu"), device):
        return f"is on {tensor.device}"
    return ""


def _listed(rows: Any) -> list[Any]:
    """What a loop over `rows` gives, as Python's own numbers where they mean the same."""
    plain = rows.dtype in (torch.int32, torch.int64) if type(rows) is Tensor else type(rows).__name__ == "ndarray"
    return list(rows.tolist() if plain and rows.ndim == 1 else rows)


def _index(rows: list[Any], size: int) -> Tensor | None:
    """Row numbers as a tensor; None where only the data set can tell what is meant."""
    if any(kind is bool or not issubclass(kind, Integral) for kind in set(map(type, rows))):
        return None
    return torch.tensor(rows, dtype=torch.int64) if rows and min(rows) >= 0 and max(rows) < size else None


def _mark(column: Any) -> Any:
    """What is another one after a column has been changed, as far as torch knows. A nan is never the same."""
    if type(column) is Images:
        return column.mark()
    return column.data_ptr(), version(column) if version(column) >= 0 else float("nan"), column.shape, column.dtype


def _fetched(loader: Any, rows: list[Any]) -> Any:
    """A batch as torch's loader makes it."""
    several = getattr(loader.dataset, "__getitems__", None)
    return loader.collate_fn(several(rows) if several else [loader.dataset[row] for row in rows])


def _states(loader: Any) -> list[Any]:
    """The states of all generators that are known of."""
    numbers = sys.modules.get("numpy.random")  # importing it takes longer than many a fit
    states = [generator.get_state() for generator in (torch.default_generator, *generators(loader))]
    states += torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    known = numbers.get_state(legacy=False)["state"].values() if numbers else ()
    plain = [value.tobytes() if hasattr(value, "tobytes") else value for value in known]
    return [random.getstate(), plain, *(state.numpy().tobytes() for state in states)]


def _equal(real: Any, ours: Any) -> bool:
    """Whether two batches are the same bit for bit; for the outermost list of a real one ours has a tuple."""
    if type(real) is Tensor and type(ours) is Tensor:
        same = (real.dtype, real.shape, real.stride()) == (ours.dtype, ours.shape, ours.stride())
        return same and torch.equal(*(part.contiguous().view(-1).view(torch.uint8) for part in (real, ours)))
    if isinstance(real, dict) and isinstance(ours, dict):
        return list(real) == list(ours) and all(_equal(real[key], ours[key]) for key in real)
    both = isinstance(real, (list, tuple)) and isinstance(ours, (list, tuple)) and len(real) == len(ours)
    return both and all(_equal(*parts) for parts in zip(real, ours, strict=True))


def _kept(loader: Any, device: torch.device) -> Any:
    """All samples of a loader as one batch.

    Raises:
        DataError: they draw random numbers, differ in shape or type, or have parts that are neither tensors nor numbers
    """
    dataset = getattr(loader, "dataset", None)
    size, kind = length(dataset), type(dataset).__name__
    reason = _refused(loader, device) or ("" if size else f"the data set, a {kind}, has no length")
    if reason or isinstance(dataset, data.IterableDataset):
        reason = reason or f"the data set, a {kind}, is an IterableDataset"
        raise DataError(f"cache=True needs a plain DataLoader over a data set whose samples have numbers; {reason}")
    with kept_random_states(*generators(loader)):
        before = _states(loader)
        samples = [dataset[row] for row in range(size or 0)]  # type: ignore[index]
        if _states(loader) != before:
            raise DataError(f"cache=True needs samples that are always the same; a {kind} draws random numbers")
        first = _parts(samples[0])
        for row, parts in enumerate(map(_parts, samples)):
            if parts != first or any(issubclass(part[1], (str, bytes)) for part in parts):
                shown = "; ".join(f"sample {i}: {_shown(part)}" for i, part in ((0, first), (row, parts))[: row + 1])
                raise DataError(f"cache=True keeps samples of tensors and numbers that are all alike; {shown}")
        try:
            kept = data.default_collate(samples)
        except (TypeError, RuntimeError, ValueError) as error:
            raise DataError(f"cache=True cannot keep the samples of a {kind}: {error}") from error
    tensors = [tensor for _, tensor in leaves(kept)]
    for tensor in tensors:
        if reason := _unfit(tensor, tensors[0], device):
            raise DataError(f"cache=True cannot keep the samples of a {kind}: a tensor of all of them {reason}")
    return kept


def _parts(sample: Any, path: str = "") -> list[tuple[Any, ...]]:
    """Of each part of a sample its place, type, dtype and shape."""
    if not isinstance(sample, (dict, list, tuple)):
        return [(path, type(sample), getattr(sample, "dtype", None), getattr(sample, "shape", None))]
    items = sample.items() if isinstance(sample, dict) else enumerate(sample)
    return [part for key, branch in items for part in _parts(branch, f"{path}[{key!r}]")]


def _shown(parts: list[tuple[Any, ...]]) -> str:
    return ", ".join(f"{path} {kind.__name__} {tuple(shape or ())}" for path, kind, _, shape in parts)
