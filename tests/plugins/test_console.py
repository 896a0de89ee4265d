from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins import console
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)  # fmt: skip

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
    assert lines[:8] == [
        "data      5 samples in 3 batches of 2, from memory",
        "val       4 samples in 2 batches of 2, from memory",
        "model     Linear, 4 parameters in 1 layer (0 hidden)",
        "device    cpu",
        "baseline  always the mean: val_loss 0.751872",
        "plugins   console",
        "",
        "epoch    train_loss      val_loss  seconds",
    ]
    assert re.fullmatch(r"    0      \d\.\d{6}      \d\.\d{6}      0\.0", lines[8])
    assert lines[9].startswith("    1  ")
    assert re.fullmatch(r"stopped   after 2 epochs, 6 steps, \d+\.\d s", lines[10])
    assert re.fullmatch(r"result    train_loss \d\.\d{6}  val_loss \d\.\d{6}", lines[11])
    assert len(lines) == 12


def test_the_figures_are_those_of_the_history(capsys: pytest.CaptureFixture[str]) -> None:
    result = tiny_trainer([Console()]).fit(tiny_data(), epochs=3)
    printed = [float(line.split()[1]) for line in rows(capsys.readouterr().out.splitlines())]
    assert printed == [round(row["train_loss"], 6) for row in result.history]


def test_the_figures_of_other_plugins_are_columns_too(told: Any, scripted: Any) -> None:
    lines = told(scripted([1, 2, 3], "a_figure_of_a_long_name"), Console(), val=tiny_data())
    assert next(line for line in lines if line.startswith("epoch")).split() == [
        "epoch",
        "train_loss",
        "a_figure_of_a_long_name",
        "val_loss",
        "seconds",
    ]


@pytest.mark.parametrize(
    "value", [0, 0.0, 1, 1.5, -1.5, 29661.800781, -29661.800781, 123456.789, 1e-5, -1e-5, 1e300, -1e-300,
              math.inf, -math.inf, math.nan],
)  # fmt: skip
def test_columns_are_aligned_whatever_the_figures(value: float, told: Any, scripted: Any) -> None:
    lines = told(scripted([value, 0.25, value], "x"), scripted([1.0] * 3, "y_figure", "other"), Console())
    header = next(number for number, line in enumerate(lines) if line.startswith("epoch"))
    assert len({len(line) for line in lines[header : header + 4]}) == 1
    assert float(lines[header + 1].split()[2]) == pytest.approx(value, rel=1e-4, abs=1e-300, nan_ok=True)


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


# ------------------------------------------------------------------------------------------------------ the baseline

CLASSES = torch.tensor([2, 0, 2, 1, 2, 0])
NUMBERS = torch.tensor([[0.0, 10.0], [2.0, 30.0], [7.0, 20.0], [3.0, 0.0]])
ANSWERS = torch.tensor([[1.0], [1.0], [0.0], [1.0], [0.0], [1.0]])


@pytest.fixture
def baseline(capsys: pytest.CaptureFixture[str]) -> Any:
    """The line of a fit that is told before its first step, or None."""

    def fit(loss: Any, train: Any, val: Any = None, outputs: int = 3, plugins: Any = (), **sizes: Any) -> str | None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(2, outputs))
        if loss in (F.binary_cross_entropy,) or isinstance(loss, nn.BCELoss):
            model.append(nn.Sigmoid())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        Trainer(model, loss, optimizer, plugins=[Console(), *plugins], device="cpu").fit(train, val, **sizes)
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("baseline  ")]
        assert len(told) <= 1
        return told[0].removeprefix("baseline  ") if told else None

    return fit


def pair(y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(len(y), 2), y


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_of_classes_it_is_the_most_frequent_one_and_a_uniform_guess(loss: Any, baseline: Any) -> None:
    uniform = F.cross_entropy(torch.zeros(6, 3), CLASSES)
    expected = f"always class 2: train_accuracy 0.500000; a uniform guess of 3 classes: train_loss {uniform:.6f}"
    assert baseline(loss, pair(CLASSES)) == expected


def test_class_weights_do_not_change_what_a_uniform_guess_gets(baseline: Any) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0]))
    told = baseline(loss, pair(CLASSES))
    assert told.endswith(f"train_loss {loss(torch.zeros(6, 3), CLASSES):.6f}")


def test_what_the_loss_ignores_is_no_class_and_no_answer(baseline: Any) -> None:
    y = torch.tensor([-100, 1, -100, -100, 1, 0])
    assert baseline(nn.CrossEntropyLoss(), pair(y)).startswith("always class 1: train_accuracy 0.666667; ")
    y = torch.tensor([2, 1, 2, 2, 1, 0])
    told = baseline(nn.CrossEntropyLoss(ignore_index=2), pair(y))
    assert told.startswith("always class 1: train_accuracy 0.666667; a uniform guess of 2 classes")


def test_it_is_learned_from_the_training_targets_and_judged_on_the_validation_set(baseline: Any) -> None:
    told = baseline(nn.CrossEntropyLoss(), pair(CLASSES), pair(torch.tensor([0, 0, 2, 1])))
    assert told == "always class 2: val_accuracy 0.250000; a uniform guess of 3 classes: val_loss 1.098612"
    told = baseline(nn.CrossEntropyLoss(), pair(torch.tensor([0, 1, 1])), pair(CLASSES))
    assert told == "always class 1: val_accuracy 0.166667; a uniform guess of 3 classes: val_loss 1.098612"
    val = NUMBERS[1:3]
    loss = F.mse_loss(NUMBERS.mean(dim=0).expand_as(val), val)
    assert baseline(nn.MSELoss(), pair(NUMBERS), pair(val), outputs=2) == f"always the mean: val_loss {loss:.6f}"


@pytest.mark.parametrize(
    ("loss", "what", "guess"),
    [
        (nn.MSELoss(), "mean", NUMBERS.mean(dim=0)),
        (F.mse_loss, "mean", NUMBERS.mean(dim=0)),
        (nn.L1Loss(), "median", NUMBERS.median(dim=0).values),  # the constant of the least absolute error
    ],
)
def test_of_numbers_it_is_the_best_constant_of_each_output(loss: Any, what: str, guess: Tensor, baseline: Any) -> None:
    value = loss(guess.expand_as(NUMBERS), NUMBERS)
    assert baseline(loss, pair(NUMBERS), outputs=2) == f"always the {what}: train_loss {value:.6f}"


@pytest.mark.parametrize(
    "loss", [nn.BCELoss(), nn.BCEWithLogitsLoss(), F.binary_cross_entropy, F.binary_cross_entropy_with_logits]
)
def test_of_yes_and_no_it_is_the_more_frequent_answer_and_the_loss_of_its_rate(loss: Any, baseline: Any) -> None:
    rate = ANSWERS.mean()
    entropy = -(rate * rate.log() + (1 - rate) * (1 - rate).log())
    expected = f"always class 1: train_accuracy 0.666667; always 0.6667 for class 1: train_loss {entropy:.6f}"
    assert baseline(loss, pair(ANSWERS), outputs=1) == expected


def test_several_yes_and_no_each_have_an_answer_of_their_own(baseline: Any) -> None:
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    entropy = F.binary_cross_entropy(y.mean(dim=0).expand_as(y), y)
    assert baseline(nn.BCELoss(), pair(y), outputs=2) == (
        "always the more frequent class of each output: train_accuracy 0.750000; "
        f"always the rates of class 1: train_loss {entropy:.6f}"
    )


def test_an_answer_that_is_always_the_same_has_a_loss_as_well(baseline: Any) -> None:
    told = baseline(nn.BCEWithLogitsLoss(), pair(torch.ones(4, 1)), outputs=1)
    assert told == "always class 1: train_accuracy 1.000000; always 1 for class 1: train_loss 1.0000e-06"


WHOLE = TensorDataset(torch.ones(12, 2), torch.cat([CLASSES, torch.zeros(6, dtype=torch.long)]))


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        (pair(CLASSES), {"batch_size": 2}),
        (TensorDataset(*pair(CLASSES)), {"batch_size": 4, "drop_last": True}),
        (TensorDataset(*pair(CLASSES)), {}),
        (Subset(WHOLE, range(6)), {"batch_size": 2}),
        (random_split(Subset(WHOLE, [5, 4, 3, 2, 1, 0]), [6, 0])[0], {"batch_size": 2, "accumulate": 2}),
        (DataLoader(TensorDataset(*pair(CLASSES)), batch_size=2, shuffle=True), {}),
    ],
)
@pytest.mark.filterwarnings("ignore:Length of split at index 1 is 0")
def test_targets_that_lie_in_memory_are_found(data: Any, sizes: dict[str, Any], baseline: Any) -> None:
    assert baseline(nn.CrossEntropyLoss(), data, **sizes).startswith("always class 2: train_accuracy 0.500000; ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in a folder a class: one of class 0 and three of class 1."""
    from PIL import Image

    for name, count in (("cats", 1), ("dogs", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (2, 1)).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_the_targets_of_torchvision_are_found_without_opening_an_image(
    workers: int, folder: Path, baseline: Any
) -> None:
    from PIL import Image
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import ToTensor

    data = ImageFolder(folder, ToTensor(), loader=Image.open)
    sizes = {"batch_size": 2, "num_workers": workers}
    assert baseline(nn.CrossEntropyLoss(), data, **sizes).startswith("always class 1: train_accuracy 0.750000; ")
    data.target_transform = lambda target: 2 - target
    if not workers:
        assert baseline(nn.CrossEntropyLoss(), data, **sizes) is None


class Own(Dataset[Any]):
    """A data set of the user's, which says how often it was asked."""

    targets, asked = CLASSES, 0

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> Any:
        self.asked += 1
        return torch.ones(2), CLASSES[row]


def test_a_data_set_of_ones_own_is_not_asked_for_it(baseline: Any) -> None:
    data = Own()
    assert baseline(nn.CrossEntropyLoss(), data, batch_size=2, loader="torch") is None
    assert data.asked == 6


class Triples:
    def compute_loss(self, output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output, batch[1]) * 2


def own_loss(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y)


LOADED = TensorDataset(*pair(CLASSES))
TWICE = DataLoader(LOADED, batch_size=2, sampler=WeightedRandomSampler([1.0] * 6, 6))


@pytest.mark.parametrize(
    ("loss", "data", "options"),
    [
        (own_loss, pair(CLASSES), {}),
        (nn.CrossEntropyLoss(), TWICE, {}),
        (nn.CrossEntropyLoss(), DataLoader(LOADED, batch_size=2, sampler=SequentialSampler(range(3))), {}),
        (nn.CrossEntropyLoss(), DataLoader(LOADED, batch_size=2, collate_fn=lambda rows: default_collate(rows)), {}),
        (nn.CrossEntropyLoss(), pair(CLASSES), {"plugins": [Triples()]}),
        (nn.CrossEntropyLoss(), pair(F.one_hot(CLASSES).float()), {}),
        (nn.CrossEntropyLoss(reduction="sum"), pair(CLASSES), {}),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])), pair(ANSWERS), {"outputs": 1}),
        (nn.BCEWithLogitsLoss(weight=torch.ones(6, 1)), pair(ANSWERS), {"outputs": 1}),
    ],
)
def test_where_it_cannot_be_known_there_is_none(loss: Any, data: Any, options: Any, baseline: Any) -> None:
    assert baseline(loss, data, **options) is None


def test_more_targets_than_a_moment_is_enough_for_are_left_alone(
    baseline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "MOST", 5)
    assert baseline(nn.CrossEntropyLoss(), pair(CLASSES)) is None


def test_a_uniform_guess_has_no_loss_of_its_own_where_labels_are_smoothed_with_weights(baseline: Any) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0]), label_smoothing=0.1)
    assert baseline(loss, pair(CLASSES)) == "always class 2: train_accuracy 0.500000"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_numbers_that_differ_little_lose_nothing(dtype: torch.dtype, baseline: Any) -> None:
    y = (2.0**23 + torch.tensor([[1.0], [2.0], [5.0]])).to(dtype)
    model = nn.Linear(2, 1, dtype=dtype)
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters()), device="cpu")
    trainer.loaders = {"train": DataLoader(TensorDataset(torch.ones(3, 2), y))}
    assert console._baseline(trainer) == f"always the mean: train_loss {26 / 9:.6f}"
