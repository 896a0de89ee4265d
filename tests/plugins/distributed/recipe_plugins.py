"""Every built-in plugin on, for test_plugins_on.py: `torchrun ... -m framework recipe_plugins.py -p distributed`.

Three variants, since one plugin wants two features and one wants numbers instead of classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from framework_plugins.average_weights import AverageWeights
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.compile import Compile
from framework_plugins.datasets import digits
from framework_plugins.freeze import Freeze
from framework_plugins.limits import Limits
from framework_plugins.mixed_precision import MixedPrecision
from framework_plugins.torchmetrics import TorchMetrics
from framework_plugins.validation import Validation
from framework_plugins.wandb import Wandb
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics import CohenKappa

from framework import Recipe, Result, Trainer
from framework.discovery import available

BUILT_IN = [name for name, point in available().items() if point.value.startswith("framework_plugins.")]
SET: dict[str, Callable[[], Any]] = {  # those that need to be told what to do, or whose defaults are for longer runs
    "average_weights": lambda: AverageWeights(decay=0.8),
    "clip_gradients": lambda: ClipGradients(norm=5.0),
    "compile": lambda: Compile(backend="aot_eager"),
    "freeze": lambda: Freeze(["0.bias"]),
    "limits": lambda: Limits(steps=1000),
    "mixed_precision": lambda: MixedPrecision("bf16"),
    "torchmetrics": lambda: TorchMetrics({"kappa": CohenKappa(task="multiclass", num_classes=10)}),
    "validation": lambda: Validation(every_steps=5),
    "wandb": lambda: Wandb(mode="offline"),
}
OF_A_PLANE, OF_NUMBERS = ["decision_boundary"], ["regression", "compile"]  # what compiles does so for each new shape
OF_CLASSES = [name for name in BUILT_IN if name not in (*OF_A_PLANE, *OF_NUMBERS, "distributed")]  # that is from -p


class Tells:
    """What this rank ends with, beside the output, of which that of rank 0 alone is seen."""

    def __init__(self, label: str) -> None:
        self.label = label

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        weights = [value.detach().flatten().tolist() for value in trainer.model.state_dict().values()]
        found = {"history": result.history, "weights": weights, "plugins": list(trainer.plugins)}
        with (Path(os.environ["FOLDER"]) / f"rank-{os.environ['RANK']}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"case": self.label, "found": found}) + "\n")


def recipe() -> dict[str, Callable[[], Recipe]]:
    """All of them, in three variants."""
    train, *others = digits(150)
    val, test = (TensorDataset(*(part[:50] for part in data.tensors)) for data in others)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))

    def variant(label: str, model: nn.Module, loss: Any, data: dict[str, Any], names: list[Any]) -> Recipe:
        plugins: list[Any] = [SET[name]() if name in SET else name for name in names]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        plugins.append(Tells(label))
        return Recipe(model=model, loss=loss, optimizer=optimizer, **data, epochs=2, batch_size=21, plugins=plugins)

    return {
        "classes": lambda: variant(
            "classes", nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), nn.CrossEntropyLoss(),
            {"train": train, "val": val, "test": test}, OF_CLASSES,
        ),
        "plane": lambda: variant(
            "plane", nn.Linear(2, 2), nn.CrossEntropyLoss(), {"train": (x, (x[:, 0] > 0).long())},
            [*OF_A_PLANE, Freeze(["bias"], until_epoch=1)],
        ),
        "numbers": lambda: variant(
            "numbers", nn.Linear(2, 1), nn.MSELoss(), {"train": (x, x[:, :1])}, OF_NUMBERS
        ),
    }  # fmt: skip
