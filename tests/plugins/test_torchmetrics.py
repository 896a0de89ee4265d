"""Any metric of torchmetrics: fed as a loop by hand feeds it, remembered, and never looked at before the end."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from framework_plugins.early_stopping import EarlyStopping
from framework_plugins.torchmetrics import TorchMetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.wrappers import BootStrapper, ClasswiseWrapper, Running

from framework import CheckpointError, DataError, Trainer, UsageError, hookimpl
from framework.testing import tiny_data, tiny_trainer

KIND: dict[str, Any] = {"task": "multiclass", "num_classes": 3}


def data(samples: int = 11, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 4, generator=generator), torch.arange(samples) % 3


def trainer_of(*plugins: Any, run_dir: Path | None = None) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, device="cpu", run_dir=run_dir)


def many() -> dict[str, Any]:
    """Metrics with sums, with lists of all that they were fed, of several in one, and of a metric in a metric."""
    macro = {**KIND, "average": "macro"}
    several = torchmetrics.MetricCollection(
        {"precision": torchmetrics.Precision(**macro), "recall": torchmetrics.Recall(**macro)}
    )
    scaled = torchmetrics.F1Score(**KIND, average="micro") * 100
    mean = torchmetrics.MeanMetric(), lambda output, batch: output.square().mean(dim=1)
    running = Running(torchmetrics.MeanMetric(), window=2), lambda output, batch: output.mean()
    return {"auroc": torchmetrics.AUROC(**KIND), "each": torchmetrics.F1Score(**KIND, average="none"), "of": several,
            "percent": scaled, "square": mean, "running": running}  # fmt: skip


def by_hand(metrics: dict[str, Any], trainer: Trainer, pairs: tuple[Tensor, Tensor], size: int) -> dict[str, Any]:
    """A loop over the batches, as torchmetrics' own pages show it."""
    figures = {}
    for name, metric in metrics.items():
        function = None
        if isinstance(metric, tuple):
            metric, function = metric
        for x, y in zip(*(part.split(size) for part in pairs), strict=True):
            output = trainer.model(x).detach()
            metric.update(*([function(output, (x, y))] if function else [output, y]))
        figures[name] = metric.compute()
    return figures


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_those_of_a_hand_written_loop() -> None:
    trainer = trainer_of(TorchMetrics(many()))
    row = trainer.fit(data(), data(8, seed=1), epochs=2, batch_size=4).history[-1]
    wanted = by_hand(many(), trainer, data(8, seed=1), 4)
    for name in ("auroc", "percent", "square", "running"):
        assert row[f"val_{name}"] == float(wanted[name])
    assert [row[f"val_each_{number}"] for number in range(3)] == wanted["each"].tolist()
    assert {name: row[f"val_of_{name}"] for name in ("precision", "recall")} == wanted["of"]
    assert [name for name in row if name.startswith("train")] == [
        name.replace("val", "train") for name in row if name.startswith("val")
    ]


def test_a_collection_has_the_names_of_its_metrics() -> None:
    metrics = [torchmetrics.Precision(**KIND), torchmetrics.Recall(**KIND)]
    several = torchmetrics.MetricCollection(metrics, prefix="the_")
    trainer = trainer_of(TorchMetrics(several, splits=["val"]))
    row = trainer.fit(data(), data(), epochs=1, batch_size=4).history[0]
    names = ("train_loss", "val_loss", "val_the_MulticlassPrecision", "val_the_MulticlassRecall")
    assert trainer.metric_names == names
    assert tuple(row) == ("epoch", "step", *names)


def test_figures_by_name_have_those_names() -> None:
    metric = ClasswiseWrapper(torchmetrics.Recall(**KIND, average="none"), labels=["cat", "dog", "elk"])
    figures = trainer_of(TorchMetrics({"recall": metric})).evaluate(data(), 4)
    assert list(figures)[1:] == [f"test_recall_multiclassrecall_{name}" for name in ("cat", "dog", "elk")]


def test_one_number_of_a_vector_can_be_monitored() -> None:
    second = torchmetrics.F1Score(**KIND, average="none")[1]
    trainer = trainer_of(TorchMetrics({"elk_f1": second}), EarlyStopping("val_elk_f1", patience=50))
    row = trainer.fit(data(), data(), epochs=2, batch_size=4).history[-1]
    each = torchmetrics.F1Score(**KIND, average="none")(trainer.predict(data()[0]), data()[1])
    assert row["val_elk_f1"] == float(each[1])


def test_only_the_splits_that_were_asked_for_are_computed() -> None:
    trainer = trainer_of(TorchMetrics({"auroc": torchmetrics.AUROC(**KIND)}, splits=("val", "test")))
    row = trainer.fit(data(), data(), epochs=1).history[0]
    assert ("train_auroc" in row, "val_auroc" in row) == (False, True)
    assert trainer.metric_names == ("train_loss", "val_loss", "val_auroc")
    assert "test_auroc" in trainer.evaluate(data())


def test_a_batch_of_your_own_form_is_taken_apart_by_a_function() -> None:
    def loss(output: Tensor, y: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(output, y["class"])

    class Data(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 11

        def __getitem__(self, index: int) -> Any:
            return data()[0][index], {"class": data()[1][index]}

    metric = torchmetrics.Accuracy(**KIND, average="micro")
    model = nn.Linear(4, 3)
    plugin = TorchMetrics({"acc": (metric, lambda output, batch: (output, batch[1]["class"]))})
    trainer = Trainer(model, loss, torch.optim.SGD(model.parameters()), [plugin], device="cpu")
    figures = trainer.evaluate(Data(), 4)
    assert figures["test_acc"] == pytest.approx(float(metric(trainer.predict(data()[0]), data()[1])))


def test_rows_of_padding_do_not_count() -> None:
    class Padded:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 2

    metrics = {"one": torchmetrics.SumMetric(), "two": torchmetrics.SumMetric()}
    plugin = TorchMetrics({
        "one": (metrics["one"], lambda output, batch: torch.ones(len(output))),
        "two": (metrics["two"], lambda output, batch: batch[1] * 0 + 1),
    })  # fmt: skip
    figures = trainer_of(Padded(), plugin).evaluate(data(), 4)  # three batches
    assert (figures["test_one"], figures["test_two"]) == (6, 6)


def test_evaluate_in_the_middle_of_an_epoch_does_not_disturb_the_sums() -> None:
    class Evaluates:
        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.evaluate(data(5, seed=3))

    rows = [trainer_of(TorchMetrics({"f1": torchmetrics.F1Score(**KIND)}), *more).fit(data(), epochs=2, batch_size=4)
            for more in ([], [Evaluates()])]  # fmt: skip
    assert rows[0].history == rows[1].history


def test_a_second_fit_and_one_after_a_failure_count_anew(fails: Any) -> None:
    failing = fails(epoch=0, batch=2)
    plugin = TorchMetrics({"count": (torchmetrics.SumMetric(), lambda output, batch: len(output))})
    trainer = trainer_of(plugin, failing)
    with pytest.raises(RuntimeError):
        trainer.fit(data(), epochs=1, batch_size=4)
    failing.armed = False
    for _ in range(2):
        assert trainer.fit(data(), epochs=2, batch_size=4).history[-1]["train_count"] == 11


def test_a_pass_after_one_that_failed_counts_anew() -> None:
    class Fails:
        armed = True

        def on_split_end(self, trainer: Trainer) -> None:
            if self.armed:
                raise RuntimeError

    failing = Fails()
    count = torchmetrics.SumMetric(), lambda output, batch: len(output)
    trainer = trainer_of(failing, TorchMetrics({"count": count}))
    with pytest.raises(RuntimeError):
        trainer.evaluate(data(), 4)
    failing.armed = False
    assert trainer.evaluate(data(), 4)["test_count"] == 11


def test_what_was_gathered_is_let_go_of_after_a_pass() -> None:
    plugin = TorchMetrics({"auroc": torchmetrics.AUROC(**KIND)})
    trainer_of(plugin).fit(data(), data(), epochs=1, batch_size=4)
    assert [plugin._copies[split]["auroc"].preds for split in ("train", "val")] == [[], []]


def test_two_instances_stay_apart_though_they_were_given_one_metric() -> None:
    metric = torchmetrics.SumMetric()
    ones = metric, lambda output, batch: len(output)
    first = TorchMetrics({"first": ones})
    second = TorchMetrics({"second": ones, "third": ones}, name="others")
    figures = trainer_of(first, second).evaluate(data(), 4)
    assert (figures["test_first"], figures["test_second"], figures["test_third"]) == (11, 11, 11)
    assert not metric.update_called


# ------------------------------------------------------------------------------------------------- looking and no more


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    metrics = many()
    del metrics["auroc"]  # it warns of a class that the data of this fixture lacks
    assert trained([TorchMetrics(metrics)]) == trained([])


def test_a_metric_that_draws_at_the_end_leaves_no_trace(trained: Any) -> None:
    class Draws(torchmetrics.MeanMetric):
        def compute(self) -> Tensor:
            return super().compute() + torch.rand(())

    assert trained([TorchMetrics({"drawn": (Draws(), lambda output, batch: output)})]) == trained([])


def test_a_metric_that_draws_with_each_batch_is_refused_where_it_would_change_the_training() -> None:
    metrics = {"boot": BootStrapper(torchmetrics.Accuracy(**KIND))}
    for splits in (("train",), ("val",)):
        with pytest.raises(UsageError, match=r"'boot' draws random numbers with each batch.* splits=\(\"test\",\)"):
            trainer_of(TorchMetrics(metrics, splits)).fit(data(), data(), epochs=2, batch_size=4)
    figures = trainer_of(TorchMetrics(metrics, splits=("test",))).evaluate(data(), 4)
    assert list(figures) == ["test_loss", "test_boot_mean", "test_boot_std"]


def test_a_step_never_waits_for_the_device(trained: Any, operations: Any) -> None:
    seen = operations()
    metrics = {"f1": torchmetrics.F1Score(**KIND, average="macro", validate_args=False),
               "mean": (torchmetrics.MeanMetric(nan_strategy="disable"), lambda output, batch: output)}  # fmt: skip
    trained([seen, TorchMetrics(metrics)])
    assert seen.counts["argmax"] == 4 * (4 + 2)
    assert seen.counts["_local_scalar_dense"] == 0


# ------------------------------------------------------------------------------------------------------------- resumed


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl(split="train")
    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


def resumed(run_dir: Path, metrics: dict[str, Any], step: int = 2, before: dict[str, Any] | None = None) -> Any:
    first = trainer_of(TorchMetrics(before or metrics), StopAt(step), run_dir=run_dir)
    first.fit(data(), data(), epochs=2, batch_size=4)
    trainer = trainer_of(TorchMetrics(metrics), run_dir=run_dir)
    return trainer.fit(data(), data(), epochs=2, batch_size=4, resume=run_dir).history


@pytest.mark.parametrize("step", [1, 2, 3, 4])  # 3 is the last of the epoch: nothing is fed between it and the figures
def test_sums_and_lists_go_on_where_they_were(tmp_path: Path, step: int) -> None:
    alone = trainer_of(TorchMetrics(many())).fit(data(), data(), epochs=2, batch_size=4).history
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that a metric was asked before it was fed
        assert resumed(tmp_path, many(), step) == alone


def test_it_may_come_with_the_resume(tmp_path: Path) -> None:
    trainer_of(StopAt(3), run_dir=tmp_path).fit(data(), data(), epochs=2, batch_size=4)
    trainer = trainer_of(TorchMetrics(many()))
    with pytest.warns(UserWarning, match="no state of plugin 'torchmetrics'"):
        history = trainer.fit(data(), data(), epochs=2, batch_size=4, resume=tmp_path).history
    assert math.isnan(history[0]["train_auroc"])  # the epoch was fed before it came
    assert not math.isnan(history[1]["train_auroc"])


def test_other_metrics_than_before_are_refused(tmp_path: Path) -> None:
    before = {"f1": torchmetrics.F1Score(**KIND)}
    told = r"the metrics were f1 \(MulticlassF1Score\), and are f1 \(MulticlassRecall\), auroc \(MulticlassAUROC\) now"
    with pytest.raises(CheckpointError, match=told):
        resumed(tmp_path, {"f1": torchmetrics.Recall(**KIND), "auroc": torchmetrics.AUROC(**KIND)}, before=before)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("metrics", [None, {}, [3], torchmetrics.SumMetric()], ids=str)
def test_metrics_without_names_are_refused_with_an_example(metrics: Any) -> None:
    with pytest.raises(UsageError, match=r'torchmetrics needs metrics by name, such as TorchMetrics\(\{"f1": '):
        TorchMetrics(metrics)


@pytest.mark.parametrize(
    ("value", "told"),
    [(torchmetrics.SumMetric, r"'f1' is the class SumMetric; give an instance, SumMetric\(...\)"),
     (F.cross_entropy, "'f1' is no metric of torchmetrics: .* has no update, compute, reset, metric_state"),
     ((torchmetrics.SumMetric(), 3), "'f1' is a metric, or a pair of a metric and a function of output and batch"),
     ((torchmetrics.SumMetric(),), "'f1' is a metric, or a pair")],
    ids=["class", "function", "no function", "no pair"],
)  # fmt: skip
def test_what_is_no_metric_is_refused(value: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        TorchMetrics({"f1": value})


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="a metric goes by a name, which is text; got 3"):
        TorchMetrics({3: torchmetrics.SumMetric()})  # type: ignore[dict-item]


@pytest.mark.parametrize("splits", ["val", ("valid",), ()])
def test_splits_that_do_not_exist_are_refused(splits: Any) -> None:
    with pytest.raises(UsageError, match=r"splits must be some of \('train', 'val', 'test'\), got"):
        TorchMetrics({"f1": torchmetrics.SumMetric()}, splits=splits)


@pytest.mark.parametrize("key", ["loss", "accuracy", "recall"])
def test_a_figure_that_is_there_already_is_told_before_the_first_step(key: str) -> None:
    collection = torchmetrics.MetricCollection({"recall": torchmetrics.Recall(**KIND)})
    others = [TorchMetrics(collection, name="others"), "accuracy"]
    trainer = trainer_of(*others, TorchMetrics({key: torchmetrics.F1Score(**KIND)}))
    with pytest.raises(UsageError, match=f"there is a figure 'train_{key}' already; give yours another name"):
        trainer.fit(data(), epochs=1)
    assert trainer.step == 0


def test_what_is_no_number_is_refused_with_what_to_set() -> None:
    metrics = {"matrix": torchmetrics.ConfusionMatrix(**KIND), "curve": torchmetrics.ROC(**KIND)}
    for name, told in (("matrix", r"of shape \(3, 3\)"), ("curve", "a tuple")):
        with pytest.raises(UsageError, match=f'val_{name} is {told}, .*: set average="macro" where'):
            trainer_of(TorchMetrics({name: metrics[name]}, ["val"])).fit(data(), data(), epochs=1)


def test_outputs_that_are_no_tensors_are_told() -> None:
    trainer = tiny_trainer([TorchMetrics({"mse": torchmetrics.MeanSquaredError()})])
    trainer.loss = lambda output, y: output.sum()
    with pytest.raises(DataError, match=r"these are Tensor and dict: give a pair, \(metric, lambda output, batch:"):
        trainer.evaluate((tiny_data()[0], {"a": tiny_data()[1]}))


def test_an_error_of_torchmetrics_names_the_plugin() -> None:
    trainer = trainer_of(TorchMetrics({"f1": torchmetrics.F1Score(task="multiclass", num_classes=2)}))
    with pytest.raises((RuntimeError, ValueError)) as caught:
        trainer.fit(data(), epochs=1)
    assert caught.value.__notes__ == ["plugin 'torchmetrics', hook on_batch_end, epoch 0, step 1"]
