"""Where an inf or a nan came from, looked for after the fact."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from framework.device import leaves, named
from framework.seed import kept_random_states


def nonfinite_in(batch: Any) -> str:
    """Where a batch holds inf or nan, such as `x holds nan in row 3 of this batch`, else nothing."""
    for name, tensor in named(batch):
        if kind := _kind(tensor):
            row = int((~torch.isfinite(tensor)).nonzero()[0, 0]) if tensor.dim() else 0
            return f"the data is the cause: {name} holds {kind} in row {row} of this batch"
    return ""


def nonfinite_from(model: nn.Module, loss: Any, batch: Any, output: Any) -> str:
    """What made the loss inf or nan: the data, a parameter, the loss or a layer; nothing where it cannot be told.

    The model may be run once more, without gradients; its buffers and the random states are left as they were.
    """
    ignored = getattr(loss, "ignore_index", None)
    if said := nonfinite_in(batch):
        return said
    if ignored is not None and isinstance(batch[1], Tensor) and bool((batch[1] == ignored).all()):
        return f"every label y of this batch is {ignored}, which the loss ignores: there is nothing to take the mean of"
    for name, parameter in model.named_parameters():
        if kind := _kind(parameter):
            return f"the parameter {name!r} holds {kind} since an earlier step; try a smaller learning rate"
    outputs = [tensor for _, tensor in leaves(output)]
    if not any(map(_kind, outputs)):
        return "the model's outputs are finite: the loss itself overflows, or takes a logarithm or a quotient of 0"
    return _first_layer(model, batch[0])


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
