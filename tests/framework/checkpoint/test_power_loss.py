"""The power fails after any operation: what was durable is there, whatever else the disk kept."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

STATES = 20_000  # in the tests; benchmarks/reliability.py looks at more


def test_nothing_durable_is_lost_and_nothing_half_written_is_seen(disk: ModuleType) -> None:
    """After each save its state is there; during one it is that or the one before. The next save works."""
    loss = disk.PowerLoss(again=20)
    while loss.states < STATES:
        loss.run(disk.scenario(loss.draw))
        assert loss.lost == []


def saves_of(disk: ModuleType) -> list[Any]:
    """The last of them moves BEST away from a checkpoint that nothing else keeps."""
    return [
        disk.Save(1, 10, ("last", "best")), disk.Save(2, 20), disk.Save(3, 30), disk.Save(4, 40, ("best",)),
    ]  # fmt: skip


FIRST = ("RUN", "runs", "/", "state.json", "model", "optimizer", "plugins", "loop", "MANIFEST.json", ".tmp")
LAST = (
    "state.json", "model", "optimizer", "plugins", "loop", "MANIFEST.json", ".tmp", "the name", "BEST", "its name",
    ".trash",
)  # fmt: skip


@pytest.mark.parametrize(("save", "what"), [(0, what) for what in FIRST] + [(3, what) for what in LAST])
def test_every_fsync_is_needed(disk: ModuleType, save: int, what: str) -> None:
    """Without any one of them there is a power failure that loses something, or leaves a damaged checkpoint."""
    saves = saves_of(disk)
    syncs = [0] + [disk.recorded(saves[:count])[0].syncs for count in (1, 2, 3, 4)]
    loss = disk.PowerLoss(limit=128)
    loss.run(saves, skip=syncs[save] + (FIRST, LAST)[save > 0].index(what))

    assert len(loss.lost) == 1


def test_these_are_all_the_fsyncs_of_a_save(disk: ModuleType) -> None:
    saves = saves_of(disk)
    before, after = (disk.recorded(saves[:count])[0].syncs for count in (3, 4))

    assert after - before == len(LAST)
    assert disk.recorded(saves[:1])[0].syncs == len(FIRST) + 4  # the name of the checkpoint, two labels, their names


def test_a_disk_that_keeps_nothing_unless_it_is_fsynced_is_among_those_that_are_tried(disk: ModuleType) -> None:
    with disk.on(disk.Memory()) as memory:
        disk.files.make_directory(disk.RUN)
        descriptor = memory.open(disk.RUN / "a", disk.os.O_CREAT)
        memory.write(descriptor, b"abcd")
    trees = [state.tree() for state in disk.after_power_loss(memory.log, len(memory.log), random.Random(0), 1000)]
    inside = [dict(dict(dict(tree).get("runs", ())).get("one", ())).get("a") for tree in trees]

    assert () in trees
    assert {None, b"", b"ab", b"\0\0\0\0", b"ab\0\0", b"abcd"} == {*inside}
