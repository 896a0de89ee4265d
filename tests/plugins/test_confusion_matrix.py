"""Which class was taken for which, counted over uneven batches as a hand-written loop counts."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from framework_plugins.confusion_matrix import ConfusionMatrix
from torch import Tensor, nn
from torch.nn import functional as F

from framework import DataError, Trainer, UsageError


def classes(samples: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 4, generator=generator), torch.randint(3, (samples,), generator=generator)


def trainer_of(plugin: Any, run_dir: Path | None = None, loss: Any = None) -> Trainer:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, loss or nn.CrossEntropyLoss(), optimizer, [plugin], device="cpu", run_dir=run_dir)


def by_hand(trainer: Trainer, data: tuple[Tensor, Tensor]) -> list[list[int]]:
    counts = [[0] * 3 for _ in range(3)]
    for scores, right in zip(trainer.predict(data[0]).tolist(), data[1].tolist(), strict=True):
        counts[right][scores.index(max(scores))] += 1
    return counts


def texts(path: Path) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", path.read_text("utf-8"))


@pytest.mark.parametrize("batch_size", [None, 1, 5, 23])
def test_it_counts_as_a_hand_written_loop(batch_size: int | None) -> None:
    plugin = ConfusionMatrix()
    trainer = trainer_of(plugin)
    val, test = classes(seed=1), classes(17, seed=2)
    trainer.fit(classes(), val, epochs=3, batch_size=batch_size)
    assert plugin.matrix["val"].tolist() == by_hand(trainer, val)
    trainer.evaluate(test, batch_size)
    assert plugin.matrix["test"].tolist() == by_hand(trainer, test)
    assert plugin.matrix["val"].sum() == 23
    assert "train" not in plugin.matrix


def test_a_second_pass_counts_anew() -> None:
    plugin = ConfusionMatrix()
    trainer = trainer_of(plugin)
    for _ in range(2):
        trainer.evaluate(classes(), 5)
        assert plugin.matrix["test"].sum() == 23


def test_an_evaluation_inside_of_an_epoch_loses_nothing_of_it() -> None:
    class Looks:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if split == "train" and trainer.step == 2:
                trainer.evaluate(classes(7), 3)

    plugins = [ConfusionMatrix(), ConfusionMatrix()]
    for extra, plugin in zip(([], [Looks()]), plugins, strict=True):
        trainer = trainer_of(plugin)
        Trainer(trainer.model, trainer.loss, trainer.optimizer, [plugin, *extra], device="cpu").fit(
            classes(), epochs=1, batch_size=5, shuffle=False
        )
    assert plugins[0].matrix["train"].sum() == 23
    assert torch.equal(plugins[0].matrix["train"], plugins[1].matrix["train"])
    assert plugins[1].matrix["test"].sum() == 7


def test_rows_that_are_padding_do_not_count() -> None:
    class Pads:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = min(trainer.samples, 2)

    plugin = ConfusionMatrix()
    trainer = trainer_of(plugin)
    padded = Trainer(trainer.model, trainer.loss, trainer.optimizer, [Pads(), plugin], device="cpu")
    padded.evaluate(classes(20), batch_size=5)
    assert plugin.matrix["test"].sum() == 8


def test_what_the_loss_ignores_does_not_count() -> None:
    for ignored in (-100, 1, 7):
        x, y = classes()
        y[:5] = ignored
        plugin = ConfusionMatrix()
        trainer = trainer_of(plugin, loss=nn.CrossEntropyLoss(ignore_index=ignored))
        trainer.evaluate((x, y), 4)
        kept = y != ignored
        assert plugin.matrix["test"].tolist() == by_hand(trainer, (x[kept], y[kept]))


def test_a_loss_that_is_a_function_may_ignore_as_well() -> None:
    x, y = classes()
    y[:5] = -1
    plugin = ConfusionMatrix()
    trainer = trainer_of(plugin, loss=functools.partial(F.cross_entropy, ignore_index=-1))
    trainer.evaluate((x, y), 4)
    assert plugin.matrix["test"].tolist() == by_hand(trainer, (x[5:], y[5:]))


def test_of_an_epoch_that_was_stopped_nothing_is_counted(tmp_path: Path) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 8:
                trainer.stop("enough")

    plugin = ConfusionMatrix()
    one = trainer_of(plugin)
    trainer = Trainer(one.model, one.loss, one.optimizer, [plugin, Stops()], device="cpu", run_dir=tmp_path)
    trainer.fit(classes(), epochs=3, batch_size=4)  # six batches an epoch
    assert plugin.matrix["train"].sum() == 23
    (tmp_path / "confusion_train.svg").unlink()
    trainer.fit(classes(), epochs=1, batch_size=1)  # not even one epoch
    assert list(tmp_path.glob("*.svg")) == []
    trainer.fit(classes(), epochs=1, batch_size=4)  # counts anew
    assert plugin.matrix["train"].sum() == 23


@pytest.mark.parametrize("names", [np.array(["cat", "dog", "elk"]), (3, 5, 8), ["$a", "b_1", "c"]])
def test_names_may_come_from_the_data(names: Any, tmp_path: Path) -> None:
    trainer_of(ConfusionMatrix(class_names=names), tmp_path).evaluate(classes())
    assert str(names[1]) in texts(tmp_path / "confusion_test.svg")


def test_the_counts_of_all_processes_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer.sum adds over processes; here a trainer that stands for two with the same data."""

    class Two(Trainer):
        def sum(self, value: Tensor) -> Tensor:
            return super().sum(value) * 2

    plugin = ConfusionMatrix()
    one = trainer_of(plugin)
    trainer = Two(one.model, one.loss, one.optimizer, [plugin], device="cpu")
    trainer.evaluate(classes(), 5)
    assert plugin.matrix["test"].sum() == 46


def test_without_a_validation_set_the_last_epoch_is_drawn(tmp_path: Path) -> None:
    plugin = ConfusionMatrix()
    trainer = trainer_of(plugin, tmp_path)
    trainer.fit(classes(), epochs=3, batch_size=5)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["confusion_train.svg"]
    assert plugin.matrix["train"].sum() == 23


@pytest.mark.parametrize("names", [["cat", "dog"], ["cat", "dog", "elk", "fox"]])
def test_as_many_names_as_classes_are_needed(names: list[str]) -> None:
    trainer = trainer_of(ConfusionMatrix(class_names=names))
    with pytest.raises(UsageError, match=f"confusion_matrix has {len(names)} class_names; the model has 3 classes"):
        trainer.fit(classes(), epochs=5)
    assert trainer.epoch == 0


def test_both_pictures_are_drawn_with_the_counts_and_the_names(tmp_path: Path) -> None:
    plugin = ConfusionMatrix(class_names=["cat", "dog", "elephant"])
    trainer = trainer_of(plugin, tmp_path)
    trainer.fit(classes(), classes(seed=1), epochs=1, batch_size=5)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["confusion_val.svg"]
    trainer.evaluate(classes(seed=2))
    for split in ("val", "test"):
        said = texts(tmp_path / f"confusion_{split}.svg")
        matrix = plugin.matrix[split]
        assert said.count("elephant") == 2
        numbers = [str(number) for number in matrix.flatten().tolist() if number]
        assert sorted(text for text in said if text.isdigit()) == sorted(numbers)
        right = int(matrix.trace())
        assert f"{split}: {right} of 23 right ({right / 23:.2%})" in [text.replace(r"\%", "%") for text in said]


def test_nothing_is_drawn_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = trainer_of(ConfusionMatrix())
    trainer.fit(classes(), classes(), epochs=1)
    trainer.evaluate(classes())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("x", "y"),
    [(torch.randn(6, 4), torch.rand(6, 3)), (torch.randn(6, 2, 4), torch.randint(3, (6, 2)))],
    ids=["probabilities", "a class for each of several places"],
)
def test_what_is_no_class_is_refused_at_the_first_batch(x: Tensor, y: Tensor) -> None:
    class Loss(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return output.square().mean()

    trainer = trainer_of(ConfusionMatrix(), loss=Loss())
    with pytest.raises(DataError, match=r"confusion_matrix needs scores of shape \(N, C\) and class numbers") as caught:
        trainer.fit((x, y), epochs=5)
    assert trainer.epoch == 0
    assert any("hook on_batch_end" in note for note in caught.value.__notes__)


def test_two_instances_stay_apart() -> None:
    first, second = ConfusionMatrix(name="first"), ConfusionMatrix(name="second")
    trainer = trainer_of(first)
    both = Trainer(trainer.model, trainer.loss, trainer.optimizer, [first, second], device="cpu")
    both.evaluate(classes())
    assert torch.equal(first.matrix["test"], second.matrix["test"])
    assert first.matrix["test"] is not second.matrix["test"]


def test_it_changes_no_bit_of_training() -> None:
    def trained(plugins: list[Any]) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, device="cpu")
        trainer.fit(classes(), classes(seed=1), epochs=3, batch_size=4)
        return [*model.weight.flatten().tolist(), *torch.get_rng_state().tolist()]

    assert trained([ConfusionMatrix()]) == trained([])


@pytest.mark.parametrize("counted", [2, 100])
def test_samples_that_are_counted_in_another_way_are_no_padding(counted: int) -> None:
    plugin = ConfusionMatrix()
    one = trainer_of(plugin)
    trainer = Trainer(one.model, one.loss, one.optimizer, [plugin], "cpu", samples=lambda batch: counted)
    trainer.evaluate(classes(), 5)
    assert plugin.matrix["test"].tolist() == by_hand(trainer, classes())


def test_what_is_evaluated_inside_of_a_fit_is_counted_and_not_drawn(tmp_path: Path) -> None:
    class Looks:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.evaluate(classes(7), 3)

    plugin = ConfusionMatrix()
    one = trainer_of(plugin)
    trainer = Trainer(one.model, one.loss, one.optimizer, [plugin, Looks()], "cpu", run_dir=tmp_path)
    trainer.fit(classes(), epochs=2, batch_size=5)
    assert plugin.matrix["test"].sum() == 7
    assert [path.name for path in tmp_path.glob("*.svg")] == ["confusion_train.svg"]
    trainer.evaluate(classes(7), 3)
    assert (tmp_path / "confusion_test.svg").is_file()


def test_a_test_set_that_a_later_plugin_evaluates_at_the_end_of_a_fit_is_drawn(tmp_path: Path) -> None:
    class Tests:
        def on_fit_end(self, trainer: Trainer) -> None:
            trainer.evaluate(classes(7))

    one = trainer_of(ConfusionMatrix())
    plugins = [ConfusionMatrix(), Tests()]
    Trainer(one.model, one.loss, one.optimizer, plugins, "cpu", run_dir=tmp_path).fit(classes(), epochs=1)
    assert (tmp_path / "confusion_test.svg").is_file()


def test_after_a_fit_that_failed_a_test_set_is_drawn(tmp_path: Path, fails: Any) -> None:
    one = trainer_of(ConfusionMatrix())
    plugins = [ConfusionMatrix(), fails(epoch=1)]
    trainer = Trainer(one.model, one.loss, one.optimizer, plugins, "cpu", run_dir=tmp_path)
    with pytest.raises(RuntimeError):
        trainer.fit(classes(), epochs=3)
    trainer.evaluate(classes(7))
    assert [path.name for path in tmp_path.glob("*.svg")] == ["confusion_test.svg"]
