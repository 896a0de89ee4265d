from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import framework_plugins.batch_size_finder as finder
import pytest

from framework.cli import main

# A model that moves a clock in place of computing, and has room for so many samples
HEAD = """
import time
import framework_plugins.batch_size_finder as finder
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from framework import Recipe

SEEN = []


class Slow(nn.Linear):
    room, fixed, each, full = 10**9, 1.0, 0.0, torch.OutOfMemoryError

    def forward(self, x):
        SEEN.append(len(x))
        if len(x) > self.room:
            raise self.full("there is no more")
        finder.time.now += self.fixed + self.each * len(x)
        return super().forward(x)


def made(train, model=None, **more):
    model = model or Slow(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return Recipe(model=model, loss=nn.functional.mse_loss, optimizer=optimizer, train=train, **more)


X, Y = torch.ones(100, 3), torch.ones(100, 1)
"""


@pytest.fixture
def find(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    folder = tmp_path / "한글 폴더"
    folder.mkdir()
    monkeypatch.chdir(folder)
    clock = SimpleNamespace(now=1000.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(finder, "time", clock)

    def told(recipe: str, *words: str, seconds: str = "3") -> tuple[int, str]:
        Path("my recipes").mkdir()
        Path("my recipes/mine.py").write_text(HEAD + recipe, encoding="utf-8")
        status = main(["batch-size", "my recipes/mine.py", "--seconds", seconds, "--device", "cpu", *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return told


def rates(said: str) -> dict[int, float]:
    return {int(size): float(rate.replace(",", "")) for size, rate in re.findall(r"^(\d+) +([\d,]+) ", said, re.M)}


def test_the_batch_doubles_up_to_all_samples_and_each_rate_is_samples_over_seconds(find: Callable[..., Any]) -> None:
    status, said = find("def recipe(batch_size: int = 4):\n    return made((X, Y), batch_size=batch_size)\n")
    assert status == 0
    # a second a step: 8 samples, ..., and 64 and 36 in turns, of which the watch takes 64 + 36 + 64
    assert rates(said) == {8: 8, 16: 16, 32: 32, 64: round(164 / 3), 100: 100}
    assert "fits      100, the largest that was tried" in said
    worth, command = said.splitlines()[-2:]
    assert worth == "worth     100"
    assert shlex.split(command) == ["next", "python", "-m", "framework", "my recipes/mine.py", "--batch-size", "100"]


@pytest.mark.parametrize("error", ["torch.OutOfMemoryError", "MemoryError"])
def test_it_ends_where_the_memory_does(find: Callable[..., Any], error: str) -> None:
    recipe = f"def recipe(hidden: int = 1):\n    Slow.room, Slow.full = 40, {error}\n    return made((X, Y))\n"
    status, said = find(recipe, "hidden=3")
    assert status == 0
    assert rates(said) == {8: 8, 16: 16, 32: 32}
    assert "fits      32, 64 samples are more than the memory holds\nworth     32\n" in said
    assert "next" not in said  # no knob to set it by


def test_memory_that_does_not_even_hold_the_smallest_batch_is_an_error(find: Callable[..., Any]) -> None:
    status, said = find("def recipe():\n    Slow.room = 7\n    return made((X, Y))\n")
    assert status == 2
    assert "not even the smallest batch fits: 8 samples are more than the memory holds" in said


def test_on_a_cpu_a_batch_that_would_need_more_than_is_free_is_not_tried(
    find: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = iter([100, *(100 + 40 * size for size in (8, 8, 16, 16, 32, 32))])
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(used) << 20))
    free = SimpleNamespace(available=1200 << 20)
    monkeypatch.setattr(finder, "psutil", SimpleNamespace(Process=lambda: process, virtual_memory=lambda: free))
    status, said = find("def recipe():\n    return made((X, Y))\n")
    assert status == 0
    assert re.findall(r"^\d+ .* (\S+)$", said, re.M) == ["320", "640"]
    assert "fits      16, 32 samples would need about 1280 MiB" in said


def test_on_a_cpu_it_ends_when_two_doublings_gain_nothing_and_names_the_knee(find: Callable[..., Any]) -> None:
    recipe = (
        "def recipe():\n    Slow.fixed, Slow.each = 0.1, 0.1\n    return made((X.repeat(99, 1), Y.repeat(99, 1)))\n"
    )
    status, said = find(recipe, seconds="0.1")
    assert status == 0
    assert [*rates(said)] == [8, 16, 32, 64]
    assert "worth     16: a larger one is less than 5% faster" in said


def test_a_data_loader_is_taken_in_batches_of_other_sizes(find: Callable[..., Any]) -> None:
    loader = "DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)"
    status, said = find(f"def recipe():\n    return made({loader})\n", "--largest", "32")
    assert status == 0
    assert rates(said) == {8: 8, 16: 16, 32: 32}


def test_data_without_a_length_is_taken_up_to_the_largest(find: Callable[..., Any]) -> None:
    recipe = """
class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X.repeat(2, 1), Y.repeat(2, 1)))

def recipe():
    return made(Stream(), batch_size=4)
"""
    assert [*rates(find(recipe, "--largest", "40")[1])] == [8, 16, 32, 40]


def test_data_that_gives_no_batch_so_large_ends_it_and_is_no_error(find: Callable[..., Any]) -> None:
    """A stream of 20 samples whose last batch is dropped: nobody can know before."""
    status, said = find(
        "class Stream(IterableDataset):\n    def __iter__(self):\n"
        "        for _ in range(20): yield X[0], Y[0]\n\n"
        "def recipe(): return made(DataLoader(Stream(), 4, drop_last=True))\n",
        "--largest", "64",
    )  # fmt: skip
    assert status == 0, said
    assert "fits      16, the data gives no batch of 32 samples" in said


def test_batches_that_a_sampler_makes_are_refused(find: Callable[..., Any]) -> None:
    recipe = """
def recipe():
    data = TensorDataset(X, Y)
    batches = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(data), 5, False)
    return made(DataLoader(data, batch_sampler=batches))
"""
    status, said = find(recipe)
    assert status == 2
    assert "made by a batch_sampler of its own" in said


def test_plugins_that_change_a_step_take_part_and_others_do_not(find: Callable[..., Any]) -> None:
    recipe = """
from framework_plugins.early_stopping import EarlyStopping

class Twice:
    def forward(self, model, batch):
        model(batch[0])
        return model(batch[0])

def recipe():
    return made((X, Y), val=(X, Y), plugins=[Twice(), EarlyStopping("val_loss", patience=1)])
"""
    assert rates(find(recipe, "--largest", "16")[1]) == {8: 4, 16: 8}


@pytest.mark.parametrize(
    "words", [("--smallest", "0"), ("--smallest", "8", "--largest", "4"), ("--seconds", "0")], ids=" ".join
)
def test_sizes_that_cannot_be_are_told(find: Callable[..., Any], words: tuple[str, ...]) -> None:
    status, said = find("def recipe():\n    return made((X, Y))\n", *words)
    assert status == 2
    assert "sizes go from 1 up and take some seconds" in said
