"""Targets that do not fit the loss."""

from __future__ import annotations

from torch import Tensor, int64

from framework.device import dtype_of
from framework.mistakes.case import Case, Rule


def out_of_range(y: Tensor, classes: int, ignored: int) -> str | None:
    """The first label that names no class, and its row."""
    wrong = ((y < 0) | (y >= classes)) & (y != ignored)
    if not bool(wrong.any()):
        return None
    row, label = int(wrong.nonzero()[0, 0]), int(y[wrong][0])
    hint = " Labels count from 0." if label == classes else ""
    known = f"{classes} classes (0..{classes - 1})" if classes > 1 else "one output, which is one class (0)"
    return f"label {label} in row {row} of this batch, but the model gives {known}.{hint}"


def reach(tensor: Tensor) -> str:
    return f"{float(tensor.detach().min()):.4g} to {float(tensor.detach().max()):.4g}"


def _out_of_range(case: Case) -> str | None:
    if case.y is None or not isinstance(case.output, Tensor) or case.output.dim() < 2:
        return None
    return out_of_range(case.y, case.output.size(1), getattr(case.loss, "ignore_index", -100))


def _of_wrong_kind(case: Case) -> str | None:
    y, output = case.y, case.output
    if y is None or not isinstance(output, Tensor):
        return None
    if output.dim() == 1 and y.dim() == 1:
        return f"cross entropy takes a score for each class, (samples, classes); the model gives {tuple(output.shape)}"
    use = "y.argmax(1)" if y.shape == output.shape else "y.long()" if y.dtype != int64 else "y"
    use += ".squeeze(1)" if y.dim() == 2 and y.size(1) == 1 else ""
    are = f"the labels y are {dtype_of(y)} {tuple(y.shape)}: use {use}"
    return f"this loss needs class numbers (int64, shape {(len(output),)}); {are}"


def _whole_numbers(case: Case) -> str | None:
    return None if case.y is None else f"this loss compares numbers; the target y is {dtype_of(case.y)}: use y.float()"


def _no_probabilities(case: Case) -> str | None:
    of_model = "elements of input" in str(case.error)
    tensor = case.output if of_model else case.y
    if not isinstance(tensor, Tensor):
        return None
    what = "outputs of the model" if of_model else "targets y"
    hint = ". End the model with a sigmoid, or use BCEWithLogitsLoss" if of_model else ""
    return f"this loss needs probabilities; the {what} reach from {reach(tensor)}{hint}"


RULES: tuple[Rule, ...] = (
    (r"[Tt]arget.*out of bounds", _out_of_range),
    (r"Long or Byte|scalar type Long|1D target|multi-target|probabilities, got", _of_wrong_kind),
    (r"Found dtype Long|output type Long", _whole_numbers),
    (r"all elements of (input|target) should be between 0 and 1", _no_probabilities),
)
