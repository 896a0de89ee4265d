"""The run directory by itself: numbering, claiming, writing whole or not at all, reading what a crash left."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from framework import RunDirError, read_runs
from framework.checkpoint import files
from framework.cli import rundir


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(path: str, rows: list[dict[str, Any]] | str | None = None, **info: Any) -> Path:
    """A run directory with these rows and this run.json."""
    run = Path(path)
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
    if rows is not None:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (run / "metrics.jsonl").write_text(text, encoding="utf-8")
    return run


def test_runs_started_together_get_a_directory_each() -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: rundir.new("lab"), range(40)))
    assert sorted(paths) == [Path("runs/lab") / f"{number:03d}" for number in range(1, 41)]


def test_the_number_follows_the_highest_and_grows_beyond_three_digits() -> None:
    for name in ("001", "007", "9", "0x1", "old", "000000"):
        Path("runs/lab", name).mkdir(parents=True)
    assert rundir.new("lab").name == "008"
    Path("runs/lab/999").mkdir()
    assert [rundir.new("lab").name for _ in range(2)] == ["1000", "1001"]


def test_a_file_in_the_way_of_a_number_is_stepped_over() -> None:
    Path("runs/lab").mkdir(parents=True)
    Path("runs/lab/001").write_text("a file")
    assert rundir.new("lab").name == "002"


def test_looking_whether_a_directory_is_free_changes_nothing() -> None:
    rundir.claim(Path("a/b"))
    assert not Path("a").exists()
    run = made("here", [{"epoch": 0}], stop_reason=None)
    rundir.claim(run)
    assert rundir.read_rows(run) == [{"epoch": 0}]


@pytest.mark.parametrize("stop_reason", ["completed", "Ctrl-C", "KeyError"])
def test_a_run_that_ended_without_a_checkpoint_is_not_claimed(stop_reason) -> None:
    run = made("here", [{"epoch": 0}], stop_reason=stop_reason)
    with pytest.raises(RunDirError, match="here holds a finished run"):
        rundir.claim(run)


def test_a_run_that_failed_is_claimed_where_its_failure_is_known() -> None:
    rundir.claim(made("failed", [{"epoch": 0}], stop_reason="KeyError"), failed=True)
    with pytest.raises(RunDirError, match="holds a finished run"):
        rundir.claim(made("completed", [{"epoch": 0}], stop_reason="completed"), failed=True)


def test_an_unfinished_run_without_a_checkpoint_is_claimed() -> None:
    run = made("here", [{"epoch": 0}], stop_reason=None)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/LAST").write_text('{"name": "step-000000000001"}')  # points at nothing
    rundir.claim(run)


@pytest.mark.parametrize("stop_reason", [None, "Ctrl-C", "KeyError: 'x'"])
def test_an_unfinished_run_with_a_checkpoint_is_not_claimed(stop_reason) -> None:
    run = made("my run", [{"epoch": 0}], stop_reason=stop_reason)
    (run / "checkpoints/step-000000000001").mkdir(parents=True)
    with pytest.raises(RunDirError, match=r"unfinished run with a checkpoint.* framework resume ['\"]my run['\"]$"):
        rundir.claim(run)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"stop_reason": None}, False), ({"stop_reason": "completed"}, True), ({"stop_reason": "KeyError"}, False),
        ({"stop_reason": "completed", "seconds": 1.0}, True), ({"stop_reason": "no progress", "seconds": 1.0}, True),
        ({"stop_reason": "Ctrl-C", "seconds": 1.0}, False), ({"stop_reason": "SIGTERM", "seconds": 1.0}, False),
        ({"stop_reason": "SIGHUP", "seconds": 1.0}, False), ({"stop_reason": None, "seconds": 1.0}, False), ({}, False),
    ],
    ids=str,
)  # fmt: skip
def test_a_run_is_finished_when_it_came_to_its_own_end(info, expected) -> None:
    assert rundir.is_finished(made("here", **info)) is expected


def test_what_is_no_run_is_not_finished() -> None:
    assert not rundir.is_finished(Path("nowhere"))


def test_a_directory_is_held_by_one_and_left_behind_only_with_something_in_it() -> None:
    with rundir.held(Path("a/b"), rundir.claim):
        with (
            pytest.raises(RunDirError, match=r"b is in use by pid \d+ on host"),
            rundir.held(Path("a/b"), rundir.claim),
        ):
            pass
        assert [entry.name for entry in Path("a/b").iterdir()] == ["run.lock"]
    assert not Path("a/b").exists()
    with rundir.held(Path("a/b"), rundir.claim):
        Path("a/b/kept.txt").write_text("x")
    assert {entry.name for entry in Path("a/b").iterdir()} == {"kept.txt", "run.lock"}


def test_what_cannot_be_used_is_refused_before_a_lock_is_put_there() -> None:
    Path("here").mkdir()
    Path("here/thesis.txt").write_text("x")
    with pytest.raises(RunDirError, match="holds no run"), rundir.held(Path("here"), rundir.claim):
        pass
    assert [entry.name for entry in Path("here").iterdir()] == ["thesis.txt"]


def test_a_directory_that_another_process_finished_meanwhile_is_refused_under_the_lock() -> None:
    run, looks = made("here", stop_reason=None), []

    def look(path: Path) -> None:
        rundir.claim(path)
        looks.append(path)
        rundir.write_info(path, {"stop_reason": "completed"})

    with pytest.raises(RunDirError, match="holds a finished run"), rundir.held(run, look):
        pass
    assert looks == [run]


@pytest.mark.parametrize("name", ["../../etc", "step-1", "step-000000000001/../..", 3, None, ["x"]])
def test_a_label_points_only_at_a_checkpoint_beside_it(name) -> None:
    run = made("here", stop_reason=None)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/LAST").write_text(json.dumps({"name": name, "manifest_sha256": "0" * 64}))
    rundir.claim(run)


def test_text_is_written_as_utf8_with_line_feeds_and_replaces_what_was_there() -> None:
    Path("here").mkdir()
    for text in ("첫째\nzwei\n", "anders"):
        rundir.write_text(Path("here/note.txt"), text)
        assert Path("here/note.txt").read_bytes() == text.encode("utf-8")
    assert [entry.name for entry in Path("here").iterdir()] == ["note.txt"]


def test_a_write_that_fails_leaves_what_was_there(monkeypatch) -> None:
    run = made("here", stop_reason="completed")
    monkeypatch.setattr(files.system, "replace", _refused)
    with pytest.raises(RunDirError, match="cannot write into the run directory here: no space"):
        rundir.write_info(run, {"stop_reason": "other"})
    assert rundir.read_info(run) == {"stop_reason": "completed"}
    assert [entry.name for entry in run.iterdir()] == ["run.json"]


def _refused(*_: Path) -> None:
    raise OSError(28, "no space")


def test_run_json_is_durable_before_it_counts(monkeypatch) -> None:
    run, calls = made("here"), []
    for name in ("fsync", "replace"):
        real = getattr(files.system, name)
        monkeypatch.setattr(files.system, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    rundir.write_info(run, {"stop_reason": "other"})
    assert calls[:2] == ["fsync", "replace"]
    assert calls[2:] == (["fsync"] if os.name == "posix" else [])  # of the directory


def test_info_of_any_value_is_written() -> None:
    Path("here").mkdir()
    rundir.write_info(
        Path("here"), {"path": Path("a"), "text": "한글", "set": {1}, "nan": float("inf"), "odd": "\udcec"}
    )
    found = rundir.read_info(Path("here"))
    assert (found["path"], found["text"], found["set"], found["nan"]) == ("a", "한글", "{1}", float("inf"))
    assert found["odd"] == "\udcec"


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "null", "\x00"])
def test_a_damaged_run_json_is_an_error_that_names_it(text) -> None:
    Path("here").mkdir()
    Path("here/run.json").write_text(text)
    with pytest.raises(RunDirError, match=r"here.run\.json"):
        rundir.read_info(Path("here"))


def test_a_run_json_that_is_no_utf8_is_an_error_that_names_it() -> None:
    Path("here").mkdir()
    Path("here/run.json").write_bytes("{'한글'}".encode("cp949"))
    with pytest.raises(RunDirError, match=r"here.run\.json cannot be read"):
        rundir.read_info(Path("here"))


ROW = '{"epoch": 0, "train_loss": 1.5}\n'


@pytest.mark.parametrize(
    ("text", "count"), [(ROW, 1), (ROW * 3, 3), (ROW + '{"epo', 1), (ROW + '{"epo\n', 1), (ROW.strip(), 1)]
)
def test_rows_are_read_and_one_cut_off_by_a_crash_is_left_out(text, count) -> None:
    assert len(rundir.read_rows(made("here", text))) == count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "has no metrics.jsonl"),
        ("", "is empty"),
        ('{"epo', "is empty"),
        ("{broken\n" + ROW, "line 1 is damaged"),
        (ROW + "\x00\x00\n" + ROW, "line 2 is damaged"),
    ],
)
def test_rows_that_cannot_be_read_are_an_error_that_names_the_line(text, expected) -> None:
    with pytest.raises(RunDirError, match=expected):
        rundir.read_rows(made("here", text))


def test_figures_that_are_not_finite_are_read_back() -> None:
    (row,) = rundir.read_rows(made("here", '{"train_loss": NaN, "val_loss": Infinity}\n'))
    assert row["train_loss"] != row["train_loss"]
    assert row["val_loss"] == float("inf")


def test_a_run_is_read_under_its_path_and_variants_under_their_labels() -> None:
    made("one", [{"epoch": 0}], knobs={})
    assert list(read_runs(Path("one"))) == ["one"]
    made("two", variants=["a", "b"])
    made("two/a", [{"epoch": 1}], label="a")
    made("two/b", [{"epoch": 2}], label="b")
    found = read_runs(Path("two"))
    assert {label: (path, rows) for label, (path, _, rows) in found.items()} == {
        "a": (Path("two/a"), [{"epoch": 1}]),
        "b": (Path("two/b"), [{"epoch": 2}]),
    }


def test_variants_that_never_ran_are_named() -> None:
    made("two", variants=["a", "b"])
    made("two/a", [{"epoch": 1}], label="a")
    with pytest.raises(RunDirError, match=r"two.b is not a run directory"):
        read_runs(Path("two"))


def test_the_digest_is_that_of_the_bytes() -> None:
    Path("x").write_bytes(b"\r\n\x00")
    assert rundir.sha256(Path("x")) == hashlib.sha256(b"\r\n\x00").hexdigest()


@pytest.mark.parametrize(
    "info",
    [
        {"best": {"epoch": 1}}, {"best": 3}, {"knobs": None}, {"seconds": None}, {"variants": None},
        {"variants": ["."]}, {"variants": [".."]}, {"variants": ["a/b"]}, {"variants": [3]}, {"test": [1]},
        {"given": "x"}, {"given": [3]}, {"resumed": [3]}, {"resumed": None}, {"file": 3}, {"sha256": []}, {"seed": "1"},
        {"device": None}, {"recipe": 3}, {"label": 3}, {"stop_reason": 3},
    ],
    ids=str,
)  # fmt: skip
def test_a_run_json_that_no_run_writes_is_told(info) -> None:
    made("here", [{"epoch": 0, "train_loss": 1.0}], **info)
    with pytest.raises(RunDirError, match=r"run\.json is damaged"):
        read_runs(Path("here"))


@pytest.mark.parametrize("line", ["[1]", "3", '{"epoch": 0, "train_loss": null}', '{"epoch": 0, "train_loss": "low"}'])
def test_a_row_that_holds_no_figures_is_told_with_its_line(line) -> None:
    with pytest.raises(RunDirError, match=r"line 2 is damaged: it holds no figures of an epoch"):
        rundir.read_rows(made("here", f'{{"epoch": 0, "train_loss": 1.0}}\n{line}\n'))


def test_a_last_line_cut_inside_a_letter_is_left_out() -> None:
    path = made("here", '{"epoch": 0, "train_loss": 1.0}\n')
    with (path / "metrics.jsonl").open("ab") as file:
        file.write('{"epoch": 1, "\ud55c'.encode()[:-1])
    assert rundir.read_rows(path) == [{"epoch": 0, "train_loss": 1.0}]
