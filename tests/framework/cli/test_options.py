"""Knobs from the signature: their types, how they are written, and --config."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest


@pytest.fixture
def knob(lab, fine):
    """What the recipe gets for a knob `k`, declared so, when the command line says so."""

    def value(declared: str, *arguments: str, setup: str = "") -> str:
        lab(f"{setup}\ndef recipe({declared}):\n    print('K', repr(k))\n")
        return fine("lab.py", *arguments).line("K")

    return value


@pytest.mark.parametrize(
    ("declared", "arguments", "expected"),
    [
        ("k: bool = True", [], "True"),
        ("k: float = 0.1", ["--k", "0.5"], "0.5"),
        ("k: float = 0.1", ["--k=0.5"], "0.5"),
        ("k: float = 0.1", ["--k", "-1e-3"], "-0.001"),
        ("k: float = 0.1", ["--k=-1e-3"], "-0.001"),
        ("k: float = 0.1", ["--k", "1e38"], "1e+38"),
        ("k: float = 0.1", ["--k", "-.5"], "-0.5"),
        ("k: float = 0.1", ["--k", "inf"], "inf"),
        ("k: float = 0.1", ["--k", "1", "--k", "2"], "2.0"),
        ("k: float = 1", ["--k", "2"], "2.0"),
        ("k=0.1", ["--k", "2"], "2.0"),
        ("k=1", ["--k", "-2"], "-2"),
        ("k='a'", ["--k", "b c"], "'b c'"),
        ("k: str = 'a'", ["--k=-x"], "'-x'"),
        ("k: str = 'a'", ["--k", ""], "''"),
        ("k: str = 'a'", ["--k", "한글"], "'한글'"),
        ("k=False", ["--k"], "True"),
        ("k=False", ["--no-k"], "False"),
        ("k=True", ["--no-k"], "False"),
        ("k: bool = True", ["--k"], "True"),
        ("k: list[int] = [2, 3]", [], "[2, 3]"),
        ("k: list[int] = [2, 3]", ["--k", "500", "200000"], "[500, 200000]"),
        ("k: list[int] = [2, 3]", ["--k", "7"], "[7]"),
        ("k: list[int] = [2, 3]", ["--k"], "[]"),
        ("k: list[int] = [2, 3]", ["--k", "-1", "-2"], "[-1, -2]"),
        ("k: list[int] = (2, 3)", ["--k", "4"], "[4]"),
        ("k: list[int] = (2, 3)", [], "[2, 3]"),
        ("k=[2, 3]", [], "[2, 3]"),
        ("k: list[float] = [0.1]", ["--k", "1e-3", "-1e-3"], "[0.001, -0.001]"),
        ("k: tuple[int, ...] = (2, 3)", [], "(2, 3)"),
        ("k: tuple[int, ...] = (2, 3)", ["--k", "500", "200000"], "(500, 200000)"),
        ("k: tuple[int, ...] = [2, 3]", [], "(2, 3)"),
        ("k: tuple[int, str] = (2, 'a')", ["--k", "3", "b"], "(3, 'b')"),
        ("k: int | None = None", [], "None"),
        ("k: int | None = None", ["--k", "3"], "3"),
        ("k: int | None = 3", ["--k", "None"], "None"),
        ("k: 'int' = 3", ["--k", "4"], "4"),
        ("long_name: int = 1, k: int = 2", ["--long-name", "5", "--k", "3"], "3"),
        ("long_name: int = 1, k: int = 2", ["--long_name", "5", "--k", "3"], "3"),
    ],
)
def test_a_knob_takes_its_type_from_the_signature(knob, declared, arguments, expected) -> None:
    assert knob(declared, *arguments) == expected


def test_a_knob_can_be_a_path_or_one_of_several_words(knob) -> None:
    setup = "from pathlib import Path\nfrom typing import Literal"
    assert knob("k: Path = Path('a')", "--k", "b/c", setup=setup) == "PosixPath('b/c')".replace(
        "Posix", type(Path()).__name__[:-4]
    )
    assert knob("k: Literal['adam', 'sgd'] = 'sgd'", "--k", "adam", setup=setup) == "'adam'"


def test_annotations_may_be_postponed_and_the_return_type_unknown(lab, fine) -> None:
    head = "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
    head += "if TYPE_CHECKING:\n    from x import Recipe\n"
    lab("def recipe(k: list[int] = [1]) -> Recipe:\n    print('K', k)\n", head=head)
    assert fine("lab.py", "--k", "5", "6").line("K") == "[5, 6]"


@pytest.mark.parametrize(
    ("declared", "arguments", "parts"),
    [
        ("widths: list[int] = [2]", ["--widths", "5", "x"], ["--widths", "'x'"]),
        ("widths: tuple[int, ...] = (2,)", ["--widths", "5", "1.5"], ["--widths", "'1.5'"]),
        ("kind: Literal['adam', 'sgd'] = 'sgd'", ["--kind", "adm"], ["'adm'", "--kind", "adam"]),
        ("flag: bool = True", ["--flag=False"], ["--flag takes no value: write --flag or --no-flag"]),
        ("flag: bool = True", ["--flag", "False"], ["--flag takes no value: write --flag or --no-flag"]),
        ("flag=False", ["--no-flag", "--flag", "true"], ["--flag takes no value: write --flag or --no-flag"]),
        ("name: str = 'a'", ["--name"], ["--name"]),
        ("learning_rate: float = 1.0", ["--learning-rat", "1"], ["Did you mean --learning-rate?"]),
        ("lr: float = 1.0, widths: list[int] = [2]", ["--lrr", "1"], ["--lrr", "Did you mean --lr?"]),
    ],
)
def test_a_wrong_value_is_named_with_the_knob(lab, refused, declared, arguments, parts) -> None:
    lab(f"from typing import Literal\ndef recipe({declared}): return made()\n")
    said = refused("lab.py", *arguments)
    for part in parts:
        assert part in said


def test_a_list_knob_has_help(lab, go) -> None:
    outcome = go(lab("def recipe(widths: list[int] = [500, 300], flag: bool = False): return made()\n"), "--help")
    assert outcome.code == 0
    assert "--widths" in outcome.out
    assert "500 300" in outcome.out
    assert "--flag" in outcome.out
    assert "--no-flag" in outcome.out
    assert outcome.err == ""


def test_plugins_are_given_one_after_another(lab, fine, info) -> None:
    fine(lab(), "-p", "summary", "--plugin", "early_stopping")
    names = [plugin["name"] for plugin in info()["plugins"]]
    assert [name for name in names if name in ("summary", "early_stopping")] == ["summary", "early_stopping"]


# --------------------------------------------------------------------------------------------------------- --config


@pytest.fixture
def config(tmp_path):
    """Writes a JSON file; its name."""

    def write(content: object) -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        return "config.json"

    return write


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        ("k: float = 0.1", 0.5, "0.5"),
        ("k: float = 0.1", 1, "1.0"),
        ("k: float = 0.1", 1e-38, "1e-38"),
        ("k: float = 0.1", 0.1 + 0.2, repr(0.1 + 0.2)),
        ("k: float = 0.1", math.inf, "inf"),
        ("k: bool = True", False, "False"),
        ("k: bool = False", True, "True"),
        ("k: list[int] = [1]", [5, -6], "[5, -6]"),
        ("k: list[int] = [1]", [], "[]"),
        ("k: tuple[int, ...] = (1,)", [5, 6], "(5, 6)"),
        ("k: int | None = 3", None, "None"),
        ("k: int | None = None", 3, "3"),
        ("k: str = 'a'", "-x 한글", "'-x 한글'"),
        ("k: str = 'a'", "", "''"),
        ("k: str | None = None", None, "None"),
        ("k: list[tuple[int, int]] = [(1, 2)]", [[3, 4], [5, 6]], "[(3, 4), (5, 6)]"),
        ("k: dict[str, int] = {'a': 1, 'b_c': 2}", {"b_c": 3}, "{'a': 1, 'b_c': 3}"),
    ],
)
def test_a_config_gives_a_knob_its_value_and_type(knob, config, declared, value, expected) -> None:
    assert knob(declared, "--config", config({"k": value})) == expected


def test_what_is_typed_wins_over_the_config(knob, config) -> None:
    assert knob("k: float = 0.1", "--config", config({"k": 0.5}), "--k", "0.7") == "0.7"
    assert knob("k: float = 0.1", "--k", "0.7", "--config", config({"k": 0.5})) == "0.7"
    assert knob("k: list[int] = [1]", "--config", config({"k": [2, 3]}), "--k", "4") == "[4]"
    assert knob("k: bool = False", "--config", config({"k": True}), "--no-k") == "False"


def test_a_config_may_give_options_of_the_command_line(lab, fine, config, info) -> None:
    settings = {"lr": 0.2, "seed": 7, "run_dir": "here", "plugin": ["summary", "no:history"], "deterministic": False}
    fine(lab(), "--config", config(settings))
    found = info("here")
    assert (found["knobs"]["lr"], found["seed"]) == (0.2, 7)
    names = [plugin["name"] for plugin in found["plugins"]]
    assert "summary" in names
    assert "history" not in names


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"lrr": 1}, ["there is no knob 'lrr'. Did you mean 'lr'?"]),
        ({"lr": "abc"}, ["--lr", "'abc'"]),
        ({"lr": None}, ["--lr", "'None'"]),
        ({"epochs": 1.5}, ["--epochs", "'1.5'"]),
        ({"epochs": True}, ["--epochs"]),
        ({"seed": "x"}, ["--seed", "'x'"]),
        ([1, 2], ["must hold an object of knobs and their values"]),
        ("3", ["must hold an object of knobs and their values"]),
        ("{", ["is not JSON"]),
        ("", ["is not JSON"]),
        ({"knobs": {"lrr": 1}, "seed": 0}, ["there is no knob 'lrr'. Did you mean 'lr'?"]),
    ],
    ids=str,
)
def test_a_mistake_in_a_config_is_told_as_one_of_that_file(lab, refused, config, content, parts) -> None:
    said = refused(lab(), "--config", config(content))
    for part in ["--config config.json", *parts]:
        assert part in said


def test_a_config_that_is_no_text_is_refused(lab, refused, tmp_path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "--config config.json is not JSON" in refused(lab(), "--config", "config.json")
    assert "--config ." in refused(lab(), "--config", ".")


def test_the_config_of_a_run_gives_the_same_history(lab, fine, rows, info) -> None:
    fine(lab(), "--lr", "0.07", "--epochs", "4", "--seed", "5")
    fine(lab(), "--config", "runs/lab/001/run.json")
    assert rows("runs/lab/002") == rows("runs/lab/001")
    assert len(rows("runs/lab/002")) == 4
    assert info("runs/lab/002")["knobs"] == info("runs/lab/001")["knobs"] == {"lr": 0.07, "epochs": 4}
    fine(lab(), "--config", "runs/lab/001/run.json", "--seed", "6")
    assert rows("runs/lab/003") != rows("runs/lab/001")


def test_the_help_of_a_recipe_has_its_expectation_and_each_suggestion_on_a_line_of_its_own(lab, go) -> None:
    head = '"""A lab.\n\nWhat it shows.\n\nExpect: 0.5.\nWhy so.\n\nNext: --lr 0.5\nNext: --lr 2\n"""\n'
    outcome = go(lab("def recipe(lr: float = 0.1): return None\n", head=head), "--help")
    lines = outcome.out.splitlines()
    for line in ("A lab.", "Expect: 0.5.", "Why so.", "Next: --lr 0.5", "Next: --lr 2"):
        assert line in lines
