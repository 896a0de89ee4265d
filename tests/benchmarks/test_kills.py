"""A share of what `benchmarks/kills.py` and `benchmarks/mutations.py` do at length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=1200)


@needs_fork
def test_a_hundred_runs_killed_at_random_instants_end_as_the_run_left_alone() -> None:
    done = run("kills.py", "--cases", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 runs" in done.stdout
    assert " 0 ended otherwise" in done.stdout
    assert int(done.stdout.split(", ")[1].split()[0]) > 100, f"hardly any was killed: {done.stdout}"


def test_deleting_the_line_that_puts_the_generators_back_is_missed() -> None:
    done = run("mutations.py", "--only", "set_random_states(told['random']")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 statements deleted one at a time, 0 of them without a failing test" in done.stdout
