"""Pictures of a run: figures of matplotlib in one style, each an SVG file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.checkpoint import write_whole
from framework.errors import RunDirError
from framework.modules import uncollected

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {  # the same figure gives the same file; texts are kept from overlapping
    "svg.hashsalt": "framework", "axes.spines.top": False, "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}  # fmt: skip
# For names that users give: fonts of Windows, macOS and Linux with Hangul, which matplotlib's own do not have.
HANGUL = ("Malgun Gothic", "Apple SD Gothic Neo", "NanumGothic", "Noto Sans CJK KR", "Noto Sans CJK JP")


def drawn(path: Path) -> list[str]:
    """The pictures in a run directory, those of its variants behind its own."""
    files = sorted(path.rglob("*.svg"), key=lambda file: (len(file.parts), file))
    return [file.relative_to(path).as_posix() for file in files]


def plain(text: str) -> str:
    """A name of the user's as it can stand in a picture: with a $ that begins no formula, and Unicode throughout."""
    return text.replace("$", r"\$").encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def picture(path: Path, width: float = 8, height: float = 4) -> Iterator[Figure]:
    """A figure of matplotlib to draw on, written to `path` as SVG when the block ends without an error.

    ::

        with picture(trainer.run_dir / "weights.svg", 8, 3) as figure:
            figure.subplots().imshow(trainer.model.weight.detach())

    Args:
        path: the file; its folder is made
        width, height: in inches, of which a screen shows a hundred pixels each

    Raises:
        RunDirError: the file cannot be written, or its name does not end in .svg
    """
    if path.suffix.lower() != ".svg":
        raise RunDirError(f"pictures are SVG files: name {path} {path.stem}.svg")
    with uncollected():
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.font_manager import get_font_names

    # a letter that the first font does not have is taken from the next
    fonts = ["sans-serif", *(font for font in get_font_names() if font in HANGUL)]
    with matplotlib.rc_context({**STYLE, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box in its place says as much
        figure = Figure(figsize=(width, height))
        yield figure
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, svg.getvalue())
        except OSError as error:
            raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error
