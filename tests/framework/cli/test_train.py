"""A run in a console of any encoding, and in a process of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.cli import main

TITLE = "실습 6: 소프트맥스 🎓."


@pytest.fixture
def korean(lab, tmp_path):
    """A recipe with a Korean title in a folder with a Korean name."""
    name = lab(name="실습 폴더/소프트맥스.py")
    source = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(f'"""{TITLE}\n\nNext: --lr 0.5\n"""\n{source}', encoding="utf-8")
    return name


@pytest.mark.parametrize("encoding", ["ascii", "cp949", "cp1252", "utf-8", "utf-16"])
def test_no_console_encoding_ends_a_run(korean, monkeypatch, encoding) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = main([korean, "--run-dir", "결과 폴더/첫 번째", "-p", "no:plot"])
    wrong = main([korean, "--run-dir", "결과 폴더/첫 번째"])
    with pytest.raises(SystemExit) as helped:
        main([korean, "--help"])
    monkeypatch.undo()
    told = out.buffer.getvalue().decode(encoding)
    assert (code, wrong, helped.value.code) == (0, 2, 0)
    assert TITLE.encode(encoding, "backslashreplace").decode(encoding) in told
    assert "첫 번째".encode(encoding, "backslashreplace").decode(encoding) in told
    assert "--lr" in told
    assert "holds a finished run" in err.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    "console",
    [
        {"PYTHONIOENCODING": "cp949"},
        # no encoding at all: neither for the console nor for the names of files
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["cp949", "ascii"],
)
def test_a_process_in_such_a_console_runs_to_its_end(korean, tmp_path, console) -> None:
    if "LC_ALL" in console and not __file__.isascii():
        pytest.skip("in such a console Python itself finds no module in a folder with Hangul")
    (tmp_path / korean).rename(tmp_path / "실습 폴더/lab.py")
    korean = "실습 폴더/lab.py"
    done = subprocess.run(
        [sys.executable, "-m", "framework", korean, "--run-dir", "결과 폴더"], cwd=tmp_path, capture_output=True,
        env={**os.environ, **console},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    encoding = console["PYTHONIOENCODING"]
    assert TITLE.encode(encoding, "backslashreplace") in done.stdout
    for file in ("run.json", "metrics.jsonl", "recipe.py", "curves.svg"):
        assert (tmp_path / "결과 폴더" / file).read_text(encoding="utf-8")


def test_a_data_set_of_a_recipe_reaches_worker_processes_that_are_spawned(lab, fine) -> None:
    """As on Windows and macOS: the worker imports the recipe by its name to unpickle the data set."""
    source = (
        "import my_rows_of_a_lab\n"
        "class Rows(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return torch.full((3,), float(i)), my_rows_of_a_lab.target(i)\n"
        "def recipe():\n    made_here = made(epochs=1)\n    made_here.train = torch.utils.data.DataLoader(\n"
        "        Rows(), batch_size=2, num_workers=1, multiprocessing_context='spawn')\n    return made_here\n"
    )
    lab("import torch\ndef target(i): return torch.zeros(1)\n", "labs/my_rows_of_a_lab.py", head="")
    assert (
        fine(lab(source, "labs/lab.py")).line("data")
        == "4 samples in 2 batches of 2, by torch's DataLoader: num_workers=1"
    )


def test_what_is_imported_is_left_out_of_garbage_collection_and_what_a_recipe_makes_is_not(tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(
        "import gc\ndef recipe():\n    print('enabled', gc.isenabled(), 'kept', gc.get_freeze_count() > 10000)\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "framework", "lab.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("enabled True kept True\n")
