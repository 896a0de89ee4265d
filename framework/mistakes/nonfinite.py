"""Where an inf or a nan came from, looked for after the fact."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framework.device import leaves, named
from framework.mistakes.labels import reach
from framework.seed import kept_random_states

if TYPE_CHECKING:
    from framework.trainer import Trainer


def nonfinite_in(batch: Any) -> str:
    """Where a batch holds inf or nan, such as `x holds nan in row 3 of this batch`, else nothing."""
    for name, tensor in named(batch):
        if kind := _kind(tensor):
            row = int((~torch.isfinite(tensor)).nonzero()[0, 0]) if tensor.dim() else 0
            return f"the data is the cause: {name} holds {kind} in row {row} of this batch"
    return ""


def nonfinite_from(trainer: Trainer, batch: Any, output: Any) -> str:
    """What made the loss inf or nan: the data, a parameter, the loss or a layer; nothing where it cannot be told.

    The model may be run once more, without gradients; its buffers and the random states are left as they were.
    """
    y = batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None
    ignored = getattr(trainer.loss, "ignore_index", None)
    if said := nonfinite_in(batch):
        return said
    if ignored is not None and isinstance(y, Tensor) and bool((y == ignored).all()):
        return f"every label y of this batch is {ignored}, which the loss ignores: there is nothing to take the mean of"
    for name, parameter in trainer.model.named_parameters():
        if kind := _kind(parameter):
            return f"the parameter {name!r} holds {kind} since the step before; try a smaller learning rate"
    if isinstance(output, Tensor) and not _kind(output):
        return f"the outputs are finite, {reach(output)}: the loss overflows (try a smaller rate) or takes log(0), 1/0"
    return "" if y is None or trainer.plugins.frozen("train").forward else _first_layer(trainer.model, batch[0])


def _kind(tensor: Tensor) -> str:
    """ "nan" or "inf", where a tensor holds such numbers."""
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return ""
    return "nan" if bool(torch.isnan(tensor).any()) else "inf"


def _first_layer(model: nn.Module, x: Any) -> str:
    """The first layer of the model whose output is not finite."""
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, given: Any, made: Any) -> None:
        if kind := next(filter(None, (_kind(tensor) for _, tensor in leaves(made))), ""):
            found.append(f"{kind} comes first out of the layer {names[module]!r} ({type(module).__name__})")

    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with contextlib.ExitStack() as undo, torch.no_grad(), kept_random_states():
        for module in names:
            undo.callback(module.register_forward_hook(look).remove)
        model(x)
        for buffer, before in buffers:
            buffer.copy_(before)
    return f"{found[0]}; try a smaller learning rate" if found else ""
