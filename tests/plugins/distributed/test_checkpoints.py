"""A checkpoint of several processes: what was saved is read back by any number of them, and training goes on."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rank_kills import command, said, started

from framework import rebuild
from framework.checkpoint import find, manifest, newest, read
from framework.cli import main

PATIENCE = 120.0
kinds = pytest.mark.parametrize("kind", ["copies", "shards"])


@pytest.fixture
def ranks(torchrun: Any) -> Any:
    """What each of two ranks, or of four, has found in a case."""

    def found(case: str, world: int = 2) -> list[dict[str, Any]]:
        torchrun("worker_checkpoints", 2)  # first, since four go on from what it has written
        told: list[dict[str, Any]] = torchrun("worker_checkpoints", world).case(case)
        assert not any("error" in rank for rank in told), told[0].get("told")
        return told

    return found


@pytest.fixture
def written(ranks: Any) -> Callable[[str], Path]:
    """The run directory of a case."""
    return lambda case: Path(ranks(case)[0]["run_dir"])


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """worker_checkpoints.py, to run its fits in this process."""
    spec = importlib.util.spec_from_file_location(
        "worker_checkpoints", Path(__file__).with_name("worker_checkpoints.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(ranks: list[dict[str, Any]]) -> list[list[int]]:
    """The rows of each whole batch: those of all ranks, one after the other."""
    return [[row for part in parts for row in part] for parts in zip(*(rank["rows"] for rank in ranks), strict=True)]


def assert_close(history: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert [row["step"] for row in history] == [row["step"] for row in wanted] == [5, 10, 15]
    for row, other in zip(history, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-9)


# ------------------------------------------------------------------------------------------------ what is on the disk


@kinds
def test_what_two_ranks_saved_is_read_back_whole(written: Callable[[str], Path], oracle: ModuleType, kind: str) -> None:
    run_dir = written(kind)
    path = find(run_dir, "last")
    assert path is not None
    held, end = read(path), torch.load(run_dir / "end.pt")

    assert manifest(path)["world_size"] == 2
    assert (held.step, held.exact) == (7, True)
    oracle.assert_same(held.model, end["model"])
    oracle.assert_same(held.optimizer, end["optimizer"])
    oracle.assert_same(list(held.plugins["average_weights"].values()), list(end["averages"].values()))
    assert set(held.optimizer["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}


@kinds
def test_ranks_are_told_of_a_checkpoint_when_it_is_whole_and_two_are_kept(
    ranks: Any, worker: ModuleType, tmp_path: Path, kind: str
) -> None:
    """Two, and the best one, as in a fit of one process."""
    first, other = ranks(f"{kind}, whole")

    assert first["told"] == other["told"] == worker.fit(tmp_path)["told"]
    assert len(first["told"]) > 5
    assert all(there and count <= 3 for _, there, count in first["told"])


@kinds
def test_damage_in_the_file_of_any_rank_is_noticed_and_the_older_one_is_taken(
    written: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    run_dir = written(kind)
    last = find(run_dir, "last")
    assert last is not None
    names = sorted(file.name for file in last.iterdir())
    assert len([name for name in names if name.startswith("rank-00001")]) == 2
    for name in names:
        copy = tmp_path / name
        shutil.copytree(run_dir, copy)
        file = copy / "checkpoints" / last.name / name
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        path, held, passed = newest(copy)

        assert (path.name, held.step) == ("step-000000000006", 6)
        assert [f"{last.name} is damaged: {name}" in reason for reason in passed] == [True]
        file.unlink()
        assert newest(copy)[0].name == "step-000000000006"


# ----------------------------------------------------------------------------------------------------- gone on with


@pytest.mark.parametrize("kind", ["noisy copies", "noisy shards", "told copies"])
def test_as_many_ranks_go_on_bit_for_bit(
    ranks: Any, written: Callable[[str], Path], oracle: ModuleType, kind: str
) -> None:
    """Dropout draws from the stream of each rank, and a sampler is told of the epoch: both go on where they were."""
    resumed, whole = ranks(f"{kind}, gone on"), ranks(f"{kind}, whole")

    for one, other in zip(resumed, whole, strict=True):
        assert one["rows"] == other["rows"][7:]
        assert one["history"] == other["history"]
    ends = [torch.load(written(f"{kind}, {case}") / "end.pt") for case in ("gone on", "whole")]
    oracle.assert_same(ends[0], ends[1])


def test_a_sampler_that_is_told_of_the_epoch_gives_the_order_of_one_process(
    ranks: Any, worker: ModuleType, tmp_path: Path
) -> None:
    rows = rows_of(ranks("told copies, whole"))
    orders = [[row for batch in rows[start : start + 5] for row in batch] for start in (0, 5, 10)]

    wanted = worker.Order()
    for epoch, order in enumerate(orders):
        wanted.set_epoch(epoch)
        assert order == [*wanted]
    assert rows == worker.fit(tmp_path, told=True)["rows"]


@kinds
def test_the_same_trainer_goes_on_with_what_it_saved_after_the_fit(
    ranks: Any, written: Callable[[str], Path], oracle: ModuleType, kind: str
) -> None:
    again, whole = ranks(f"noisy {kind}, again"), ranks(f"noisy {kind}, whole")

    for one, other in zip(again, whole, strict=True):
        assert one["rows"] == other["rows"]
        assert one["history"] == other["history"]
    by_hand = find(written(f"noisy {kind}, again"), "by_hand")
    assert by_hand is not None
    assert manifest(by_hand)["world_size"] == 2
    assert read(by_hand).step == 7
    ends = [torch.load(written(f"noisy {kind}, {case}") / "end.pt") for case in ("again", "whole")]
    oracle.assert_same(ends[0], ends[1])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("after", ["copies", "shards"])
@pytest.mark.parametrize("before", ["alone", "copies", "shards"])
def test_other_numbers_and_other_kinds_of_ranks_go_on_with_the_same_data(
    ranks: Any, before: str, after: str, world: int
) -> None:
    resumed, whole = ranks(f"{before} to {after}", world), ranks("copies, whole")

    assert rows_of(resumed) == rows_of(whole)[7:]
    assert_close(resumed[0]["history"], whole[0]["history"])


@kinds
def test_one_process_goes_on_with_the_same_data(
    ranks: Any, written: Callable[[str], Path], worker: ModuleType, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(written(kind), tmp_path / "run")
    alone = worker.fit(tmp_path / "run", resume=tmp_path / "run")
    whole = ranks(f"{kind}, whole")

    assert alone["rows"] == rows_of(whole)[7:]
    assert_close(alone["history"], whole[0]["history"])


def test_the_rows_of_two_ranks_are_the_batches_of_one_process(ranks: Any, worker: ModuleType, tmp_path: Path) -> None:
    alone, whole = worker.fit(tmp_path / "run"), ranks("copies, whole")

    assert rows_of(whole) == alone["rows"]
    assert_close(whole[0]["history"], alone["history"])


# ------------------------------------------------------------------------------------------------- the command line


def test_one_process_resumes_evaluates_and_predicts_with_a_run_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], oracle: ModuleType
) -> None:
    """Its weights were cut over the two."""
    words = [str(Path(__file__).with_name("worker_lab.py")), "--shard", "--halt", "7", "--run-dir", "run"]
    words += ["--device", "cpu", "-p", "distributed", "-p", "no:plot"]
    with started(command(["-m", "framework", *words], 2), tmp_path) as process:
        process.wait(PATIENCE)
    assert "stopped   Ctrl-C; 1 epoch, 7 steps" in said(tmp_path), said(tmp_path)[-3000:]
    monkeypatch.chdir(tmp_path)
    last = find(Path("run"), "last")
    assert last is not None
    assert manifest(last)["world_size"] == 2

    _, trainer, path = rebuild(Path("run"), label="last")
    assert path == last
    oracle.assert_same(dict(trainer.model.state_dict()), read(last).model)
    capsys.readouterr()
    assert main(["resume", "run"]) == 0
    assert "resumed   from step 7 (epoch 1, " in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text("utf-8").splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 5), (1, 10), (2, 15), (3, 20)]
    assert main(["evaluate", "run"]) == main(["predict", "run", "[0.5, 1.0, -2.0]"]) == 0
    best = max(row["val_accuracy"] for row in rows if row["val_loss"] == min(row["val_loss"] for row in rows))
    assert f"accuracy {best:.6g}" in capsys.readouterr().out
