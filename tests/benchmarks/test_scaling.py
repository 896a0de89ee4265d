"""What measures how the cost grows: every side of every sweep trains the same, and what grows that must not is named.

How long anything takes is for no test to say.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import scaling


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "STEPS", 12)


@pytest.mark.parametrize(
    ("sweep", "value", "steps"),
    [("rows", 5, 12), ("rows", 7, 12), ("rows", 20_000, 1000), ("plugins", 0, 12), ("plugins", 3, 12),
     ("epochs", 1, 1), ("epochs", 20, 20), ("width", 200_000, 30)],
)  # fmt: skip
def test_every_side_of_a_point_takes_the_same_steps_to_the_same_weights(capsys, monkeypatch, sweep, value, steps):
    if sweep == "width":  # as many steps as of the widest, with a model that is quick
        given = scaling.problem(sweep, value)
        monkeypatch.setattr(scaling, "problem", lambda *_: scaling.replace(given, width=4))
    told = {}
    for side in scaling.SWEEPS[sweep].sides:
        assert scaling.main(["--child", sweep, str(value), side]) == 0
        told[side] = json.loads(capsys.readouterr().out)

    assert {figures["steps"] for figures in told.values()} == {steps}
    assert len({figures["weights"] for figures in told.values()}) == 1
    for figures in told.values():
        assert figures["us"] > 0
        assert figures["seconds"] * 1e6 / steps == pytest.approx(figures["us"])
        assert figures["peak"] >= figures["after"]
        assert figures["before"] > scaling.MiB


def test_a_point_is_measured_in_processes_of_its_own(capfd):
    (row,) = scaling.swept("plugins", [2], turns=1)

    assert list(row) == ["value", "raw", "trainer"]
    assert row["value"] == 2
    assert row["raw"]["ratio"] == 1
    assert row["trainer"]["ratio"] == row["trainer"]["us"] / row["raw"]["us"]
    assert row["trainer"]["steps"] == row["raw"]["steps"]
    assert row["trainer"]["weights"] == row["raw"]["weights"]
    assert "plugins 2: raw " in capfd.readouterr().err


def test_a_process_that_fails_ends_it():
    with pytest.raises(SystemExit, match="rows nothing raw ended with 1: "):
        scaling.child("rows", "nothing", "raw")


def test_the_history_is_what_an_epoch_leaves_behind():
    told = scaling.traced("trainer", 100)

    assert 100 < told["held"] < scaling.ROW
    assert told["left"] < told["held"] / 2
    assert any(place.startswith("framework/") for place in told["places"])


# ------------------------------------------------------------------------------------------------ given results


def side(us: float, ratio: float = 1.0, after: float = 0, **others: Any) -> dict[str, Any]:
    given = {"us": us, "ratio": ratio, "after": after, "peak": after + 1e5, "before": 7e8, "seconds": 1.0}
    return {**given, "turns": [us], "steps": 1000, "weights": ["aa"], **others}


def results() -> dict[str, Any]:
    """What a good machine and a good trainer would give: nothing grows."""
    sweeps: dict[str, list[dict[str, Any]]] = {
        "rows": [
            {"value": value, "raw": side(100 + value / 100), "trainer": side(40 + value / 1000, 0.4, value * 20)}
            for value in (5, 100, 10_000, 1_000_000, 10_000_000)
        ],
        "plugins": [
            {"value": value, "raw": side(100), "trainer": side(40 + value / 10, 0.4)} for value in (0, 1, 5, 10, 20, 50)
        ],
        "epochs": [
            {
                "value": value,
                "raw": side(60 + 800 / value),
                "trainer": side(40 + 1000 / value, 0.7, value * 360),
                "with plugins": side(70 + 3000 / value, 1.2, value * 380),
            }
            for value in (1, 10, 100, 1000, 10_000, 100_000)
        ],
        "width": [
            {"value": value, "raw": side(500 + value / 2), "trainer": side(180 + value / 2, 0.9)}
            for value in (500, 2000, 20_000, 200_000)
        ],
    }
    python = {"held": 340.0, "left": 0.5, "places": {"framework/loop.py:69": 200.0}}
    about = {"python": "3.11.7", "torch": "2.15.0", "cpu": "some", "cores": 2, "threads": 2, "system": "Linux"}
    traced = {"trainer": {**python}, "with plugins": {**python}}
    return {"machine": about, "turns": 3, "quick": False, "sweeps": sweeps, "traced": traced}


def test_nothing_grows_in_good_results():
    assert scaling.grown(results()) == []
    assert scaling.grown({**results(), "sweeps": {}}) == []


def test_a_process_that_grows_with_the_epochs_is_named():
    given = results()
    for row in given["sweeps"]["epochs"]:
        row["trainer"]["after"] = 5000 * row["value"]

    (told,) = scaling.grown(given)

    assert told.startswith("epochs, trainer: the process grows by 5000 bytes an epoch, more than 1024 (")


def test_few_epochs_say_nothing_about_a_process():
    given = results()
    given["sweeps"]["epochs"] = given["sweeps"]["epochs"][:3]
    given["sweeps"]["epochs"][-1]["trainer"]["after"] = 10 * scaling.MiB

    assert scaling.grown(given) == []


def test_what_is_left_without_the_history_is_named_with_its_place():
    given = results()
    given["traced"]["with plugins"].update(left=88.0, places={"plugins/best.py:3": 88.0, "framework/loop.py:69": 200.0})

    assert scaling.grown(given) == [
        "epochs, with plugins: 88 bytes an epoch are left without the history "
        "(most from framework/loop.py:69 200, plugins/best.py:3 88)"
    ]


def test_rows_that_are_too_long_are_named():
    given = results()
    given["traced"]["trainer"].update(held=2000.0, places={})

    assert scaling.grown(given) == [
        "epochs, trainer: Python holds 2000 bytes an epoch, more than 1024 (not from Python)"
    ]  # fmt: skip


def test_an_epoch_that_takes_longer_in_a_long_fit_is_named():
    given = results()
    given["sweeps"]["epochs"][-1]["trainer"]["us"] = 900.0

    assert scaling.grown(given) == ["epochs, trainer: an epoch of 100,000 takes 900 us, of fewer 40"]


def test_plugins_that_cost_more_than_in_a_straight_line_are_named():
    given = results()
    for row in given["sweeps"]["plugins"]:
        row["trainer"]["us"] = 40 + row["value"] ** 2 / 10

    (told,) = scaling.grown(given)

    assert told == "plugins: 50 add 250.0 us to a step of 40.0; 10 add 10.0, so that would be 50.0"


@pytest.mark.parametrize("slope", [0.0, -0.01, 0.5, 30.0])
def test_a_straight_line_may_be_steep(slope):
    given = results()
    for row in given["sweeps"]["plugins"]:
        row["trainer"]["us"] = 40 + slope * row["value"]

    assert scaling.grown(given) == []
    assert scaling.per_plugin(given["sweeps"]["plugins"]) == pytest.approx(slope)


def test_sides_that_do_not_train_the_same_are_named():
    given = results()
    given["sweeps"]["rows"][1]["trainer"]["weights"] = ["bb"]
    given["sweeps"]["width"][3]["trainer"]["steps"] = 999

    assert scaling.grown(given) == [
        "rows 100: the last weights of trainer are not those of raw",
        "width 200,000: trainer took 999 steps, raw 1000",
    ]


def test_results_are_read_again_told_and_drawn(capsys, tmp_path):
    (tmp_path / "given.json").write_text(json.dumps(results()))
    given = ["--from", str(tmp_path / "given.json"), "--json", str(tmp_path / "again.json")]

    assert scaling.main([*given, "--pictures", str(tmp_path / "pictures"), "--check"]) == 0

    told = capsys.readouterr().out
    assert json.loads((tmp_path / "again.json").read_text()) == results()
    assert "torch 2.15.0, Python 3.11.7, some, 2 threads, median of 3\n" in told
    assert "A plugin adds 0.10 us to a step.\n" in told
    assert "trainer: an epoch leaves 340 bytes; the process grows by 360; without the history 0 (most from" in told
    drawn = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in drawn] == [f"scaling-{name}.svg" for name in ("epochs", "plugins", "rows", "width")]
    for file in drawn:
        text = file.read_text(encoding="utf-8")
        assert text.isascii()
        assert "<!-- trainer -->" in text
        assert "<!-- raw loop -->" in text
    assert "<!-- with 3 plugins -->" in drawn[0].read_text(encoding="utf-8")


def test_tables_for_a_page(capsys, tmp_path):
    given = results()
    given["sweeps"]["rows"][0]["trainer"]["weights"] = ["bb"]
    (tmp_path / "given.json").write_text(json.dumps(given))

    assert scaling.main(["--from", str(tmp_path / "given.json"), "--markdown", "--check"]) == 1
    told = capsys.readouterr().out
    assert "| plugins | steps | raw, us | trainer, us | trainer / raw |\n| --: | --: | --: | --: | --: |\n" in told
    assert "| 50 | 1,000 | 100.0 | 45.0 | 0.40 |\n" in told
    assert told.endswith("grows     rows 5: the last weights of trainer are not those of raw\n")

    assert scaling.main(["--from", str(tmp_path / "given.json"), "--only", "width", "--check"]) == 0
    assert "width: 1-W-1" in (told := capsys.readouterr().out)
    assert "rows: " not in told


def test_a_sweep_is_refused_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--only", "columns"])
    with pytest.raises(SystemExit):
        scaling.main(["--turns", "0"])
    assert "--turns must be 1 or more" in capsys.readouterr().err
