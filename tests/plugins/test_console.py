from __future__ import annotations

import math
import re
from typing import Any

import pytest
from framework_plugins import console
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.console import Console
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from framework import Result, Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """What a fit of a tiny model prints, line by line."""

    def fit(*plugins: Any, epochs: int = 3, val: Any = None, **options: Any) -> list[str]:
        tiny_trainer(plugins).fit(tiny_data(), val, epochs=epochs, **options)
        return capsys.readouterr().out.splitlines()

    return fit


def rows(lines: list[str]) -> list[str]:
    """The lines of the table below its header."""
    start = next(number for number, line in enumerate(lines) if line.lstrip().startswith("epoch "))
    end = next((number for number, line in enumerate(lines) if line.startswith("stopped")), len(lines))
    return lines[start + 1 : end]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, [0]),
        (7, [*range(7)]),
        (20, [*range(20)]),
        (21, [*range(21)]),
        (100, [*range(0, 100, 5), 99]),
        (1001, [*range(0, 1001, 50)]),
        (100000, [*range(0, 100000, 5000), 99999]),
    ],
)
def test_however_long_the_run_the_table_has_about_20_lines_with_the_first_and_the_last_epoch(
    epochs: int, expected: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    table, trainer = Console(), tiny_trainer()
    trainer.epochs = epochs
    table.on_fit_start(trainer)
    for epoch in range(epochs):
        table.on_epoch_end(epoch, {"epoch": epoch, "step": epoch + 1, "train_loss": 0.5})
    end = table.on_fit_end(trainer, Result(epochs, epochs, None, [], 0.0, None))
    next(end)
    printed = rows(capsys.readouterr().out.splitlines())
    assert [int(line.split()[0]) for line in printed] == expected
    assert len(printed) <= 22


def test_rows_is_about_how_many_lines_there_are(told: Any) -> None:
    assert [int(line.split()[0]) for line in rows(told(Console(rows=4), epochs=50))] == [0, 10, 20, 30, 40, 49]
    with pytest.raises(UsageError, match="rows must be 1 or more, got 0"):
        Console(rows=0)


def test_the_whole_of_a_short_run(told: Any, clock: Any) -> None:
    clock(console)
    lines = told(Console(), epochs=2, batch_size=2, shuffle=False, val=tiny_data(4))
    assert lines[:7] == [
        "data      5 samples in 3 batches of 2, from memory",
        "val       4 samples in 2 batches of 2, from memory",
        "model     Linear, 4 parameters in 1 layer (0 hidden)",
        "device    cpu",
        "plugins   console",
        "",
        "epoch    train_loss      val_loss  seconds",
    ]
    assert re.fullmatch(r"    0      \d\.\d{6}      \d\.\d{6}      0\.0", lines[7])
    assert lines[8].startswith("    1  ")
    assert re.fullmatch(r"stopped   after 2 epochs, 6 steps, \d+\.\d s", lines[9])
    assert re.fullmatch(r"result    train_loss \d\.\d{6}  val_loss \d\.\d{6}", lines[10])
    assert len(lines) == 11


def test_the_figures_are_those_of_the_history(capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_trainer([Console()]).fit(tiny_data(), epochs=3)
    printed = [float(line.split()[1]) for line in rows(capsys.readouterr().out.splitlines())]
    assert printed == [round(row["train_loss"], 6) for row in result.history]


def test_the_figures_of_other_plugins_are_columns_too(told: Any, scripted: Any) -> None:
    lines = told(scripted([1, 2, 3], "a_figure_of_a_long_name"), Console(), val=tiny_data())
    assert lines[5 + 1].split() == ["epoch", "train_loss", "a_figure_of_a_long_name", "val_loss", "seconds"]


@pytest.mark.parametrize(
    "value", [0, 0.0, 1, 1.5, -1.5, 29661.800781, -29661.800781, 123456.789, 1e-5, -1e-5, 1e300, -1e-300,
              math.inf, -math.inf, math.nan],
)  # fmt: skip
def test_columns_are_aligned_whatever_the_figures(value: float, told: Any, scripted: Any) -> None:
    lines = told(scripted([value, 0.25, value], "x"), scripted([1.0] * 3, "y_figure", "other"), Console())
    assert len({len(line) for line in lines[5:9]}) == 1
    assert float(lines[6].split()[2]) == pytest.approx(value, rel=1e-4, abs=1e-300, nan_ok=True)


def test_columns_are_aligned_however_many_epochs_there_are(capsys: pytest.CaptureFixture[str], clock: Any) -> None:
    clock(console)
    table, trainer = Console(), tiny_trainer()
    trainer.epochs = 2_000_000
    table.on_fit_start(trainer)
    for epoch in (0, 1_000_000):
        table.on_epoch_end(epoch, {"epoch": epoch, "step": 1, "train_loss": 0.5})
    header, *lines = capsys.readouterr().out.splitlines()[-3:]
    assert {len(line) for line in lines} == {len(header)}


def test_a_stop_is_told_with_its_reason_and_the_last_epoch_is_in_the_table(told: Any) -> None:
    class Stops:
        def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
            if epoch == 13:
                trainer.stop("enough is enough")

    lines = told(Stops(), Console(), epochs=1001)
    assert [line.split()[0] for line in rows(lines)] == ["0", "13"]
    assert re.fullmatch(r"stopped   enough is enough; 14 epochs, 14 steps, \d+\.\d s", lines[-2])


def test_a_run_of_one_step_is_told_in_the_singular(told: Any) -> None:
    assert "after 1 epoch, 1 step, " in told(Console(), epochs=1)[-2]


def test_a_stop_before_the_end_of_the_first_epoch_has_no_result(told: Any) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.stop("at once")

    lines = told(Stops(), Console(), batch_size=2)
    assert re.fullmatch(r"stopped   at once; 0 epochs, 1 step, \d+\.\d s", lines[-1])


def test_the_best_epoch_is_told_where_it_is_not_the_last(told: Any, scripted: Any) -> None:
    lines = told(scripted([3.0, 1.0, 2.0]), Console(), BestCheckpoint("score_loss"))
    assert re.fullmatch(r"result    train_loss \S+  score_loss 2\.000000", lines[-2])
    assert re.fullmatch(r"best      train_loss \S+  score_loss 1\.000000 in epoch 1", lines[-1])
    lines = told(scripted([3.0, 2.0, 1.0]), Console(), BestCheckpoint("score_loss"))
    assert lines[-1].startswith("result ")


def test_what_others_print_at_the_end_stands_between_the_table_and_the_result(told: Any) -> None:
    class Prints:
        def on_fit_end(self) -> None:
            print("prediction 42")

    names = [line.split()[0] for line in told(Prints(), Console())[-4:]]
    assert names == ["2", "prediction", "stopped", "result"]


def test_after_an_error_the_last_complete_epoch_is_in_the_table_and_a_next_fit_starts_anew(
    capsys: pytest.CaptureFixture[str], fails: Any
) -> None:
    failing = fails(epoch=7)
    trainer = tiny_trainer([Console(), failing])
    with pytest.raises(RuntimeError):
        trainer.fit(tiny_data(), epochs=1001)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in rows(lines)] == ["0", "6"]
    failing.armed = False
    trainer.fit(tiny_data(), epochs=2)
    assert [line.split()[0] for line in rows(capsys.readouterr().out.splitlines())] == ["0", "1"]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(zip(*tiny_data(), strict=True)))


@pytest.mark.parametrize(
    ("loader", "described"),
    [
        (tiny_data(), "5 samples, all in one batch"),
        (tiny_data(1), "1 sample, all in one batch"),
        (DataLoader(TensorDataset(*tiny_data()), batch_size=8), "5 samples in 1 batch of 8, from memory"),
        (
            DataLoader(TensorDataset(*tiny_data()), batch_sampler=BatchSampler(SequentialSampler(range(5)), 2, False)),
            "5 samples in 3 batches, from memory",
        ),
        (
            DataLoader(Stream(), batch_size=2),
            "Stream of unknown length, by torch's DataLoader: the data set is a Stream, an IterableDataset",
        ),
    ],
)
def test_the_data_is_told_as_far_as_it_is_known(
    loader: Any, described: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_trainer([Console()]).fit(loader, epochs=1)
    assert capsys.readouterr().out.splitlines()[0] == f"data      {described}"


def test_evaluate_outside_a_fit_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_trainer([Console()]).evaluate(tiny_data())
    assert capsys.readouterr().out == ""


def test_its_own_words_are_ascii(told: Any) -> None:
    assert "".join(told(Console(), BestCheckpoint(), val=tiny_data())).isascii()


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    assert trained([Console()]) == trained([])
