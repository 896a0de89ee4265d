"""What plugin authors test with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from framework import PluginError, Trainer
from framework.hooks import HOOKS
from framework.testing import Call, Recorder, kind, tiny_data, tiny_trainer


def test_tiny_data_is_the_same_each_time_and_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    x, y = tiny_data(4)
    assert (x.shape, y.shape) == ((4, 3), (4, 1))
    assert torch.equal(y, x.sum(1, keepdim=True))
    assert torch.equal(x, tiny_data(4)[0])
    assert not torch.equal(x, tiny_data(4, seed=1)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_a_tiny_trainer_draws_nothing_and_starts_from_zero() -> None:
    before = torch.get_rng_state()
    trainer = tiny_trainer(lr=0.25)
    assert torch.equal(before, torch.get_rng_state())
    assert all(not parameter.any() for parameter in trainer.model.parameters())
    assert (trainer.device, trainer.optimizer.param_groups[0]["lr"]) == (torch.device("cpu"), 0.25)


def test_a_tiny_trainer_takes_what_a_trainer_takes(tmp_path: Path) -> None:
    trainer = tiny_trainer(["history"], run_dir=tmp_path, on_nonfinite="continue")
    assert (list(trainer.plugins), trainer.run_dir, trainer.on_nonfinite) == (["history"], tmp_path, "continue")


def test_a_tiny_trainer_learns() -> None:
    history = tiny_trainer().fit(tiny_data(20), epochs=50, batch_size=5).history
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 100


def tells() -> set[str]:
    return {name for name, hook in HOOKS.items() if hook.kind == "tell"}


def test_a_recorder_implements_every_tell() -> None:
    trainer = tiny_trainer([Recorder()])
    assert {impl.hook.name for impl in trainer.plugins.impls} == tells()


def test_a_recorder_of_makes_implements_all_but_prepare_model() -> None:
    trainer = tiny_trainer([Recorder(makes=True)])
    assert {impl.hook.name for impl in trainer.plugins.impls} == set(HOOKS) - {"prepare_model"}


def test_a_recorder_of_some_hooks_implements_only_those() -> None:
    recorder = Recorder(["on_fit_end", "forward"])
    tiny_trainer([recorder]).fit(tiny_data(), epochs=2)
    assert recorder.names == ["forward", "forward", "on_fit_end"]


def test_two_recorders_need_two_names() -> None:
    with pytest.raises(PluginError, match="2 plugins are called 'recorder'"):
        tiny_trainer([Recorder(), Recorder()])
    assert list(tiny_trainer([Recorder(), Recorder(name="other")]).plugins) == ["recorder", "other"]


def test_two_recorders_remember_each_its_own_calls() -> None:
    a, b = Recorder(["on_fit_start"], name="a"), Recorder(["on_fit_end"], name="b")
    tiny_trainer([a, b]).fit(tiny_data())
    assert (a.names, b.names) == (["on_fit_start"], ["on_fit_end"])


def test_a_call_holds_the_arguments_without_the_trainer() -> None:
    recorder = Recorder(["on_epoch_start", "on_split_start"])
    tiny_trainer([recorder]).fit(tiny_data(), epochs=2)
    assert recorder.calls == [
        Call("on_epoch_start", {"epoch": 0}),
        Call("on_split_start", {"split": "train"}),
        Call("on_epoch_start", {"epoch": 1}),
        Call("on_split_start", {"split": "train"}),
    ]
    assert [str(call) for call in recorder.calls[:2]] == [
        "on_epoch_start(epoch: int)",
        "on_split_start(split: 'train')",
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("train", "'train'"), (3, "int"), (None, "NoneType"), (torch.ones(1), "Tensor"), ((), "()"),
        ((torch.ones(1), [1, "a"]), "(Tensor, (int, 'a'))"), ({"a": 1}, "dict"), (Path("x"), "Path"),
    ],
)  # fmt: skip
def test_the_kind_of_an_argument_does_not_change_from_run_to_run(value: Any, said: str) -> None:
    assert kind(value) == said


def test_an_order_that_holds_is_held() -> None:
    recorder = Recorder()
    tiny_trainer([recorder]).fit(tiny_data(), epochs=2)
    recorder.assert_order("on_fit_start", "on_epoch_start", "on_epoch_end", "on_epoch_start", "on_fit_end")
    recorder.assert_order()
    recorder.assert_order("on_teardown")


@pytest.mark.parametrize(
    "names",
    [
        ("on_epoch_end", "on_epoch_start"),
        ("on_fit_start", "on_fit_start"),
        ("on_checkpoint",),
        ("on_fit_end", "on_fit_start"),
        ("on_fit_startt",),
    ],
)
def test_an_order_that_does_not_hold_is_told_with_what_was_called(names: tuple[str, ...]) -> None:
    recorder = Recorder()
    tiny_trainer([recorder]).fit(tiny_data())
    with pytest.raises(AssertionError, match=r"is not called in the order .*called were \['on_fit_start', "):
        recorder.assert_order(*names)


def test_a_recorder_wraps_nothing_and_changes_no_figure() -> None:
    def history(plugins: list[Any]) -> list[dict[str, Any]]:
        trainer: Trainer = tiny_trainer(plugins)
        return trainer.fit(tiny_data(), tiny_data(3), epochs=3).history

    assert history([Recorder(makes=True)]) == history([])
