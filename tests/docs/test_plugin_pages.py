"""Every plugin and every verb has its page: in one form, with the arguments, defaults and hooks that the code has."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import plugins as benchmark
from framework.cli import VERBS
from framework.discovery import Listed
from framework.hooks import HOOKS
from framework.plugins import examine

DOCS = Path(__file__).parents[2] / "docs"
OURS = importlib.metadata.distribution("framework-trainer").entry_points
PLUGINS = {point.name: point for point in OURS.select(group="framework")}
COMMANDS = {**{point.name: point for point in OURS.select(group="framework.commands")}, **VERBS}
HEADINGS = {"en": ["Knobs", "Hooks and cost", "Example"], "ko": ["설정", "훅과 비용", "예"]}
MENTIONED = {  # hooks of other plugins and of the loop
    "compile": {"forward"},
    "mixed_precision": {"on_gradients"},
}
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

languages = pytest.mark.parametrize("language", ["en", "ko"])
every_plugin = pytest.mark.parametrize("name", sorted(PLUGINS))


def folder(language: str, kind: str = "plugins") -> Path:
    return (DOCS if language == "en" else DOCS / "ko") / kind


def sections(name: str, language: str) -> dict[str, str]:
    """The text under each heading; under "" what stands before the first."""
    text = (folder(language) / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    first, *rest = re.split(r"^## ", text.partition("\n")[2], flags=re.MULTILINE)
    return {"": first.strip(), **{part.partition("\n")[0]: part.partition("\n")[2].strip() for part in rest}}


def told(cell: str) -> Any:
    """The default in a cell of a table; words stand for None, such as what is taken in its place."""
    try:
        return ast.literal_eval(cell.strip("`"))
    except (ValueError, SyntaxError):
        return None


def made(name: str) -> Any:
    return benchmark.CASES[name].plugin(name)


@every_plugin
@languages
def test_a_page_has_the_fixed_form(name, language):
    found = sections(name, language)

    assert list(found) == ["", *HEADINGS[language]]
    assert all(found.values())
    assert re.search(r"^```(python|console)$", found[HEADINGS[language][2]], re.MULTILINE)


@every_plugin
@languages
def test_the_knobs_are_the_arguments_with_their_defaults(name, language):
    text = sections(name, language)[HEADINGS[language][0]]
    cells = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", text, re.MULTILINE))
    arguments = inspect.signature(type(made(name))).parameters.items()
    defaults = {knob: one.default for knob, one in arguments if one.kind is not inspect.Parameter.VAR_KEYWORD}

    assert {knob: told(cell) for knob, cell in cells.items()} == defaults


@every_plugin
@languages
def test_every_hook_that_costs_a_step_or_changes_the_work_is_named_and_none_that_it_has_not(name, language):
    text = sections(name, language)[HEADINGS[language][1]]
    plugin = made(name)
    impls, findings = examine(Listed(name, plugin))
    at_times = {word for word in re.findall(r"self\.(\w+) = ", inspect.getsource(type(plugin))) if word in HOOKS}

    assert findings == []
    named = {word for word in re.findall(r"`(\w+)`", text) if word in HOOKS}
    telling = {impl.hook.name for impl in impls if impl.hook.hot or impl.hook.kind != "tell"} | at_times
    assert telling - named == set()
    assert named - {impl.hook.name for impl in impls} - at_times == MENTIONED.get(name, set())


@every_plugin
def test_the_cost_is_the_same_in_both_languages(name):
    last = {language: sections(name, language)[HEADINGS[language][1]].splitlines()[-1] for language in ("en", "ko")}

    for language, line in last.items():
        assert line.startswith(benchmark.BEGINS[language])
    english, korean = (re.findall(r"\d+\.\d+|not measured yet", line) for line in last.values())
    assert english == korean != []


@languages
def test_the_list_of_the_plugins_has_every_one_once_with_its_page(language):
    text = (folder(language) / "index.md").read_text(encoding="utf-8")

    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| .{10,} \|$", text, re.MULTILINE)
    assert sorted(listed) == [(name, name) for name in sorted(PLUGINS)]
    assert {page.stem for page in folder(language).glob("*.md")} == {"index", *PLUGINS}


@languages
def test_the_list_of_the_tools_has_every_verb_once_with_a_page_that_shows_it(language):
    index = folder(language, "tools") / "index.md"

    listed = dict(re.findall(r"^\| \[([\w-]+)\]\((\S+\.md)\) \| .{10,} \|$", index.read_text("utf-8"), re.MULTILINE))
    assert sorted(listed) == sorted({*COMMANDS, "dry-run"})
    for verb, link in listed.items():
        page = (index.parent / link).read_text(encoding="utf-8")
        shown = r"--dry-run\b" if verb == "dry-run" else rf"python -m framework {verb}\b"
        assert re.search(shown, page), f"{link} does not show {verb}"


TOOL_HEADINGS = {
    "en": ["Run it", "What it tells", "Options"],
    "ko": ["실행", "결과 읽기", "옵션"],
}


@pytest.mark.parametrize("page", sorted(p.stem for p in (DOCS / "tools").glob("*.md") if p.stem != "index"))
@languages
def test_a_page_of_a_tool_has_the_fixed_form(page, language):
    text = (folder(language, "tools") / f"{page}.md").read_text(encoding="utf-8")

    assert text.startswith(f"# {page}\n")
    assert re.findall(r"^## (.+)$", BLOCK.sub("", text), re.MULTILINE) == TOOL_HEADINGS[language]
