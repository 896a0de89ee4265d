"""Every figure that the built-in plugins count for themselves is the one of torchmetrics, whatever the batches are.

The mean of the batches' figures is another number as soon as they are uneven: Lightning #2924, TensorFlow #38596,
fastai #533.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from framework_plugins.accuracy import Accuracy
from framework_plugins.confusion_matrix import ConfusionMatrix
from framework_plugins.f1_score import F1Score
from framework_plugins.regression import Regression
from framework_plugins.torchmetrics import TorchMetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from framework import Trainer

generators = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
sizes = st.integers(1, 18)
some = settings(deadline=None, max_examples=25)
AVERAGES = "macro", "micro", "weighted"
SHARES = {"precision": torchmetrics.Precision, "recall": torchmetrics.Recall, "f1": torchmetrics.F1Score}


class Echo(nn.Module):
    """Answers its input, so that a test chooses what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.zero


def told(plugins: list[Any], loss: Any, output: Tensor, target: Tensor, batch_size: int) -> dict[str, float]:
    model = Echo()
    trainer = Trainer(model, loss, torch.optim.SGD(model.parameters()), plugins, device="cpu")
    return trainer.evaluate((output, target), batch_size)


def classes(generator: torch.Generator, samples: int, count: int, ignored: int | None = None) -> tuple[Tensor, Tensor]:
    """Scores and class numbers; a class may never occur, and a third of the targets is ignored."""
    output = torch.randn(samples, count, generator=generator)
    target = torch.randint(count, (samples,), generator=generator)
    if ignored is not None:
        target[1:][torch.rand(samples - 1, generator=generator) < 0.3] = ignored
        target[0] = (ignored + 1) % count  # at least one counts
    return output, target


@some
@given(generators, sizes, sizes, st.integers(2, 6), st.integers(1, 2), st.sampled_from([None, -100, 0]))
def test_accuracy_of_classes(generator: Any, samples: int, size: int, count: int, k: int, ignored: int | None) -> None:
    output, target = classes(generator, samples, count, ignored)
    oracle = torchmetrics.Accuracy("multiclass", num_classes=count, top_k=k, average="micro", ignore_index=ignored)
    loss = nn.CrossEntropyLoss(ignore_index=-100 if ignored is None else ignored)
    plugin = Accuracy(top_k=k)
    figures = told([plugin], loss, output, target, size)
    assert figures[f"test_{plugin.metric}"] == pytest.approx(float(oracle(output, target)))


@some
@given(generators, sizes, sizes, st.integers(1, 4), st.booleans())
def test_accuracy_of_labels(generator: Any, samples: int, size: int, labels: int, logits: bool) -> None:
    output, target = (draw((samples, labels), generator=generator) for draw in (torch.randn, torch.rand))
    said, target = output.sigmoid(), (target > 0.5).float()
    kind = {"task": "binary"} if labels == 1 else {"task": "multilabel", "num_labels": labels, "average": "micro"}
    oracle = torchmetrics.Accuracy(**kind)
    loss: Any = nn.BCEWithLogitsLoss() if logits else nn.BCELoss()
    figures = told([Accuracy()], loss, output if logits else said, target, size)
    assert figures["test_accuracy"] == pytest.approx(float(oracle(said, target.long())))


@some
@given(generators, sizes, sizes, st.integers(2, 6), st.sampled_from([None, -100, 0]))
def test_confusion_matrix(generator: Any, samples: int, size: int, count: int, ignored: int | None) -> None:
    output, target = classes(generator, samples, count, ignored)
    oracle = torchmetrics.ConfusionMatrix("multiclass", num_classes=count, ignore_index=ignored)
    plugin = ConfusionMatrix()
    told([plugin], nn.CrossEntropyLoss(ignore_index=-100 if ignored is None else ignored), output, target, size)
    assert plugin.matrix["test"].tolist() == oracle(output, target).tolist()


@some
@given(generators, sizes, sizes, st.integers(2, 6), st.sampled_from([None, -100, 0]), st.sampled_from(AVERAGES))
def test_f1_of_classes(generator: Any, samples: int, size: int, count: int, ignored: int | None, average: str) -> None:
    output, target = classes(generator, samples, count, ignored)
    names = [f"class{number}" for number in range(count)]
    loss = nn.CrossEntropyLoss(ignore_index=-100 if ignored is None else ignored)
    figures = told([F1Score(average, class_names=names)], loss, output, target, size)
    kind = {"task": "multiclass", "num_classes": count, "ignore_index": ignored}
    for figure, oracle in SHARES.items():
        assert figures[f"test_{figure}"] == pytest.approx(float(oracle(**kind, average=average)(output, target)))
    each = torchmetrics.F1Score(**kind, average="none")(output, target)
    assert [figures[f"test_{name}_f1"] for name in names] == pytest.approx(each.tolist())


@some
@given(generators, sizes, sizes, st.integers(1, 4), st.sampled_from(AVERAGES), st.booleans())
def test_f1_of_labels(generator: Any, samples: int, size: int, labels: int, average: str, logits: bool) -> None:
    output, target = (draw((samples, labels), generator=generator) for draw in (torch.randn, torch.rand))
    said, target = output.sigmoid(), (target > 0.5).float()
    kind = {"task": "binary"} if labels == 1 else {"task": "multilabel", "num_labels": labels, "average": average}
    loss: Any = nn.BCEWithLogitsLoss() if logits else nn.BCELoss()
    figures = told([F1Score(average)], loss, output if logits else said, target, size)
    for figure, oracle in SHARES.items():
        assert figures[f"test_{figure}"] == pytest.approx(float(oracle(**kind)(said, target.long())))


@some
@given(generators, st.integers(2, 40), sizes, st.sampled_from([None, 1, 3]))
def test_regression(generator: Any, samples: int, size: int, columns: int | None) -> None:
    shape = (samples,) if columns is None else (samples, columns)
    output, target = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) / 2
    target += torch.arange(samples).reshape(-1, *[1] * (len(shape) - 1))  # torchmetrics takes close targets for alike
    figures = told([Regression()], nn.MSELoss(), output, target, size)
    oracles = {
        "mae": torchmetrics.MeanAbsoluteError(), "rmse": torchmetrics.MeanSquaredError(squared=False),
        "r2": torchmetrics.R2Score(),
    }  # fmt: skip
    for figure, oracle in oracles.items():
        assert figures[f"test_{figure}"] == pytest.approx(float(oracle(output, target)), rel=1e-4, abs=1e-4)


@some
@given(generators, st.integers(6, 24), sizes, st.integers(2, 6))
def test_a_metric_that_is_fed_by_batches(generator: Any, samples: int, size: int, count: int) -> None:
    output = classes(generator, samples, count)[0].softmax(1)  # scores from 0 to 1 are taken for such by the batch
    target = torch.arange(samples) % count  # AUROC warns of a class that never occurs
    metrics = {"f1": torchmetrics.F1Score("multiclass", num_classes=count, average="macro"),
               "auroc": torchmetrics.AUROC("multiclass", num_classes=count, average="weighted")}  # fmt: skip
    figures = told([TorchMetrics(metrics)], F.nll_loss, output, target, size)
    for name, metric in metrics.items():
        assert not metric.update_called  # the plugin feeds copies
        assert figures[f"test_{name}"] == pytest.approx(float(metric(output, target)))
