"""Every recipe from the command line, in a process of its own and a directory that holds nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("[!_]*.py"))
DRAW = {"cpu_vs_gpu", "network_diagrams", "tensor_manipulation"}  # they train nothing
SHORT = {  # knobs that shorten a lab, where it is not --epochs 3; at full length the figures and the pages run them
    "char_rnn": ["--epochs", "3", "--hidden", "8"],
    "cpu_vs_gpu": ["--widths", "5", "50", "--steps", "3"],
    "mnist_binary": ["--epochs", "3", "--minibatch-epochs", "3"],
    "mnist_cnn": ["--epochs", "1", "--channels", "1", "2", "--batch-size", "1000"],
    "mnist_mlp": ["--epochs", "1", "--hidden", "4", "--batch-size", "1000"],
    "mnist_softmax": ["--epochs", "1", "--batch-size", "1000"],
    "network_diagrams": ["--widths", "2", "1"],
    "sgd_variants": ["--samples", "300", "--batch-size", "10", "--updates", "30"],
    "tensor_manipulation": ["--part", "broadcasting"],
}

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
    environment = {"PYTHONIOENCODING": "utf-8", **os.environ}  # CI has cp949 in one of its passes
    encoding = environment["PYTHONIOENCODING"]
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, encoding=encoding, timeout=300
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_from_the_command_line_and_ends_with_a_picture_and_a_next_command(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    if name.startswith("mnist"):
        request.getfixturevalue("mnist")
    knobs = SHORT.get(name, ["--epochs", "3"])
    done = python("-m", "framework", str(RECIPES / f"{name}.py"), *knobs, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.replace(str(RECIPES), "").isascii()
    assert done.stdout.startswith(f"recipe    {name}    ")
    assert "\npictures  " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next      python -m framework ")
    run = tmp_path / "runs" / name / "001"
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert info["stop_reason"] == "completed"
    for directory in [run / label for label in info.get("variants", [""])] if name not in DRAW else []:
        rows = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == json.loads((directory / "run.json").read_text(encoding="utf-8"))["epochs"] > 0
        assert (directory / "curves.svg").stat().st_size > 1000
    if "variants" in info:
        assert (run / "compare.svg").stat().st_size > 1000
        assert "\nrun " in done.stdout
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
