"""curves.svg: every figure over the epochs; and the verbs that draw and compare runs."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework import Result, RunDirError, Trainer, UsageError, mode_of, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
DECADES = 2  # a panel gets a logarithmic axis where its values span at least so many

MANY = 200  # epochs from which on a curve is drawn with its moving median


class Plot:
    """Draws `curves.svg` in the run directory at the end of a fit, and after an error.

    One panel a figure, train and validation together; the best epoch is marked; the axis is logarithmic where the
    values span decades. Without a run directory nothing is drawn.
    """

    def __init__(self, name: str = "plot") -> None:
        self.name = name

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        self._draw(trainer, result.best)

    def on_exception(self, trainer: Trainer) -> None:
        self._draw(trainer, None)

    def _draw(self, trainer: Trainer, best: Mapping[str, Any] | None) -> None:
        if trainer.run_dir is not None and trainer.history:
            draw({"": trainer.history}, trainer.run_dir / "curves.svg", best)


def draw(runs: Mapping[str, Rows], path: Path, best: Mapping[str, Any] | None = None) -> None:
    """Draw the rows of runs by label into one SVG file, a panel a figure.

    Args:
        best: the row of the best epoch with its `monitor`, as in `Result.best`; by default it is looked up

    Raises:
        RunDirError: the file cannot be written
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = _panels(runs)
    epochs = {row["epoch"] for rows in runs.values() for row in rows}
    with matplotlib.rc_context({"svg.hashsalt": "framework", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 0.6 + 2.9 * len(panels)), layout="constrained")
        for axes, (base, names) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
            _panel(axes, base, names, runs, best)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            if len(epochs) == 1:  # a single point in the middle
                axes.set_xlim(min(epochs) - 0.5, min(epochs) + 0.5)
        axes.set_xlabel("epoch")
        folders = path.absolute().parts[:-1]
        title = "/".join(folders[-3:] if folders[-2].isdigit() else folders[-2:])  # recipe/001, recipe/001/variant
        if title.isascii():  # the fonts of matplotlib have no Hangul
            figure.suptitle(title, fontsize=10)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".tmp-{path.name}")
            try:
                figure.savefig(beside, format="svg", metadata={"Date": None})
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
        except OSError as error:
            raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error


def _panels(runs: Mapping[str, Rows]) -> dict[str, list[str]]:
    """The figures by what they measure: `train_loss` and `val_loss` share the panel `loss`."""
    panels: dict[str, list[str]] = {}
    for rows in runs.values():
        for name in dict.fromkeys(name for row in rows for name in row if name not in ("epoch", "step")):
            split, _, rest = name.partition("_")
            names = panels.setdefault(rest if split in ("train", "val") and rest else name, [])
            names += [name] if name not in names else []
    return panels


def _panel(axes: Axes, base: str, names: list[str], runs: Mapping[str, Rows], best: Mapping[str, Any] | None) -> None:
    shown: list[float] = []
    for number, (label, rows) in enumerate(runs.items()):
        for name in names:
            points = [(row["epoch"], float(row[name])) for row in rows if name in row]
            finite = [y for _, y in points if math.isfinite(y)]
            shown += finite
            split = name.partition("_")[0] if name != base else name
            below = len(runs) == 2 and number == 0  # of two equal curves the lower one still shows
            style = {
                "color": f"C{number if len(runs) > 1 else names.index(name)}",
                "linestyle": "--" if len(runs) > 1 and split == "train" and len(names) > 1 else "-",
                "marker": "." if len(points) <= 30 else "",
                "linewidth": 3.5 if below else 1.5,
            }
            _curve(axes, points, f"{label} {split}".strip() if len(names) > 1 or not label else label, style)
            if len(finite) < len(points):
                axes.set_title(f"{name} is inf or nan in {len(points) - len(finite)} epochs", fontsize=9, loc="right")
    axes.set_ylabel(base)
    axes.grid(alpha=0.3)
    if shown and min(shown) > 0 and math.log10(max(shown) / min(shown)) >= DECADES:
        axes.set_yscale("log")
    if len(runs) == 1:
        _mark_best(axes, names, next(iter(runs.values())), best)
    if len(axes.lines) > 1 or len(runs) > 1:
        axes.legend(frameon=False, fontsize=9)


def _curve(axes: Axes, points: Sequence[tuple[float, float]], label: str, style: Mapping[str, Any]) -> None:
    """A line; where many points go up and down a faint one, with its moving median on top."""
    x, y = [x for x, _ in points], [y if math.isfinite(y) else math.nan for _, y in points]  # nan breaks the line
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(y, y[1:], y[2:], strict=False))
    if len(y) < MANY or turns < len(y) / 10:
        axes.plot(x, y, label=label, **style)
        return
    axes.plot(x, y, **{**style, "linewidth": 0.5, "alpha": 0.4})
    half = min(len(y) // 100, 50)  # an even window: of a curve that zigzags it takes the middle
    windows = ([value for value in y[max(0, at - half) : at + half] if value == value] for at in range(len(y)))
    medians = [statistics.median(window) if window else math.nan for window in windows]
    axes.plot(x, medians, label=f"{label}, median of {2 * half} epochs", **style)


def _mark_best(axes: Axes, names: list[str], rows: Rows, best: Mapping[str, Any] | None) -> None:
    monitor = best["monitor"] if best else next((n for n in ("val_loss", "train_loss") if n in names), "")
    if monitor not in names:
        return
    row = best
    if row is None:
        finite = [row for row in rows if monitor in row and math.isfinite(row[monitor])]
        sign = 1 if mode_of(monitor) == "min" else -1
        row = min(finite, key=lambda row: sign * row[monitor], default=None)
    if row is not None and math.isfinite(row[monitor]):
        axes.plot([row["epoch"]], [row[monitor]], "o", color=f"C{names.index(monitor)}", fillstyle="none", markersize=9,
                  markeredgewidth=2, label=f"best: {row[monitor]:.4g} in epoch {row['epoch']}")  # fmt: skip


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
            draw({"": rows}, path / "curves.svg", info.get("best"))
            print(f"drawn     {path / 'curves.svg'}")


def compare(runs: tuple[Path, ...], output: str = "") -> None:
    """Compare runs: a table of the knobs that differ and the last figures, and one picture.

    Args:
        runs: run directories, or one directory of several variants
        output: the picture; by default compare.svg in the first directory's parent
    """
    found: dict[str, tuple[Path, dict[str, Any], Rows]] = {}
    for directory in runs:
        for label, run in read_runs(directory).items():
            found[label if label not in found else str(directory)] = run
    if len(found) < 2:
        raise UsageError("name at least two run directories, or one that holds several variants")
    infos = {label: {"seed": info.get("seed"), **info.get("knobs", {})} for label, (_, info, _) in found.items()}
    knobs = [
        k
        for k in dict.fromkeys(k for i in infos.values() for k in i)
        if len({str(i.get(k)) for i in infos.values()}) > 1
    ]
    figures = list(dict.fromkeys(n for _, _, rows in found.values() for n in rows[-1] if n != "step"))
    table = [["run", *knobs, *figures, "seconds"]]
    for label, (_, info, rows) in found.items():
        last = [_cell(rows[-1].get(name)) for name in figures]
        table.append([label, *(str(infos[label].get(k, "")) for k in knobs), *last, _cell(info.get("seconds"))])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]))
    path = Path(output) if output else _home(runs) / "compare.svg"
    draw({label: rows for label, (_, _, rows) in found.items()}, path)
    print(f"drawn     {path}")


def _home(runs: Sequence[Path]) -> Path:
    return runs[0] if len(runs) == 1 else runs[0].parent


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
