"""Common mistakes, said in the user's own names, shapes and values.

Two ways: `checked` looks at the first batch of a split, where torch would silently broadcast; `explain` is asked
only after something has failed, so it costs a healthy run nothing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from framework.data import no_pair
from framework.device import dtype_of, leaves, named
from framework.errors import DataError, DeviceError, FrameworkError

# Functions that take (output, target) of one shape; torch only warns, or not even that, when the shapes differ.
_SAME_SHAPE = {
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "gaussian_nll_loss", "poisson_nll_loss", "kl_div",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss",
}  # fmt: skip
_ARITHMETIC = {
    "sub", "rsub", "add", "mul", "div", "pow", "subtract", "multiply", "divide", "true_divide", "maximum", "minimum",
    "__sub__", "__rsub__", "__add__", "__mul__",
}  # fmt: skip


class _NoBroadcast(TorchFunctionMode):
    """Refuses an elementwise operation between an output and a target of different shapes.

    It follows the two through the loss: what is computed from one alone, in its shape, stands for it.
    """

    def __init__(self, output: Tensor, target: Tensor) -> None:
        super().__init__()
        self.output, self.target = [output], [target]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        given = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        sides = [side for side in (self.output, self.target) if any(a is b for a in given[:2] for b in side)]
        if len(sides) == 2 and (name in _SAME_SHAPE or (name in _ARITHMETIC and _grows(*given[:2]))):
            raise DataError(self._sentence())
        result = function(*args, **(kwargs or {}))
        if len(sides) == 1 and isinstance(result, Tensor) and result.shape == sides[0][0].shape:
            sides[0].append(result)
        return result

    def _sentence(self) -> str:
        output, target = tuple(self.output[0].shape), tuple(self.target[0].shape)
        compared = f"the output of the model has shape {output} and the target y has shape {target}"
        if output[:1] == target and output[1:] == (1,) and output[0] > 1:
            return (
                f"{compared}: compared elementwise they would be broadcast to {(*output[:1], *output[:1])} and the "
                "model could only learn the mean. Use y.reshape(-1, 1), or output.squeeze(1) in the model"
            )
        return f"{compared}; this loss compares element by element and needs them equal"


def _grows(a: Tensor, b: Tensor) -> bool:
    """Whether broadcasting the two gives more numbers than either has."""
    try:
        together: torch.Size = torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:  # they cannot be broadcast; torch says so itself
        return False
    return together.numel() > max(a.numel(), b.numel())


def checked(loss_of: Callable[[Any, Any], Any], output: Any, batch: Any) -> Tensor:
    """`loss_of(output, batch)`, the loss of a first batch, refused where output and target would be broadcast.

    Raises:
        DataError: the shapes differ in an elementwise loss, or the loss is not one number
    """
    target: Any = batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None
    differ = isinstance(output, Tensor) and isinstance(target, Tensor) and output.shape != target.shape
    with _NoBroadcast(output, target) if differ else contextlib.nullcontext():
        loss = loss_of(output, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise DataError(f"the loss must be one number in a tensor, got {got}. Take its mean (reduction='mean')")
    return loss


@dataclass
class Case:
    """What was at work when torch raised: the batch in hand or None, and the model's output for it or None."""

    error: BaseException
    model: nn.Module
    loss: Any
    batch: Any
    output: Any

    @property
    def y(self) -> Tensor | None:
        pair = isinstance(self.batch, (tuple, list)) and len(self.batch) == 2
        return self.batch[1] if pair and isinstance(self.batch[1], Tensor) else None


Rule = Callable[[Case], str | None]
_RULES: list[tuple[str, Rule]] = []


def _rule(pattern: str) -> Callable[[Rule], Rule]:
    """A sentence for errors whose text matches; None where the facts are others after all."""

    def add(rule: Rule) -> Rule:
        _RULES.append((pattern, rule))
        return rule

    return add


def explain(error: BaseException, model: nn.Module, loss: Any, batch: Any, output: Any) -> FrameworkError | None:
    """The mistake behind torch's error, or None where none of the known ones fits."""
    if isinstance(error, FrameworkError) or not isinstance(error, Exception):
        return None
    if isinstance(batch, dict) and isinstance(error, KeyError):  # one of forward and compute_loss is not replaced
        return DataError(no_pair(batch))
    case = Case(error, model, loss, batch, output)
    if re.search(r"device|meta tensor|backend", str(error)) and (sentence := _devices(case)):
        return DeviceError(sentence)
    for pattern, rule in _RULES if batch is not None else ():
        if re.search(pattern, str(error)) and (sentence := rule(case)):
            return DataError(sentence)
    return None


def nonfinite_in(batch: Any) -> str:
    """Where a batch holds inf or nan, such as `x holds nan in row 3 of this batch`, else nothing."""
    for name, tensor in named(batch):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            row = int((~torch.isfinite(tensor)).nonzero()[0, 0]) if tensor.dim() else 0
            kind = "nan" if bool(torch.isnan(tensor).any()) else "inf"
            return f"the data is the cause: {name} holds {kind} in row {row} of this batch"
    return ""


def _devices(case: Case) -> str | None:
    where: dict[str, str] = {}
    for kind, tensors in (("parameter", case.model.named_parameters()), ("buffer", case.model.named_buffers())):
        for name, tensor in tensors:
            where.setdefault(str(tensor.device), f"the model ({kind} {name!r}) is on {tensor.device}")
    for name, tensor in (*named(case.batch), *leaves(case.output, "the output")):
        where.setdefault(str(tensor.device), f"{name} is on {tensor.device}")
    if "meta" in where and len(where) == 1:
        return f"{where['meta']}, which holds no data: build the model on a real device"
    return (
        f"{' and '.join(where.values())}: everything in one step must be on the same device" if len(where) > 1 else None
    )


@_rule(r"[Tt]arget.*out of bounds")
def _label_out_of_range(case: Case) -> str | None:
    if case.y is None or not isinstance(case.output, Tensor) or case.output.dim() < 2:
        return None
    classes, ignored = case.output.size(1), getattr(case.loss, "ignore_index", -100)
    wrong = ((case.y < 0) | (case.y >= classes)) & (case.y != ignored)
    if not bool(wrong.any()):
        return None
    row, label = int(wrong.nonzero()[0, 0]), int(case.y[wrong][0])
    hint = " Labels count from 0." if label == classes else ""
    known = f"{classes} classes (0..{classes - 1})"
    return f"label {label} in row {row} of this batch, but the model gives {known}.{hint}"


@_rule(r"Long or Byte|scalar type Long|1D target|multi-target")
def _labels_of_wrong_kind(case: Case) -> str | None:
    if case.y is None or not isinstance(case.output, Tensor):
        return None
    wanted, got = (len(case.output),), tuple(case.y.shape)
    use = "y.long()" if case.y.is_floating_point() or case.y.dtype != torch.int64 else "y"
    use += ".squeeze(1)" if case.y.dim() == 2 else ""
    are = f"the labels y are {dtype_of(case.y)} {got}"
    return f"this loss needs class numbers (int64, shape {wanted}); {are}: use {use}"


@_rule(r"Found dtype Long|output type Long")
def _integer_target(case: Case) -> str | None:
    if case.y is None:
        return None
    return f"this loss compares numbers; the target y is {dtype_of(case.y)}: use y.float()"


@_rule(r"all elements of (input|target) should be between 0 and 1")
def _no_probabilities(case: Case) -> str | None:
    of_model = "elements of input" in str(case.error)
    tensor = case.output if of_model else case.y
    if not isinstance(tensor, Tensor):
        return None
    low, high = float(tensor.detach().min()), float(tensor.detach().max())
    what = "outputs of the model" if of_model else "targets y"
    hint = ". End the model with a sigmoid, or use BCEWithLogitsLoss" if of_model else ""
    return f"this loss needs probabilities; the {what} reach from {low:.4g} to {high:.4g}{hint}"


@_rule(r"shapes cannot be multiplied|size mismatch")
def _layer(case: Case) -> str | None:
    for name, layer, shape in _layers_at_work(case):
        if isinstance(layer, nn.Linear):
            flat = ". Add nn.Flatten() before it" if len(shape) > 2 else ""
            takes = f"Linear({layer.in_features}, {layer.out_features}): it takes {layer.in_features} numbers a sample"
            return f"the layer {name!r} is {takes}, and was given shape {shape}{flat}"
    return None


def _layers_at_work(case: Case) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """The model's modules on the traceback, innermost first, with the shape of their input."""
    names = {module: name or type(module).__name__ for name, module in case.model.named_modules()}
    found: list[tuple[str, nn.Module, tuple[int, ...]]] = []
    traceback = case.error.__traceback__
    while traceback is not None:
        values = traceback.tb_frame.f_locals
        module, given = values.get("self"), values.get("input", values.get("x"))
        if isinstance(module, nn.Module) and module in names and isinstance(given, Tensor):
            found.append((names[module], module, tuple(given.shape)))
        traceback = traceback.tb_next
    return reversed(found)


@_rule(r"must have the same dtype|expected scalar type|Input type .* should be the same")
def _input_dtype(case: Case) -> str | None:
    dtypes = {dtype_of(parameter) for parameter in case.model.parameters()}
    for name, tensor in named(case.batch):
        if name.startswith("x") and dtype_of(tensor) not in dtypes:
            kinds = ", ".join(sorted(dtypes))
            return f"{name} is {dtype_of(tensor)}, the parameters of the model are {kinds}: use x.float()"
    return None


@_rule(r"does not require grad")
def _no_gradient(case: Case) -> str | None:
    if not any(parameter.requires_grad for parameter in case.model.parameters()):
        return "the model has no parameter to train (none requires a gradient)"
    return "the loss does not depend on any parameter: is there a detach() or no_grad() in the model or the loss?"


@_rule(r"more than 1 value per channel")
def _batch_norm(case: Case) -> str | None:
    return "batch normalization cannot train on a batch of one sample: use a larger batch_size, or drop_last=True"
