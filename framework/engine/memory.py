"""Keeping freed memory for the next step, where a fit would otherwise have all of it mapped anew in each.

glibc maps a block above 32 MiB when it is asked for and unmaps it when it is freed. A wide model on the CPU then spends
most of its time on fresh pages, which the kernel has to clear. What is computed is the same, only its place differs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIRST, IN_A_ROW = 8, 3  # of so many steps, so many must have mapped much; the first one does, for what stays
MUCH = 8 << 20  # bytes of fresh pages in a step; 20 MB are a third of the time of a small convolutional network
HUGE = 2 << 20  # bytes of a huge page
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # numbers of mallopt(3)


class LargeBlocks:
    """Looks at the first steps of a fit, and keeps memory from then on where they mapped much of it anew.

    For fits on the CPU, on Linux with glibc; elsewhere it does nothing. FRAMEWORK_MALLOC=0 switches it off.

    Attributes:
        kept: whether memory is kept now
    """

    def __init__(self, device: str) -> None:
        wanted = device == "cpu" and os.environ.get("FRAMEWORK_MALLOC") != "0" and platform.libc_ver()[0] == "glibc"
        self.kept, self._seen, self._in_a_row = False, (0 if wanted else FIRST), 0

    def watch(self, steps: Iterator[Any]) -> Iterator[Any]:
        """The same things one after the other, where a step is taken with each.

        Once enough was seen, in this pass or in one before, it is `steps` itself, so that a step costs nothing more.
        """
        return steps if self._seen >= FIRST else self._watching(steps)

    def _watching(self, steps: Iterator[Any]) -> Iterator[Any]:
        for step in itertools.islice(steps, FIRST - self._seen):
            before = _usage().ru_minflt
            yield step
            self._seen += 1
            faults = _usage().ru_minflt - before
            self._in_a_row = self._in_a_row + 1 if faults > MUCH // HUGE and faults > MUCH // _page() else 0
            if self._in_a_row == IN_A_ROW:
                self._seen, self.kept = FIRST, _may_keep() and _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
                break
        step = None  # else its batch would stay for as long as this pass
        yield from steps

    def close(self) -> None:
        """At the end of the fit: the settings go back to what they were, and what is free to the system."""
        if self.kept:
            # Setting any of them has ended glibc's own fitting of the two thresholds to the blocks that are freed, so
            # the process gets what that comes to where large blocks are freed.
            self.kept = not _set((_MMAP_MAX, 65536), (_TRIM_THRESHOLD, 64 << 20), (_MMAP_THRESHOLD, 32 << 20))
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _usage() -> Any:
    """What this process has used, page faults among it: a microsecond, and no look at the model is needed."""
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF)


def _page() -> int:
    """The bytes that come with a fault: a huge page, where the system gives those without being asked."""
    with contextlib.suppress(OSError):
        if "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text("ascii"):
            return HUGE
    return os.sysconf("SC_PAGE_SIZE")


def _may_keep() -> bool:
    """Whether glibc hands out the memory of this process, as nobody has tuned it, and there is twice what it has taken.

    Between blocks that are kept lie gaps: up to two thirds more than before were seen. A malloc that was put in the
    place of glibc's is known by its address.
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # it reads "max" where there is no limit
        room = min(room, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    places = {ctypes.cast(ctypes.CDLL(name).malloc, ctypes.c_void_p).value for name in (None, "libc.so.6")}
    return not tuned and len(places) == 1 and 2 * 1024 * int(_usage().ru_maxrss) < room


def _set(*options: tuple[int, int]) -> bool:
    return all(ctypes.CDLL("libc.so.6").mallopt(number, value) for number, value in options)
