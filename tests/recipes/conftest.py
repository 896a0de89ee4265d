"""Running the recipes as a learner does, and the figures that the notes print."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import framework
from framework import Trainer

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Trained:
    """A run of a recipe: what `run` gave, and what a plugin at the end of the list saw of it."""

    result: Any = None
    trainers: list[Trainer] = field(default_factory=list)  # one a variant
    outputs: list[Tensor] = field(default_factory=list)  # of the last batch of each variant
    name = "trained"

    def on_fit_start(self, trainer: Trainer) -> None:
        self.trainers.append(trainer)
        self.outputs.append(torch.empty(0))

    def on_batch_end(self, output: Tensor) -> None:
        self.outputs[-1] = output.clone()

    def column(self, figure: str, label: str | None = None) -> list[float]:
        """One figure of every epoch."""
        result = self.result if label is None else self.result[label]
        return [row[figure] for row in result.history]


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "tests" / "figures.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Trained]:
    """Runs a recipe of this checkout on the CPU: `train("softmax", lr=0.5)`."""

    def run(recipe: str, **knobs: Any) -> Trained:
        trained = Trained()
        directory = tmp_path / f"{recipe}-{len(list(tmp_path.iterdir()))}"
        path = ROOT / "recipes" / f"{recipe}.py"
        plugins = [*knobs.pop("plugins", []), trained]
        trained.result = framework.run(path, run_dir=directory, device="cpu", plugins=plugins, **knobs)
        return trained

    return run
