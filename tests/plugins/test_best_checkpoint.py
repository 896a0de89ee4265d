from __future__ import annotations

import math
import os
import shutil
import threading
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
    trainer.plugins["scripted"].values = [math.nan] * 3
    assert trainer.fit(tiny_data(), epochs=3).best is None


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


# ------------------------------------------------------------------------------------------------ every so many steps


class Places:
    """Epochs and steps that were complete at each write."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_checkpoint(self, trainer: Any) -> None:
        self.seen.append((trainer.epoch, trainer.step))


def test_every_steps_writes_inside_of_an_epoch_too(tmp_path: Path, clock: Any) -> None:
    clock(best_checkpoint)
    places = Places()
    trainer = tiny_trainer([BestCheckpoint(every_steps=2), places], run_dir=tmp_path)
    trainer.fit(tiny_data(), tiny_data(seed=1), epochs=3, batch_size=2)  # three steps an epoch
    assert places.seen == [(0, 2), (1, 4), (1, 4), (1, 6), (2, 8), (2, 8), (3, 9)]
    assert [labelled(tmp_path, label).step for label in ("best", "last")] == [9, 9]


def test_the_state_after_the_last_epoch_is_written_also_where_its_last_step_was(tmp_path: Path, clock: Any) -> None:
    clock(best_checkpoint)
    places = Places()
    tiny_trainer([BestCheckpoint(every_steps=3), places], run_dir=tmp_path).fit(tiny_data(), epochs=1, batch_size=2)
    assert places.seen == [(0, 3), (1, 3)]
    assert labelled(tmp_path, "last").epoch == 1


def test_only_every_steps_costs_a_step() -> None:
    for options, hot in (({}, False), ({"every_steps": 5}, True), ({"every_seconds": 0}, False)):
        trainer = tiny_trainer([BestCheckpoint(**options)])
        assert (trainer.plugins.frozen("train").on_batch_end is not None) is hot


@pytest.mark.parametrize("every_steps", [0, -1, 2.5, True, "10"])
def test_an_every_steps_that_is_no_number_of_steps_is_refused(every_steps: Any) -> None:
    with pytest.raises(UsageError, match=f"every_steps must be a whole number from 1 up, got {every_steps!r}"):
        BestCheckpoint(every_steps=every_steps)


# ------------------------------------------------------------------------------------- in the background, and failing


@pytest.mark.parametrize("options", [{"every_seconds": 0}, {"every_steps": 1}, {}], ids=str)
def test_in_the_background_the_same_is_written(tmp_path: Path, scripted: Any, options: dict[str, Any]) -> None:
    ends = []
    for background in (False, True):
        run_dir = tmp_path / str(background)
        plugins = [
            scripted([3, 1, 2, 2], "a_loss", "a"), scripted([1, 2, 9, 3], "b_accuracy", "b"),
            BestCheckpoint("a_loss", **options), BestCheckpoint("b_accuracy", name="best_b", **options),
        ]  # fmt: skip
        trainer = tiny_trainer(plugins, run_dir=run_dir, async_save=background)
        torch.manual_seed(0)
        result = trainer.fit(tiny_data(), epochs=4, batch_size=2)
        assert result.best["path"] == find(run_dir, "best")
        ends.append([epochs_of(run_dir, "best", "best_b", "last"), {**result.best, "path": None}])
    assert ends[0] == ends[1]
    assert ends[0][0] == [2, 3, 4]


@pytest.mark.parametrize("values", [[3, 2, 9, 9], [3, 9, 9, 9]], ids=str)
def test_what_is_being_written_in_the_background_is_not_taken_for_a_later_best(
    values: list[float], tmp_path: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert released.wait(60)
        fsync(descriptor)

    class Disk:
        """So slow that the first checkpoint takes until the second epoch is over."""

        def on_epoch_end(self, epoch: int) -> None:
            if epoch == 1:
                released.set()

    monkeypatch.setattr(os, "fsync", slow)
    plugins = [scripted(values), BestCheckpoint("score_loss", every_seconds=0), Disk()]
    tiny_trainer(plugins, run_dir=tmp_path, async_save=True).fit(tiny_data(), epochs=4)
    assert epochs_of(tmp_path, "best", "last") == [values.index(min(values)) + 1, 4]


def test_what_could_not_be_written_is_tried_again(tmp_path: Path, scripted: Any) -> None:
    class Repairs:
        def on_epoch_end(self, epoch: int) -> None:
            if epoch == 2:
                (tmp_path / "checkpoints").unlink()
            self.best = find(tmp_path, "best")

    (tmp_path / "checkpoints").write_text("in the way")
    plugins = [scripted([3, 1, 2, 2, 2]), BestCheckpoint("score_loss", every_seconds=0), repairs := Repairs()]
    trainer = tiny_trainer(plugins, run_dir=tmp_path, on_save_error="continue")
    with pytest.warns(UserWarning, match="cannot write a checkpoint"):
        result = trainer.fit(tiny_data(), epochs=5)
    assert epochs_of(tmp_path, "best", "last") == [2, 5]
    assert result.best["path"] == find(tmp_path, "best") == repairs.best  # before the end of the fit


def test_what_could_not_be_written_at_the_last_boundary_is_tried_again_at_the_end(
    tmp_path: Path, scripted: Any
) -> None:
    class Repairs:
        def on_epoch_end(self, trainer: Any, epoch: int) -> None:
            if epoch == 2:
                trainer.later((tmp_path / "checkpoints").unlink)  # behind the one that writes

    (tmp_path / "checkpoints").write_text("in the way")
    plugins = [scripted([3, 2, 1]), BestCheckpoint("score_loss", every_seconds=0), Repairs()]
    trainer = tiny_trainer(plugins, run_dir=tmp_path, on_save_error="continue")
    with pytest.warns(UserWarning, match="cannot write a checkpoint"):
        result = trainer.fit(tiny_data(), epochs=3)
    assert epochs_of(tmp_path, "best", "last") == [3, 3]
    assert result.best["path"] == find(tmp_path, "last")
    assert (tmp_path / "checkpoints" / "LAST").is_file()  # not only because it is the newest


def test_of_a_best_that_could_never_be_written_there_is_no_path(tmp_path: Path, scripted: Any) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    trainer = tiny_trainer(
        [scripted([3, 1, 2]), BestCheckpoint("score_loss")], run_dir=tmp_path, on_save_error="continue"
    )
    with pytest.warns(UserWarning, match="cannot write a checkpoint"):
        result = trainer.fit(tiny_data(), epochs=3)
    assert (result.best["epoch"], result.best["path"]) == (1, None)


# ------------------------------------------------------------------------------------------------------------- resumed


class Saves:
    """Saves after a step, and keeps a copy of the run as it is then: what a kill at that instant would leave."""

    def __init__(self, step: int, copy: Path) -> None:
        self.step, self.copy = step, copy

    def on_batch_end(self, trainer: Any, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.save("now")

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        if read(path).step == self.step and find(trainer.run_dir, "now") == path:
            shutil.copytree(trainer.run_dir, self.copy, ignore=shutil.ignore_patterns("run.lock"), dirs_exist_ok=True)


def killed(tmp_path: Path, scripted: Any, values: list[float], step: int, **options: Any) -> tuple[Any, Any, Any]:
    """The results of a fit that was left alone and of one that was killed after a step and resumed; the checkpoint."""
    results = []
    for name in ("alone", "killed"):
        plugins = [scripted(values), BestCheckpoint("score_loss", **options)]
        plugins += [Saves(step, tmp_path / "killed")] * (name == "alone")
        trainer = tiny_trainer(plugins, run_dir=tmp_path / name)
        resume = None if name == "alone" else tmp_path / name
        taken = None if resume is None else labelled(resume, "now")
        result = trainer.fit(tiny_data(), epochs=len(values), batch_size=2, resume=resume)
        written = [labelled(tmp_path / name, label) for label in ("best", "last")]
        results.append((result, trainer.model.state_dict(), written))
    return *results, taken


@pytest.mark.parametrize("restore_best", [False, True])
@pytest.mark.parametrize("every", [None, 0])
@pytest.mark.parametrize("step", [2, 3, 6, 8])  # three an epoch
@pytest.mark.parametrize("values", [[4, 1, 2, 3], [1, 2, 3, 4], [3, 1, 2, 0]], ids=str)
def test_a_resumed_fit_ends_with_the_same_best(
    oracle: Any, tmp_path: Path, scripted: Any, clock: Any, values: Any, step: int, every: Any, restore_best: bool
) -> None:
    clock(best_checkpoint)  # nothing is due by itself
    alone, other, _ = killed(tmp_path, scripted, values, step, every_seconds=every, restore_best=restore_best)
    for (result, *_), name in ((alone, "alone"), (other, "killed")):
        assert result.best["path"] == find(tmp_path / name, "best")
    oracle.assert_same({**alone[0].best, "path": None}, {**other[0].best, "path": None})
    oracle.assert_same(alone[1], other[1])
    for a, b in zip(alone[2], other[2], strict=True):
        oracle.assert_same([a.epoch, a.step, a.model, a.optimizer], [b.epoch, b.step, b.model, b.optimizer])
        oracle.assert_same(a.rows, b.rows)


def test_a_best_that_is_only_in_memory_is_in_every_other_checkpoint_and_only_once(
    tmp_path: Path, scripted: Any, clock: Any
) -> None:
    clock(best_checkpoint)
    *_, taken = killed(tmp_path, scripted, [3, 1, 2, 2], 8)
    kept = taken.plugins["best_checkpoint"]["copy"]
    assert (kept["epoch"], kept["step"], kept["rows"]) == (2, 6, 2)
    assert kept["plugins"]["best_checkpoint"]["copy"] == "here"
    assert [labelled(tmp_path / "alone", label).plugins["best_checkpoint"]["copy"] for label in ("best", "last")] == [
        "here", None,
    ]  # fmt: skip


def test_a_best_that_is_on_the_disk_is_not_in_other_checkpoints(tmp_path: Path, scripted: Any, clock: Any) -> None:
    clock(best_checkpoint)
    *_, taken = killed(tmp_path, scripted, [3, 1, 2, 2], 8, every_seconds=0)
    assert (taken.plugins["best_checkpoint"]["copy"], taken.plugins["best_checkpoint"]["on_disk"]) == (None, True)


def test_a_copy_holds_no_copies(tmp_path: Path, scripted: Any, clock: Any) -> None:
    clock(best_checkpoint)
    plugins = [
        scripted([3, 1, 2, 2], "a_loss", "a"), scripted([4, 3, 2, 1], "b_loss", "b"),
        BestCheckpoint("a_loss"), BestCheckpoint("b_loss", name="best_b"), Saves(11, tmp_path / "killed"),
    ]  # fmt: skip
    tiny_trainer(plugins, run_dir=tmp_path / "alone").fit(tiny_data(), epochs=4, batch_size=2)
    states = labelled(tmp_path / "killed", "now").plugins
    assert [states[name]["copy"]["epoch"] for name in ("best_checkpoint", "best_b")] == [2, 3]
    assert states["best_b"]["copy"]["plugins"]["best_checkpoint"]["copy"] is None
    assert states["best_b"]["copy"]["plugins"]["best_b"]["copy"] == "here"


def test_a_best_that_is_kept_to_be_restored_is_written_once(tmp_path: Path, scripted: Any) -> None:
    writes = Writes()
    plugins = [scripted([1, 2, 2, 2]), BestCheckpoint("score_loss", restore_best=True, every_seconds=0), writes]
    tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), epochs=4)
    assert writes.epochs == [1, 2, 3, 4]


def test_of_two_that_write_at_the_same_boundary_the_first_holds_the_best_of_the_second(
    tmp_path: Path, scripted: Any, clock: Any
) -> None:
    clock(best_checkpoint)
    copy = tmp_path / "killed"

    class Copies:
        """A kill between the two."""

        def on_checkpoint(self, trainer: Any, path: Path) -> None:
            if trainer.epoch == 2 and not copy.exists():
                shutil.copytree(trainer.run_dir, copy, ignore=shutil.ignore_patterns("run.lock"))

    def plugins() -> list[Any]:
        return [
            scripted([3, 1, 2, 2], "a_loss", "a"), scripted([4, 1, 2, 2], "b_loss", "b"),
            BestCheckpoint("a_loss", every_seconds=0), BestCheckpoint("b_loss", name="best_b"),
        ]  # fmt: skip

    tiny_trainer([*plugins(), Copies()], run_dir=tmp_path / "alone").fit(tiny_data(), epochs=4)
    assert find(copy, "best_b") is None
    tiny_trainer(plugins(), run_dir=copy).fit(tiny_data(), epochs=4, resume=copy)
    assert epochs_of(copy, "best", "best_b", "last") == [2, 2, 4]
    assert torch.equal(labelled(copy, "best_b").model["weight"], labelled(tmp_path / "alone", "best_b").model["weight"])


def test_a_resume_that_fails_before_its_first_step_writes_nothing(tmp_path: Path, clock: Any) -> None:
    class Refuses:
        def __init__(self) -> None:
            self.error: BaseException | None = None

        def on_fit_start(self) -> None:
            pass

        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None:
            if self.error:
                raise self.error

    refuses = Refuses()
    trainer = tiny_trainer([BestCheckpoint(every_seconds=0), refuses], run_dir=tmp_path)
    trainer.fit(tiny_data(), epochs=2)
    before = on_disk(tmp_path)
    refuses.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(tiny_data(), epochs=3, resume=tmp_path)
    assert on_disk(tmp_path) == before


def test_a_fit_that_has_nothing_left_to_do_writes_its_best_and_no_other_last(tmp_path: Path, scripted: Any) -> None:
    places = Places()
    trainer = tiny_trainer([scripted([3, 1, 2]), BestCheckpoint("score_loss"), places], run_dir=tmp_path)
    first = trainer.fit(tiny_data(), epochs=3)
    again = trainer.fit(tiny_data(), epochs=3, resume=tmp_path)
    assert len(places.seen) == 2
    assert again.best == first.best


def test_a_best_from_after_the_checkpoint_that_was_gone_back_to_is_not_told_as_that_of_this_fit(
    tmp_path: Path, scripted: Any
) -> None:
    def trainer() -> Any:
        return tiny_trainer([scripted([3, 2, 2, 1]), BestCheckpoint("score_loss", every_seconds=0)], run_dir=tmp_path)

    trainer().fit(tiny_data(), epochs=4)
    result = trainer().fit(tiny_data(), epochs=3, resume=tmp_path / "checkpoints" / "step-000000000003")
    assert (result.best["epoch"], result.best["path"]) == (1, None)


def test_restore_best_needs_a_fit_that_began_with_it(tmp_path: Path, scripted: Any) -> None:
    tiny_trainer([scripted([3, 1, 2]), BestCheckpoint("score_loss")], run_dir=tmp_path).fit(tiny_data(), epochs=3)
    trainer = tiny_trainer([scripted([3, 1, 2, 2]), BestCheckpoint("score_loss", restore_best=True)], run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="the fit had begun without restore_best"):
        trainer.fit(tiny_data(), epochs=4, resume=tmp_path)


def test_a_save_before_any_fit_needs_no_best(tmp_path: Path) -> None:
    tiny_trainer([BestCheckpoint()], run_dir=tmp_path).save("before")
    assert labelled(tmp_path, "before").plugins["best_checkpoint"]["copy"] is None
