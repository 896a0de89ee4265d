"""What is trained: the layers of a model, counted, and the settings of a fit.

A layer is a module with learnable parameters of its own; hidden layers are all but the last.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from framework.trainer import Trainer


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a model in depth order, each with its name ("" for the model itself).

    Activations, dropout and other modules without parameters do not count:
    `Sequential(Linear, ReLU, Linear, Sigmoid)` has two layers, so one hidden layer.
    """
    return [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def described(model: nn.Module) -> str:
    """Parameters, layers and hidden layers in one line."""
    parameters, count = _size(model), len(layers(model))
    later = " so far" if any(map(is_lazy, model.parameters())) else ""
    size = f"{parameters:,} parameter{'s' * (parameters != 1)}{later} in {count} layer{'s' * (count != 1)}"
    return f"{type(model).__name__}, {size} ({max(count - 1, 0)} hidden)"


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if not is_lazy(parameter))


def settings_of(trainer: Trainer) -> dict[str, Any]:
    """What a fit is made of, for a logger; with the run directory of a recipe also its name, its knobs and the seed."""
    told: dict[str, Any] = {
        "model": type(trainer.model).__name__, "optimizer": type(trainer.optimizer).__name__,
        "parameters": _size(trainer.model),
        "lr": trainer.optimizer.param_groups[0]["lr"], "accumulate": trainer.accumulate, "epochs": trainer.epochs,
        "batch_size": getattr(trainer.loaders["train"], "batch_size", None), "device": str(trainer.device),
    }  # fmt: skip
    if trainer.run_dir is not None and (file := trainer.run_dir / "run.json").is_file():
        run = json.loads(file.read_text(encoding="utf-8"))
        told |= {"recipe": run.get("recipe"), "seed": run.get("seed"), **run.get("knobs", {})}
    return told
