"""curves.svg: every figure over the epochs; and the verbs that draw and compare runs."""

from __future__ import annotations

import importlib
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework import Result, RunDirError, Trainer, UsageError, mode_of, picture, plain, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
DECADES = 2  # a panel gets a logarithmic axis where its values span at least so many
MEDIAN = ", median of "
BEST = "best epoch"  # what a circle is, in the legend of several runs
MANY = 200  # epochs from which on a curve is drawn with its moving median


class Plot:
    """Draws `curves.svg` in the run directory at the end of a fit, and after an error.

    One panel a figure, train and validation together; the best epoch is marked; the axis is logarithmic where the
    values span decades. In a notebook the picture is shown too, at the end. Without a run directory nothing is drawn.
    """

    def __init__(self, name: str = "plot") -> None:
        self.name = name

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        self._draw(trainer, result.best)
        if trainer.run_dir is not None and trainer.history:
            _show(trainer.run_dir / "curves.svg")

    def on_exception(self, trainer: Trainer) -> None:
        self._draw(trainer, None)

    def _draw(self, trainer: Trainer, best: Mapping[str, Any] | None) -> None:
        if trainer.run_dir is not None and trainer.history:
            draw({"": trainer.history}, trainer.run_dir / "curves.svg", {"": best})


def _show(path: Path) -> None:
    """Show a picture below the cell of a notebook; elsewhere nothing, and IPython is not imported for it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        shown = importlib.import_module("IPython.display")
        shown.display(shown.SVG(filename=str(path)))


def draw(runs: Mapping[str, Rows], path: Path, best: Mapping[str, Mapping[str, Any] | None] | None = None) -> None:
    """Draw the rows of runs by label into one SVG file, a panel a figure.

    Args:
        best: for a label the row of the best epoch with its `monitor`, as in `Result.best`; else it is looked up

    Raises:
        RunDirError: the file cannot be written
    """
    from matplotlib.ticker import MaxNLocator

    panels = _panels(runs)
    if not panels or not all("epoch" in row for rows in runs.values() for row in rows):
        raise RunDirError(f"the runs have no figures by epoch to draw in {path}")
    # Of several runs the splits stand side by side: curves of one split are there to be compared, each in its range
    width = max(map(len, panels.values())) if len(runs) > 1 else 1
    epochs = {row["epoch"] for rows in runs.values() for row in rows}
    with picture(path, 8, 0.6 + 2.9 * len(panels) + 0.25 * (len(runs) // 3)) as figure:
        grid = figure.subplots(len(panels), width, squeeze=False)
        for number, (all_axes, (base, names)) in enumerate(zip(grid, panels.items(), strict=True), start=1):
            for axes, shown in itertools.zip_longest(all_axes, [[name] for name in names] if width > 1 else [names]):
                if shown is None:
                    axes.remove()
                    continue
                _panel(axes, base if width == 1 else shown[0], shown, runs, best or {})
                axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
                axes.set_xlabel("epoch" if number == len(panels) else "")
                if len(epochs) == 1:  # a single point in the middle
                    axes.set_xlim(min(epochs) - 0.5, min(epochs) + 0.5)
        if len(runs) > 1:
            _legend(figure)
        folders = path.absolute().parts[:-1]
        of_variant = len(folders) > 2 and folders[-2].isdigit()  # recipe/001/variant
        figure.suptitle(plain("/".join(folders[-3 if of_variant else -2 :])), fontsize=10)


def _legend(figure: Figure) -> None:
    """One legend for all panels: a line for each run, and what the circles are."""
    from matplotlib.lines import Line2D

    labels = [(str(line.get_label()), line) for axes in figure.axes for line in axes.lines]
    named = {label.partition(MEDIAN)[0]: line for label, line in labels if not label.startswith("_")}
    if named.pop(BEST, None):
        named[BEST] = Line2D([], [], color="gray", linestyle="", marker="o", fillstyle="none", label=BEST)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _panels(runs: Mapping[str, Rows]) -> dict[str, list[str]]:
    """The figures by what they measure: `train_loss` and `val_loss` share the panel `loss`."""
    panels: dict[str, list[str]] = {}
    for rows in runs.values():
        for name in dict.fromkeys(name for row in rows for name in row if name not in ("epoch", "step")):
            split, _, rest = name.partition("_")
            names = panels.setdefault(rest if split in ("train", "val") and rest else name, [])
            names += [name] if name not in names else []
    return panels


def _panel(
    axes: Axes, title: str, names: list[str], runs: Mapping[str, Rows], best: Mapping[str, Mapping[str, Any] | None]
) -> None:
    shown: list[float] = []
    for number, (label, rows) in enumerate(runs.items()):
        later = list(runs.values())[number + 1 :]
        color = _color(number, len(runs))
        for name in names:
            above = sum(_alike(rows, other, name) for other in later)  # curves that would hide this one
            points = [(row["epoch"], float(row[name])) for row in rows if name in row]
            finite = [y for _, y in points if math.isfinite(y)]
            shown += finite
            style = {
                "color": color if len(runs) > 1 else f"C{names.index(name)}",
                "marker": "." if len(points) <= 30 else "",
                "linewidth": 1.5 + 2 * min(above, 3),
            }
            told = label if len(runs) > 1 else name.partition("_")[0] if name != title else name
            _curve(axes, points, plain(told), style)
            if len(finite) < len(points):
                whose = plain(label if len(runs) > 1 else name)
                axes.set_title(f"{whose} is inf or nan in {len(points) - len(finite)} epochs", fontsize=9, loc="right")
        if any(name in row for row in rows for name in names):
            _mark_best(axes, names, rows, best.get(label), None if len(runs) == 1 else color)
    axes.set_ylabel(plain(title))
    axes.grid(alpha=0.3)
    if shown and min(shown) > 0 and math.log10(max(shown) / min(shown)) >= DECADES:
        axes.set_yscale("log")
    if len(runs) == 1 and len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _color(number: int, count: int) -> Any:
    """A color of its own for each of several runs; matplotlib's cycle has ten."""
    from matplotlib import colormaps

    return f"C{number}" if count <= 10 else colormaps["turbo"](number / (count - 1))


def _alike(a: Rows, b: Rows, name: str) -> bool:
    """Whether the curve of one run lies on that of another."""
    pairs = ((x.get(name, math.nan), y.get(name, math.nan)) for x, y in zip(a, b, strict=False))
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=0.01, abs_tol=1e-9) for x, y in pairs)


def _curve(axes: Axes, points: Sequence[tuple[float, float]], label: str, style: Mapping[str, Any]) -> None:
    """A line; where many points go up and down a faint one, with its moving median on top."""
    x, y = [x for x, _ in points], [y if math.isfinite(y) else math.nan for _, y in points]  # nan breaks the line
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(y, y[1:], y[2:], strict=False))
    if len(y) < MANY or turns < len(y) / 10:
        axes.plot(x, y, label=label, **style)
        return
    axes.plot(x, y, **{**style, "linewidth": 0.5, "alpha": 0.4})
    half = min(len(y) // 100, 50)
    # Windows of one even size, at the ends too: of a curve that zigzags the median is then in the middle throughout
    starts = (min(max(0, at - half), len(y) - 2 * half) for at in range(len(y)))
    windows = ([value for value in y[start : start + 2 * half] if value == value] for start in starts)
    medians = [statistics.median(window) if window else math.nan for window in windows]
    axes.plot(x, medians, label=f"{label}{MEDIAN}{2 * half} epochs", **style)


def _mark_best(axes: Axes, names: list[str], rows: Rows, best: Mapping[str, Any] | None, color: Any) -> None:
    """A circle at the best epoch; of several runs it has the color of its run."""
    monitor = best["monitor"] if best else next((n for n in ("val_loss", "train_loss") if n in names), "")
    if monitor not in names:
        return
    row = best
    if row is None:
        finite = [row for row in rows if monitor in row and math.isfinite(row[monitor])]
        sign = 1 if mode_of(monitor) == "min" else -1
        row = min(finite, key=lambda row: sign * row[monitor], default=None)
    if row is not None and math.isfinite(row[monitor]):
        told = f"best: {row[monitor]:.4g} in epoch {row['epoch']}" if color is None else BEST
        axes.plot([row["epoch"]], [row[monitor]], "o", color=color or f"C{names.index(monitor)}", fillstyle="none",
                  markersize=9, markeredgewidth=2, label=told)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ verbs


def plot(runs: tuple[Path, ...]) -> None:
    """Draw the curves of runs again: curves.svg in each.

    Args:
        runs: run directories
    """
    if not runs:
        raise UsageError("name at least one run directory, such as runs/softmax/001")
    for directory in runs:
        for _, (path, info, rows) in read_runs(directory).items():
            draw({"": rows}, path / "curves.svg", {"": info.get("best")})
            print(f"drawn     {path / 'curves.svg'}")


def compare(runs: tuple[Path, ...], output: str = "") -> None:
    """Compare runs: a table of the knobs that differ and the last figures, and one picture.

    The figures are those of the last epoch, then those of the test set, and of the best epoch where it was chosen on
    validation data.

    Args:
        runs: run directories, or one directory of several variants
        output: the picture; by default compare.svg in the first directory's parent
    """
    listed = [(path, label, run) for path in dict.fromkeys(runs) for label, run in read_runs(path).items()]
    short = len({label for _, label, _ in listed}) == len(listed)  # else each is named with its directory
    found = {label if short else _full(path, label, run[0]): run for path, label, run in listed}
    if len(found) < 2:
        raise UsageError("name at least two run directories, or one that holds several variants")
    infos = {label: info for label, (_, info, _) in found.items()}
    columns = _knobs(infos) | _last({label: rows for label, (_, _, rows) in found.items()}) | _after(infos)
    columns |= {"seconds": {label: f"{info['seconds']:.1f}" for label, info in infos.items() if "seconds" in info}}
    table = [["run", *columns], *([label, *(cells.get(label, "") for cells in columns.values())] for label in found)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))
    path = Path(output) if output else _home(runs) / "compare.svg"
    best = {label: info.get("best") for label, info in infos.items()}
    draw({label: rows for label, (_, _, rows) in found.items()}, path, best)
    print(f"drawn     {path}")


def _full(directory: Path, label: str, path: Path) -> str:
    return str(directory) if path == directory else f"{directory}/{label}"


Columns = dict[str, dict[str, str]]  # by heading, then by run


def _knobs(infos: Mapping[str, Mapping[str, Any]]) -> Columns:
    """The knobs, and the seed, that are not the same in all runs."""
    knobs = {label: {"seed": info.get("seed"), **info.get("knobs", {})} for label, info in infos.items()}
    names = dict.fromkeys(name for settings in knobs.values() for name in settings)
    columns = {name: {label: str(settings.get(name, "")) for label, settings in knobs.items()} for name in names}
    return {name: cells for name, cells in columns.items() if len(set(cells.values())) > 1}


def _last(runs: Mapping[str, Rows]) -> Columns:
    """The figures of the last epoch."""
    names = dict.fromkeys(name for rows in runs.values() for name in rows[-1] if name != "step")
    return {name: {label: _cell(rows[-1].get(name)) for label, rows in runs.items()} for name in names}


def _after(infos: Mapping[str, Mapping[str, Any]]) -> Columns:
    """The figures of the test set; and of the best epoch, where there is a validation set to choose it by."""
    columns: Columns = {}
    for label, info in infos.items():
        best = info.get("best") or {}
        if str(best.get("monitor")).startswith("val_"):
            columns.setdefault("best_epoch", {})[label] = str(best["epoch"])
            columns.setdefault(f"best_{best['monitor']}", {})[label] = _cell(best["value"])
        for name, value in (info.get("test") or {}).items():
            columns.setdefault(name, {})[label] = _cell(value)
    return columns


def _home(runs: Sequence[Path]) -> Path:
    return runs[0] if len(runs) == 1 else runs[0].parent


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
