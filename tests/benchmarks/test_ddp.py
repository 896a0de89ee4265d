"""The benchmark of several processes trains the same on both sides; how long that takes is for no test to say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ddp
import pytest

FILE = Path(ddp.__file__)


def test_both_sides_train_alike_in_two_processes() -> None:
    words = [sys.executable, str(FILE), "--rows", "mlp", "--turns", "1", "--steps", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()[-2]
    assert told.startswith("mlp  MLP 784-256-10")


def turn(bare: float, ours: float, weight: float = 1.0) -> dict[str, Any]:
    return {
        "bare": {"seconds": bare, "before": 0.0, "weights": [1.0]},
        "ours": {"seconds": ours, "before": 0.05, "weights": [weight]},
    }


def test_the_median_of_the_ratios_decides() -> None:
    row, turns = ddp.ROWS[0], [turn(1.0, 5.0), turn(1.0, 1.01), turn(2.0, 2.04), turn(1.0, 9.0)]
    assert ddp.ratios(turns) == pytest.approx((1.02, 1.015, 5.01))
    assert ddp.findings(row, turns, check=True) == []
    slow = [turn(1.0, 1.0), turn(1.0, 1.06)]
    assert ddp.findings(row, slow, check=False) == []
    assert ddp.findings(row, slow, check=True) == [
        "row mlp: a step takes 1.060 times that of the bare loop, at most 1.05"
    ]


def test_sides_that_come_to_other_weights_are_told() -> None:
    told = ["row mlp: the two sides do not come to the same weights"]
    assert ddp.findings(ddp.ROWS[0], [turn(1.0, 1.0, weight=1.1), turn(1.0, 1.0)], check=False) == told


def test_a_row_tells_microseconds_a_step_and_what_comes_before() -> None:
    row = ddp.ROWS[0]
    told = ddp.line(row, [turn(1.0, 1.0), turn(row.steps * 1e-3, row.steps * 1.1e-3)])
    assert told[2:] == ["1,000", "1,100", "1.10 (1.10 to 1.10)", "50 ms"]
