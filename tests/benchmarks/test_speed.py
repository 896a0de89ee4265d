"""What decides about speed: rows and limits, the verdict, what a process tells. How fast it is, no test can say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import speed

FILE = Path(__file__).parents[2] / "benchmarks" / "speed.py"
LIMITS = {  # of the issue: no plugins, default plugins
    "1": (0.38, 0.50), "2": (0.35, 0.52), "3": (0.60, 0.80), "4": (0.35, 0.48), "5": (0.38, 0.42), "6": (0.06, 0.08),
    "7": (0.70, 0.70), "8": (1.03, 1.03), "9": (0.03,), "start": (0.85,),
    "gpu-1": (0.25, 0.30), "gpu-4": (0.25, 0.30), "gpu-7": (0.80, 0.85),
}  # fmt: skip


def turn(raw: float = 1.0, bits: str = "same", **others: float) -> dict[str, dict[str, object]]:
    seconds = {"raw": raw, **others}
    measured = {"steps": 1000, "bits": "same", "parameters": "same", "after_the_loop": 0.25}
    made = {name: {**measured, "seconds": taken, "process": taken + 1.0} for name, taken in seconds.items()}
    made[list(made)[-1]]["bits"] = bits
    return made


def measured(id="1", *turns):
    return speed.Measured(next(row for row in speed.ROWS if row.id == id), list(turns))


def test_the_rows_and_what_they_are_to_reach_are_those_of_the_issue():
    reached = {row.id: [figure.limit for figure in row.figures if figure.limit is not None] for row in speed.ROWS}
    assert reached == {id: list(limits) for id, limits in LIMITS.items()}
    assert [row.epochs for row in speed.ROWS[:8]] == [2000, 1000, 1000, 1000, 3, 3, 50, 2]
    assert [row.batch_size for row in speed.ROWS[:8]] == [2, 8, None, 100, 100, 100, 100, 64]
    assert [figure.limit for row in speed.MATH for figure in row.figures] == [None] * 4
    assert set(speed.PEERS_EPOCHS) == {"1", "4", "5"}


def test_a_row_takes_turns_with_all_that_its_figures_compare():
    variants = {row.id: row.variants for row in (*speed.ROWS, *speed.MATH)}

    assert variants["1"] == variants["gpu-7"] == ["raw", "ours", "default"]
    assert variants["9"] == ["raw", "ours", "accuracy"]
    assert variants["start"] == ["bare", "run"]
    assert variants["5-math"] == ["raw-math", "ours-math"]


def test_the_ratio_is_the_median_of_the_ratios_of_the_pairs():
    turns = turn(1.0, ours=0.3, default=0.4), turn(10.0, ours=4.0, default=4.0), turn(2.0, ours=0.7, default=9.0)
    row = measured("1", *turns)
    whole = 1.3 / 2.0, 5.0 / 11.0, 1.7 / 3.0

    assert row.spread(row.row.figures[0]) == pytest.approx((0.35, 0.325, 0.375))
    assert row.spread(row.row.figures[0], start_up=True)[0] == pytest.approx(sorted(whole)[1])
    assert row.microseconds() == 2000.0


def test_a_row_within_its_limits_passes_the_check():
    row = measured("1", turn(1.0, ours=0.38, default=0.5))

    assert speed.wrong(row) == speed.short(row) == []
    assert speed.status([row], check=True) == 0


def test_a_row_that_falls_short_is_named_and_fails_the_check_alone():
    good, bad = (measured(id, turn(1.0, ours=0.36, default=0.49)) for id in ("1", "4"))

    assert speed.short(bad) == [
        f"row 4, {bad.row.title}: no plugins 0.360, at most 0.35",
        f"row 4, {bad.row.title}: default plugins 0.490, at most 0.48",
    ]
    assert speed.status([good, bad], check=True) == 1
    assert speed.status([good, bad], check=False) == 0


def test_what_a_plugin_adds_is_a_difference_over_the_raw_time():
    within, above = (measured("9", turn(1.0, ours=0.35, accuracy=a)) for a in (0.375, 0.39))

    assert speed.short(within) == []
    assert len(speed.short(above)) == 1
    assert "default plugins 0.040, at most 0.03" in speed.short(above)[0]


def test_bits_that_differ_fail_it_even_where_nothing_is_to_be_reached():
    row = measured("2", turn(1.0, ours=0.1, default=0.1), turn(1.0, "others", ours=0.1, default=0.1))

    assert speed.wrong(row) == [f"row 2, {row.row.title}: bits differ (default)"]
    assert speed.status([row], check=False) == 1


def test_a_plain_loop_that_gives_other_bits_each_time_is_no_measure():
    first, second = (turn(1.0, ours=0.1, default=0.1) for _ in range(2))
    for one in second.values():
        one["bits"] = "others"
    row = measured("2", first, second)

    assert speed.wrong(row) == [f"row 2, {row.row.title}: bits differ (raw from turn to turn)"]


def test_with_math_the_bits_are_not_compared():
    row = speed.Measured(speed.MATH[0], [{"raw-math": {"bits": "a"}, "ours-math": {"bits": "b"}}])

    assert speed.wrong(row) == []


def test_a_variant_that_failed_fails_it_with_the_reason():
    row = measured()
    row.failed["ours"] = "exit status 1: TypeError: no"

    assert speed.wrong(row) == [f"row 1, {row.row.title}: ours failed: exit status 1: TypeError: no"]
    assert speed.status([row], check=False) == 1


def test_a_row_that_was_left_out_falls_short_of_nothing():
    report = speed.Report(about={"gpu": None})

    report.run(next(row for row in speed.ROWS if row.id == "gpu-1"))

    assert [row.left_out for row in report.rows] == ["there is no GPU"]
    assert speed.status(report.rows, check=True) == 0


def test_the_table_has_a_line_a_row_as_text_and_as_markdown():
    rows = [measured("1", turn(1.0, ours=0.3, default=0.4)), measured("6")]

    text = speed.drawn(speed.table(rows), markdown=False).splitlines()
    marked = speed.drawn(speed.table(rows), markdown=True).splitlines()

    assert len(text) == 3
    assert (
        "1,000          0.30 (0.30 to 0.30)  0.38     0.40 (0.40 to 0.40)  0.50     250 ms                  0.15"
        in text[1]
    )
    assert text[1].endswith("0.65 / 0.70")
    assert len(marked) == 4
    assert {line.count("|") for line in marked} == {len(speed.HEAD) + 1}


def test_the_table_of_other_projects_tells_who_failed_who_is_absent_and_whose_parameters_are_the_same():
    row = measured("1", turn(1.0, ours=0.3, slow=2.0))
    row.turns[0]["slow"]["parameters"] = "others"
    row.failed["broken"] = "exit status 1: no"
    titles = {"raw": "the plain loop", "ours": "framework", "slow": "slow", "broken": "broken"}

    lines = speed.peers_table([row], titles, ["absent"])

    assert [line[1:] for line in lines[1:]] == [
        ["1 (1,000 us)", "yes"], ["0.30 (0.30 to 0.30)", "yes"], ["2.00 (2.00 to 2.00)", "no"], ["failed", ""],
        ["not installed", ""],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What a process of row 1 prints, for each variant."""
    started = {}
    for variant in ("raw", "ours", "default"):
        command = [sys.executable, str(FILE), "--one", variant, "--row", "1", "--epochs", "3"]
        folder = tmp_path_factory.mktemp(variant)
        started[variant] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    return {variant: json.loads(process.communicate()[0]) for variant, process in started.items()}


def test_processes_of_a_row_end_with_equal_bits(children):
    assert len({child["bits"] for child in children.values()}) == 1
    assert len({child["parameters"] for child in children.values()}) == 1


def test_a_process_tells_what_it_measured(children):
    for child in children.values():
        assert child["steps"] == 9
        assert child["seconds"] > 0.0
        assert len(child["bits"]) == 64
    assert children["raw"]["after_the_loop"] == 0.0
    assert children["default"]["after_the_loop"] > 0.0  # the picture is in it


def test_a_process_that_fails_is_told_with_its_last_line():
    with pytest.raises(speed.ChildError, match=r"exit status 1: ZeroDivisionError: division by zero"):
        speed.clocked([sys.executable, "-c", "1 / 0"], threads=1)


def test_the_bits_are_of_parameters_losses_and_random_numbers():
    import torch

    model = torch.nn.Linear(2, 1)
    parameters, bits = speed.hashes(model, [0.5])

    assert speed.hashes(model, [0.5]) == (parameters, bits)
    assert speed.hashes(model, [0.25])[0] == parameters
    assert speed.hashes(model, [0.25])[1] != bits
    torch.rand(1)
    assert speed.hashes(model, [0.5])[0] == parameters
    assert speed.hashes(model, [0.5])[1] != bits
    with torch.no_grad():
        model.weight += 1.0
    assert speed.hashes(model, [0.5])[0] != parameters


def test_the_bare_script_is_the_recipe_by_hand():
    row = next(row for row in speed.ROWS if row.id == "start")

    bare, run = (speed.measure(row, variant, epochs=3, threads=1) for variant in ("bare", "run"))

    assert bare["bits"] == run["bits"]
    assert 0.0 < run["cpu_seconds"] == run["process_cpu"]


def test_what_was_measured_is_written_with_the_figures(tmp_path):
    row = measured("1", turn(1.0, ours=0.3, default=0.4))
    report = speed.Report(pairs=1, file=tmp_path / "speed.json", about={"torch": "2"}, rows=[row])

    report.write()

    kept = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert (kept["about"], kept["pairs"], kept["threads"], kept["clock"]) == ({"torch": "2"}, 1, 2, "wall")
    assert kept["rows"][0]["figures"][0] == {"title": "no plugins", "limit": 0.38, "ratio": [0.3, 0.3, 0.3]}
    assert kept["rows"][0]["turns"] == row.turns


def test_the_time_of_the_processor_can_be_compared_in_its_place():
    row = measured("1", turn(1.0, ours=0.3, default=0.4))
    row.clock = "cpu"
    row.turns[0]["raw"]["cpu_seconds"], row.turns[0]["ours"]["cpu_seconds"] = 2.0, 0.5

    assert row.spread(row.row.figures[0])[0] == 0.25
    assert row.microseconds() == 2000.0
