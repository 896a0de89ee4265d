"""docs/reliability.md promises nothing that no test holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def named_in(file: Path) -> set[str]:
    """The tests of a file; none where it is not there."""
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.parse("")
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_is_named_exists():
    file, count, missing = "", 0, []
    for path, test in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", PAGE):
        file, count = path or file, count + 1  # a test without a file is of the one before it
        missing += [f"{file}::{test}"] if test not in named_in(ROOT / file) else []

    assert missing == []
    assert count == PAGE.count("::test_") > 100


def test_every_fault_is_there_in_its_order():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE)

    assert [int(number) for number, _ in rows] == list(range(1, 56))
    # what no test holds cannot happen yet
    assert [int(number) for number, row in rows if "tests/" not in row] == []


def test_every_figure_has_a_command_that_there_is():
    scripts = re.findall(r"`python (benchmarks/\w+\.py)[^`]*`", PAGE)

    assert len(scripts) > 8
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
