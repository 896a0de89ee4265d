"""The built-in plugins together: a practitioner's run that is killed and goes on, and a lab with everything on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.average_weights import AverageWeights
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.compile import Compile
from framework_plugins.freeze import Freeze
from framework_plugins.limits import Limits
from framework_plugins.mixed_precision import MixedPrecision
from framework_plugins.torchmetrics import TorchMetrics
from framework_plugins.validation import Validation
from framework_plugins.wandb import Wandb
from PIL import Image
from torchmetrics import CohenKappa

from framework import run
from framework.checkpoint import find, read
from framework.discovery import available

RECIPE = '''"""Pictures of three colors, told apart by a residual network."""

import os
import signal

import torch
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.early_stopping import EarlyStopping
from framework_plugins.mixed_precision import MixedPrecision
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import v2

from framework import Recipe

AS_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]


class Killed:
    """Ends the process as `kill -9` does, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_gradients(self, trainer):
        if trainer.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def recipe(data: str = "images", epochs: int = 6) -> Recipe:
    seen = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(32), v2.ColorJitter(0.2), *AS_TENSOR])
    train = ImageFolder(f"{data}/train", seen)
    val = ImageFolder(f"{data}/val", v2.Compose([v2.CenterCrop(32), *AS_TENSOR]))
    model = resnet18(num_classes=3)
    return Recipe(
        model=model,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4),
        train=train,
        val=val,
        epochs=epochs,
        batch_size=12,
        num_workers=2,
        accumulate=2,
        class_names=train.classes,
        plugins=[
            MixedPrecision("bf16"), ClipGradients(norm=1.0), "schedule", AverageWeights(decay=0.8), "accuracy",
            EarlyStopping(patience=5), BestCheckpoint(every_steps=2), "tensorboard",
            Killed(int(os.environ.get("KILLED_AT", "-1"))),
        ],
    )
'''


def pictures(folder: Path) -> None:
    """Three folders of noisy pictures, each with a color of its own."""
    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", 24), ("val", 4)):
        for index, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 120, (40, 40, 3), generator=generator, dtype=torch.uint8)
                pixels[..., 2 - index] += 120
                Image.fromarray(pixels.numpy()).save(folder / split / name / f"{number}.png")


def command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "framework", *words)
    variables = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        words, cwd=folder, env=variables, capture_output=True, text=True, encoding="utf-8", timeout=500
    )


def left(folder: Path) -> Any:
    """The last checkpoint and the best one, and the rows."""
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    snapshots = []
    for label in ("last", "best"):
        path = find(folder, label)
        assert path is not None
        snapshot = read(path)
        snapshots.append([snapshot.epoch, snapshot.step, snapshot.model, snapshot.optimizer, snapshot.plugins])
    return [[json.loads(line) for line in rows.splitlines()], snapshots]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_residual_network_on_pictures_is_killed_and_ends_as_the_one_that_was_left_alone(
    tmp_path: Path, oracle: Any
) -> None:
    (tmp_path / "colors.py").write_text(RECIPE, encoding="utf-8")
    pictures(tmp_path / "images")
    alone = command(tmp_path, "colors.py", "--run-dir", "alone", "-q")
    assert alone.returncode == 0, alone.stderr
    killed = command(tmp_path, "colors.py", "--run-dir", "killed", "-q", KILLED_AT="11")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = command(tmp_path, "resume", "killed")
    assert resumed.returncode == 0, resumed.stderr

    assert re.search(r"resumed   from step 10 \(epoch 3,", resumed.stdout)  # in the middle of the epoch
    oracle.assert_same(left(tmp_path / "alone"), left(tmp_path / "killed"))
    rows = left(tmp_path / "alone")[0]
    assert rows[-1]["val_accuracy"] > 0.9, rows
    assert [*(tmp_path / "killed" / "tensorboard").iterdir()]


SET = {  # those that need to be told what to do, or whose defaults are for longer runs; the rate is for a cosine
    "average_weights": lambda: AverageWeights(decay=0.98),
    "clip_gradients": lambda: ClipGradients(norm=5.0),
    "compile": lambda: Compile(backend="aot_eager"),  # the compiler of C++ code is tried in a test of its own
    "freeze": lambda: Freeze(["0.bias"], until_epoch=1),
    "limits": lambda: Limits(seconds=3600),
    "mixed_precision": lambda: MixedPrecision("bf16"),
    "torchmetrics": lambda: TorchMetrics({"kappa": CohenKappa(task="multiclass", num_classes=10)}),
    "validation": lambda: Validation(every_steps=500),
    "wandb": lambda: Wandb(mode="offline"),  # by its environment wandb goes only if no test before has used it
}
OF_OTHER_DATA = {"decision_boundary", "regression"}  # of two features; of numbers instead of classes


@pytest.mark.filterwarnings("ignore")  # of those third parties whose warnings are not what is tested here
def test_all_plugins_together_train_the_convolutional_network_to_its_figure(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    names = [name for name, point in available().items() if point.value.startswith("framework_plugins.")]
    plugins = [SET[name]() if name in SET else name for name in names if name not in OF_OTHER_DATA]
    result = run("mnist_cnn", lr=2e-3, device="cpu", plugins=plugins, run_dir=tmp_path / "run")

    assert result.test is not None
    assert result.test["test_accuracy"] > 0.984
    info = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert {*names} - OF_OTHER_DATA <= {plugin["name"] for plugin in info["plugins"]}
