"""The benchmark runs, and tells each figure that the pages name it for; what the figures are is for no test to say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "overhead.py"


def test_it_tells_the_ratios_and_the_cost_of_a_hook(capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("overhead", FILE)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    monkeypatch.setattr(benchmark, "EPOCHS", 2)
    monkeypatch.setattr(benchmark, "TURNS", 1)
    monkeypatch.setattr(benchmark, "microseconds", lambda call: call() or 0.0)

    benchmark.main()

    told = capsys.readouterr().out
    for figure in ("ratio without plugins", "ratio with 4 plugins", "history adds", "a hook with 5 listeners: frozen"):
        assert figure in told
