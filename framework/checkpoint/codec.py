"""A tree of plain values and tensors as JSON beside tensors, and back. No name in it is ever imported."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from framework.errors import CheckpointError


def encode(tree: Any, tensors: dict[str, Tensor], path: str = "state") -> Any:
    """A tree of plain values as JSON; its tensors go into `tensors` under their paths.

    Raises:
        CheckpointError: a value that is neither plain nor a tensor
    """
    if isinstance(tree, Tensor):
        while path in tensors:  # {"a.b": ..., "a": {"b": ...}}
            path += "+"
        tensors[path] = tree
        return {"$tensor": path}
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    if isinstance(tree, float):
        return tree if tree - tree == 0 else {"$float": repr(tree)}
    if isinstance(tree, (list, tuple)):
        items = [encode(value, tensors, f"{path}.{index}") for index, value in enumerate(tree)]
        return items if isinstance(tree, list) else {"$tuple": items}
    if isinstance(tree, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return {key: encode(value, tensors, f"{path}.{key}") for key, value in tree.items()}
        return {
            "$map": [[encode(k, tensors, f"{path}.key"), encode(v, tensors, f"{path}.{k}")] for k, v in tree.items()]
        }
    raise CheckpointError(
        f"{path} is of type {type(tree).__name__}, which a checkpoint cannot hold; keep numbers, text and tensors"
    )


def decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `encode`. Only the tags above mean anything; no name is ever imported."""
    if isinstance(tree, list):
        return [decode(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    match list(tree):
        case ["$tensor"]:
            return tensors[tree["$tensor"]]
        case ["$float"]:
            return float(tree["$float"])
        case ["$tuple"]:
            return tuple(decode(value, tensors) for value in tree["$tuple"])
        case ["$map"]:
            return {decode(key, tensors): decode(value, tensors) for key, value in tree["$map"]}
    return {key: decode(value, tensors) for key, value in tree.items()}
