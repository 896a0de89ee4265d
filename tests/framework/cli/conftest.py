"""What the tests of the command line share: a small recipe file, and a command line run in this process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from framework.cli import main

QUICK = ("-p", "no:plot", "-p", "no:progress")  # matplotlib takes a second to import

HEAD = '''"""A small lab.

Next: --lr 0.5
"""
import torch
from torch import nn
from framework import Recipe, hookimpl

def made(x=None, y=None, model=None, loss=None, lr=0.1, **settings):
    model = nn.Linear(3, 1) if model is None else model
    x = torch.randn(6, 3) if x is None else x
    y = x.sum(1, keepdim=True) if y is None else y
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Recipe(model=model, loss=loss or nn.MSELoss(), optimizer=optimizer, train=(x, y), **settings)
'''

PLAIN = """
def recipe(lr: float = 0.1, epochs: int = 3):
    '''
    Args:
        lr: learning rate
        epochs: passes over the data
    '''
    return made(lr=lr, epochs=epochs, batch_size=2)
"""


@dataclasses.dataclass
class Outcome:
    """How a command line ended, and what it printed."""

    code: int
    out: str
    err: str

    def line(self, start: str) -> str:
        """The line of stdout that begins with a word, without the word."""
        (found,) = [line for line in self.out.splitlines() if line.split()[:1] == [start]]
        return found.partition(start)[2].strip()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., str]:
    """Writes a recipe file: what is given, after imports and a function `made` that builds a small Recipe."""

    def write(source: str = PLAIN, name: str = "lab.py", head: str = HEAD) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + source, encoding="utf-8")
        return name

    return write


@pytest.fixture
def go(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process."""

    def run(*arguments: Any) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # --help
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def fine(go: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Runs a command line that must end well; without pictures and progress, which take time."""

    def run(*arguments: Any) -> Outcome:
        outcome = go(*arguments, *QUICK)
        assert outcome.code == 0, outcome.err
        return outcome

    return run


@pytest.fixture
def refused(go: Callable[..., Outcome], tmp_path: Path) -> Callable[..., str]:
    """Runs a command line that must end with one clear message; what stderr said."""

    def run(*arguments: Any, code: int = 2, lines: int = 2) -> str:
        outcome = go(*arguments)
        assert outcome.code == code, (outcome.out, outcome.err)
        assert outcome.err.startswith("error: ")
        assert "Traceback" not in outcome.err + outcome.out
        assert "warn" not in outcome.err
        assert (outcome.out + outcome.err).replace(str(tmp_path), "").isascii()  # but for names of the user's
        assert len(outcome.err.splitlines()) <= lines
        return outcome.err

    return run


@pytest.fixture
def info(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What run.json of a run directory says; by default of the first run of lab.py."""

    def read(run: str = "runs/lab/001") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / run / "run.json").read_text(encoding="utf-8"))
        return found

    return read


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The rows of metrics.jsonl of a run directory."""

    def read(run: str = "runs/lab/001") -> list[dict[str, Any]]:
        lines = (tmp_path / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    return read
