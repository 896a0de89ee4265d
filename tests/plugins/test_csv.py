from __future__ import annotations

import csv
import math
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.csv import Csv

from framework import RunDirError, Trainer, UsageError, hookimpl
from framework.testing import tiny_data, tiny_trainer


def written(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


class Adds:
    """Adds a figure in some epochs."""

    def __init__(self, figure: str, epochs: range) -> None:
        self.figure, self.epochs, self.name = figure, epochs, f"adds {figure}"

    @hookimpl(split="train")
    def on_split_end(self, trainer: Trainer, metrics: MutableMapping[str, float]) -> None:
        if trainer.epoch in self.epochs:
            metrics[self.figure] = trainer.epoch


def test_each_epoch_is_a_row_of_the_figures_in_full(tmp_path: Path) -> None:
    result = tiny_trainer([Csv()], run_dir=tmp_path).fit(tiny_data(), tiny_data(seed=1), epochs=3, batch_size=2)
    rows = written(tmp_path / "metrics.csv")
    told = [{name: float(value) for name, value in row.items() if name != "samples"} for row in rows]
    assert told == result.history


def test_a_row_tells_epoch_step_and_samples_to_draw_over(tmp_path: Path) -> None:
    # Lightning #4998, #3228, #2110, #12851: figures could not be drawn over epochs, or one step was two epochs
    tiny_trainer([Csv()], run_dir=tmp_path).fit(tiny_data(), tiny_data(), epochs=3, batch_size=2)
    rows = written(tmp_path / "metrics.csv")
    assert list(rows[0])[:4] == ["epoch", "step", "samples", "train_loss"]
    clocks = [(row["epoch"], row["step"], row["samples"]) for row in rows]
    assert clocks == [("0", "3", "5"), ("1", "6", "10"), ("2", "9", "15")]


def test_samples_are_those_that_were_trained_on(tmp_path: Path) -> None:
    class Padded:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 1

    sizes = {"epochs": 2, "batch_size": 2, "drop_last": True}
    tiny_trainer([Padded(), Csv()], run_dir=tmp_path).fit(tiny_data(), tiny_data(), **sizes)
    assert [row["samples"] for row in written(tmp_path / "metrics.csv")] == ["2", "4"]


def test_samples_of_all_processes_are_added(tmp_path: Path) -> None:
    class Two(Trainer):
        def sum(self, value: torch.Tensor) -> torch.Tensor:
            return value * 2

    one = tiny_trainer()
    Two(one.model, one.loss, one.optimizer, [Csv()], "cpu", tmp_path).fit(tiny_data(), epochs=2, batch_size=2)
    assert [row["samples"] for row in written(tmp_path / "metrics.csv")] == ["10", "20"]


def test_a_row_is_on_the_disk_as_soon_as_its_epoch_is_over(tmp_path: Path) -> None:
    class Reads:
        def on_epoch_end(self, epoch: int) -> None:
            assert [row["epoch"] for row in written(tmp_path / "metrics.csv")] == [str(e) for e in range(epoch + 1)]

    assert tiny_trainer([Csv(), Reads()], run_dir=tmp_path).fit(tiny_data(), epochs=4).epochs == 4


def test_rows_are_appended_and_the_file_is_never_written_anew(tmp_path: Path) -> None:
    # Lightning #17725: the whole file was written anew at each flush
    class Marks:
        """Writes into the first row, which would be gone from a file that is written anew."""

        def on_epoch_end(self, epoch: int) -> None:
            if epoch == 0:
                data = (tmp_path / "metrics.csv").read_bytes()
                with (tmp_path / "metrics.csv").open("r+b") as file:
                    file.write(data.replace(b"\n0,", b"\n#,"))

    tiny_trainer([Csv(), Marks()], run_dir=tmp_path).fit(tiny_data(), epochs=4)
    assert [row["epoch"] for row in written(tmp_path / "metrics.csv")] == ["#", "1", "2", "3"]


def test_a_figure_that_comes_later_gets_a_column_at_the_end(tmp_path: Path) -> None:
    tiny_trainer([Adds("late", range(2, 4)), Csv()], run_dir=tmp_path).fit(tiny_data(), tiny_data(), epochs=5)
    rows = written(tmp_path / "metrics.csv")
    assert list(rows[0]) == ["epoch", "step", "samples", "train_loss", "val_loss", "late"]
    assert [row["late"] for row in rows] == ["", "", "2", "3", ""]
    assert [row["samples"] for row in rows] == ["5", "10", "15", "20", "25"]


def test_figures_that_are_not_finite_are_told_apart_from_those_that_are_missing(tmp_path: Path, scripted: Any) -> None:
    values = [math.inf, -math.inf, math.nan, 0.1 + 0.2, 7]
    tiny_trainer([scripted(values), Csv()], run_dir=tmp_path).fit(tiny_data(), epochs=5)
    told = [row["score_loss"] for row in written(tmp_path / "metrics.csv")]
    assert told == ["inf", "-inf", "nan", "0.30000000000000004", "7"]


@pytest.mark.parametrize("figure", ['a,b "c"', "a\nb", "정확도", "a;b"], ids=ascii)
def test_the_name_of_a_figure_may_be_any_text(tmp_path: Path, figure: str) -> None:
    tiny_trainer([Adds(figure, range(9)), Csv()], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert [row[figure] for row in written(tmp_path / "metrics.csv")] == ["0", "1"]


def test_excel_is_told_that_a_header_with_korean_is_utf_8(tmp_path: Path) -> None:
    for figure, mark in (("정확도", True), ("accuracy", False)):
        tiny_trainer([Adds(figure, range(9)), Csv()], run_dir=tmp_path).fit(tiny_data(), epochs=2)
        assert (tmp_path / "metrics.csv").read_bytes().startswith(b"\xef\xbb\xbf") == mark


def test_the_file_ends_its_lines_alike_on_every_system(tmp_path: Path) -> None:
    tiny_trainer([Csv()], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    data = (tmp_path / "metrics.csv").read_bytes()
    assert (data.count(b"\n"), data.count(b"\r")) == (3, 0)


def test_another_path_is_taken_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "표 1" / "run.csv"
    tiny_trainer([Csv(path), Csv(str(tmp_path / "2.csv"), name="second")]).fit(tiny_data(), epochs=2)
    assert [row["epoch"] for row in written(path)] == ["0", "1"]
    assert path.read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_without_a_run_dir_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = Csv()
    tiny_trainer([plugin], run_dir=tmp_path / "before").fit(tiny_data(), epochs=3)
    tiny_trainer([plugin, Csv(name="second")]).fit(tiny_data(), epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["before"]
    assert len(written(tmp_path / "before" / "metrics.csv")) == 3


def test_a_second_fit_starts_the_file_anew(tmp_path: Path) -> None:
    trainer = tiny_trainer([Csv()], run_dir=tmp_path)
    trainer.fit(tiny_data(), tiny_data(), epochs=5)
    trainer.fit(tiny_data(), epochs=2)
    rows = written(tmp_path / "metrics.csv")
    assert [row["samples"] for row in rows] == ["5", "10"]
    assert "val_loss" not in rows[0]


def test_evaluate_outside_a_fit_writes_nothing(tmp_path: Path) -> None:
    tiny_trainer([Csv()], run_dir=tmp_path).evaluate(tiny_data())
    assert list(tmp_path.iterdir()) == []


def test_it_changes_no_bit_of_training(trained: Any, tmp_path: Path) -> None:
    assert trained([Csv()], tmp_path) == trained([])


# ------------------------------------------------------------------------------------------------------------- resumed


class StopAt:
    """Saves after a step, and stops after one."""

    def __init__(self, save: int, stop: int) -> None:
        self.save, self.stop = save, stop

    @hookimpl(split="train")
    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.step == self.save:
            trainer.save()
        if trainer.step == self.stop:
            trainer.stop("to be resumed")


def fitted(run_dir: Path, *plugins: Any, resume: Path | None = None) -> Any:
    """Three steps an epoch; a figure comes in the second epoch and another one in the third."""
    torch.manual_seed(0)
    others = [Adds("정확도", range(1, 3)), Adds("later", range(2, 4))]
    trainer = tiny_trainer([*others, *plugins], run_dir=run_dir)
    return trainer.fit(tiny_data(), epochs=4, batch_size=2, resume=resume)


@pytest.mark.parametrize(("saved", "stopped"), [(2, 2), (3, 3), (4, 11), (8, 11), (11, 12)])
def test_a_resumed_fit_ends_with_the_bytes_of_the_fit_left_alone(tmp_path: Path, saved: int, stopped: int) -> None:
    fitted(tmp_path / "alone", Csv())
    fitted(tmp_path, Csv(), StopAt(saved, stopped))
    fitted(tmp_path, Csv(), resume=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == (tmp_path / "alone" / "metrics.csv").read_bytes()


def test_a_resume_that_fails_loses_no_row(tmp_path: Path, fails: Any) -> None:
    fitted(tmp_path, Csv(), StopAt(4, 11))
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(RuntimeError):
        fitted(tmp_path, Csv(), fails(epoch=1, batch=1), resume=tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_resumed_fit_that_has_no_row_of_its_own_keeps_those_of_its_history(tmp_path: Path) -> None:
    fitted(tmp_path, Csv(), StopAt(4, 11))
    fitted(tmp_path, Csv(), StopAt(5, 5), resume=tmp_path)
    assert [row["samples"] for row in written(tmp_path / "metrics.csv")] == ["5"]


@pytest.mark.filterwarnings("ignore:the checkpoint has no state of plugin 'csv'")
def test_samples_that_were_not_counted_are_left_out(tmp_path: Path) -> None:
    fitted(tmp_path, StopAt(4, 4))
    fitted(tmp_path, Csv(), resume=tmp_path)
    rows = written(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["3", "6", "9", "12"]
    assert {row["samples"] for row in rows} == {""}


# -------------------------------------------------------------------------------------------------------------- errors


def test_a_file_that_cannot_be_made_is_told_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    trainer = tiny_trainer([Csv()], run_dir=tmp_path)
    with pytest.raises(RunDirError, match=r"cannot write .*metrics\.csv"):
        trainer.fit(tiny_data(), epochs=2)
    assert trainer.step == 0


def test_two_that_would_write_one_file_are_refused(tmp_path: Path) -> None:
    trainer = tiny_trainer([Csv(), Csv(tmp_path / "metrics.csv", name="second")], run_dir=tmp_path)
    with pytest.raises(UsageError, match=r"csv and second would both write .*metrics\.csv; give one a path"):
        trainer.fit(tiny_data(), epochs=2)


def test_the_file_is_closed_after_an_error_and_holds_the_complete_epochs(tmp_path: Path, fails: Any) -> None:
    with pytest.raises(RuntimeError):  # a file left open would be a ResourceWarning, which is an error here
        tiny_trainer([Csv(), fails(epoch=2, batch=1)], run_dir=tmp_path).fit(tiny_data(), epochs=4)
    assert [row["epoch"] for row in written(tmp_path / "metrics.csv")] == ["0", "1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to stand for a full disk")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    class Fills:
        """From the second epoch on there is no room."""

        def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
            if epoch == 1:
                plugin = trainer.plugins["csv"]
                plugin.on_teardown()
                plugin._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115

    with pytest.raises(RunDirError) as caught:
        tiny_trainer([Csv(), Fills()], run_dir=tmp_path).fit(tiny_data(), epochs=3)
    assert str(caught.value) == f"cannot write {tmp_path / 'metrics.csv'}: No space left on device"
    assert caught.value.__notes__ == ["plugin 'csv', hook on_epoch_end, epoch 2, step 2"]
