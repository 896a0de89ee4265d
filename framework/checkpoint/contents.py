"""What the files of a checkpoint hold: a snapshot as tensors and JSON, and back.

The first process writes a file of tensors for each tree of the snapshot, and `state.json`. Each further process writes
two: what it alone has (its random numbers, what its plugins remember), and its pieces of what is cut over processes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor

from framework.checkpoint import codec, tensors
from framework.checkpoint.codec import PIECE, decode, encode
from framework.checkpoint.processes import Processes, at_first, together
from framework.checkpoint.snapshot import Snapshot, rows_of
from framework.errors import CheckpointError

STATE = "state.json"
TREES = ("model", "optimizer", "plugins", "loop")  # of a snapshot; each has a file for its tensors
OWN = TREES[2:]  # those that may differ from process to process
FILES = {STATE, *(f"{tree}.safetensors" for tree in TREES)}
MOST = 100_000  # processes that write one checkpoint


def _of_other(rank: int) -> tuple[str, str]:
    """The files of another process than the first: what it tells, and its tensors."""
    return f"rank-{rank:05d}.json", f"rank-{rank:05d}.safetensors"


def names_of(world_size: int) -> set[str]:
    """The files that so many processes write."""
    return FILES.union(*map(_of_other, range(1, min(world_size, MOST))))


def is_one(name: str) -> bool:
    """Whether some checkpoint has a file of this name."""
    return name in FILES or re.fullmatch(r"rank-\d{5,}\.(json|safetensors)", name) is not None


def files_of(snapshot: Snapshot, processes: Processes) -> dict[str, list[bytes | memoryview]]:
    """The files that this process writes but for the manifest, each as its pieces.

    Raises:
        CheckpointError: a state that cannot be stored, or of another step than that of another process; in all of them
    """
    held: dict[str, dict[str, Tensor]] = {tree: {} for tree in TREES}
    state: dict[str, Any] = {}
    made: dict[str, list[bytes | memoryview]] = {}
    together(processes, lambda: state.update(_state(snapshot, processes, held)))
    steps = processes.gather(snapshot.step)
    if len({*steps}) > 1:
        raise CheckpointError(f"the processes are at different steps: {', '.join(map(str, steps))}")
    first = at_first(processes, lambda: _marks(held) if processes.size > 1 else {})
    together(processes, lambda: made.update(_files(processes.rank, state, held, first)))
    return made


def _files(
    rank: int, state: dict[str, Any], held: dict[str, dict[str, Tensor]], first: dict[str, bytes]
) -> dict[str, list[bytes | memoryview]]:
    if rank == 0:
        return {STATE: [codec.text(state)], **{f"{tree}.safetensors": tensors.written(held[tree]) for tree in TREES}}
    marks, all_held = _marks(held), {f"{tree}.{name}": t for tree in TREES for name, t in held[tree].items()}
    own = {n: t for n, t in all_held.items() if PIECE.search(n) or (n in marks and marks[n] != first.get(n))}
    text, parts = _of_other(rank)
    return {text: [codec.text({tree: state[tree] for tree in OWN})], parts: tensors.written(own)}


def _marks(held: dict[str, dict[str, Tensor]]) -> dict[str, bytes]:
    """The SHA-256 of each tensor that may be another one in each process: what is as the first has it is left out."""
    own = {f"{tree}.{name}": tensor for tree in OWN for name, tensor in held[tree].items()}
    return {name: hashlib.sha256(b"".join(tensors.written({"": tensor}))).digest() for name, tensor in own.items()}


def _state(snapshot: Snapshot, processes: Processes, held: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """What a snapshot tells beside its tensors, which go into `held`."""
    trees = {tree: processes.local(tree, getattr(snapshot, tree)) for tree in TREES}
    state: dict[str, Any] = {tree: encode(trees[tree], held[tree], tree) for tree in TREES[1:]}
    state["model"] = [[name, encode(_plain(value), held["model"], name)] for name, value in trees["model"].items()]
    state["rows"] = encode(snapshot.history(), held["loop"], "rows")
    return state


def _plain(value: Any) -> Any:
    """Weights in the order of their dimensions, for other readers of model.safetensors; a model keeps its strides."""
    return value.contiguous() if isinstance(value, Tensor) and value.layout is torch.strided else value


def snapshot_of(held: dict[str, Any], told: dict[str, Any]) -> Snapshot:
    """What the files of a checkpoint tell, each of them parsed; `told` is its manifest.

    Raises:
        CheckpointError, LookupError, TypeError, ValueError, AttributeError, RuntimeError: no checkpoint tells this
    """
    others = [tuple(held.pop(name) for name in _of_other(rank)) for rank in range(1, told["world_size"])]
    state = held.pop(STATE)
    parts = {tree: held.pop(f"{tree}.safetensors") for tree in TREES}
    _put_together(parts, [tensors for _, tensors in others])
    ranks = [_of_rank(text, tensors, parts) for text, tensors in others]
    trees = {tree: decode(state.pop(tree), parts[tree]) for tree in TREES}
    rows = rows_of(decode(state.pop("rows"), parts["loop"]))
    trees["model"] = dict(trees["model"])
    if state or any(parts.values()) or not all(type(tree) is dict for tree in trees.values()):
        raise CheckpointError("it does not hold what a checkpoint holds")
    return Snapshot(told["epoch"], told["step"], **trees, exact=told["exact"], rows=(rows, len(rows)), ranks=ranks)


def _put_together(parts: dict[str, dict[str, Tensor]], others: list[dict[str, Tensor]]) -> None:
    """Make tensors whole of which each process has written a piece."""
    for tree, held in parts.items():
        for name in held:
            if cut := PIECE.search(name):
                pieces = [held[name], *(tensors.pop(f"{tree}.{name}") for tensors in others)]
                held[name] = torch.cat(pieces, int(cut[1]))


def _of_rank(text: Any, own: dict[str, Tensor], first: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """What another process than the first had of its own; what it did not write is as the first had it."""
    found = {}
    for tree in OWN:
        mine = {name: own.pop(f"{tree}.{name}", tensor) for name, tensor in first[tree].items()}
        left = [name for name in own if name.startswith(f"{tree}.")]
        mine |= {name.removeprefix(f"{tree}."): own.pop(name) for name in left}
        found[tree] = decode(text.pop(tree), mine)
    if text or own or not all(type(tree) is dict for tree in found.values()):
        raise CheckpointError("a process told what no process tells")
    return found
