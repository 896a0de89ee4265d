"""The benchmark runs, and tells the figures that the pages name it for; what a save costs is for no test to say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import reliability as benchmark

FILE = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(FILE), *arguments])
    return int(benchmark.main())


def test_it_tells_how_many_disks_were_looked_at(monkeypatch: Any, capsys: Any) -> None:
    assert run(monkeypatch, "power-loss", "--states", "300", "--seed", "3") == 0
    assert "saves, 0 with a loss" in capsys.readouterr().out


def test_it_ends_with_one_where_something_is_lost(monkeypatch: Any, capsys: Any) -> None:
    from framework.checkpoint import files

    monkeypatch.setattr(files, "sync_directory", lambda path: None)
    assert run(monkeypatch, "power-loss", "--states", "300") == 1
    assert "1 with a loss" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "code"), [(0.0, 1), (1e9, 0)])
def test_it_tells_the_cost_of_a_save(monkeypatch: Any, capsys: Any, tmp_path: Path, limit: float, code: int) -> None:
    monkeypatch.setattr(benchmark, "PARAMETERS", 1000)
    monkeypatch.setattr(benchmark, "LIMIT", limit)
    assert run(monkeypatch, "cost", "--turns", "1", "--folder", str(tmp_path), "--check") == code
    assert "times as long as writing the same bytes (median of 1" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
