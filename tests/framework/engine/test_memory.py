"""Keeping large blocks: when it is done, that it ends, and that the bits stay. Blocks and page faults are real."""

from __future__ import annotations

import copy
import mmap
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework.engine.memory import FIRST, IN_A_ROW, LargeBlocks

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc is what it sets")
HIGH = 10_000_000  # numbers: 40 MB, which glibc maps anew each time in a process that has none of them free


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[LargeBlocks]:
    for name in os.environ:
        if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "FRAMEWORK_MALLOC")):
            monkeypatch.delenv(name)
    made = LargeBlocks("cpu")
    yield made
    made.close()


def fresh() -> None:
    """Use 40 MB that were never used, whatever malloc has at hand from the tests before."""
    with mmap.mmap(-1, 4 * HIGH) as pages:
        pages[:: mmap.PAGESIZE] = bytes(len(range(0, 4 * HIGH, mmap.PAGESIZE)))


def faults(numbers: int) -> int:
    """The page faults of one use of so many numbers."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(numbers)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_glibc
def test_memory_is_kept_where_each_step_maps_it_anew(blocks: LargeBlocks) -> None:
    seen = []
    for _ in blocks.watch(iter(range(12))):
        fresh()
        seen.append((blocks.kept, faults(4 * HIGH)))

    assert [kept for kept, _ in seen] == [False] * IN_A_ROW + [True] * (12 - IN_A_ROW)
    assert sum(count for _, count in seen[-3:]) < 100


@needs_glibc
def test_what_was_kept_goes_back_to_the_system(blocks: LargeBlocks) -> None:
    for _ in blocks.watch(iter(range(6))):
        fresh()
        torch.ones(4 * HIGH)
    assert blocks.kept
    held = psutil.Process().memory_info().rss

    blocks.close()

    assert not blocks.kept
    assert held - psutil.Process().memory_info().rss > 2 * HIGH  # bytes, an eighth of the block


@needs_glibc
def test_steps_are_counted_over_passes_of_one_step(blocks: LargeBlocks) -> None:
    for _ in range(IN_A_ROW):
        assert not blocks.kept
        for _ in blocks.watch(iter([None])):
            fresh()

    assert blocks.kept


def test_a_fit_of_small_steps_is_left_alone_and_soon_no_longer_looked_at(blocks: LargeBlocks) -> None:
    steps = iter(range(30))

    assert list(blocks.watch(steps)) == list(range(30))
    assert not blocks.kept
    assert blocks.watch(steps) is steps


def test_no_step_is_fetched_before_its_turn(blocks: LargeBlocks) -> None:
    fetched: list[int] = []

    def fetching() -> Iterator[int]:
        for index in range(2 * FIRST):
            fetched.append(index)
            yield index

    for index in blocks.watch(fetching()):
        assert fetched[-1] == index


@pytest.mark.parametrize(
    ("device", "variable", "value"),
    [
        ("cuda", "UNUSED", "1"),
        ("cpu", "FRAMEWORK_MALLOC", "0"),
        ("cpu", "MALLOC_TRIM_THRESHOLD_", "131072"),
        ("cpu", "GLIBC_TUNABLES", "glibc.malloc.mmap_max=100"),
    ],
)
def test_it_is_left_off_for_another_device_and_where_somebody_has_said_how(
    device: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    blocks = LargeBlocks(device)

    for _ in blocks.watch(iter(range(6))):
        fresh()

    assert not blocks.kept


@needs_glibc
@pytest.mark.skipif(not shutil.which("cc"), reason="another malloc is built here")
def test_another_malloc_in_the_place_of_glibcs_is_left_alone(tmp_path: Path) -> None:
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t n) {return __libc_malloc(n);}\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-fno-builtin", "-o", library, source], check=True)
    script = (
        "import torch\nfrom framework.engine.memory import LargeBlocks\nblocks = LargeBlocks('cpu')\n"
        f"for _ in blocks.watch(iter(range(6))):\n    torch.ones({HIGH})\nprint(blocks.kept)"
    )

    def kept(**more: str) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run([sys.executable, "-c", script], env={**clean, **more}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    # by name, since a path with a space would be taken for two libraries
    assert kept(LD_PRELOAD=library.name, LD_LIBRARY_PATH=str(tmp_path)) == "False"
    assert kept() == "True"


@needs_glibc
def test_the_bits_are_those_without_it(blocks: LargeBlocks) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(1, 100_000), nn.ReLU(), nn.Linear(100_000, 1))
    kept = copy.deepcopy(plain)
    x = torch.linspace(-1, 1, 100)[:, None]

    def fit(model: nn.Module, steps: Iterator[int]) -> None:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in steps:
            fresh()
            optimizer.zero_grad()
            F.mse_loss(model(x), x**2).backward()
            optimizer.step()

    fit(plain, iter(range(8)))
    fit(kept, blocks.watch(iter(range(8))))

    assert blocks.kept
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), kept.parameters(), strict=True))
