"""What there is: plugins, hooks, recipes."""

from __future__ import annotations

import sys
from pathlib import Path

import framework_recipes
import pytest
from framework_recipes import COURSE

import framework
from framework.hooks import HOOKS

ROOT = Path(__file__).parents[3]


def test_plugins_lists_each_with_where_it_is_from_and_its_hooks(go) -> None:
    outcome = go("plugins")
    assert outcome.code == 0
    assert outcome.out.isascii()
    lines = outcome.out.splitlines()
    for name, state in (("accuracy", "available"), ("history", "default"), ("plot", "default")):
        index = next(index for index, line in enumerate(lines) if line.split()[:1] == [name])
        assert lines[index].split()[1:4] == ["framework-trainer", framework.__version__, state]
        assert len(lines[index].split()) > 6  # and what it is for
    index = next(index for index, line in enumerate(lines) if line.startswith("history "))
    assert lines[index + 1].split()[0] == "on_epoch_end,"
    assert lines[index + 1].split()[-1] == "on_teardown"
    assert "broken" not in outcome.out


def resolved(out: str) -> list[tuple[str, str]]:
    """Name and place of each plugin in a printed order."""
    lines = [line for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    return [(line.split()[1], line[24:].split("  ")[0].strip()) for line in lines]


def test_plugins_of_a_recipe_are_printed_in_their_order(go) -> None:
    """`python -m framework plugins recipes/softmax.py`"""
    for recipe in (ROOT / "recipes/softmax.py", "softmax"):
        outcome = go("plugins", recipe)
        assert outcome.code == 0
        assert "the first runs first and wraps outermost" in outcome.out
        assert resolved(outcome.out) == [
            ("accuracy", "recipe"), ("progress", "default"), ("console", "default"), ("history", "default"),
            ("best_checkpoint", "default"), ("plot", "default"),
        ]  # fmt: skip


def test_the_printed_order_is_that_of_a_run(lab, go, fine, info) -> None:
    source = "def on_fit_start(): pass\ndef recipe(): return made(plugins=['summary', 'history'])\n"
    options = ["-p", "gpu_memory", "-p", "no:console"]
    printed = resolved(go("plugins", lab(source), *options).out)
    assert printed[0] == ("lab", "recipe module")
    assert printed[-1] == ("gpu_memory", "-p")
    assert go("lab.py", *options).code == 0
    ran = [(plugin["name"], plugin["listed"]) for plugin in info()["plugins"]]
    assert printed == ran


def test_printing_an_order_trains_nothing_and_writes_nothing(lab, go, tmp_path) -> None:
    go("plugins", lab("def on_fit_start(): raise AssertionError\ndef recipe(): return made()\n"))
    assert not (tmp_path / "runs").exists()


def test_the_order_is_printed_for_each_variant(lab, go) -> None:
    source = "def recipe(): return {'a': lambda: made(plugins=['summary']), 'b': made}\n"
    outcome = go("plugins", lab(source))
    assert outcome.code == 0
    a, b = outcome.out.split("b: ")
    assert a.startswith("a: the plugins of lab")
    assert "summary" in a
    assert "summary" not in b


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("def recipe(): return None\n", [], "trains nothing, so it has no plugins"),
        ("def recipe(): return made(plugins=['acuracy'])\n", [], "Did you mean 'accuracy'?"),
        ("def recipe(): return made()\n", ["-p", "no:plott"], "Did you mean 'plot'?"),
        ("def recipe(): return made()\ndef on_epoch_ended(): pass\n", [], "on_epoch_ended is not a hook."),
    ],
)
def test_a_mistake_in_the_order_is_told_as_in_a_run(lab, refused, source, options, expected) -> None:
    assert expected in refused("plugins", lab(source), *options)


def test_hooks_prints_each_with_signature_kind_time_and_users(go) -> None:
    outcome = go("hooks")
    assert outcome.code == 0
    assert outcome.out.isascii()
    lines = outcome.out.splitlines()
    starts = [lines.index(hook.signature) for hook in HOOKS.values()]
    assert starts == sorted(starts)  # in the order of a fit
    for hook, start, end in zip(HOOKS.values(), starts, [*starts[1:], len(lines)], strict=True):
        kind, *rest = [line.strip() for line in lines[start + 1 : end] if line.strip()]
        when, _, users = " ".join(rest).partition(" implemented by: ")
        assert kind == hook.kind + ", hot" * hook.hot + ", isolated" * hook.isolated
        assert when == hook.when
        if hook.name == "on_batch_end":
            assert {"accuracy", "progress"} <= set(users.split(", "))
    assert max(map(len, lines)) <= 110


def test_recipes_are_listed_with_their_titles_without_being_imported(go) -> None:
    before = set(sys.modules)
    outcome = go("recipes")
    assert outcome.code == 0
    for file in (ROOT / "recipes").glob("[a-z]*.py"):
        (line,) = [line for line in outcome.out.splitlines() if line.split()[:1] == [file.stem]]
        assert len(line.split()) > 2
    assert not [name for name in set(sys.modules) - before if name.startswith("framework_recipes.")]


def test_recipes_are_listed_in_the_order_of_the_course_with_what_to_expect(go) -> None:
    lines = go("recipes").out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == [*COURSE]
    labs = [line.split()[2] for line in lines if line.split()[1:2] == ["Lab"]]
    assert labs == sorted(labs)
    line = next(index for index, line in enumerate(lines) if line.startswith("softmax "))
    assert lines[line].split()[1:3] == ["Lab", "06"]
    assert "expect " in lines[line + 1]
    assert "1.098612" in lines[line + 1]
    assert sum("expect " in line for line in lines) == len(names)
    assert max(map(len, lines)) <= 120


def test_a_file_that_somebody_put_beside_them_is_listed_behind_them(go, tmp_path, monkeypatch) -> None:
    (tmp_path / "a_lab_of_mine.py").write_text('"""Lab 00: mine."""\n')
    monkeypatch.setattr(
        framework_recipes.__spec__, "submodule_search_locations", [*framework_recipes.__path__, tmp_path]
    )
    monkeypatch.setattr(framework_recipes, "__path__", [*framework_recipes.__path__, str(tmp_path)])
    assert go("recipes").out.splitlines()[-1].split() == ["a_lab_of_mine", "Lab", "00", "mine"]


def test_recipes_are_copied_out_and_run_from_there(go, fine, tmp_path) -> None:
    outcome = go("recipes", "--copy", "mine/labs")
    assert outcome.code == 0
    names = {file.name for file in (ROOT / "recipes").glob("[a-z]*.py")}
    assert {file.name for file in (tmp_path / "mine/labs").iterdir()} == names
    assert f"copied {len(names)} recipes" in outcome.out
    fine("mine/labs/softmax.py", "--epochs", "2")
    assert (tmp_path / "runs/softmax/001/run.json").is_file()


def test_copying_overwrites_nothing(go, refused, tmp_path) -> None:
    (tmp_path / "softmax.py").write_text("mine")
    said = refused("recipes", "--copy", ".")
    assert "softmax.py is there already; nothing was copied" in said
    assert [file.name for file in tmp_path.iterdir()] == ["softmax.py"]
    assert (tmp_path / "softmax.py").read_text() == "mine"
