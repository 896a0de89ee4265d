"""Checkpoints on the disk: a directory a checkpoint, written beside and renamed; labels point at them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from framework.checkpoint.codec import decode, encode
from framework.checkpoint.snapshot import Snapshot
from framework.errors import CheckpointError

FORMAT = 1


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
