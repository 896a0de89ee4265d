"""How the cost of a fit grows: `python benchmarks/scaling.py`.

Four sweeps of the plain loop of docs/design.md (raw) against the trainer:

* rows: Linear(3, 1) on 5 to 10 million rows, shuffled, batches of max(2, rows / 1000); 10 million are one epoch
* plugins: Linear(3, 1) on 5 rows, batches of 2, with 0 to 50 plugins that listen to every batch
* epochs: Linear(3, 1) on 5 rows as one batch, 1 to 100,000 epochs, without plugins and with three of the default ones
* width: 1-W-1 with Adam, 100 rows as one batch of a loader, 500 to 200,000 hidden units

Each figure comes from a process of its own with two threads, in which a small fit came before. The sides take turns,
and medians are told; a ratio is the median of the ratios of the turns. The memory of a fit is what the process has
more than at its start: at its highest point, and at its end with the result still there. Where the memory of 1000
more epochs lies is asked of tracemalloc, in a process that is not timed. The last weights of all sides are compared.

`--only rows epochs` measures some, `--quick` smaller points; `--json FILE` keeps the results and `--from FILE` reads
them again; `--markdown` prints tables for a page; `--pictures DIR` draws. `--check` ends with 1 and names what grows
that must not. Takes about twenty minutes on two cores, and 2 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THREADS, TURNS = 2, 3
STEPS = 3000  # of a point whose epochs are short
DEFAULT = ["console", "history", "best_checkpoint"]
RAW, OURS, WITH = "raw", "trainer", "with plugins"
TRACED = 1000  # epochs of the shorter of the two fits that tracemalloc looks at; the other has twice as many
MiB = 2**20

# What --check holds against the results.
ROW = 1024  # bytes that an epoch may leave behind: a row of result.history
LEFT = 16  # bytes an epoch that may be left when the history is gone
LONG = 5000  # epochs between the least and the most from which the memory of the process says something
LINEAR = 2.0  # a plugin among many may cost so many times one among few
STEADY = 2.0  # an epoch of the longest fit may take so many times one of a shorter
NOISE = 0.1  # of a step, which no finding is made of


@dataclass(frozen=True)
class Sweep:
    """One thing that grows: its values, and which sides are measured at each."""

    unit: str
    what: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    sides: tuple[str, ...] = (RAW, OURS)
    per: str = "a step"


SWEEPS = {
    "rows": Sweep("rows", "Linear(3, 1), batches of max(2, rows / 1000), shuffled",
                  (5, 100, 10_000, 1_000_000, 10_000_000), (5, 100, 10_000, 100_000)),
    "plugins": Sweep("plugins", "Linear(3, 1), 5 rows, batches of 2; each plugin counts the batches",
                     (0, 1, 5, 10, 20, 50), (0, 10, 50)),
    "epochs": Sweep("epochs", "Linear(3, 1), 5 rows, all in one batch",
                    (1, 10, 100, 1000, 10_000, 100_000), (1, 100, 10_000), (RAW, OURS, WITH), "an epoch"),
    "width": Sweep("hidden units", "1-W-1, Adam, 100 rows, one batch of a loader",
                   (500, 2000, 20_000, 200_000), (500, 5000, 20_000)),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What is trained at one point; a width of 0 is Linear(3, 1), a batch of None the whole without a loader."""

    rows: int
    batch: int | None
    epochs: int
    width: int = 0
    plugins: int = 0


def problem(sweep: str, value: int) -> Problem:
    """The point of a sweep, long enough to be timed and a few seconds at most."""
    if sweep == "rows":
        batch = max(2, value // 1000)
        return Problem(value, batch, max(1, STEPS // math.ceil(value / batch)) if value <= 10_000 else 1)
    if sweep == "plugins":
        return Problem(5, 2, STEPS // 3, plugins=value)
    if sweep == "epochs":
        return Problem(5, None, value)
    return Problem(100, 100, max(30, min(1000, 4_000_000 // value)), width=value)


# ------------------------------------------------------------------------------------- one figure, in its own process


def plain(model: nn.Module, loss: Any, optimizer: Any, data: Any, epochs: int, batch: int | None) -> int:
    """The hand-written loop; returns how many steps it took."""
    loader: Any = [data] if batch is None else DataLoader(TensorDataset(*data), batch_size=batch, shuffle=True)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            x, y = x.to("cpu"), y.to("cpu")
            optimizer.zero_grad()
            l = loss(model(x), y)  # noqa: E741
            l.backward()
            optimizer.step()
    return epochs * len(loader)


def made(given: Problem) -> Any:
    """Model, optimizer and data, the same for every side."""
    torch.manual_seed(0)
    if given.width:
        model: nn.Module = nn.Sequential(nn.Linear(1, given.width), nn.ReLU(), nn.Linear(given.width, 1))
        data = torch.linspace(0, 1, given.rows).reshape(-1, 1), torch.randn(given.rows, 1) * 0.01
        return model, torch.optim.Adam(model.parameters()), data
    model = nn.Linear(3, 1)
    data = torch.randn(given.rows, 3), torch.randn(given.rows, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.01), data


class Counter:
    """A plugin that does as little as one can in every batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = 0

    def on_batch_end(self) -> None:
        self.steps += 1


@contextlib.contextmanager
def prepared(side: str, given: Problem) -> Iterator[tuple[nn.Module, Callable[[], Any]]]:
    """The model of a side, and the call that trains it, which gives its steps and what must be held meanwhile."""
    model, optimizer, data = made(given)
    loss = nn.functional.mse_loss
    if side == RAW:
        yield model, lambda: (plain(model, loss, optimizer, data, given.epochs, given.batch), None)
        return
    from framework import Trainer  # not in the process of the plain loop

    plugins: list[Any] = [*DEFAULT] if side == WITH else []
    counters = [Counter(f"counter_{number}") for number in range(given.plugins)]
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        run_dir = folder if side == WITH else None
        trainer = Trainer(model, loss, optimizer, [*plugins, *counters], "cpu", run_dir)

        def fit() -> tuple[int, Any]:
            with contextlib.redirect_stdout(nowhere):
                result = trainer.fit(data, epochs=given.epochs, batch_size=given.batch)
            assert all(counter.steps == result.steps for counter in counters)
            return result.steps, (trainer, result)

        yield model, fit


def measured(sweep: str, value: int, side: str) -> dict[str, Any]:
    """Time, memory and last weights of one side at one point, in this process."""
    given = problem(sweep, value)
    small = replace(given, rows=min(given.rows, 100), epochs=3, width=min(given.width, 10))
    with prepared(side, small) as (_, train):
        train()  # what is imported and allocated once is there now
    with prepared(side, given) as (model, train):
        gc.collect()
        highest_from_here()
        before, begun = resident(), time.perf_counter()
        steps, held = train()
        seconds = time.perf_counter() - begun
        gc.collect()
        after, peak = resident(), highest()
        del held
        numbers = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    return {
        "us": seconds / steps * 1e6,
        "seconds": seconds,
        "steps": steps,
        "before": before,
        "after": after - before,
        "peak": max(peak, after) - before,
        "weights": hashlib.sha256(numbers).hexdigest()[:16],
    }


def traced(side: str, epochs: int) -> dict[str, Any]:
    """Bytes an epoch that Python holds at the end of a fit, those without the history, and where they were made."""
    given = Problem(5, None, 3)
    with prepared(side, given) as (_, train):
        train()  # not traced: imports are slow then
    tracemalloc.start()
    sums, snapshots = [], []
    for length in (epochs, epochs, 2 * epochs):  # the first, in which torch fills caches, does not count
        with prepared(side, replace(given, epochs=length)) as (_, train):
            before = _traced_memory()
            _, held = train()
            with_history = _traced_memory() - before
            for owner in held or ():
                owner.history.clear()
            sums.append((with_history, _traced_memory() - before))
            del held
    for length in (epochs, 2 * epochs):
        with prepared(side, replace(given, epochs=length)) as (_, train):
            _, held = train()
            gc.collect()
            snapshots.append(tracemalloc.take_snapshot())
            del held
    tracemalloc.stop()
    places = snapshots[1].compare_to(snapshots[0], "lineno")
    more = {f"{_short(p.traceback[0].filename)}:{p.traceback[0].lineno}": p.size_diff / epochs for p in places}
    return {
        "held": (sums[2][0] - sums[1][0]) / epochs,
        "left": (sums[2][1] - sums[1][1]) / epochs,
        "places": {place: size for place, size in more.items() if size >= 1 and "tracemalloc" not in place},
    }


def _traced_memory() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-2:])


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def highest_from_here() -> None:
    """On Linux a process can forget how large it was; elsewhere its highest point is of its whole life."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def highest() -> int:
    """The most memory that this process had, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


# --------------------------------------------------------------------------------------------------------- all sweeps


def child(*arguments: Any) -> dict[str, Any]:
    """What this file says in a fresh process.

    Raises:
        SystemExit: the process failed
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *map(str, arguments)]
    told = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def swept(sweep: str, values: Sequence[int], turns: int) -> list[dict[str, Any]]:
    """A row for each value: its sides with the medians of the turns, in which they followed each other."""
    rows = []
    for value in values:
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SWEEPS[sweep].sides}
        for _ in range(turns):
            for side, found in runs.items():
                found.append(child(sweep, value, side))
        rows.append({"value": value, **{side: _medians(found, runs[RAW]) for side, found in runs.items()}})
        print(f"  {sweep} {value:,}: {_told(rows[-1])}", file=sys.stderr, flush=True)
    return rows


def _medians(found: Sequence[Mapping[str, Any]], raw: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    middle = {key: statistics.median(run[key] for run in found) for key in ("us", "seconds", "before", "after", "peak")}
    return {
        **middle,
        "ratio": statistics.median(run["us"] / other["us"] for run, other in zip(found, raw, strict=True)),
        "turns": [run["us"] for run in found],
        "steps": found[0]["steps"],
        "weights": sorted({run["weights"] for run in found}),
    }


def _told(row: Mapping[str, Any]) -> str:
    sides = {side: figures for side, figures in row.items() if side != "value"}
    return ", ".join(f"{side} {figures['us']:.1f} us" for side, figures in sides.items())


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return {
        "python": platform.python_version(), "torch": torch.__version__, "system": platform.system(), "cpu": name,
        "cores": os.cpu_count(), "threads": THREADS,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------- what must not grow


def grown(results: Mapping[str, Any]) -> list[str]:
    """Each thing that grows and must not, and each point at which the sides did not train the same."""
    sweeps = results["sweeps"]
    found = [told for name, rows in sweeps.items() for row in rows for told in _different(name, row)]
    if rows := sweeps.get("epochs"):
        for side in (OURS, WITH):
            found += _memory(side, rows, results["traced"][side])
            found += _time(side, rows)
    return found + (_plugins(sweeps["plugins"]) if "plugins" in sweeps else [])


def _different(sweep: str, row: Mapping[str, Any]) -> list[str]:
    raw, told = row[RAW], []
    for side in SWEEPS[sweep].sides[1:]:
        if row[side]["steps"] != raw["steps"]:
            told.append(f"{sweep} {row['value']:,}: {side} took {row[side]['steps']} steps, raw {raw['steps']}")
        elif row[side]["weights"] != raw["weights"]:
            told.append(f"{sweep} {row['value']:,}: the last weights of {side} are not those of raw")
    return told


def _memory(side: str, rows: Sequence[Mapping[str, Any]], python: Mapping[str, Any]) -> list[str]:
    told = []
    growth = per_epoch(rows, side)
    if growth is not None and growth > ROW:
        told.append(f"epochs, {side}: the process grows by {growth:.0f} bytes an epoch, more than {ROW}")
    if python["held"] > ROW:
        told.append(f"epochs, {side}: Python holds {python['held']:.0f} bytes an epoch, more than {ROW}")
    if python["left"] > LEFT:
        told.append(f"epochs, {side}: {python['left']:.0f} bytes an epoch are left without the history")
    return [f"{line} ({_places(python)})" for line in told]


def _places(python: Mapping[str, Any]) -> str:
    places = sorted(python["places"].items(), key=lambda item: -item[1])[:4]
    return "most from " + ", ".join(f"{place} {size:.0f}" for place, size in places) if places else "not from Python"


def _time(side: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """An epoch of a long fit takes as long as one of a shorter; the first few are not asked."""
    settled = [row for row in rows if row["value"] >= 100]
    if len(settled) < 2:
        return []
    fastest, last = min(row[side]["us"] for row in settled), settled[-1]
    if last[side]["us"] <= STEADY * fastest:
        return []
    return [f"epochs, {side}: an epoch of {last['value']:,} takes {last[side]['us']:.0f} us, of fewer {fastest:.0f}"]


def _plugins(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The most plugins against the middle of the sweep: in a straight line from none, but for noise."""
    none, *some = rows
    if len(some) < 2 or none["value"] != 0:
        return []
    few, many = some[(len(some) - 1) // 2], some[-1]
    base = none[OURS]["us"]
    expected = max(0.0, few[OURS]["us"] - base) * many["value"] / few["value"]
    if many[OURS]["us"] - base <= LINEAR * expected + NOISE * base:
        return []
    return [
        f"plugins: {many['value']} add {many[OURS]['us'] - base:.1f} us to a step of {base:.1f}; {few['value']} add "
        f"{few[OURS]['us'] - base:.1f}, so that would be {expected:.1f}"
    ]


def per_epoch(rows: Sequence[Mapping[str, Any]], side: str) -> float | None:
    """Bytes by which the process grows an epoch; None where too few epochs lie between the least and the most."""
    first, last = rows[0], rows[-1]
    span = last["value"] - first["value"]
    return (last[side]["after"] - first[side]["after"]) / span if span >= LONG else None


def per_plugin(rows: Sequence[Mapping[str, Any]]) -> float:
    """Microseconds that a plugin adds to a step: the slope of the straight line through the points."""
    points = [row["value"] for row in rows], [row[OURS]["us"] for row in rows]
    return statistics.linear_regression(*points).slope


# --------------------------------------------------------------------------------------------------- tables, pictures


def table(sweep: str, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Heading and lines: time, ratio and memory of each side."""
    made_of = SWEEPS[sweep]
    heads = [made_of.unit, "steps"] if sweep != "epochs" else [made_of.unit]
    heads += [f"{side}, us" for side in made_of.sides] + [f"{side} / raw" for side in made_of.sides[1:]]
    memory = made_of.sides if sweep in MEMORY else ()
    heads += [f"{side}, peak MiB" for side in memory]
    lines = []
    for row in rows:
        line = [f"{row['value']:,}"] + ([f"{row[RAW]['steps']:,}"] if sweep != "epochs" else [])
        line += [f"{row[side]['us']:,.1f}" for side in made_of.sides]
        line += [f"{row[side]['ratio']:.2f}" for side in made_of.sides[1:]]
        line += [f"{row[side]['peak'] / MiB:,.1f}" for side in memory]
        lines.append(line)
    return [heads, *lines]


def remarks(sweep: str, results: Mapping[str, Any]) -> list[str]:
    """What the table of a sweep does not say."""
    rows = results["sweeps"][sweep]
    if sweep == "plugins" and len(rows) > 1:
        return [f"A plugin adds {per_plugin(rows):.2f} us to a step."]
    if sweep != "epochs":
        return []
    told = []
    for side in (OURS, WITH):
        python, growth = results["traced"][side], per_epoch(rows, side)
        process = f"; the process grows by {growth:.0f}" if growth is not None else ""
        told.append(
            f"{side}: an epoch leaves {python['held']:.0f} bytes{process}; without the history "
            f"{max(0.0, python['left']):.0f} ({_places(python)})."
        )
    return told


def printed(results: Mapping[str, Any], markdown: bool) -> str:
    """All tables, for a terminal or for a page."""
    about = results["machine"]
    parts = [
        f"torch {about['torch']}, Python {about['python']}, {about['cpu']}, {about['threads']} threads, "
        f"median of {results['turns']}{', quick' if results['quick'] else ''}"
    ]
    for sweep, rows in results["sweeps"].items():
        heads, *lines = cells = table(sweep, rows)
        title = f"{sweep}: {SWEEPS[sweep].what}; us {SWEEPS[sweep].per}"
        if markdown:
            below = [heads, ["--:"] * len(heads), *lines]
            parts.append("\n".join([f"### {title}", "", *(f"| {' | '.join(line)} |" for line in below)]))
        else:
            widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
            aligned = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
            parts.append("\n".join([title, *aligned]))
        parts.append("\n".join(remarks(sweep, results)))
    return "\n\n".join(part for part in parts if part) + "\n"


MEMORY = ("rows", "epochs", "width")  # sweeps of which memory is told
LEAST = 1  # MiB, below which memory is not drawn apart
LINES: dict[str, dict[str, Any]] = {
    RAW: {"label": "raw loop", "color": "0.4", "linestyle": "--", "zorder": 4},
    OURS: {"label": "trainer", "color": "C0", "linewidth": 2.5},
    WITH: {"label": f"with {len(DEFAULT)} plugins", "color": "C1", "zorder": 3},
}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """One picture a sweep: its time, and the memory beside it where that is what grows."""
    from framework import picture

    about, files = results["machine"], []
    for sweep, rows in results["sweeps"].items():
        made_of = SWEEPS[sweep]
        beside = sweep in MEMORY
        files.append(folder / f"scaling-{sweep}.svg")
        with picture(files[-1], 10 if beside else 7, 4) as figure:
            panels = figure.subplots(1, 2 if beside else 1, squeeze=False)[0]
            for axes, key in zip(panels, ("us", "peak"), strict=False):
                _panel(axes, sweep, rows, key)
            figure.suptitle(f"{made_of.what}\ntorch {about['torch']}, {about['threads']} threads", fontsize=9)
            figure.draw_without_rendering()  # where lines end is known from here on
            for axes in panels:
                _name_lines(axes)
    return files


def _panel(axes: Axes, sweep: str, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    made_of, values = SWEEPS[sweep], [row["value"] for row in rows]
    for side in made_of.sides:
        numbers = [row[side][key] if key == "us" else max(row[side][key] / MiB, LEAST) for row in rows]
        axes.plot(values, numbers, **LINES[side], marker="o", markersize=4)
    axes.set_xlabel(made_of.unit)
    axes.grid(alpha=0.3)
    axes.margins(x=0.07)
    if sweep == "plugins":  # there is no 0 on a logarithmic axis, and a straight line is what is to be seen
        axes.set_ylim(0, 1.2 * axes.get_ylim()[1])
    else:
        axes.set_xscale("log")
        axes.set_yscale("log")
        _decades(axes)
    told = [value for value in values if sweep != "plugins" or value == 0 or value >= values[-1] / 20]  # 1 is beside 0
    axes.set_xticks(told, [_count(value) for value in told])
    axes.minorticks_off()
    title = f"time of {made_of.per} [us]" if key == "us" else f"memory of the fit at its peak [MiB, at least {LEAST}]"
    axes.set_title(title, fontsize=10, loc="left")
    if key == "us":
        axes.set_title("below: trainer / raw loop", fontsize=9, loc="right", color=LINES[OURS]["color"])
        for row in (row for row in rows if row["value"] in told):
            axes.text(
                row["value"], 0.97, f"{row[OURS]['ratio']:.2f}", transform=axes.get_xaxis_transform(), ha="center",
                va="top", fontsize=9, color=LINES[OURS]["color"],
            )  # fmt: skip


def _decades(axes: Axes) -> None:
    """Room at both ends, and plain numbers on the upright axis: 1, 2, 5, 10, ...; 1, 10, ... where it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    low, high = axes.get_ylim()
    low, high = low / 1.3, high * max(2.0, (high / low) ** 0.15)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _count(value: int) -> str:
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if value >= unit and value % unit == 0:
            return f"{value // unit}{name}"
    return str(value)


def _name_lines(axes: Axes) -> None:
    """The name of each line at its right end, pushed apart where ends lie close together."""
    gap = 13 * axes.figure.dpi / 72
    ends = []
    for line in axes.lines:
        x, y = float(line.get_xdata()[-1]), float(line.get_ydata()[-1])
        ends.append((axes.transData.transform((x, y))[1], (x, y), line))
    ends.sort(key=lambda end: end[0])
    heights = [end[0] for end in ends]
    for _ in range(50):
        for below in range(len(heights) - 1):
            short = gap - (heights[below + 1] - heights[below])
            if short > 0:
                heights[below] -= short / 2
                heights[below + 1] += short / 2
    for (height, point, line), moved in zip(ends, heights, strict=True):
        axes.annotate(
            str(line.get_label()), point, xytext=(8, (moved - height) / axes.figure.dpi * 72),
            textcoords="offset points", va="center", color=line.get_color(), fontsize=9, annotation_clip=False,
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the command


def measure(names: Sequence[str], quick: bool, turns: int) -> dict[str, Any]:
    """All that is asked for, as it is written to the file of results."""
    results: dict[str, Any] = {"machine": machine(), "turns": turns, "quick": quick, "sweeps": {}}
    for name in names:
        values = SWEEPS[name].quick if quick else SWEEPS[name].values
        results["sweeps"][name] = swept(name, values, turns)
    if "epochs" in names:
        results["traced"] = {side: child("traced", TRACED, side) for side in (OURS, WITH)}
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How the cost of a fit grows with rows, plugins, epochs and width.")
    parser.add_argument("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="these sweeps")
    parser.add_argument("--quick", action="store_true", help="smaller points")
    parser.add_argument("--turns", type=int, default=TURNS, help="processes a side and point; medians are told")
    parser.add_argument("--from", type=Path, dest="source", metavar="FILE", help="read results instead of measuring")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw a picture a sweep")
    parser.add_argument("--check", action="store_true", help="exit with 1 if something grows that must not")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        torch.set_num_threads(THREADS)
        sweep, value, side = given.child[0], int(given.child[1]), given.child[2]
        print(json.dumps(traced(side, value) if sweep == "traced" else measured(sweep, value, side)))
        return 0
    if given.turns < 1:
        parser.error("--turns must be 1 or more")
    source = given.source
    results = json.loads(source.read_text("utf-8")) if source else measure(given.only, given.quick, given.turns)
    results["sweeps"] = {name: rows for name, rows in results["sweeps"].items() if name in given.only}
    print(printed(results, given.markdown), end="")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8", newline="\n")
    for file in draw(results, given.pictures) if given.pictures else ():
        print(f"drawn     {file}")
    findings = grown(results) if given.check else []
    for finding in findings:
        print(f"grows     {finding}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
