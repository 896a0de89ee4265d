"""The state of a fit in memory, copied so that training can go on."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from framework.device import apply
from framework.engine import copy_over, held_by, hooks_of_state_dict


@dataclass
class Snapshot:
    """The state of a fit at a step boundary; the tensors are copies.

    `model` is the model's state dict, `optimizer` the optimizer's, `plugins` each plugin's state under its name;
    `epoch` and `step` count what had been completed; `loop` is where in the fit that was (place.py). The first of
    `rows` are the history: a list that only grows, and how many of it there were. Without `exact` something had
    happened since the last step boundary, such as an error, so that a fit cannot go on from it as it would have gone.
    `ranks` is what other processes than the first had of `plugins` and `loop`, in one that was read.
    `live` is what makes it quick to take the next one over it.
    """

    epoch: int
    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    plugins: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    rows: tuple[list[dict[str, Any]], int] = field(default=([], 0), repr=False)
    ranks: list[dict[str, Any]] = field(default_factory=list, repr=False)
    live: Live | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "live": None}

    def history(self) -> list[dict[str, Any]]:
        """The rows as columns, which take a tenth of the room; those with the same names are together."""
        rows, count = self.rows
        alike: dict[tuple[str, ...], list[int]] = {}
        for index, row in enumerate(rows[:count]):
            alike.setdefault(tuple(row), []).append(index)
        return [
            {"names": [*names], "rows": _column(where), "values": [_column([rows[i][n] for i in where]) for n in names]}
            for names, where in alike.items()
        ]


def rows_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that `Snapshot.history` told."""
    rows: dict[int, dict[str, Any]] = {}
    for part in history:
        names = [sys.intern(name) for name in part["names"]]  # one name for all the rows
        where, *columns = (c.tolist() if isinstance(c, Tensor) else c for c in (part["rows"], *part["values"]))
        for index, *values in zip(where, *columns, strict=True):
            rows[index] = dict(zip(names, values, strict=True))
    return [rows[index] for index in sorted(rows)]


def _column(values: list[Any]) -> Any:
    """Numbers of one kind as a tensor of doubles or of 64-bit integers; anything else as it is."""
    for kind, dtype in ((float, torch.float64), (int, torch.int64)):
        if all(type(value) is kind for value in values):
            with contextlib.suppress(OverflowError, RuntimeError, ValueError):  # an integer of more than 64 bits
                return torch.tensor(values, dtype=dtype)
    return values


def copy(tree: Any) -> Any:
    """The same tree with its own tensors, on the same device."""
    return apply(lambda tensor: tensor.detach().clone(), tree)


def take(
    epoch: int, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, plugins: dict[str, Any],
    over: Snapshot | None = None,
) -> Snapshot:  # fmt: skip
    """A snapshot of this state.

    Args:
        over: an earlier one that nobody needs any more. Where it is of the same tensors they are copied over those of
            it, and what takes most of the time for a small model, asking for the names of everything, is left out.
    """
    held = held_by(model)
    entries = list(optimizer.state.values())
    if held is None or hooks_of_state_dict(optimizer) or any(type(entry) is not dict for entry in entries):
        return Snapshot(epoch, step, *map(copy, (model.state_dict(), optimizer.state_dict(), plugins)))
    held += [value for entry in entries for value in entry.values()]
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    lengths = [len(group["params"]) for group in optimizer.param_groups]
    if over is not None and over.live is not None:
        live = over.live
        if (
            _are(held, live.tensors) and _are(members, live.members) and lengths == live.lengths
            and [(tensor.shape, tensor.dtype) for tensor in held] == live.kinds
        ):  # fmt: skip
            copy_over(live.copies, held)
            old = over.optimizer["param_groups"]
            groups = [_settings(group, was["params"]) for group, was in zip(optimizer.param_groups, old, strict=True)]
            state = {**over.optimizer, "param_groups": groups}
            return Snapshot(epoch, step, over.model, state, copy(plugins), live=live)
    snapshot = Snapshot(epoch, step, *map(copy, (model.state_dict(), optimizer.state_dict(), plugins)))
    kept = [value for entry in snapshot.optimizer.get("state", {}).values() for value in entry.values()]
    copies = [*snapshot.model.values(), *kept]
    if len(copies) == len(held) and all(isinstance(value, Tensor) and not value.is_sparse for value in held + copies):
        kinds = [(tensor.shape, tensor.dtype) for tensor in held]
        if kinds == [(tensor.shape, tensor.dtype) for tensor in copies]:
            snapshot.live = Live(held, members, lengths, kinds, copies)
    return snapshot


@dataclass
class Live:
    """The tensors that a snapshot was taken of, the optimizer's parameters by group, and the copies, all in order."""

    tensors: list[Tensor]
    members: list[Tensor]
    lengths: list[int]
    kinds: list[Any]
    copies: list[Tensor]


def _settings(group: dict[str, Any], params: list[int]) -> dict[str, Any]:
    """A group of an optimizer as its state_dict tells it."""
    settings = {**group}
    del settings["params"]
    if not {*map(type, settings.values())} <= _NUMBERS:
        settings = copy(settings)
    settings["params"] = params
    return settings


_NUMBERS = {bool, int, float, str, type(None)}


def _are(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))
