"""Using a run: its figures on the recipe's data, and its predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from framework import PluginOption, UsageError, rebuild

if TYPE_CHECKING:
    from torch import Tensor

    from framework import Recipe


Trust = tyro.conf.FlagCreatePairsOff[bool]


def evaluate(
    run: Path, recipe: str = "", checkpoint: str = "", plugin: PluginOption = (), trust_run: Trust = False
) -> int:
    """The figures of a run's weights on the data of its recipe.

    Args:
        run: a run directory
        recipe: the recipe file to use, where the original has gone or changed
        checkpoint: best or last; by default the best if it was chosen on validation data, else the last
        plugin: as for a run; those of the recipe are there already
        trust_run: run the copy of the recipe that is in the run directory
    """
    from torch.utils.data import DataLoader

    made, trainer, path = rebuild(run, recipe, checkpoint, plugin, trust_run)
    print(f"weights   {path}")
    for split in ("train", "val", "test"):
        data = getattr(made, split)
        if data is not None:
            figures = trainer.evaluate(data, None if isinstance(data, DataLoader) else made.batch_size)
            shown = "  ".join(f"{name.removeprefix('test_')} {value:.6g}" for name, value in figures.items())
            print(f"{split:<9} {shown}")
    return 0


def predict(
    run: Path, input: str, recipe: str = "", checkpoint: str = "", plugin: PluginOption = (), trust_run: Trust = False
) -> int:
    """What a run's model says about an input.

    Args:
        run: a run directory
        input: one sample, or a list of samples, as JSON, such as "[73,80,75]"
        recipe: the recipe file to use, where the original has gone or changed
        checkpoint: best or last; by default the best if it was chosen on validation data, else the last
        plugin: as for a run; those of the recipe are there already
        trust_run: run the copy of the recipe that is in the run directory
    """
    made, trainer, path = rebuild(run, recipe, checkpoint, plugin, trust_run)
    inputs, rows = _inputs(input, made)
    print(f"weights   {path}")
    for row, output in zip(rows, trainer.predict(inputs), strict=True):
        print(f"{json.dumps(row)} -> {_said(output, made)}")
    return 0


def _inputs(text: str, made: Recipe) -> tuple[Tensor, list[Any]]:
    """The input as a batch shaped like the samples that the recipe trains on."""
    import torch

    sample = _first_sample(made.train)
    try:
        values = json.loads(text)
        tensor = torch.tensor(values, dtype=sample.dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f'the input {text!r} is not a JSON list of numbers such as "[73,80,75]": {error}') from None
    if tensor.dim() == sample.dim():
        tensor, values = tensor.unsqueeze(0), [values]
    if tensor.shape[1:] != sample.shape:
        raise UsageError(
            f"the input has shape {tuple(tensor.shape[1:] or tensor.shape)}; "
            f"a sample of this recipe has shape {tuple(sample.shape)}"
        )
    return tensor, values


def _first_sample(train: Any) -> Tensor:
    from torch import Tensor
    from torch.utils.data import DataLoader

    data_set = train.dataset if isinstance(train, DataLoader) else train
    first = data_set[0][0]  # of a pair (x, y): the first row of x; of a Dataset: the x of its first sample
    if not isinstance(first, Tensor):
        raise UsageError("predict takes recipes whose x is one tensor; use Trainer.predict for others")
    return first


def _said(output: Tensor, made: Recipe) -> str:
    from torch import nn

    if output.dim() == 1 and (isinstance(made.loss, nn.CrossEntropyLoss) or made.loss is nn.functional.cross_entropy):
        probabilities = output.softmax(0)
        best = int(probabilities.argmax())
        name = made.class_names[best] if made.class_names else f"class {best}"
        return f"{name} ({float(probabilities[best]):.4f})"
    return json.dumps([float(f"{value:.6g}") for value in output.flatten().tolist()])
