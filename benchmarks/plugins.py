"""What each plugin adds to a step and to an epoch: `python benchmarks/plugins.py [NAME ...] [--write]`.

One process and one thread on the CPU. A fit with the plugin stands between two without it, and medians over the turns
are told. What is less than these two differ by cannot be measured, and the page says so. Each fit is timed from within
by a plugin that has no hook in a step: a step is the pass over the training data divided by its steps, and what an
epoch costs beside its steps lies between two passes. The first epoch does not count, nor what is done once a fit:
printing, drawing, compiling. Microseconds are those of this machine; quote the ratios.

`--write` puts the figures into the pages: the last line of "Hooks and cost" in docs/plugins/NAME.md, in both languages.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework import Trainer, hookimpl
from framework.discovery import available

EPOCHS, TURNS = 12, 15
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {"en": DOCS / "plugins", "ko": DOCS / "ko" / "plugins"}
BEGINS = {"en": "Cost a step: ", "ko": "한 스텝의 비용: "}


@dataclass(frozen=True)
class Problem:
    """What is trained: the model, the loss, and one epoch of data."""

    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    data: Callable[[], tuple[Tensor, Tensor]]
    batch_size: int = 2


def points(samples: int, features: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, features), torch.randint(classes, (samples,))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


CLASSES = Problem(lambda: nn.Linear(4, 3), nn.functional.cross_entropy, lambda: points(400, 4))
FEW = Problem(lambda: nn.Linear(4, 3), nn.functional.cross_entropy, lambda: points(40, 4))
PLANE = Problem(lambda: nn.Linear(2, 3), nn.functional.cross_entropy, lambda: points(400, 2))
NUMBERS = Problem(lambda: nn.Linear(4, 1), nn.functional.mse_loss, lambda: (torch.randn(400, 4), torch.randn(400, 1)))
LARGE = Problem(network, nn.functional.cross_entropy, lambda: points(1280, 256, classes=10), batch_size=128)


def torchmetrics() -> dict[str, Any]:
    from torchmetrics.classification import MulticlassF1Score

    return {"metrics": {"f1": MulticlassF1Score(num_classes=3)}}


@dataclass(frozen=True)
class Case:
    """How a plugin is measured: its settings, what it is measured on, and plugins that are there with it and without.

    `changes_the_work`: the step is another one with it, so that a ratio is told in place of what it adds.
    """

    settings: Callable[[], Mapping[str, Any]] = dict
    problem: Problem = CLASSES
    beside: Sequence[str] = ()
    changes_the_work: bool = False

    def plugin(self, name: str) -> Any:
        return available()[name].load()(**self.settings())


CASES: dict[str, Case] = {
    "accuracy": Case(),
    "average_weights": Case(),
    "best_checkpoint": Case(),
    "clip_gradients": Case(),
    "closure": Case(),
    "compile": Case(problem=LARGE, changes_the_work=True),
    "confusion_matrix": Case(),
    "console": Case(),
    "csv": Case(),
    "debug": Case(beside=["accuracy"]),  # whose hooks it looks at
    "decision_boundary": Case(problem=PLANE),
    "diagram": Case(),
    "distributed": Case(),
    "early_stopping": Case(lambda: {"patience": 1_000_000}),
    "f1_score": Case(),
    "freeze": Case(lambda: {"modules": ["0"]}, LARGE, changes_the_work=True),
    "gpu_memory": Case(),
    "gradient_statistics": Case(),
    "history": Case(),
    "limits": Case(lambda: {"steps": 1_000_000}),
    "mixed_precision": Case(lambda: {"dtype": "bf16"}, LARGE, changes_the_work=True),
    "mlflow": Case(),
    "plot": Case(),
    "profile": Case(lambda: {"wait": 0, "active": 1_000_000}, FEW),  # the steps that are timed are those it watches
    "progress": Case(),
    "regression": Case(problem=NUMBERS),
    "schedule": Case(),
    "summary": Case(),
    "tensorboard": Case(),
    "throughput": Case(),
    "top_checkpoints": Case(),
    "top_losses": Case(),
    "torchmetrics": Case(torchmetrics),
    "validation": Case(lambda: {"data": points(40, 4)}),
    "wandb": Case(lambda: {"mode": "offline"}),
    "watchdog": Case(),
}


class Clock:
    """Seconds of the passes over the training data, and of whole epochs."""

    def __init__(self) -> None:
        self.passes: list[float] = []
        self.starts: list[float] = []  # of epochs, and the end of the last

    def on_epoch_start(self) -> None:
        self.starts.append(time.perf_counter())

    @hookimpl(split="train")
    def on_split_start(self) -> None:
        self.passes.append(-time.perf_counter())

    @hookimpl(split="train")
    def on_split_end(self) -> None:
        self.passes[-1] += time.perf_counter()

    def measured(self, steps: int) -> tuple[float, float]:
        """Microseconds of a step, and of an epoch without its steps; neither the first epoch nor the last counts."""
        passes = self.passes[1:-1]
        epochs = [end - start for start, end in zip(self.starts[1:], self.starts[2:], strict=False)]
        between = [epoch - one for epoch, one in zip(epochs, passes, strict=True)]
        return statistics.median(passes) / steps * 1e6, statistics.median(between) * 1e6


@dataclass(frozen=True)
class Figure:
    """Microseconds of a step or an epoch without the plugin, what it adds, and by how much two such figures differ."""

    without: float
    added: float
    noise: float

    @property
    def ratio(self) -> float:
        return (self.without + self.added) / self.without

    @property
    def measurable(self) -> bool:
        return round(self.added, 1) != 0 and abs(self.added) > self.noise

    @classmethod
    def of(cls, turns: Sequence[tuple[float, float, float]]) -> Figure:
        """Of what was measured without the plugin, with it, and without it again."""
        return cls(
            statistics.median((before + after) / 2 for before, _, after in turns),
            statistics.median(with_it - (before + after) / 2 for before, with_it, after in turns),
            statistics.median(abs(before - after) for before, _, after in turns),
        )


def line(language: str, step: Figure, epoch: Figure, as_ratio: bool) -> str:
    """The line of a page; the numbers are the same in both languages."""
    korean, whole = language == "ko", f"{step.without:.1f} us"
    of_step, of_epoch = (
        f"{figure.added:+.1f} us" if figure.measurable else "잴 수 없을 만큼 작음" if korean else "nothing measurable"
        for figure in (step, epoch)
    )
    if as_ratio:
        of_step = f"없을 때의 {step.ratio:.2f}배" if korean else f"{step.ratio:.2f} times that without it"
    if korean:
        return f"{BEGINS['ko']}{of_step} (없을 때 한 스텝은 {whole}), 한 에폭에 {of_epoch}"
    return f"{BEGINS['en']}{of_step} (a step without it takes {whole}), and {of_epoch} an epoch"


def fit(case: Case, plugins: Sequence[Any], run_dir: str) -> tuple[float, float]:
    """Microseconds of a step, and of an epoch without its steps."""
    torch.manual_seed(0)
    problem, clock, silent = case.problem, Clock(), io.StringIO()
    model, data = problem.model(), problem.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        trainer = Trainer(model, problem.loss, optimizer, [clock, *case.beside, *plugins], "cpu", run_dir)
        result = trainer.fit(data, epochs=EPOCHS, batch_size=problem.batch_size)
    return clock.measured(result.steps // EPOCHS)


def cost(name: str) -> tuple[Figure, Figure]:
    """Of a step, and of an epoch beside its steps."""
    case, turns = CASES[name], []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # some write beside the run directory too
        for turn in range(TURNS + 1):
            before = fit(case, [], f"{turn}/before")
            with_it = fit(case, [case.plugin(name)], f"{turn}/with")
            turns.append((before, with_it, fit(case, [], f"{turn}/after")))
    step, epoch = (Figure.of([(a[part], b[part], c[part]) for a, b, c in turns[1:]]) for part in (0, 1))  # warm
    return step, epoch


def write(name: str, lines: Mapping[str, str]) -> None:
    """Put the line of each language into the page of a plugin.

    Raises:
        ValueError: a page has no such line
    """
    for language, folder in PAGES.items():
        page = folder / f"{name}.md"
        text = page.read_text(encoding="utf-8")
        written, count = re.subn(f"^{BEGINS[language]}.*$", lines[language], text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{page}: {count} lines begin with {BEGINS[language]!r}; there must be one")
        page.write_text(written, encoding="utf-8", newline="\n")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all without one: {', '.join(CASES)}")
    parser.add_argument("--write", action="store_true", help="into the pages of the plugins")
    asked = parser.parse_args(words)
    if unknown := [name for name in asked.names if name not in CASES]:
        parser.error(f"no case for {', '.join(unknown)}; there are: {', '.join(CASES)}")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {EPOCHS} epochs, {TURNS} turns; microseconds")
    print(f"{'plugin':<20}{'a step':>10}{'adds':>10}{'noise':>8}{'ratio':>8}{'an epoch':>12}{'adds':>10}{'noise':>8}")
    for name in asked.names or CASES:
        step, epoch = cost(name)
        print(f"{name:<20}{step.without:>10.1f}{step.added:>10.1f}{step.noise:>8.1f}{step.ratio:>8.2f}"
              f"{epoch.without:>12.1f}{epoch.added:>10.1f}{epoch.noise:>8.1f}", flush=True)  # fmt: skip
        if asked.write:
            write(name, {language: line(language, step, epoch, CASES[name].changes_the_work) for language in PAGES})
    torch.set_num_threads(before)


if __name__ == "__main__":
    main()
