from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.schedule import Schedule
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)  # fmt: skip
from torch.optim.swa_utils import SWALR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import CheckpointError, Trainer, UsageError
from framework.testing import Recorder, tiny_data, tiny_trainer

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(dim=1, keepdim=True)
VAL = torch.eye(3), torch.ones(3, 1)
STEPS, EPOCHS = 12, 3  # of fits with batches of 2


def halves(count: int) -> float:
    return 1 / 2**count


SCHEDULERS: dict[str, Any] = {  # of an optimizer, and of how often it is stepped
    "LambdaLR": lambda o, _: LambdaLR(o, halves),
    "MultiplicativeLR": lambda o, _: lr_scheduler.MultiplicativeLR(o, lambda count: 0.9 + 0.01 * count),
    "StepLR": lambda o, _: StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o, _: MultiStepLR(o, [1, 2, 2, 5], 0.5),
    "ConstantLR": lambda o, _: ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o, _: LinearLR(o, 0.2, total_iters=4),
    "ExponentialLR": lambda o, _: ExponentialLR(o, 0.9),
    "SequentialLR": lambda o, _: SequentialLR(
        o, [LinearLR(o, 0.3, total_iters=2), MultiStepLR(o, [1, 3], 0.5), ExponentialLR(o, 0.9)], [1, 6]
    ),
    "CosineAnnealingLR": lambda o, calls: CosineAnnealingLR(o, calls),
    "ChainedScheduler": lambda o, _: ChainedScheduler([ConstantLR(o, 0.5, 2), ExponentialLR(o, 0.9)]),
    "ReduceLROnPlateau": lambda o, _: ReduceLROnPlateau(o, patience=0, threshold=0.9),
    "CyclicLR": lambda o, _: CyclicLR(o, 0.001, 0.02, 2, mode="exp_range", gamma=0.9),
    "CosineAnnealingWarmRestarts": lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "OneCycleLR": lambda o, calls: OneCycleLR(o, 0.02, calls),
    "PolynomialLR": lambda o, calls: lr_scheduler.PolynomialLR(o, calls, 2.0),
    "SWALR": lambda o, _: SWALR(o, 0.001, 3),
}


def objects(make: Any = SGD, groups: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 1))
    options = {"momentum": 0.9} if make is SGD else {}
    parts = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.01}]
    return model, make(parts if groups else model.parameters(), lr=0.05, **options)


def fitted(
    schedule: Schedule, make: Any = SGD, groups: bool = False, plugins: Any = (), **options: Any
) -> tuple[Trainer, Any]:
    model, optimizer = objects(make, groups)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [schedule, *plugins], "cpu")
    return trainer, trainer.fit((X, Y), VAL, **{"epochs": EPOCHS, "batch_size": 2, **options})


def by_hand(scheduler: Any, every: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """The loop that everyone writes; the validation losses."""
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True)
    val = DataLoader(TensorDataset(*VAL), batch_size=2)
    losses = []
    for _ in range(EPOCHS):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            if every == "step":
                scheduler.step()
        model.eval()
        with torch.no_grad():
            batches = [(len(x), nn.functional.mse_loss(model(x), y).item()) for x, y in val]
        losses.append(sum(size * loss for size, loss in batches) / len(VAL[0]))
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(losses[-1])
        elif every == "epoch":
            scheduler.step()
    return losses


def state_of(trainer: Trainer) -> Any:
    """What the scheduler itself remembers."""
    return trainer.plugins["schedule"].state_dict()["scheduler"]


CADENCES = [*itertools.product(SCHEDULERS, ("step", "epoch"))]
CADENCES.remove(("ReduceLROnPlateau", "step"))


def test_no_scheduler_of_torch_is_left_out_below() -> None:
    assert set(SCHEDULERS) == {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.parametrize("groups", [False, True], ids=["one group", "two groups"])
@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize(("name", "every"), CADENCES)
def test_it_is_the_loop_by_hand_to_the_bit(oracle: Any, name: str, every: str, make: Any, groups: bool) -> None:
    calls = STEPS if every == "step" else EPOCHS
    schedule = Schedule(lambda optimizer: SCHEDULERS[name](optimizer, calls), every)
    trainer, result = fitted(schedule, make, groups)
    told = [row["val_loss"] for row in result.history]
    mine = oracle.state(trainer.model, trainer.optimizer), state_of(trainer), told
    model, optimizer = objects(make, groups)
    scheduler = SCHEDULERS[name](optimizer, calls)
    losses = by_hand(scheduler, every, model, optimizer)
    oracle.assert_same((oracle.state(model, optimizer), scheduler.state_dict(), losses), mine)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"batch_size": None}], ids=str)
def test_the_default_is_half_a_cosine_over_the_steps_of_the_fit(options: dict[str, Any]) -> None:
    trainer, result = fitted(Schedule(), epochs=4, **options)
    assert state_of(trainer)["T_max"] == result.steps
    assert result.history[-1]["lr"] == pytest.approx(0, abs=1e-9)
    assert result.history[1]["lr"] == pytest.approx(0.025)


def test_the_default_steps_by_the_epoch_where_that_is_asked_for() -> None:
    assert [row["lr"] for row in fitted(Schedule(every="epoch"), epochs=2)[1].history] == pytest.approx([0.05, 0.025])


def test_the_default_needs_data_that_tells_its_length() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield from zip(X, Y, strict=True)

    trainer = tiny_trainer([Schedule()])
    with pytest.raises(UsageError, match="the training data does not tell its length; give a scheduler"):
        trainer.fit(Stream(), batch_size=2)
    assert tiny_trainer([Schedule(one_step)]).fit(Stream(), batch_size=2).epochs == 1


def one_step(optimizer: Any) -> Any:
    return StepLR(optimizer, 1)


@pytest.mark.parametrize(
    ("schedule", "hot"),
    [
        (Schedule(), True), (Schedule(one_step), False), (Schedule(one_step, "step"), True),
        (Schedule(functools.partial(StepLR, step_size=1)), False), (Schedule(every="epoch"), False),
        (Schedule(functools.partial(OneCycleLR, max_lr=0.1, total_steps=STEPS)), True),
        (Schedule(functools.partial(functools.partial(CyclicLR, base_lr=0.01), max_lr=0.1)), True),
        (Schedule(functools.partial(OneCycleLR, max_lr=0.1, total_steps=EPOCHS), "epoch"), False),
    ],
    ids=["cosine", "function", "by step", "partial", "cosine by epoch", "one cycle", "nested", "one cycle by epoch"],
)  # fmt: skip
def test_only_what_is_stepped_in_each_step_costs_a_step(schedule: Schedule, hot: bool) -> None:
    trainer, _ = fitted(schedule)
    assert (trainer.plugins.frozen("train").on_batch_end is not None) is hot


def test_a_step_that_the_optimizer_skipped_is_no_step() -> None:
    class Scaler:
        def optimizer_step(self, trainer: Trainer) -> bool:
            if trainer.step in (0, 1, 6):  # as one does whose scale is too large
                return False
            trainer.optimizer.step()
            return True

    trainer, _ = fitted(Schedule(one_step, "step"), plugins=[Scaler()])
    assert state_of(trainer)["last_epoch"] == STEPS - 3


def test_an_epoch_in_which_nothing_was_stepped_brings_no_warning_of_torch() -> None:
    class Never:
        def optimizer_step(self) -> bool:
            return False

    assert fitted(Schedule(one_step), plugins=[Never()])[1].history[-1]["lr"] == pytest.approx(0.0005)


def test_with_accumulation_a_window_is_a_step() -> None:
    trainer, result = fitted(Schedule(one_step, "step"), accumulate=3)
    assert state_of(trainer)["last_epoch"] == result.steps == 2 * EPOCHS


# -------------------------------------------------------------------------------------------------------- the figure


def test_lr_is_the_rate_of_the_epoch_or_that_after_its_last_step() -> None:
    half = functools.partial(StepLR, step_size=1, gamma=0.5)
    assert [row["lr"] for row in fitted(Schedule(half))[1].history] == [0.05, 0.025, 0.0125]
    assert [row["lr"] for row in fitted(Schedule(half, "step"))[1].history] == [0.05 / 2**4, 0.05 / 2**8, 0.05 / 2**12]


def test_each_group_of_parameters_has_a_rate_of_its_own() -> None:
    trainer, result = fitted(Schedule(one_step), groups=True)
    assert [row["lr_0"] for row in result.history] == pytest.approx([0.05, 0.005, 0.0005])
    assert [row["lr_1"] for row in result.history] == pytest.approx([0.01, 0.001, 0.0001])
    assert trainer.metric_names == ("train_loss", "lr_0", "lr_1", "val_loss")


def test_of_two_schedules_the_first_tells_the_rate() -> None:
    warm = Schedule(lambda optimizer: LinearLR(optimizer, 0.5, total_iters=2), "step", name="warm")
    _, result = fitted(Schedule(one_step), plugins=[warm])
    assert [*result.history[0]] == ["epoch", "step", "train_loss", "lr", "val_loss"]


def test_a_rate_that_is_a_tensor_or_a_whole_number_is_told_as_a_number() -> None:
    for rate in (torch.tensor(1.0), 1):
        model, _ = objects()
        optimizer, loss = SGD(model.parameters(), lr=rate), nn.functional.l1_loss
        result = Trainer(model, loss, optimizer, [Schedule(one_step)], "cpu").fit((X, Y), epochs=2)
        assert [(row["lr"], type(row["lr"])) for row in result.history] == [(1.0, float), (pytest.approx(0.1), float)]


# --------------------------------------------------------------------------------------------------------- on a figure


def plateau(optimizer: Any) -> Any:
    return ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


def test_a_figure_that_gets_no_better_lowers_the_rate(scripted: Any) -> None:
    schedule = Schedule(plateau, monitor="score_loss")
    result = tiny_trainer([schedule, scripted([3, 2, 2, 1, 1])], lr=0.05).fit(tiny_data(), epochs=5)
    assert [row["lr"] for row in result.history] == [0.05, 0.05, 0.05, 0.025, 0.025]


def test_the_figure_is_the_validation_loss_where_there_is_one() -> None:
    schedule = Schedule(plateau)
    fitted(schedule)
    assert schedule.monitor.name == "val_loss"
    tiny_trainer([schedule]).fit(tiny_data(), epochs=2)
    assert schedule.monitor.name == "train_loss"


def test_a_misspelt_figure_is_refused_before_the_first_epoch() -> None:
    recorder = Recorder(["on_epoch_start"])
    with pytest.raises(UsageError, match=r"no metric 'val_los' to monitor\. Did you mean 'val_loss'\?"):
        fitted(Schedule(plateau, monitor="val_los"), plugins=[recorder])
    assert recorder.names == []


def test_a_figure_that_is_promised_and_not_delivered_is_told(scripted: Any) -> None:
    class Silent(scripted):  # type: ignore[misc]
        def on_split_end(self) -> None:
            pass

    with pytest.raises(UsageError, match="the metric 'score_loss' is missing in epoch 0"):
        fitted(Schedule(plateau, monitor="score_loss"), plugins=[Silent([])])


def test_a_larger_figure_that_would_be_taken_for_a_worse_one_is_warned_of(scripted: Any) -> None:
    schedule = Schedule(plateau, monitor="a_accuracy")
    with pytest.warns(UserWarning, match=r"ReduceLROnPlateau\(mode='min'\) takes a larger a_accuracy for a worse one"):
        fitted(schedule, plugins=[scripted([1, 2, 3], "a_accuracy")])
    right = Schedule(lambda optimizer: ReduceLROnPlateau(optimizer, "max"), monitor="a_accuracy")
    fitted(right, plugins=[scripted([1, 2, 3], "a_accuracy")])


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: Schedule(every="batch"), "every must be 'step' or 'epoch', got 'batch'"),
        (lambda: Schedule("cosine"), "schedule: str is no scheduler of this optimizer; write lambda optimizer: StepLR"),
        (lambda: Schedule(lambda optimizer: None), "schedule: NoneType is no scheduler of this optimizer"),
        (lambda: Schedule(StepLR(objects()[1], 1)), "schedule: StepLR is no scheduler of this optimizer"),
        (lambda: Schedule(lambda optimizer: OneCycleLR(optimizer, 0.1, STEPS)),
         "schedule: OneCycleLR moves with each step: say every='step', or else every='epoch'"),
        (lambda: Schedule(plateau, "step"), "schedule: ReduceLROnPlateau follows a figure of the epoch: leave out"),
        (lambda: Schedule(one_step, monitor="val_loss"),
         "schedule: StepLR follows no figure: leave out monitor='val_loss'"),
        (lambda: Schedule(functools.partial(OneCycleLR, max_lr=0.1, total_steps=STEPS - 1)),
         f"schedule: total_steps is {STEPS - 1}, but this fit has {STEPS} steps"),
        (lambda: Schedule(functools.partial(OneCycleLR, max_lr=0.1, total_steps=STEPS + 1)),
         f"schedule: total_steps is {STEPS + 1}, but this fit has {STEPS} steps"),
        (lambda: Schedule(functools.partial(OneCycleLR, max_lr=0.1, total_steps=STEPS), "epoch"),
         f"schedule: total_steps is {STEPS}, but this fit has {EPOCHS} epochs"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_the_first_step(schedule: Any, message: str) -> None:
    recorder = Recorder(["on_epoch_start"])
    with pytest.raises(UsageError) as caught:
        fitted(schedule(), plugins=[recorder])
    assert str(caught.value).startswith(message)
    assert recorder.names == []


# ------------------------------------------------------------------------------------------- one's own, and once more


def test_a_scheduler_of_ones_own_is_stepped_like_one_that_is_made(oracle: Any) -> None:
    model, optimizer = objects()
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Schedule(StepLR(optimizer, 2, 0.5))], "cpu")
    trainer.fit((X, Y), VAL, epochs=EPOCHS, batch_size=2)
    other, _ = fitted(Schedule(lambda o: StepLR(o, 2, 0.5)))
    oracle.assert_same(oracle.state(other.model, other.optimizer), oracle.state(model, optimizer))


def test_a_scheduler_of_ones_own_goes_on_in_a_second_fit() -> None:
    model, optimizer = objects()
    own = StepLR(optimizer, 1, 0.5)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Schedule(own)], "cpu")
    for epochs in (2, 3):
        trainer.fit((X, Y), epochs=epochs)
    assert (own.last_epoch, optimizer.param_groups[0]["lr"]) == (5, 0.05 / 2**5)


@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_second_fit_begins_with_the_settings_from_before_the_first(name: str, kind: Any) -> None:
    model, _ = objects()
    optimizer = SGD(model.parameters(), lr=kind(0.05), momentum=0.7)
    every = "epoch" if name == "ReduceLROnPlateau" else "step"
    schedule = Schedule(lambda o: SCHEDULERS[name](o, STEPS), every)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [schedule], "cpu", on_nonfinite="continue")
    rates = [[row["lr"] for row in trainer.fit((X, Y), VAL, epochs=EPOCHS, batch_size=2).history] for _ in range(3)]
    assert rates[0] == rates[1] == rates[2]


def test_a_rate_that_was_changed_after_a_fit_is_that_of_the_next_one() -> None:
    trainer, _ = fitted(Schedule(one_step))
    trainer.optimizer.param_groups[0]["lr"] = 0.5
    assert trainer.fit((X, Y), epochs=2).history[0]["lr"] == 0.5


def test_evaluate_and_predict_move_nothing() -> None:
    trainer, _ = fitted(Schedule(one_step, "step"))
    before = state_of(trainer)
    trainer.evaluate((X, Y))
    trainer.predict(X)
    assert state_of(trainer) == before


# ------------------------------------------------------------------------------------------------------------- resumed


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


def resumed(tmp_path: Path, schedule: Any, step: int = 5, then: Any = None, **options: Any) -> tuple[Trainer, Trainer]:
    """Trainers of a fit that was left alone, and of one that was stopped after a step and resumed.

    Args:
        schedule: makes the schedule, of the optimizer
        then: makes the one that goes on
        options: of the fit that goes on
    """
    trainers = []
    for make, plugins, run_dir, more in (
        (schedule, [], None, {}), (schedule, [StopAt(step)], tmp_path, {}),
        (then or schedule, [], None, {**options, "resume": tmp_path}),
    ):  # fmt: skip
        model, optimizer = objects()
        trainer = Trainer(model, nn.functional.mse_loss, optimizer, [make(optimizer), *plugins], "cpu", run_dir)
        trainers.append(trainer)
        trainer.fit((X, Y), VAL, **{"epochs": EPOCHS, "batch_size": 2, **more})
    return trainers[0], trainers[2]


@pytest.mark.parametrize("step", [1, 4, 5, 8, 12])  # of four an epoch
@pytest.mark.parametrize(("name", "every"), CADENCES)
def test_stopped_after_a_step_and_resumed_it_is_the_fit_left_alone(
    oracle: Any, tmp_path: Path, name: str, every: str, step: int
) -> None:
    calls = STEPS if every == "step" else EPOCHS
    alone, other = resumed(tmp_path, lambda _: Schedule(lambda o: SCHEDULERS[name](o, calls), every), step)
    alone.optimizer.zero_grad()
    other.optimizer.zero_grad()
    oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(other.model, other.optimizer))
    oracle.assert_same([state_of(alone), alone.history], [state_of(other), other.history])


@pytest.mark.parametrize(
    "schedule",
    [lambda optimizer: Schedule(CosineAnnealingLR(optimizer, STEPS), "step"), lambda _: Schedule(),
     lambda _: Schedule(lambda optimizer: LambdaLR(optimizer, Growing()))],
    ids=["of one's own", "default", "a callable object"],
)  # fmt: skip
def test_whatever_it_was_made_from_is_resumed(tmp_path: Path, schedule: Any) -> None:
    alone, other = resumed(tmp_path, schedule)
    assert alone.history == other.history
    assert state_of(alone) == state_of(other)


class Growing:
    """A factor that remembers."""

    def __init__(self) -> None:
        self.factor = 1.0

    def __call__(self, count: int) -> float:
        self.factor *= 0.9
        return self.factor


def test_a_fit_of_the_same_trainer_can_be_resumed_too(tmp_path: Path) -> None:
    model, optimizer = objects()
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Schedule(), StopAt(5)], "cpu", tmp_path)
    trainer.fit((X, Y), VAL, epochs=EPOCHS, batch_size=2)
    trainer.fit((X, Y), VAL, epochs=EPOCHS, batch_size=2, resume=tmp_path)
    alone, _ = fitted(Schedule())
    assert trainer.history == alone.history


@pytest.mark.parametrize(
    ("schedule", "told"),
    [(lambda _: Schedule(), "T_max"),
     (lambda _: Schedule(functools.partial(OneCycleLR, max_lr=0.1, epochs=EPOCHS, steps_per_epoch=4)), "total_steps")],
    ids=["cosine", "one cycle"],
)  # fmt: skip
def test_more_epochs_than_the_schedule_was_made_for_are_refused(tmp_path: Path, schedule: Any, told: str) -> None:
    longer = functools.partial(OneCycleLR, max_lr=0.1, epochs=EPOCHS + 1, steps_per_epoch=4)
    then = (lambda _: Schedule(longer)) if told == "total_steps" else schedule
    with pytest.raises(CheckpointError, match=rf"schedule: {told} is {STEPS}, but this fit has {STEPS + 4} steps"):
        resumed(tmp_path, schedule, then=then, epochs=EPOCHS + 1)


def test_more_epochs_are_welcome_where_the_schedule_has_no_end(tmp_path: Path) -> None:
    _, other = resumed(tmp_path, lambda _: Schedule(one_step), epochs=EPOCHS + 2)
    assert [row["lr"] for row in other.history] == pytest.approx([0.05 * 0.1**epoch for epoch in range(EPOCHS + 2)])


def test_another_kind_of_scheduler_is_refused(tmp_path: Path) -> None:
    other = Schedule(lambda optimizer: ExponentialLR(optimizer, 0.9))
    with pytest.raises(CheckpointError, match="learning rate followed StepLR, and now it would follow ExponentialLR"):
        resumed(tmp_path, lambda _: Schedule(one_step), then=lambda _: other)


def changed(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**state, "scheduler": {**state["scheduler"], **changes}}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("StepLR", {"step": 5}, "StepLR is another one: only one of the two has step"),
        ("StepLR", {"gamma": "0.5"}, "StepLR.gamma was '0.5', and is 0.5 now"),
        ("StepLR", {"gamma": True}, "StepLR.gamma was True, and is 0.5 now"),
        ("StepLR", {"_last_lr": [0.1, 0.1]}, "StepLR._last_lr was [0.1, 0.1], and is ["),
        ("StepLR", {"_last_lr": {"0": 0.1}}, "StepLR._last_lr was {'0': 0.1}, and is ["),
        ("StepLR", {"_last_lr": [None]}, "StepLR._last_lr.0 was None, and is "),
        ("StepLR", {"base_lrs": 0.1}, "StepLR.base_lrs was 0.1, and is [0.05] now"),
        ("MultiStepLR", {"milestones": {1: 1}}, "MultiStepLR.milestones is another one: only one of the two has 2, 5"),
        ("ReduceLROnPlateau", {"mode": 1}, "ReduceLROnPlateau.mode was 1, and is 'min' now"),
        ("ChainedScheduler", {"_schedulers": []}, "ChainedScheduler._schedulers was [], and is ["),
        ("SequentialLR", {"_schedulers": [{}, {}, {}]}, "SequentialLR._schedulers.0 is another one: only one of the"),
    ],
)  # fmt: skip
def test_a_state_built_otherwise_is_refused_and_changes_nothing(name: str, change: Any, message: str) -> None:
    trainer, _ = fitted(Schedule(lambda o: SCHEDULERS[name](o, EPOCHS)))
    schedule, before = trainer.plugins["schedule"], repr(state_of(trainer))
    with pytest.raises(CheckpointError) as caught:
        schedule.load_state_dict(changed(schedule.state_dict(), **change))
    assert str(caught.value).startswith(message)
    assert repr(state_of(trainer)) == before


def test_a_number_may_have_become_a_fraction(tmp_path: Path) -> None:
    trainer, _ = fitted(Schedule(lambda o: LambdaLR(o, lambda count: 1)))
    schedule = trainer.plugins["schedule"]
    schedule.load_state_dict(changed(schedule.state_dict(), _last_lr=[1]))
    assert state_of(trainer)["_last_lr"] == [1]


def test_a_counter_that_was_copied_as_a_dict_is_a_counter_again() -> None:
    trainer, _ = fitted(Schedule(lambda o: SCHEDULERS["MultiStepLR"](o, EPOCHS)))
    schedule = trainer.plugins["schedule"]
    schedule.load_state_dict(changed(schedule.state_dict(), milestones={1: 1, 2: 2, 5: 1}))
    assert type(state_of(trainer)["milestones"]) is Counter


def factors() -> list[Any]:
    return [
        lambda count: 0.1 if count in (2, 3) else 1.0,
        lambda epoch: 0.1 if epoch in (2, 3) else 1.0,  # another name for the argument
        lambda count: 0.2 if count in (2, 3) else 1.0,
        lambda count: 0.1 if count in (2, 4) else 1.0,
        lambda count: 0.1 if count in (2, 3) else math.cos(0),
    ]


@pytest.mark.parametrize("number", range(5))
def test_another_function_is_warned_of_and_taken(tmp_path: Path, number: int) -> None:
    def schedule(number: int) -> Any:
        return lambda _: Schedule(lambda optimizer: LambdaLR(optimizer, factors()[number]))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed(tmp_path, schedule(0), then=schedule(number))
    told = [str(one.message) for one in caught]
    assert len(told) == (number > 1)
    assert all(text.startswith("LambdaLR had ['factors.<locals>.<lambda> ") for text in told)


def functions_of(make: Any) -> list[str]:
    trainer, _ = fitted(Schedule(make, "epoch"), epochs=1)
    return trainer.plugins["schedule"].state_dict()["functions"]  # type: ignore[no-any-return]


def test_functions_are_told_apart_by_what_they_do_wherever_they_are_asked() -> None:
    factors = [
        lambda count: 1.0, lambda count: 2.0, lambda count: max(count, 1.0), lambda count: min(count, 1.0),
        lambda count: (lambda: 1.0)(), lambda count: (lambda: 2.0)(),
    ]  # fmt: skip
    told = [functions_of(lambda o, factor=factor: LambdaLR(o, factor)) for factor in factors]
    assert len({*map(str, told)}) == len(factors)
    name, digest = told[0][0].split()
    assert name == "test_functions_are_told_apart_by_what_they_do_wherever_they_are_asked.<locals>.<lambda>"
    assert functions_of(lambda o: LambdaLR(o, lambda count: 1.0))[0].split()[1] == digest
    cyclic = functions_of(lambda o: CyclicLR(o, 0.01, 0.1, scale_fn=factors[1]))
    inside = functions_of(lambda o: SequentialLR(o, [LambdaLR(o, factors[0]), LambdaLR(o, factors[1])], [1]))
    assert (cyclic, inside) == (told[1], [*told[0], *told[1]])
    assert functions_of(lambda o: SWALR(o, 0.001)) == []  # torch's own may change with its version
