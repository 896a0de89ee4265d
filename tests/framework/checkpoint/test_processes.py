"""A checkpoint of several processes, each a thread here: whatever fails in any of them, all are told the same."""

from __future__ import annotations

import errno
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from framework import CheckpointError
from framework.checkpoint import store
from framework.checkpoint.processes import Processes

PATIENCE = 20.0  # seconds after which a rank that waits for the others is taken to wait forever
KINDS = [errno.ENOSPC, errno.EIO, errno.EACCES, "short"]


class Gone(Exception):
    """What a rank gets that waits for one which is no more."""


class Together(Processes):
    """Ranks that are threads."""

    def __init__(self, rank: int, size: int, meet: threading.Barrier, table: list[bytes]) -> None:
        self.rank, self.size, self.meet, self.table = rank, size, meet, table

    def gather(self, value: Any) -> list[Any]:
        self.table[self.rank] = pickle.dumps(value)  # as it would be sent
        try:
            self.meet.wait(PATIENCE)
            found = [*map(pickle.loads, self.table)]
            self.meet.wait(PATIENCE)
        except threading.BrokenBarrierError:
            raise Gone from None
        return found


class Divided:
    """The disk of each rank, where it is not that of all; it does one thing at a time."""

    def __init__(self, base: Any) -> None:
        self.base, self.mine, self.turn = base, threading.local(), threading.Lock()

    def __getattr__(self, name: str) -> Any:
        def operation(*arguments: Any) -> Any:
            with self.turn:
                return getattr(getattr(self.mine, "disk", self.base), name)(*arguments)

        return operation


@pytest.fixture(autouse=True)
def _quick_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def save(
    disk: ModuleType, base: Any, number: int, ranks: list[Any], labels: tuple[str, ...] = ("last",), odd: Any = None
) -> list[Any]:
    """What each rank is told by one save: the path, or the error.

    `ranks` has the disk of each; None is that of all. `odd` is what the last rank wants saved in place of the state.
    """
    meet, table, told = threading.Barrier(len(ranks)), [b""] * len(ranks), [None] * len(ranks)  # type: Any, Any, Any
    system = Divided(base)

    def one(rank: int) -> None:
        if ranks[rank] is not None:
            system.mine.disk = ranks[rank]
        try:
            together = Together(rank, len(ranks), meet, table)
            state = odd if odd and rank == len(ranks) - 1 else disk.snapshot(number)
            told[rank] = store.write(state, disk.RUN, labels, processes=together)
        except (CheckpointError, Gone, disk.Killed) as error:
            told[rank] = error
            if not isinstance(error, CheckpointError):
                meet.abort()

    with disk.on(system), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        threads = [threading.Thread(target=one, args=(rank,), name=f"rank {rank}") for rank in range(len(ranks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return told


def operations(disk: ModuleType, base: Any, rank: int, size: int) -> int:
    """How many operations of its disk a rank does in a save that goes well."""
    counting = disk.counting(state := base.copied())
    told = save(disk, state, 9, [counting if each == rank else None for each in range(size)])
    assert told == [disk.RUN / "checkpoints" / "step-000000000090"] * size
    return len(counting.seen)


def after(disk: ModuleType, size: int) -> Any:
    """A disk with three checkpoints of so many ranks."""
    base = disk.Memory()
    for number in (1, 2, 3):
        save(disk, base, number, [None] * size, ("last", "best") if number == 1 else ("last",))
    return base


def outcome(disk: ModuleType, told: list[Any], state: Any) -> str | None:
    """What is wrong with the disk after a save of number 4 that was told so."""
    before, done = (3, {"last": 3, "best": 1}), (4, {"last": 4, "best": 1})
    wrong = disk.wrong(state, before if isinstance(told[0], BaseException) else done, done)
    return wrong or disk.save_again(state)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: errno.errorcode.get(kind, kind))
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_error_at_each_operation_of_each_rank_is_told_to_all(
    disk: ModuleType, rank: int, kind: Any, sticky: bool
) -> None:
    base, failed = after(disk, 3), 0
    for at in range(1, operations(disk, base, rank, 3) + 1):
        state = base.copied()
        broken = disk.failing(at, kind, state, sticky)
        told = save(disk, state, 4, [broken if each == rank else None for each in range(3)])
        texts = {str(each) for each in told}

        assert {type(each) for each in told} in ({type(disk.RUN)}, {CheckpointError}), (at, told)
        assert len(texts) == 1, (at, texts)
        if isinstance(told[0], CheckpointError):
            failed += 1
            assert f"/checkpoints: {os.strerror(kind)} (rank {rank})" in texts.pop()
        assert state.opened == {}
        assert outcome(disk, told, state) is None, at

    survived = kind == "short" or (kind == errno.EIO and rank and not sticky)  # by writing everything anew
    assert failed == 0 if survived else failed > 3


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), object()], ids=["a sparse tensor", "no plain value"])
def test_what_one_rank_cannot_store_is_told_to_all(disk: ModuleType, value: Any) -> None:
    base, odd = after(disk, 3), disk.snapshot(4)
    odd.plugins["p"] = value
    told = save(disk, base, 4, [None] * 3, odd=odd)

    assert {type(each) for each in told} == {CheckpointError}
    assert len({str(each) for each in told}) == 1
    assert outcome(disk, told, base) is None


def test_ranks_at_different_steps_are_told_so(disk: ModuleType) -> None:
    base = after(disk, 3)
    told = save(disk, base, 4, [None] * 3, odd=disk.snapshot(4, step=41))

    assert [str(each) for each in told] == ["the processes are at different steps: 40, 40, 41"] * 3
    assert outcome(disk, told, base) is None


def test_errors_of_two_ranks_at_once_are_told_as_one(disk: ModuleType) -> None:
    """Whether everything is written anew must be decided by all of them alike."""
    base = after(disk, 2)
    points = [operations(disk, base, rank, 2) for rank in (0, 1)]
    for first in (errno.EIO, errno.ENOSPC):
        second = errno.EIO + errno.ENOSPC - first
        for at in range(1, points[0] + 1, 3):
            for other in range(1, points[1] + 1):
                state = base.copied()
                told = save(disk, state, 4, [disk.failing(at, first, state), disk.failing(other, second, state)])
                assert {type(each) for each in told} in ({type(disk.RUN)}, {CheckpointError}), (at, other, told)
                assert len({str(each) for each in told}) == 1, (at, other)
                assert outcome(disk, told, state) is None, (at, other)


@pytest.mark.parametrize("torn", [False, True], ids=["before", "halfway"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_killed_at_any_operation_leaves_nothing_half_written(
    disk: ModuleType, rank: int, torn: bool
) -> None:
    """The others are told that it has gone, and may clean up behind it."""
    base = after(disk, 3)
    for at in range(1, operations(disk, base, rank, 3) + 1):
        state = base.copied()
        dying = disk.killing(at, torn, disk.die, state)
        told = save(disk, state, 4, [dying if each == rank else None for each in range(3)])

        assert isinstance(told[rank], disk.Killed), at
        assert {type(each) for each in told[:rank] + told[rank + 1 :]} <= {Gone, type(disk.RUN)}, (at, told)
        assert outcome(disk, told, state) is None, at


class Leaving(Together):
    """Ranks that hear that one has gone where the first one has everything that it needs for the commit."""

    def gather(self, value: Any) -> list[Any]:
        found = super().gather(value)
        if f"rank-{self.size - 1:05d}.json" in str(found[-1]):  # the last of them tells what it has written
            if self.rank:
                raise Gone
            for thread in threading.enumerate():
                if thread.name.startswith("rank ") and thread is not threading.current_thread():
                    thread.join()
        return found


def test_ranks_that_leave_take_no_file_from_the_one_that_commits(
    disk: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are killed as well, while they clean up what they take for unfinished."""
    base = after(disk, 3)
    monkeypatch.setitem(globals(), "Together", Leaving)

    def fault(number: int, name: str, call: Callable[..., Any]) -> Any:
        if name == "unlink":
            call()
            disk.die()
        return call()

    told = save(disk, base, 4, [None, disk.Numbered(fault, base), disk.Numbered(fault, base)])

    assert isinstance(told[0], Gone)
    assert outcome(disk, told, base) is None
