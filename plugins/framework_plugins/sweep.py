"""A run for each of many settings, and which were best."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from framework import (
    DeviceError,
    FrameworkError,
    PluginError,
    PluginOption,
    RunDirError,
    UsageError,
    build,
    command_of,
    knobs,
    mode_of,
    picture,
    plain,
    run,
    write_whole,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RANGE = re.compile(r"([-+\w.]+?)\.\.([-+\w.]+?)(?::(log|linear))?")
SPAN = 100  # from a range whose ends differ by this factor on, numbers are drawn by their logarithms
FILE = "sweep.json"


@dataclass(frozen=True)
class Space:
    """What one knob may be: words of its values, or a range of numbers."""

    knob: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    def word(self, number: float) -> str:
        """A number of the range as one writes it; of four digits, so that a command line repeats the trial."""
        kept = min(max(float(f"{number:.4g}"), self.low), self.high)
        return str(round(kept)) if self.whole else str(kept)

    def draw(self, generator: random.Random) -> str:
        if self.values:
            return generator.choice(self.values)
        if self.log:
            return self.word(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return self.word(generator.uniform(self.low - 0.5 * self.whole, self.high + 0.5 * self.whole))


@dataclass
class Trial:
    """One run of a sweep: its knobs as words, and the best of its monitored figure or the error that ended it."""

    name: str
    knobs: dict[str, str]
    value: float | None = None
    epoch: int | None = None
    seconds: float | None = None
    error: str = ""


def space_of(recipe: str, word: str) -> Space:
    """What a word such as `lr=0.1,0.01` or `lr=1e-4..1e-1` lets a knob be.

    Raises:
        UsageError: no such knob, a value of the wrong type, a range of something else than numbers or of none
    """
    knob, sets, text = word.partition("=")
    found = RANGE.fullmatch(text)
    if not sets or not found:
        values = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        for value in values:
            knobs(recipe, [f"{knob}={value}" if sets else word])
        return Space(knob, values)
    low, high = (knobs(recipe, [f"{knob}={end}"])[knob] for end in found.groups()[:2])
    if isinstance(low, bool) or not isinstance(low, (int, float)):
        raise UsageError(f"{word}: a range is one of numbers, and {knob} is of type {type(low).__name__}; list values")
    if not low < high < math.inf:
        raise UsageError(f"{word}: the range is empty; it goes from a lower number to a higher one")
    log = found[3] == "log" or (found[3] is None and low > 0 and high / low >= SPAN)
    if log and low <= 0:
        raise UsageError(f"{word}: logarithms are of positive numbers; write :linear")
    return Space(knob, (), low, high, isinstance(low, int), log)


def _proposed(
    spaces: Sequence[Space], method: str, trials: int, seed: int, scores: Sequence[float | None]
) -> Iterator[dict[str, str]]:
    """The knobs of one trial after the other, as words. `scores` has the figure of each before, less is better."""
    if method == "grid":
        for words in itertools.product(*(space.values for space in spaces)):
            yield {space.knob: word for space, word in zip(spaces, words, strict=True)}
    elif method == "random":
        generator = random.Random(seed)
        for _ in range(trials):
            yield {space.knob: space.draw(generator) for space in spaces}
    else:
        yield from _by_optuna(spaces, trials, seed, scores)


def _by_optuna(
    spaces: Sequence[Space], trials: int, seed: int, scores: Sequence[float | None]
) -> Iterator[dict[str, str]]:
    """Those that the sampler TPE of Optuna proposes. Told the same scores it proposes the same again."""
    try:
        import optuna
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ImportError as error:
        raise UsageError('--method optuna needs the package optuna: pip install "framework-trainer[optuna]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    ranges: dict[str, Any] = {}
    for space in spaces:
        if space.values:
            ranges[space.knob] = CategoricalDistribution(space.values)
        else:
            kind: Any = IntDistribution if space.whole else FloatDistribution
            ranges[space.knob] = kind(space.low, space.high, log=space.log)
    for number in range(trials):
        asked = study.ask(ranges)
        taken = [(space, asked.params[space.knob]) for space in spaces]
        yield {space.knob: value if space.values else space.word(value) for space, value in taken}
        failed = scores[number] is None
        study.tell(asked, scores[number], optuna.trial.TrialState.FAIL if failed else None)


class Sweep:
    """The trials of a directory; each new one is run there and added to sweep.json."""

    def __init__(self, directory: Path, about: dict[str, Any]) -> None:
        self.directory, self.about, self.trials = directory, about, list[Trial]()
        file = directory / FILE
        if file.is_file():
            try:
                held = json.loads(file.read_text(encoding="utf-8"))
                self.trials = [Trial(**trial) for trial in held.pop("trials")]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RunDirError(f"{file} is damaged: {error}") from error
            odd = [f"{name} {held.get(name)!r}" for name in about if held.get(name) != about[name]]
            if odd and self.trials:
                raise RunDirError(f"{directory} holds a sweep with {', '.join(odd)}; give another --run-dir")
        elif directory.exists() and any(directory.iterdir()):
            raise RunDirError(f"{directory} holds something else than a sweep; give another --run-dir")

    def write(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        told = {**self.about, "trials": [asdict(trial) for trial in self.trials]}
        write_whole(self.directory / FILE, json.dumps(told, indent=2, ensure_ascii=False) + "\n")

    def trial(self, words: dict[str, str], varied: Sequence[str], **options: Any) -> tuple[Trial, bool]:
        """The trial of these knobs, and whether it was there already."""
        for done in self.trials:
            if done.knobs == words:
                return done, True
        name = ",".join(f"{knob}={words[knob]}" for knob in varied)
        taken = {done.name.casefold() for done in self.trials}
        if not re.fullmatch(r"[\w.=,+-]{1,100}\w", name) or name.casefold() in taken:  # a directory of its own anywhere
            name = f"{len(self.trials) + 1:03}"
        trial = Trial(name, words)
        shutil.rmtree(self.directory / name, ignore_errors=True)  # what was cut off
        self._run(trial, **options)
        self.trials.append(trial)
        self.write()
        return trial, False

    def _run(self, trial: Trial, monitor: str, **options: Any) -> None:
        recipe = self.about["recipe"]
        settings = knobs(recipe, [f"{knob}={word}" for knob, word in trial.knobs.items()])
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                result = run(
                    recipe, seed=self.about["seed"], run_dir=self.directory / trial.name, **options, **settings
                )
        except (PluginError, DeviceError):  # of every trial
            raise
        except FrameworkError as error:
            trial.error = str(error)
            return
        except Exception as error:  # of a model that does not take every setting
            trial.error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            return
        trial.seconds = result.seconds
        if result.history and monitor not in result.history[-1]:
            raise UsageError(f"no metric {monitor!r} to compare trials by. There is: {', '.join(result.history[-1])}")
        rows = [row for row in result.history if math.isfinite(row[monitor])]
        if not rows:
            trial.error = f"{monitor} was never a number" if result.history else "stopped before an epoch was over"
            return
        best = (max if mode_of(monitor) == "max" else min)(rows, key=lambda row: row[monitor])
        trial.value, trial.epoch = best[monitor], best["epoch"]


def sweep(
    recipe: str, knob: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KNOB=VALUES ...")] = (),
    method: Literal["grid", "random", "optuna"] = "grid", trials: int = 0, monitor: str = "", seed: int = 0,
    device: str = "auto", plugin: PluginOption = (), run_dir: str = "",
) -> int:  # fmt: skip
    """Run a recipe with many settings; a table and a picture of which were best.

    Args:
        recipe: a recipe file, or the name of an installed one
        knob: values of a knob, such as lr=0.1,0.01, or a range of it, such as lr=1e-4..1e-1 (:log or :linear behind it)
        method: every combination of the values; so many drawn at random; or as the sampler TPE of Optuna proposes
        trials: how many, of a method that draws; 20 where not given
        monitor: the figure to compare by, the best over the epochs; val_loss where there is one, else train_loss
        seed: that of each trial, and of what is drawn
        device: auto (cuda, else mps, else cpu), or a device by name
        run_dir: keep the sweep here, or go on with the one that is there; by default runs/RECIPE/sweep-NNN
    """
    spaces = _checked([space_of(recipe, word) for word in knob], method, trials)
    first = {space.knob: space.values[0] if space.values else space.word(space.low) for space in spaces}
    made = build(recipe, seed=seed, **knobs(recipe, [f"{name}={word}" for name, word in first.items()]))
    if made is None or isinstance(made, dict):
        what = f"has the variants {', '.join(made)}: sweep over a knob in their place" if made else "trains nothing"
        raise UsageError(f"the recipe {recipe} {what}")
    monitor = monitor or ("train_loss" if made.val is None else "val_loss")
    directory = Path(run_dir) if run_dir else _new(recipe)
    own = Sweep(directory, {"recipe": recipe, "seed": seed, "monitor": monitor, "plugins": [*plugin]})
    own.write()  # from now on the directory is known as that of a sweep, also after a first trial that is cut off
    del made  # the trials need the memory
    varied = [space.knob for space in spaces if len(space.values) != 1]
    sign, scores = -1 if mode_of(monitor) == "max" else 1, list[float | None]()
    try:
        for words in _proposed(spaces, method, trials or 20, seed, scores):
            trial, known = own.trial(words, varied, monitor=monitor, device=device, plugins=plugin)
            scores.append(None if trial.value is None else sign * trial.value)
            print(f"{len(scores):<9} {_line(trial, varied, monitor)}{'  (was there)' if known else ''}")
    except KeyboardInterrupt:
        print(f"next      the same command with --run-dir {directory} goes on with what is missing")
        raise
    differing = [knob for knob in first if len({trial.knobs.get(knob) for trial in own.trials}) > 1]
    varied += [knob for knob in differing if knob not in varied]  # from one call to the next
    ranked = sorted(own.trials, key=lambda each: math.inf if each.value is None else sign * each.value)
    return _conclude(ranked, varied, monitor, own)


def _checked(spaces: list[Space], method: str, trials: int) -> list[Space]:
    names = [space.knob for space in spaces]
    if not spaces:
        raise UsageError("name at least one knob with its values, such as lr=0.1,0.01")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"the knob {twice[0]!r} is given twice; list all of its values behind one =")
    if ranges := [space.knob for space in spaces if not space.values and method == "grid"]:
        raise UsageError(f"a grid needs values, and {ranges[0]} has a range: list some, or use --method random")
    if trials < 0 or (trials and method == "grid"):
        told = "a grid has a trial for every combination" if method == "grid" else "there must be at least one"
        raise UsageError(f"--trials {trials}: {told}")
    return spaces


def _new(recipe: str) -> Path:
    """The next free directory runs/RECIPE/sweep-NNN, made; two sweeps started together get two."""
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            path = Path("runs", Path(recipe).stem, f"sweep-{number:03}")
            path.mkdir(parents=True)
            return path
    raise AssertionError


def _line(trial: Trial, varied: Sequence[str], monitor: str) -> str:
    told = f"failed: {trial.error}" if trial.value is None else f"{monitor} {trial.value:.6g} in epoch {trial.epoch}"
    return "  ".join([*(f"{knob}={trial.knobs[knob]}" for knob in varied), told])


def _conclude(ranked: Sequence[Trial], varied: Sequence[str], monitor: str, own: Sweep) -> int:
    """The table, the best first; the picture; the command line of the best."""
    best = ranked[0]
    if best.value is None:
        raise FrameworkError(f"every trial failed, the first one with: {own.trials[0].error}")
    table = [[*varied, monitor, "epoch", "seconds", "run"]]
    for trial in ranked:
        figures = ["failed", "", ""]
        if trial.value is not None:
            figures = [f"{trial.value:.6g}", str(trial.epoch), f"{trial.seconds:.1f}"]
        table.append([*(trial.knobs.get(knob, "") for knob in varied), *figures, trial.name])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)), row[-1], sep="  ")
    print(f"saved     {own.directory}")
    if varied:
        draw(ranked, varied, monitor, own.directory / "sweep.svg")
        print(f"drawn     {own.directory / 'sweep.svg'}")
    told = ["--seed", str(own.about["seed"])] * bool(own.about["seed"])
    told += [word for plugin in own.about["plugins"] for word in ("-p", plugin)]
    words = [f"{knob}={word}" for knob, word in best.knobs.items()]
    print(" ".join([f"next      {command_of(own.about['recipe'], words)}", *told]))
    return 0


# ---------------------------------------------------------------------------------------------------- picture


def draw(trials: Sequence[Trial], varied: Sequence[str], monitor: str, path: Path) -> None:
    """The figure of each trial over each knob; of two knobs one over the other, with the figure as the color."""
    done = [trial for trial in trials if trial.value is not None and all(knob in trial.knobs for knob in varied)]
    if len(varied) == 2:
        with picture(path, 7, 4.8) as figure:
            _colored(figure.subplots(), done, varied[0], varied[1], monitor)
        return
    with picture(path, 8, 0.4 + 3 * len(varied)) as figure:
        for axes, knob in zip(figure.subplots(len(varied), squeeze=False)[:, 0], varied, strict=True):
            x, values = _places(axes, "x", done, knob), [trial.value for trial in done if trial.value is not None]
            pairs = sorted(zip(x, values, strict=True))
            axes.plot(*zip(*pairs, strict=True), "-o" if len(varied) == 1 else "o", color="C0", markersize=5)
            axes.plot(x[:1], values[:1], "o", color="C1", fillstyle="none", markersize=11, markeredgewidth=2,
                      label=f"best: {values[0]:.4g} at {plain(done[0].knobs[knob])}")  # fmt: skip
            if min(values) > 0 and max(values) / min(values) >= SPAN:
                axes.set_yscale("log")
            axes.set_xlabel(plain(knob))
            axes.set_ylabel(plain(monitor))
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=9)


def _colored(axes: Axes, trials: Sequence[Trial], across: str, up: str, monitor: str) -> None:
    x, y = _places(axes, "x", trials, across), _places(axes, "y", trials, up)
    values = [trial.value for trial in trials if trial.value is not None]
    points = axes.scatter(x, y, c=values, s=160, cmap="viridis", edgecolors="white", zorder=2)
    axes.plot(x[:1], y[:1], "o", color="C1", fillstyle="none", markersize=18, markeredgewidth=2)
    for one, other, value in zip(x, y, values, strict=True) if len(trials) <= 30 else ():
        axes.annotate(f"{value:.3g}", (one, other), (0, 11), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xlabel(plain(across))
    axes.set_ylabel(plain(up))
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    axes.figure.colorbar(points, ax=axes, label=plain(monitor))
    axes.set_title(f"best: {values[0]:.4g}", fontsize=10)


def _places(axes: Axes, side: str, trials: Sequence[Trial], knob: str) -> list[float]:
    """Where the trials stand on an axis: at their numbers, or words side by side."""
    words = [trial.knobs[knob] for trial in trials]
    try:
        places = [float(word) for word in words]
    except ValueError:
        names = sorted(set(words))
        axes.set(**{f"{side}ticks": range(len(names)), f"{side}ticklabels": map(plain, names)})
        return [float(names.index(word)) for word in words]
    if min(places) > 0 and max(places) / min(places) >= SPAN:
        axes.set(**{f"{side}scale": "log"})
    return places
