"""Common mistakes, said in the user's own names, shapes and values.

Two ways: `checked` looks at the first batch of a split, where torch would silently broadcast; `explain` is asked
only after something has failed, so it costs a healthy run nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from framework.device import leaves, named
from framework.errors import DataError, DeviceError, FrameworkError

# Functions that take (output, target) of one shape; torch only warns, or not even that, when the shapes differ.
_SAME_SHAPE = {
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "gaussian_nll_loss", "poisson_nll_loss", "kl_div",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss",
}  # fmt: skip
_ARITHMETIC = {
    "sub",
    "rsub",
    "add",
    "mul",
    "div",
    "pow",
    "__sub__",
    "__rsub__",
    "__add__",
    "__mul__",
    "subtract",
    "dist",
}


class _NoBroadcast(TorchFunctionMode):
    """Refuses an elementwise operation between an output and a target of different shapes."""

    def __init__(self, output: Tensor, target: Tensor) -> None:
        super().__init__()
        self.output, self.target = output.shape, target.shape

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if len(args) >= 2 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            shapes = args[0].shape, args[1].shape
            if shapes in ((self.output, self.target), (self.target, self.output)):
                if name in _SAME_SHAPE or (name in _ARITHMETIC and self._grows()):
                    raise DataError(self._sentence())
        return function(*args, **(kwargs or {}))

    def _grows(self) -> bool:
        try:
            together = torch.broadcast_shapes(self.output, self.target).numel()
        except RuntimeError:  # torch's own error follows
            return False
        return together > max(self.output.numel(), self.target.numel())

    def _sentence(self) -> str:
        output, target = tuple(self.output), tuple(self.target)
        compared = f"the output of the model has shape {output} and the target y has shape {target}"
        if output[:1] == target and output[1:] == (1,):
            return (
                f"{compared}: compared elementwise they would be broadcast to {(*output[:1], *output[:1])} and the "
                f"model could only learn the mean. Use y.reshape(-1, 1), or output.squeeze(1) in the model"
            )
        return f"{compared}; this loss compares element by element and needs them equal"


def checked(loss_of: Callable[[Any, Any], Any], output: Any, target: Any) -> Tensor:
    """`loss_of(output, target)`, the loss of the first batch, refused where output and target would be broadcast.

    Raises:
        DataError: the shapes differ in an elementwise loss, or the loss is not one number
    """
    if isinstance(output, Tensor) and isinstance(target, Tensor) and output.shape != target.shape:
        with _NoBroadcast(output, target):
            loss = loss_of(output, target)
    else:
        loss = loss_of(output, target)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise DataError(f"the loss must be one number in a tensor, got {got}. Take its mean (reduction='mean')")
    return loss


def explain(error: BaseException, model: nn.Module, loss: Any, batch: Any, output: Any) -> FrameworkError | None:
    """The mistake behind torch's error, or None where none of the known ones fits.

    Args:
        batch: the batch that was at work, or None; output: what the model gave for it, or None
    """
    if isinstance(error, FrameworkError) or not isinstance(error, (RuntimeError, ValueError, IndexError, TypeError,
                                                                   NotImplementedError)):  # fmt: skip
        return None
    if devices := _devices(error, model, batch, output):
        return DeviceError(devices)
    for rule in (_pair, _labels, _layer, _dtype, _probabilities, _no_gradient, _batch_norm):
        sentence = rule(str(error), model, loss, batch, output, error)
        if sentence:
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


def describe(batch: Any) -> str:
    """Names, shapes, dtypes and devices of a batch, for a note on an error."""
    return ", ".join(
        f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        for name, tensor in named(batch)
    )


def _devices(error: BaseException, model: nn.Module, batch: Any, output: Any) -> str | None:
    if not re.search(r"device|meta tensor|backend", str(error)):
        return None
    where: dict[str, str] = {}
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            where.setdefault(str(tensor.device), f"the model ({kind} {name!r}) is on {tensor.device}")
    for name, tensor in (*named(batch), *leaves(output, "the output")):
        where.setdefault(str(tensor.device), f"{name} is on {tensor.device}")
    if len(where) < 2:
        return None
    return f"{' and '.join(where.values())}: everything in one step must be on the same device"


def _pair(text: str, model: nn.Module, loss: Any, batch: Any, output: Any, error: BaseException) -> str | None:
    if batch is None or (isinstance(batch, (tuple, list)) and len(batch) == 2):
        return None
    if output is not None or not isinstance(error, (ValueError, TypeError, KeyError, IndexError)):
        return None
    got = f"{len(batch)} parts" if isinstance(batch, (tuple, list, dict)) else f"a {type(batch).__name__}"
    return f"a batch must be a pair (x, y), this one is {got}: {describe(batch)}. A plugin with forward and compute_loss can take others"


def _labels(text: str, model: nn.Module, loss: Any, batch: Any, output: Any, error: BaseException) -> str | None:
    """Class labels for cross entropy: range, dtype and shape."""
    if not (isinstance(output, Tensor) and isinstance(batch, (tuple, list)) and isinstance(batch[1], Tensor)):
        return None
    y, shape = batch[1], tuple(output.shape)
    if re.search(r"[Tt]arget.*out of bounds", text) and output.dim() > 1:
        classes = shape[1]
        wrong = ((y < 0) | (y >= classes)) & (y != getattr(loss, "ignore_index", -100))
        row = int(wrong.nonzero()[0, 0]) if bool(wrong.any()) else 0
        label = int(y[wrong][0]) if bool(wrong.any()) else int(y.max())
        hint = " Labels count from 0." if label == classes else ""
        return (
            f"label {label} in row {row} of this batch, but the model gives {classes} classes (0..{classes - 1}).{hint}"
        )
    if re.search(r"Long or Byte|scalar type Long|type Long but", text) and y.is_floating_point():
        return (
            f"this loss needs class numbers (int64, shape ({shape[0]},)); the labels y are "
            f"{_dtype_of(y)} of shape {tuple(y.shape)}: use y.long()"
        )
    if re.search(r"Long or Byte|scalar type Long", text):
        return f"this loss needs class numbers of int64; the labels y are {_dtype_of(y)}: use y.long()"
    if "1D target" in text or "multi-target" in text:
        return f"this loss needs class numbers of shape ({shape[0]},); the labels y have shape {tuple(y.shape)}: use y.long().squeeze(1)"
    if re.search(r"Found dtype Long|output type Long", text):
        return f"this loss compares numbers; y is {_dtype_of(y)}: use y.float()"
    if "batch_size" in text or "arget size" in text:
        return f"the output of the model has shape {shape} and the target y has shape {tuple(y.shape)}; they do not go together"
    return None


def _dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _layer(text: str, model: nn.Module, loss: Any, batch: Any, output: Any, error: BaseException) -> str | None:
    """A shape that does not fit into a layer."""
    if "shapes cannot be multiplied" not in text and "size mismatch" not in text:
        return None
    for name, layer, shape in _layers_in(error, model):
        if isinstance(layer, nn.Linear):
            flat = " Add nn.Flatten() before it." if len(shape) > 2 else ""
            return (
                f"the layer {name!r} is Linear({layer.in_features}, {layer.out_features}): it takes "
                f"{layer.in_features} numbers a sample, and was given shape {shape}.{flat}"
            )
    return None


def _layers_in(error: BaseException, model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """The model's modules on the traceback, innermost first, with the shape of their input."""
    names = {module: name or type(module).__name__ for name, module in model.named_modules()}
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        values = traceback.tb_frame.f_locals
        module = values.get("self")
        given = values.get("input", values.get("x"))
        if isinstance(module, nn.Module) and module in names and isinstance(given, Tensor):
            found.append((names[module], module, tuple(given.shape)))
        traceback = traceback.tb_next
    return reversed(found)


def _dtype(text: str, model: nn.Module, loss: Any, batch: Any, output: Any, error: BaseException) -> str | None:
    if "must have the same dtype" not in text and "expected scalar type" not in text:
        return None
    parameters = {_dtype_of(parameter) for parameter in model.parameters()}
    strange = [
        f"{name} is {_dtype_of(t)}"
        for name, t in named(batch)
        if name.startswith("x") and _dtype_of(t) not in parameters
    ]
    return (
        f"{strange[0]}, the parameters of the model are {', '.join(sorted(parameters))}: use x.float()"
        if strange
        else None
    )


def _probabilities(text: str, model: nn.Module, loss: Any, batch: Any, output: Any, error: BaseException) -> str | None:
    match = re.search(r"all elements of (input|target) should be between 0 and 1", text)
    if not match or not isinstance(output, Tensor):
        return None
    tensor, what = (output.detach(), "outputs of the model") if match[1] == "input" else (batch[1], "targets y")
    hint = " End the model with a sigmoid, or use BCEWithLogitsLoss" if match[1] == "input" else ""
    return f"this loss needs probabilities; the {what} reach from {float(tensor.min()):.4g} to {float(tensor.max()):.4g}.{hint}"


def _no_gradient(text: str, model: nn.Module, loss: Any, batch: Any, output: Any, error: BaseException) -> str | None:
    if "does not require grad" not in text:
        return None
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return "the model has no parameter to train (none requires a gradient)"
    return (
        "the loss does not depend on any parameter: is there a detach(), item() or no_grad() in the model or the loss?"
    )


def _batch_norm(text: str, model: nn.Module, loss: Any, batch: Any, output: Any, error: BaseException) -> str | None:
    if "more than 1 value per channel" not in text:
        return None
    return "batch normalization cannot train on a batch of one sample: use drop_last=True or another batch_size"
