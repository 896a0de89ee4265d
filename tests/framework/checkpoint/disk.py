"""Disks that fail: each operation numbered, a disk in memory that records them, and what a power failure leaves of it.

The test modules get this file as the fixture `disk` (conftest.py); benchmarks/reliability.py loads it too.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import itertools
import os
import random
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from framework import CheckpointError, Snapshot
from framework.checkpoint import files, store

OPERATIONS = (
    "open", "read", "write", "fsync", "close", "mkdir", "rename", "replace", "unlink", "rmdir", "listdir", "lstat",
    "free", "lock",
)  # fmt: skip
RUN = Path("/runs/one")  # on a disk in memory


@contextlib.contextmanager
def on(system: Any) -> Iterator[Any]:
    """Everything inside happens on this disk."""
    before, files.system = files.system, system
    try:
        yield system
    finally:
        files.system = before


# -------------------------------------------------------------------------------------------------- what is kept


def snapshot(number: int, step: int | None = None, exact: bool = True) -> Snapshot:
    """A small state that differs from those of other numbers in each of its parts."""
    return Snapshot(
        epoch=number, step=10 * number if step is None else step, model={"w": torch.tensor([number, 0.5])},
        optimizer={"state": {0: {"m": torch.tensor([number, -1.0])}}}, plugins={"p": {"n": number}},
        loop={"rng": torch.tensor([number], dtype=torch.uint8)}, exact=exact,
    )  # fmt: skip


def number_of(held: Snapshot) -> int:
    """The number of the state, each part of which must be of it."""
    numbers = {
        held.epoch, int(held.model["w"][0]), int(held.optimizer["state"][0]["m"][0]), held.plugins["p"]["n"],
        int(held.loop["rng"][0]),
    }  # fmt: skip
    assert len(numbers) == 1, f"a mix of {numbers}"
    return numbers.pop()


def newest(run_dir: Path = RUN) -> int | None:
    """The number of the state that a fit would go on from."""
    try:
        return number_of(store.newest(run_dir)[1])
    except CheckpointError:
        return None


def labelled(label: str, run_dir: Path = RUN) -> int | None:
    """The number of the state that a label points at."""
    path = store.find(run_dir, label)
    return None if path is None else number_of(store.read(path))


# ------------------------------------------------------------------------------------------------- numbered operations


class Killed(BaseException):
    """The process is gone: nothing catches this."""


class Numbered:
    """A disk whose every operation is counted, and given to `fault` in place of being done.

    `fault(number, name, call)` does it by `call()`, or fails. The clock stands still but for sleeps.
    """

    def __init__(self, fault: Callable[[int, str, Callable[..., Any]], Any], base: Any = None) -> None:
        self.base, self.fault, self.seen, self.now = base or files.System(), fault, [], 0.0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.base, name)
        if name not in OPERATIONS:
            return real

        def counted(*arguments: Any) -> Any:
            self.seen.append((name, *arguments))
            return self.fault(len(self.seen), name, lambda *instead: real(*(instead or arguments)))

        return counted

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def counting(base: Any = None) -> Numbered:
    """A disk on which nothing fails."""
    return Numbered(lambda number, name, call: call(), base)


def killing(at: int, torn: bool, die: Callable[[], Any], base: Any = None) -> Numbered:
    """A disk whose user is killed just before the operation `at`, or in the middle of it if that is a write."""
    dead = False

    def fault(number: int, name: str, call: Callable[..., Any]) -> Any:
        nonlocal dead
        if number == at:
            if torn and name == "write":
                descriptor, data = system.seen[-1][1:]
                call(descriptor, data[: len(data) // 2])
            dead = True
        if not dead:
            return call()
        if name == "close" and number > at:
            call()  # or the process of the tests would run out of them
        return die()

    system = Numbered(fault, base)
    return system


def failing(at: int, code: int | str, base: Any = None, sticky: bool = False) -> Numbered:
    """A disk whose operation `at` fails with this errno, or writes too little if it is "short".

    Args:
        sticky: so do the later ones that would need more space, or all where `code` is not about space
    """
    needy = ("open", "write", "fsync", "mkdir", "replace", "rename") if code in (errno.ENOSPC, errno.EDQUOT) else ()

    def fault(number: int, name: str, call: Callable[..., Any]) -> Any:
        if number == at or (sticky and number > at and (not needy or name in needy)):
            if code == "short":
                descriptor, data = system.seen[-1][1:] if name == "write" else (0, b"")
                return call(descriptor, data[: max(1, len(data) // 2)]) if name == "write" else call()
            if name == "close":
                call()
            raise OSError(code, os.strerror(int(code)))
        return call()

    system = Numbered(fault, base)
    return system


# --------------------------------------------------------------------------------------------------- a disk in memory


class Memory(files.System):
    """A disk in memory. `log` holds what changed it, and every fsync.

    A file or a directory is a number, which a name in a directory leads to. Number 0 is the root.
    """

    def __init__(self, names: dict[int, dict[str, int]] | None = None, data: dict[int, bytes] | None = None) -> None:
        self.names, self.data = names or {0: {}}, data or {}
        self.log: list[tuple[Any, ...]] = []
        self.opened: dict[int, int] = {}
        self.lacks_space = False
        self._next = itertools.count(max({*self.names, *self.data}) + 1)
        self._descriptors = itertools.count(100)

    def __deepcopy__(self, memo: Any) -> Memory:
        return Memory({number: {**held} for number, held in self.names.items()}, {**self.data})

    def _at(self, path: Path) -> int:
        found = 0
        for part in path.parts[1:]:
            if found not in self.names:
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
            if part not in self.names[found]:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            found = self.names[found][part]
        return found

    def _new(self, path: Path, flags: int = os.O_EXCL) -> tuple[int, int | None]:
        """The directory of a path, and what is of its name."""
        parent = self._at(path.parent)
        if parent not in self.names:
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
        there = self.names[parent].get(path.name)
        if there is not None and flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        return parent, there

    def open(self, path: Path, flags: int) -> int:
        if flags & os.O_CREAT:
            parent, found = self._new(path, flags)
            if found is None:
                found = next(self._next)
                self.names[parent][path.name], self.data[found] = found, b""
                self.log.append(("link", parent, path.name, found))
        else:
            found = self._at(path)
        descriptor = next(self._descriptors)
        self.opened[descriptor] = found
        return descriptor

    def read(self, descriptor: int) -> bytes:
        return self.data[self.opened[descriptor]]

    def write(self, descriptor: int, data: Any) -> int:
        number = self.opened[descriptor]
        self.data[number] += bytes(data)
        self.log.append(("write", number, self.data[number]))
        return len(data)

    def fsync(self, descriptor: int) -> None:
        self.log.append(("sync", self.opened[descriptor]))

    def close(self, descriptor: int) -> None:
        del self.opened[descriptor]

    def mkdir(self, path: Path) -> None:
        parent, _ = self._new(path)
        number = next(self._next)
        self.names[parent][path.name], self.names[number] = number, {}
        self.log.append(("link", parent, path.name, number))

    def rename(self, source: Path, target: Path) -> None:
        parent, there = self._new(target)
        assert there is None
        self.replace(source, target)

    def replace(self, source: Path, target: Path) -> None:
        number = self._at(source)
        assert source.parent == target.parent
        parent = self._at(source.parent)
        del self.names[parent][source.name]
        self.names[parent][target.name] = number
        self.log.append(("move", parent, source.name, target.name, number))

    def unlink(self, path: Path) -> None:
        assert self._at(path) in self.data
        del self.names[self._at(path.parent)][path.name]
        self.log.append(("unlink", self._at(path.parent), path.name))

    def rmdir(self, path: Path) -> None:
        if self.names[self._at(path)]:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        del self.names[self._at(path.parent)][path.name]
        self.log.append(("unlink", self._at(path.parent), path.name))

    def listdir(self, path: Path) -> list[str]:
        found = self._at(path)
        if found not in self.names:
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
        return list(self.names[found])

    def lstat(self, path: Path) -> Any:
        found = self._at(path)
        if found in self.names:
            return SimpleNamespace(st_mode=stat.S_IFDIR, st_size=0)
        return SimpleNamespace(st_mode=stat.S_IFREG, st_size=len(self.data[found]))

    def free(self, path: Path) -> int:
        return 10**12

    def lock(self, descriptor: int) -> bool:
        return True


# -------------------------------------------------------------------------------------------------- the power goes off


def after_power_loss(log: list[tuple[Any, ...]], cut: int, draw: random.Random, limit: int) -> Iterator[Memory]:
    """What a disk that was empty at first may hold after the first `cut` entries of a log and a power failure.

    An entry of a directory that was not fsynced since is there or not, each by itself; the content of a file that was
    not fsynced since is that of before, empty, cut off, all zeros, or zeros from somewhere on. All of it where that is
    at most `limit` disks; else the orders in which a journal would keep it, and others drawn.
    """
    safe, pending, written, durable = _split(log[:cut])
    choices = [(False, True)] * len(pending) + [_variants(durable.get(n, b""), data) for n, data in written.items()]
    total = 1
    for options in choices:
        total *= len(options)
    picks: Any
    if total <= limit:
        picks = itertools.product(*choices)
    else:
        new = [options[-1] for options in choices[len(pending) :]]
        in_order = [[*(i < kept for i in range(len(pending))), *new] for kept in range(len(pending) + 1)]
        picks = [*in_order, *([draw.choice(options) for options in choices] for _ in range(limit - len(in_order)))]
    for pick in picks:
        kept = [entry for entry, stays in zip(pending, pick, strict=False) if stays]
        names = _applied(safe, kept)
        yield Memory(names, {**durable, **dict(zip(written, pick[len(pending) :], strict=True))})


def _split(log: list[tuple[Any, ...]]) -> tuple[Any, Any, Any, Any]:
    """What is durable in directories, what is not, what is not in files, and what is durable in those."""
    pending: list[tuple[Any, ...]] = []
    safe: list[tuple[Any, ...]] = []
    written: dict[int, bytes] = {}
    durable: dict[int, bytes] = {}
    for entry in log:
        match entry:
            case ("write", number, data):
                written[number] = data
            case ("sync", number):
                if number in written:
                    durable[number] = written.pop(number)
                safe += [held for held in pending if held[1] == number]
                pending = [held for held in pending if held[1] != number]
            case _:
                pending.append(entry)
    return safe, pending, written, durable


def _applied(safe: list[tuple[Any, ...]], kept: list[tuple[Any, ...]]) -> dict[int, dict[str, int]]:
    names: dict[int, dict[str, int]] = {0: {}}
    for entry in safe + kept:
        held = names.setdefault(entry[1], {})
        match entry:
            case ("link", _, name, number):
                held[name] = number
            case ("move", _, source, target, number):
                held.pop(source, None)
                held[target] = number
            case ("unlink", _, name):
                held.pop(name, None)
    return names


def _variants(old: bytes, new: bytes) -> list[bytes]:
    half = len(new) // 2
    return [*dict.fromkeys([old, b"", new[:half], bytes(len(new)), new[:half] + bytes(len(new) - half), new])]
