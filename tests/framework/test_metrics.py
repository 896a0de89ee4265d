"""Means, the figures of a split, and the best of a monitored one."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import DataError, Monitor, NonFiniteError, UsageError, mode_of, target_of
from framework.engine.losses import FLUSH, Mean
from framework.metrics import SplitMetrics

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # a Mean only looks at what kind of device it is


# ---------------------------------------------------------------------------------------------------------------- Mean


def total_of(device: torch.device, losses: list[torch.Tensor], samples: list[int]) -> tuple[float, int]:
    mean = Mean(device)
    for loss, count in zip(losses, samples, strict=True):
        mean.add(loss, count)
    mean.flush()
    return mean.total, mean.count


@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 100)), max_size=600))
@settings(max_examples=50, derandomize=True, deadline=None, database=None)
def test_a_mean_is_the_sum_in_doubles_in_the_order_of_the_steps_on_every_device(pairs: list[Any]) -> None:
    losses, samples = [torch.tensor(value) for value, _ in pairs], [count for _, count in pairs]
    expected = 0.0
    for loss, count in zip(losses, samples, strict=True):
        expected += loss.item() * count
    assert total_of(CPU, losses, samples) == (expected, sum(samples))
    assert total_of(GPU, losses, samples) == (expected, sum(samples))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_mean_takes_one_number_of_any_shape_and_precision(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    losses = [torch.full(shape, 1.5, dtype=dtype, requires_grad=True), torch.full(shape, 0.1, dtype=dtype)]
    expected = (1.5 * 2 + losses[1].item() * 3, 5)
    assert total_of(CPU, losses, [2, 3]) == expected
    assert total_of(GPU, losses, [2, 3]) == expected


def test_a_mean_of_losses_of_several_shapes_and_precisions() -> None:
    losses = [torch.tensor(1.5), torch.tensor([0.1], dtype=torch.float64), torch.tensor([[2.0]])]
    assert total_of(CPU, losses, [1, 1, 1]) == total_of(GPU, losses, [1, 1, 1]) == (1.5 + 0.1 + 2.0, 3)


@pytest.mark.parametrize("at", [0, 1, FLUSH - 1, FLUSH, FLUSH + 7])
def test_the_batch_that_is_not_finite_is_numbered_the_same_on_every_device(at: int) -> None:
    for device in (CPU, GPU):
        refused: list[Any] = []

        def refuse(position: int, loss: float, refused: list[Any] = refused) -> None:
            refused.append((position, loss))
            raise NonFiniteError

        def add_all(mean: Mean) -> None:
            for index in range(2 * FLUSH):
                mean.add(torch.tensor(math.inf if index == at else 1.0), 1)

        with pytest.raises(NonFiniteError):
            add_all(Mean(device, refuse))
        assert refused == [(at, math.inf)]


def test_on_a_device_losses_are_read_together_and_hold_on_to_no_graph() -> None:
    mean = Mean(GPU)
    loss = torch.ones((), requires_grad=True)
    for _ in range(FLUSH - 1):
        mean.add(loss * 2, 1)
    assert mean.total == 0.0
    assert all(not pending.requires_grad for pending, _ in mean._pending)
    mean.add(loss, 1)
    assert (mean.total, mean.count, mean._pending) == (2.0 * (FLUSH - 1) + 1, FLUSH, [])


def test_without_refuse_what_is_not_finite_passes_into_the_mean() -> None:
    assert math.isnan(total_of(CPU, [torch.tensor(math.nan), torch.tensor(1.0)], [1, 1])[0])


def test_nothing_added_is_nothing_counted() -> None:
    assert total_of(CPU, [], []) == total_of(GPU, [], []) == (0.0, 0)


# -------------------------------------------------------------------------------------------------------- SplitMetrics


def test_a_figure_is_kept_as_a_number() -> None:
    metrics = SplitMetrics({"train_loss": 0.5})
    metrics["tensor"] = torch.tensor([[2.5]])
    metrics["count"] = 3
    metrics["double"] = numpy.float64(0.25)
    assert dict(metrics) == {"train_loss": 0.5, "tensor": 2.5, "count": 3, "double": 0.25}
    assert type(metrics["tensor"]) is float
    assert (len(metrics), list(metrics), "count" in metrics) == (4, ["train_loss", "tensor", "count", "double"], True)


WAYS = {
    "item": lambda metrics: metrics.__setitem__("train_loss", 1.0),
    "update": lambda metrics: metrics.update(train_loss=1.0),
    "or": lambda metrics: metrics.__ior__({"train_loss": 1.0}),
    "delete": lambda metrics: metrics.__delitem__("train_loss"),
    "pop": lambda metrics: metrics.pop("train_loss"),
    "popitem": lambda metrics: metrics.popitem(),
    "clear": lambda metrics: metrics.clear(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_figure_that_is_there_cannot_be_changed_or_removed_in_any_way(way: str) -> None:
    metrics = SplitMetrics({"train_loss": 0.5})
    with pytest.raises(UsageError, match=r"'train_loss' (is there already|cannot be removed)"):
        WAYS[way](metrics)
    assert dict(metrics) == {"train_loss": 0.5}


def test_several_figures_can_be_added_at_once() -> None:
    metrics = SplitMetrics({"train_loss": 0.5})
    metrics |= {"a": 1.0}
    metrics.update(b=torch.tensor(2.0))
    assert dict(metrics) == {"train_loss": 0.5, "a": 1.0, "b": 2.0}
    assert isinstance(metrics, SplitMetrics)


@pytest.mark.parametrize("name", ["epoch", "step", "lr"])
def test_a_name_that_the_row_has_already_is_taken(name: str) -> None:
    with pytest.raises(UsageError, match=f"the metric '{name}' is there already; give yours another name"):
        SplitMetrics({"val_loss": 1.0}, ("lr",))[name] = 2.0


@pytest.mark.parametrize(
    ("value", "kind"), [("0.5", "str"), (None, "NoneType"), ([1.0], "list"), (torch.ones(2), "Tensor"), (1j, "complex")]
)
def test_a_figure_that_is_no_number_is_named(value: Any, kind: str) -> None:
    with pytest.raises(UsageError, match=f"the metric 'mine' must be a number, got {kind}"):
        SplitMetrics({})["mine"] = value


# ------------------------------------------------------------------------------------------------------------- Monitor


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val_loss", "min"), ("train_loss", "min"), ("val_accuracy", "max"), ("val_top5_accuracy", "max"),
        ("accuracy", "max"), ("val_f1", "max"), ("val_auroc", "max"), ("val_perplexity", "min"), ("lr", "min"),
        ("accuracy_loss", "min"), ("inaccuracy", "min"), ("val_score", "max"),
    ],
)  # fmt: skip
def test_whether_more_is_better_follows_from_the_last_word_of_the_name(name: str, mode: str) -> None:
    assert mode_of(name) == mode
    assert mode_of(name, "min") == "min"
    assert mode_of(name, "max") == "max"


def test_a_mode_that_does_not_exist_is_named() -> None:
    for make in (lambda: mode_of("val_loss", "smallest"), lambda: Monitor("val_loss", mode="smallest")):
        with pytest.raises(UsageError, match="mode must be 'auto', 'min' or 'max', got 'smallest'"):
            make()


def test_a_min_delta_below_zero_is_named() -> None:
    with pytest.raises(UsageError, match=r"min_delta must not be negative, got -0\.1"):
        Monitor("val_loss", min_delta=-0.1)


def following(names: tuple[str, ...], **options: Any) -> Monitor:
    monitor = Monitor(**options)
    monitor.start(SimpleNamespace(metric_names=names))
    return monitor


def test_the_default_is_the_validation_loss_where_there_is_one() -> None:
    assert following(("train_loss", "val_loss")).name == "val_loss"
    assert following(("train_loss",)).name == "train_loss"


def test_a_name_that_will_not_be_there_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"no metric 'val_acuracy' to monitor. Did you mean 'val_accuracy'"):
        following(("train_loss", "val_accuracy"), name="val_acuracy")
    with pytest.raises(UsageError, match=r"no metric 'x' to monitor. There is: train_loss"):
        following(("train_loss",), name="x")


def test_a_promised_figure_that_is_missing_is_named_with_its_epoch() -> None:
    with pytest.raises(UsageError, match="'lr' is missing in epoch 3; there is: train_loss"):
        following(("lr",), name="lr").update(3, {"train_loss": 1.0})


def follow(values: list[float], **options: Any) -> tuple[list[bool], Monitor]:
    monitor = following(("figure",), name="figure", **options)
    return [monitor.update(epoch, {"figure": value}) for epoch, value in enumerate(values)], monitor


def test_the_best_is_the_smallest_and_the_first_of_equals() -> None:
    better, monitor = follow([3.0, 2.0, 2.0, 2.5, 1.0, 1.0])
    assert better == [True, True, False, False, True, False]
    assert (monitor.best, monitor.epoch, monitor.waited) == (1.0, 4, 1)


def test_the_best_is_the_largest_for_max() -> None:
    better, monitor = follow([0.5, 0.4, 0.6], mode="max")
    assert better == [True, False, True]
    assert (monitor.best, monitor.epoch, monitor.waited) == (0.6, 2, 0)


def test_a_figure_must_beat_the_best_by_more_than_min_delta() -> None:
    better, monitor = follow([1.0, 0.75, 0.5, 0.25, 0.125], min_delta=0.25)
    assert better == [True, False, True, False, True]
    assert (monitor.best, monitor.waited) == (0.125, 0)


def test_nan_is_never_better_and_is_beaten_by_every_number() -> None:
    better, monitor = follow([math.nan, math.nan, 5.0, math.nan, math.inf])
    assert better == [False, False, True, False, False]
    assert (monitor.best, monitor.epoch, monitor.waited) == (5.0, 2, 2)


def test_infinity_is_a_first_best() -> None:
    assert follow([math.inf, 1.0])[0] == [True, True]
    assert follow([-math.inf, 1.0], mode="max")[0] == [True, True]


@given(st.lists(st.floats(), max_size=30), st.sampled_from(["min", "max"]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
def test_the_best_is_one_of_the_figures_and_waited_counts_since_then(
    values: list[float], mode: str, min_delta: float
) -> None:
    better, monitor = follow(values, mode=mode, min_delta=min_delta)
    if not any(better):
        assert monitor.best is None
        assert monitor.waited == len(values)
    else:
        last = len(better) - 1 - better[::-1].index(True)
        assert (monitor.best, monitor.epoch, monitor.waited) == (values[last], last, len(values) - 1 - last)
    if min_delta == 0.0:
        numbers = [value for value in values if not math.isnan(value)]
        assert monitor.best == (None if not numbers else min(numbers) if mode == "min" else max(numbers))


def test_the_state_of_a_monitor_goes_on_where_it_was() -> None:
    values = [random.Random(1).uniform(0, 1) for _ in range(20)]
    _, whole = follow(values)
    _, first = follow(values[:9])
    second = following(("figure",), name="figure")
    second.load_state_dict(first.state_dict())
    for epoch, value in enumerate(values[9:], start=9):
        second.update(epoch, {"figure": value})
    assert second.state_dict() == whole.state_dict()


def test_a_start_forgets_what_was() -> None:
    _, monitor = follow([1.0, 2.0])
    monitor.start(SimpleNamespace(metric_names=("figure",)))
    assert (monitor.best, monitor.epoch, monitor.waited) == (None, None, 0)


@pytest.mark.parametrize(
    ("batch", "held"),
    [
        ({"image": 0, "label": 1}, "a dict of 'image', 'label'"),
        ((0, 1, 2), "a tuple of 3"),
        (torch.ones(2, 2), "a Tensor"),
    ],
    ids=["dict", "triple", "tensor"],
)
def test_a_target_is_the_y_of_a_pair_and_of_nothing_else(batch: Any, held: str) -> None:
    assert target_of(("x", "y"), "accuracy") == "y"
    with pytest.raises(DataError, match=rf"^accuracy reads y of batches \(x, y\), and this one is {held}; a collate"):
        target_of(batch, "accuracy")
