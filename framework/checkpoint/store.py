"""Checkpoints on the disk: a directory a checkpoint, complete as soon as it has its name; labels point at them.

A save writes into a directory beside, the manifest last, fsyncs everything and renames; then it moves the labels, and
only then removes older ones. A label is a hint: without a sound one the manifests tell what there is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import platform
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.checkpoint import codec, files, tensors
from framework.checkpoint.contents import STATE, files_of, is_one, names_of, snapshot_of
from framework.checkpoint.processes import ALONE, Processes, at_first, together
from framework.checkpoint.snapshot import Snapshot
from framework.errors import CheckpointError

FORMAT = 2
MANIFEST = "MANIFEST.json"
KEPT = 2  # checkpoints that a fit can go on from exactly, beside those that labels point at
DROPPINGS = re.compile(r"\.DS_Store|\._.*|desktop\.ini|Thumbs\.db")  # of Finder and Explorer, in any directory
SMALL = codec.SIZE  # bytes that a manifest or a label stays below
KINDS: dict[str, tuple[type, ...]] = {  # of what a manifest tells
    "format": (int,), "step": (int,), "epoch": (int,), "exact": (bool,), "seq": (int,), "run": (str,),
    "parent": (str, type(None)), "world_size": (int,), "fingerprint": (dict,), "writer": (str,), "files": (dict,),
}  # fmt: skip
_NAME = re.compile(r"step-(\d{12,})(?:-r(\d+))?")
_LABEL = re.compile(r"[A-Z_][A-Z0-9_]*")

# --------------------------------------------------------------------------------------------------------------- write


def write(
    snapshot: Snapshot, run_dir: Path, labels: Iterable[str], bad: Iterable[str] = (), processes: Processes = ALONE
) -> Path:
    """Write a checkpoint, point the labels at it, remove what is not needed any more. The path of it; it is durable.

    Kept are the newest two that are exact, and those that labels point at. Of several processes each writes its part,
    and the first one commits it.

    Args:
        bad: the names of checkpoints that were found damaged: they count for nothing, and are removed when there are
            two newer ones
        processes: those that write it together; each calls this

    Raises:
        CheckpointError: the disk is full, the directory cannot be written, a state that cannot be stored; the same one
            in each process
    """
    directory, earlier = run_dir / "checkpoints", []  # type: Path, list[tuple[Path, dict[str, Any]]]
    try:
        contents = files_of(snapshot, processes)
        need = sum(together(processes, lambda: _size(contents)))
        earlier = at_first(processes, lambda: _prepared(directory, need))
        path, digest = _commit(directory, contents, lambda: _manifest(snapshot, processes.size, *earlier), processes)
        at_first(processes, lambda: _point(path, digest, labels))
    except (OSError, MemoryError) as error:
        last = f"; the last one is {earlier[0][0].name}" if earlier else ""
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        said = f"cannot write a checkpoint into {directory}: {getattr(error, 'strerror', '') or error}{where}{last}"
        if isinstance(error, MemoryError):
            said = f"not enough memory to write a checkpoint{where}{last}"
        raise CheckpointError(processes.gather(said)[0]) from error
    if processes.rank == 0:
        try:
            _retain(directory, {*bad})
        except OSError as error:
            warnings.warn(f"cannot remove what is not needed any more from {directory}: {error}", stacklevel=2)
    return path


def _size(contents: dict[str, list[bytes | memoryview]]) -> int:
    return sum(len(piece) for pieces in contents.values() for piece in pieces)


def _prepared(directory: Path, need: int) -> list[tuple[Path, dict[str, Any]]]:
    """The newest checkpoint that is there, if any, when there is room for `need` bytes more."""
    files.make_directory(directory)
    files.sweep(directory)
    earlier = [(path, told) for path, told in _listed(directory) if told]
    if not earlier:
        for above in directory.parents:  # each of them may be new as well
            files.sync_directory(above)
    free = files.system.free(directory)
    if need > free:
        last = f"; the last one is {earlier[0][0].name}" if earlier else ""
        sizes = f"it needs {math.ceil(need / 1e6):,} MB, {free // 10**6:,} MB are free at {directory}{last}"
        raise CheckpointError(f"not enough space for a checkpoint: {sizes}")
    return earlier[:1]


def _point(path: Path, digest: str, labels: Iterable[str]) -> None:
    files.sync_directory(path.parent)
    for label in labels:
        files.put(path.with_name(label.upper()), json.dumps({"name": path.name, "manifest_sha256": digest}) + "\n")
    files.sync_directory(path.parent)


def _manifest(
    snapshot: Snapshot, world_size: int = 1, earlier: tuple[Path, dict[str, Any]] | None = None
) -> dict[str, Any]:
    from framework import __version__

    return {
        "format": FORMAT, "step": snapshot.step, "epoch": snapshot.epoch, "exact": snapshot.exact,
        "seq": earlier[1]["seq"] + 1 if earlier else 1, "run": earlier[1]["run"] if earlier else secrets.token_hex(8),
        "parent": earlier[0].name if earlier else None, "world_size": world_size,
        "fingerprint": fingerprint(snapshot.model), "writer": f"framework {__version__}",
    }  # fmt: skip


def fingerprint(model: Mapping[str, Any]) -> dict[str, Any]:
    """What may change the last bits of a number, for a model of this state_dict in this process."""
    devices = {value.device for value in model.values() if isinstance(value, Tensor)}
    return {
        "torch": str(torch.__version__),
        "devices": sorted({torch.cuda.get_device_name(d) if d.type == "cuda" else d.type for d in devices}),
        "platform": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _commit(
    directory: Path, contents: dict[str, Any], manifest: Callable[[], dict[str, Any]], processes: Processes,
    again: bool = True,
) -> tuple[Path, str]:  # fmt: skip
    """The path of a new checkpoint, which is complete but whose name is not durable yet, and its manifest's SHA-256."""
    beside = directory / processes.gather(files.temporary())[0]
    try:
        at_first(processes, lambda: files.system.mkdir(beside))
        written = together(processes, lambda: {n: files.write_file(beside / n, made) for n, made in contents.items()})
        name, digest = at_first(processes, lambda: _named(beside, manifest(), written))
        return directory / name, digest
    except BaseException as error:
        if processes.rank == 0:  # which may be about to commit what another one takes for unfinished
            with contextlib.suppress(OSError):
                files.remove(beside)
        if not (again and isinstance(error, OSError) and error.errno == errno.EIO):
            raise
    # what an fsync could not write, the next fsync of the same file may take for written: only other files will do
    return _commit(directory, contents, manifest, processes, again=False)


def _named(beside: Path, told: dict[str, Any], written: Iterable[dict[str, tuple[int, str]]]) -> tuple[str, str]:
    """Give a directory with all files of a checkpoint its manifest and its name; the two."""
    entries = {name: entry for part in written for name, entry in part.items()}
    told["files"] = {name: {"size": size, "sha256": digest} for name, (size, digest) in entries.items()}
    _, digest = files.write_file(beside / MANIFEST, [_sealed(told)])
    files.sync_directory(beside)
    names = (f"step-{told['step']:012d}{f'-r{number}' if number else ''}" for number in itertools.count())
    path = next(beside.with_name(name) for name in names if not files.exists(beside.with_name(name)))  # never over one
    files.rename(beside, path)
    return path.name, digest


def _sealed(told: dict[str, Any]) -> bytes:
    """The one way to write a manifest: its last entry is the SHA-256 of it without that entry."""
    return codec.text({**told, "sha256": hashlib.sha256(codec.text(told)).hexdigest()})


def _retain(directory: Path, bad: set[str]) -> None:
    pointed = [_pointed(directory / name) for name in files.system.listdir(directory) if _LABEL.fullmatch(name)]
    if None in pointed:  # a label that cannot be read may have pointed at any of them
        return
    listed = _listed(directory)
    sound = [path for path, told in listed if told and told["exact"] and path.name not in bad]
    kept = {path.name for path in sound[:KEPT]} | {label[0] for label in pointed if label}
    trash = []
    for path, told in listed:
        doubtful = told is None or path.name in bad  # or it was the disk that had a bad moment
        if path.name in kept or (doubtful and sum(_place(path) < _place(other) for other in sound) < KEPT):
            continue
        if not all(name == MANIFEST or is_one(name) for name in _names(path)):  # something of the user's
            continue
        trash.append(directory / files.temporary("trash"))
        files.rename(path, trash[-1])
    if trash:
        files.sync_directory(directory)  # first no name says that it is complete any more
    for path in trash:
        files.discard(path)


# ---------------------------------------------------------------------------------------------------------------- read


def read(path: Path) -> Snapshot:
    """Read a checkpoint back, on the CPU. No parser sees bytes whose SHA-256 is not the one that was written.

    Raises:
        CheckpointError: it is not there, damaged, or of another format; with the file and what is wrong with it
    """
    with _about(f"the checkpoint {path}"):
        return _load(path)


def manifest(path: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint tells; its files are not looked at.

    Raises:
        CheckpointError: it cannot be read, is damaged, or of another format
    """
    with _about(f"the checkpoint {path}"):
        return _told(path)


def newest(run_dir: Path) -> tuple[Path, Snapshot, list[str]]:
    """The first sound checkpoint that a fit can go on from exactly, or else the first sound one.

    Also the reason for each one before it that was passed over.

    Raises:
        CheckpointError: there is none
    """
    passed: list[str] = []
    inexact = None
    for path in candidates(run_dir):
        try:
            with _about(f"checkpoint {path.name}"):
                snapshot = _load(path)
        except CheckpointError as error:
            passed.append(str(error))
            continue
        if snapshot.exact:
            return path, snapshot, passed
        inexact = inexact or (path, snapshot, [*passed])
        passed.append(f"checkpoint {path.name} was taken after an error inside a step")
    if inexact is None:
        raise CheckpointError(f"{run_dir} has no checkpoint{''.join(f'; {reason}' for reason in passed)}")
    return inexact


def candidates(run_dir: Path) -> list[Path]:
    """Every checkpoint of a run, sound or not: that of the label LAST, then the newest first."""
    last = _target(run_dir / "checkpoints" / "LAST")
    with _about(str(run_dir)):
        return sorted((path for path, _ in _listed(run_dir / "checkpoints")), key=lambda path: path != last)


def find(run_dir: Path, *labels: str) -> Path | None:
    """The checkpoint of a run that the first of `labels` with one points at; "last" is the newest if need be."""
    directory = run_dir / "checkpoints"
    for label in map(str.upper, labels):
        path = _target(directory / label)
        if path is None and label == "LAST":
            with _about(str(run_dir)):
                path = next((path for path, told in _listed(directory) if told), None)
        if path is not None:
            return path
    return None


def _target(label: Path) -> Path | None:
    """What a label points at, if that is what it was."""
    name, digest = _pointed(label) or ("", "")
    path = label.with_name(name or label.name)
    with contextlib.suppress(OSError, CheckpointError):
        if files.is_directory(path) and hashlib.sha256(files.read_file(path / MANIFEST, SMALL)).hexdigest() == digest:
            return path
    return None


def _pointed(label: Path) -> tuple[str, str] | None:
    with contextlib.suppress(OSError, CheckpointError):
        match codec.parse(files.read_file(label, SMALL)):
            case {"name": str(name), "manifest_sha256": str(digest)} if _NAME.fullmatch(name):
                return name, digest
    return None


def _listed(directory: Path) -> list[tuple[Path, dict[str, Any] | None]]:
    """The checkpoints of a run by age, the newest first, with what their manifests tell; before them those without."""
    found = []
    for name in files.system.listdir(directory) if files.exists(directory) else ():
        path, told = directory / name, None
        if _NAME.fullmatch(name) and files.is_directory(path):
            with contextlib.suppress(OSError, CheckpointError):
                told = _told(path)
            found.append((told["seq"] if told else math.inf, _place(path), path, told))
    return [(path, told) for *_, path, told in sorted(found, key=lambda entry: entry[:2], reverse=True)]


def _place(path: Path) -> tuple[int, int]:
    """Where the name of a checkpoint puts it: by its step, then by how often the step was saved."""
    step, _, number = path.name.removeprefix("step-").partition("-r")
    return int(step), int(number or 0)


@contextlib.contextmanager
def _about(subject: str) -> Iterator[None]:
    """What is raised inside becomes one sentence about `subject`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{subject} {error}") from error
    except OSError as error:
        raise CheckpointError(f"{subject} cannot be read: {error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{subject} does not fit into memory") from error


def _damaged(reason: object) -> CheckpointError:
    return CheckpointError(f"is damaged: {reason}")


def _names(path: Path) -> set[str]:
    return {name for name in files.system.listdir(path) if not DROPPINGS.fullmatch(name)}


def _load(path: Path) -> Snapshot:
    told = _told(path)
    names = {MANIFEST, *told["files"]}
    for name in sorted(_names(path) ^ names):
        raise _damaged(f"{name} {'is missing' if name in names else 'does not belong there'}")
    held = {name: _parsed(path / name, **entry) for name, entry in told["files"].items()}
    try:
        return snapshot_of(held, told)
    except (CheckpointError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(f"{STATE}: {error}") from error


def _told(path: Path) -> dict[str, Any]:
    try:
        data = files.read_file(path / MANIFEST, SMALL)
        told = dict(codec.parse(data))
    except (CheckpointError, TypeError, ValueError) as error:
        raise _damaged(f"{MANIFEST}: {error}") from error
    if told.get("format") != FORMAT:
        raise CheckpointError(f"has format {told.get('format')!a:.20}; this version reads format {FORMAT}")
    if told.popitem()[0] != "sha256" or _sealed(told) != data:
        raise _damaged(f"{MANIFEST}: its sha256 differs from what it tells itself")
    if not (
        told.keys() == KINDS.keys()
        and all(type(value) in KINDS[name] and (type(value) is not int or value >= 0) for name, value in told.items())
        and told["files"].keys() == names_of(told["world_size"])
        and all(map(_is_entry, told["files"].values()))
    ):
        raise _damaged(f"{MANIFEST}: it does not tell what a manifest tells")
    return told


def _is_entry(entry: Any) -> bool:
    match entry:
        case {"size": int(size), "sha256": str(), **more}:
            return size >= 0 and not more
    return False


def _parsed(file: Path, size: int, sha256: str) -> Any:
    try:
        data = files.read_file(file, size)
        if len(data) < size:
            raise CheckpointError(f"it has {len(data)} bytes of {size}")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CheckpointError("its sha256 differs from the manifest's")
        return codec.parse(data) if file.suffix == ".json" else tensors.load(data)
    except CheckpointError as error:
        raise _damaged(f"{file.name}: {error}") from error
