"""A share of what `benchmarks/rank_kills.py` does at length: one run, many kills."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
import rank_kills

needs_linux = pytest.mark.skipif(not psutil.LINUX, reason="looks at the environment of the processes of torchrun")


@needs_linux
def test_ten_kills_of_ranks_at_random_instants_end_as_the_run_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    status = rank_kills.main(["--runs", "1", "--kills", "10"])
    said = capsys.readouterr().out
    told = re.search(r"1 runs of 2 processes, (\d+) kills, (\d+) ended otherwise", said)

    assert status == 0, said
    assert told is not None
    assert int(told[1]) >= 5, f"hardly any was killed: {said}"
    assert told[2] == "0"


@needs_linux
def test_a_run_that_ends_otherwise_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def kept(folder: Path, *_: object) -> tuple[int, str]:
        (folder / "run").mkdir()
        (folder / "run" / "run.json").write_text('{"seconds": 1.0}', "utf-8")
        return 2, ""

    ends = iter([{"last model": "a", "metrics.jsonl": "b"}, {"last model": "c", "metrics.jsonl": "b"}])
    monkeypatch.setattr(rank_kills, "end", lambda run_dir: next(ends))
    monkeypatch.setattr(rank_kills, "run", kept)

    assert rank_kills.main(["--runs", "1", "--ranks", "1"]) == 1
    assert "run 0 of seed 0, killed 2 times: it ended with another last model" in capsys.readouterr().out
