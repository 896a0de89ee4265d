"""The first batch of a split, looked at while its loss is computed: what torch would accept without a word."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from framework.errors import DataError
from framework.mistakes.labels import out_of_range, reach

# Functions that take (output, target) of one shape; torch only warns, or not even that, when the shapes differ.
_SAME_SHAPE = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "gaussian_nll_loss", "poisson_nll_loss", "kl_div",
               "binary_cross_entropy", "binary_cross_entropy_with_logits", "soft_margin_loss"}  # fmt: skip
_ARITHMETIC = {"sub", "rsub", "add", "mul", "div", "pow", "subtract", "multiply", "divide", "true_divide", "maximum",
               "minimum", "__sub__", "__rsub__", "__add__", "__mul__"}  # fmt: skip


class _Watched(TorchFunctionMode):
    """Refuses an elementwise operation between an output and a target of different shapes, and labels of no class.

    It follows the two through the loss: what is computed from one alone, in its shape, stands for it.
    """

    def __init__(self, output: Tensor, target: Tensor) -> None:
        super().__init__()
        self.output, self.target = [output], [target]
        self.differ = output.shape != target.shape

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:2]
        sides = [side for side in (self.output, self.target) if any(a is b for a in given for b in side)]
        if self.differ and len(sides) == 2 and (name in _SAME_SHAPE or (name in _ARITHMETIC and _grows(*given))):
            raise DataError(self._sentence())
        if len(given) == 2:
            doubt = _looked_at(name, given[0].detach(), given[1].detach(), kwargs.get("ignore_index", -100))
            if doubt and torch.is_grad_enabled():  # in train, and not again in val
                warnings.warn(doubt, stacklevel=2)
        result = function(*args, **kwargs)
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


def _looked_at(name: str, output: Tensor, target: Tensor, ignored: int) -> str | None:
    """What is doubtful about what a loss of torch is given."""
    if name == "binary_cross_entropy_with_logits" and _beyond(target):
        return f"BCEWithLogitsLoss needs targets from 0 to 1; the targets y reach from {reach(target)}"
    if name not in ("cross_entropy", "nll_loss") or output.dim() < 2:
        return None
    if not target.is_floating_point() and (said := out_of_range(target, output.size(1), ignored)):
        raise DataError(said)  # a GPU would only say that something is wrong, and be lost to this process
    return _SOFTMAXED if _probabilities(output) else None


_SOFTMAXED = "the loss gets probabilities (rows sum to 1), and takes scores: leave out softmax, use CrossEntropyLoss"


def _readable(tensor: Tensor) -> bool:
    """Whether it holds plain real numbers that can be looked at."""
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta)
    return plain and tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def _beyond(tensor: Tensor) -> bool:
    """Whether it has numbers that are no probabilities."""
    return _readable(tensor) and bool(((tensor < 0) | (tensor > 1)).any())


def _probabilities(output: Tensor) -> bool:
    """Whether each row is a distribution over two classes or more."""
    rows = output.dim() > 1 and output.size(1) > 1 and output.size(0) > 0 and _readable(output)
    return rows and not _beyond(output) and bool((output.sum(1) - 1).abs().max() < 1e-3)


def _grows(a: Tensor, b: Tensor) -> bool:
    """Whether broadcasting the two gives more numbers than either has."""
    try:
        return bool(torch.broadcast_shapes(a.shape, b.shape).numel() > max(a.numel(), b.numel()))
    except RuntimeError:  # they cannot be broadcast; torch says so itself
        return False


def checked(loss_of: Callable[[Any, Any], Any], output: Any, batch: Any) -> Tensor:
    """`loss_of(output, batch)`, the loss of a first batch, refused where output and target would be broadcast.

    Raises:
        DataError: the shapes differ in an elementwise loss, a label names no class, or the loss is not one number
    """
    target: Any = batch[1] if isinstance(batch, tuple) and len(batch) == 2 else None
    tensors = isinstance(output, Tensor) and isinstance(target, Tensor)
    doubtful = tensors and (output.shape != target.shape or _beyond(target) or _probabilities(output.detach()))
    with _Watched(output, target) if doubtful else contextlib.nullcontext():
        loss = loss_of(output, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        got = f"tensor of shape {tuple(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        raise DataError(f"the loss must be one number in a tensor, got a {got}. Take its mean (reduction='mean')")
    return loss
