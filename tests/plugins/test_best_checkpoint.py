from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins import best_checkpoint
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.early_stopping import EarlyStopping

from framework import CheckpointError, Snapshot, UsageError
from framework.checkpoint import find, read
from framework.testing import Recorder, tiny_data, tiny_trainer


def labelled(run_dir: Path, label: str) -> Snapshot:
    path = find(run_dir, label)
    assert path is not None
    return read(path)


def epochs_of(run_dir: Path, *labels: str) -> list[int]:
    """How many epochs the checkpoints with these labels had seen."""
    return [labelled(run_dir, label).epoch for label in labels]


def on_disk(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))


class Writes:
    """The epochs that were complete at each write; a write takes `seconds` of the clock."""

    def __init__(self, clock: Any = None, seconds: float = 0.0) -> None:
        self.clock, self.seconds, self.epochs = clock, seconds, []

    def on_checkpoint(self, trainer: Any) -> None:
        self.epochs.append(trainer.epoch)
        if self.clock:
            self.clock.now += self.seconds


def test_the_best_is_the_copy_from_its_epoch_although_training_went_on(
    tmp_path: Path, scripted: Any, weights: Any
) -> None:
    seen = weights()
    trainer = tiny_trainer([scripted([3, 1, 2, 2]), seen, BestCheckpoint("score_loss")], run_dir=tmp_path)
    trainer.fit(tiny_data(), epochs=4)
    assert epochs_of(tmp_path, "best", "last") == [2, 4]
    best, last = (labelled(tmp_path, label).model for label in ("best", "last"))
    assert torch.equal(best["weight"], seen.by_epoch[1]["weight"])
    assert torch.equal(last["weight"], seen.by_epoch[3]["weight"])
    assert torch.equal(last["weight"], trainer.model.weight)


@pytest.mark.parametrize("mode", ["max", "min", "auto"])
def test_mode_says_which_epoch_is_the_best(mode: str, tmp_path: Path, scripted: Any) -> None:
    plugins = [scripted([0.2, 0.9, 0.1, 0.5], "a_accuracy"), BestCheckpoint("a_accuracy", mode=mode)]
    tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), epochs=4)
    assert epochs_of(tmp_path, "best") == [3 if mode == "min" else 2]


def test_the_best_is_by_the_validation_loss_where_there_is_one(tmp_path: Path) -> None:
    trainer = tiny_trainer([BestCheckpoint()], run_dir=tmp_path)
    with_val = trainer.fit(tiny_data(), tiny_data(seed=1), epochs=2)
    assert with_val.best["monitor"] == "val_loss"
    assert with_val.best["value"] == min(row["val_loss"] for row in with_val.history)
    assert trainer.fit(tiny_data(), epochs=2).best["monitor"] == "train_loss"


def test_one_checkpoint_has_both_labels_where_the_best_is_the_last(tmp_path: Path, scripted: Any) -> None:
    writes = Writes()
    trainer = tiny_trainer([scripted([3, 2, 1]), BestCheckpoint("score_loss"), writes], run_dir=tmp_path)
    trainer.fit(tiny_data(), epochs=3)
    assert writes.epochs == [3]
    assert on_disk(tmp_path) == ["step-000000000003"]
    assert find(tmp_path, "best") == find(tmp_path, "last")


def test_a_toy_run_of_hundreds_of_epochs_writes_once(tmp_path: Path, clock: Any) -> None:
    fake, writes = clock(best_checkpoint), Writes()

    class Second:
        def on_epoch_end(self) -> None:
            fake.now += 0.9 / 300

    tiny_trainer(["best_checkpoint", writes, Second()], lr=0.01, run_dir=tmp_path).fit(tiny_data(), epochs=300)
    assert writes.epochs == [300]


def test_every_seconds_0_writes_each_epoch(tmp_path: Path, clock: Any) -> None:
    clock(best_checkpoint)
    writes = Writes()
    tiny_trainer([BestCheckpoint(every_seconds=0), writes], run_dir=tmp_path).fit(tiny_data(), epochs=5)
    assert writes.epochs == [1, 2, 3, 4, 5]


def test_writing_takes_at_most_a_twentieth_of_a_run(tmp_path: Path, clock: Any, scripted: Any) -> None:
    fake = clock(best_checkpoint)
    writes = Writes(fake, seconds=0.5)

    class Slow:
        def on_epoch_end(self) -> None:
            fake.now += 1.0

    plugins = [scripted([-e for e in range(25)]), Slow(), BestCheckpoint("score_loss"), writes]
    tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), epochs=25)
    assert writes.epochs == [1, 11, 21, 25]  # after a second, then 20 times half a second apart, and at the end


def test_best_and_last_are_written_at_a_stop_inside_an_epoch(tmp_path: Path, scripted: Any) -> None:
    class Stops:
        def on_batch_end(self, trainer: Any) -> None:
            if trainer.step == 8:
                trainer.stop("enough")

    plugins = [scripted([1, 2, 3, 4]), BestCheckpoint("score_loss"), Stops()]
    result = tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), epochs=4, batch_size=2)
    assert (result.epochs, result.steps) == (2, 8)
    assert on_disk(tmp_path) == ["step-000000000003", "step-000000000008"]


@pytest.mark.parametrize("error", [RuntimeError("the disk fell off"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_best_and_last_are_written_after_an_error(
    error: BaseException, tmp_path: Path, scripted: Any, fails: Any
) -> None:
    plugins = [scripted([1, 2, 3, 4]), BestCheckpoint("score_loss"), fails(epoch=2, batch=2, error=error)]
    with pytest.raises(type(error)):
        tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), epochs=4, batch_size=2)
    assert [labelled(tmp_path, label).step for label in ("best", "last")] == [3, 8]


def test_an_error_before_the_first_step_writes_nothing(tmp_path: Path, fails: Any) -> None:
    with pytest.raises(RuntimeError):
        tiny_trainer([BestCheckpoint(), fails(epoch=0)], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_that_cannot_be_written_is_one_error_that_names_the_directory(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError) as caught:
        tiny_trainer([BestCheckpoint(every_seconds=0)], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert caught.value.__notes__ == ["plugin 'best_checkpoint', hook on_epoch_end, epoch 1, step 1"]


def test_the_error_of_the_fit_is_kept_where_saving_fails_after_it(tmp_path: Path, fails: Any) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(RuntimeError, match="the disk fell off") as caught:
        tiny_trainer([BestCheckpoint(), fails(epoch=1)], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert f"cannot write a checkpoint into {tmp_path / 'checkpoints'}" in "".join(caught.value.__notes__)


def test_result_best_is_the_row_of_the_best_epoch_and_where_it_is(tmp_path: Path, scripted: Any) -> None:
    trainer = tiny_trainer([scripted([3, 1, 2]), BestCheckpoint("score_loss")], run_dir=tmp_path)
    result = trainer.fit(tiny_data(), epochs=3)
    path = tmp_path / "checkpoints" / "step-000000000002"
    assert result.best == {**result.history[1], "monitor": "score_loss", "value": 1, "path": path}
    assert find(tmp_path, "best") == path


def test_the_copy_holds_what_the_plugins_listed_later_remember_of_the_epoch(tmp_path: Path, scripted: Any) -> None:
    later = EarlyStopping("score_loss", patience=9)
    trainer = tiny_trainer([BestCheckpoint("score_loss"), scripted([3, 1, 2]), later], run_dir=tmp_path)
    trainer.fit(tiny_data(), epochs=3)
    states = [labelled(tmp_path, label).plugins for label in ("best", "last")]
    assert [(s["early_stopping"]["epoch"], s["early_stopping"]["waited"]) for s in states] == [(1, 0), (1, 1)]
    assert [(s["best_checkpoint"]["best"], s["best_checkpoint"]["waited"]) for s in states] == [(1, 0), (1, 1)]


@pytest.mark.parametrize("saved", [True, False], ids=["run_dir", "no run_dir"])
def test_restore_best_gives_the_best_weights_to_the_model_and_to_every_plugin_at_the_end(
    saved: bool, tmp_path: Path, scripted: Any, weights: Any
) -> None:
    class Looks:
        def on_fit_end(self, trainer: Any) -> None:
            self.weight = trainer.model.weight.detach().clone()

    looks, seen = Looks(), weights()
    plugins = [looks, scripted([3, 1, 2]), seen, BestCheckpoint("score_loss", restore_best=True, every_seconds=0)]
    trainer = tiny_trainer(plugins, run_dir=tmp_path if saved else None)
    trainer.fit(tiny_data(), epochs=3)
    assert torch.equal(trainer.model.weight, seen.by_epoch[1]["weight"])
    assert torch.equal(looks.weight, trainer.model.weight)
    if saved:
        last = labelled(tmp_path, "last").model
        assert torch.equal(last["weight"], seen.by_epoch[2]["weight"])  # the last is the last, whatever is restored


def test_without_a_run_dir_nothing_is_written_and_the_best_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripted: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tiny_trainer([scripted([3, 1, 2]), BestCheckpoint("score_loss", every_seconds=0)]).fit(
        tiny_data(), epochs=3
    )
    assert (result.best["epoch"], result.best["value"], result.best["path"]) == (1, 1, None)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_is_never_a_number_has_no_best(tmp_path: Path, scripted: Any) -> None:
    trainer = tiny_trainer([scripted([math.nan] * 2), BestCheckpoint("score_loss")], run_dir=tmp_path)
    assert trainer.fit(tiny_data(), epochs=2).best is None
    assert (find(tmp_path, "best"), epochs_of(tmp_path, "last")) == (None, [2])


def test_two_instances_keep_the_best_of_two_figures(tmp_path: Path, scripted: Any) -> None:
    plugins = [
        scripted([3, 1, 2, 2], "a_loss", "a"), scripted([0.1, 0.2, 0.9, 0.3], "b_accuracy", "b"),
        BestCheckpoint("a_loss"), BestCheckpoint("b_accuracy", name="best_accuracy"), writes := Writes(),
    ]  # fmt: skip
    trainer = tiny_trainer(plugins, run_dir=tmp_path)
    result = trainer.fit(tiny_data(), epochs=4)
    assert epochs_of(tmp_path, "best", "best_accuracy", "last") == [2, 3, 4]
    assert len(writes.epochs) == len(on_disk(tmp_path)) == 3
    assert (result.best["monitor"], result.best["epoch"]) == ("a_loss", 1)
    states = trainer.snapshot().plugins
    assert (states["best_checkpoint"]["best"], states["best_accuracy"]["best"]) == (1, 0.9)


def test_a_name_that_cannot_be_a_label_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="name='Best one' becomes a checkpoint's label"):
        BestCheckpoint(name="Best one")


def test_a_misspelt_monitor_is_refused_before_the_first_epoch(tmp_path: Path) -> None:
    recorder = Recorder(["on_epoch_start"])
    trainer = tiny_trainer([recorder, BestCheckpoint("train_los")], run_dir=tmp_path)
    with pytest.raises(UsageError, match=r"Did you mean 'train_loss'\?"):
        trainer.fit(tiny_data(), epochs=2)
    assert recorder.names == []
    assert not (tmp_path / "checkpoints").exists()


def test_a_second_fit_starts_anew(tmp_path: Path, scripted: Any) -> None:
    trainer = tiny_trainer([scripted([1, 2, 3]), BestCheckpoint("score_loss")], run_dir=tmp_path)
    assert trainer.fit(tiny_data(), epochs=3).best["epoch"] == 0
    trainer.plugins["scripted"].values = [9, 8, 8]
    assert trainer.fit(tiny_data(), epochs=3).best["value"] == 8
    assert epochs_of(tmp_path, "best", "last") == [2, 3]


def test_a_fit_after_one_that_failed_starts_anew(tmp_path: Path, fails: Any) -> None:
    failing = fails(epoch=1)
    trainer = tiny_trainer([BestCheckpoint(), failing], run_dir=tmp_path)
    with pytest.raises(RuntimeError):
        trainer.fit(tiny_data(), epochs=3)
    failing.armed = False
    trainer.fit(tiny_data(), epochs=3)
    assert epochs_of(tmp_path, "last") == [3]


def test_evaluate_outside_a_fit_writes_nothing(tmp_path: Path) -> None:
    trainer = tiny_trainer([BestCheckpoint(every_seconds=0)], run_dir=tmp_path)
    assert list(trainer.evaluate(tiny_data())) == ["test_loss"]
    assert list(tmp_path.iterdir()) == []


def test_it_changes_no_bit_of_training(trained: Any, tmp_path: Path) -> None:
    assert trained([BestCheckpoint(every_seconds=0)], tmp_path) == trained([])
