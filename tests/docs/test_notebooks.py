"""The notebooks run, with a progress bar and curves below their cells; what is kept of them has no outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
BAR, PICTURE = "application/vnd.jupyter.widget-view+json", "image/svg+xml"


def code(path: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def korean(path: Path) -> Path:
    return DOCS / "ko" / path.relative_to(DOCS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default:::(zmq|jupyter_client|nbclient|tornado)")
def test_a_notebook_runs_and_shows_a_bar_and_curves_wherever_it_trains(path: Path, tmp_path: Path) -> None:
    notebook: Any = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    training = [cell for cell in cells if "fit(" in cell.source or "run(" in cell.source]
    assert training
    for cell in training:
        shown = [kind for output in cell.outputs for kind in output.get("data", ())]
        assert BAR in shown, cell.source
        assert PICTURE in shown, cell.source
    told = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    assert "Warning" not in told
    assert "step/s" not in told  # a bar in letters


@pytest.mark.parametrize(
    "path", [*NOTEBOOKS, *map(korean, NOTEBOOKS)], ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_korean_notebook_has_the_same_code(path: Path) -> None:
    assert code(korean(path)) == code(path)


def test_every_notebook_is_there_in_both_languages() -> None:
    assert [path.name for path in NOTEBOOKS] == [path.name for path in sorted((DOCS / "ko" / "notebooks").iterdir())]
