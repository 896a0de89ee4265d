"""One of several processes is killed, fails, disagrees, cannot save or gets a signal: all end, and are told why.

A run that waits forever fails by PATIENCE. Within torchrun's own 30 seconds nobody is killed for not coming to an end.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rank_kills import command, end, said, started

from framework.checkpoint import find, manifest, store

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs the signals of POSIX")
HERE = Path(__file__).parent
PATIENCE = 240.0


class Ended(NamedTuple):
    """A run that is over."""

    status: int
    output: str
    folder: Path

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def errors(self) -> list[str]:
        """What was told, without what torchrun says of it."""
        return re.findall("^error: (.+)", self.output, re.MULTILINE)

    @property
    def attempts(self) -> list[str]:
        """The output of each time that torchrun started the processes."""
        return self.output.split("recipe    worker_lab")[1:]

    def notes(self, rank: int, word: str) -> list[str]:
        """What a rank has noted of one kind, each with the number of the attempt before it."""
        path = self.folder / f"rank-{rank}.txt"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [line.replace(f"{word} ", "") for line in lines if line.split()[1] == word.split()[0]]


Launch = Callable[..., Ended]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Runs worker_lab.py with faults on several processes; nothing of it is left running afterwards."""

    def run(
        *more: str, ranks: int = 2, restarts: int = 0, faults: Any = (), words: Any = (), name: str = "한 실행"
    ) -> Ended:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)  # gone on with, where it is there
        lab = [str(HERE / "worker_lines.py"), str(HERE / "worker_lab.py"), "--run-dir", "run", "--device", "cpu"]
        plugins = ["-p", "distributed", "-p", "no:plot", "-p", "no:progress", "-p", str(HERE / "worker_faults.py")]
        told = {"FAULTS": json.dumps(faults), "FAULTS_FOLDER": str(folder)}
        told["RANK_WORDS"] = json.dumps(words or [[]] * ranks)
        with started(command([*lab, *plugins, *more], ranks, restarts), folder, **told) as process:
            status = process.wait(PATIENCE)
        output = said(folder)
        assert "forcefully exiting" not in output  # what torchrun says when it has waited for 30 s
        return Ended(status, output, folder)

    return run


def fault(rank: int, at: str, step: int) -> dict[str, Any]:
    return {"rank": rank, "at": at, "step": step}


def sound(run_dir: Path) -> list[int]:
    """The steps of all checkpoints, each of which must be whole."""
    return sorted(store.read(path).step for path in store.candidates(run_dir))


# ------------------------------------------------------------------------------------------------------- 51: killed


def test_a_rank_that_is_killed_anywhere_is_named_and_the_run_goes_on_exactly(launch: Launch) -> None:
    faults = [
        fault(0, "forward", 3), fault(1, "all-reduce", 5), fault(0, "save", 8), fault(0, "commit", 10),
        fault(1, "commit", 12),
    ]  # fmt: skip
    killed = launch(restarts=len(faults), faults=faults)
    alone = launch(name="alone")

    assert killed.status == alone.status == 0, killed.output[-3000:]
    for each, told in zip(faults, killed.attempts, strict=False):
        assert f"rank {each['rank']} has gone" in told
    begun = [line.split()[1] for line in killed.notes(0, "begins")]
    assert begun[:5] == ["0", "2", "4", "6", "8"]
    assert begun[5:] in (["10"], ["12"])  # rank 0 may have had everything that it needs for the commit
    assert killed.notes(1, "begins") == killed.notes(0, "begins")
    assert sound(killed.run_dir) == sound(alone.run_dir)
    assert end(killed.run_dir) == end(alone.run_dir)


def test_of_four_processes_the_others_end_without_a_restart_and_the_newest_checkpoint_is_sound(launch: Launch) -> None:
    """The last rank is killed while all write; not every other one has a connection to it."""
    killed = launch(ranks=4, faults=[fault(3, "save", 6)])

    assert killed.status == 1
    assert killed.errors == ["rank 3 has gone: it was killed, or its machine failed"]
    assert [killed.notes(rank, "begins") for rank in range(4)] == [["0 0"]] * 4
    assert [killed.notes(rank, "ends") for rank in range(4)] == [[]] * 4
    assert max(sound(killed.run_dir)) == 4
    last = find(killed.run_dir, "last")
    assert last is not None
    assert manifest(last)["world_size"] == 4


# ------------------------------------------------------------------------------------------------------ 55: signals


def test_a_signal_to_one_rank_stops_or_saves_all_at_one_step(launch: Launch) -> None:
    """SIGUSR1 and then SIGTERM come to rank 1, and when torchrun has started them again SIGINT to rank 0."""
    long = ["--epochs", "40", "--every", "100000"]
    stopped = launch(*long, restarts=1, faults=[fault(1, "SIGUSR1", 10), fault(0, "SIGINT", 10)])
    gone_on = launch(*long)  # the same command
    alone = launch(*long, name="alone")

    assert (stopped.status, gone_on.status, alone.status) == (1, 0, 0), gone_on.output[-3000:]
    assert re.findall(r"exitcode: (-?\d+)\) local_rank", stopped.output) == ["143", "130"]
    assert gone_on.notes(0, "ends") == gone_on.notes(1, "ends")
    stops = [line.split() for line in gone_on.notes(0, "ends")]
    assert [why for _, _, *why in stops] == [["SIGTERM"], ["Ctrl-C"], ["None"]]
    assert gone_on.notes(0, "told of") == gone_on.notes(1, "told of")
    saved = [int(line.split("-")[1]) for line in gone_on.notes(0, "told of")]
    assert {int(step) for _, step, *_ in stops} <= {*saved}
    assert 10 < saved[0] < int(stops[0][1])  # that of SIGUSR1
    assert [line.split()[1] for line in gone_on.notes(1, "begins")] == ["0", *(step for _, step, *_ in stops[:2])]
    assert end(gone_on.run_dir) == end(alone.run_dir)


# ------------------------------------------------------------------------------------------------- errors of one rank


def test_an_error_of_one_rank_is_told_with_its_rank(launch: Launch) -> None:
    failed = launch(faults=[fault(1, "raise", 3)])

    assert failed.status == 1
    assert failed.errors == ["rank 1 failed: RuntimeError: the disk fell off"]
    assert "plugin 'faults', hook on_batch_end, epoch 0, step 3\nrank 1 of 2" in failed.output  # below the traceback
    assert sound(failed.run_dir) == [2]


def test_a_mistake_of_all_ranks_ends_them_before_anything_is_written(launch: Launch) -> None:
    failed = launch("--lrr", "0.1")

    assert failed.status == 1
    assert {*failed.errors} == {"Unrecognized options: --lrr, 0.1. Did you mean --lr?"}
    assert not failed.run_dir.exists()


# ---------------------------------------------------------------------------------- 53: disagreeing, 54: cannot save

DISAGREEING = {
    "model": "0.weight is (4, 3) torch.float32 on rank 0 and (5, 3) torch.float32 on rank 1",
    "optimizer": "optimizer is SGD on rank 0 and Adam on rank 1",
    "learning rate": "lr of the optimizer's group 0 is 0.1 on rank 0 and 0.2 on rank 1",
    "plugins": "the list of plugins is steps, distributed on rank 0 and another, steps, distributed on rank 1",
    "rows": "the number of batches of train is 5 on rank 0 and 6 on rank 1",
    "step": "the checkpoint to go on from is step-000000000009 on rank 0 and step-000000000010 on rank 1",
}


@pytest.mark.parametrize("case", DISAGREEING)
def test_ranks_that_disagree_are_told_what_differs_before_the_first_step(torchrun: Any, case: str) -> None:
    first, other = torchrun("worker_disagreeing", 2).case(case)

    assert first["error"] == other["error"]
    assert DISAGREEING[case] in first["error"]
    assert first["steps"] == other["steps"] == 0


@pytest.mark.parametrize("case", ["noise", "half"])
def test_data_that_each_rank_has_drawn_for_itself_is_told_before_the_first_step(torchrun: Any, case: str) -> None:
    first, other = torchrun("worker_disagreeing", 2).case(case)

    assert first["kind"] == other["kind"] == "UsageError"
    assert first["error"] == other["error"]
    told = r"the processes differ in their data: the SHA-256 of the data of train is \w+ on rank 0 and \w+ on rank 1"
    assert re.match(told, first["error"])
    assert first["steps"] == other["steps"] == 0


@pytest.mark.parametrize(
    ("case", "steps"), [("a sampler of NumPy", 0), ("a sampler of Python", 0), ("a stream", 0), ("a stream, later", 5)]
)
def test_batches_that_each_rank_has_drawn_for_itself_are_told(torchrun: Any, case: str, steps: int) -> None:
    """Before the first step, and where they begin to differ later, at the end of the epoch."""
    first, other = torchrun("worker_disagreeing", 2).case(case)

    assert first["kind"] == other["kind"] == "UsageError"
    assert first["error"] == other["error"]
    assert "train: the processes have drawn different batches" in first["error"]
    assert first["steps"] == other["steps"] == steps


REFUSED = {
    "disable": "on_plugin_error='disable' would leave a plugin out in one process",
    "async_save": "async_save=True: several processes write a checkpoint together",
    "samples": "Trainer(samples=...): over several processes ",
    "lazy layers": "the model has lazy layers without a shape: give it one batch before it is trained",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_several_processes_cannot_do_is_refused_on_each_of_them(torchrun: Any, case: str) -> None:
    first, other = torchrun("worker_disagreeing", 2).case(case)

    assert first["kind"] == other["kind"] == "UsageError"
    assert first["error"] == other["error"]
    assert first["error"].startswith(REFUSED[case])
    assert (first["steps"], first["saved"]) == (other["steps"], other["saved"]) == (0, [])


def test_command_lines_that_disagree_are_told_what_differs(launch: Launch) -> None:
    words = [["--lr", "0.1", "--seed", "1"], ["--lr", "0.2", "--seed", "2"]]
    failed = launch(words=words)

    assert failed.status == 1
    [told] = failed.errors
    assert told.startswith("the processes differ in what they train: ")
    assert "the seed is 1 on rank 0 and 2 on rank 1" in told
    assert "the knob lr is 0.1 on rank 0 and 0.2 on rank 1" in told
    assert failed.notes(0, "begins") == []


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_a_rank_that_cannot_save_makes_all_raise_the_same_error(torchrun: Any, kind: str, rank: int) -> None:
    first, other = torchrun("worker_disagreeing", 2).case(f"{kind} on {rank}, stop")

    assert first["kind"] == other["kind"] == "CheckpointError"
    assert first["error"] == other["error"]
    assert f"(rank {rank})" in first["error"]
    assert first["steps"] == other["steps"] == 6
    assert first["told"] == other["told"] == ["step-000000000002", "step-000000000004"]
    assert first["saved"] == [2, 4]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_where_that_may_be_a_warning_all_train_on(torchrun: Any, kind: str, rank: int) -> None:
    first, other = torchrun("worker_disagreeing", 2).case(f"{kind} on {rank}, continue")

    assert first["error"] == other["error"] == ""
    assert first["steps"] == other["steps"] == 10
    assert first["told"] == other["told"] == ["step-000000000002", "step-000000000004"]
    assert any(f"(rank {rank})" in each for each in first["warnings"])
    assert first["saved"] == [2, 4]
