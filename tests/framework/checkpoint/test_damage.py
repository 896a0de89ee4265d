"""Damage: whatever happens to a byte, a length or a file of a checkpoint is noticed, and the one before it is taken."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import fuzzing
import pytest

CASES, PARTS = 20_000, 4


@pytest.mark.parametrize("part", range(PARTS))
def test_every_damage_is_noticed(part: int) -> None:
    assert fuzzing.damage(CASES // PARTS, seed=0, first=part * CASES // PARTS) == []


def test_among_the_cases_are_every_byte_every_length_and_every_mixture(tmp_path: Path) -> None:
    folders = fuzzing.two_checkpoints(tmp_path)
    _, _, new = sorted(folders)
    known = {**folders[new], **folders[""]}
    seen = {how for _, how, _ in itertools.islice(fuzzing.damages(folders, random.Random(0)), CASES)}
    for name, data in known.items():
        assert {f"{name}, byte {at}" for at in range(len(data))} <= seen
        assert {f"{name}, cut off at {at}" for at in range(len(data))} <= seen
        assert f"{name} removed" in seen
    assert len([how for how in seen if "of the other checkpoint" in how]) == 2 ** len(folders[new]) - 2
    assert [how for how in seen if "after a burst" in how], "there is no room left for bursts"


def test_what_is_not_noticed_would_be_told(tmp_path: Path) -> None:
    folders = fuzzing.two_checkpoints(tmp_path)
    _, old, new = sorted(folders)
    assert fuzzing.unnoticed(folders, "") is None
    assert fuzzing.unnoticed(folders, new) == "it was read"
    best, last = folders[""]["BEST"], folders[""]["LAST"]
    assert fuzzing.unnoticed(fuzzing.with_file(folders, "", "LAST", best), "") == f"a fit went on from {old}"
    assert new in fuzzing.unnoticed(fuzzing.with_file(folders, "", "BEST", last), "")
