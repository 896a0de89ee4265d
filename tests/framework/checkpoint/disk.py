"""Disks that fail: each operation numbered, a disk in memory that records them, and what a power failure leaves of it.

The test modules get this file as the fixture `disk` (conftest.py); benchmarks/reliability.py loads it too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import random
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
READING = ("read", "listdir", "lstat", "free", "close", "fsync")  # what leaves a disk as it was
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


class Hasty(files.System):
    """The disk of this machine without waiting for it: what a killed process has written is there without fsync."""

    def fsync(self, descriptor: int) -> None:
        pass


def die() -> None:
    raise Killed


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

    def __init__(
        self, names: dict[int, dict[str, int]] | None = None, data: dict[int, bytes] | None = None, skip: int = -1
    ) -> None:
        self.names, self.data = names or {0: {}}, data or {}
        self.log: list[tuple[Any, ...]] = []
        self.opened: dict[int, int] = {}  # descriptors, and what each leads to
        self.syncs, self._skip = 0, skip  # how many fsyncs there were; the one that does nothing
        self._next = itertools.count(max({*self.names, *self.data}) + 1)
        self._descriptors = itertools.count(100)

    def copied(self) -> Memory:
        """Another disk with the same names and contents."""
        return Memory({number: {**held} for number, held in self.names.items()}, {**self.data})

    def tree(self, number: int = 0) -> Any:
        """All names and contents, without the random part of a name."""
        if number in self.data:
            return self.data[number]
        named = [(name.partition("-")[0], name) if name[0] == "." else (name, name) for name in self.names[number]]
        return tuple((plain, self.tree(self.names[number][name])) for plain, name in sorted(named))

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
                self.log.append(("link", parent, path.name, found, False))
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
        if self.syncs != self._skip:
            self.log.append(("sync", self.opened[descriptor]))
        self.syncs += 1

    def close(self, descriptor: int) -> None:
        del self.opened[descriptor]

    def mkdir(self, path: Path) -> None:
        parent, _ = self._new(path)
        number = next(self._next)
        self.names[parent][path.name], self.names[number] = number, {}
        self.log.append(("link", parent, path.name, number, True))

    def rename(self, source: Path, target: Path) -> None:
        assert self._new(target)[1] is None
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
    not fsynced since is that of before, empty, cut off, all zeros, or zeros from the middle on. That is each disk
    where there are at most `limit`; else those in the order in which a journal keeps it, and others drawn.
    """
    safe, pending, durable, written = _split(log[:cut])
    choices: list[Any] = [(False, True)] * len(pending)
    choices += [_variants(durable.get(number, b""), data) for number, data in written.items()]
    if math.prod(map(len, choices)) <= limit:
        picks: Any = itertools.product(*choices)
    else:
        whole = list(written.values())
        in_order = [[*(i < kept for i in range(len(pending))), *whole] for kept in range(len(pending) + 1)]
        picks = [*in_order, *([draw.choice(options) for options in choices] for _ in range(limit - len(in_order)))]
    directories = {entry[3] for entry in log if entry[0] == "link" and entry[4]}
    for pick in picks:
        names: dict[int, dict[str, int]] = {number: {} for number in (0, *directories)}
        for entry in safe + [entry for entry, stays in zip(pending, pick, strict=False) if stays]:
            match entry:
                case ("link", parent, name, number, _):
                    names[parent][name] = number
                case ("move", parent, source, target, number):
                    names[parent].pop(source, None)
                    names[parent][target] = number
                case ("unlink", parent, name):
                    names[parent].pop(name, None)
        data = {number: b"" for held in names.values() for number in held.values() if number not in directories}
        yield Memory(names, {**data, **durable, **dict(zip(written, pick[len(pending) :], strict=True))})


def _split(log: list[tuple[Any, ...]]) -> tuple[Any, Any, Any, Any]:
    """Changes of directories that are durable and that are not; contents of files that are durable and that are not."""
    safe: list[tuple[Any, ...]] = []
    pending: list[tuple[Any, ...]] = []
    durable: dict[int, bytes] = {}
    written: dict[int, bytes] = {}
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
    return safe, pending, durable, written


def _variants(old: bytes, new: bytes) -> list[bytes]:
    half = len(new) // 2
    return [*dict.fromkeys([old, b"", new[:half], bytes(len(new)), new[:half] + bytes(len(new) - half), new])]


@dataclass
class Save:
    """One save of a scenario: the state of this number at this step."""

    number: int
    step: int
    labels: tuple[str, ...] = ("last",)
    exact: bool = True

    def __call__(self, run_dir: Path = RUN) -> Path:
        return store.write(snapshot(self.number, self.step, self.exact), run_dir, self.labels)


def expected(saves: Sequence[Save]) -> tuple[int | None, dict[str, int]]:
    """The state that a fit goes on from after these saves, and those that the labels point at."""
    labels = {label: save for save in saves for label in save.labels}
    exact = [save.number for save in saves if save.exact]
    last = labels.get("last")
    other = exact or [last.number if last else save.number for save in saves]
    found = last.number if last and last.exact else other[-1] if other else None
    return found, {label: save.number for label, save in labels.items()}


def scenario(draw: random.Random) -> list[Save]:
    """Some saves as a fit makes them: steps that repeat, best and last, a few after an error inside a step."""
    saves: list[Save] = []
    for number in range(1, 6):
        step = 10 * number if draw.random() < 0.8 else 10
        labels = draw.choice([("last",), ("last",), ("best", "last"), ("last", "best"), ("best",), ("epoch_3", "last")])
        saves.append(Save(number, step, labels, draw.random() < 0.85))
    return saves


class PowerLoss:
    """Saves on a disk in memory, the power failing after any of its operations.

    Args:
        limit: so many disks at most after one operation
        again: on every such one there is another save; 0 for none

    Attributes:
        states: how many different disks were looked at
        lost: what was wrong with any, in words
    """

    def __init__(self, seed: int = 0, limit: int = 200, again: int = 0) -> None:
        self.draw, self.limit, self.again = random.Random(seed), limit, again
        self.states, self.lost = 0, list[str]()
        self._known: dict[Any, Any] = {}

    def run(self, saves: Sequence[Save], skip: int = -1) -> None:
        """Every cut of these saves. The fsync of number `skip` is left out."""
        seen: set[Any] = set()
        disk, ends = recorded(saves, skip)
        for cut in range(len(disk.log) + 1):
            done = sum(end <= cut for end in ends)
            before, after = expected(saves[:done]), expected(saves[: done + (cut not in (0, *ends))])
            for state in after_power_loss(disk.log, cut, self.draw, self.limit):
                key = state.tree()
                wrong = self._wrong(state, key, before, after)
                if key not in seen:
                    seen.add(key)
                    self.states += 1
                    if self.again and self.states % self.again == 0:
                        wrong = wrong or save_again(state)
                if wrong:
                    self.lost.append(f"{saves}, cut at {cut} of {ends}, fsync {skip} left out: {wrong}")
                    return

    def _wrong(self, state: Memory, tree: Any, before: Any, after: Any) -> str | None:
        for name in (*RUN.relative_to("/").parts, "checkpoints"):
            tree = dict(tree).get(name, ())
        seen = tuple((name, held) for name, held in tree if not name.startswith("."))
        if seen not in self._known:
            self._known[seen] = verdict(state)
        return judged(self._known[seen], before, after)


def judged(seen: tuple[int | None, dict[str, int | None], str], before: Any, after: Any) -> str | None:
    """What is wrong with a verdict, where `expected` gives these before and after a save."""
    found, labels, damaged = seen
    if damaged:
        return f"damaged: {damaged}"
    if found not in (before[0], after[0]):
        return f"went on from {found}, not from {before[0]} or {after[0]}"
    for label, number in after[1].items():
        first_last = label == "last" and label not in before[1]  # without it the newest one is taken
        if labels.get(label) not in (number, before[1].get(label)) and not first_last:
            return f"{label} is {labels.get(label)}, not {before[1].get(label)} or {number}"
    return None


def wrong(state: Memory | None, before: Any, after: Any, run_dir: Path = RUN) -> str | None:
    return judged(verdict(state, run_dir), before, after)


def save_again(state: Memory | None, run_dir: Path = RUN) -> str | None:
    """What is wrong with another save on this disk, or on that in use."""
    with on(state or files.system):
        Save(99, 990)(run_dir)
        found, labels, damaged = verdict(None, run_dir)
        names = files.system.listdir(run_dir / "checkpoints")
    if damaged or (found, labels["last"]) != (99, 99) or any(name.startswith(".") for name in names):
        return f"after another save: {damaged or found}, {names}"
    return None


def recorded(saves: Sequence[Save], skip: int = -1) -> tuple[Memory, list[int]]:
    """A disk after these saves, and how long its log was after each."""
    disk, ends = Memory(skip=skip), []
    with on(disk):
        for save in saves:
            save()
            ends.append(len(disk.log))
    return disk, ends


def verdict(state: Memory | None, run_dir: Path = RUN) -> tuple[int | None, dict[str, int | None], str]:
    """What a disk gives: the state to go on from, those of the labels, and what is wrong with any checkpoint."""
    with on(state or files.system):
        directory = run_dir / "checkpoints"
        names = files.system.listdir(directory) if files.exists(directory) else []
        try:
            for name in names:
                if name.startswith("step-"):
                    store.read(directory / name)
        except CheckpointError as error:
            return None, {}, str(error)
        labels = {name.lower(): labelled(name, run_dir) for name in names if name.isupper()}
        return newest(run_dir), labels, ""
