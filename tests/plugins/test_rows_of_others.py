"""What the built-in plugins make of a part of each batch, and of what other processes have; here without any.

Runs of several processes are in tests/plugins/distributed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from framework_plugins.accuracy import Accuracy
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.closure import Closure
from framework_plugins.confusion_matrix import ConfusionMatrix
from framework_plugins.csv import Csv
from framework_plugins.decision_boundary import DecisionBoundary
from framework_plugins.f1_score import F1Score
from framework_plugins.freeze import Freeze
from framework_plugins.gradient_statistics import GradientStatistics
from framework_plugins.limits import Limits
from framework_plugins.mlflow import Mlflow
from framework_plugins.regression import Regression
from framework_plugins.tensorboard import TensorBoard
from framework_plugins.top_losses import TopLosses
from framework_plugins.torchmetrics import TorchMetrics
from framework_plugins.wandb import Wandb
from torch import Tensor, nn

from framework import Processes, Trainer, UsageError, hookimpl
from framework.testing import tiny_data, tiny_trainer

X, Y = torch.randn(12, 9, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class PadsAll:
    """The first batch of each pass is all padding, as where there are fewer rows than processes."""

    def on_split_start(self) -> None:
        self.batches = 0

    def on_batch_start(self, trainer: Trainer) -> None:
        trainer.samples *= min(self.batches, 1)
        self.batches += 1


class Two(Processes):
    size = 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


class Twin:
    """There is another process, which sees the same rows."""

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Iterator[None]:
        trainer.processes = Two()
        return (yield)

    def reduce(self, value: Tensor) -> Tensor:
        return value * 2


def trainer_of(*plugins: Any, loss: Any = None, outputs: int = 3, layers: Any = (), **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 4), *layers, nn.Tanh(), nn.Linear(4, outputs))
    optimizer = options.pop("optimizer", partial(torch.optim.SGD, lr=0.5))(model.parameters())
    return Trainer(model, loss or nn.CrossEntropyLoss(), optimizer, plugins, device="cpu", **options)


def metrics() -> TorchMetrics:
    kind: dict[str, Any] = {"task": "multiclass", "num_classes": 3}
    return TorchMetrics({"f1": torchmetrics.F1Score(**kind), "auroc": torchmetrics.AUROC(**kind)})


LABELS = (X, (X[:, :3] > 0).float())
FIGURES: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "accuracy": (Accuracy, nn.CrossEntropyLoss(), (X, Y)),
    "top2": (partial(Accuracy, top_k=2), nn.CrossEntropyLoss(), (X, Y)),
    "f1_score": (F1Score, nn.CrossEntropyLoss(), (X, Y)),
    "f1_score of labels": (F1Score, nn.BCEWithLogitsLoss(), LABELS),
    "confusion_matrix": (ConfusionMatrix, nn.CrossEntropyLoss(), (X, Y)),
    "regression": (Regression, nn.MSELoss(), LABELS),
    "top_losses": (partial(TopLosses, count=3), nn.CrossEntropyLoss(), (X, Y)),
    "torchmetrics": (metrics, nn.CrossEntropyLoss(), (X, Y)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_batch_that_is_all_padding_counts_for_nothing(name: str, oracle: Any) -> None:
    make, loss, (x, y) = FIGURES[name]
    padded, plain = make(), make()
    oracle.assert_same(
        trainer_of(PadsAll(), padded, loss=loss).evaluate((x, y), 4),
        trainer_of(plain, loss=loss).evaluate((x[4:], y[4:]), 4),
    )
    for found in ("matrix", "worst"):
        oracle.assert_same(getattr(padded, found, None), getattr(plain, found, None))


def test_points_of_padding_are_not_drawn() -> None:
    class Looks(PadsAll):
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 3 * self.batches  # of six
            self.batches += 1

        def on_split_end(self, trainer: Trainer) -> None:
            self.points = [len(x) for x, _ in trainer.plugins["decision_boundary"].state_dict()["seen"]]

    model, looks = nn.Linear(2, 2), Looks()
    optimizer = torch.optim.SGD(model.parameters())
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [looks, DecisionBoundary()], device="cpu")
    trainer.fit((X[:, :2], Y % 2), batch_size=6)
    assert looks.points == [3]


TWINS: dict[str, Callable[[], list[Any]]] = {
    "accuracy": lambda: [Accuracy()],
    "average_weights": lambda: [AverageWeights(swa_start=0)],
    "clip_gradients": lambda: [ClipGradients(0.1)],
    "f1_score": lambda: [F1Score()],
    "gradient_statistics": lambda: [GradientStatistics()],
    "torchmetrics": lambda: [metrics()],
}


@pytest.mark.parametrize("name", TWINS)
def test_the_figures_of_two_processes_with_the_same_rows_are_those_of_one(name: str, oracle: Any) -> None:
    found = []
    for twin in ((), (Twin(),)):
        trainer = trainer_of(*TWINS[name](), *twin, layers=[nn.BatchNorm1d(4)])
        history = trainer.fit((X, Y), (X, Y), epochs=3, batch_size=4).history
        found.append((history, dict(trainer.model.state_dict())))
    oracle.assert_same(*found)


def test_a_closure_is_handed_the_mean_over_the_processes() -> None:
    class Records(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.loss = closure()

    class Other:
        def reduce(self, value: Tensor) -> Tensor:
            return value + 2 if value.dtype == torch.float32 else value  # its loss is 2

    trainer = trainer_of(Closure(), Other(), optimizer=partial(Records, lr=0.0))
    trainer.processes = Two()
    (row,) = trainer.fit((X, Y)).history
    assert trainer.optimizer.loss.item() == pytest.approx((row["train_loss"] + 2) / 2)  # type: ignore[attr-defined]


def test_the_largest_losses_are_those_of_all_processes() -> None:
    one, two = TopLosses(count=3), TopLosses(count=4)
    trainer_of(one).evaluate((X, Y), 5)
    trainer = trainer_of(two)
    trainer.processes = Two()
    trainer.evaluate((X, Y), 5)
    losses = one.worst["test"][0].tolist()
    assert two.worst["test"][0].tolist() == pytest.approx([losses[0], losses[0], losses[1], losses[1]])


def test_a_metric_of_which_a_process_has_no_sample_is_told() -> None:
    class Elsewhere:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 0

        def reduce(self, value: Tensor) -> Tensor:
            return value + 1  # of the other one

    trainer = trainer_of(Elsewhere(), metrics())
    trainer.processes = Two()
    with pytest.raises(UsageError, match="the samples of test came to 1 of 2 processes; a metric needs some in each"):
        trainer.evaluate((X, Y), 6)


def test_samples_on_an_axis_are_those_of_all_processes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path / "board", x="samples")
    trainer_of(Csv(tmp_path / "m.csv"), board, Twin()).fit((X, Y), epochs=3, batch_size=4)
    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        assert [row["samples"] for row in csv.DictReader(file)] == ["24", "48", "72"]
    assert board.state_dict() == {"samples": 0, "last": 72}


# --------------------------------------------------------------------------------- what only one of the processes knows


class Asks:
    """Several processes agree on what one of them asks for, here at a step that is given."""

    def __init__(self, step: int) -> None:
        self.step, self.asked = step, list[Callable[[], None]]()

    def on_fit_start(self, trainer: Trainer) -> None:
        trainer.ask = self.asked.append  # type: ignore[method-assign, assignment]

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            for call in self.asked:
                trainer.later(call)


def test_the_end_of_the_time_is_asked_for_once_and_waits_for_the_others() -> None:
    asks = Asks(step=5)
    result = tiny_trainer([Limits(seconds=1e-9), asks]).fit(tiny_data(), epochs=9)
    assert (result.steps, result.stop_reason, len(asks.asked)) == (5, "1e-09 s", 1)


def test_a_checkpoint_is_written_where_the_clock_of_another_process_says_so(tmp_path: Path) -> None:
    class Other:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def reduce(self, value: Tensor) -> Tensor:
            return value + 1 if value.dtype == torch.int64 else value  # it says yes whenever it is asked

        def on_checkpoint(self, trainer: Trainer) -> None:
            self.steps.append(trainer.step)

    other = Other()
    fit = partial(tiny_trainer([BestCheckpoint(every_seconds=1e9), other], run_dir=tmp_path).fit, tiny_data())
    fit(epochs=3)
    assert {1, 2, 3} <= {*other.steps}


class Quiet:
    keeps_nothing = True

    def on_fit_start(self) -> None:
        """A plugin has a hook."""


class Saves:
    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.step == 1:
            trainer.save()


@pytest.mark.parametrize("kind", [Mlflow, Wandb])
def test_a_service_is_told_nothing_by_a_process_that_keeps_nothing_also_when_it_is_resumed(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Known(kind):  # type: ignore[misc]
        def state_dict(self) -> dict[str, Any]:
            return {"id": "of rank 0"}

    monkeypatch.chdir(tmp_path)
    tiny_trainer([Known(), Quiet(), Saves()], run_dir=tmp_path / "run").fit(tiny_data(), epochs=2)
    tiny_trainer([Known(), Quiet(), Saves()]).fit(tiny_data(), epochs=2, resume=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ------------------------------------------------------------------------------------------------------------- sharding


def test_what_has_taken_the_place_of_a_frozen_parameter_is_thawed() -> None:
    class Replaces:
        """As sharding does."""

        @hookimpl(wrapper=True)
        def prepare_model(self, trainer: Trainer) -> Iterator[None]:
            model: Any = yield
            old = model[0].weight
            model[0].weight = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
            members = trainer.optimizer.param_groups[0]["params"]
            members[:] = [model[0].weight if member is old else member for member in members]
            return model  # type: ignore[return-value]

    trainer = trainer_of(Freeze(["0"], until_epoch=1), Replaces())
    before: Any = trainer.model.get_submodule("0").weight
    trainer.fit((X, Y), epochs=1)
    assert torch.equal(before, trainer.model.get_submodule("0").weight)
    trainer.fit((X, Y), epochs=2)
    assert not torch.equal(before, trainer.model.get_submodule("0").weight)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
