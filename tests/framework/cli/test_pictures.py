"""A picture is there whole or not at all, and the same figure gives the same file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from framework import RunDirError, picture


def drawn(path: Path) -> bytes:
    with picture(path, 8, 3) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [1, 0], label="a line")
        axes.set_xlabel("time [s]")
        axes.legend()
    return path.read_bytes()


def test_a_figure_is_written_as_svg_of_its_size(tmp_path) -> None:
    root = ElementTree.fromstring(drawn(tmp_path / "new" / "a.svg"))
    assert root.attrib["viewBox"] == "0 0 576 216"  # 8 x 3 inches of 72 points
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.svg"]


def test_the_same_figure_gives_the_same_file(tmp_path) -> None:
    assert drawn(tmp_path / "a.svg") == drawn(tmp_path / "b.svg")


def test_an_error_in_the_block_leaves_the_picture_that_was_there(tmp_path) -> None:
    before = drawn(tmp_path / "a.svg")
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.svg") as figure:
        figure.subplots().plot([1 / 0])
    assert (tmp_path / "a.svg").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_a_picture_that_cannot_be_written_is_told(tmp_path) -> None:
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(RunDirError, match=r"cannot write .*a\.svg: "):
        drawn(tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirError, match=r"cannot write .*b\.svg: "):
        drawn(tmp_path / "file" / "b.svg")


def test_the_style_is_that_of_the_block_alone(tmp_path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_when_something_is_drawn_and_pyplot_never() -> None:
    code = (
        "import pathlib, sys, tempfile; from framework import picture; assert 'matplotlib' not in sys.modules\n"
        "with tempfile.TemporaryDirectory() as folder, picture(pathlib.Path(folder, 'a.svg')): pass\n"
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_label_in_hangul_ends_nothing_and_takes_a_font_of_the_system_where_there_is_one(tmp_path) -> None:
    from matplotlib.font_manager import get_font_names

    from framework.cli.pictures import HANGUL

    with picture(tmp_path / "a.svg", 4, 2) as figure:  # a warning would be an error in the tests
        figure.subplots().set_title("\ud55c\uae00")
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    letters = set(re.findall(r'xlink:href="#(\w+)-[^"]*"', svg))
    assert letters == {"DejaVuSans"} or any(name in get_font_names() for name in HANGUL)  # the numbers, and Hangul
    assert len(letters) == 1 + any(name in get_font_names() for name in HANGUL)


def test_a_letter_that_no_font_has_warns_nobody(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("framework.cli.pictures.HANGUL", ())
    with picture(tmp_path / "a.svg", 4, 2) as figure:  # a warning would be an error in the tests
        figure.subplots().set_title("\ud55c\uae00")
    ElementTree.fromstring((tmp_path / "a.svg").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["a.png", "a", "a.svg.pdf"])
def test_another_kind_of_file_than_svg_is_refused(name: str, tmp_path) -> None:
    with pytest.raises(RunDirError, match=r"pictures are SVG files: name .*\.svg"), picture(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []
    with picture(tmp_path / "A.SVG"):
        pass
