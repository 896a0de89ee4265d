"""How fast a fit is, and whether it waits for its data, for the device, or for Python."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import MutableMapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from framework import Trainer, hookimpl

LOOKED_INTO = 3, 6, 13, 26, 53, 107, 211, 420  # the batches of a fit whose operators are timed, odd and even ones
MEASURED = "cpu", "cuda"  # devices whose work a profiler tells
NOTHING = 5.0  # microseconds that an operator takes here that has nothing to do: only what is above them is computing


class Throughput:
    """Samples a second, and at the end of a fit what holds it up, with the shares that were measured::

        throughput 96 samples/s; waiting for data 94 %, computing 4 %, Python 2 %: the data is what holds it up; ...

    The shares are those of the passes over train, without validation; the first step, which sets things up, counts like
    the others. They add up to 100:

    * waiting for data: from the end of a batch until the next one is there;
    * computing: on a CPU the time inside of torch's operators, but for the 5 microseconds that each takes anyway; on a
      CUDA device the time in which it is at work. torch's profiler looks into 8 of the first 420 batches for it. The
      device may be at work while the next batch is fetched; so only where it is idle is somebody waited for, and this
      time is divided as that of the program is;
    * Python: what is left: your code, the loop, plugins, and what calling an operator takes.

    Of several processes the shares are those of the first one, whose wait for the others counts to its step.

    List it last: what plugins behind it do after a batch would count as waiting for data. Where another profiler
    listens that is no plugin, leave it out: torch has only one at a time. On other devices than these two there are no
    shares.

    Adds `samples_per_second`, of all processes together; a batch that was looked into counts like those before it.
    """

    def __init__(self, name: str = "throughput") -> None:
        self.name = name
        self.profiling = False  # plugins with a profiler look at each other's, as there can be one at a time
        self._profiler: Any = None
        self._waiting = self._inside = 0.0  # seconds between batches, and from a batch to the end of its step
        self._first = 0.0  # seconds of the first step, in which kernels are chosen and code is compiled
        self._samples = self._batches = 0
        self._before = [0, 0.0]  # samples and seconds when the epoch began
        self._computing: list[float] = []  # seconds of the batches that were looked into
        self._mark: float | None = None  # when the last batch ended; None where the way to the next one does not count

    def metric_names(self, split: str) -> list[str]:
        return ["samples_per_second"] if split == "train" else []

    def on_fit_start(self) -> None:
        self._waiting = self._inside = self._first = 0.0
        self._samples = self._batches = 0
        self._before, self._computing, self._mark = [0, 0.0], [], None

    @hookimpl(split="train")
    def on_split_start(self) -> None:
        self._before = [self._samples, self._waiting + self._inside]
        self._mark = time.perf_counter()

    @hookimpl(split="train")
    def on_batch_start(self, trainer: Trainer) -> None:
        now = time.perf_counter()
        if self._mark is not None:
            self._waiting += now - self._mark
        elif self._batches:  # resumed: others went by on the way to this one
            self._waiting += self._waiting / self._batches
        self._batches += 1
        self._started = now
        if self._batches in LOOKED_INTO and trainer.device.type in MEASURED:
            self._look_into(trainer)

    @hookimpl(split="train")
    def on_batch_end(self, samples: int) -> None:
        self._samples += samples
        if self.profiling:
            self._stop_looking()
            self._computing.append(_seconds(self._profiler.function_events))
            self._inside += (self._inside - self._first) / (self._batches - 2)  # like those before: looking takes time
            self._mark = time.perf_counter()
        else:
            self._mark = time.perf_counter()
            self._inside += self._mark - self._started
            if self._batches == 1:
                self._first = self._inside

    def _look_into(self, trainer: Trainer) -> None:
        if not any(getattr(plugin, "profiling", False) for plugin in trainer.plugins.values()):
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports each start and stop on stderr
            cuda = trainer.device.type == "cuda"
            kind = torch.autograd.profiler.profile
            self._profiler = kind(use_cpu=False, use_device="cuda", use_kineto=True) if cuda else kind()
            self._profiler.__enter__()
            self.profiling = True

    def _stop_looking(self) -> None:
        self.profiling = False
        self._profiler.__exit__(None, None, None)

    def on_checkpoint(self) -> None:
        if self._mark is not None:  # writing it is no waiting for data
            self._mark = time.perf_counter()

    @hookimpl(split="train")
    def on_split_end(self, trainer: Trainer, metrics: MutableMapping[str, float]) -> None:
        if self._mark is not None:
            self._waiting += time.perf_counter() - self._mark
        samples, seconds = self._samples - self._before[0], self._waiting + self._inside - self._before[1]
        metrics["samples_per_second"] = _rate(trainer, samples, seconds)

    def state_dict(self) -> dict[str, Any]:
        return {
            "waiting": self._waiting, "inside": self._inside, "samples": self._samples, "batches": self._batches,
            "before": self._before, "first": self._first, "computing": self._computing,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._waiting, self._inside = state["waiting"], state["inside"]
        self._samples, self._batches = state["samples"], state["batches"]
        self._before, self._first, self._computing = state["before"], state["first"], state["computing"]

    def on_fit_end(self, trainer: Trainer) -> None:
        rate = _rate(trainer, self._samples, self._waiting + self._inside)
        if self._batches:
            shown = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
            known = trainer.device.type in MEASURED
            told = "too few batches to tell what holds it up" if known else f"no shares on {trainer.device.type}"
            if self._computing:
                computing = statistics.median(self._computing) * self._batches
                inside = (self._inside - self._first) / (self._batches - 1) * self._batches
                told = _verdict(self._waiting, inside, computing, trainer)
            tqdm.write(f"throughput {shown} samples/s; {told}")

    def on_teardown(self) -> None:
        if self.profiling:
            self._stop_looking()


def _rate(trainer: Trainer, samples: float, seconds: float) -> float:
    """Samples a second of all processes, the same number in each."""
    here = torch.tensor([samples, seconds, 1], dtype=torch.float64)
    everywhere, each, processes = trainer.sum(here).tolist()
    return float(everywhere * processes / max(each, 1e-9))


def _seconds(events: Any) -> float:
    """What the operators, or the kernels, of a profile have computed; ranges of Python have no :: in their names."""
    inside = sum(max(event.self_cpu_time_total - NOTHING, 0.0) for event in events if "::" in event.name)
    on_device = sum(event.self_device_time_total for event in events if not event.is_user_annotation)
    return float(on_device or inside) / 1e6


def _verdict(waiting: float, inside: float, computing: float, trainer: Trainer) -> str:
    shares = _shares(waiting, inside, computing, trainer.device.type)
    told = ", ".join(f"{name} {share} %" for name, share in shares.items())
    most = max(shares, key=lambda name: shares[name])
    return f"{told}: {_advice(most, trainer) if shares[most] >= 50 else 'none of the three alone holds it up'}"


def _shares(waiting: float, inside: float, computing: float, device: str) -> dict[str, int]:
    """Of the time, in percent. A CPU computes inside of a step, a GPU beside the program."""
    whole = waiting + inside
    computing = min(computing, inside if device == "cpu" else whole)
    others = waiting + (inside - computing if device == "cpu" else inside)
    data = round(100 * (whole - computing) / whole * waiting / others) if others else 0
    computed = min(round(100 * computing / whole), 100 - data)
    return {"waiting for data": data, "computing": computed, "Python": 100 - data - computed}


def _advice(most: str, trainer: Trainer) -> str:
    loader = trainer.loaders["train"]
    loader = getattr(loader, "whole", loader)  # of which this process takes a part
    if most == "computing":
        if trainer.device.type == "cpu":
            return "computing is what holds it up; a faster device or a smaller model helps, more workers do not"
        return f"{trainer.device} is what holds it up; try the plugins mixed_precision and compile"
    if most == "Python":
        held = "Python is what holds it up"
        larger = getattr(loader, "batch_size", None) is not None
        return f"{held}; try a larger batch_size, so that each call has more to compute" if larger else held
    held = "the data is what holds it up"
    if type(loader) is not DataLoader or trainer.engine.told().get("train") == "from memory":
        return held
    workers = f"num_workers={max(2, 2 * loader.num_workers)}"
    return f"{held}; try {workers}, or cache=True if each sample is always the same"
