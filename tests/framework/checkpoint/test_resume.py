"""A fit that was stopped anywhere and resumed ends with the bits of the fit that was left alone."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.early_stopping import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from framework import CheckpointError, Snapshot, Trainer, UsageError, hookimpl
from framework.checkpoint import find, read, write
from framework.engine import Mean
from framework.seed import seed_everything
from framework.testing import Recorder, tiny_data, tiny_trainer

X = torch.randn(11, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(dim=1, keepdim=True)
VAL = torch.eye(3), torch.ones(3, 1)


class Noisy(Dataset[Any]):
    """Rows with noise from every generator that there is."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index] + torch.randn(3) * random.random() * float(numpy.random.rand()), Y[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        order = [*range(len(X))]
        random.shuffle(order)
        yield from ((X[index], Y[index]) for index in order)


class StopAt:
    """Saves and stops after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.boundary and trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


def network(seed: int = 0) -> nn.Sequential:
    seed_everything(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 1))


def trainer_in(run_dir: Path | None, plugins: Any = (), make: Any = torch.optim.Adam, **options: Any) -> Trainer:
    model = network()
    return Trainer(model, nn.functional.mse_loss, make(model.parameters(), lr=0.01), plugins=plugins, device="cpu",
                   run_dir=run_dir, **options)  # fmt: skip


def end(oracle: Any, trainer: Trainer) -> Any:
    """Everything that the fit has changed but the gradients, which no checkpoint holds."""
    return [{**oracle.state(trainer.model, trainer.optimizer), "gradients": None}, trainer.history]


def own_generator() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, generator=generator)


def weighted() -> DataLoader[Any]:
    sampler = WeightedRandomSampler([1.0 + i for i in range(11)], 9, generator=torch.Generator().manual_seed(6))
    return DataLoader(TensorDataset(X, Y), batch_size=3, sampler=sampler)


DATA: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "shuffled": (lambda: (X, Y), {"batch_size": 3}),
    "in order": (lambda: (X, Y), {"batch_size": 4, "shuffle": False}),
    "without the last": (lambda: (X, Y), {"batch_size": 3, "drop_last": True}),
    "the whole": (lambda: (X, Y), {}),
    "by torch": (lambda: (X, Y), {"batch_size": 3, "loader": "torch"}),
    "plain": (lambda: (X, Y), {"batch_size": 3, "fast": "plain"}),
    "noisy": (Noisy, {"batch_size": 3}),
    "a stream": (Stream, {"batch_size": 3}),
    "its own generator": (own_generator, {}),
    "weighted": (weighted, {}),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", DATA)
def test_stopped_after_any_step_and_resumed_it_is_the_fit_left_alone(
    oracle: Any, tmp_path: Path, kind: str, accumulate: int
) -> None:
    data, options = DATA[kind]
    options = {**options, "epochs": 3, "accumulate": accumulate}
    alone = trainer_in(None)
    alone.fit(data(), VAL, **options)
    wanted = end(oracle, alone)
    for step in range(1, alone.step + 1):
        stopped = trainer_in(tmp_path / str(step), [StopAt(step)])
        stopped.fit(data(), VAL, **options)
        resumed = trainer_in(None)
        seed_everything(99)
        result = resumed.fit(data(), VAL, **options, resume=tmp_path / str(step))
        oracle.assert_same(wanted, end(oracle, resumed), f"after step {step}")
        assert (result.steps, result.epochs, result.stop_reason) == (alone.step, 3, None)


def test_the_draws_of_workers_agree_too(oracle: Any, tmp_path: Path) -> None:
    alone = trainer_in(None)
    alone.fit(Noisy(), epochs=2, batch_size=3, num_workers=2)
    trainer_in(tmp_path, [StopAt(6)]).fit(Noisy(), epochs=2, batch_size=3, num_workers=2)
    resumed = trainer_in(None)
    resumed.fit(Noisy(), epochs=2, batch_size=3, num_workers=2, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_another_number_of_workers_is_the_same_fit_where_the_data_draws_nothing(oracle: Any, tmp_path: Path) -> None:
    alone = trainer_in(None)
    alone.fit((X, Y), epochs=2, batch_size=3)
    trainer_in(tmp_path, [StopAt(6)]).fit((X, Y), epochs=2, batch_size=3)
    resumed = trainer_in(None)
    with pytest.warns(UserWarning, match="train: num_workers was 0, now it is 2: samples that draw random numbers"):
        resumed.fit((X, Y), epochs=2, batch_size=3, num_workers=2, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_stopped_and_resumed_many_times_it_is_still_the_same_fit(oracle: Any, tmp_path: Path) -> None:
    alone = trainer_in(None)
    alone.fit(Noisy(), VAL, epochs=3, batch_size=3)
    for step in (1, 2, 4, 5, 8, 9, 11):
        trainer_in(tmp_path, [StopAt(step)]).fit(
            Noisy(), VAL, epochs=3, batch_size=3, resume=tmp_path if step > 1 else None
        )
    resumed = trainer_in(None)
    resumed.fit(Noisy(), VAL, epochs=3, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_a_save_at_the_end_of_an_epoch_is_resumed_with_the_next_one(oracle: Any, tmp_path: Path) -> None:
    class EndOfEpoch:
        def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
            if epoch == 1:
                trainer.save()
                trainer.stop("to be resumed")

    alone = trainer_in(None)
    alone.fit(Noisy(), epochs=4, batch_size=3)
    trainer_in(tmp_path, [EndOfEpoch()]).fit(Noisy(), epochs=4, batch_size=3)
    recorder = Recorder()
    resumed = trainer_in(None, [recorder])
    resumed.fit(Noisy(), epochs=4, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))
    assert recorder.calls[1].arguments == {"epoch": 2}


def test_what_had_been_called_before_the_save_is_not_called_again(tmp_path: Path) -> None:
    trainer_in(tmp_path, [StopAt(2)]).fit((X, Y), epochs=1, batch_size=3)
    recorder = Recorder()
    trainer_in(None, [recorder]).fit((X, Y), epochs=1, batch_size=3, resume=tmp_path)
    assert recorder.names == [
        "on_fit_start", *["on_batch_start", "on_gradients", "on_batch_end"] * 2, "on_split_end", "on_epoch_end",
        "on_fit_end", "on_teardown",
    ]  # fmt: skip


def test_counters_and_history_are_there_before_on_fit_start_and_the_weights_after_it(tmp_path: Path) -> None:
    class Look:
        def __init__(self) -> None:
            self.loaded: dict[str, int] = {}

        def on_fit_start(self, trainer: Trainer) -> None:
            self.seen = trainer.epoch, trainer.step, len(trainer.history), trainer.model[0].bias.detach().clone()

        def state_dict(self) -> dict[str, int]:
            return {"value": 7}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.loaded = state

    stopped = trainer_in(tmp_path, [StopAt(6), Look()])
    stopped.fit((X, Y), epochs=2, batch_size=3)
    look = Look()
    fresh = network()[0].bias
    trainer_in(None, [look]).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    assert look.seen[:3] == (1, 6, 1)
    assert torch.equal(look.seen[3], fresh)
    assert look.loaded == {"value": 7}


class Wraps:
    """Calls the model from inside of another module, as torch.compile does."""

    @hookimpl(wrapper=True)
    def prepare_model(self) -> Iterator[Any]:
        return nn.Sequential((yield))


@pytest.mark.parametrize("wraps", [[], [Wraps()]], ids=["as it is", "wrapped until the break"])
def test_modules_that_a_plugin_had_put_to_eval_stay_there(oracle: Any, tmp_path: Path, wraps: list[Any]) -> None:
    class Frozen:
        def on_split_start(self, trainer: Trainer, split: str) -> None:
            trainer.model[1].eval()

    alone = trainer_in(None, [Frozen()])
    alone.fit((X, Y), epochs=2, batch_size=3)
    trainer_in(tmp_path, [*wraps, Frozen(), StopAt(2)]).fit((X, Y), epochs=2, batch_size=3)
    resumed = trainer_in(None, [Frozen()])
    resumed.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_a_fit_can_be_given_more_epochs(oracle: Any, tmp_path: Path) -> None:
    alone = trainer_in(None)
    alone.fit(Noisy(), epochs=4, batch_size=3)
    first = trainer_in(tmp_path)
    first.fit(Noisy(), epochs=2, batch_size=3)
    first.save()
    resumed = trainer_in(None)
    resumed.fit(Noisy(), epochs=4, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_a_finished_fit_that_is_resumed_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = trainer_in(tmp_path)
    first.fit((X, Y), epochs=2, batch_size=3)
    first.save()
    result = trainer_in(None).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    assert (result.epochs, result.steps, result.history) == (2, 8, first.history)


def test_it_goes_on_in_the_same_run_directory(tmp_path: Path) -> None:
    trainer_in(tmp_path, [StopAt(2)]).fit((X, Y), epochs=1, batch_size=3)
    result = trainer_in(None).fit((X, Y), epochs=1, batch_size=3, resume=tmp_path)
    assert result.run_dir == tmp_path


def test_one_checkpoint_can_be_named(oracle: Any, tmp_path: Path) -> None:
    alone = trainer_in(None)
    alone.fit((X, Y), epochs=2, batch_size=3)
    trainer_in(tmp_path, [StopAt(3)]).fit((X, Y), epochs=2, batch_size=3)
    path = find(tmp_path, "last")
    resumed = trainer_in(None)
    resumed.fit((X, Y), epochs=2, batch_size=3, resume=path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


# ------------------------------------------------------------------------------------------- what does not fit together


def stopped_in(run_dir: Path) -> Path:
    trainer_in(run_dir, [StopAt(2)]).fit((X, Y), VAL, epochs=2, batch_size=3)
    return run_dir


class Wider(nn.Sequential):
    pass


def refused(run_dir: Path, trainer: Trainer, data: Any = (X, Y), val: Any = VAL, **options: Any) -> str:
    """The message; nothing in memory has changed."""
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    recorder_epoch = trainer.epoch
    with pytest.raises(CheckpointError) as caught:
        trainer.fit(data, val, **{"epochs": 2, "batch_size": 3, **options}, resume=run_dir)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert not trainer.optimizer.state
    assert trainer.epoch == recorder_epoch
    return str(caught.value)


def test_another_model_is_refused_with_its_differences(tmp_path: Path) -> None:
    stopped_in(tmp_path)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 1))
    other = Trainer(model, nn.functional.mse_loss, torch.optim.Adam(model.parameters(), lr=0.01), device="cpu")
    said = refused(tmp_path, other)
    assert "0.weight: checkpoint (4, 3), model (5, 3)" in said
    assert "more" in said


def test_another_dtype_is_refused_which_torch_would_cast(tmp_path: Path) -> None:
    stopped_in(tmp_path)
    trainer = trainer_in(None)
    trainer.model.double()
    said = refused(tmp_path, trainer, (X.double(), Y.double()), (VAL[0].double(), VAL[1].double()))
    assert "0.weight: checkpoint float32, model float64" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 4}, "train: batch_size was 3, now it is 4"),
        ({"data": (X[:9], Y[:9])}, "train: the number of samples was 11, now it is 9"),
        ({"data": (X + 1, Y)}, "train: the SHA-256 of the data was"),
        ({"shuffle": False}, "train: the order was"),
        ({"accumulate": 2}, "accumulate was 1, now it is 2"),
        ({"val": None}, "there was val data, now there is no such"),
        ({"epochs": 0}, None),
        ({"data": own_generator(), "batch_size": None}, "the loaders had 0 generators of their own, now they have 1"),
    ],
)
def test_other_data_is_refused(tmp_path: Path, change: dict[str, Any], words: str | None) -> None:
    stopped_in(tmp_path)
    if words is None:
        with pytest.raises(ValueError, match="epochs"):
            trainer_in(None).fit((X, Y), VAL, batch_size=3, resume=tmp_path, **change)
        return
    assert words in refused(tmp_path, trainer_in(None), **change)


def test_fewer_epochs_than_were_completed_are_refused(tmp_path: Path) -> None:
    trainer_in(tmp_path, [StopAt(9)]).fit((X, Y), VAL, epochs=3, batch_size=3)
    said = refused(tmp_path, trainer_in(None), epochs=1)
    assert "has completed 2 epochs, and only 1 are asked for" in said


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    stopped_in(tmp_path)
    assert "the optimizer was Adam, now it is SGD" in refused(tmp_path, trainer_in(None, make=torch.optim.SGD))


def test_a_learning_rate_that_was_changed_is_told_and_not_overwritten_silently(tmp_path: Path) -> None:
    stopped_in(tmp_path)
    trainer = trainer_in(None)
    trainer.optimizer.param_groups[0]["lr"] = 0.5
    said = refused(tmp_path, trainer)
    assert "the optimizer's settings at the start, group.0.lr is 0.5 in place of 0.01" in said


def test_another_number_of_groups_is_refused(tmp_path: Path) -> None:
    stopped_in(tmp_path)
    trainer = trainer_in(None)
    parts = [{"params": [*trainer.model[0].parameters()]}, {"params": [*trainer.model[1:].parameters()]}]
    trainer.optimizer = torch.optim.Adam(parts, lr=0.01)
    assert "the optimizer's parameters had the shapes" in refused(tmp_path, trainer)


def test_a_run_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="checkpoint"):
        trainer_in(None).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)


def test_a_checkpoint_that_no_fit_has_written_is_told(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    trainer.save()
    path = find(tmp_path, "last")
    assert path is not None
    with pytest.raises(CheckpointError, match=r"more epochs|place in a fit|train data"):
        trainer_in(None).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)


# ----------------------------------------------------------------------------------------------------- plugins' states


class Counts:
    def __init__(self, name: str = "counts") -> None:
        self.name, self.batches = name, 0

    def on_fit_start(self) -> None:
        self.batches = 0

    def on_batch_end(self, split: str) -> None:
        self.batches += split == "train"

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches = state["batches"]


def test_the_state_of_a_plugin_is_there_again(tmp_path: Path) -> None:
    trainer_in(tmp_path, [Counts(), StopAt(3)]).fit((X, Y), epochs=2, batch_size=3)
    counts = Counts()
    trainer_in(None, [counts]).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    assert counts.batches == 8


def test_a_plugin_that_is_gone_and_one_that_is_new_are_told(tmp_path: Path) -> None:
    trainer_in(tmp_path, [Counts("old"), StopAt(3)]).fit((X, Y), epochs=2, batch_size=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer_in(None, [Counts("new")]).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    said = [str(warning.message) for warning in caught]
    assert any("has a state of plugin 'old', which is not active" in text for text in said)
    assert any("has no state of plugin 'new': it starts anew" in text for text in said)


def test_a_plugin_that_cannot_take_its_state_leaves_everything_as_it_was(tmp_path: Path) -> None:
    class Renamed(Counts):
        def load_state_dict(self, state: dict[str, int]) -> None:
            self.batches = state["steps"]

    trainer_in(tmp_path, [Counts(), StopAt(3)]).fit((X, Y), VAL, epochs=2, batch_size=3)
    trainer = trainer_in(None, [Renamed()])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="'counts' cannot take the state that was saved: KeyError: 'steps"):
        trainer.fit((X, Y), VAL, epochs=2, batch_size=3, resume=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert not trainer.optimizer.state


def test_a_plugin_whose_state_is_another_after_loading_is_told(tmp_path: Path) -> None:
    class Forgets(Counts):
        def load_state_dict(self, state: dict[str, int]) -> None:
            pass

    trainer_in(tmp_path, [Counts(), StopAt(3)]).fit((X, Y), epochs=2, batch_size=3)
    with pytest.warns(UserWarning, match=r"'counts' was not put back as it was: counts.batches is 0 in place of 3"):
        trainer_in(None, [Forgets()]).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)


def test_a_state_that_no_checkpoint_can_hold_is_told_before_the_first_step(tmp_path: Path) -> None:
    class Function(Counts):
        def state_dict(self) -> Any:
            return {"function": print}

    trainer = trainer_in(tmp_path, [Function()])
    with pytest.raises(CheckpointError, match=r"counts.*function"):
        trainer.fit((X, Y), epochs=2, batch_size=3)
    assert trainer.step == 0


def test_losses_that_are_still_on_a_device_are_in_the_sum_that_is_kept() -> None:
    told = []

    class Looks:
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.later(lambda: told.append(trainer.snapshot().loop["mean"]))

        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.place._mean = Mean(torch.device("meta"))  # reads what it was given when it is asked to
            trainer.place._mean.add(torch.tensor(2.0), 3)

    tiny_trainer([Looks()]).fit(tiny_data(), epochs=1)
    assert told == [[6.0, 3, 1]]


# ---------------------------------------------------------------------------------------------------- what is put back


def test_optimizer_state_in_another_dtype_than_its_parameter_comes_back_in_its_own(oracle: Any, tmp_path: Path) -> None:
    def made(plugins: Any, run_dir: Path | None) -> Trainer:
        seed_everything(0)
        model = nn.Linear(3, 1).to(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for parameter in model.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, dtype=torch.float32)
        return Trainer(model, nn.functional.mse_loss, optimizer, plugins=plugins, device="cpu", run_dir=run_dir)

    data = X.to(torch.bfloat16), Y.to(torch.bfloat16)
    alone = made([], None)
    alone.fit(data, epochs=2, batch_size=3)
    made([StopAt(3)], tmp_path).fit(data, epochs=2, batch_size=3)
    resumed = made([], None)
    resumed.fit(data, epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))
    assert resumed.optimizer.state[resumed.model.weight]["momentum_buffer"].dtype == torch.float32


def test_strides_of_optimizer_state_come_back(oracle: Any, tmp_path: Path) -> None:
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(6, 2)

    def made(plugins: Any, run_dir: Path | None) -> Trainer:
        seed_everything(0)
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(
            memory_format=torch.channels_last
        )
        return Trainer(model, nn.functional.mse_loss, torch.optim.Adam(model.parameters()), plugins=plugins,
                       device="cpu", run_dir=run_dir)  # fmt: skip

    alone = made([], None)
    alone.fit(images, epochs=2, batch_size=2)
    made([StopAt(2)], tmp_path).fit(images, epochs=2, batch_size=2)
    resumed = made([], None)
    resumed.fit(images, epochs=2, batch_size=2, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_state_that_an_optimizer_does_not_take_back_is_an_error(tmp_path: Path) -> None:
    class Forgets(torch.optim.SGD):
        def load_state_dict(self, state: Any) -> None:
            super().load_state_dict({**state, "state": {}})

    def made(plugins: Any, run_dir: Path | None) -> Trainer:
        model = network()
        optimizer = Forgets(model.parameters(), lr=0.1, momentum=0.9)
        return Trainer(model, nn.functional.mse_loss, optimizer, plugins=plugins, device="cpu", run_dir=run_dir)

    made([StopAt(3)], tmp_path).fit((X, Y), epochs=2, batch_size=3)
    with pytest.raises(CheckpointError, match=r"cannot be put back as it was: optimizer.state.*gone"):
        made([], None).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)


def test_tied_weights_are_tied_after_it(oracle: Any, tmp_path: Path) -> None:
    def made(plugins: Any, run_dir: Path | None) -> Trainer:
        seed_everything(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
        model[1].weight = model[0].weight
        return Trainer(model, nn.functional.mse_loss, torch.optim.Adam(model.parameters()), plugins=plugins,
                       device="cpu", run_dir=run_dir)  # fmt: skip

    alone = made([], None)
    alone.fit((X, Y), epochs=2, batch_size=3)
    made([StopAt(3)], tmp_path).fit((X, Y), epochs=2, batch_size=3)
    resumed = made([], None)
    resumed.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))
    assert resumed.model[1].weight is resumed.model[0].weight


# ----------------------------------------------------------------------------------------------- exact, and not exact


def test_a_checkpoint_after_an_error_inside_a_step_is_marked_and_passed_over(oracle: Any, tmp_path: Path) -> None:
    class Fails:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 2:
                trainer.save()
            if trainer.step == 4:
                raise OSError("the cable")

        def on_exception(self, trainer: Trainer) -> None:
            trainer.save()

    alone = trainer_in(None)
    alone.fit((X, Y), epochs=2, batch_size=3)
    failing = trainer_in(tmp_path, [Fails()])
    with pytest.raises(OSError, match="the cable"):
        failing.fit((X, Y), epochs=2, batch_size=3)
    last = find(tmp_path, "last")
    assert last is not None
    assert not read(last).exact
    resumed = trainer_in(None)
    with pytest.warns(UserWarning, match=r"step 4|000004"):
        resumed.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_a_save_that_is_asked_for_is_exact_and_one_by_hand_in_a_hook_is_not(tmp_path: Path) -> None:
    seen = []

    class Looks:
        def on_batch_end(self, trainer: Trainer) -> None:
            seen.append(trainer.snapshot().exact)
            trainer.later(lambda: seen.append(trainer.snapshot().exact))

    tiny_trainer(plugins=[Looks()]).fit(tiny_data(), epochs=1, batch_size=5)
    assert seen == [False, True]


# ------------------------------------------------------------------------------------------------------- in background


@pytest.mark.parametrize("background", [False, True])
def test_saving_changes_no_bit_of_the_training(oracle: Any, tmp_path: Path, background: bool) -> None:
    class EachStep:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if split == "train":
                trainer.save()

    alone = trainer_in(None)
    alone.fit(Noisy(), VAL, epochs=3, batch_size=3)
    wanted = end(oracle, alone)
    saving = trainer_in(tmp_path, [EachStep(), "best_checkpoint"], async_save=background)
    saving.fit(Noisy(), VAL, epochs=3, batch_size=3)
    oracle.assert_same(wanted, end(oracle, saving))


def test_what_is_written_in_the_background_is_the_state_of_its_own_step(oracle: Any, tmp_path: Path) -> None:
    paths: list[tuple[int, Path]] = []

    class EachStep:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            trainer.save()

        def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
            paths.append((trainer.step, path))
            assert read(path).step <= trainer.step

    trainer = trainer_in(tmp_path, [EachStep()], async_save=True)
    trainer.fit((X, Y), epochs=3, batch_size=3)
    assert [path.name for _, path in paths] == [f"step-{step:012d}" for step in range(1, 13)]
    last = find(tmp_path, "last")
    assert last is not None
    oracle.assert_same(dict(trainer.model.state_dict()), read(last).model)


def test_an_error_in_the_background_ends_the_fit_at_a_later_step(tmp_path: Path) -> None:
    class Spoils:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if trainer.step == 1:
                trainer.save()
                (tmp_path / "checkpoints").write_text("in the way")

    with pytest.raises(CheckpointError, match="checkpoints"):
        trainer_in(tmp_path, [Spoils()], async_save=True).fit((X, Y), epochs=3, batch_size=3)


def test_a_save_that_fails_can_be_a_warning(oracle: Any, tmp_path: Path) -> None:
    class Spoils:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if trainer.step == 1:
                (tmp_path / "checkpoints").write_text("in the way")
                trainer.save()

    alone = trainer_in(None)
    alone.fit((X, Y), epochs=3, batch_size=3)
    going_on = trainer_in(tmp_path, [Spoils()], on_save_error="continue")
    with pytest.warns(UserWarning, match=r"checkpoints.*; training goes on"):
        going_on.fit((X, Y), epochs=3, batch_size=3)
    oracle.assert_same(end(oracle, alone), end(oracle, going_on))


@pytest.mark.parametrize("name", ["on_save_error", "on_plugin_error", "on_nonfinite"])
def test_a_policy_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 'stop' or '(continue|disable)', got 'maybe'"):
        trainer_in(None, **{name: "maybe"})


def test_rows_come_back_with_their_kinds_and_their_order(oracle: Any, tmp_path: Path) -> None:
    class Odd:
        def on_split_end(self, split: str, metrics: Any) -> None:
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen % 2 == 0:
                metrics["even"] = self.seen
            metrics["mixed"] = self.seen if self.seen < 3 else float("nan")
            metrics["large"] = 2**70

    first = trainer_in(tmp_path, [Odd()])
    first.fit((X, Y), epochs=4, batch_size=3)
    first.save()
    back = trainer_in(None)
    back.fit((X, Y), epochs=4, batch_size=3, resume=tmp_path)
    oracle.assert_same(first.history, back.history)


# ------------------------------------------------------------------------------------- requests at awkward moments


def test_a_stop_that_is_asked_for_while_a_checkpoint_is_written_is_honoured_at_the_next_step(tmp_path: Path) -> None:
    class StopsLate:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 3:
                trainer.save()

        def on_checkpoint(self, trainer: Trainer) -> None:
            trainer.later(lambda: trainer.stop("SIGTERM"))

    result = trainer_in(tmp_path, [StopsLate()]).fit((X, Y), epochs=2, batch_size=2, drop_last=True)
    assert result.steps == 4


def test_a_save_before_the_first_step_of_a_resumed_fit_is_the_place_where_it_was(oracle: Any, tmp_path: Path) -> None:
    class SavesAtOnce:
        def on_fit_start(self, trainer: Trainer) -> None:
            trainer.save()
            trainer.stop("SIGTERM")

    alone = trainer_in(None)
    alone.fit(Noisy(), epochs=2, batch_size=3)
    trainer_in(tmp_path, [StopAt(6)]).fit(Noisy(), epochs=2, batch_size=3)
    for _ in range(2):
        trainer_in(None, [SavesAtOnce()]).fit(Noisy(), epochs=2, batch_size=3, resume=tmp_path)
    resumed = trainer_in(None)
    resumed.fit(Noisy(), epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_a_plugin_s_decision_to_stop_is_not_lost_with_a_kill_after_the_save(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    class Dies:
        def on_checkpoint(self, trainer: Trainer) -> None:
            if trainer.epoch == 3:
                raise Killed

    class Worse:
        def on_split_end(self, trainer: Trainer, metrics: Any) -> None:
            metrics["figure"] = float(trainer.epoch)

        def metric_names(self, split: str) -> list[str]:
            return ["figure"]

    def made(*more: Any) -> Trainer:
        stopping = EarlyStopping(monitor="figure", patience=2, mode="min")
        return trainer_in(tmp_path, [Worse(), stopping, BestCheckpoint("figure", every_seconds=0), *more])

    with pytest.raises(Killed):
        made(Dies()).fit((X, Y), epochs=9, batch_size=3)
    result = made().fit((X, Y), epochs=9, batch_size=3, resume=tmp_path)
    assert result.epochs == 3
    assert str(result.stop_reason).startswith("early_stopping: figure has not improved")


def test_a_stream_that_is_stopped_is_not_asked_for_the_next_batch_at_the_cost_of_its_draws(
    oracle: Any, tmp_path: Path
) -> None:
    class Drawing(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for _ in range(9):
                yield torch.randn(3), torch.randn(1)

    alone = trainer_in(None)
    alone.fit(Drawing(), epochs=2, batch_size=3)
    stopped = trainer_in(tmp_path, [StopAt(2), BestCheckpoint()])
    stopped.fit(Drawing(), epochs=2, batch_size=3)
    stopped.save()
    resumed = trainer_in(None)
    with pytest.warns(UserWarning, match="best_checkpoint"):
        resumed.fit(Drawing(), epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


# ------------------------------------------------------------------------------------------------ loaders of one's own


@pytest.mark.filterwarnings("ignore:train. persistent_workers")
@pytest.mark.parametrize("step", [2, 6])
def test_workers_that_stay_draw_no_seed_more(oracle: Any, tmp_path: Path, step: int) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, num_workers=1, persistent_workers=True)

    alone = trainer_in(None)
    alone.fit(loader(), epochs=3)
    trainer_in(tmp_path, [StopAt(step)]).fit(loader(), epochs=3)
    resumed = trainer_in(None)
    resumed.fit(loader(), epochs=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_workers_that_stay_are_told_of(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, num_workers=1, persistent_workers=True)
    trainer_in(tmp_path, [StopAt(6)]).fit(loader, epochs=2)
    with pytest.warns(UserWarning, match="train: persistent_workers=True keeps generators in the workers"):
        trainer_in(None).fit(loader, epochs=2, resume=tmp_path)


def test_a_sampler_that_was_told_its_epoch_is_told_again(oracle: Any, tmp_path: Path) -> None:
    class Sampler(torch.utils.data.Sampler[int]):
        epoch = 0

        def __len__(self) -> int:
            return len(X)

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            return iter(torch.randperm(len(X), generator=torch.Generator().manual_seed(self.epoch)).tolist())

    class Tells:
        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            trainer.loaders["train"].sampler.set_epoch(epoch)

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(X, Y), batch_size=3, sampler=Sampler())

    alone = trainer_in(None, [Tells()])
    alone.fit(loader(), epochs=3)
    trainer_in(tmp_path, [Tells(), StopAt(6)]).fit(loader(), epochs=3)
    resumed = trainer_in(None, [Tells()])
    resumed.fit(loader(), epochs=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (Subset(TensorDataset(X, Y), range(6)), Subset(TensorDataset(X, Y), range(5, 11))),
        (Subset(TensorDataset(X, Y), [0, 1, 2, 3]), Subset(TensorDataset(X, Y), torch.tensor([0, 1, 2, 4]))),
        (Subset(TensorDataset(X, Y), [0, 1, 2, 3]), Subset(TensorDataset(X + 1, Y), [0, 1, 2, 3])),
        (({"a": X}, Y), ({"a": X + 1}, Y)),
        (({"a": X}, Y), ({"b": X}, Y)),
        ((X, torch.zeros(11, 1)), (X, torch.zeros(11, 1, dtype=torch.int32))),
    ],
)
def test_other_rows_of_the_same_data_set_are_refused(tmp_path: Path, then: Any, now: Any) -> None:
    class Forward:
        @hookimpl
        def forward(self, model: nn.Module, batch: Any) -> Any:
            return model(batch[0]["a"] if isinstance(batch[0], dict) else batch[0])

    trainer_in(tmp_path, [Forward(), StopAt(1)]).fit(then, epochs=2, batch_size=2)
    with pytest.raises(CheckpointError, match="train: the SHA-256 of the data was"):
        trainer_in(None, [Forward()]).fit(now, epochs=2, batch_size=2, resume=tmp_path)


# ----------------------------------------------------------------------------------------------------- all or nothing


class Interrupts:
    """A plugin whose state cannot be loaded, behind one whose state can."""

    def on_fit_start(self) -> None:
        pass

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        torch.rand(1)
        raise KeyboardInterrupt


def test_an_interrupt_while_loading_leaves_counters_plugins_and_generators_as_they_were(
    oracle: Any, tmp_path: Path
) -> None:
    class Fine(Interrupts):
        name = "interrupts"

        def load_state_dict(self, state: dict[str, int]) -> None:
            pass

    trainer_in(tmp_path, [Counts(), Fine(), StopAt(6)]).fit((X, Y), epochs=2, batch_size=3)
    counts, broken = Counts(), Interrupts()
    broken.name = "interrupts"  # type: ignore[attr-defined]
    trainer = trainer_in(None, [counts, broken])
    before = oracle.random_states()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    assert (trainer.step, trainer.epoch, trainer.history, counts.batches) == (0, 0, [], 0)
    oracle.assert_same(before, oracle.random_states())


def test_a_group_of_the_optimizer_that_a_plugin_holds_is_the_one_that_is_used(tmp_path: Path) -> None:
    class Holds:
        def on_fit_start(self, trainer: Trainer) -> None:
            self.group = trainer.optimizer.param_groups[0]

    holds = Holds()
    trainer_in(tmp_path, [Holds(), StopAt(2)]).fit((X, Y), epochs=1, batch_size=3)
    resumed = trainer_in(None, [holds])
    resumed.fit((X, Y), epochs=1, batch_size=3, resume=tmp_path)
    assert resumed.optimizer.param_groups[0] is holds.group


def test_weights_of_a_module_with_versions_are_those_of_its_present_one(oracle: Any, tmp_path: Path) -> None:
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
            if metadata.get("version", 1) < 2:
                state[prefix + "weight"] = -state[prefix + "weight"]
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    def made(plugins: Any, run_dir: Path | None) -> Trainer:
        seed_everything(0)
        model = Versioned(3, 1)
        return Trainer(model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), plugins=plugins,
                       device="cpu", run_dir=run_dir)  # fmt: skip

    alone = made([BestCheckpoint(restore_best=True)], None)
    alone.fit((X, Y), epochs=2, batch_size=3)
    made([BestCheckpoint(restore_best=True), StopAt(6)], tmp_path).fit((X, Y), epochs=2, batch_size=3)
    resumed = made([BestCheckpoint(restore_best=True)], None)
    resumed.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))


def test_a_lazy_model_is_told_what_it_needs(tmp_path: Path) -> None:
    def made(plugins: Any) -> Trainer:
        model = nn.Sequential(nn.LazyLinear(1))
        return Trainer(model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.1), plugins=plugins,
                       device="cpu", run_dir=tmp_path)  # fmt: skip

    made([StopAt(1)]).fit((X, Y), epochs=2, batch_size=3)
    with pytest.raises(CheckpointError, match="the model has lazy layers without a shape: give it one batch"):
        made([]).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)


# ---------------------------------------------------------------------------------------------------- run directories


def test_a_checkpoint_that_was_passed_over_counts_for_nothing_afterwards(tmp_path: Path) -> None:
    class EachStep:
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.save()
            if trainer.step == 3:
                trainer.stop("to be resumed")

    trainer_in(tmp_path, [EachStep()]).fit((X, Y), epochs=1, batch_size=3)
    damaged = tmp_path / "checkpoints" / "step-000000000003" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step-000000000003 is damaged"):
        trainer_in(None, [StopAt(3)]).fit((X, Y), epochs=1, batch_size=3, resume=tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert "step-000000000002" in names
    assert "step-000000000003-r1" in names


def test_another_run_directory_is_refused_and_a_checkpoint_without_a_run_needs_one(oracle: Any, tmp_path: Path) -> None:
    run, other, backup = tmp_path / "run", tmp_path / "other", tmp_path / "backups" / "step-000000000003"
    trainer_in(run, [StopAt(3)]).fit((X, Y), epochs=1, batch_size=3)
    shutil.copytree(run / "checkpoints" / "step-000000000003", backup)
    with pytest.raises(UsageError, match="goes on in its own run directory: leave out run_dir="):
        trainer_in(other).fit((X, Y), epochs=1, batch_size=3, resume=run)
    with pytest.raises(UsageError, match="is in no run directory: give the Trainer a run_dir"):
        trainer_in(None).fit((X, Y), epochs=1, batch_size=3, resume=backup)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "run"]
    assert trainer_in(other).fit((X, Y), epochs=1, batch_size=3, resume=backup).run_dir == other


def test_a_fit_that_is_refused_writes_nothing_for_the_one_before(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, [BestCheckpoint()])
    trainer.fit((X, Y), epochs=2, batch_size=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with pytest.raises(UsageError):
        trainer.fit((X[:0], Y[:0]), epochs=2, batch_size=3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_a_save_outside_of_a_fit_takes_the_lock(tmp_path: Path) -> None:
    other = trainer_in(tmp_path)

    class Meanwhile:
        def on_epoch_end(self) -> None:
            with pytest.raises(UsageError, match="is in use by"):
                other.save()

    trainer_in(tmp_path, [Meanwhile()]).fit((X, Y), epochs=1, batch_size=3)
    other.save()


def test_the_lock_is_free_after_a_ctrl_c_in_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_in(tmp_path, [recorder := Recorder()])

    class Late:
        def on_fit_end(self) -> None:
            def close() -> None:
                monkeypatch.undo()
                raise KeyboardInterrupt

            monkeypatch.setattr(trainer.engine, "close", close)

    late = trainer_in(tmp_path, [Late(), recorder])
    trainer = late
    with pytest.raises(KeyboardInterrupt):
        late.fit((X, Y), epochs=1, batch_size=3)
    assert recorder.names[-1] == "on_teardown"
    late.save()


def test_two_that_keep_the_best_in_turns_do_not_keep_each_other_s_copies(tmp_path: Path) -> None:
    class InTurns:
        def on_split_end(self, trainer: Trainer, metrics: Any) -> None:
            even = trainer.epoch % 2 == 0
            metrics["a"], metrics["b"] = float(-trainer.epoch * even), float(-trainer.epoch * (not even))

        def metric_names(self, split: str) -> list[str]:
            return ["a", "b"]

    plugins = [
        InTurns(),
        *(BestCheckpoint(m, "min", restore_best=True, name=f"best_{m}", every_seconds=1e9) for m in "ab"),
    ]
    trainer = trainer_in(tmp_path, plugins)
    trainer.fit((X, Y), epochs=30, batch_size=11)
    assert (tmp_path / "checkpoints" / "BEST_B").is_file()


def test_a_plugin_that_adds_a_group_and_then_fails_is_what_is_told(tmp_path: Path) -> None:
    class Adds(Counts):
        def on_fit_start(self, trainer: Trainer) -> None:
            self.optimizer = trainer.optimizer

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
            raise KeyError("unfreeze")

    trainer_in(tmp_path, [Counts(), StopAt(3)]).fit((X, Y), epochs=2, batch_size=3)
    trainer = trainer_in(None, [Adds()])
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="'counts' cannot take the state that was saved: KeyError: 'unfreeze'"):
        trainer.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    assert (trainer.step, trainer.epoch, trainer.history) == (0, 0, [])
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_checkpoint_without_a_place_in_a_fit_is_told(tmp_path: Path) -> None:
    trainer = trainer_in(None)
    path = write(Snapshot(0, 1, dict(trainer.model.state_dict()), {}), tmp_path, ["last"])
    with pytest.raises(CheckpointError, match=f"{path.name} tells no place in a fit"):
        trainer.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)


def test_an_optimizer_that_was_loaded_before_the_error_is_emptied_again(tmp_path: Path) -> None:
    class Tampers(torch.optim.SGD):
        def load_state_dict(self, state: Any) -> None:
            super().load_state_dict(state)
            for kept in self.state.values():
                kept["momentum_buffer"].add_(1)

    def made(plugins: Any, run_dir: Path | None) -> Trainer:
        model = network()
        optimizer = Tampers(model.parameters(), lr=0.1, momentum=0.9)
        return Trainer(model, nn.functional.mse_loss, optimizer, plugins=plugins, device="cpu", run_dir=run_dir)

    made([StopAt(3)], tmp_path).fit((X, Y), epochs=2, batch_size=3)
    trainer = made([], None)
    with pytest.raises(CheckpointError, match="momentum_buffer has other numbers"):
        trainer.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    assert not trainer.optimizer.state


class Unfreezes(Counts):
    """Adds a group of parameters in the first step, and with `again` when its state is loaded."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again

    def on_fit_start(self, trainer: Trainer) -> None:
        self.optimizer, self.layer = trainer.optimizer, trainer.model[4]

    def on_batch_start(self, trainer: Trainer) -> None:
        if trainer.step == 0:
            self.add()

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        if self.again:
            self.add()

    def add(self) -> None:
        self.optimizer.add_param_group({"params": [*self.layer.parameters()], "lr": 0.1})


def test_groups_that_were_added_during_the_fit_are_added_again_by_their_plugin(oracle: Any, tmp_path: Path) -> None:
    def made(plugins: Any, run_dir: Path | None) -> Trainer:
        model = network()
        return Trainer(model, nn.functional.mse_loss, torch.optim.Adam(model[:4].parameters(), lr=0.01),
                       plugins=plugins, device="cpu", run_dir=run_dir)  # fmt: skip

    alone = made([Unfreezes(True)], None)
    alone.fit((X, Y), epochs=2, batch_size=3)
    made([Unfreezes(True), StopAt(3)], tmp_path).fit((X, Y), epochs=2, batch_size=3)
    resumed = made([Unfreezes(True)], None)
    resumed.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    oracle.assert_same(end(oracle, alone), end(oracle, resumed))
    with pytest.raises(CheckpointError, match="had 2 groups of parameters when it was saved, now it has 1"):
        made([Unfreezes(False)], None).fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)


def test_a_setting_that_only_the_new_process_has_does_not_stay_in_a_group(tmp_path: Path) -> None:
    class Marks:
        def on_fit_start(self, trainer: Trainer) -> None:
            trainer.optimizer.param_groups[0]["mark"] = 1

    trainer_in(tmp_path, [StopAt(3)]).fit((X, Y), epochs=2, batch_size=3)
    resumed = trainer_in(None, [Marks()])
    resumed.fit((X, Y), epochs=2, batch_size=3, resume=tmp_path)
    assert "mark" not in resumed.optimizer.param_groups[0]


def test_a_fit_that_begins_anew_in_the_directory_of_an_older_one_is_the_one_that_is_resumed(
    oracle: Any, tmp_path: Path
) -> None:
    """Killed before its first own save, it went on as the older fit, whose checkpoints were all that there was."""
    older, killed = tmp_path / "run", tmp_path / "killed"
    trainer_in(older, plugins=[BestCheckpoint(), StopAt(2)]).fit((X, Y), epochs=2, batch_size=4)

    class Kill:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 1:
                shutil.copytree(older, killed)

    options: dict[str, Any] = {"epochs": 2, "batch_size": 4}
    torch.manual_seed(7)
    newer = trainer_in(older, plugins=[BestCheckpoint(), Kill()])
    torch.manual_seed(8)
    newer.fit((X, Y), **options)
    resumed = trainer_in(killed, plugins=[BestCheckpoint()])
    resumed.fit((X, Y), **options, resume=killed)
    oracle.assert_same(end(oracle, resumed), end(oracle, newer))


def test_one_that_is_resumed_before_its_first_step_is_not_saved_there_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    trainer_in(run_dir, plugins=[BestCheckpoint(), StopAt(2)]).fit((X, Y), epochs=2, batch_size=4)

    class StopsAtOnce:
        def on_fit_start(self, trainer: Trainer) -> None:
            trainer.stop("at once")

    def checkpoints() -> set[str]:
        return {path.name for path in (run_dir / "checkpoints").glob("step-*")}

    trainer_in(run_dir, plugins=[BestCheckpoint(), StopsAtOnce()]).fit((X, Y), epochs=2, batch_size=4)
    before = checkpoints()
    assert "step-000000000000" in before
    for _ in range(2):
        again = trainer_in(run_dir, plugins=[BestCheckpoint(), StopsAtOnce()])
        again.fit((X, Y), epochs=2, batch_size=4, resume=run_dir)
        assert again.step == 0
    assert checkpoints() == before


def test_a_lazy_model_that_begins_anew_is_saved_after_its_first_batch(tmp_path: Path) -> None:
    def lazy(*plugins: Any) -> Trainer:
        model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return Trainer(model, nn.functional.mse_loss, optimizer, [BestCheckpoint(), *plugins], "cpu", tmp_path)

    lazy().fit((X, Y), epochs=1, batch_size=4)
    steps = []

    class Tells:
        def on_checkpoint(self, path: Path) -> None:
            steps.append(read(path).step)

    lazy(Tells()).fit((X, Y), epochs=2, batch_size=4)
    assert steps[0] == 1
