"""The layers of a model as a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from framework import Trainer, UsageError, build, described, layers


class Summary:
    """Prints the layers of the model: name, kind, output shape, parameters.

    A layer is a module with learnable parameters of its own, as the labs count them; hidden layers are all but the
    last. The shapes are seen in the first batch that is trained on, so nothing extra is run.
    """

    def __init__(self, name: str = "summary") -> None:
        self.name = name
        self._watch: _Watch | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._watch = _Watch(trainer.model)

    def on_batch_end(self, trainer: Trainer) -> None:
        if self._watch is not None:
            tqdm.write(table(trainer.model, self._watch.close()))
            self._watch = None

    def on_teardown(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


class _Watch:
    """Notes the output shape of each layer while a forward pass runs."""

    def __init__(self, model: nn.Module) -> None:
        self.shapes: dict[str, str] = {}
        self._handles = [layer.register_forward_hook(self._noting(name)) for name, layer in layers(model)]

    def _noting(self, name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) and output else output
            self.shapes[name] = str(tuple(tensor.shape)) if isinstance(tensor, Tensor) else type(output).__name__

        return note

    def close(self) -> dict[str, str]:
        for handle in self._handles:
            handle.remove()
        return self.shapes


def table(model: nn.Module, shapes: dict[str, str], others: str = "not used") -> str:
    """The layers of a model as lines of text; `shapes` has an output shape for each name that was seen."""
    rows = [("layer", "kind", "output", "parameters")]
    for name, layer in layers(model):
        count = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        rows.append((name or "(the model)", type(layer).__name__, shapes.get(name, others), f"{count:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=False)), row[3].rjust(widths[3])])
        for row in rows
    ]
    return "\n".join([*lines, described(model)])


def summary(recipe: str) -> None:
    """The layers of a recipe's model: output shapes for one sample, parameters, hidden layers.

    Args:
        recipe: a recipe, built with its defaults

    Raises:
        UsageError: the recipe trains nothing
    """
    made = build(recipe)
    if made is None:
        raise UsageError(f"the recipe {recipe} trains nothing: it has no model")
    for label, one in made.items() if isinstance(made, dict) else [("", made)]:
        if label:
            print(f"{label}:")
        watch = _Watch(one.model)
        try:
            with torch.no_grad():
                one.model.eval()(_sample(one.train))  # the model was built for this, and is trained by nobody
            print(table(one.model, watch.close()))
        except Exception as error:
            print(f"(the shapes are unknown: {type(error).__name__}: {error})")
            print(table(one.model, watch.close(), "unknown"))


def _sample(train: Any) -> Any:
    """The x of a batch of one sample."""
    loader = DataLoader(train, batch_size=1) if isinstance(train, Dataset) else train
    return _first_row(next(iter(loader))[0] if isinstance(loader, DataLoader) else train[0])


def _first_row(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree[:1]
    if isinstance(tree, dict):
        return {key: _first_row(value) for key, value in tree.items()}
    return type(tree)(_first_row(value) for value in tree)
