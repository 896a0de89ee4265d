"""The processes of torchrun: how they find each other, agree, and tell what became of one of them."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import socket
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

from framework import CheckpointError, DeviceError, Processes, UsageError

SHORT_PATIENCE, PATIENCE = 2.0, 10.0  # seconds, for the last word of a process whose connections are closed
SHOWN = 3  # differences in one message


def world() -> tuple[int, int]:
    """Rank and number of the processes, as torchrun or who else has started them says; 0 and 1 without any."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    size = int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ.get("RANK", 0)) if size > 1 else 0, size


def own_gpu(rank: int) -> torch.device:
    """The GPU of this process, which is the current one from now on.

    Raises:
        DeviceError: there are more processes than GPUs
    """
    there = torch.cuda.device_count()
    number = int(os.environ.get("LOCAL_RANK", rank)) if there > 1 else 0  # a scheduler may show each only its own
    if number >= there:
        raise DeviceError(f"process {number} of this machine has no GPU, there are {there}: start one for each")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def attempt() -> int:
    """How often torchrun has started the processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


class Store:
    """Torch's store of keys, which torchrun keeps while processes come and go.

    Keys of one attempt are apart from those of another, but for what is `remembered`.
    """

    _made: Store | None = None

    def __init__(self) -> None:
        self.raw, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        self.now = PrefixStore(f"framework/{attempt()}", self.raw)
        self._remembered = PrefixStore("framework/all", self.raw)
        self._meetings = itertools.count()

    @classmethod
    def of_torchrun(cls) -> Store:
        """The one of this process."""
        cls._made = cls._made or cls()
        return cls._made

    def remember(self, key: str, value: str) -> None:
        self._remembered.set(key, value)

    def remembered(self, key: str) -> str:
        return str(self._remembered.get(key).decode()) if self._remembered.check([key]) else ""

    def meet(self, rank: int, size: int) -> None:
        """Wait for all processes to come here."""
        number = next(self._meetings)
        self.now.set(f"met/{number}/{rank}", "")
        self.now.wait([f"met/{number}/{other}" for other in range(size)])

    def say(self, word: str, rank: int) -> None:
        """The last word of this process: the error that ends it, empty where that was the end of another one."""
        self.now.set(f"end/{rank}", word)

    def begin(self, rank: int) -> None:
        """Tell the others where this process is."""
        self.now.set(f"at/{rank}", f"{os.getpid()} {socket.gethostname()}")

    def words(self, ranks: Sequence[int]) -> dict[int, str | None]:
        """The last word of each of these processes; None for one that is not there any more."""
        # one alone is asked only whether it tells the same
        until = time.monotonic() + (PATIENCE if len(ranks) > 1 else SHORT_PATIENCE)
        while True:
            words: dict[int, str | None] = {}
            for rank in ranks:
                pid = self._neighbour(rank)
                if self.now.check([f"end/{rank}"]):
                    words[rank] = self.now.get(f"end/{rank}").decode()
                elif pid and not _runs(pid):
                    words[rank] = None
            found, silent = any(word != "" for word in words.values()), [rank for rank in ranks if rank not in words]
            if found or not silent or time.monotonic() > until:  # those who are silent may be waiting for this one
                return words | {rank: "" if found or self._neighbour(rank) else None for rank in silent}
            time.sleep(0.02)

    def _neighbour(self, rank: int) -> int:
        """The pid of a process on this machine; 0 for one elsewhere."""
        key = f"at/{rank}"
        pid, _, host = self.now.get(key).decode().partition(" ") if self.now.check([key]) else ("", "", "")
        return int(pid) if host == socket.gethostname() else 0


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Ranks(Processes):
    """The processes of a fit, with a group of their own for what they tell each other, on the CPU.

    Args:
        timeout: seconds after which a process that does not answer is an error
        device: where the fit computes
    """

    def __init__(self, timeout: float, device: torch.device) -> None:
        patience = timedelta(seconds=timeout)
        if not dist.is_initialized():
            rank, size = world()
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            store = PrefixStore(f"group/{next(_NUMBERS)}", Store.of_torchrun().now)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
            atexit.register(self._leave)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._patience, self._on_cpu = patience, device.type == "cpu"
        self.local_of: Callable[[str, Any], Any] = lambda name, tree: tree
        self._failed = False

    @property
    def group(self) -> Any:
        """The group for what the processes tell each other. Only torch holds it."""
        known = _groups.get(self._patience)
        group = known() if known else None
        if group is None:
            group = dist.new_group(backend="gloo", timeout=self._patience)
            _groups[self._patience] = weakref.ref(group)
        return group

    def gather(self, value: Any) -> list[Any]:
        if self._failed:
            raise CheckpointError("after an error in one process the others are not waited for")
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def local(self, name: str, tree: Any) -> Any:
        return self.local_of(name, tree)

    def fail(self) -> None:
        self._failed = True

    def _leave(self) -> None:
        if self._on_cpu or not self._failed:  # else NCCL may wait for the others
            leave()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, on the device of `value`."""
        total = value.detach().to("cpu", copy=True)
        if total.dtype == torch.bool:
            total = total.long()
        dist.all_reduce(total, group=self.group)
        return total.to(value.device)

    def largest(self, values: list[int]) -> list[int]:
        """The largest of each number over all processes."""
        found = torch.tensor(values)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return found.tolist()

    def agree(self, values: list[int]) -> bool:
        """Whether all processes have the same numbers."""
        largest = self.largest([*values, *(-value for value in values)])
        return all(high == -low for high, low in zip(largest[: len(values)], largest[len(values) :], strict=True))

    def same(self, facts: Mapping[str, Any], what: str) -> None:
        """Compare what must be the same in all processes.

        Raises:
            UsageError: it is not, with the first differences; in each of them
        """
        everyone = self.gather(dict(facts))
        found = []
        for rank, theirs in enumerate(everyone):
            for name in {**everyone[0], **theirs}:
                here, there = everyone[0].get(name, "missing"), theirs.get(name, "missing")
                if here != there:
                    found.append(f"{name} is {here} on rank 0 and {there} on rank {rank}")
        if found:
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise UsageError(f"the processes differ in {what}: {'; '.join(found[:SHOWN])}{more}")


_NUMBERS = itertools.count()  # of the times that this process has joined the others
_groups: dict[timedelta, Any] = {}  # weak references; one is enough for all fits of a process


def leave() -> None:
    """This process takes no part any more."""
    gc.collect()  # a DDP module that hangs in a cycle holds its group, and torch aborts where that outlives its end
    if dist.is_initialized():
        dist.destroy_process_group()


def is_of_connection(error: BaseException) -> bool:
    """Whether an error says that another process did not answer."""
    said = str(error).lower()
    words = "gloo/", "[gloo", "nccl error", "closed by peer [", "reset by peer [", "[rank "
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(word in said for word in words))
