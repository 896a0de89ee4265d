from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.history import History

from framework import RunDirError, read_runs
from framework.testing import tiny_data, tiny_trainer


def written(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_each_epoch_is_a_row_as_in_result_history(tmp_path: Path) -> None:
    trainer = tiny_trainer([History()], run_dir=tmp_path)
    result = trainer.fit(tiny_data(), tiny_data(seed=1), epochs=3, batch_size=2)
    assert written(tmp_path) == result.history
    assert list(written(tmp_path)[0]) == ["epoch", "step", "train_loss", "val_loss"]


def test_a_row_is_on_the_disk_as_soon_as_its_epoch_is_over(tmp_path: Path) -> None:
    class Reads:
        def on_epoch_end(self, epoch: int) -> None:
            assert [row["epoch"] for row in written(tmp_path)] == [*range(epoch + 1)]

    assert tiny_trainer([History(), Reads()], run_dir=tmp_path).fit(tiny_data(), epochs=4).epochs == 4


def test_figures_of_other_plugins_and_those_that_are_not_finite_are_kept(tmp_path: Path, scripted: Any) -> None:
    values = [math.inf, -math.inf, math.nan, 0.1 + 0.2, 7]
    tiny_trainer([scripted(values), History()], run_dir=tmp_path).fit(tiny_data(), epochs=5)
    assert [row["score_loss"] for row in written(tmp_path)] == pytest.approx(values, rel=0, abs=0, nan_ok=True)


def test_the_file_ends_its_lines_alike_on_every_system(tmp_path: Path) -> None:
    tiny_trainer([History()], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    data = (tmp_path / "metrics.jsonl").read_bytes()
    assert (data.count(b"\n"), data.count(b"\r")) == (2, 0)


def test_a_run_dir_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    tiny_trainer([History()], run_dir=tmp_path / "a" / "b").fit(tiny_data(), epochs=1)
    assert len(written(tmp_path / "a" / "b")) == 1


def test_without_a_run_dir_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = tiny_trainer([History()]).fit(tiny_data(), epochs=2)
    assert len(result.history) == 2
    assert list(tmp_path.iterdir()) == []


def test_in_a_trainer_without_a_run_dir_the_file_of_another_is_let_be(tmp_path: Path) -> None:
    history = History()
    tiny_trainer([history], run_dir=tmp_path).fit(tiny_data(), epochs=3)
    tiny_trainer([history]).fit(tiny_data(), epochs=2)
    assert len(written(tmp_path)) == 3


def test_a_file_that_cannot_be_made_is_told_before_the_first_epoch(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    trainer = tiny_trainer([History()], run_dir=tmp_path)
    with pytest.raises(RunDirError, match=r"cannot write .*metrics\.jsonl"):
        trainer.fit(tiny_data(), epochs=2)
    assert trainer.step == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to stand for a full disk")
def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunDirError) as caught:
        tiny_trainer([History()], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert str(caught.value) == f"cannot write {tmp_path / 'metrics.jsonl'}: No space left on device"
    assert caught.value.__notes__ == ["plugin 'history', hook on_epoch_end, epoch 1, step 1"]


def test_the_file_is_closed_after_an_error_and_holds_the_complete_epochs(tmp_path: Path, fails: Any) -> None:
    with pytest.raises(RuntimeError):  # a file left open would be a ResourceWarning, which is an error here
        tiny_trainer([History(), fails(epoch=2, batch=1)], run_dir=tmp_path).fit(tiny_data(), epochs=4)
    assert [row["epoch"] for row in written(tmp_path)] == [0, 1]


def test_a_second_fit_starts_the_file_anew(tmp_path: Path) -> None:
    trainer = tiny_trainer([History()], run_dir=tmp_path)
    trainer.fit(tiny_data(), epochs=5)
    assert trainer.fit(tiny_data(), epochs=2).history == written(tmp_path)


def test_the_verbs_read_what_it_wrote(tmp_path: Path) -> None:
    result = tiny_trainer([History()], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    (tmp_path / "run.json").write_text(json.dumps({"label": "a"}), encoding="utf-8")
    assert read_runs(tmp_path)["a"][2] == result.history


# ------------------------------------------------------------------------------------------------------------- resumed


class StopAt:
    """Saves and stops after a step."""

    def __init__(self, step: int, then: Any = None) -> None:
        self.step, self.then = step, then

    def on_batch_end(self, trainer: Any) -> None:
        if trainer.step == self.step:
            trainer.save()
        if trainer.step == (self.then or self.step):
            trainer.stop("to be resumed")


def fitted(run_dir: Path, *plugins: Any, epochs: int = 4, resume: Path | None = None) -> Any:
    """Three steps an epoch."""
    torch.manual_seed(0)
    trainer = tiny_trainer([*plugins, History()], run_dir=run_dir)
    return trainer.fit(tiny_data(), epochs=epochs, batch_size=2, resume=resume)


@pytest.mark.parametrize(("saved", "stopped"), [(2, 2), (3, 3), (4, 11), (5, 12)])
def test_a_resumed_fit_ends_with_the_bytes_of_the_fit_left_alone(tmp_path: Path, saved: int, stopped: int) -> None:
    fitted(tmp_path / "alone")
    fitted(tmp_path, StopAt(saved, stopped))
    fitted(tmp_path, resume=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "alone" / "metrics.jsonl").read_bytes()
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("saved", "seen"),
    [(4, [[0, 1, 2]] * 2 + [[0, 1]] * 3 + [[0, 1, 2]] * 3),
     (2, [[0, 1, 2]] + [[0]] * 3 + [[0, 1]] * 3 + [[0, 1, 2]] * 3)],
)  # fmt: skip
def test_a_row_of_before_stays_until_there_is_one_of_the_resumed_fit(tmp_path: Path, saved: int, seen: Any) -> None:
    class Reads:
        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def on_batch_end(self) -> None:
            self.seen.append([row["epoch"] for row in written(tmp_path)])

    fitted(tmp_path, StopAt(saved, 11))
    fitted(tmp_path, reads := Reads(), resume=tmp_path)
    assert reads.seen == seen


def test_a_resume_that_fails_loses_no_row(tmp_path: Path, fails: Any) -> None:
    fitted(tmp_path, StopAt(4, 11))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(RuntimeError):
        fitted(tmp_path, fails(epoch=1, batch=1), resume=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_resumed_fit_that_has_no_row_of_its_own_tells_those_of_its_history(tmp_path: Path) -> None:
    fitted(tmp_path, StopAt(4, 11))
    result = fitted(tmp_path, StopAt(5), resume=tmp_path)
    assert written(tmp_path) == result.history
    assert len(result.history) == 1


def test_rows_that_cannot_be_written_anew_are_told_and_the_old_ones_stay(tmp_path: Path) -> None:
    fitted(tmp_path, StopAt(4, 11))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / ".tmp-metrics.jsonl").mkdir()
    with pytest.raises(RunDirError, match=r"cannot write .*metrics\.jsonl"):
        fitted(tmp_path, resume=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_evaluate_outside_a_fit_writes_nothing(tmp_path: Path) -> None:
    tiny_trainer([History()], run_dir=tmp_path).evaluate(tiny_data())
    assert list(tmp_path.iterdir()) == []


def test_it_changes_no_bit_of_training(trained: Any, tmp_path: Path) -> None:
    assert trained([History()], tmp_path) == trained([])
