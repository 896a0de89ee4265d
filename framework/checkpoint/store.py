"""Checkpoints on the disk: a directory a checkpoint, written beside and renamed; labels point at them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import is_
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from framework.checkpoint.codec import decode, encode
from framework.device import apply
from framework.engine import copy_over, held_by, hooks_of_state_dict
from framework.errors import CheckpointError

FORMAT = 1


@dataclass
class Snapshot:
    """The state of a fit at a step boundary; the tensors are copies.

    `model` is the model's state dict, `optimizer` the optimizer's, `plugins` each plugin's state under its name;
    `epoch` and `step` count what had been completed. `live` is what makes it quick to take the next one over it.
    """

    epoch: int
    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    plugins: dict[str, Any] = field(default_factory=dict)
    live: Live | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "live": None}


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
            return Snapshot(epoch, step, over.model, state, copy(plugins), live)
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


def write(snapshot: Snapshot, run_dir: Path, labels: Iterable[str]) -> Path:
    """Write a checkpoint, point the labels at it, drop those that no label points at; the path of it.

    Raises:
        CheckpointError: the disk is full, the directory cannot be written, a state that cannot be stored
    """
    directory = run_dir / "checkpoints"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path = _commit(snapshot, directory)
        for label in labels:
            _point(directory / label.upper(), path.name)
        _sweep(directory)
    except OSError as error:
        raise CheckpointError(f"cannot write a checkpoint into {directory}: {error.strerror or error}") from error
    except RecursionError as error:
        raise CheckpointError("the state of a plugin contains itself, or is nested too deep") from error
    return path


def _commit(snapshot: Snapshot, directory: Path) -> Path:
    tensors: dict[str, Tensor] = {}
    model = {name: value for name, value in snapshot.model.items() if isinstance(value, Tensor)}
    extra = {name: value for name, value in snapshot.model.items() if name not in model}  # of Module.get_extra_state
    state = {
        "format": FORMAT, "epoch": snapshot.epoch, "step": snapshot.step, "model": encode(extra, tensors, "model"),
        "optimizer": encode(snapshot.optimizer, tensors, "optimizer"),
        "plugins": encode(snapshot.plugins, tensors, "plugins"),
    }  # fmt: skip
    beside = directory / f".tmp-{secrets.token_hex(4)}"
    beside.mkdir()
    try:
        (beside / "model.safetensors").write_bytes(_serialized(model))
        (beside / "optimizer.safetensors").write_bytes(_serialized(tensors))
        (beside / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False), encoding="utf-8")
        path = directory / f"step-{snapshot.step:012d}"
        again = 0
        while path.exists():  # another state at the same step: never overwrite
            again += 1
            path = directory / f"step-{snapshot.step:012d}-r{again}"
        os.rename(beside, path)
        return path
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _serialized(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as safetensors writes them right: resolved, contiguous, on the CPU, no two names for one storage.

    Raises:
        CheckpointError: a kind of tensor that safetensors does not know, with its name
    """

    def save(names: Iterable[str]) -> bytes:
        plain = {name: tensors[name].detach().resolve_conj().resolve_neg().cpu().contiguous() for name in names}
        return save_tensors({name: tensor.clone() for name, tensor in plain.items()})

    try:
        return save(tensors)
    except (KeyError, ValueError, RuntimeError, SafetensorError):
        for name, tensor in tensors.items():
            try:
                save([name])
            except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
                kind = f"{tensor.layout} {tensor.dtype} on {tensor.device}".replace("torch.", "")
                raise CheckpointError(f"{name} is a tensor ({kind}) that a checkpoint cannot hold") from error
        raise


def _point(file: Path, name: str) -> None:
    beside = file.with_name(f".tmp-{file.name}")
    try:
        beside.write_text(json.dumps({"name": name}) + "\n", encoding="utf-8")
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _sweep(directory: Path) -> None:
    kept = {_pointed(file) for file in directory.iterdir() if re.fullmatch(r"[A-Z_][A-Z0-9_]*", file.name)}
    for path in directory.glob("step-*"):
        if path.name not in kept and None not in kept:  # a label that cannot be read may have pointed at any of them
            shutil.rmtree(path, ignore_errors=True)


def _pointed(file: Path) -> str | None:
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) and re.fullmatch(r"step-\d{12}(-r\d+)?", name) else None


def find(run_dir: Path, *labels: str) -> Path | None:
    """The checkpoint of a run that the first of `labels` with one points at."""
    for label in labels:
        name = _pointed(run_dir / "checkpoints" / label.upper())
        if name is not None and (run_dir / "checkpoints" / name).is_dir():
            return run_dir / "checkpoints" / name
    return None


def read(path: Path) -> Snapshot:
    """Read a checkpoint back, on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged, or of another format
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {state['format']}; this version reads format {FORMAT}")
        tensors = load_tensors((path / "optimizer.safetensors").read_bytes())
        return Snapshot(
            epoch=int(state["epoch"]), step=int(state["step"]),
            model=load_tensors((path / "model.safetensors").read_bytes()) | decode(state["model"], tensors),
            optimizer=decode(state["optimizer"], tensors), plugins=decode(state["plugins"], tensors),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {type(error).__name__}: {error}") from error


def restore_model(snapshot: Snapshot, model: nn.Module) -> None:
    """Put the weights of a snapshot into a model; nothing is changed if they do not fit.

    Raises:
        CheckpointError: with the first differences of names and shapes
    """
    live = model.state_dict()
    differences = [f"{name} is missing in the checkpoint" for name in live if name not in snapshot.model]
    differences += [f"{name} is not in the model" for name in snapshot.model if name not in live]
    differences += [
        f"{name}: checkpoint {tuple(held.shape)}, model {tuple(live[name].shape)}"
        for name, held in snapshot.model.items()
        if isinstance(held, Tensor) and isinstance(live.get(name), Tensor) and held.shape != live[name].shape
    ]
    if differences:
        raise CheckpointError("the checkpoint is of another model: " + "; ".join(differences[:5]))
    model.load_state_dict(snapshot.model)
