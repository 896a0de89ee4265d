"""The model of what many processes cost: its formulas, where its constants come from, and what the page shows of it.

How long anything takes is for no test to say.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster
import pytest

KEPT = json.loads(cluster.FILE.read_text(encoding="utf-8"))
NVLINK = cluster.Network(8, (400e9, 100e9), (3e-6, 10e-6), start=8e-6)
ONE = cluster.Case(
    "one", 1e6, 0.1, 0.6, lambda level: 1.0, cluster.Network(1, (1e9, 1e9), (1e-4, 1e-4)), lambda ranks, size: 2.0,
    failure=1e6, restart=30.0,
)  # fmt: skip


def test_an_all_reduce_goes_twice_around_the_ring():
    assert ONE.network.seconds(4, 1e6) == pytest.approx(6 * 1e-4 + 2 * 3 / 4 * 1e6 / 1e9)
    assert ONE.network.seconds(4, 1e6, rounds=1) == pytest.approx(ONE.network.seconds(4, 1e6) / 2)
    assert ONE.network.seconds(1, 1e6) == 0


def test_hops_and_bandwidth_between_nodes_are_those_of_the_network():
    assert NVLINK.seconds(8, 8e6) == pytest.approx(8e-6 + 14 * 3e-6 + 2 * 7 / 8 * 8e6 / 400e9)
    assert NVLINK.seconds(16, 8e6, rounds=1) == pytest.approx(8e-6 + 14 * 3e-6 + 10e-6 + 15 / 16 * 8e6 / 100e9)


def test_an_all_reduce_of_many_nodes_takes_the_tree_and_a_gather_has_none():
    assert NVLINK.seconds(8 * 64, 0) == pytest.approx(8e-6 + 2 * (7 * 3e-6 + 6 * 10e-6))
    assert NVLINK.seconds(8 * 64, 0, rounds=1) == pytest.approx(8e-6 + 448 * 3e-6 + 63 * 10e-6)
    assert replace(NVLINK, node=1).seconds(64, 0) == pytest.approx(8e-6 + 2 * 63 * 10e-6)  # gloo has none either


@pytest.mark.parametrize("ranks", [1, 2, 9, 1000])
def test_the_slowest_of_many_is_the_expected_maximum(ranks):
    even = replace(ONE, spread=lambda level: 0.5 + level)  # from 0.5 to 1.5

    assert even.slowest(ranks) == pytest.approx(0.5 + ranks / (ranks + 1), rel=1e-3)
    assert ONE.slowest(ranks) == 1


def test_of_ten_thousand_normal_draws_the_largest_is_almost_four_sigma_away():
    normal = replace(ONE, spread=statistics.NormalDist(1, 0.01).inv_cdf)

    assert normal.slowest(1) == 1
    assert normal.slowest(10_000) == pytest.approx(1 + 3.85 * 0.01, abs=1e-4)


def test_with_one_bucket_nothing_hides_the_all_reduce():
    assert ONE.waiting(2) == ONE.network.seconds(2, 4e6)


def test_the_backward_pass_hides_all_buckets_but_the_last_where_it_is_long_enough():
    large = replace(ONE, parameters=4 * cluster.BUCKET / 4)
    bucket = large.network.seconds(2, cluster.BUCKET)

    assert replace(large, compute=1.0).waiting(2) == bucket
    assert large.waiting(2) == pytest.approx(4 * bucket - 0.6 * 0.1 * 3 / 4)


def test_a_sharded_layer_is_gathered_twice_and_scattered_once():
    cut = replace(ONE, layers=10, parameters=1e8)
    layer = cut.network.seconds(2, 4e7, rounds=1)

    assert replace(cut, compute=100.0).waiting(2) == 2 * layer
    assert cut.waiting(2) == pytest.approx(30 * layer - 0.1 * 9 / 10)


def test_the_shares_are_a_whole_and_the_first_is_the_efficiency():
    shares = ONE.shares(16)
    interval = math.sqrt(2 * 2.0 * 1e6 / 16)
    lost = 2.0 / interval + (interval / 2 + 30) / (1e6 / 16)

    assert sum(shares.values()) == pytest.approx(1)
    assert shares["computing"] == pytest.approx(ONE.compute / (ONE.step(16) * (1 + lost)))


@pytest.mark.parametrize("ranks", [2, 100])
def test_at_the_best_interval_saving_costs_what_is_done_again(ranks):
    shares = replace(ONE, restart=0.0).shares(ranks)

    assert shares["saving"] == pytest.approx(shares["done again, restarts"])


def test_a_checkpoint_of_shards_is_written_by_all_nodes_and_one_of_copies_by_the_first():
    *_, copies, shards = cluster.cases(KEPT)
    fixed = KEPT["constants"]["a checkpoint: any"][0]

    assert copies.saving(8, 2e9) == copies.saving(64, 2e9) == pytest.approx(fixed + 1.0)
    assert shards.saving(8, 2e9) == pytest.approx(fixed + 1.0)
    assert shards.saving(16, 2e9) == pytest.approx(fixed + 0.5)
    assert shards.saving(256, 7e9) == pytest.approx(fixed + 1.0)  # more than that no 32 nodes write


def test_a_line_through_points_is_found_again():
    start, slope = cluster.line([(size, 2e-4 + size * 3e-9) for size in cluster.SIZES])

    assert start == pytest.approx(2e-4)
    assert slope == pytest.approx(3e-9)
    assert cluster.line([(1, 1e-3), (1000, 0.9e-3)])[1] == 1e-12


def test_a_step_that_is_not_as_foretold_is_named():
    said = {name: both[0] for name, both in cluster.steps_of_ddp(KEPT).items()}

    assert cluster.wrong({**KEPT, "ddp": said}) == []
    assert cluster.wrong({**KEPT, "ddp": {**said, "mnist_cnn": 1.51 * said["mnist_cnn"]}}) == ["mnist_cnn"]
    assert cluster.wrong({**KEPT, "ddp": {name: seconds / 1.51 for name, seconds in said.items()}}) == list(said)


# --------------------------------------------------------------------------------------------- constants and the page


def test_every_constant_says_where_it_comes_from():
    for name, (value, unit, source) in KEPT["constants"].items():
        assert value > 0, name
        assert isinstance(unit, str), name
        assert source, name


def test_what_is_kept_was_measured_and_is_as_foretold():
    assert KEPT["machine"]["threads"] == 1
    assert sorted(KEPT["spread"]) == sorted(KEPT["ddp"]) == sorted(cluster.STEPS)
    for quantiles in KEPT["spread"].values():
        assert quantiles == sorted(quantiles)
        assert len(quantiles) == len(cluster.LEVELS)
    assert cluster.wrong(KEPT) == []


@pytest.mark.parametrize("page", cluster.PAGES, ids=["en", "ko"])
def test_the_page_shows_the_tables_as_they_are(page):
    text = page.read_text(encoding="utf-8")

    assert cluster.with_tables(text, KEPT) == text
    for table in cluster.tables(KEPT):
        assert text.count(table) == 1


def test_the_picture_names_every_case(tmp_path):
    cluster.draw(KEPT, tmp_path / "cluster.svg")

    drawn = (tmp_path / "cluster.svg").read_text(encoding="utf-8")
    for case in cluster.cases(KEPT):
        assert drawn.count(case.name) >= 2


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [(3.4e-6, "s", "3.4 us"), (0.0281, "s", "28.1 ms"), (900, "s", "900 s"), (989e12, "FLOP/s", "989 TFLOP/s"),
     (4.5e11, "B/s", "450 GB/s"), (203_530, "", "203,530"), (0.4, "of it", "0.4 of it"), (0.0, "s", "0 s")],
)  # fmt: skip
def test_a_value_is_told_in_its_unit(value, unit, told):
    assert cluster._value(value, unit) == told


def test_constants_are_measured_and_kept_and_the_pages_and_the_picture_follow(tmp_path, monkeypatch, capsys):
    # two processes are started twice, each with an import of torch: there is no quicker way to them
    monkeypatch.setattr(cluster, "STEPS", {"mnist_mlp": 3})
    monkeypatch.setattr(cluster, "PROCESSES", (2,))
    monkeypatch.setattr(cluster, "SIZES", [2**10, 2**22])
    monkeypatch.setattr(cluster, "SAVES", [2**12, 2**22])
    monkeypatch.setattr(cluster, "TURNS", 20)
    files: dict[str, Any] = {"FILE": tmp_path / "cluster.json", "PICTURE": tmp_path / "img" / "cluster.svg"}
    pages = [tmp_path / "page.md"]
    for name, value in {**files, "PAGES": pages}.items():
        monkeypatch.setattr(cluster, name, value)
    published = {name: one for name, one in KEPT["constants"].items() if not one[2].startswith(("measured", "counted"))}
    files["FILE"].write_text(json.dumps({"constants": published}), encoding="utf-8")
    pages[0].write_text("Before.\n\n| ranks | old |\n| --- | --- |\n\nAfter.\n", encoding="utf-8")

    assert cluster.main(["--measure"]) == 0

    kept, said = json.loads(files["FILE"].read_text(encoding="utf-8")), capsys.readouterr().out
    assert published.items() <= kept["constants"].items()
    assert kept["constants"].keys() <= KEPT["constants"].keys()
    assert kept["ddp"]["mnist_mlp"] > 0
    assert all(table in said for table in cluster.tables(kept))
    assert pages[0].read_text(encoding="utf-8") == f"Before.\n\n{cluster.tables(kept)[0]}\nAfter.\n"
    assert Path(files["PICTURE"]).stat().st_size > 0
