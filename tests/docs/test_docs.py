"""Every code block of README.md and docs/ runs, and shows what it says.

Python blocks of a page run one after another in one namespace; a block that begins with `# name.py` is also written to
that file. A text block behind a Python block is what that block prints. In a console block each `$` command is run and
compared, where `...` stands for anything. The README's two bash blocks are run by .ci/run, word for word.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from framework.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def assert_shows(wanted: str, got: str, where: str) -> None:
    got = got.replace("\\", "/")  # a path of Windows
    same = doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert same, f"{where} shows\n{wanted}\nbut it is\n{got}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_and_shows_what_it_says(page, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    torch.manual_seed(0)
    space: dict[str, object] = {"__name__": "page", "torch": torch}
    printed = ""
    for language, text in blocks(page):
        if language == "python":
            if name := re.match(r"# (\w+\.py)\n", text):
                Path(name[1]).write_text(text, encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(text, f"{page.name}", "exec"), space)
            printed = said.getvalue()
        elif language == "text" and printed:
            assert_shows(text, printed, page.name)
        elif language == "console":
            for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, _, wanted = command.partition("\n")
                status, said = run(line)
                assert_shows(wanted, said, line)
                assert (status != 0) == ("error:" in wanted), f"{line} ended with {status}"


def run(line: str) -> tuple[int, str]:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "framework"], f"a console block of the pages runs only the program: {line}"
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        status = main(words[3:])
    return status, said.getvalue()


def test_the_readme_has_two_shell_commands_that_ci_runs_word_for_word():
    commands = [text.strip() for language, text in blocks(ROOT / "README.md") if language == "bash"]

    assert len(commands) == 2
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readme_fits_on_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_lists_every_recipe_with_its_first_line():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "recipes").glob("[!_]*.py")):
        title = file.read_text(encoding="utf-8").splitlines()[0].strip('"').rstrip(".")
        assert f"| [{file.stem}](recipes/{file.name}) | {title} |" in text


def test_every_link_of_a_page_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_hook_is_in_the_lifecycle_with_its_signature():
    from framework.hooks import HOOKS

    text = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    for hook in HOOKS.values():
        assert f"`{hook.signature}`" in text
