"""Inputs that do not fit the model, and a model that does not fit the loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from framework.device import dtype_of, leaves, named
from framework.mistakes.case import Case, Rule
from framework.mistakes.labels import reach


def devices(case: Case) -> str | None:
    """What is where, if it is not all in one place."""
    held = [(f"the model (parameter {name!r})", tensor) for name, tensor in case.model.named_parameters()]
    rest = [(f"the model (buffer {name!r})", tensor) for name, tensor in case.model.named_buffers()]
    where: dict[str, str] = {}
    for name, tensor in (*held, *rest, *named(case.batch), *leaves(case.output, "the output")):
        where.setdefault(str(tensor.device), f"{name} is on {tensor.device}")
    if "meta" in where and len(where) == 1:
        return f"{where['meta']}, which holds no data: build the model on a real device"
    if len(where) > 1:
        return " and ".join(where.values()) + ": everything in one step must be on the same device"
    return f"a tensor is made elsewhere, use device=x.device: {case.error}" if "xpected" in str(case.error) else None


def _layer(case: Case) -> str | None:
    """The innermost layer of the model that was given something, and what it was."""
    for name, layer, given in case.layers():
        if not isinstance(given, Tensor):
            return f"the layer {name!r} takes one tensor, and was given {_a(given)}: choose or join them in forward"
        if isinstance(layer, nn.Linear):
            flat = ". Add nn.Flatten() before it" if given.dim() > 2 else ""
            takes = f"Linear({layer.in_features}, {layer.out_features}): it takes {layer.in_features} numbers a sample"
            return f"the layer {name!r} is {takes}, and was given shape {tuple(given.shape)}{flat}"
        rows = f" with rows from {reach(given)}" if isinstance(layer, nn.Embedding) else ""
        what = str(layer).splitlines()[0].removesuffix("(")  # without the layers in it
        return f"the layer {name!r} is {what}, and was given {dtype_of(given)} {tuple(given.shape)}{rows}: {case.error}"
    return None


def _dtype(case: Case) -> str | None:
    dtypes = sorted({dtype_of(parameter) for parameter in case.model.parameters()})
    for name, tensor in named(case.batch):
        if name.startswith("x") and dtype_of(tensor) not in dtypes:
            use = "x.float()" if "float32" in dtypes else "model.float() and x.float()"
            return f"{name} is {dtype_of(tensor)}, the parameters of the model are {', '.join(dtypes)}: use {use}"
    return None


def _no_gradient(case: Case) -> str:
    if not any(parameter.requires_grad for parameter in case.model.parameters()):
        return "the model has no parameter to train (none requires a gradient)"
    return "the loss does not depend on any parameter: is there a detach() or no_grad() in the model or the loss?"


def _not_two_tensors(case: Case) -> str | None:
    """Of a first batch: the loss was given something else."""
    y = case.batch[1] if isinstance(case.batch, tuple) and len(case.batch) == 2 else None
    ours = case.frames("framework.mistakes.first") and case.frames()[0] in case.frames("torch.")
    if not ours or (isinstance(case.output, Tensor) and isinstance(y, Tensor)):
        return None
    return f"the loss takes two tensors; the forward of the model returns {_a(case.output)}, the target y is {_a(y)}"


def _a(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(part).__name__ for part in value[:3])})"
    return f"a dict of {', '.join(map(repr, value))}" if isinstance(value, dict) else f"a {type(value).__name__}"


RULES: tuple[Rule, ...] = (
    (r"cannot be multiplied|size mismatch|expected input|input to conv|running_mean|D input|normalized_shape", _layer),
    (r"must be Tensor, not|index out of range|argument #1 'indices'|is invalid for|multiply up", _layer),
    (r"must have the same dtype|expected scalar type|Input type .* should be the same", _dtype),
    (r"does not require grad", _no_gradient),
    (r"object has no attribute|must be Tensor|is not callable|unsupported operand|indices must be", _not_two_tensors),
    (r"more than 1 value", "batch normalization cannot train on one sample: use a larger batch_size or drop_last=True"),
    (r"graph a second time", "a tensor of an earlier step is used with its gradients (a kept state?): detach() it"),
    (r"inplace operation", "a tensor that the gradients need was changed in place (by +=, add_, x[i] = ...): copy it"),
    (r"argument: 'closure'", "this optimizer needs a closure, which a plugin gives it: python -m framework plugins"),
    (r"device-side assert", "an index on the GPU was out of range, of a label or an Embedding; device='cpu' names it"),
)
