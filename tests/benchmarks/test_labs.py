"""The command that measures the labs runs one and tells its end; at full length it is run by hand."""

from __future__ import annotations

from pathlib import Path

import labs
import pytest

ROOT = Path(__file__).parents[2]


def test_with_names_it_runs_those_and_writes_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(labs, "DOCS", tmp_path)

    labs.main(["learning_rate"])

    told = capsys.readouterr().out
    assert told.startswith("\n## learning_rate\n")
    assert "\nExpect: 1e5 jumps" in told
    assert "result    train_loss 0.968451" in told
    assert "test_accuracy" in told
    for word in ("seed ", "saved ", "plugins ", "next ", "pictures "):
        assert f"\n{word}" not in told
    assert list(tmp_path.iterdir()) == []


def test_the_pictures_of_a_recipe_are_kept_under_the_names_that_the_pages_show(tmp_path):
    labs.measure("preprocessing", tmp_path)
    labs.measure("linear_regression", tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {
        "preprocessing.svg", "preprocessing-features.svg", "linear_regression.svg",
    }  # fmt: skip
    assert "linear_regression/001" in (tmp_path / "linear_regression.svg").read_text(encoding="utf-8")


def test_a_recipe_that_fails_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(labs, "RECIPES", tmp_path)
    (tmp_path / "broken.py").write_text('"""Lab 00: broken.\n\nExpect: 1.\n"""\ndef recipe(): raise KeyError("x")\n')

    with pytest.raises(SystemExit, match="broken ended with 2: error: "):
        labs.measure("broken")


def test_what_it_measured_is_of_every_recipe_there_is_with_what_it_is_to_expect():
    for page in (ROOT / "docs" / "labs" / "figures.md", ROOT / "docs" / "ko" / "labs" / "figures.md"):
        text = page.read_text(encoding="utf-8")
        for recipe in (ROOT / "recipes").glob("[!_]*.py"):
            expected = next(line for line in recipe.read_text("utf-8").splitlines() if line.startswith("Expect: "))
            assert f"\n## {recipe.stem}\n" in text
            assert expected in text, f"{page} is older than {recipe.name}: python benchmarks/labs.py writes it anew"
