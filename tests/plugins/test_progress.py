from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from framework_plugins import progress
from framework_plugins.progress import Progress
from torch.utils.data import DataLoader, IterableDataset

from framework import Trainer
from framework.testing import tiny_data, tiny_trainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


class Ticks:
    """Moves the clock after every batch that is trained on."""

    def __init__(self, clock: Any, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def on_batch_end(self, split: str) -> None:
        self.clock.now += self.seconds * (split == "train")


class Stream(IterableDataset[Any]):
    """A data set that does not know its length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(*tiny_data(6), strict=True)))


def test_a_terminal_gets_a_bar_with_steps_loss_rate_and_time_left(
    terminal: Terminal, clock: Callable[..., Any]
) -> None:
    plugins = [Progress(), Ticks(clock(progress), 0.1)]
    tiny_trainer(plugins).fit(tiny_data(), epochs=4, batch_size=2)
    drawn = terminal.getvalue().split("\r")
    assert re.search(r"\| 7/12 \[\d\d:\d\d<\d\d:\d\d, .*step/s, epoch 2/4, loss \d", "\n".join(drawn))
    assert terminal.getvalue().endswith("\r")  # the bar is wiped at the end


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_a_real_terminal_is_recognized(monkeypatch: pytest.MonkeyPatch, clock: Callable[..., Any]) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w", encoding="ascii") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        tiny_trainer([Progress(), Ticks(clock(progress), 0.2)]).fit(tiny_data(), epochs=3)
        monkeypatch.undo()
        screen.flush()
        shown = os.read(ours, 100_000).decode("ascii")
    os.close(ours)
    assert "2/3" in shown
    assert "loss" in shown


def test_a_file_gets_plain_lines_now_and_then(capfd: pytest.CaptureFixture[str], clock: Callable[..., Any]) -> None:
    tiny_trainer([Progress(), Ticks(clock(progress), 1.0)]).fit(tiny_data(), epochs=25)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.sub(r"loss \S+", "loss L", err).splitlines() == [
        "epoch 10/25  step 11/25  loss L  1.1 steps/s  00:12 left",
        "epoch 20/25  step 21/25  loss L  1.1 steps/s  00:03 left",
    ]


def test_the_bar_is_redrawn_at_most_ten_times_a_second(terminal: Terminal, clock: Callable[..., Any]) -> None:
    plugins = [Progress(bar_seconds=0), Ticks(clock(progress), 1 / 128)]
    tiny_trainer(plugins).fit(tiny_data(), epochs=1280)
    assert 90 <= terminal.getvalue().count("loss") <= 100  # in ten seconds


def test_a_loss_is_read_only_on_a_redraw(terminal: Terminal, clock: Callable[..., Any], operations: Any) -> None:
    seen = operations()
    plugins = [seen, Progress(), Ticks(clock(progress), 1 / 128)]
    tiny_trainer(plugins).fit(tiny_data(), epochs=256)
    assert seen.counts["_local_scalar_dense"] == terminal.getvalue().count("loss") > 10


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 4), (3, 2), (5, 2)])
def test_the_total_counts_steps_not_batches(
    accumulate: int, steps: int, terminal: Terminal, clock: Callable[..., Any]
) -> None:
    trainer = tiny_trainer([Progress(), Ticks(clock(progress), 1.0)])
    result = trainer.fit(tiny_data(), epochs=2, batch_size=2, accumulate=accumulate)
    assert result.steps == steps
    assert f" {steps}/{steps} [" in terminal.getvalue()


def test_a_loader_that_does_not_know_its_length_has_no_total(
    terminal: Terminal, clock: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    loader = DataLoader(Stream(), batch_size=2)
    tiny_trainer([Progress(), Ticks(clock(progress), 1.0)]).fit(loader, epochs=2)
    assert "5step [" in terminal.getvalue()


def test_the_plain_line_tells_no_time_left_without_a_total(
    capfd: pytest.CaptureFixture[str], clock: Callable[..., Any]
) -> None:
    trainer = tiny_trainer([Progress(line_seconds=4), Ticks(clock(progress), 1.0)])
    trainer.fit(DataLoader(Stream(), batch_size=2), epochs=2)
    assert re.fullmatch(r"epoch 1/2  step 5  loss \S+  1\.2 steps/s\n", capfd.readouterr().err)


def test_a_clock_that_stands_still_is_no_error(capfd: pytest.CaptureFixture[str], clock: Callable[..., Any]) -> None:
    clock(progress)
    tiny_trainer([Progress(line_seconds=0)]).fit(tiny_data(), epochs=2)
    assert capfd.readouterr().err.count("step") == 4


def test_the_bar_is_closed_before_others_print_at_the_end(terminal: Terminal) -> None:
    class Prints:
        def on_fit_end(self) -> None:
            terminal.write("the end\n")

    tiny_trainer([Prints(), Progress()]).fit(tiny_data(), epochs=2)
    assert terminal.getvalue().endswith("\rthe end\n")


def test_the_bar_is_closed_after_an_error_and_a_next_fit_has_a_new_one(terminal: Terminal, fails: Any) -> None:
    failing = fails(epoch=1)
    trainer = tiny_trainer([Progress(), failing])
    with pytest.raises(RuntimeError):
        trainer.fit(tiny_data(), epochs=2)
    assert terminal.getvalue().endswith("\r")
    failing.armed = False
    terminal.truncate(0)
    trainer.fit(tiny_data(), epochs=3)
    assert "0/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_validation_and_evaluate_draw_nothing(terminal: Terminal, clock: Callable[..., Any]) -> None:
    class Slow:
        def on_batch_end(self, split: str) -> None:
            fake.now += split != "train"

    fake = clock(progress)
    trainer = tiny_trainer([Slow(), Progress()])
    trainer.evaluate(tiny_data(), batch_size=1)
    assert terminal.getvalue() == ""
    trainer.fit(tiny_data(), tiny_data(), epochs=2)
    assert terminal.getvalue().count("loss") == 1  # at the first step after the first validation


def test_it_writes_ascii_only(terminal: Terminal, clock: Callable[..., Any]) -> None:
    tiny_trainer([Progress(), Ticks(clock(progress), 1.0)]).fit(tiny_data(), epochs=9)
    assert terminal.getvalue().isascii()


def test_a_loss_that_is_nan_is_shown(terminal: Terminal, clock: Callable[..., Any]) -> None:
    trainer: Trainer = tiny_trainer([Progress(), Ticks(clock(progress), 1.0)], on_nonfinite="continue")
    trainer.fit((torch.full((2, 3), torch.nan), torch.ones(2, 1)), epochs=2)
    assert "loss nan" in terminal.getvalue()


def test_it_changes_no_bit_of_training(trained: Any, terminal: Terminal, clock: Callable[..., Any]) -> None:
    assert trained([Progress(), Ticks(clock(progress), 1.0)]) == trained([])
    assert "loss" in terminal.getvalue()
