"""When the samples of a loader are rows of tensors: which loaders and tensors are fit, and what real samples say.

With cache=True the samples become tensors first: all of them are fetched once and collated to one batch.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import data

from framework.data import generators, length
from framework.device import leaves
from framework.engine.private import collates_plainly
from framework.errors import DataError
from framework.seed import kept_random_states

COMPARED = 256  # rows, at most, of the batch that is made in both ways


def refused(loader: Any, device: torch.device) -> str:
    """What it is about a loader that only torch's own way can do, or nothing."""
    if type(loader) is not data.DataLoader:
        return f"the loader is a {type(loader).__name__}"
    own = loader.generator is not None and loader.generator.device.type != "cpu"
    reasons = (
        (loader.num_workers, f"num_workers={loader.num_workers}"),
        (loader.timeout, f"timeout={loader.timeout}"),
        (loader.batch_sampler is None, "batch_size=None"),
        (not collates_plainly(loader.collate_fn), "its collate_fn is one of your own"),
        (loader.pin_memory and device.type == "cpu" and torch.accelerator.is_available(), "pin_memory=True"),
        (own, f"its generator is on {own and loader.generator.device}"),
    )
    return next((why for holds, why in reasons if holds), "")


def unfit(tensors: Any, device: torch.device) -> str:
    """Why rows of tensors, stacked, may be something else than what index_select gives, or nothing."""
    for tensor in tensors:
        if type(tensor) is not Tensor:
            return f"is a {type(tensor).__name__}"
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
            return "is sparse, nested or quantized"
        if not _in_order(tensor) or tensor.is_conj() or tensor.is_neg():
            return "is not contiguous"
        if tensor.requires_grad:
            return "requires a gradient"
        if not tensor.dim() or not len(tensor):
            return "has no rows"
        if len(tensor) != len(tensors[0]):
            return f"has {len(tensor)} rows, not {len(tensors[0])}"
        if tensor.device != tensors[0].device or tensor.device not in (torch.device("cpu"), device):
            return f"is on {tensor.device}"
    return ""


def as_before(columns: tuple[Any, ...], size: int) -> bool:
    """Whether tensors that were fit still are, by all that a method of theirs can change."""
    for column in columns:
        dims = column.dim()
        if not dims or column.size(0) != size or column.requires_grad or (dims > 2 and not column.is_contiguous()):
            return False
    return True


def _in_order(tensor: Tensor) -> bool:
    """Whether stacked rows lie in memory as index_select lays them: of more dimensions some keep a layout of theirs."""
    return tensor.dim() <= 2 or tensor.is_contiguous()


def fetched(loader: Any, rows: list[Any]) -> Any:
    """A batch as torch's loader makes it."""
    several = getattr(loader.dataset, "__getitems__", None)
    return loader.collate_fn(several(rows) if several else [loader.dataset[row] for row in rows])


def difference(loader: Any, size: int, ours: Callable[[list[int]], Any]) -> str:
    """What differs between real batches and those that `ours` makes of the same rows, or nothing."""
    compared = list(range(min(loader.batch_size or size, size, COMPARED))), sorted({size // 3, size // 2, size - 1})
    try:
        made, drew = _watched(loader, lambda: [(ours(rows), fetched(loader, rows)) for rows in compared])
    except Exception as error:  # torch's loader will meet it again, and raise it where it belongs
        return f"its first batch cannot be made ({type(error).__name__}: {error})"
    if drew:
        return "its samples draw random numbers"
    return "" if all(_equal(real, mine) for mine, real in made) else "its samples are not the rows of its tensors"


def kept_samples(loader: Any, device: torch.device) -> Any:
    """All samples of a loader as one batch.

    Raises:
        DataError: they draw random numbers, differ in shape or type, or have parts that are neither tensors nor numbers
    """
    dataset = getattr(loader, "dataset", None)
    size, kind = length(dataset) or 0, type(dataset).__name__
    stream = f"the data set, a {kind}, is an IterableDataset" * isinstance(dataset, data.IterableDataset)
    if reason := refused(loader, device) or f"the data set, a {kind}, has no length" * (not size) or stream:
        raise DataError(f"cache=True needs a plain DataLoader over a data set whose samples have numbers; {reason}")
    samples, drew = _watched(loader, lambda: [dataset[row] for row in range(size)])  # type: ignore[index]
    if drew:
        raise DataError(f"cache=True needs samples that are always the same; a {kind} draws random numbers")
    first = _parts(samples[0])
    for row, parts in enumerate(map(_parts, samples)):
        if parts != first or any(issubclass(part[1], (str, bytes)) for part in parts):
            shown = "; ".join(f"sample {i}: {_shown(part)}" for i, part in ((0, first), (row, parts))[: row + 1])
            raise DataError(f"cache=True keeps samples of tensors and numbers that are all alike; {shown}")
    try:
        batch = data.default_collate(samples)
    except (TypeError, RuntimeError, ValueError) as error:
        raise DataError(f"cache=True cannot keep the samples of a {kind}: {error}") from error
    if reason := unfit([tensor for _, tensor in leaves(batch)], device):
        raise DataError(f"cache=True cannot keep the samples of a {kind}: a tensor of all of them {reason}")
    return batch


def _parts(sample: Any, path: str = "") -> list[tuple[Any, ...]]:
    """Of each part of a sample its place, type, dtype and shape."""
    if not isinstance(sample, (dict, list, tuple)):
        return [(path, type(sample), getattr(sample, "dtype", None), getattr(sample, "shape", None))]
    items = sample.items() if isinstance(sample, dict) else enumerate(sample)
    return [part for key, branch in items for part in _parts(branch, f"{path}[{key!r}]")]


def _shown(parts: list[tuple[Any, ...]]) -> str:
    return ", ".join(f"{path} {kind.__name__} {tuple(shape or ())}" for path, kind, _, shape in parts)


def _watched(loader: Any, make: Callable[[], Any]) -> tuple[Any, bool]:
    """What `make` gives, and whether it draws random numbers: no trace is left of them."""
    with kept_random_states(*generators(loader)):
        before = _states(loader)
        return make(), _states(loader) != before


def _states(loader: Any) -> list[Any]:
    """The states of all generators that are known of."""
    numbers = sys.modules.get("numpy.random")  # importing it takes longer than many a fit
    states = [generator.get_state() for generator in (torch.default_generator, *generators(loader))]
    states += torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    known = numbers.get_state(legacy=False)["state"].values() if numbers else ()
    plain = [value.tobytes() if hasattr(value, "tobytes") else value for value in known]
    return [random.getstate(), plain, *(state.numpy().tobytes() for state in states)]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same in every bit, unlike torch.equal: nan is nan, and 0.0 is not -0.0."""
    same = (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    return same and torch.equal(*(part.detach().contiguous().view(-1).view(torch.uint8) for part in (one, other)))


def _equal(real: Any, ours: Any) -> bool:
    """Whether two batches are the same bit for bit; for the outermost list of a real one ours has a tuple."""
    if type(real) is Tensor and type(ours) is Tensor:
        return same_bits(real, ours)
    if isinstance(real, dict) and isinstance(ours, dict):
        return list(real) == list(ours) and all(_equal(real[key], ours[key]) for key in real)
    both = isinstance(real, (list, tuple)) and isinstance(ours, (list, tuple)) and len(real) == len(ours)
    return both and all(_equal(*parts) for parts in zip(real, ours, strict=True))
