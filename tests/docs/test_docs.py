"""Every code block of README.md and docs/ runs, and shows what it says.

Python blocks of a page run one after another in one namespace; a block that begins with `# name.py` is also written to
that file. A text block behind a Python block is what that block prints. In a console block each `$` command is run and
compared, where `...` stands for anything, and a number with a point may be off by one in a hundred, since processors
differ in the last bits and a long training makes more of them. The README's two bash blocks are run by .ci/run, word
for word. The Korean pages have the same blocks to the letter, so they are not run again.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from framework.cli import main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KOREAN = [ROOT / "README.ko.md", *sorted((DOCS / "ko").rglob("*.md"))]
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if path not in KOREAN)]
MEASURED = DOCS / "labs" / "figures.md"  # what benchmarks/labs.py wrote
RECIPES = sorted((ROOT / "recipes").glob("[!_]*.py"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PIECE = re.compile(r"\.\.\.|\d+\.\d+(?:e[-+]\d+)?|\d+|[^\W\d]+|[^\w\s]")


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def same(wanted: str, got: str) -> bool:
    if re.fullmatch(r"\d+\.\d.*", wanted) and re.fullmatch(r"\d+\.\d.*", got):
        return math.isclose(float(wanted), float(got), rel_tol=0.01, abs_tol=1e-6)
    return wanted == got


def shows(wanted: str, got: str) -> bool:
    """Whether a text is what was wanted, piece for piece; `...` stands for any pieces, none included."""
    parts = [PIECE.findall(part) for part in re.split(r"\.\.\.(?!\d)", wanted)]
    pieces, at = PIECE.findall(got), 0
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        places = [0] if number == 0 else [len(pieces) - len(part)] if last else range(at, len(pieces) - len(part) + 1)
        for place in places:
            found = pieces[place : place + len(part)]
            if place >= at and len(found) == len(part) and all(map(same, part, found)):
                at = place + len(part)
                break
        else:
            return False
    return at == len(pieces) or len(parts) > 1


def assert_shows(wanted: str, got: str, where: str) -> None:
    got = got.replace("\\", "/")  # a path of Windows
    assert shows(wanted, got), f"{where} shows\n{wanted}\nbut it is\n{got}"


@pytest.mark.parametrize(
    ("wanted", "got", "expected"),
    [
        ("loss 0.500", "loss  0.502", True), ("loss 0.500", "loss 0.520", False), ("epoch 10", "epoch 11", False),
        ("a\n...\nd", "a\nb\nc\nd", True), ("a ... d", "a d", True), ("a ...", "a b c", True), ("... c", "a b c", True),
        ("a", "a b", False), ("a ... c", "a b", False), ("... b ... b", "a b", False), ("", "a", False),
        ("1.5e-06", "1.5125e-06", True), ("1.5e-06", "1.5e-05", False), ("nan", "0.5", False), ("-1.0", "1.0", False),
        ("saved runs/a/001/", "saved runs\\a\\001\\".replace("\\", "/"), True), ("x[...]", "x[1, 2]", True),
    ],
)  # fmt: skip
def test_how_a_block_is_compared(wanted, got, expected):
    assert shows(wanted, got) is expected


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_runs_and_shows_what_it_says(page, tmp_path, monkeypatch, request):
    if "recipes/mnist" in page.read_text(encoding="utf-8") and page.parent.name == "labs":
        request.getfixturevalue("mnist")
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
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(words[3:])
    return status, out.getvalue() + (err.getvalue() if status else "")  # else it is how far a slow machine has come


def test_the_readme_has_two_shell_commands_that_ci_runs_word_for_word():
    commands = [text.strip() for language, text in blocks(ROOT / "README.md") if language == "bash"]

    assert len(commands) == 2
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("readme", ["README.md", "README.ko.md"])
def test_the_readme_fits_on_150_lines(readme):
    assert len((ROOT / readme).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("docs", [DOCS, DOCS / "ko"], ids=["en", "ko"])
def test_the_first_page_leads_to_every_page_beside_it_to_every_folder_and_to_the_notebooks(docs):
    links = set(re.findall(r"\]\(([^)#]+)\)", (docs / "index.md").read_text(encoding="utf-8")))
    pages = {page.name for page in docs.glob("*.md")} - {"index.md"}
    folders = {f"{page.parent.name}/index.md" for page in docs.glob("*/index.md") if page.parent.name != "ko"}
    notebooks = {f"notebooks/{notebook.name}" for notebook in docs.glob("notebooks/*.ipynb")}

    assert notebooks
    assert pages | folders | notebooks <= links


def title_of(recipe: Path) -> str:
    return recipe.read_text(encoding="utf-8").splitlines()[0].strip('"').rstrip(".")


@pytest.mark.parametrize("readme", ["README.md", "README.ko.md"])
def test_the_readme_lists_every_recipe_with_its_first_line_and_its_page(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    folder = "docs/labs" if readme == "README.md" else "docs/ko/labs"
    for file in RECIPES:
        lab, _, title = title_of(file).partition(": ")
        shown = title if readme == "README.md" else ""
        assert f"| [{file.stem}](recipes/{file.name}) | {lab}: {shown}" in text
        assert f" | [page]({folder}/{file.stem}.md) |" in text or f" | [설명]({folder}/{file.stem}.md) |" in text


def test_every_link_of_a_page_leads_somewhere():
    for page in (*PAGES, *KOREAN):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose(page)):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def test_the_site_has_every_page():
    listed = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


# ------------------------------------------------------------------------------------------------------ the labs

SECTIONS = {
    "The question": "질문",
    "The mathematics": "수식",
    "Run it": "실행",
    "What to see": "살펴볼 것",
    "Change something": "바꿔 보기",
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_page_with_its_command_its_picture_and_what_to_change(recipe):
    page = DOCS / "labs" / f"{recipe.stem}.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {title_of(recipe)}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(SECTIONS)
    commands = re.findall(r"^\$ (.+)$", "".join(code for language, code in blocks(page) if language == "console"), re.M)
    assert commands[0] == f"python -m framework recipes/{recipe.name}"
    assert len(commands) >= 2
    assert re.search(r"^!\[.{10,}\]\(img/[\w-]+\.svg\)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "entry"),
    [
        *((page, r"^\| \[(\w+)\]\(") for page in ("README.md", "README.ko.md")),
        *((f"docs/{folder}/index.md", r"^\| \w+ [\d-]+ \| \[(\w+)\]\(") for folder in ("labs", "ko/labs")),
        *((f"docs/{folder}/figures.md", r"^## (\w+)$") for folder in ("labs", "ko/labs")),
        *(("mkdocs.yml", rf"^ +- {folder}/(?!index|figures)(\w+)\.md$") for folder in ("labs", "ko/labs")),
    ],
)
def test_every_list_of_the_labs_is_in_the_order_of_the_course(page, entry):
    from framework_recipes import COURSE

    text = (ROOT / page).read_text(encoding="utf-8")
    assert tuple(re.findall(entry, text, re.MULTILINE)) == COURSE


def test_no_page_is_of_a_recipe_that_is_gone():
    assert {page.stem for page in (DOCS / "labs").glob("*.md")} == {file.stem for file in RECIPES} | {
        "index",
        "figures",
    }


def test_every_picture_is_shown_by_a_page():
    shown = {
        page.parent / link for page in PAGES for link in re.findall(r"\((img/[\w-]+\.svg)\)", page.read_text("utf-8"))
    }
    assert {file for folder in (DOCS / "img", DOCS / "labs" / "img") for file in folder.iterdir()} == shown


# -------------------------------------------------------------------------------------------- the Korean pages


def english(page: Path) -> Path:
    return ROOT / "README.md" if page.name == "README.ko.md" else DOCS / page.relative_to(DOCS / "ko")


def test_every_page_is_there_in_both_languages():
    assert [english(page) for page in KOREAN] == PAGES


@pytest.mark.parametrize("page", KOREAN, ids=name_of)
def test_a_korean_page_has_the_same_headings_blocks_pictures_and_figures(page):
    original = english(page)
    assert blocks(page) == blocks(original)
    headings, wanted = (re.findall(r"^(#+) (.+)$", prose(one), re.MULTILINE) for one in (page, original))
    assert [level for level, _ in headings] == [level for level, _ in wanted]
    for (_, heading), (_, before) in zip(headings, wanted, strict=True):
        assert heading == SECTIONS[before] if before in SECTIONS else re.search("[가-힣]", heading) or heading == before
    images, originals = (re.findall(r"!\[.+?\]\(.*?([\w-]+\.svg)\)", prose(one)) for one in (page, original))
    assert images == originals
    figures, told = ({*re.findall(r"(?<![\w.])\d+\.\d+", prose(one))} for one in (page, original))
    assert figures == told
    assert re.search("[가-힣]", prose(page))


def test_the_pictures_have_no_hangul():
    for file in (DOCS / "labs" / "img").iterdir():
        assert not re.search("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]", file.read_text(encoding="utf-8"))


def test_every_hook_is_in_the_lifecycle_with_its_signature():
    from framework.hooks import HOOKS

    text = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    for hook in HOOKS.values():
        assert f"`{hook.signature}`" in text
