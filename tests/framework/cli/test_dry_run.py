"""`--dry-run`: one step of everything, and nothing is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

BODY = """
class Seen:
    def __init__(self):
        self.batches, self.splits = [], []
    def on_batch_start(self, split):
        self.batches.append(split)
    def on_split_end(self, split):
        self.splits.append(split)
    def on_epoch_end(self, metrics):
        print("row", sorted(metrics))
    def on_checkpoint(self, path):
        print("checkpoint of", path.name[:17])
    def on_teardown(self):
        print("seen", *self.batches, "ended", *self.splits)

def recipe(epochs: int = 5, accumulate: int = 1, whole: bool = False):
    x = torch.randn(7, 3)
    data = (x, x.sum(1, keepdim=True))
    size = None if whole else 2
    return made(val=data, test=data, epochs=epochs, batch_size=size, accumulate=accumulate, plugins=[Seen()])
"""
QUICK = ("-p", "no:plot", "-p", "no:progress")


@pytest.mark.parametrize(
    "knobs",
    [[], ["--epochs", "1"], ["--accumulate", "3"], ["--whole"]],
    ids=["as it is", "epoch", "accumulate", "whole"],
)
def test_each_data_set_gives_one_batch_and_a_row_and_a_checkpoint_are_written(
    go: Any, lab: Any, knobs: list[str]
) -> None:
    outcome = go(lab(BODY), "--dry-run", *knobs, *QUICK)
    assert outcome.code == 0, outcome.err
    assert "seen train val ended train val" in outcome.out
    assert "row ['epoch', 'step', 'train_loss', 'val_loss']" in outcome.out
    assert "checkpoint of step-000000000001" in outcome.out
    assert outcome.line("test").startswith("test_loss ")
    assert outcome.out.splitlines()[-1] == "dry run   one step of everything went through; nothing was kept"


def test_nothing_is_kept(go: Any, lab: Any, tmp_path: Path) -> None:
    file = lab(BODY)
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
    assert go(file, "--dry-run").code == 0
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


def test_an_error_is_the_one_that_the_run_would_have(go: Any, lab: Any) -> None:
    body = """
def recipe():
    return made(test=(torch.randn(7, 4), torch.randn(7, 1)), batch_size=2)
"""
    outcome = go(lab(body), "--dry-run", *QUICK)
    assert outcome.code == 2
    assert "the model's first layer" in outcome.err or "Linear" in outcome.err


def test_it_is_refused_beside_a_directory_to_keep_the_run_in(go: Any, lab: Any) -> None:
    outcome = go(lab(BODY), "--dry-run", "--run-dir", "mine")
    assert (outcome.code, outcome.err) == (2, "error: --dry-run keeps nothing: leave out --run-dir\n")
    assert not Path("mine").exists()


def test_a_file_of_its_own_that_a_plugin_writes_stays_as_it_was(go: Any, lab: Any, tmp_path: Path) -> None:
    body = """
from framework_plugins.csv import Csv
from framework_plugins.tensorboard import TensorBoard

def recipe():
    return made(plugins=[Csv("mine.csv"), TensorBoard("curves")])
"""
    Path("mine.csv").write_text("of last week", encoding="utf-8")
    outcome = go(lab(body), "--dry-run", *QUICK)
    assert outcome.code == 0, outcome.err
    assert Path("mine.csv").read_text(encoding="utf-8") == "of last week"
    assert not Path("curves").exists()


def test_services_are_told_nothing(go: Any, lab: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = go(lab(BODY), "--dry-run", "-p", "wandb", "-p", "mlflow", *QUICK)
    assert outcome.code == 0, outcome.err
    assert not [*tmp_path.rglob("*.db"), *tmp_path.rglob("*wandb*")]
