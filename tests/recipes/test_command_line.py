"""Every recipe from the command line, in a process of its own and a directory that holds nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
VARIANTS = {"gradient_descent": ["by hand", "torch"], "batch_or_minibatch": ["batch", "minibatch"]}
NAMES = [
    "batch_or_minibatch", "custom_dataset", "gradient_descent", "linear_regression", "logistic_regression",
    "minibatch", "multivariable_regression", "softmax",
]  # fmt: skip

# Spawn is how Windows and macOS start a worker: it imports the recipe anew, by its name.
SPAWNING = """
import json
import multiprocessing
import sys

import framework

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    recipe, directory, workers = sys.argv[1:]
    result = framework.run(recipe, device="cpu", run_dir=directory, epochs=3, num_workers=int(workers))
    print("HISTORY", json.dumps(result.history))
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_from_the_command_line(tmp_path: Path, name: str) -> None:
    done = python("-m", "framework", str(RECIPES / f"{name}.py"), "--epochs", "3", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert f"recipe    {name}    Lab 0" in done.stdout
    assert "\nnext      python -m framework " in done.stdout
    run = tmp_path / "runs" / name / "001"
    for directory in [run / label for label in VARIANTS.get(name, [""])]:
        assert len((directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 3
        assert (directory / "curves.svg").stat().st_size > 1000
        assert json.loads((directory / "run.json").read_text(encoding="utf-8"))["stop_reason"] == "completed"
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_installed_recipe_runs_by_its_name(tmp_path: Path) -> None:
    done = python("-m", "framework", "minibatch", "--epochs", "2", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table, _, end = done.stdout.partition("\npredict   [73, 80, 75] -> ")
    assert end, done.stdout
    assert table.rstrip().splitlines()[-1].split()[0] == "1"  # the last row of the table stands above the prediction
    assert "\nstopped   after 2 epochs" in end


def test_workers_that_are_spawned_give_the_same_history(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(SPAWNING, encoding="utf-8")
    histories = []
    for workers in (0, 2):
        recipe, directory = RECIPES / "custom_dataset.py", tmp_path / f"run-{workers}"
        done = python("-W", "error", str(driver), str(recipe), str(directory), str(workers), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("HISTORY "))
        histories.append(json.loads(line.removeprefix("HISTORY ")))
    assert len(histories[0]) == 3
    assert histories[0] == histories[1]
