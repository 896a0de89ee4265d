"""The figures of each epoch, read back with TensorBoard's own reader."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from framework_plugins.tensorboard import TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

from framework import Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer

Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _a_second_between_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads files in the order of their names, which begin with the second in which they were made."""
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: float(next(seconds))))


def curves(directory: Path) -> Curves:
    """Each figure as the places on the axis with the values there."""
    reader = EventAccumulator(str(directory))
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def fit(run_dir: Path | None, *plugins: Any, epochs: int = 3, **options: Any) -> Any:
    """A fit of five samples in three batches an epoch."""
    trainer = tiny_trainer(plugins, run_dir=run_dir)
    return trainer.fit(tiny_data(), tiny_data(seed=1), epochs=epochs, batch_size=2, shuffle=False, **options)


def as_written(rows: Any, axis: list[int]) -> Curves:
    names = [name for name in rows[0] if name not in ("epoch", "step")]
    return {
        name: [(place, pytest.approx(row[name], rel=1e-6)) for place, row in zip(axis, rows, strict=True)]
        for name in names
    }


@pytest.mark.parametrize(("x", "axis"), [("epoch", [0, 1, 2]), ("step", [3, 6, 9]), ("samples", [5, 10, 15])])
def test_every_figure_of_each_epoch_is_there_over_the_axis_that_was_chosen(
    tmp_path: Path, x: str, axis: list[int]
) -> None:
    """Lightning #4998, #3228, #2110, #12851: curves cannot be drawn by epoch, and one step stands for two epochs."""
    result = fit(tmp_path / "실험 1", TensorBoard(x=x))
    assert curves(tmp_path / "실험 1" / "tensorboard") == as_written(result.history, axis)


def test_validation_samples_are_not_counted(tmp_path: Path) -> None:
    fit(tmp_path, TensorBoard(x="samples"))
    assert curves(tmp_path / "tensorboard")["val_loss"][-1][0] == 15


def test_a_directory_of_its_own_may_be_given(tmp_path: Path) -> None:
    result = fit(None, TensorBoard(tmp_path / "elsewhere"))
    assert curves(tmp_path / "elsewhere") == as_written(result.history, [0, 1, 2])


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(None, TensorBoard())
    assert list(tmp_path.iterdir()) == []


class StopAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.save()
            trainer.stop("to be resumed")


@pytest.mark.parametrize("x", ["epoch", "step", "samples"])
@pytest.mark.parametrize("step", [2, 3, 7])
def test_stopped_and_resumed_it_has_the_rows_of_one_that_was_left_alone(tmp_path: Path, x: str, step: int) -> None:
    fit(tmp_path / "alone", TensorBoard(x=x))
    fit(tmp_path / "stopped", TensorBoard(x=x), StopAt(step))
    fit(tmp_path / "stopped", TensorBoard(x=x), resume=tmp_path / "stopped")
    assert curves(tmp_path / "stopped" / "tensorboard") == curves(tmp_path / "alone" / "tensorboard")


@pytest.mark.parametrize("x", ["epoch", "step", "samples"])
def test_rows_after_the_checkpoint_that_is_resumed_vanish(tmp_path: Path, x: str, fails: Any) -> None:
    class SavesOnce:
        def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
            if epoch == 1:
                trainer.save()

    with pytest.raises(RuntimeError):  # epochs 2 and 3 are written, and no checkpoint knows of them
        fit(tmp_path, TensorBoard(x=x), SavesOnce(), fails(epoch=4), epochs=9)
    seen = curves(tmp_path / "tensorboard")["train_loss"]
    result = fit(tmp_path, TensorBoard(x=x), epochs=3, resume=tmp_path)
    assert len(seen) == 4
    axis = {"epoch": [0, 1, 2], "step": [3, 6, 9], "samples": [5, 10, 15]}[x]
    assert curves(tmp_path / "tensorboard") == as_written(result.history, axis)


def test_a_second_fit_into_a_directory_takes_the_place_of_the_first(tmp_path: Path) -> None:
    plugin = TensorBoard()
    fit(tmp_path, plugin, epochs=5)
    result = fit(tmp_path, plugin, epochs=2)
    assert curves(tmp_path / "tensorboard") == as_written(result.history, [0, 1])


def test_what_a_checkpoint_remembers_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, read = [], []
    flush = SummaryWriter.flush
    monkeypatch.setattr(SummaryWriter, "flush", lambda writer: flushed.append(writer) or flush(writer))

    class Reads:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.save()

        def on_checkpoint(self) -> None:
            read.append((len(flushed), len(curves(tmp_path / "tensorboard")["train_loss"])))

    fit(tmp_path, TensorBoard(), Reads())
    assert read == [(1, 1), (2, 2), (3, 3)]


def test_rows_before_an_error_are_kept(tmp_path: Path, fails: Any) -> None:
    with pytest.raises(RuntimeError):
        fit(tmp_path, TensorBoard(), fails(epoch=2))
    assert [place for place, _ in curves(tmp_path / "tensorboard")["train_loss"]] == [0, 1]


def test_two_instances_write_into_two_places(tmp_path: Path) -> None:
    result = fit(tmp_path, TensorBoard(), TensorBoard(tmp_path / "by step", x="step", name="second"))
    assert curves(tmp_path / "tensorboard") == as_written(result.history, [0, 1, 2])
    assert curves(tmp_path / "by step") == as_written(result.history, [3, 6, 9])
    fit(tmp_path, TensorBoard(), TensorBoard(x="step", name="by_step"))
    assert curves(tmp_path / "tensorboard") == as_written(result.history, [0, 1, 2])
    assert curves(tmp_path / "by_step") == as_written(result.history, [3, 6, 9])


def test_a_missing_package_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    trainer = tiny_trainer([TensorBoard()], run_dir=tmp_path)
    with pytest.raises(UsageError, match=r'needs the package tensorboard: pip install "framework-trainer\[tensorboard'):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_another_axis_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="x must be one of epoch, step, samples; got 'steps'"):
        TensorBoard(x="steps")


def test_no_batch_is_asked_about_it_where_the_samples_are_not_counted() -> None:
    assert tiny_trainer([TensorBoard()]).plugins.frozen("train").on_batch_end is None
    assert tiny_trainer([TensorBoard(x="samples")]).plugins.frozen("train").on_batch_end is not None


def test_importing_the_plugin_imports_no_tensorboard() -> None:
    code = "import sys, framework_plugins.tensorboard; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_changes_no_bit_of_training(trained: Callable[..., Any], tmp_path: Path) -> None:
    assert trained([TensorBoard(x="samples")], tmp_path) == trained([])
