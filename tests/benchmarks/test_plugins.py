"""The benchmark of the plugins runs, knows every plugin, and writes what it found into the pages of both languages."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

import plugins as benchmark

STEP, EPOCH = benchmark.Figure(32.04, 11.64, 0.2), benchmark.Figure(12.0, -3.0, 3.5)


@pytest.fixture(autouse=True)
def _it_is_quick(monkeypatch):
    monkeypatch.setattr(benchmark, "EPOCHS", 3)
    monkeypatch.setattr(benchmark, "TURNS", 1)


@pytest.fixture
def pages(tmp_path, monkeypatch):
    folders = {"en": tmp_path / "en", "ko": tmp_path / "ko"}
    for language, folder in folders.items():
        folder.mkdir()
        text = f"## Hooks\n\n{benchmark.BEGINS[language]}not measured yet\n\n## Example\n"
        (folder / "accuracy.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr(benchmark, "PAGES", folders)
    return folders


def test_every_plugin_of_the_framework_has_a_case():
    points = importlib.metadata.distribution("framework-trainer").entry_points.select(group="framework")

    assert sorted(benchmark.CASES) == sorted(point.name for point in points)


def test_it_tells_what_a_plugin_adds(capsys):
    benchmark.main(["accuracy"])

    heading, row = capsys.readouterr().out.splitlines()[1:]
    assert heading.split() == ["plugin", "a", "step", "adds", "noise", "ratio", "an", "epoch", "adds", "noise"]
    assert re.fullmatch(r"accuracy( +-?\d+\.\d){3} +\d+\.\d\d( +-?\d+\.\d){3}", row)


def test_it_writes_the_line_into_both_pages_and_nothing_else(pages, capsys):
    benchmark.main(["accuracy", "--write"])

    for language, folder in pages.items():
        text = (folder / "accuracy.md").read_text(encoding="utf-8")
        begins = benchmark.BEGINS[language]
        assert re.fullmatch(rf"## Hooks\n\n{begins}.*\d+\.\d us.*\n\n## Example\n", text)
        assert "not measured" not in text


def test_a_page_without_the_line_is_an_error_that_names_it(pages):
    (pages["ko"] / "accuracy.md").write_text("# accuracy\n", encoding="utf-8")

    with pytest.raises(ValueError, match=r"accuracy\.md: 0 lines begin with '한 스텝의 비용: '; there must be one"):
        benchmark.write("accuracy", {"en": "Cost a step: 1", "ko": "한 스텝의 비용: 1"})


@pytest.mark.parametrize("as_ratio", [False, True])
def test_the_line_has_the_same_numbers_in_both_languages(as_ratio):
    lines = [benchmark.line(language, STEP, EPOCH, as_ratio) for language in ("en", "ko")]

    english, korean = (re.findall(r"\d+\.\d+", line) for line in lines)
    assert english == (["1.36", "32.0"] if as_ratio else ["11.6", "32.0"])
    assert korean == english


def test_what_is_less_than_two_fits_without_the_plugin_differ_by_is_not_told_as_a_figure():
    assert benchmark.line("en", STEP, EPOCH, as_ratio=False) == (
        "Cost a step: +11.6 us (a step without it takes 32.0 us), and nothing measurable an epoch"
    )
    assert "한 에폭에 잴 수 없을 만큼 작음" in benchmark.line("ko", STEP, EPOCH, as_ratio=False)


def test_a_figure_is_what_a_fit_has_more_than_those_before_and_after_it():
    found = benchmark.Figure.of([(10.0, 14.0, 12.0), (10.0, 15.0, 10.0), (11.0, 13.0, 10.0)])

    assert (found.without, found.added, found.noise) == (10.5, 3.0, 1.0)


def test_a_plugin_that_it_does_not_know_is_told_with_those_that_it_knows(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["acuracy"])

    assert "no case for acuracy; there are: accuracy, " in capsys.readouterr().err
