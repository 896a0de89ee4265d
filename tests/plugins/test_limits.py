"""Where a fit ends, and how much of its data an epoch takes, against the loop that counts by hand."""

from __future__ import annotations

import copy
import math
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from framework_plugins import limits
from framework_plugins.limits import Limits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from framework import CheckpointError, Trainer, UsageError
from framework.testing import Recorder, tiny_data, tiny_trainer

SIZES = {"epochs": 3, "batch_size": 2}  # of five samples: three steps an epoch


class StopAt:
    """Saves and stops after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


class Stream(IterableDataset[Any]):
    """Seven samples, and no word of how many there are."""

    def __iter__(self) -> Any:
        yield from zip(*tiny_data(7), strict=True)


# --------------------------------------------------------------------------------------------------------- end of a fit


@pytest.mark.parametrize(("steps", "epochs"), [(1, 0), (2, 0), (3, 1), (4, 1), (6, 2), (9, 3), (100, 3)])
def test_a_fit_ends_after_so_many_steps_and_completes_the_epoch_whose_last_it_was(steps: int, epochs: int) -> None:
    result = tiny_trainer([Limits(steps=steps)]).fit(tiny_data(), **SIZES)
    assert (result.steps, result.epochs, len(result.history)) == (min(steps, 9), epochs, epochs)
    assert result.stop_reason == (None if steps == 100 else f"{steps} steps")


def test_steps_are_those_of_the_optimizer() -> None:
    result = tiny_trainer([Limits(steps=2)]).fit(tiny_data(7), epochs=3, batch_size=1, accumulate=3)
    assert (result.steps, result.epochs) == (2, 0)


def test_up_to_its_end_it_is_the_fit_that_it_would_have_been(oracle: Any) -> None:
    states = []
    for plugins, epochs in (([], 2), ([Limits(steps=6)], 9)):
        trainer = tiny_trainer(plugins)
        torch.manual_seed(1)
        trainer.fit(tiny_data(), epochs=epochs, batch_size=2)
        states.append(oracle.state(trainer.model, trainer.optimizer))
    oracle.assert_same(*states)


def test_time_is_looked_at_after_each_step(clock: Any) -> None:
    now = clock(limits)

    class Slow:
        def on_batch_start(self, split: str) -> None:
            now.now += 10.0

    result = tiny_trainer([Slow(), Limits(seconds=45)]).fit(tiny_data(), **SIZES)
    assert (result.steps, result.epochs, result.stop_reason) == (5, 1, "45 s")


def test_time_is_looked_at_after_validation_too(clock: Any) -> None:
    now = clock(limits)

    class Slow:
        def on_batch_start(self, split: str) -> None:
            now.now += 100.0 * (split == "val")

    result = tiny_trainer([Slow(), Limits(seconds=45)]).fit(tiny_data(), tiny_data(), **SIZES)
    assert (result.steps, result.epochs, result.stop_reason) == (3, 1, "45 s")


def test_time_before_a_resume_counts(clock: Any, tmp_path: Path) -> None:
    now = clock(limits)

    class Slow:
        def on_batch_start(self) -> None:
            now.now += 10.0

    stopped = tiny_trainer([Slow(), Limits(seconds=45), StopAt(2)], run_dir=tmp_path).fit(tiny_data(), **SIZES)
    assert stopped.steps == 2
    now.now += 5000.0  # the break does not count
    result = tiny_trainer([Slow(), Limits(seconds=45)], run_dir=tmp_path).fit(tiny_data(), **SIZES, resume=tmp_path)
    assert (result.steps, result.stop_reason) == (5, "45 s")


def test_the_seconds_are_put_back_to_the_last_one_in_each_resume(tmp_path: Path) -> None:
    """On the real clock, that goes on while a state is loaded: it would be warned of."""
    for step in (2, 4, 99):
        resume = tmp_path if step > 2 else None
        plugins = [Limits(seconds=3600), StopAt(step)]
        result = tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), **SIZES, resume=resume)
    assert result.epochs == 3


def test_the_time_after_a_fit_does_not_count(clock: Any, tmp_path: Path) -> None:
    now = clock(limits)
    trainer = tiny_trainer([Limits(seconds=45), StopAt(2)], run_dir=tmp_path)
    trainer.fit(tiny_data(), **SIZES)
    now.now += 5000.0
    trainer.save()
    result = tiny_trainer([Limits(seconds=45)], run_dir=tmp_path).fit(tiny_data(), **SIZES, resume=tmp_path)
    assert result.stop_reason is None


def test_a_second_fit_has_all_the_time(clock: Any) -> None:
    now = clock(limits)
    trainer = tiny_trainer([Limits(seconds=45)])
    for _ in range(2):
        assert trainer.fit(tiny_data(), **SIZES).stop_reason is None
        now.now += 40.0


@pytest.mark.parametrize(
    ("values", "figure", "knobs", "epochs", "told"),
    [
        ([0.5, 0.9, 0.9812, 1.0], "hard_accuracy", {"target": 0.98}, 3, "hard_accuracy reached 0.98 (0.9812)"),
        ([5.0, 0.1, 0.01], "hard_loss", {"target": 0.1}, 2, "hard_loss reached 0.1 (0.1)"),
        ([5.0, 0.1, 0.01], "hard_loss", {"target": 4, "mode": "max"}, 1, "hard_loss reached 4 (5)"),
        ([math.nan, 3.0, 2.0], "hard_loss", {"target": 3}, 2, "hard_loss reached 3 (3)"),
        ([5.0, 4.0, 3.0], "hard_loss", {"target": 1}, 3, None),
    ],
    ids=["accuracy", "loss", "mode", "nan", "never"],
)
def test_a_figure_that_reaches_its_target_ends_the_fit(
    scripted: Any, values: list[float], figure: str, knobs: dict[str, Any], epochs: int, told: str | None
) -> None:
    plugins = [scripted(values, figure), Limits(monitor=figure, **knobs)]
    result = tiny_trainer(plugins).fit(tiny_data(), epochs=len(values))
    assert (result.epochs, result.stop_reason) == (epochs, told)


def test_the_figure_is_by_default_that_of_the_validation_set() -> None:
    watch = Limits(target=1e9)
    assert tiny_trainer([watch]).fit(tiny_data(), tiny_data(), epochs=2).stop_reason is not None
    assert watch.monitor.name == "val_loss"
    tiny_trainer([watch]).fit(tiny_data(), epochs=2)
    assert watch.monitor.name == "train_loss"


def test_two_limits_of_several_figures_live_together(scripted: Any) -> None:
    plugins = [scripted([3, 2, 1], "a_loss", "a"), scripted([1, 2, 3], "b_loss", "b")]
    plugins += [Limits(monitor="a_loss", target=1, name="first"), Limits(monitor="b_loss", target=0, name="second")]
    assert tiny_trainer(plugins).fit(tiny_data(), epochs=3).stop_reason == "a_loss reached 1 (1)"


def test_the_limit_that_is_reached_first_is_told() -> None:
    for steps, told in ((2, "2 steps"), (4, "train_loss reached 1e+09 (")):
        result = tiny_trainer([Limits(steps=steps, target=1e9)]).fit(tiny_data(), **SIZES)
        assert str(result.stop_reason).startswith(told)


# -------------------------------------------------------------------------------------------------------------- resumed


def fitted(
    plugins: list[Any], run_dir: Path, resume: Path | None = None, data: Any = None, **changes: Any
) -> tuple[Any, Any]:
    torch.manual_seed(0 if resume is None else 9)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    trainer = Trainer(model, F.mse_loss, torch.optim.Adam(model.parameters(), lr=0.1), plugins, "cpu", run_dir)
    torch.manual_seed(1 if resume is None else 8)
    result = trainer.fit(data or tiny_data(9), **{"epochs": 3, "batch_size": 2, **changes}, resume=resume)
    return trainer, [result.history, result.steps, result.epochs, result.stop_reason]


@pytest.mark.parametrize(
    "knobs",
    [{"steps": 5}, {"steps": 10}, {"train_batches": 3}, {"steps": 4, "train_batches": 2}],
    ids=["inside an epoch", "at its end", "batches", "both"],
)
def test_stopped_after_any_step_and_resumed_it_ends_where_it_ends_alone(
    oracle: Any, tmp_path: Path, knobs: dict[str, int]
) -> None:
    trainer, alone = fitted([Limits(**knobs)], tmp_path / "alone")
    expected = oracle.state(trainer.model, trainer.optimizer)
    for step in range(1, alone[1] + 1):
        run_dir = tmp_path / str(step)
        fitted([Limits(**knobs), StopAt(step)], run_dir)
        again, resumed = fitted([Limits(**knobs)], run_dir, resume=run_dir)
        assert resumed == alone
        got = oracle.state(again.model, again.optimizer)
        oracle.assert_same({**expected, "gradients": 0}, {**got, "gradients": 0}, f"step {step}")


def test_resumed_behind_its_limit_a_fit_ends_at_once(tmp_path: Path) -> None:
    fitted([Limits(steps=100), StopAt(7)], tmp_path)
    _, (_, steps, epochs, why) = fitted([Limits(steps=4)], tmp_path, resume=tmp_path)
    assert (steps, epochs, why) == (7, 1, "4 steps")


def test_resumed_behind_its_target_a_fit_ends_at_once(tmp_path: Path) -> None:
    limit = Limits(monitor="train_loss", target=1e9)
    trainer, (_, steps, _, why) = fitted([limit], tmp_path)
    trainer.save()
    _, (_, again, _, reason) = fitted([Limits(monitor="train_loss", target=1e9)], tmp_path, resume=tmp_path)
    assert (again, reason) == (steps, why)


def test_a_larger_limit_goes_on(tmp_path: Path) -> None:
    trainer, _ = fitted([Limits(steps=4)], tmp_path)
    trainer.save()
    assert fitted([Limits(steps=8)], tmp_path, resume=tmp_path)[1][1:] == [8, 1, "8 steps"]


# ------------------------------------------------------------------------------------------------- batches of an epoch


class Draws(Dataset[Any]):
    """Samples that draw from all three global generators."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(3) + random.random() + numpy.random.rand()
        return noise + row, torch.ones(1)


def by_hand(loader: DataLoader[Any], most: int, val: DataLoader[Any], val_most: int) -> tuple[Any, Any, list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.1), []
    seed()
    for _ in range(3):
        model.train()
        for x, y in islice(loader, most):
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for x, y in islice(val, val_most):
                total, count = total + F.mse_loss(model(x), y).item() * len(x), count + len(x)
        losses.append(total / count)
    return model, optimizer, losses


def seed() -> None:
    torch.manual_seed(1)
    random.seed(1)
    numpy.random.seed(1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    draws=st.booleans(), shuffle=st.booleans(), own=st.booleans(), batch_size=st.integers(1, 4), drop=st.booleans(),
    most=st.integers(1, 9), val_most=st.integers(1, 5),
)  # fmt: skip
def test_batches_losses_and_generators_are_those_of_islice(
    oracle: Any, draws: bool, shuffle: bool, own: bool, batch_size: int, drop: bool, most: int, val_most: int
) -> None:
    def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
        data = Draws() if draws else TensorDataset(*tiny_data(9))
        generator = torch.Generator().manual_seed(2) if own else None
        train = DataLoader(data, batch_size, shuffle=shuffle, generator=generator, drop_last=drop)
        return train, DataLoader(data, 2)

    train, val = loaders()
    most = most if most < len(train) else 1000  # an epoch that has no more is asked for its end as well
    model, optimizer, losses = by_hand(train, most, val, val_most)
    mine, others = loaders()
    torch.manual_seed(0)
    got = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
    limit = Limits(train_batches=most, val_batches=val_most)
    trainer = Trainer(got, F.mse_loss, torch.optim.Adam(got.parameters(), lr=0.1), [limit], "cpu")
    seed()
    result = trainer.fit(mine, others, epochs=3)
    oracle.assert_same(oracle.state(model, optimizer), oracle.state(got, trainer.optimizer))
    assert [row["val_loss"] for row in result.history] == losses
    if own:
        assert torch.equal(train.generator.get_state(), mine.generator.get_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_of_workers_too_only_so_many_batches_are_taken(workers: int) -> None:
    seen: list[list[float]] = []

    class Looks:
        def on_batch_start(self, batch: Any) -> None:
            seen.append(batch[0][:, 0].tolist())

    x = torch.arange(8.0).reshape(8, 1).expand(8, 3).contiguous()
    loader = DataLoader(TensorDataset(x, x[:, :1]), 2, num_workers=workers, persistent_workers=workers > 0)
    tiny_trainer([Limits(train_batches=2), Looks()]).fit(loader, epochs=2)
    assert seen == [[0, 1], [2, 3]] * 2


def test_batches_are_counted_not_windows() -> None:
    result = tiny_trainer([Limits(train_batches=5)]).fit(tiny_data(9), epochs=2, batch_size=1, accumulate=2)
    assert [row["step"] for row in result.history] == [3, 6]


@pytest.mark.parametrize("limit", [None, 3])
def test_a_stream_without_a_length_is_cut_off(limit: int | None, tmp_path: Path) -> None:
    loader = DataLoader(Stream(), batch_size=1)
    recorder = Recorder(["on_batch_end"])
    result = tiny_trainer([Limits(train_batches=3, steps=limit), recorder]).fit(loader, epochs=2)
    assert [row["step"] for row in result.history] == ([3] if limit else [3, 6])
    assert len(recorder.calls) == result.steps


def test_an_epoch_that_has_no_more_is_left_as_it_is() -> None:
    trainer = tiny_trainer([Limits(train_batches=3, val_batches=1)])
    trainer.fit(tiny_data(5), tiny_data(2), epochs=1, batch_size=2)
    assert [type(loader) for loader in trainer.loaders.values()] == [DataLoader, DataLoader]
    assert trainer.engine.told()["train"] == "from memory"


def test_gradient_descent_on_the_whole_has_one_batch_anyway() -> None:
    result = tiny_trainer([Limits(train_batches=1)]).fit(tiny_data(), epochs=2)
    assert result.steps == 2


def test_a_limited_loader_is_that_loader_in_all_else() -> None:
    sampler: Any = DistributedSampler(TensorDataset(*tiny_data(8)), num_replicas=1, rank=0)

    class Sets:
        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            trainer.loaders["train"].sampler.set_epoch(epoch)

    loader = DataLoader(sampler.dataset, batch_size=2, sampler=sampler)
    trainer = tiny_trainer([Limits(train_batches=2), Sets()])
    trainer.fit(loader, epochs=3)
    limited = trainer.loaders["train"]
    assert isinstance(limited, DataLoader)
    assert (sampler.epoch, limited.sampler, limited.dataset, limited.batch_size) == (2, sampler, sampler.dataset, 2)
    assert (len(limited), len(copy.copy(limited)), limited.num_workers) == (2, 2, 0)
    assert set(trainer.evaluate(limited)) == {"test_loss"}
    with pytest.raises(AttributeError, match="no attribute 'samplr'"):
        _ = limited.samplr


def test_of_two_limits_the_shorter_one_counts() -> None:
    both = [Limits(train_batches=2, name="short"), Limits(train_batches=3, name="long")]
    for plugins in (both, both[::-1]):
        assert tiny_trainer(plugins).fit(tiny_data(9), epochs=1, batch_size=1).steps == 2


def test_a_resumed_fit_with_other_batches_is_refused(tmp_path: Path) -> None:
    fitted([Limits(train_batches=3), StopAt(2)], tmp_path)
    with pytest.raises(CheckpointError, match="train: the number of batches was 3, now it is 2"):
        fitted([Limits(train_batches=2)], tmp_path, resume=tmp_path)


def test_other_data_sets_are_not_limited() -> None:
    recorder = Recorder(["on_batch_end"])
    trainer = tiny_trainer([Limits(train_batches=1, val_batches=1), recorder])
    trainer.evaluate(tiny_data(5), batch_size=1)
    assert len(recorder.calls) == 5


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, r"no limit is given: such are Limits\(steps=10_000\), .* Limits\(monitor='val_accuracy', target=0.98\)"),
        ({"steps": 0}, "steps must be a whole number from 1 up, got 0"),
        ({"steps": True}, "steps must be a whole number from 1 up, got True"),
        ({"train_batches": 0.1}, "train_batches must be a whole number from 1 up, got 0.1"),
        ({"val_batches": -1}, "val_batches must be a whole number from 1 up, got -1"),
        ({"seconds": 0}, "seconds must be a number above 0, got 0"),
        ({"seconds": "1h"}, "seconds must be a number above 0, got '1h'"),
        ({"target": math.nan}, "target must be a number, got nan"),
        ({"target": "0.9"}, "target must be a number, got '0.9'"),
        ({"monitor": "val_f1"}, r"monitored for a target: Limits\(monitor='val_f1', target=0.98\)"),
        ({"steps": 3, "mode": "max"}, r"monitored for a target: Limits\(monitor='val_accuracy', target=0.98\)"),
        ({"target": 1, "mode": "up"}, "mode must be 'auto', 'min' or 'max', got 'up'"),
    ],
    ids=str,
)
def test_a_limit_that_can_be_none_is_told_when_it_is_made(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits(**knobs)


def test_a_figure_that_will_not_be_there_is_told_before_the_first_step() -> None:
    trainer = tiny_trainer([Limits(monitor="train_los", target=1)])
    with pytest.raises(UsageError, match=r"no metric 'train_los' to monitor\. Did you mean 'train_loss'"):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_batches_of_no_validation_set_are_told_before_the_first_step() -> None:
    trainer = tiny_trainer([Limits(val_batches=3)])
    with pytest.raises(UsageError, match="val_batches=3, and this fit has no validation set"):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_no_batch_is_asked_about_what_is_looked_at_after_an_epoch() -> None:
    for limit, asked in ((Limits(target=1), False), (Limits(train_batches=1), False), (Limits(steps=1), True)):
        hooks = tiny_trainer([limit]).plugins.frozen("train")
        assert (hooks.on_batch_end is not None) == asked
