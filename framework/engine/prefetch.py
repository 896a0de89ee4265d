"""Batches that are copied to a GPU while it works on the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from framework.device import apply, leaves, move
from framework.errors import DataError
from framework.mistakes import no_pair


def prefetched(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Each batch on the device, in order; an error comes where it would without this: after the batches before it.

    On a GPU a batch goes by way of pinned memory and a stream of its own, so the copy waits neither for the steps
    that are still running nor lets the program wait. A batch is asked for earlier than the loop wants it only where
    nobody can notice: see `may_fetch_ahead`.
    """
    if device.type != "cuda":
        return (move(batch, device) for batch in batches)
    return in_order(batches, _sender(device), may_fetch_ahead(batches))


def on_device(loader: Iterable[Any], device: torch.device, pairs: bool = False) -> Iterator[Any]:
    """Each batch on the device, a list as a tuple: the usual batch is `(x, y)`.

    Raises:
        DataError: a batch that is no pair, with `pairs`
    """
    for batch in loader:
        moved = move(batch, device)
        if isinstance(moved, list):
            moved = tuple(moved)
        if pairs and not (isinstance(moved, tuple) and len(moved) == 2):
            raise DataError(no_pair(batch))
        yield moved
        batch = moved = None  # not kept while the next one is fetched


def may_fetch_ahead(batches: Iterable[Any]) -> bool:
    """Whether asking for a batch before the step of the one before draws the same random numbers.

    The samples are made by worker processes, and torch's own samplers draw what this process can see when a pass
    begins. Other samplers draw when they are asked, from the generator that dropout draws from as well; and a
    generator that was given to a RandomSampler gets one more draw at the end, which would come too early.
    """
    if type(batches) is not DataLoader or batches.num_workers == 0 or type(batches.batch_sampler) is not BatchSampler:
        return False
    sampler = batches.batch_sampler.sampler
    return type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and sampler.generator is None)


def in_order(batches: Iterable[Any], send: Callable[[Any], Callable[[], Any]], ahead: bool) -> Iterator[Any]:
    """What has arrived, batch by batch: `send` starts the way of a batch, what it gives waits for its end.

    Args:
        ahead: one batch more than the one that is taken is on its way
    """
    iterator, sent = iter(batches), deque[Callable[[], Any]]()
    failure: Exception | None = None  # also the end of the batches
    while sent or failure is None:
        while failure is None and len(sent) <= ahead:
            try:
                sent.append(send(next(iterator)))
            except Exception as error:
                failure = error
        if sent:
            yield sent.popleft()()
    if not isinstance(failure, StopIteration):
        raise failure


def _sender(device: torch.device) -> Callable[[Any], Callable[[], Any]]:
    stream = torch.cuda.Stream(device)

    def send(batch: Any) -> Callable[[], Any]:
        with torch.cuda.stream(stream):
            return partial(take, apply(copy, batch, lambda found: hasattr(found, "to")), stream.record_event())

    def copy(found: Any) -> Any:
        plain = type(found) is Tensor and found.device.type == "cpu" and found.layout is torch.strided
        if not (plain and found.is_contiguous()):
            return found  # it is moved when it is taken
        return (found if found.is_pinned() else found.pin_memory()).to(device, non_blocking=True)

    def take(moved: Any, arrived: torch.cuda.Event) -> Any:
        here = torch.cuda.current_stream(device)
        here.wait_event(arrived)
        for _, tensor in leaves(moved):
            if tensor.is_cuda:
                tensor.record_stream(here)  # else the other stream would take its memory back while a step reads it
        return move(moved, device)

    return send
