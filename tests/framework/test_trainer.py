"""The trainer: counting, stopping, saving, failing, and what evaluate and predict leave behind."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from framework import (
    CheckpointError,
    DataError,
    DeviceError,
    PluginError,
    Result,
    Snapshot,
    Trainer,
    UsageError,
    hookimpl,
)
from framework.checkpoint import find, read
from framework.hooks import HOOKS
from framework.testing import Recorder, tiny_data, tiny_trainer


def plugin(name: str = "plugin", **hooks: Callable[..., Any]) -> Any:
    """A plugin of these functions."""
    return SimpleNamespace(name=name, **hooks)


def stopping(when: str, at: Callable[[Trainer], bool], reason: str = "enough") -> Any:
    """A plugin that asks to stop in a hook, where `at(trainer)`."""

    def ask(trainer: Trainer) -> None:
        if at(trainer):
            trainer.stop(reason)

    return plugin(**{when: ask})


# --------------------------------------------------------------------------------------------------------- constructor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": nn.Linear}, "model must be a torch Module, got <class"),
        ({"model": "net"}, "model must be a torch Module, got 'net'"),
        ({"loss": nn.MSELoss}, "loss must be callable .* got <class"),
        ({"loss": "mse"}, "loss must be callable .* got 'mse'"),
        ({"optimizer": torch.optim.SGD}, "optimizer must be a torch Optimizer, got <class"),
        ({"optimizer": 0.1}, "optimizer must be a torch Optimizer, got 0.1"),
        ({"optimizer": torch.optim.Adam(nn.Linear(3, 1).parameters())}, "Adam optimizer holds none of the model's"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be 'stop' or 'continue', got 'ignore'"),
        ({"device": "cdua"}, "'cdua' is not a device. Did you mean 'cuda'"),
    ],
)
def test_a_wrong_argument_of_the_trainer_is_named(change: dict[str, Any], message: str) -> None:
    model = nn.Linear(3, 1)
    made = {"model": model, "loss": F.mse_loss, "optimizer": torch.optim.SGD(model.parameters()), "device": "cpu"}
    with pytest.raises(UsageError, match=message):
        Trainer(**{**made, **change})


@pytest.mark.parametrize("value", [0, -1, 1.0, 2.5, "3", None, True])
@pytest.mark.parametrize("name", ["epochs", "accumulate"])
def test_a_count_that_is_not_a_whole_number_from_one_up_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} must be a whole number from 1 up, got {value!r}"):
        tiny_trainer().fit(tiny_data(), **{name: value})


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True])
def test_a_batch_size_that_is_not_a_whole_number_from_one_up_is_named(value: Any) -> None:
    for verb in (tiny_trainer().fit, tiny_trainer().evaluate):
        with pytest.raises(UsageError, match=f"batch_size must be a whole number from 1 up, got {value!r}"):
            verb(tiny_data(), batch_size=value)
    with pytest.raises(UsageError, match=f"batch_size must be a whole number from 1 up, got {value!r}"):
        tiny_trainer().predict(tiny_data()[0], batch_size=value)


@pytest.mark.parametrize("value", [-1, 0.5, "2", None, True])
def test_a_number_of_workers_that_is_none_is_named(value: Any) -> None:
    with pytest.raises(UsageError, match=f"num_workers must be .*0.*, got {value!r}"):
        tiny_trainer().fit(tiny_data(), batch_size=1, num_workers=value)


def test_a_mistake_in_the_arguments_leaves_the_trainer_as_it_was() -> None:
    trainer = tiny_trainer()
    before = trainer.fit(tiny_data(), epochs=2)
    with pytest.raises(UsageError):
        trainer.fit(tiny_data(), epochs=0)
    assert (trainer.epoch, trainer.step, trainer.history) == (2, 2, before.history)


# -------------------------------------------------------------------------------------------------------------- result


def test_a_result_tells_what_was_done(tmp_path: Path) -> None:
    result = tiny_trainer(run_dir=tmp_path).fit(tiny_data(5), tiny_data(2), epochs=3, batch_size=2)
    assert isinstance(result, Result)
    assert (result.epochs, result.steps, result.stop_reason, result.run_dir, result.best) == (
        3,
        9,
        None,
        tmp_path,
        None,
    )
    assert [list(row) for row in result.history] == [["epoch", "step", "train_loss", "val_loss"]] * 3
    assert [(row["epoch"], row["step"]) for row in result.history] == [(0, 3), (1, 6), (2, 9)]
    assert result.seconds > 0


def test_without_validation_there_is_no_val_loss() -> None:
    assert list(tiny_trainer().fit(tiny_data()).history[0]) == ["epoch", "step", "train_loss"]


def test_without_a_run_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = tiny_trainer().fit(tiny_data(), epochs=3)
    assert result.run_dir is None
    assert list(tmp_path.iterdir()) == []


def test_epochs_and_steps_count_what_is_completed() -> None:
    seen: list[Any] = []

    def note(name: str) -> Callable[..., Any]:
        def look(trainer: Trainer) -> None:
            seen.append((name, trainer.epoch, trainer.step))

        return look

    hooks = [
        "on_fit_start",
        "on_epoch_start",
        "on_batch_start",
        "on_gradients",
        "on_batch_end",
        "on_epoch_end",
        "on_fit_end",
    ]
    looks = plugin(**{name: note(name) for name in hooks})
    tiny_trainer([looks]).fit(tiny_data(2), epochs=2, batch_size=2)
    assert seen == [
        ("on_fit_start", 0, 0),
        ("on_epoch_start", 0, 0),
        ("on_batch_start", 0, 0),
        ("on_gradients", 0, 0),
        ("on_batch_end", 0, 1),
        ("on_epoch_end", 1, 1),
        ("on_epoch_start", 1, 1),
        ("on_batch_start", 1, 1),
        ("on_gradients", 1, 1),
        ("on_batch_end", 1, 2),
        ("on_epoch_end", 2, 2),
        ("on_fit_end", 2, 2),
    ]


def test_every_fit_starts_at_epoch_0_and_step_0_with_a_history_of_its_own() -> None:
    recorder = Recorder(["on_epoch_start"])
    trainer = tiny_trainer([recorder])
    first = trainer.fit(tiny_data(4), epochs=2, batch_size=2)
    kept = [dict(row) for row in first.history]
    second = trainer.fit(tiny_data(4), epochs=1, batch_size=1)
    assert [call.arguments["epoch"] for call in recorder.calls] == [0, 1, 0]
    assert (second.epochs, second.steps, len(second.history), second.history[0]["epoch"]) == (1, 4, 1, 0)
    assert first.history == kept


def test_a_second_fit_does_not_remember_the_stop_or_the_saves_of_the_first(tmp_path: Path) -> None:
    times: list[int] = []

    def stop_once(trainer: Trainer) -> None:
        times.append(trainer.step)
        if len(times) == 1:
            trainer.stop("first fit only")

    trainer = tiny_trainer([plugin(on_batch_end=stop_once)], run_dir=tmp_path)
    assert trainer.fit(tiny_data(4), batch_size=2).stop_reason == "first fit only"
    trainer.stop("between the fits")
    result = trainer.fit(tiny_data(4), epochs=2, batch_size=2)
    assert (result.stop_reason, result.epochs) == (None, 2)
    assert not (tmp_path / "checkpoints").exists()


def test_a_fit_works_after_one_that_failed() -> None:
    fails = [True]

    def fail(trainer: Trainer) -> None:
        if fails and trainer.step == 1:
            fails.pop()
            raise KeyboardInterrupt

    trainer = tiny_trainer([plugin(on_batch_end=fail)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(tiny_data(4), epochs=2, batch_size=2)
    result = trainer.fit(tiny_data(4), epochs=2, batch_size=2)
    assert (result.epochs, result.steps, len(result.history)) == (2, 4, 2)


def test_what_is_monitored_is_known_before_on_fit_start() -> None:
    seen: list[Any] = []

    class Promises:
        def metric_names(self, split: str) -> list[str]:
            return [f"{split}_accuracy"]

        def on_fit_start(self, trainer: Trainer) -> None:
            seen.append(trainer.metric_names)

    tiny_trainer([Promises()]).fit(tiny_data(), tiny_data())
    assert seen == [("train_loss", "train_accuracy", "val_loss", "val_accuracy")]


# ---------------------------------------------------------------------------------------------------------------- stop


def test_a_stop_in_on_fit_start_trains_no_step() -> None:
    recorder = Recorder()
    trainer = tiny_trainer([stopping("on_fit_start", lambda trainer: True), recorder])
    result = trainer.fit(tiny_data())
    assert (result.epochs, result.steps, result.history, result.stop_reason) == (0, 0, [], "enough")
    assert recorder.names == ["on_fit_start", "on_fit_end", "on_teardown"]
    assert torch.equal(trainer.model.weight, torch.zeros(1, 3))


@pytest.mark.parametrize("hook", ["on_epoch_start", "on_split_start", "on_batch_start", "on_gradients", "on_batch_end"])
def test_a_stop_inside_an_epoch_is_honoured_after_the_step_and_leaves_no_row(hook: str) -> None:
    recorder = Recorder(["on_batch_end", "on_split_end", "on_epoch_end", "on_fit_end", "on_teardown"])
    stop = stopping(hook, lambda trainer: True)
    result = tiny_trainer([stop, recorder]).fit(tiny_data(6), tiny_data(), batch_size=2, epochs=3)
    assert (result.epochs, result.steps, result.history, result.stop_reason) == (0, 1, [], "enough")
    assert recorder.names == ["on_batch_end", "on_fit_end", "on_teardown"]


def test_a_stop_in_a_later_epoch_keeps_the_rows_of_those_before() -> None:
    stop = stopping("on_batch_end", lambda trainer: trainer.step == 5)
    result = tiny_trainer([stop]).fit(tiny_data(6), epochs=9, batch_size=2)
    assert (result.epochs, result.steps, [row["epoch"] for row in result.history]) == (1, 5, [0])


def test_a_stop_on_the_last_batch_lets_the_epoch_be_completed() -> None:
    recorder = Recorder(["on_split_end", "on_epoch_start", "on_epoch_end", "on_fit_end"])
    stop = plugin(on_batch_end=lambda trainer, split: trainer.stop("last") if trainer.step == 3 else None)
    result = tiny_trainer([stop, recorder]).fit(tiny_data(5), tiny_data(2), epochs=4, batch_size=2)
    assert (result.epochs, result.steps, len(result.history), result.stop_reason) == (1, 3, 1, "last")
    assert recorder.names == ["on_epoch_start", "on_split_end", "on_split_end", "on_epoch_end", "on_fit_end"]
    assert "val_loss" in result.history[0]


@pytest.mark.parametrize("hook", ["on_split_end", "on_epoch_end"])
def test_a_stop_after_the_last_batch_ends_the_fit_after_the_epoch(hook: str) -> None:
    result = tiny_trainer([stopping(hook, lambda trainer: True)]).fit(
        tiny_data(5), tiny_data(2), epochs=4, batch_size=2
    )
    assert (result.epochs, result.steps, len(result.history), result.stop_reason) == (1, 3, 1, "enough")


def test_a_stop_in_validation_lets_the_epoch_be_completed() -> None:
    stop = plugin(on_batch_end=lambda trainer, split: trainer.stop("seen") if split == "val" else None)
    result = tiny_trainer([stop]).fit(tiny_data(5), tiny_data(4), epochs=4, batch_size=2)
    assert (result.epochs, len(result.history), result.stop_reason) == (1, 1, "seen")


def test_a_stop_in_the_middle_of_a_window_is_honoured_when_the_window_has_been_stepped_on() -> None:
    seen: list[int] = []

    def stop(trainer: Trainer) -> None:
        seen.append(trainer.step)
        trainer.stop("now")

    trainer = tiny_trainer([plugin(on_batch_end=stop)])
    result = trainer.fit(tiny_data(6), batch_size=1, accumulate=3)
    assert (result.steps, seen) == (1, [0, 0, 1])


def test_the_first_reason_counts() -> None:
    stops = [
        plugin("a", on_batch_end=lambda trainer: trainer.stop("a")),
        plugin("b", on_batch_end=lambda trainer: trainer.stop("b")),
    ]
    assert tiny_trainer(stops).fit(tiny_data()).stop_reason == "a"


def test_a_stop_in_the_last_epoch_is_still_told() -> None:
    result = tiny_trainer([stopping("on_epoch_end", lambda trainer: trainer.epoch == 2)]).fit(tiny_data(), epochs=2)
    assert (result.epochs, result.stop_reason) == (2, "enough")


def test_an_honoured_stop_inside_an_epoch_has_drawn_no_more_than_the_loop_that_breaks(oracle: Any) -> None:
    """The rest of the epoch is not asked for: the random state is that after the step."""

    class Draws(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + torch.rand(3), y

    torch.manual_seed(1)
    for _ in DataLoader(Draws(*tiny_data(6)), batch_size=2, shuffle=True):
        break
    expected = torch.get_rng_state()
    torch.manual_seed(1)
    tiny_trainer([stopping("on_batch_end", lambda trainer: True)]).fit(Draws(*tiny_data(6)), batch_size=2)
    assert torch.equal(expected, torch.get_rng_state())


# ---------------------------------------------------------------------------------------------------------------- save


def saved(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Epoch and step of the checkpoint that each label points at."""
    labels = [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.isupper()]
    snapshots = {label: read(find(run_dir, label)) for label in labels}
    return {label: (snapshot.epoch, snapshot.step) for label, snapshot in sorted(snapshots.items())}


def test_a_save_inside_an_epoch_is_written_after_the_step(tmp_path: Path) -> None:
    recorder = Recorder(["on_batch_end", "on_checkpoint"])
    save = plugin(on_gradients=lambda trainer: trainer.save() if trainer.step == 1 else None)
    trainer = tiny_trainer([save, recorder], run_dir=tmp_path)
    trainer.fit(tiny_data(6), batch_size=2)
    assert recorder.names == ["on_batch_end", "on_batch_end", "on_checkpoint", "on_batch_end"]
    assert saved(tmp_path) == {"LAST": (0, 2)}


def test_a_save_in_on_epoch_end_is_written_right_after_it(tmp_path: Path) -> None:
    recorder = Recorder(["on_epoch_start", "on_epoch_end", "on_checkpoint", "on_fit_end"])
    save = plugin(on_epoch_end=lambda trainer: trainer.save())
    tiny_trainer([save, recorder], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert recorder.names == ["on_epoch_start", "on_epoch_end", "on_checkpoint"] * 2 + ["on_fit_end"]
    assert saved(tmp_path) == {"LAST": (2, 2)}


def test_a_save_in_on_fit_start_holds_the_untrained_model(tmp_path: Path) -> None:
    trainer = tiny_trainer([plugin(on_fit_start=lambda trainer: trainer.save("first"))], run_dir=tmp_path)
    trainer.fit(tiny_data())
    assert saved(tmp_path) == {"FIRST": (0, 0)}
    assert torch.equal(read(find(tmp_path, "first")).model["weight"], torch.zeros(1, 3))


def test_one_commit_carries_all_labels_that_were_asked_for(tmp_path: Path) -> None:
    recorder = Recorder(["on_checkpoint"])

    def ask(trainer: Trainer) -> None:
        trainer.save("best")
        trainer.save()
        trainer.save(["last", "other"])

    tiny_trainer([plugin(on_epoch_end=ask), recorder], run_dir=tmp_path).fit(tiny_data())
    assert len(recorder.calls) == 1
    assert saved(tmp_path) == {"BEST": (1, 1), "LAST": (1, 1), "OTHER": (1, 1)}
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1


def test_a_save_and_a_stop_at_one_boundary_are_both_honoured(tmp_path: Path) -> None:
    def ask(trainer: Trainer) -> None:
        trainer.stop("and saved")
        trainer.save()

    result = tiny_trainer([plugin(on_batch_end=ask)], run_dir=tmp_path).fit(tiny_data(4), batch_size=2)
    assert (result.stop_reason, saved(tmp_path)) == ("and saved", {"LAST": (0, 1)})


def test_on_checkpoint_is_called_when_the_checkpoint_can_be_read(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Reads:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.save("best")

        def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
            seen.append((read(path).step, path == find(tmp_path, "best")))

    tiny_trainer([Reads()], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert seen == [(1, True), (2, True)]


def test_outside_of_the_loop_a_save_is_written_at_once(tmp_path: Path) -> None:
    trainer = tiny_trainer(run_dir=tmp_path)
    trainer.save("before")
    assert saved(tmp_path) == {"BEFORE": (0, 0)}
    trainer.fit(tiny_data(), epochs=2)
    trainer.save("after")
    assert saved(tmp_path) == {"AFTER": (2, 2), "BEFORE": (0, 0)}


@pytest.mark.parametrize("hook", ["on_fit_end", "on_exception", "on_teardown"])
def test_a_save_at_the_end_is_written_at_once(tmp_path: Path, hook: str) -> None:
    def fails(trainer: Trainer) -> None:
        if hook == "on_exception":
            raise RuntimeError("broken")

    plugins = [plugin("a", **{hook: lambda trainer: trainer.save()}), plugin("b", on_epoch_end=fails)]
    trainer = tiny_trainer(plugins, run_dir=tmp_path)
    if hook == "on_exception":
        with pytest.raises(RuntimeError, match="broken"):
            trainer.fit(tiny_data())
    else:
        trainer.fit(tiny_data())
    assert saved(tmp_path) == {"LAST": (1, 1)}


def test_a_save_that_was_not_honoured_before_an_error_is_not_written_later(tmp_path: Path) -> None:
    def fails(trainer: Trainer) -> None:
        if trainer.epoch == 0 and trainer.step == 0:
            trainer.save()
            raise RuntimeError("broken")

    trainer = tiny_trainer([plugin(on_batch_start=fails)], run_dir=tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(tiny_data())
    assert not (tmp_path / "checkpoints").exists()


def test_a_save_without_a_run_directory_is_an_error_that_says_what_to_give() -> None:
    with pytest.raises(UsageError, match="give the Trainer a run_dir"):
        tiny_trainer().save()
    with pytest.raises(UsageError, match="give the Trainer a run_dir") as caught:
        tiny_trainer([plugin("saver", on_epoch_end=lambda trainer: trainer.save())]).fit(tiny_data())
    assert "plugin 'saver', hook on_epoch_end" in caught.value.__notes__[0]


@pytest.mark.parametrize("label", ["", "Best", "a b", "../x", "best.1", "1st", "größe", "CON"])
def test_a_label_that_is_no_word_in_small_letters_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(UsageError, match="a label of a checkpoint"):
        tiny_trainer(run_dir=tmp_path).save(label)
    assert list(tmp_path.iterdir()) == []


def test_no_label_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label"):
        tiny_trainer(run_dir=tmp_path).save([])


def test_a_snapshot_is_a_copy(tmp_path: Path, oracle: Any) -> None:
    class Remembers:
        def __init__(self) -> None:
            self.seen = [torch.zeros(2)]

        def on_epoch_end(self) -> None:
            self.seen[0] += 1

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise AssertionError

    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    trainer = Trainer(model, F.mse_loss, optimizer, [Remembers()], "cpu", tmp_path)
    trainer.fit(tiny_data(), epochs=2)
    snapshot = trainer.snapshot()
    kept = json.dumps([snapshot.model, snapshot.optimizer, snapshot.plugins], default=lambda tensor: tensor.tolist())
    trainer.fit(tiny_data(), epochs=5)
    now = json.dumps([snapshot.model, snapshot.optimizer, snapshot.plugins], default=lambda tensor: tensor.tolist())
    assert kept == now
    assert (snapshot.epoch, snapshot.step) == (2, 2)
    trainer.save("old", snapshot)
    assert saved(tmp_path) == {"OLD": (2, 2)}
    assert torch.equal(read(find(tmp_path, "old")).model["weight"], snapshot.model["weight"])


def test_a_snapshot_given_to_save_is_written_at_once_during_a_fit(tmp_path: Path) -> None:
    seen: list[Any] = []

    def save(trainer: Trainer) -> None:
        if trainer.step == 1:
            trainer.save("now", trainer.snapshot())
            seen.append(saved(tmp_path))

    tiny_trainer([plugin(on_batch_end=save)], run_dir=tmp_path).fit(tiny_data(4), batch_size=2)
    assert seen == [{"NOW": (0, 1)}]


def test_a_checkpoint_holds_the_state_of_each_plugin_under_its_name(tmp_path: Path) -> None:
    class Counts:
        def __init__(self, name: str, value: Any) -> None:
            self.name, self.value = name, value

        def on_fit_start(self) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    trainer = tiny_trainer([Counts("a", 1), Counts("b", (torch.ones(2), {3: None}))], run_dir=tmp_path)
    trainer.save()
    states = read(find(tmp_path, "last")).plugins
    assert states["a"] == {"value": 1}
    assert states["b"]["value"][1] == {3: None}
    assert torch.equal(states["b"]["value"][0], torch.ones(2))


def test_what_prepare_model_wraps_is_not_what_is_saved(tmp_path: Path) -> None:
    class Outer:
        @hookimpl(wrapper=True)
        def prepare_model(self) -> Any:
            return nn.Sequential((yield))

    trainer = tiny_trainer([Outer()], run_dir=tmp_path)
    trainer.fit(tiny_data())
    trainer.save()
    assert sorted(read(find(tmp_path, "last")).model) == ["bias", "weight"]


def test_a_state_that_cannot_be_stored_names_the_plugin_s_value(tmp_path: Path) -> None:
    class Bad:
        name = "bad"

        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.save()

        def state_dict(self) -> dict[str, Any]:
            return {"thing": object()}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    with pytest.raises(CheckpointError, match=r"plugins\.bad\.thing is of type object"):
        tiny_trainer([Bad()], run_dir=tmp_path).fit(tiny_data())


# ---------------------------------------------------------------------------------------------------------- exceptions


class Mine(Exception):
    """An exception whose constructor cannot be called again with its text."""

    def __init__(self, number: int, *, word: str) -> None:
        super().__init__(f"{word} {number}")
        self.number = number


EARLY = ("make_loader", "on_fit_start", "on_checkpoint")  # called in the first epoch only


def throws(hook: str, error: BaseException) -> Any:
    """A plugin called bad that raises in a hook, in the second epoch where that comes."""

    def throw(trainer: Trainer) -> Any:
        if trainer.epoch > 0 or hook in EARLY:
            raise error
        return NotImplemented

    return plugin("bad", **{hook: throw})


@pytest.mark.parametrize("hook", [name for name, hook in HOOKS.items() if not hook.isolated and hook.kind != "wrap"])
@pytest.mark.parametrize(
    "make", [lambda: Mine(3, word="no"), KeyboardInterrupt, lambda: SystemExit(4), StopIteration, ValueError]
)
def test_an_error_in_a_hook_keeps_its_type_and_says_where_it_was(
    hook: str, make: Callable[[], BaseException], tmp_path: Path
) -> None:
    error = make()
    saver = plugin("saver", on_fit_start=lambda trainer: trainer.save())
    recorder = Recorder(["on_exception", "on_teardown"])
    trainer = tiny_trainer([throws(hook, error), saver, recorder], run_dir=tmp_path)
    with pytest.raises(type(error)) as caught:
        trainer.fit(tiny_data(4), tiny_data(2), epochs=2, batch_size=2)
    assert caught.value is error
    assert error.__notes__ == [f"plugin 'bad', hook {hook}, epoch {trainer.epoch}, step {trainer.step}"]
    assert recorder.names == ["on_exception", "on_teardown"]
    assert recorder.calls[0].arguments == {"exception": error}


def test_an_error_in_a_wrap_keeps_its_type_and_says_where_it_was() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def on_batch_end(self) -> Any:
            yield
            raise Mine(7, word="late")

    with pytest.raises(Mine) as caught:
        tiny_trainer([Wraps()]).fit(tiny_data(), batch_size=2)
    assert caught.value.number == 7
    assert caught.value.__notes__ == ["plugin 'wraps', hook on_batch_end, epoch 0, step 1"]


def test_a_wrap_is_not_blamed_for_an_error_inside_it() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def on_batch_end(self) -> Any:
            try:
                yield
            finally:
                pass

    plugins = [Wraps(), plugin("inside", on_batch_end=raising("x", y=Mine(1, word="inside")).y)]
    with pytest.raises(Mine) as caught:
        tiny_trainer(plugins).fit(tiny_data())
    assert caught.value.__notes__ == ["plugin 'inside', hook on_batch_end, epoch 0, step 1"]


def test_a_wrap_that_raises_another_error_in_place_of_the_inner_one_is_blamed() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def forward(self) -> Any:
            try:
                return (yield)
            except RuntimeError as error:
                raise Mine(2, word="mine") from error

    with pytest.raises(Mine) as caught:
        tiny_trainer([Wraps()]).fit((torch.ones(2, 4), torch.ones(2, 1)))
    assert caught.value.__notes__ == ["plugin 'wraps', hook forward, epoch 0, step 0"]


def test_an_error_in_prepare_model_keeps_its_type_and_says_where_it_was() -> None:
    class Wraps:
        @hookimpl(wrapper=True)
        def prepare_model(self) -> Any:
            yield
            raise Mine(7, word="late")

    with pytest.raises(Mine) as caught:
        tiny_trainer([Wraps()]).fit(tiny_data())
    assert caught.value.__notes__ == ["plugin 'wraps', hook prepare_model, epoch 0, step 0"]


def test_of_two_plugins_of_one_class_the_one_that_failed_is_named() -> None:
    class Fails:
        def __init__(self, name: str, fails: bool) -> None:
            self.name, self.fails = name, fails

        def on_batch_end(self) -> None:
            if self.fails:
                raise ValueError("this one")

    with pytest.raises(ValueError, match="this one") as caught:
        tiny_trainer([Fails("first", False), Fails("second", True), Fails("third", True)]).fit(tiny_data())
    assert caught.value.__notes__ == ["plugin 'second', hook on_batch_end, epoch 0, step 1"]


def test_an_error_in_the_user_s_model_keeps_its_type_and_says_which_batch_was_at_work() -> None:
    trainer = tiny_trainer()
    broken = Mine(1, word="model")

    def forward(x: torch.Tensor) -> torch.Tensor:
        raise broken

    trainer.model.forward = forward
    with pytest.raises(Mine) as caught:
        trainer.fit(tiny_data(4), batch_size=3, shuffle=False)
    assert caught.value is broken
    assert broken.__notes__ == ["epoch 0, step 0, batch: x (3, 3) float32 on cpu, y (3, 1) float32 on cpu"]


def test_an_error_of_the_user_s_own_about_batch_size_is_not_explained_away() -> None:
    trainer = tiny_trainer()

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        raise ValueError("my loss wants batch_size 4")

    trainer.loss = loss
    with pytest.raises(ValueError, match="my loss wants batch_size 4") as caught:
        trainer.fit(tiny_data())
    assert not isinstance(caught.value, UsageError)


def test_an_error_before_the_start_reaches_plugins_that_never_started() -> None:
    recorder = Recorder()
    with pytest.raises(DataError):
        tiny_trainer([recorder]).fit((torch.ones(2, 3), torch.ones(3, 1)))
    assert recorder.names == ["on_exception", "on_teardown"]


def test_an_error_in_on_fit_start_reaches_the_plugins_behind_it() -> None:
    def fails() -> None:
        raise RuntimeError("first")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="first"):
        tiny_trainer([plugin(on_fit_start=fails), recorder]).fit(tiny_data())
    assert recorder.names == ["on_exception", "on_teardown"]


def test_an_error_in_on_fit_end_is_a_failure_of_the_fit() -> None:
    def fails() -> None:
        raise RuntimeError("at the end")

    recorder = Recorder(["on_fit_end", "on_exception", "on_teardown"])
    with pytest.raises(RuntimeError, match="at the end"):
        tiny_trainer([plugin(on_fit_end=fails), recorder]).fit(tiny_data())
    assert recorder.names == ["on_exception", "on_teardown"]


def raising(name: str, **errors: BaseException) -> Any:
    """A plugin that raises these errors in the hooks of their names."""

    def thrower(error: BaseException) -> Callable[[], None]:
        def throw() -> None:
            raise error

        return throw

    return plugin(name, **{hook: thrower(error) for hook, error in errors.items()})


@pytest.mark.parametrize("first", [RuntimeError("first"), KeyboardInterrupt(), SystemExit(3)])
def test_later_errors_become_notes_on_the_first_and_stop_nobody(first: BaseException) -> None:
    first = type(first)(*first.args)
    recorder = Recorder(["on_exception", "on_teardown"])
    plugins = [
        raising("a", on_batch_end=first, on_exception=ValueError("second"), on_teardown=KeyboardInterrupt("third")),
        raising("b", on_exception=SystemExit("fourth"), on_teardown=OSError("fifth")),
        recorder,
    ]
    with pytest.raises(type(first)) as caught:
        tiny_trainer(plugins).fit(tiny_data())
    assert caught.value is first
    assert first.__notes__ == [
        "plugin 'a', hook on_batch_end, epoch 0, step 1",
        "plugin 'a', hook on_exception then raised ValueError: second",
        "plugin 'b', hook on_exception then raised SystemExit: fourth",
        "plugin 'a', hook on_teardown then raised KeyboardInterrupt: third",
        "plugin 'b', hook on_teardown then raised OSError: fifth",
    ]
    assert recorder.names == ["on_exception", "on_teardown"]


def test_an_error_in_on_teardown_alone_is_raised_and_stops_nobody() -> None:
    recorder = Recorder(["on_exception", "on_teardown"])
    plugins = [raising("a", on_teardown=OSError("disk")), raising("b", on_teardown=ValueError("more")), recorder]
    with pytest.raises(OSError, match="disk") as caught:
        tiny_trainer(plugins).fit(tiny_data())
    assert caught.value.__notes__ == [
        "plugin 'a', hook on_teardown",
        "plugin 'b', hook on_teardown then raised ValueError: more",
    ]
    assert recorder.names == ["on_teardown"]


def test_ctrl_c_between_batches_reaches_on_exception_and_on_teardown() -> None:
    class Interrupted(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            if index == 3:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    recorder = Recorder(["on_batch_end", "on_split_end", "on_exception", "on_teardown"])
    trainer = tiny_trainer([recorder])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Interrupted(*tiny_data(6)), batch_size=1, shuffle=False)
    assert recorder.names == ["on_batch_end"] * 3 + ["on_exception", "on_teardown"]
    assert trainer.step == 3


def test_gradients_and_grad_mode_are_usable_after_an_error_in_validation() -> None:
    with pytest.raises(RuntimeError, match="val"):
        tiny_trainer([plugin(on_batch_end=hookimpl(split="val")(raising("x", y=RuntimeError("val")).y))]).fit(
            tiny_data(), tiny_data()
        )
    assert torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------------ evaluate and predict


def mixed_modes() -> nn.Sequential:
    """A model with parts that are in different modes, that draw, and that keep statistics."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model.train()
    model[1].eval()
    return model


def trainer_of(model: nn.Module, plugins: Any = (), **options: Any) -> Trainer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    return Trainer(model, F.mse_loss, optimizer, plugins, "cpu", **options)


COUNTERS = ("epoch", "epochs", "step", "samples", "weight", "boundary", "stepped", "accumulate", "loaders", "history")


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_evaluate_leaves_everything_as_found(oracle: Any, batch_size: int | None, fitted: bool) -> None:
    class Draws(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            import random

            import numpy

            random.random()
            numpy.random.rand()
            torch.rand(3)
            return super().__getitem__(index)

    model = mixed_modes()
    trainer = trainer_of(model)
    if fitted:
        trainer.fit(tiny_data(6), tiny_data(3), epochs=2, batch_size=4)
        model[0].train()
    before = {name: getattr(trainer, name) for name in COUNTERS}
    state = oracle.state(model, trainer.optimizer)
    state = {**state, "model": {name: value.clone() for name, value in state["model"].items()}}
    figures = trainer.evaluate(Draws(*tiny_data(5)), batch_size=batch_size)
    oracle.assert_same(state, oracle.state(model, trainer.optimizer))
    assert {name: getattr(trainer, name) for name in COUNTERS} == before
    assert list(figures) == ["test_loss"]


def test_evaluate_is_the_mean_over_samples_in_eval_mode(oracle: Any) -> None:
    model = mixed_modes()
    x, y = tiny_data(7)
    got = trainer_of(model).evaluate((x, y), batch_size=3)
    model.eval()
    with torch.no_grad():
        losses = [F.mse_loss(model(x[i : i + 3]), y[i : i + 3]).item() * len(x[i : i + 3]) for i in (0, 3, 6)]
    assert got == {"test_loss": sum(losses) / 7}


def test_evaluate_takes_what_fit_takes() -> None:
    trainer = tiny_trainer()
    x, y = tiny_data(4)
    whole = trainer.evaluate((x, y))
    assert trainer.evaluate(TensorDataset(x, y)) == whole
    assert trainer.evaluate(DataLoader(TensorDataset(x, y), batch_size=4)) == whole


def test_evaluate_calls_the_hooks_of_the_split_test_and_no_others() -> None:
    recorder = Recorder(makes=True)
    tiny_trainer([recorder]).evaluate(tiny_data(3), batch_size=2)
    batch = ["on_batch_start", "forward", "compute_loss", "on_batch_end"]
    assert recorder.names == ["make_loader", "on_split_start", *batch, *batch, "reduce", "on_split_end"]
    assert {call.arguments["split"] for call in recorder.calls if "split" in call.arguments} == {"test"}


def test_evaluate_leaves_the_modes_as_found_after_an_error(oracle: Any) -> None:
    model = mixed_modes()
    trainer = trainer_of(model)
    state = oracle.state(model, trainer.optimizer)
    with pytest.raises(DataError):
        trainer.evaluate((torch.ones(2, 5), torch.ones(2, 1)))
    oracle.assert_same(state, oracle.state(model, trainer.optimizer))
    assert torch.is_grad_enabled()


def test_evaluate_of_nothing_is_a_mistake_that_names_the_split() -> None:
    with pytest.raises(DataError, match="test: the data set is empty"):
        tiny_trainer().evaluate((torch.ones(0, 3), torch.ones(0, 1)))


def test_evaluate_beside_a_data_loader_needs_no_batch_size() -> None:
    loader = DataLoader(TensorDataset(*tiny_data()), batch_size=2)
    with pytest.raises(UsageError, match=r"DataLoader.*leave out batch_size=2"):
        tiny_trainer().evaluate(loader, batch_size=2)


def test_evaluate_and_predict_leave_the_user_s_own_generator_as_found() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*tiny_data()), batch_size=2, shuffle=True, generator=generator)
    before = generator.get_state()
    tiny_trainer().evaluate(loader)
    assert torch.equal(before, generator.get_state())


def test_evaluate_and_predict_within_a_fit_leave_its_counters_and_modes(oracle: Any) -> None:
    seen: list[Any] = []

    def look(trainer: Trainer) -> None:
        before = {name: getattr(trainer, name) for name in COUNTERS}
        modes = [module.training for module in trainer.model.modules()]
        trainer.evaluate(tiny_data(3), batch_size=2)
        trainer.predict(tiny_data(3)[0])
        seen.append(before == {name: getattr(trainer, name) for name in COUNTERS})
        seen.append(modes == [module.training for module in trainer.model.modules()])
        seen.append(torch.is_grad_enabled())

    def look_in_training(trainer: Trainer, split: str) -> None:
        if split == "train":
            look(trainer)

    plugins = [plugin(on_fit_start=look, on_batch_start=look_in_training, on_gradients=look, on_epoch_end=look)]
    trainer_of(mixed_modes(), plugins).fit(tiny_data(6), tiny_data(2), epochs=2, batch_size=4, accumulate=2)
    assert set(seen) == {True}


def test_predict_calls_only_forward_with_the_batch_inputs_and_none() -> None:
    recorder = Recorder(makes=True)
    seen: list[Any] = []

    class Wraps:
        @hookimpl(wrapper=True)
        def forward(self, trainer: Trainer, model: nn.Module, split: str, batch: Any) -> Any:
            seen.append((split, type(batch), batch[0].shape, batch[1], model.training, torch.is_grad_enabled()))
            return (yield)

    tiny_trainer([recorder, Wraps()]).predict(tiny_data(3)[0], batch_size=2)
    assert recorder.names == ["forward", "forward"]
    assert seen == [
        ("predict", tuple, torch.Size([2, 3]), None, False, False),
        ("predict", tuple, torch.Size([1, 3]), None, False, False),
    ]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 5, 100])
def test_predict_gives_the_same_rows_whatever_the_batch_size(batch_size: int | None, oracle: Any) -> None:
    model = mixed_modes()
    trainer = trainer_of(model)
    x = tiny_data(5)[0]
    state = oracle.state(model, trainer.optimizer)
    got = trainer.predict(x, batch_size=batch_size)
    oracle.assert_same(state, oracle.state(model, trainer.optimizer))
    model.eval()
    assert got.shape == (5, 1)
    assert not got.requires_grad
    torch.testing.assert_close(got, model(x).detach())


def test_predict_leaves_the_inputs_as_they_were() -> None:
    x = tiny_data(5)[0]
    kept = x.clone()
    tiny_trainer().predict(x)
    assert torch.equal(kept, x)


Pair = namedtuple("Pair", "y hidden")


class Nested(nn.Module):
    """Takes a dict of a tensor and a list, and gives a nest of dict, list, tuple and named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        y = self.layer(x["a"] + x["rest"][0])
        return {"y": y, "list": [y * 2, (y * 3,)], "named": Pair(y * 4, y * 5), "aux": None}


@pytest.mark.parametrize("batch_size", [None, 2])
def test_predict_takes_and_gives_nests(batch_size: int | None) -> None:
    trainer = trainer_of(Nested())
    x = tiny_data(5)[0]
    got = trainer.predict({"a": x, "rest": [x + 1]}, batch_size=batch_size)
    y = got["y"]
    torch.testing.assert_close(y, trainer.model.layer(2 * x + 1).detach())
    assert list(got) == ["y", "list", "named", "aux"]
    torch.testing.assert_close(got["list"], [y * 2, (y * 3,)])
    assert isinstance(got["named"], Pair)
    torch.testing.assert_close(tuple(got["named"]), (y * 4, y * 5))
    assert got["aux"] is None


def test_predict_cuts_only_what_has_samples() -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Any) -> Any:
            return self.layer(x["a"]) * x["scale"]

    trainer = trainer_of(Scales())
    inputs = {"a": tiny_data(5)[0], "scale": torch.tensor(2.0)}
    torch.testing.assert_close(trainer.predict(inputs, batch_size=2), trainer.predict(inputs))


def test_predict_of_no_rows_gives_no_rows() -> None:
    assert tiny_trainer().predict(torch.ones(0, 3)).shape == (0, 1)
    assert tiny_trainer().predict(torch.ones(0, 3), batch_size=2).shape == (0, 1)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([[1.0, 2.0, 3.0]], "inputs must be a tensor"),
        (None, "inputs must be a tensor.*NoneType"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)}, r"inputs\['a'\] \(2, 3\), inputs\['b'\] \(3, 3\)"),
        (torch.tensor(1.0), r"samples in dimension 0; got inputs \(\)"),
        (torch.ones(2, 4), r"Linear\(3, 1\): it takes 3 numbers a sample, and was given shape \(2, 4\)"),
        (torch.ones(2, 3, dtype=torch.float64), r"x is float64, .*float32: use x.float\(\)"),
    ],
)
def test_wrong_inputs_of_predict_are_named(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny_trainer().predict(inputs)


def test_inputs_on_a_device_from_which_they_cannot_be_moved_are_named() -> None:
    with pytest.raises(DeviceError, match=r"the model \(parameter 'weight'\) is on cpu and x is on meta"):
        tiny_trainer().predict(torch.ones(2, 3, device="meta"))


def test_predict_before_and_after_a_fit_uses_the_weights_of_the_moment() -> None:
    trainer = tiny_trainer()
    x = tiny_data()[0]
    assert torch.equal(trainer.predict(x), torch.zeros(5, 1))
    trainer.fit(tiny_data(), epochs=3)
    torch.testing.assert_close(trainer.predict(x), trainer.model(x).detach())


# ------------------------------------------------------------------------------------------------------------ the rest


def test_a_trainer_takes_names_of_plugins_and_tells_them_in_order() -> None:
    recorder = Recorder()
    trainer = tiny_trainer(["history", recorder])
    assert list(trainer.plugins) == ["history", "recorder"]
    assert trainer.plugins["recorder"] is recorder


def test_all_findings_about_plugins_are_told_at_once() -> None:
    with pytest.raises(PluginError) as caught:
        tiny_trainer(
            ["nosuch", plugin("a", on_epoch_ended=lambda: None), plugin("b", on_fit_start=lambda trainr: None)]
        )
    for part in ("nosuch", "on_epoch_end", "trainr", "Did you mean 'trainer'"):
        assert part in str(caught.value)


def test_a_snapshot_can_be_built_by_hand() -> None:
    snapshot = Snapshot(epoch=1, step=2, model={}, optimizer={})
    assert snapshot.plugins == {}


def test_what_is_asked_for_later_is_done_at_the_next_boundary_when_every_plugin_has_been_told() -> None:
    calls: list[str] = []

    class Asks:
        def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
            trainer.later(lambda: calls.append(f"later {epoch} at epoch {trainer.epoch}"))

        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 2:
                trainer.later(lambda: calls.append("after the step"))

        def on_epoch_start(self, epoch: int) -> None:
            calls.append(f"start {epoch}")

    class Told:
        def on_epoch_end(self, epoch: int) -> None:
            calls.append(f"told {epoch}")

    tiny_trainer([Asks(), Told()]).fit(tiny_data(), epochs=2)

    assert calls == [
        "start 0", "told 0", "later 0 at epoch 1", "start 1", "after the step", "told 1", "later 1 at epoch 2"
    ]  # fmt: skip


def test_an_error_in_what_was_asked_for_later_ends_the_fit_and_the_next_fit_forgets_it() -> None:
    class Asks:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.later(self._fail)
            trainer.later(self._fail)

        def _fail(self) -> None:
            raise RuntimeError("later")

    trainer = tiny_trainer([Asks()])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="later"):
            trainer.fit(tiny_data(), epochs=2)
        assert trainer.epoch == 1
