"""Counting layers: a layer is a module with learnable parameters of its own; hidden layers are all but the last."""

from __future__ import annotations

from torch import nn


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a model in depth order, each with its name ("" for the model itself).

    Activations, dropout and other modules without parameters do not count:
    `Sequential(Linear, ReLU, Linear, Sigmoid)` has two layers, so one hidden layer.
    """
    return [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]


def described(model: nn.Module) -> str:
    """Parameters, layers and hidden layers in one line."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    count = len(layers(model))
    size = f"{parameters:,} parameter{'s' * (parameters != 1)} in {count} layer{'s' * (count != 1)}"
    return f"{type(model).__name__}, {size} ({max(count - 1, 0)} hidden)"
