"""What a few steps of a fit spend their time on, operator by operator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, schedule
from tqdm import tqdm

from framework import Trainer, UsageError, hookimpl

# The outermost range or operator of a piece of work tells its phase; what has another name is of the forward pass.
PHASES = {"enumerate(DataLoader)": "data", "autograd::engine": "backward", "Optimizer.": "optimizer"}


class Profile:
    """Watches a few steps of a fit with torch's profiler, then tells the operators that took longest::

        profile   5 steps, 0.41 ms each: data 12 %, forward 18 %, backward 20 %, optimizer 15 %, Python 35 %
                  operator                        calls   self, ms   share
                  aten::addmm                        15      0.412    20 %
                  ...

    Self time is that of an operator without those that it calls: on the device where there is one, else on the CPU. The
    first line is about the program, which on a GPU only hands out work. Watched steps are slower than others, small
    operators most of all; where an epoch begins among them its batches come from torch's DataLoader, and there is no
    CUDA graph.

    `trace.json` in the run directory has every call on a line of time; open it at https://ui.perfetto.dev. Without a
    run directory there is only the table. A fit that is resumed is profiled again.

    Args:
        wait: steps before the first that is watched; another one is passed over to warm up
        active: so many steps are watched
        rows: so many operators are told

    Raises:
        UsageError: wait below 0, active or rows below 1
    """

    def __init__(self, wait: int = 5, active: int = 5, rows: int = 10, name: str = "profile") -> None:
        for setting, value, least in (("wait", wait, 0), ("active", active, 1), ("rows", rows, 1)):
            if type(value) is not int or value < least:
                raise UsageError(f"{setting} must be a whole number from {least} up, got {value!r}")
        self.name = name
        self.wait, self.active, self.rows = wait, active, rows
        self.profiling = False  # plugins with a profiler look at each other's, as there can be one at a time
        self._profiler: Any = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._profiler, self._seen = None, 0  # batches, from the warm-up on once there is a profiler
        if self.wait == 0:
            self._start(trainer)

    @hookimpl(split="train")
    def on_batch_end(self, trainer: Trainer) -> None:
        if self.profiling:
            self._seen += 1
            self._profiler.step()
            if self._seen == 1 + self.active:
                self._stop()
                self._tell(trainer)
        elif self._profiler is None:
            self._seen += 1
            if self._seen >= self.wait:
                self._start(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        if self.profiling:
            self._stop()
            if self._seen > 1:
                self._tell(trainer)
        if self._profiler is None or self._seen < 2:
            tqdm.write(f"profile   nothing: the fit ended before step {self.wait + 2} of it, the first to be watched")

    def on_teardown(self) -> None:
        if self.profiling:
            self._stop()

    def _start(self, trainer: Trainer) -> None:
        if any(getattr(plugin, "profiling", False) for plugin in trainer.plugins.values()):
            return  # it listens to one step, and the next one will do as well
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports each start and stop on stderr
        cuda = [ProfilerActivity.CUDA] * (trainer.device.type == "cuda")
        self._profiler = torch.profiler.profile(
            activities=[ProfilerActivity.CPU, *cuda], schedule=schedule(wait=0, warmup=1, active=self.active, repeat=1)
        )
        self._profiler.start()
        self.profiling, self._seen = True, 0

    def _stop(self) -> None:
        self.profiling = False
        self._profiler.stop()

    def _tell(self, trainer: Trainer) -> None:
        for line in _table(self._profiler, self._seen - 1, self.rows):
            tqdm.write(line)
        if trainer.run_dir is not None:
            path = trainer.run_dir / ("trace.json" if self.name == "profile" else f"{self.name}.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._profiler.export_chrome_trace(str(path))
            tqdm.write(f"profile   {path} has each call on a line of time: https://ui.perfetto.dev")


def _table(profiler: Any, watched: int, rows: int) -> Iterator[str]:
    """A line about the steps, and one for each of the operators that took longest."""
    events = profiler.events()
    steps = [event.cpu_time_total for event in events if event.name.startswith("ProfilerStep") and event.cpu_time_total]
    steps = steps[:watched]  # the end of the fit cuts off another one
    told = ", ".join(f"{phase} {100 * share:.0f} %" for phase, share in _phases(events, sum(steps)).items())
    yield f"profile   {len(steps)} step{'s' * (len(steps) != 1)}, {sum(steps) / len(steps) / 1e3:.2f} ms each: {told}"
    averages = [average for average in profiler.key_averages() if not average.key.startswith("ProfilerStep")]
    on_device = any(average.self_device_time_total for average in averages)
    times = [(a.self_device_time_total if on_device else a.self_cpu_time_total, a) for a in averages]
    whole = sum(time for time, _ in times) or 1
    yield f"          {'operator':<40}  calls  self, ms  share"
    for time, average in sorted(times, key=lambda timed: -timed[0])[:rows]:
        named = average.key if len(average.key) <= 40 else f"{average.key[:37]}..."
        yield f"          {named:<40}  {average.count:5}  {time / 1e3:8.3f}  {100 * time / whole:3.0f} %"


def _phases(events: Any, whole: float) -> dict[str, float]:
    """The share of each phase in the time of the program, and of what is in no operator and no range of torch."""
    phases = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
    for event in events:
        inside = event.cpu_parent is not None and not event.cpu_parent.name.startswith("ProfilerStep")
        if not inside and not event.name.startswith("ProfilerStep"):
            phase = next((phase for start, phase in PHASES.items() if event.name.startswith(start)), "forward")
            phases[phase] += event.cpu_time_total / whole
    return phases | {"Python": max(1 - sum(phases.values()), 0.0)}
