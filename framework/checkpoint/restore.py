"""From a checkpoint back into the live objects: compared first, then loaded all or nothing, then compared again."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from framework.checkpoint.codec import encode
from framework.checkpoint.snapshot import Snapshot, copy
from framework.checkpoint.store import MANIFEST, candidates, newest, read
from framework.device import apply, dtype_of
from framework.errors import CheckpointError, UsageError
from framework.seed import random_states, set_random_states

if TYPE_CHECKING:
    from framework.trainer import Trainer

SHOWN = 5  # differences in one message


class Resumed:
    """A checkpoint that a fit goes on from.

    Args:
        source: a run directory, whose newest sound checkpoint is taken, or one checkpoint

    Raises:
        CheckpointError: there is none that can be read
    """

    def __init__(self, source: Path) -> None:
        self.run_dir: Path | None = source
        if (source / "checkpoints").is_dir() or not (source / MANIFEST).exists():
            self.path, self.snapshot, reasons = newest(source)
            for reason in reasons:
                warnings.warn(reason, stacklevel=4)
        else:
            self.path, self.snapshot = source, read(source)
            folder = Path(os.path.abspath(source)).parent
            self.run_dir = folder.parent if folder.name == "checkpoints" else None
        there = [path.name for path in candidates(self.run_dir)] if self.run_dir else []
        self.passed_over = there[: there.index(self.path.name)] if self.path.name in there else []

    def goes_on_in(self, run_dir: Path | None) -> Path:
        """The run directory of the fit: that of the checkpoint, or for one without a run the one that was given.

        Raises:
            UsageError: another one was given, or none where one is needed
        """
        goes_on_in = run_dir or self.run_dir
        if goes_on_in is None:
            raise UsageError(f"{self.path} is in no run directory: give the Trainer a run_dir to go on in")
        if self.run_dir and run_dir and os.path.realpath(self.run_dir) != os.path.realpath(run_dir):
            raise UsageError(f"{self.path} goes on in its own run directory: leave out run_dir={str(run_dir)!r}")
        return goes_on_in

    def check(self, trainer: Trainer) -> None:
        """Compare everything before anything is changed; then set the counters and the history.

        Raises:
            CheckpointError: it is of another fit, with the first differences
        """
        snapshot, loop = self.snapshot, self.snapshot.loop
        if any(map(is_lazy, (*trainer.model.parameters(), *trainer.model.buffers()))):
            raise CheckpointError("the model has lazy layers without a shape: give it one batch, then resume")
        if not loop:
            raise CheckpointError(f"{self.path} tells no place in a fit: it was not written by one")
        found = [*_unlike(trainer.model, snapshot), *trainer.place.differences(trainer, loop)]
        if snapshot.epoch > trainer.epochs:
            found.append(f"it has completed {snapshot.epoch} epochs, and only {trainer.epochs} are asked for")
        if found:
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise CheckpointError(f"cannot resume from {self.path}: {'; '.join(found[:SHOWN])}{more}")
        trainer.epoch, trainer.step = snapshot.epoch, snapshot.step
        rows, count = snapshot.rows
        trainer.history = rows[:count]

    def load(self, trainer: Trainer) -> None:
        """Put everything in place; on an error model and optimizer are as before.

        Raises:
            CheckpointError: a plugin refuses its state, or what is in memory then is not what was saved
        """
        model, optimizer, states = trainer.model, trainer.optimizer, self.snapshot.plugins
        before = copy([model.state_dict(), optimizer.state_dict(), trainer.plugins.states()]), random_states()
        try:
            put_weights(model, self.snapshot.model)
            _load_plugins(trainer, states)
            put_optimizer(optimizer, self.snapshot.optimizer)
            live = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
            wanted = {"model": dict(self.snapshot.model), "optimizer": self.snapshot.optimizer}
            if wrong := [*islice(differing(wanted, live), SHOWN)]:
                raise CheckpointError(f"what {self.path} holds cannot be put back as it was: {'; '.join(wrong)}")
            trainer.place.go(trainer, self.snapshot.loop)
        except BaseException:
            trainer.epoch, trainer.step, trainer.history = 0, 0, []
            try:
                put_weights(model, before[0][0])
                with contextlib.suppress(CheckpointError):  # a plugin has added groups since: those are new, and stay
                    put_optimizer(optimizer, before[0][1])
                for name, state in before[0][2].items():
                    with contextlib.suppress(Exception):  # the one that refuses its state may refuse this too
                        trainer.plugins[name].load_state_dict(state)
            finally:
                set_random_states(before[1])  # last, since a plugin may draw while it loads
            raise
        now = trainer.plugins.states()
        for name in states.keys() & now.keys():
            for wrong_one in islice(differing(states[name], now[name], name), 1):
                warnings.warn(f"the state of plugin {name!r} was not put back as it was: {wrong_one}", stacklevel=2)


def _load_plugins(trainer: Trainer, states: dict[str, Any]) -> None:
    active = {name: plugin for name, plugin in trainer.plugins.items() if name not in trainer.plugins.disabled}
    known = {name: plugin for name, plugin in active.items() if hasattr(plugin, "load_state_dict")}
    for name in states.keys() - known.keys():
        warnings.warn(f"the checkpoint has a state of plugin {name!r}, which is not active: left out", stacklevel=3)
    for name, plugin in known.items():
        if name not in states:
            warnings.warn(f"the checkpoint has no state of plugin {name!r}: it starts anew", stacklevel=3)
            continue
        try:
            plugin.load_state_dict(copy(states[name]))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"plugin {name!r} cannot take the state that was saved: {said}") from error


def put_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Load weights as those of the present version of each module, which a plain dict does not tell."""
    told = model.state_dict()
    told.update(weights)
    model.load_state_dict(told)


def put_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Its own load_state_dict, without two things that does: casting what is kept to the dtype of the parameter, and
    making new groups, so that whoever holds one would change it for nothing.

    Raises:
        CheckpointError: it has other groups of parameters by now
    """
    groups = optimizer.param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in state["param_groups"]]:
        raise CheckpointError(
            f"the optimizer had {len(state['param_groups'])} groups of parameters when it was saved, now it has "
            f"{len(groups)}, or of another length: a plugin that adds groups must do so in load_state_dict too"
        )
    optimizer.load_state_dict(copy(state))
    for kept, made in zip(groups, optimizer.param_groups, strict=True):
        kept.clear()
        kept.update(made)
    optimizer.param_groups[:] = groups
    members = [parameter for group in groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        live = optimizer.state[members[index]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and name in live and live[name].dtype != value.dtype:
                live[name] = value.to(live[name].device, copy=True)


def storable(trainer: Trainer) -> None:
    """Refuse at the start what would be refused at the first save, hours later.

    Raises:
        CheckpointError: a value of a plugin, the model or the optimizer that a checkpoint cannot hold
    """
    extra = {name: value for name, value in trainer.model.state_dict().items() if not isinstance(value, Tensor)}
    groups = trainer.optimizer.state_dict().get("param_groups", [])
    for name, tree in (("plugins", trainer.plugins.states()), ("model", extra), ("optimizer", groups)):
        encode(tree, {}, name)


def restore_model(snapshot: Snapshot, model: nn.Module) -> None:
    """Put the weights of a snapshot into a model; nothing is changed if they do not fit.

    Raises:
        CheckpointError: with the first differences of names, shapes and dtypes
    """
    if found := [*_unlike(model, snapshot)]:
        raise CheckpointError("the checkpoint is of another model: " + "; ".join(found[:SHOWN]))
    put_weights(model, snapshot.model)


def _unlike(model: nn.Module, snapshot: Snapshot) -> Iterator[str]:
    """What the model and the checkpoint of one differ in; torch itself casts numbers, and stretches (1,) to ()."""
    live = model.state_dict()
    yield from (f"{name} is missing in the checkpoint" for name in live if name not in snapshot.model)
    yield from (f"{name} is not in the model" for name in snapshot.model if name not in live)
    for name, held in snapshot.model.items():
        there = live.get(name)
        if isinstance(held, Tensor) and isinstance(there, Tensor):
            if held.shape != there.shape:
                yield f"{name}: checkpoint {tuple(held.shape)}, model {tuple(there.shape)}"
            elif held.dtype != there.dtype:
                yield f"{name}: checkpoint {dtype_of(held)}, model {dtype_of(there)}"


def differing(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two trees differ in a bit, a type, a shape or a name."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        kinds = [f"{dtype_of(tensor)} {tuple(tensor.shape)}" for tensor in (a, b)]
        if kinds[0] != kinds[1]:
            yield f"{path} is {kinds[1]} in place of {kinds[0]}"
        elif not _same_bits(a, b):
            yield f"{path} has other numbers"
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            if key in a and key in b:
                yield from differing(a[key], b[key], f"{path}.{key}" if path else str(key))
            else:
                yield f"{path}.{key} is {'gone' if key in a else 'new'}"
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for index, pair in enumerate(zip(a, b, strict=True)):
            yield from differing(*pair, f"{path}.{index}")
    elif type(a) is not type(b) or not (a == b or (a != a and b != b)):
        yield f"{path} is {b!r:.40} in place of {a!r:.40}"


def _same_bits(a: Tensor, b: Tensor) -> bool:
    a, b = (apply(lambda t: t.detach().resolve_conj().resolve_neg().cpu().contiguous(), side) for side in (a, b))
    with contextlib.suppress(RuntimeError, TypeError):  # a kind that has no bytes
        return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    return torch.equal(a, b)
