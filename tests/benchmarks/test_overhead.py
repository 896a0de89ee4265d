"""The benchmark runs, and tells each figure that the pages name it for; what the figures are is for no test to say."""

from __future__ import annotations

import overhead


def test_it_tells_the_ratios_and_the_cost_of_a_hook(capsys, monkeypatch):
    monkeypatch.setattr(overhead, "EPOCHS", 2)
    monkeypatch.setattr(overhead, "TURNS", 1)
    monkeypatch.setattr(overhead, "microseconds", lambda call: call() or 0.0)

    overhead.main()

    told = capsys.readouterr().out
    for figure in ("ratio without plugins", "ratio with 4 plugins", "history adds", "a hook with 5 listeners: frozen"):
        assert figure in told
