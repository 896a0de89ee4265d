"""How many samples a batch can hold, and how many are worth it."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import psutil
import torch
import tyro
from torch.utils.data import DataLoader, IterableDataset

from framework import (
    DataError,
    PluginOption,
    Recipe,
    Trainer,
    UsageError,
    assemble,
    command_of,
    fit_recipe,
    hookimpl,
    knobs,
)

WORTH = 1.05  # a batch twice as large is worth it if so many times the samples are trained on in a second
FOREVER = 10**9  # epochs; the stopwatch ends the fit


class _FirstSteps:
    """Ends a fit after two steps, with everything loaded and allocated, and tells how much memory they took."""

    name = "batch_size"

    def __init__(self) -> None:
        self.bytes = 0

    @hookimpl(wrapper=True)
    def backward(self, trainer: Trainer) -> Iterator[None]:
        if trainer.device.type == "cpu":  # whatever the forward pass keeps for this one is there now
            self.bytes = max(self.bytes, psutil.Process().memory_info().rss)
        return (yield)

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(trainer.device)
        if trainer.step == 2:
            trainer.stop("warm")


class _Stopwatch:
    """Counts the samples of a fit, which it ends when the seconds are over and at least two steps have been taken."""

    name = "batch_size"

    def __init__(self, seconds: float) -> None:
        self.seconds, self.samples, self.elapsed = seconds, 0, 0.0

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        if epoch == 0:
            self._begun = _now(trainer)

    def on_batch_end(self, trainer: Trainer, samples: int) -> None:
        self.samples += samples
        if trainer.step >= 2 and time.perf_counter() - self._begun >= self.seconds:
            self.elapsed = _now(trainer) - self._begun
            trainer.stop("measured")


def _now(trainer: Trainer) -> float:
    """The time when the device has done what it was given."""
    if trainer.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def batch_size(
    recipe: str, knob: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KNOB=VALUE ...]")] = (),
    smallest: int = 8, largest: int = 4096, seconds: float = 0.5, label: str = "", seed: int = 0, device: str = "auto",
    plugin: PluginOption = (),
) -> None:  # fmt: skip
    """Double the batch until the memory is full; the largest that fits, and the one that is worth it.

    Args:
        recipe: a recipe file, or the name of an installed one
        knob: settings of its knobs, such as hidden=20
        smallest: samples in the first batch
        largest: samples in the last one; never more than there are
        seconds: how long to train with each
        label: which variant, of a recipe of several
        seed: set before the recipe builds anything
        device: auto (cuda, else mps, else cpu), or a device by name
    """
    if smallest < 1 or largest < smallest or not seconds > 0:
        raise UsageError(f"sizes go from 1 up and take some seconds, got {smallest} to {largest} in {seconds:g}")
    made, trainer = assemble(recipe, label=label, seed=seed, device=device, plugins=plugin, **knobs(recipe, knob))
    on_cpu, rates, full = trainer.device.type == "cpu", dict[int, float](), ""
    begun, needed = psutil.Process().memory_info().rss if on_cpu else 0, 0
    print("batch     samples/s      MiB")
    for size in _sizes(smallest, min(largest, _samples(made.train, trainer) or largest)):
        if on_cpu and 2 * needed > psutil.virtual_memory().available:  # the system would end the process
            full = f"{size} samples would need about {2 * needed >> 20} MiB"
            break
        try:
            needed = max(0, _train(made, trainer, _FirstSteps(), size).bytes - begun)
            watch = _train(made, trainer, _Stopwatch(seconds), size)
        except (torch.OutOfMemoryError, MemoryError):
            full = f"{size} samples are more than the memory holds"
            break
        except DataError:
            if not rates:
                raise
            full = f"the data gives no batch of {size} samples"
            break
        rates[size] = watch.samples / watch.elapsed
        print(f"{size:<9} {rates[size]:>9,.0f} {needed >> 20:>8,}")
        if on_cpu and _flat([*rates.values()]):
            break
    _tell(rates, full, recipe, knob)


def _sizes(smallest: int, largest: int) -> Iterator[int]:
    """The smallest, doubled again and again, and the largest."""
    while smallest < largest:
        yield smallest
        smallest *= 2
    yield largest


def _samples(train: Any, trainer: Trainer) -> int | None:
    """How many there are, where the data set knows."""
    data: Any = train.dataset if isinstance(train, DataLoader) else train
    if isinstance(data, (tuple, list)):
        return trainer.count(data)
    try:
        return len(data)
    except TypeError:  # an IterableDataset
        return None


Watch = TypeVar("Watch", _FirstSteps, _Stopwatch)


def _train(made: Recipe, trainer: Trainer, watch: Watch, size: int) -> Watch:
    """Train in batches of another size, until the plugin that watches ends it."""
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(trainer.device)
    plugins: list[Any] = trainer.plugins.of_a_step()
    own = Trainer(made.model, made.loss, made.optimizer, [*plugins, watch], trainer.device, on_nonfinite="continue")
    own_size: dict[str, Any] = {"batch_size": size}
    if isinstance(made.train, DataLoader):
        own_size = {"batch_size": None, "shuffle": None, "drop_last": None, "train": _in_batches(made.train, size)}
    with contextlib.redirect_stdout(io.StringIO()):  # a plugin may have something to say about a fit
        fit_recipe(own, made, val=None, epochs=FOREVER, accumulate=1, **own_size)
    return watch


def _in_batches(loader: DataLoader[Any], size: int) -> DataLoader[Any]:
    """The same samples in the same order, in batches of another size."""
    if loader.batch_size is None:
        raise UsageError("the training data is a DataLoader whose batches are made by a batch_sampler of its own")
    names = ["num_workers", "collate_fn", "pin_memory", "drop_last", "worker_init_fn", "generator"]
    names += [] if isinstance(loader.dataset, IterableDataset) else ["sampler"]
    settings: dict[str, Any] = {name: getattr(loader, name) for name in names}
    return DataLoader(loader.dataset, size, **settings)


def _flat(rates: list[float]) -> bool:
    """Whether doubling the batch twice more was not worth it; once may be chance."""
    return len(rates) > 2 and max(rates[-2:]) < WORTH * max(rates[:-2])


def _tell(rates: dict[int, float], full: str, recipe: str, given: tuple[str, ...]) -> None:
    if not rates:
        raise UsageError(f"not even the smallest batch fits: {full}")
    print(f"fits      {max(rates)}, {full or 'the largest that was tried'}")
    worth = min(size for size, rate in rates.items() if rate * WORTH >= max(rates.values()))
    print(f"worth     {worth}{f': a larger one is less than {WORTH - 1:.0%} faster' if worth < max(rates) else ''}")
    with contextlib.suppress(UsageError):  # the recipe has no such knob
        print(f"next      {command_of(recipe, [*given, f'batch_size={worth}'])}")
