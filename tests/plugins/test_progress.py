from __future__ import annotations

import contextlib
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
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes stderr a terminal. (Called in the test: pytest puts its own stderr back when a fixture is done.)"""

    def install() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return install


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


def test_a_terminal_gets_a_bar_with_steps_loss_and_time_left(terminal: Any, clock: Any) -> None:
    screen = terminal()
    plugins = [Progress(), Ticks(clock(progress), 0.1)]
    tiny_trainer(plugins).fit(tiny_data(), epochs=4, batch_size=2)
    drawn = screen.getvalue().split("\r")
    assert re.search(r"\| 7/12 \[\d\d:\d\d<\d\d:\d\d, .*step/s, epoch 2/4, loss \d", "\n".join(drawn))
    assert screen.getvalue().endswith("\r")  # the bar is wiped at the end


def test_a_real_terminal_is_recognized(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    termios = pytest.importorskip("termios", reason="this system has no pseudo-terminals")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with os.fdopen(theirs, "w", encoding="ascii") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        tiny_trainer([Progress(), Ticks(clock(progress), 0.2)]).fit(tiny_data(), epochs=3)
        monkeypatch.undo()
        os.set_blocking(ours, False)
        shown = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                shown += os.read(ours, 4096)
    os.close(ours)
    assert b"| 3/3 [" in shown
    assert b"epoch 2/3, loss " in shown


def test_a_file_gets_plain_lines_now_and_then(capfd: pytest.CaptureFixture[str], clock: Any) -> None:
    tiny_trainer([Progress(), Ticks(clock(progress), 1.0)]).fit(tiny_data(), epochs=25)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.sub(r"loss \S+", "loss L", err).splitlines() == [
        "epoch 10/25  step 11/25  loss L  1.1 steps/s  00:12 left",
        "epoch 20/25  step 21/25  loss L  1.1 steps/s  00:03 left",
    ]


def test_the_bar_is_redrawn_at_most_ten_times_a_second(terminal: Any, clock: Any) -> None:
    screen = terminal()
    plugins = [Progress(bar_seconds=0), Ticks(clock(progress), 1 / 128)]
    tiny_trainer(plugins).fit(tiny_data(), epochs=1280)
    assert 90 <= screen.getvalue().count("loss") <= 100  # in ten seconds


def test_a_loss_is_read_only_on_a_redraw(terminal: Any, clock: Any, operations: Any) -> None:
    screen = terminal()
    seen = operations()
    plugins = [seen, Progress(), Ticks(clock(progress), 1 / 128)]
    tiny_trainer(plugins).fit(tiny_data(), epochs=256)
    assert seen.counts["_local_scalar_dense"] == screen.getvalue().count("loss") > 10


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (2, 4), (3, 2), (5, 2)])
def test_the_total_counts_steps_not_batches(accumulate: int, steps: int, terminal: Any, clock: Any) -> None:
    screen = terminal()
    trainer = tiny_trainer([Progress(), Ticks(clock(progress), 1.0)])
    result = trainer.fit(tiny_data(), epochs=2, batch_size=2, accumulate=accumulate)
    assert result.steps == steps
    assert f" {steps}/{steps} [" in screen.getvalue()


def test_a_loader_that_does_not_know_its_length_has_no_total(
    terminal: Any, clock: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = terminal()
    loader = DataLoader(Stream(), batch_size=2)
    tiny_trainer([Progress(), Ticks(clock(progress), 1.0)]).fit(loader, epochs=2)
    assert "5step [" in screen.getvalue()


def test_the_plain_line_tells_no_time_left_without_a_total(capfd: pytest.CaptureFixture[str], clock: Any) -> None:
    trainer = tiny_trainer([Progress(line_seconds=4), Ticks(clock(progress), 1.0)])
    trainer.fit(DataLoader(Stream(), batch_size=2), epochs=2)
    assert re.fullmatch(r"epoch 1/2  step 5  loss \S+  1\.2 steps/s\n", capfd.readouterr().err)


def test_a_clock_that_stands_still_is_no_error(capfd: pytest.CaptureFixture[str], clock: Any) -> None:
    clock(progress)
    tiny_trainer([Progress(line_seconds=0)]).fit(tiny_data(), epochs=2)
    assert capfd.readouterr().err.count("step") == 4


def test_the_bar_is_closed_before_others_print_at_the_end(terminal: Any) -> None:
    screen = terminal()

    class Prints:
        def on_fit_end(self) -> None:
            screen.write("the end\n")

    tiny_trainer([Prints(), Progress()]).fit(tiny_data(), epochs=2)
    assert screen.getvalue().endswith("\rthe end\n")


def test_the_bar_is_closed_after_an_error_and_a_next_fit_has_a_new_one(terminal: Any, fails: Any) -> None:
    screen = terminal()
    failing = fails(epoch=1)
    trainer = tiny_trainer([Progress(), failing])
    with pytest.raises(RuntimeError):
        trainer.fit(tiny_data(), epochs=2)
    assert screen.getvalue().endswith("\r")
    failing.armed = False
    screen = terminal()
    trainer.fit(tiny_data(), epochs=3)
    assert "0/3" in screen.getvalue()
    assert screen.getvalue().endswith("\r")


def test_validation_and_evaluate_draw_nothing(terminal: Any, clock: Any) -> None:
    screen = terminal()

    class Slow:
        def on_batch_end(self, split: str) -> None:
            fake.now += split != "train"

    fake = clock(progress)
    trainer = tiny_trainer([Slow(), Progress()])
    trainer.evaluate(tiny_data(), batch_size=1)
    assert screen.getvalue() == ""
    trainer.fit(tiny_data(), tiny_data(), epochs=2)
    assert screen.getvalue().count("loss") == 1  # at the first step after the first validation


def test_it_writes_ascii_only(terminal: Any, clock: Any) -> None:
    screen = terminal()
    tiny_trainer([Progress(), Ticks(clock(progress), 1.0)]).fit(tiny_data(), epochs=9)
    assert screen.getvalue().isascii()


def test_a_loss_that_is_nan_is_shown(terminal: Any, clock: Any) -> None:
    screen = terminal()
    trainer: Trainer = tiny_trainer([Progress(), Ticks(clock(progress), 1.0)], on_nonfinite="continue")
    trainer.fit((torch.full((2, 3), torch.nan), torch.ones(2, 1)), epochs=2)
    assert "loss nan" in screen.getvalue()


def test_it_changes_no_bit_of_training(trained: Any, terminal: Any, clock: Any) -> None:
    screen = terminal()
    assert trained([Progress(), Ticks(clock(progress), 1.0)]) == trained([])
    assert "loss" in screen.getvalue()
