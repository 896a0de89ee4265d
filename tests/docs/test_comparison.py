"""docs/comparison.md says yes to nothing that no test holds, and the Korean page says the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from framework.hooks import HOOKS

ROOT = Path(__file__).parents[2]
PAGES = {"en": ROOT / "docs" / "comparison.md", "ko": ROOT / "docs" / "ko" / "comparison.md"}
EVENTS = 17  # the row that has numbers


class Row(NamedTuple):
    number: int
    what: str
    others: list[str]
    have_it: str
    here: str
    tests: list[str]


def rows(language: str) -> list[Row]:
    found = []
    for line in re.findall(r"^\| \d+ \|.+\|$", PAGES[language].read_text(encoding="utf-8"), re.MULTILINE):
        number, what, *others, have_it, here, tests = [cell.strip() for cell in line[1:-1].split("|")]
        found.append(Row(int(number), what, others, have_it, here, re.findall(r"`([^`]+)`", tests)))
    return found


def named_in(file: Path) -> set[str]:
    """The tests of a file; none where it is not there."""
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.parse("")
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_there_are_98_rows_of_eleven_others():
    found = rows("en")

    assert [row.number for row in found] == list(range(1, 99))
    for row in found:
        assert len(row.others) == 11
        assert row.have_it in {"ALL", "MOST", "FEW", "NONE", "WEAK"} or row.number == EVENTS
        if row.number != EVENTS:
            assert set(row.others) <= {"Y", "~", "N", "-"}, row.number
            assert row.here in {"yes", "partly", "no"}


def test_every_yes_has_a_test_and_every_test_that_is_named_exists():
    missing = []
    for row in rows("en"):
        if row.here != "no" and not row.tests:
            missing.append(f"{row.number}: {row.what}")
        for named in row.tests:
            file, _, test = named.partition("::")
            missing += [] if test in named_in(ROOT / file) else [f"{row.number}: {named}"]

    assert missing == []


def test_what_all_or_most_have_is_here():
    wanted = {row.number: row.here for row in rows("en") if row.have_it in {"ALL", "MOST"}}

    assert len(wanted) > 25
    assert {number for number, here in wanted.items() if here != "yes"} == set()


@pytest.mark.parametrize("language", ["en", "ko"])
def test_what_is_not_a_yes_is_explained_below_the_table(language):
    below = PAGES[language].read_text(encoding="utf-8").rpartition("|\n")[2]
    explained = {int(number) for numbers in re.findall(r"\(([\d, ]+)\)", below) for number in numbers.split(",")}

    assert explained == {row.number for row in rows("en") if row.here in {"partly", "no"}}


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_counts_are_those_of_the_table(language):
    text = PAGES[language].read_text(encoding="utf-8")
    words = {"en": "{} times {}", "ko": {"yes": "yes(있음)가 {}", "partly": "partly(일부)가 {}", "no": "no(없음)가 {}"}}
    for here in ("yes", "partly", "no"):
        count = sum(row.here == here for row in rows(language))
        told = words["en"].format(count, here) if language == "en" else words["ko"][here].format(count)
        assert told in " ".join(text.split())


def test_both_languages_have_the_same_table():
    english, korean = rows("en"), rows("ko")

    assert [row._replace(what="") for row in english] == [row._replace(what="") for row in korean]
    same = [row.number for row, other in zip(english, korean, strict=True) if row.what == other.what]
    assert all(re.search("[가-힣]", row.what) for row in korean if row.number not in same)
    assert same == [70]  # torch.compile


def test_the_number_of_events_is_that_of_the_hooks():
    assert {row.here for language in PAGES for row in rows(language) if row.number == EVENTS} == {str(len(HOOKS))}
