"""Devices: which there are, which one is meant, and moving a model, its optimizer and a batch there."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from framework.errors import DeviceError, did_you_mean


def present() -> list[str]:
    """The devices of this machine, the fastest first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, "cpu"]


def resolve(device: str | torch.device) -> torch.device:
    """The device that is meant: "auto" is cuda, else mps, else the CPU.

    Raises:
        DeviceError: it does not exist here; what exists is listed, and nothing else is taken in its place
    """
    there = present()
    if str(device) == "auto":
        return torch.device(there[0])
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        kinds = ["auto", "cuda", "mps", "cpu"]
        raise DeviceError(f"{str(device)!r} is not a device.{did_you_mean(str(device), kinds)} {_has(there)}") from None
    full = f"{wanted.type}:{wanted.index or 0}" if wanted.type == "cuda" else wanted.type
    if full not in there:
        raise DeviceError(f"there is no device {str(device)!r} here. {_has(there)}")
    return torch.device(full)


def _has(there: list[str]) -> str:
    return f"This machine has: {', '.join(there)}."


def place(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> nn.Module:
    """Move the model in place, and what the optimizer keeps to where each parameter now is; the model."""
    model.to(device)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            # torch keeps Adam's 0-dim step counter on the CPU, so that reading it does not wait for the device.
            if isinstance(value, Tensor) and not (key == "step" and value.device.type == "cpu"):
                state[key] = value.to(parameter.device)
    return model


def move(tree: Any, device: torch.device) -> Any:
    """The same tree of dicts, lists and tuples on `device`; what is there already is not copied.

    An object with a `to` of its own, such as a PackedSequence, is moved by it.
    """
    return apply(lambda found: found.to(device), tree, lambda found: hasattr(found, "to"))


_PLAIN = (bool, int, float, str, type(None))


def apply(function: Callable[[Any], Any], tree: Any, leaf: Callable[[Any], bool] = lambda _: False) -> Any:
    """The same tree of dicts, lists and tuples with `function` applied to its tensors; other leaves stay.

    Args:
        leaf: what to apply the function to as well, beside tensors
    """
    if type(tree) in _PLAIN:  # most of what an optimizer tells of itself; the question below takes longer
        return tree
    if isinstance(tree, Tensor) or leaf(tree):
        return function(tree)
    if isinstance(tree, dict):
        made = {k: v if type(v) in _PLAIN else apply(function, v, leaf) for k, v in tree.items()}
        if not isinstance(tree, (Counter, defaultdict)):  # a state_dict is an OrderedDict, and a plain one does as well
            return made
        same = copy.copy(tree)
        dict.update(same, made)  # a Counter's own would add
        return same
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(apply(function, value, leaf) for value in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(apply(function, value, leaf) for value in tree)
    return tree.copy() if isinstance(tree, set) else tree


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a tree of dicts, lists and tuples with its path, such as `x['image']`."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}[{index}]")


def describe(batch: Any) -> str:
    """Names, shapes, dtypes and devices of a batch, for a message."""
    return ", ".join(f"{name} {tuple(t.shape)} {dtype_of(t)} on {t.device}" for name, t in named(batch))


def dtype_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def named(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch under the names x and y, where it is such a pair."""
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        yield from leaves(batch[0], "x")
        yield from leaves(batch[1], "y")
    else:
        yield from leaves(batch, "batch")
