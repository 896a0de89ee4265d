"""Damaged and hostile checkpoints: `python benchmarks/fuzzing.py damage`, `python benchmarks/fuzzing.py fuzz`.

`damage` takes two small real checkpoints of a run. Every byte of every file is changed, every file is cut off at every
length, removed, doubled, swapped with another and with that of the other checkpoint; then come random bursts. Each
must be noticed and the other checkpoint be taken instead; a damaged label must lead to what it led to, or nowhere.

`fuzz` is somebody who writes the checksums anew, so that each parser gets what he wrote: headers of safetensors, JSON,
whole checkpoints on a disk in memory, and directories on the real one with links, pipes and devices. No exception but
CheckpointError may come of it. Nothing may be imported, executed, opened outside of the run or changed inside of it,
which an audit hook watches; no case may take a second of the processor, nor the process grow by more than 64 MiB.

`--cases N` and `--seed S` say how many and which; `--first K --cases 1` repeats one that was told; `fuzz` uses all
cores unless `--workers N`. Ends with 1 if any case went wrong, and tells the first of them. 100,000 cases of damage
take about a minute on one core, 1,000,000 of fuzz about four on two.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import itertools
import json
import math
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from framework import CheckpointError, Snapshot
from framework.checkpoint import decode, encode, find, newest, read, restore_model, write
from framework.checkpoint import files as disk
from framework.checkpoint.codec import DEPTH, parse, text
from framework.checkpoint.tensors import DTYPES, load, written

MiB = 2**20
SLOW, LARGE, LONG = 1.0, 64 * MiB, 2000  # seconds of a case, growth of the process, letters of a message
WARM, TOLD = 300, 5  # cases before those that count, for what is done once only; cases that are told, at most
RUN = Path("/run")  # of the disk in memory
Folders = dict[str, dict[str, bytes]]  # the files of a run's checkpoints by their directory; "" has the labels


# -------------------------------------------------------------------------------------------------------- real ones


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def two_checkpoints(run_dir: Path) -> Folders:
    """A run that was saved twice: BEST is the first, LAST the second."""
    torch.manual_seed(0)
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5])
    rows: list[dict[str, Any]] = []
    for step in (1, 2):
        net(torch.rand(3, 2)).sum().backward()
        optimizer.step()
        schedule.step()
        rows.append({"epoch": step - 1, "train_loss": 1 / step})
        plugins = {"schedule": schedule.state_dict(), "stopper": {"best": math.inf, "seen": {1, 2}, "at": (True, None)}}
        plugins["average"] = {"of": torch.tensor([step, 0.5])}
        loop = {"position": 3, "generator": torch.arange(9, dtype=torch.uint8), "mask": torch.tensor([True, False])}
        state = (copy.deepcopy(each) for each in (net.state_dict(), optimizer.state_dict(), plugins, loop))
        write(Snapshot(step, step, *state, rows=(rows, step)), run_dir, ["best", "last"] if step == 1 else ["last"])
    folders: Folders = {"": {}}
    for path in sorted((run_dir / "checkpoints").rglob("*")):
        if path.is_file():
            folder = "" if path.parent.name == "checkpoints" else path.parent.name
            folders.setdefault(folder, {})[path.name] = path.read_bytes()
    return folders


class InMemory(disk.System):
    """A disk that holds one run and cannot be written."""

    def __init__(self, folders: Folders) -> None:
        base = (RUN / "checkpoints").as_posix()
        self.held: dict[str, bytes | list[str]] = {base: [*folders[""], *(name for name in folders if name)]}
        for folder, files in folders.items():
            if folder:
                self.held[f"{base}/{folder}"] = list(files)
            self.held |= {f"{base}/{folder}/{name}" if folder else f"{base}/{name}": files[name] for name in files}
        self.opened: list[bytes] = []

    def _found(self, path: Path) -> bytes | list[str]:
        try:
            return self.held[path.as_posix()]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory", str(path)) from None

    def listdir(self, path: Path) -> list[str]:
        found = self._found(path)
        if isinstance(found, bytes):
            raise NotADirectoryError(20, "Not a directory", str(path))
        return found

    def lstat(self, path: Path) -> Any:
        found = self._found(path)
        mode = stat.S_IFREG if isinstance(found, bytes) else stat.S_IFDIR
        return SimpleNamespace(st_mode=mode, st_size=len(found))

    def open(self, path: Path, flags: int) -> int:
        found = self._found(path)
        assert isinstance(found, bytes)
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), f"{path} is opened for writing"
        self.opened.append(found)
        return len(self.opened) - 1

    def read(self, descriptor: int) -> bytes:
        return self.opened[descriptor]

    def close(self, descriptor: int) -> None:
        self.opened[descriptor] = b""


@contextlib.contextmanager
def mounted(folders: Folders) -> Iterator[None]:
    """Everything inside happens on a disk in memory."""
    before, disk.system = disk.system, InMemory(folders)
    try:
        yield
    finally:
        disk.system = before


# ----------------------------------------------------------------------------------------------------------- damage


def with_file(folders: Folders, folder: str, name: str, data: bytes | None) -> Folders:
    """The same files but for one, which is other or gone."""
    files = {key: value for key, value in folders[folder].items() if key != name}
    return {**folders, folder: files if data is None else {**files, name: data}}


def damages(folders: Folders, draw: random.Random) -> Iterator[tuple[str, str, Folders]]:
    """Endlessly many: the directory that is damaged, in words how, and the files."""
    _, old, new = sorted(folders)
    every = [(new, name) for name in folders[new]] + [("", name) for name in folders[""]]
    for folder, name in every:
        data = folders[folder][name]
        for at in range(len(data)):
            other = bytes([data[at] ^ draw.randrange(1, 256)])
            yield folder, f"{name}, byte {at}", with_file(folders, folder, name, data[:at] + other + data[at + 1 :])
            yield folder, f"{name}, cut off at {at}", with_file(folders, folder, name, data[:at])
        for more in (b"\0", b" ", b"\n", b"}", data):
            yield folder, f"{name} and {more[:9]!r}", with_file(folders, folder, name, data + more)
        yield folder, f"{name} removed", with_file(folders, folder, name, None)
    files = folders[new]
    for name, second in itertools.permutations(files, 2):
        twice = with_file(folders, new, name, files[second])
        yield new, f"{second} twice, also as {name}", twice
        yield new, f"{name} and {second} swapped", with_file(twice, new, second, files[name])
    for name in files:
        for copied in (f"{name}.bak", f"copy-{name}", f".{name}", f"{name} ", name.upper() + "~", "0"):
            yield new, f"{name} twice, also as {copied}", with_file(folders, new, copied, files[name])
    for count in range(1, len(files)):
        for names in itertools.combinations(files, count):
            mixed = {**files, **{name: folders[old][name] for name in names}}
            yield new, f"{names} of the other checkpoint", {**folders, new: mixed}
    while True:
        folder, name = draw.choice(every)
        data = folders[folder][name]
        burst = bursts(draw, data)
        if burst != data:
            yield folder, f"{name}, {len(burst)} bytes after a burst", with_file(folders, folder, name, burst)


def bursts(draw: random.Random, data: bytes) -> bytes:
    """The same bytes after something that happens to disks and copies."""
    first, last = sorted(draw.choices(range(len(data) + 1), k=2))
    part = data[first:last]
    match draw.randrange(6):
        case 0:
            spots = draw.choices(range(len(data)), k=draw.randrange(1, 9))
            return bytes(byte ^ (1 << draw.randrange(8)) if at in spots else byte for at, byte in enumerate(data))
        case 1:
            return data[:first] + bytes(len(part)) + data[last:]
        case 2:
            return data[:first] + draw.randbytes(len(part)) + data[last:]
        case 3:
            return data[:first] + data[last:]
        case 4:
            return data[:last] + part + data[last:]
    return data[:first] + part[::-1] + data[last:]


def unnoticed(folders: Folders, folder: str, resumed: bool = True) -> str | None:
    """What is wrong with how a run is read that is damaged in this directory; `resumed` takes most of the time."""
    _, old, new = sorted(name for name in folders if not name.startswith("."))
    with mounted(folders):
        if folder == new:
            with contextlib.suppress(CheckpointError):
                read(RUN / "checkpoints" / new)
                return "it was read"
            if not resumed:
                return None
        taken, last, best = newest(RUN)[0].name, find(RUN, "last"), find(RUN, "best")
    if taken != (old if folder == new else new):
        return f"a fit went on from {taken}"
    if folder == "" and (last is None or last.name != new):
        return f"LAST led to {last}"
    return None if best is None or best.name == old else f"BEST led to {best}"


def damage(cases: int, seed: int, first: int = 0) -> list[str]:
    """What was not noticed, of so many cases."""
    with tempfile.TemporaryDirectory() as folder:
        folders = two_checkpoints(Path(folder))
    wrong = []
    every = enumerate(damages(folders, random.Random(seed)))
    for number, (where, how, damaged) in itertools.islice(every, first, first + cases):
        try:
            found = unnoticed(damaged, where, number % 16 == 0)
        except Exception:
            found = traceback.format_exc()
        if found:
            wrong.append(f"case {number}, {where or 'label'} {how}: {found}")
    return wrong


# ------------------------------------------------------------------------------------------------ what an attacker has

NUMBERS = [0, 1, 2, 3, 4, 8, 16, -1, -2, 127, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63)]
NAMES = [
    "0.weight", "0.bias", "1.running_mean", "x", "", ".", "..", "../../outside", "/etc/passwd", "C:\\windows\\win.ini",
    "a\0b", "CON", "NUL.txt", "MODEL.safetensors", "model.safetensors", "model.safetensors ", "state.json", "$tensor",
    "__metadata__", "__class__", "__reduce__", "os.system", "\u202e", "\U0001f600", "\n", "x" * 300,
    "file:///etc/passwd",
    "http://localhost/", "step-000000000001", "step-000000000002/../..", "-rf",
]  # fmt: skip
LEAVES: dict[str, list[Any]] = {
    "$tensor": ["a", "b", "c", "d", "e", "absent"], "$float": ["nan", "inf", "-inf", "1.0", "1e400"],
    "$int": ["0x8000000000000000", "-0x8000000000000001", "0x1", "0x" + "f" * 5000], "$complex": ["(1+2j)", "nanj"],
    "$bytes": ["", "AAAA", "AAA", "A===", "A" * 4000], "$dtype": ["torch.float32", "torch.Tensor", "os", "torch.bits8"],
    "$device": ["cpu", "cuda:0", "cuda:9999", "meta", "privateuseone", "__import__('os')"],
    "$numpy": [["int8", "01"], ["bool", "02"], ["float64", "00"], ["object", "00" * 8], ["V8", "00" * 8], ["U1", "00"]],
}  # fmt: skip
GROUPS = ["$tuple", "$size", "$set", "$frozenset", "$map", "$OrderedDict", "$Counter", "$defaultdict", "$order",
          "$complex128", "$nosuch", "$", "$class", "$import"]  # fmt: skip
TOKENS = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0.0", b"1" * 400, b"9223372036854775808", b"\\ud800", b"\\udc00",
    b"\\u0000", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x00", b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":",
    b" ", b"\n", b"null", b"true", b"[" * (DEPTH + 1), b"[" * 3000, b'{"a":' * 100, b'{"a":1,"a":2}',
    b'{"$tensor":"a"}', b'"$map"', b'"__metadata__":{},', b'"dtype":"F32",', b'"BOOL"', b'"F4"', b'"F8_E8M0"',
    b'"I64"', b'"C64"', b"[0,0]", b"[0,8]", b"/*", b"'", b"#", b"!!python/object", b"\x80\x04\x95", b"PK\x03\x04",
]  # fmt: skip


def any_value(draw: random.Random) -> Any:
    match draw.randrange(8):
        case 0 | 1 | 2:
            return draw.choice(NUMBERS)
        case 3:
            return draw.choice(NAMES)
        case 4:
            return draw.choice([None, True, False, 0.5, -0.0, 1e308, [], {}])
        case 5:
            return [draw.choice(NUMBERS) for _ in range(draw.randrange(6))]
        case 6:
            return draw.choice([2**64, -(2**80), 10**40, 10**300])
    return any_tree(draw, 2)


def any_tree(draw: random.Random, depth: int) -> Any:
    """JSON that is nearly what `encode` makes."""
    if depth == 0 or draw.random() < 0.3:
        tag = draw.choice(list(LEAVES))
        return draw.choice([any_value(draw) if depth else 1, {tag: draw.choice(LEAVES[tag])}, draw.choice(NUMBERS)])
    inner = [any_tree(draw, depth - 1) for _ in range(draw.randrange(4))]
    tag = draw.choice(GROUPS)
    match draw.randrange(6):
        case 0:
            return inner
        case 1:
            return {draw.choice(NAMES): value for value in inner}
        case 2:
            return {tag: [[draw.choice([draw.choice(NUMBERS), draw.choice(NAMES), value]), value] for value in inner]}
        case 3:
            return {"$order": [draw.sample(range(3), draw.randrange(4)), {"$tensor": draw.choice("abcde")}]}
        case 4:
            return {"$complex128": {"$tensor": draw.choice("abcde")}}
    return {tag: inner, **({draw.choice(NAMES): 1} if draw.random() < 0.1 else {})}


def mangled(draw: random.Random, data: bytes) -> bytes:
    """Some bytes of it are others."""
    made = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        first = draw.randrange(len(made) + 1)
        last = min(len(made), first + draw.choice([0, 0, 1, 1, 2, 8, 100]))
        match draw.randrange(5):
            case 0 | 1:
                made[first:last] = draw.choice(TOKENS)
            case 2:
                made[first:last] = draw.randbytes(last - first)
            case 3:
                numbers = [*itertools.islice(re.finditer(rb"-?\d+", made), 20)]
                if numbers:
                    place = draw.choice(numbers)
                    made[place.start() : place.end()] = str(draw.choice([*NUMBERS, 2**64, 10**30])).encode()
            case 4:
                made[first:first] = made[first : first + draw.randrange(40)]
    return bytes(made)


def any_file(draw: random.Random) -> bytes:
    """What is nearly a safetensors file."""
    entries: list[tuple[str, Any]] = []
    end = 0
    for name in draw.sample([*NAMES[:5], "y", "z"], draw.randrange(5)):
        dtype, shape = draw.choice(list(DTYPES)), [draw.randrange(4) for _ in range(draw.randrange(4))]
        begin, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        entries.append((name, {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}))
    for _ in range(draw.choice([0, 1, 1, 2]) if entries else 0):
        at = draw.randrange(len(entries))
        name, entry = entries[at]
        if not isinstance(entry, dict):  # it was changed before
            continue
        match draw.randrange(9):
            case 0:
                entries[at] = (draw.choice(NAMES), entry)
            case 1:
                entries.append(draw.choice(entries))
            case 2:
                del entries[at]
                break
            case 3:
                entries[at] = (name, any_value(draw))
            case 4:
                entries[at] = (name, {**entry, "dtype": draw.choice([*DTYPES, "F4", "F8_E8M0", "F6_E2M3", "f32", "X"])})
            case 5:
                entries[at] = (name, {**entry, "shape": [draw.choice(NUMBERS) for _ in range(draw.randrange(20))]})
            case 6:
                entries[at] = (name, {**entry, "data_offsets": [draw.choice(NUMBERS[:12]) for _ in range(2)]})
            case 7:
                key = draw.choice(["dtype", "shape", "data_offsets", draw.choice(NAMES)])
                entries[at] = (name, {**entry, key: any_value(draw)})
            case 8:
                entries[at] = (name, {key: value for key, value in entry.items() if draw.random() < 0.7})
    pairs = (f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries)  # a name may be there twice
    header = f"{{{','.join(pairs)}}}".encode()
    if draw.random() < 0.4:
        header = mangled(draw, header)
    header += b" " * draw.choice([0, -len(header) % 8])
    size = max(0, end + draw.choice([0, 0, 0, 0, 1, -1, 8]))
    body = draw.choice([bytes(size), b"\1" * size, draw.randbytes(size)])
    length = len(header) if draw.random() < 0.95 else draw.choice([0, 1, len(header) + 1, 2**32, 2**63, 2**64 - 1])
    return length.to_bytes(8, "little") + header + body


def changed_within(draw: random.Random, tree: Any) -> Any:
    """The same JSON but for a value somewhere in it."""
    if draw.random() < 0.15 or not isinstance(tree, (dict, list)) or not tree:
        return any_value(draw)
    if isinstance(tree, list):
        at = draw.randrange(len(tree))
        return [*tree[:at], changed_within(draw, tree[at]), *tree[at + 1 :]]
    key = draw.choice(list(tree))
    if draw.random() < 0.1:
        return {draw.choice(NAMES) if name == key else name: value for name, value in tree.items()}
    if draw.random() < 0.1:
        return {name: value for name, value in tree.items() if name != key}
    return {**tree, key: changed_within(draw, tree[key])}


# ------------------------------------------------------------------------------------------------------------- attacks


class Attacks:
    """Each attack is drawn, and then gives what is to be done; only that is looked at by the hook."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = two_checkpoints(root / "real")
        _, self.old, self.new = sorted(self.folders)
        self.state = json.loads(self.folders[self.new]["state.json"])
        self.outside = root.with_name("outside") / self.new
        shutil.copytree(root / "real" / "checkpoints" / self.new, self.outside)
        self.model = model()
        self.tensors = {
            "a": torch.ones(3), "b": torch.ones(2, 3, 2), "c": torch.ones(2, 2, dtype=torch.float64),
            "d": torch.empty(0, 2), "e": torch.ones(()),
        }  # fmt: skip
        self.kinds = {"header": 48, "json": 38, "sealed": 12, "directory": 2}

    def draw(self, draw: random.Random) -> tuple[str, Callable[[], Any]]:
        kind = draw.choices([*self.kinds], [*self.kinds.values()])[0]
        return kind, getattr(self, kind)(draw)

    def header(self, draw: random.Random) -> Callable[[], Any]:
        real = [data for name, data in self.folders[self.new].items() if name.endswith(".safetensors")]
        data = any_file(draw) if draw.random() < 0.8 else mangled(draw, draw.choice(real))
        return lambda: written(load(data))

    def json(self, draw: random.Random) -> Callable[[], Any]:
        if draw.random() < 0.0002:  # a great many small things
            data = b"[" + draw.choice([b"[],", b"1,", b'{"a":1},', b'"\\u0000",', b'"ab",', b"1.5,"]) * 50_000 + b"0]"
        elif draw.random() < 0.2:
            data = mangled(draw, draw.choice([*self.folders[""].values(), self.folders[self.new]["state.json"]]))
        else:
            data = json.dumps(any_tree(draw, draw.randrange(1, 7)), ensure_ascii=draw.random() < 0.5).encode()
            data = mangled(draw, data) if draw.random() < 0.4 else data
        return lambda: encode(decode(parse(data), {**self.tensors}), {})

    def sealed(self, draw: random.Random) -> Callable[[], Any]:
        """A checkpoint that is changed by somebody who writes the checksums anew."""
        files = {**self.folders[self.new]}
        for _ in range(draw.choice([1, 1, 2])):
            name = draw.choice([*files])
            if name.endswith(".safetensors"):
                files[name] = any_file(draw) if draw.random() < 0.6 else mangled(draw, files[name])
            elif name == "state.json" and draw.random() < 0.8:
                files[name] = json.dumps(changed_within(draw, self.state)).encode()
            elif name == "state.json":
                files[name] = mangled(draw, files[name])
        told = json.loads(files.pop("MANIFEST.json"))
        told.pop("sha256", None)
        told["files"] = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        }
        if draw.random() < 0.4:
            told = changed_within(draw, told)
        if draw.random() < 0.1:
            files[draw.choice(NAMES)] = b"x"
        sealed = sealed_manifest(told)
        files["MANIFEST.json"] = sealed if draw.random() < 0.95 else mangled(draw, sealed)
        label: Any = {"name": self.new, "manifest_sha256": hashlib.sha256(files["MANIFEST.json"]).hexdigest()}
        if draw.random() < 0.3:
            label = {**label, "name": draw.choice(NAMES)} if draw.random() < 0.5 else changed_within(draw, label)
        folders = {**self.folders, self.new: files, "": {**self.folders[""], "LAST": json.dumps(label).encode()}}

        def attack() -> bool:
            with mounted(folders):
                return self.read_in_all_ways(RUN)

        return attack

    def read_in_all_ways(self, run_dir: Path) -> bool:
        """Whether the checkpoint could be read after all."""
        path = run_dir / "checkpoints" / self.new
        ways: list[Callable[[], Any]] = [lambda: find(run_dir, "last", "best"), lambda: newest(run_dir)]
        if not path.is_symlink():  # a user may name one
            ways.append(lambda: restore_model(read(path), self.model))
        refused = False
        for way in ways:
            try:
                way()
                refused = False
            except CheckpointError as error:
                if len(str(error)) > LONG:
                    raise
                refused = True
        return not refused

    def directory(self, draw: random.Random) -> Callable[[], Any]:
        """A directory on the real disk, with things in it that are no files, and files that are too large."""
        run_dir = self.root / "run"
        shutil.rmtree(run_dir, ignore_errors=True)
        base = run_dir / "checkpoints"
        for folder in ("", self.old, self.new):
            (base / folder).mkdir(parents=True, exist_ok=True)
            for name, data in self.folders[folder].items():
                (base / folder / name).write_bytes(data)
        for _ in range(draw.randrange(1, 4)):
            folder = base / draw.choice(["", self.new, self.new])
            known = [self.new, "LAST", "BEST"] if folder == base else [*self.folders[self.new]]
            names = [*NAMES, "step-000000000003", "step-" + "9" * 240, "step-000000000002-r1", "BEST ", b"\xff"]
            name = os.fsdecode(draw.choice(known if draw.random() < 0.7 else names))
            with contextlib.suppress(OSError, ValueError):  # not every name is one
                if folder in (folder / name).parents and (folder / name).name == name:
                    self.put(draw, folder / name)
        return lambda: self.read_in_all_ways(run_dir)

    def put(self, draw: random.Random, path: Path) -> None:
        """Something else in the place of a file or a directory."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        outside = [self.outside, self.outside / path.name, self.outside / "state.json", Path("/dev/zero")]
        match draw.randrange(9):
            case 0 | 1 | 2:
                path.symlink_to(draw.choice([*outside, path, Path("nowhere"), Path("..")]))
            case 3 if hasattr(os, "mkfifo"):
                os.mkfifo(path)
            case 4 if hasattr(os, "mknod"):
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero; only root can
            case 5:
                path.mkdir()
            case 6:
                with path.open("wb") as file:
                    file.truncate(draw.choice([0, 1, MiB + 1, 2**40]))
            case 7:
                path.write_bytes(draw.choice(TOKENS) * draw.choice([1, 1000]))
            case 8 if os.name == "posix":
                path.write_bytes(b"{}")
                path.chmod(0)


def sealed_manifest(told: Any) -> bytes:
    """A manifest whose own checksum is right."""
    try:
        return text({**told, "sha256": hashlib.sha256(text(told)).hexdigest()})
    except (TypeError, CheckpointError):
        return json.dumps(told).encode()


# ---------------------------------------------------------------------------------------------------------------- fuzz

FORBIDDEN = (
    "import", "exec", "compile", "code.", "cpython.", "subprocess.", "os.", "pty.", "socket.", "pickle.", "marshal.",
    "ctypes.", "shutil.", "tempfile.", "mmap.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "winreg.",
)  # fmt: skip


class Forbidden(BaseException):
    """Something happened that may not; nothing catches this."""


class Guard:
    """An audit hook: while it is armed, files of the run may be read, and nothing else be done."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root) + os.sep
        self.armed, self.seen = False, list[str]()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in ("open", "os.listdir", "os.scandir"):
            path, *_, flags = arguments if event == "open" else (arguments[0], 0)
            if isinstance(path, int):  # it was opened before
                return
            inside = os.path.realpath(os.fsdecode(path)).startswith(self.root)
            if inside and not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif not event.startswith(FORBIDDEN):
            return
        self.seen.append(f"{event} {arguments!r:.200}")
        raise Forbidden(self.seen[-1])


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def tried(attack: Callable[[], Any], guard: Guard, watched: bool = True) -> tuple[str, str | None, float]:
    """How an attack ended, what was wrong with that, and the seconds of the processor that it took."""
    guard.seen.clear()
    outcome, error, started = "refused", None, time.thread_time()
    guard.armed = watched
    try:
        outcome = "refused" if attack() is False else "read"
    except BaseException as caught:
        error = caught
    guard.armed = False
    took = time.thread_time() - started
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, CheckpointError) and len(str(error)) > LONG:
        return outcome, f"a message of {len(str(error))} letters: {error!s:.300}", took
    if error is not None and not isinstance(error, CheckpointError):
        return outcome, "".join(traceback.format_exception(error)), took
    return outcome, "; ".join(guard.seen) or (f"it took {took:.1f} s" if took > SLOW else None), took


def fuzz(cases: int, seed: int, first: int = 0) -> dict[str, Any]:
    """Run these cases in this process, which has the hook from now on."""
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, before = 0.0, 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        root = Path(folder) / "inside"
        attacks, guard = Attacks(root), Guard(root)
        sys.addaudithook(guard)
        for number in itertools.chain(range(-WARM, 0), range(first, first + cases)):
            kind, attack = attacks.draw(random.Random(f"{seed} {number}"))
            outcome, found, took = tried(attack, guard, watched=number >= 0)
            if number < 0:
                before = peak()
                continue
            slowest = max(slowest, took)
            outcomes[f"{kind} {outcome}"] += 1
            if found:
                wrong.append(f"case {number}, {kind}: {found}")
        grown = peak() - before
    if grown > LARGE:
        wrong.append(f"the process has grown by {grown / MiB:.0f} MiB")
    return {"outcomes": outcomes, "wrong": wrong, "slowest": slowest, "grown": grown}


def spread(cases: int, seed: int, first: int, workers: int) -> dict[str, Any]:
    """The same in processes of their own, one a core."""
    ends = [first + cases * part // workers for part in range(workers + 1)]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "fuzz", "--seed", str(seed), "--first", str(begin), "--cases", str(end - begin),
             "--json"], stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for begin, end in itertools.pairwise(ends)
    ]  # fmt: skip
    total: dict[str, Any] = {"outcomes": Counter(), "wrong": [], "slowest": 0.0, "grown": 0}
    for child in children:
        output, _ = child.communicate()
        part = json.loads(output) if child.returncode in (0, 1) and output else {}
        total["outcomes"].update(part.get("outcomes", {}))
        total["wrong"] += part.get("wrong", [f"a process ended with {child.returncode}"])
        total["slowest"] = max(total["slowest"], part.get("slowest", 0.0))
        total["grown"] = max(total["grown"], part.get("grown", 0))
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["damage", "fuzz"])
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="in this process, and what was found as JSON")
    options = parser.parse_args(arguments)
    cases = options.cases or {"damage": 100_000, "fuzz": 1_000_000}[options.what]
    started = time.monotonic()
    if options.what == "damage":
        wrong = damage(cases, options.seed, options.first)
        told = f"{cases - len(wrong):,} noticed"
    elif options.json:
        found = fuzz(cases, options.seed, options.first)
        print(json.dumps(found))
        return bool(found["wrong"])
    else:
        found = spread(cases, options.seed, options.first, min(options.workers, cases))
        wrong = found["wrong"]
        read_after_all = sum(count for name, count in found["outcomes"].items() if name.endswith(" read"))
        told = f"{read_after_all:,} read, slowest {found['slowest']:.2f} s, memory +{found['grown'] / MiB:.0f} MiB"
    seconds = time.monotonic() - started
    print(f"{options.what}: {cases:,} cases, {len(wrong)} wrong, {told}, in {seconds:.0f} s ({cases / seconds:,.0f}/s)")
    for line in wrong[:TOLD]:
        print(line)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
