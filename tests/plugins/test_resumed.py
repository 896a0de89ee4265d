"""Every built-in plugin: a fit that was stopped inside of an epoch and resumed ends as the one that was left alone."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.accuracy import Accuracy
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.closure import Closure
from framework_plugins.compile import Compile
from framework_plugins.confusion_matrix import ConfusionMatrix
from framework_plugins.console import Console
from framework_plugins.csv import Csv
from framework_plugins.decision_boundary import DecisionBoundary
from framework_plugins.diagram import Diagram
from framework_plugins.early_stopping import EarlyStopping
from framework_plugins.f1_score import F1Score
from framework_plugins.freeze import Freeze
from framework_plugins.gpu_memory import GpuMemory
from framework_plugins.gradient_statistics import GradientStatistics
from framework_plugins.history import History
from framework_plugins.limits import Limits
from framework_plugins.mixed_precision import MixedPrecision
from framework_plugins.plot import Plot
from framework_plugins.progress import Progress
from framework_plugins.schedule import Schedule
from framework_plugins.summary import Summary
from framework_plugins.tensorboard import TensorBoard
from framework_plugins.top_checkpoints import TopCheckpoints
from framework_plugins.top_losses import TopLosses
from framework_plugins.torchmetrics import TorchMetrics
from framework_plugins.validation import Validation
from torch import nn
from torchmetrics import AUROC, MeanMetric

from framework import Result, Trainer
from framework.checkpoint import find, read
from framework.discovery import available

EPOCHS = 3
OTHERS = torch.linspace(-1, 1, 4).expand(3, 4), torch.arange(3)  # samples of another set
MEASURED = ("process_mib",)  # figures of the process, not of the fit

PLUGINS: dict[str, Callable[[], Sequence[Any]]] = {
    "accuracy": lambda: [Accuracy(), Accuracy(top_k=2, name="top2")],
    "average_weights": lambda: [AverageWeights(decay=0.8)],
    "best_checkpoint": lambda: [BestCheckpoint(), BestCheckpoint("train_loss", name="lowest")],
    "clip_gradients": lambda: [ClipGradients(0.5), ClipGradients(value=0.1, name="by_value")],
    "closure": lambda: [Closure()],
    "compile": lambda: [Compile(backend="eager")],
    "confusion_matrix": lambda: [ConfusionMatrix()],
    "console": lambda: [Console()],
    "csv": lambda: [Csv()],
    "decision_boundary": lambda: [DecisionBoundary()],
    "diagram": lambda: [Diagram()],
    "early_stopping": lambda: [EarlyStopping("train_loss", patience=1, min_delta=0.05, restore_best=True)],
    "f1_score": lambda: [F1Score(), F1Score("micro", class_names="abc", name="micro")],
    "freeze": lambda: [Freeze(["0"], until_epoch=1), Freeze("3.bias", 2, name="freeze_bias")],
    "gpu_memory": lambda: [GpuMemory()],
    "gradient_statistics": lambda: [GradientStatistics(), GradientStatistics(3, name="thinned")],
    "history": lambda: [History()],
    "limits": lambda: [Limits(steps=1000), Limits(monitor="train_loss", target=0.0, name="good_enough")],
    "mixed_precision": lambda: [MixedPrecision("bf16")],
    "plot": lambda: [Plot()],
    "progress": lambda: [Progress(line_seconds=0)],
    "schedule": lambda: [Schedule()],
    "summary": lambda: [Summary()],
    "tensorboard": lambda: [TensorBoard(x="samples")],
    "top_checkpoints": lambda: [TopCheckpoints("train_loss"), TopCheckpoints("train_loss", 1, "max", name="worst")],
    "top_losses": lambda: [TopLosses(count=3)],
    "torchmetrics": lambda: [
        TorchMetrics({"auroc": AUROC("multiclass", num_classes=3), "mean": (MeanMetric(), lambda output, _: output)})
    ],
    "validation": lambda: [Validation(OTHERS, every_steps=3), Validation(OTHERS, name="other", save_best=True)],
}
# in files of their own
ELSEWHERE = {"debug", "distributed", "mlflow", "profile", "regression", "throughput", "wandb", "watchdog"}


class StopAt:
    """Saves and stops after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


def fitted(
    plugins: Sequence[Any], run_dir: Path, val: bool, features: int, resume: Path | None = None
) -> tuple[Trainer, Result]:
    """A fit of three classes of `features` numbers, in four batches an epoch of which the last is smaller."""
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(15, features, generator=generator), torch.arange(15) % 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, "cpu", run_dir)
    torch.manual_seed(1 if resume is None else 99)
    result = trainer.fit((x, y), (x[:5], y[:5]) if val else None, epochs=EPOCHS, batch_size=4, resume=resume)
    return trainer, result


def files(run_dir: Path) -> dict[str, str]:
    """What plugins have written, and what the labels point at by its step."""
    found = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file() and path.name != "run.lock"}
    found = {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}  # a picture is a long message
    labels = [path.name for path in run_dir.glob("checkpoints/*") if path.is_file()]
    for label in labels:
        path = find(run_dir, label)
        assert path is not None
        found[label] = f"{read(path).epoch}, {read(path).step}"
    return found


def told(run_dir: Path, trainer: Trainer, result: Result) -> Any:
    """Everything that a fit leaves, but for what is measured of the process and when."""
    best = {**(result.best or {}), "path": None}
    rows = [{name: value for name, value in row.items() if name not in MEASURED} for row in result.history]
    states = {name: state for name, state in trainer.plugins.states().items() if name != "gpu_memory"}
    weights = dict(trainer.model.state_dict())
    return [rows, best, (result.epochs, result.steps, result.stop_reason), files(run_dir), states, weights]


def test_every_plugin_is_here() -> None:
    ours = {name for name, point in available().items() if point.value.startswith("framework_plugins.")}
    assert ours - ELSEWHERE == set(PLUGINS)


@pytest.mark.parametrize("val", [False, True], ids=["train", "val"])
@pytest.mark.parametrize("name", [*PLUGINS, "all of them"])
def test_stopped_and_resumed_it_leaves_what_it_leaves_alone(oracle: Any, tmp_path: Path, name: str, val: bool) -> None:
    features = 2 if name == "decision_boundary" else 4

    def made() -> list[Any]:
        names = PLUGINS.keys() - {"decision_boundary", "gpu_memory"} if name == "all of them" else {name}
        return [plugin for one, make in PLUGINS.items() if one in names for plugin in make()]

    run_dir = tmp_path / "alone" / "recipe" / "001"  # the picture of the curves tells the last two
    alone = told(run_dir, *fitted(made(), run_dir, val, features))
    for step in (2, 4, 9):  # in the first epoch, after its last batch, and in the last one
        run_dir = tmp_path / str(step) / "recipe" / "001"
        fitted([*made(), StopAt(step)], run_dir, val, features)
        resumed = told(run_dir, *fitted(made(), run_dir, val, features, resume=run_dir))
        if "LAST" not in alone[3]:
            del resumed[3]["LAST"]  # of what has stopped it
        oracle.assert_same(alone, resumed, f"after step {step}")


@pytest.mark.parametrize("step", [2, 4])  # inside of the first epoch, and after its last batch
@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_that_comes_with_the_resume_begins_in_the_middle(tmp_path: Path, name: str, step: int) -> None:
    features = 2 if name == "decision_boundary" else 4
    fitted([StopAt(step)], tmp_path, True, features)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the checkpoint has no state of plugin")
        _, result = fitted(PLUGINS[name](), tmp_path, True, features, resume=tmp_path)
    assert (result.epochs, result.steps) == (EPOCHS, 4 * EPOCHS)
