"""The images with the largest losses are those that a hand-written loop finds."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from framework_plugins.top_losses import TopLosses
from torch import Tensor, nn
from torch.nn import functional as F

from framework import DataError, Trainer, UsageError


def images(*shape: int, samples: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, *shape, generator=generator), torch.randint(3, (samples,), generator=generator)


def trainer_of(plugin: Any, inputs: int = 16, run_dir: Path | None = None) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, [plugin], device="cpu", run_dir=run_dir)


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_it_keeps_the_largest_losses_of_a_pass(batch_size: int | None) -> None:
    plugin = TopLosses(count=4)
    trainer = trainer_of(plugin)
    x, y = images(4, 4)
    trainer.evaluate((x, y), batch_size)
    scores = trainer.predict(x)
    losses = F.cross_entropy(scores, y, reduction="none")
    order = losses.argsort(descending=True)[:4]
    found, kept, right, answer, sure = plugin.worst["test"]
    torch.testing.assert_close(found, losses[order])
    assert torch.equal(kept, x[order])
    assert torch.equal(right, y[order])
    assert torch.equal(answer, scores[order].argmax(dim=1))
    torch.testing.assert_close(sure, scores[order].softmax(dim=1).max(dim=1).values)


def test_fewer_samples_than_asked_for_are_all_kept() -> None:
    plugin = TopLosses(count=100)
    trainer_of(plugin).evaluate(images(4, 4), 5)
    assert len(plugin.worst["test"][0]) == 23


def test_an_evaluation_inside_of_an_epoch_loses_nothing_of_it() -> None:
    class Looks:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if split == "train" and trainer.step == 2:
                trainer.evaluate(images(4, 4, samples=7, seed=1), 3)

    plugins = [TopLosses(count=23), TopLosses(count=23)]
    for extra, plugin in zip(([], [Looks()]), plugins, strict=True):
        trainer = trainer_of(plugin)
        Trainer(trainer.model, trainer.loss, trainer.optimizer, [plugin, *extra], device="cpu").fit(
            images(4, 4), epochs=1, batch_size=5, shuffle=False
        )
    assert len(plugins[0].worst["train"][0]) == 23
    assert torch.equal(plugins[0].worst["train"][0], plugins[1].worst["train"][0])


def test_of_a_fit_the_last_pass_over_the_validation_set_counts(tmp_path: Path) -> None:
    plugin = TopLosses(count=3, class_names=["cat", "dog", "elk"])
    trainer = trainer_of(plugin, run_dir=tmp_path)
    val = images(4, 4, seed=1)
    trainer.fit(images(4, 4), val, epochs=3, batch_size=4)
    losses = F.cross_entropy(trainer.predict(val[0]), val[1], reduction="none")
    torch.testing.assert_close(plugin.worst["val"][0], losses.sort(descending=True).values[:3])
    said = " ".join(re.findall(r"<!-- (.*?) -->", (tmp_path / "top_losses_val.svg").read_text("utf-8"), re.DOTALL))
    assert "val: the 3 largest losses" in said
    assert len(re.findall(r"(cat|dog|elk), taken for\s+(cat|dog|elk)", said)) == 3


@pytest.mark.parametrize("shape", [(16,), (4, 4), (1, 4, 4), (3, 2, 2)])
def test_images_of_every_usual_shape_are_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    inputs = torch.Size(shape).numel()
    trainer = trainer_of(TopLosses(count=7), inputs, tmp_path)
    trainer.evaluate(images(*shape))
    assert (tmp_path / "top_losses_test.svg").read_text("utf-8").count("<image") == 7


@pytest.mark.parametrize("shape", [(15,), (2, 4, 4), (1, 1, 4, 4)])
def test_what_is_no_image_is_refused_at_the_first_batch(shape: tuple[int, ...]) -> None:
    trainer = trainer_of(TopLosses(), torch.Size(shape).numel())
    with pytest.raises(DataError, match=rf"top_losses draws images.*; x is \(1, {', '.join(map(str, shape))}"):
        trainer.fit(images(*shape), epochs=5)
    assert trainer.epoch == 0


def test_an_x_of_several_parts_is_refused_at_the_first_batch() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            return self.linear(x["image"])

    x, y = images(16)
    model = First()
    trainer = Trainer(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters()), [TopLosses()], device="cpu")
    with pytest.raises(DataError, match=r"top_losses draws images.*; x is dict"):
        trainer.fit(({"image": x, "age": y}, y), epochs=5)


def test_targets_that_are_no_classes_are_refused() -> None:
    x, _ = images(4, 4)
    trainer = trainer_of(TopLosses())
    with pytest.raises(DataError, match="top_losses needs scores"):
        trainer.fit((x, torch.rand(23, 3).softmax(dim=1)), epochs=1)


def test_rows_that_are_padding_are_not_kept() -> None:
    class Pads:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = min(trainer.samples, 2)

    plugin = TopLosses(count=100)
    trainer = trainer_of(plugin)
    padded = Trainer(trainer.model, trainer.loss, trainer.optimizer, [Pads(), plugin], device="cpu")
    x, y = images(4, 4, samples=10)
    padded.evaluate((x, y), batch_size=5)
    real = torch.tensor([0, 1, 5, 6])
    losses = F.cross_entropy(trainer.predict(x), y, reduction="none")[real]
    torch.testing.assert_close(plugin.worst["test"][0], losses.sort(descending=True).values)


def test_without_a_validation_set_those_of_the_last_epoch_are_drawn(tmp_path: Path) -> None:
    plugin = TopLosses(count=5)
    trainer = trainer_of(plugin, run_dir=tmp_path)
    trainer.fit(images(4, 4), epochs=2, batch_size=4)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["top_losses_train.svg"]
    trainer.fit(images(4, 4), images(4, 4, seed=1), epochs=1)
    assert (tmp_path / "top_losses_val.svg").is_file()


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("ignored", [-100, -1, 0, 7])
def test_what_the_loss_ignores_has_no_loss(ignored: int, batch_size: int | None, tmp_path: Path) -> None:
    plugin = TopLosses(count=100, class_names=["cat", "dog", "elk"])
    x, y = images(4, 4)
    y[:20] = ignored
    first = trainer_of(plugin)
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    trainer = Trainer(first.model, loss, first.optimizer, [plugin], device="cpu", run_dir=tmp_path)
    trainer.evaluate((x, y), batch_size)
    kept = y != ignored
    losses = F.cross_entropy(trainer.predict(x[kept]), y[kept], reduction="none")
    torch.testing.assert_close(plugin.worst["test"][0], losses.sort(descending=True).values)
    assert (tmp_path / "top_losses_test.svg").is_file()


def test_a_loss_that_is_a_function_may_ignore_as_well(tmp_path: Path) -> None:
    plugin = TopLosses(count=100)
    x, y = images(4, 4)
    first = trainer_of(plugin)
    loss = functools.partial(F.cross_entropy, ignore_index=-1)
    trainer = Trainer(first.model, loss, first.optimizer, [plugin], device="cpu", run_dir=tmp_path)
    trainer.evaluate((x, torch.where(y == 1, -1, y)), 5)
    assert len(plugin.worst["test"][0]) == int((y != 1).sum())


def test_where_everything_is_ignored_nothing_is_drawn(tmp_path: Path) -> None:
    class Zero(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return output.sum() * 0

    first = trainer_of(TopLosses())
    trainer = Trainer(first.model, Zero(), first.optimizer, [TopLosses()], device="cpu", run_dir=tmp_path)
    x, y = images(4, 4)
    trainer.evaluate((x, torch.full_like(y, -100)))
    assert list(tmp_path.iterdir()) == []


def test_of_an_epoch_that_was_stopped_nothing_is_drawn(tmp_path: Path) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 8:
                trainer.stop("enough")

    plugin = TopLosses(count=100)
    first = trainer_of(plugin)
    trainer = Trainer(first.model, first.loss, first.optimizer, [plugin, Stops()], device="cpu", run_dir=tmp_path)
    trainer.fit(images(4, 4), epochs=3, batch_size=4)  # six batches an epoch
    assert len(plugin.worst["train"][0]) == 23
    assert [path.name for path in tmp_path.glob("*.svg")] == ["top_losses_train.svg"]
    (tmp_path / "top_losses_train.svg").unlink()
    trainer.fit(images(4, 4), epochs=1, batch_size=1)  # not even one epoch
    assert list(tmp_path.glob("*.svg")) == []
    trainer.fit(images(4, 4), epochs=1, batch_size=4)  # begins anew
    assert len(plugin.worst["train"][0]) == 23


@pytest.mark.parametrize("names", [np.array(["cat", "dog", "elk"]), (3, 5, 8), ["$a", "b_1", "c"]])
def test_names_may_come_from_the_data(names: Any, tmp_path: Path) -> None:
    trainer_of(TopLosses(class_names=names), run_dir=tmp_path).evaluate(images(4, 4))
    assert (tmp_path / "top_losses_test.svg").is_file()


def test_as_many_names_as_classes_are_needed() -> None:
    trainer = trainer_of(TopLosses(class_names=["cat", "dog"]))
    with pytest.raises(UsageError, match="top_losses has 2 class_names; the model has 3 classes"):
        trainer.fit(images(4, 4), epochs=5)
    assert trainer.epoch == 0


@pytest.mark.parametrize("count", [0, -1, 1.5, "3"])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(UsageError, match="count must be a whole number from 1 up"):
        TopLosses(count=count)


def test_nothing_is_drawn_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = trainer_of(TopLosses())
    trainer.fit(images(4, 4), images(4, 4), epochs=1)
    trainer.evaluate(images(4, 4))
    assert list(tmp_path.iterdir()) == []


def test_it_changes_no_bit_of_training() -> None:
    def trained(plugins: list[Any]) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(16, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, device="cpu")
        trainer.fit(images(16), images(16, seed=1), epochs=3, batch_size=4)
        return [*model.weight.flatten().tolist(), *torch.get_rng_state().tolist()]

    assert trained([TopLosses()]) == trained([])


@pytest.mark.parametrize("counted", [2, 100])
def test_samples_that_are_counted_in_another_way_are_no_padding(counted: int) -> None:
    plugin = TopLosses(count=100)
    one = trainer_of(plugin)
    trainer = Trainer(one.model, one.loss, one.optimizer, [plugin], "cpu", samples=lambda batch: counted)
    trainer.evaluate(images(4, 4), 5)
    assert len(plugin.worst["test"][0]) == 23


def test_what_is_evaluated_inside_of_a_fit_is_kept_and_not_drawn(tmp_path: Path) -> None:
    class Looks:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.evaluate(images(4, 4, samples=7), 3)

    plugin = TopLosses()
    one = trainer_of(plugin)
    trainer = Trainer(one.model, one.loss, one.optimizer, [plugin, Looks()], "cpu", run_dir=tmp_path)
    trainer.fit(images(4, 4), epochs=2, batch_size=5)
    assert len(plugin.worst["test"][0]) == 7
    assert [path.name for path in tmp_path.glob("*.svg")] == ["top_losses_train.svg"]
    trainer.evaluate(images(4, 4, samples=7), 3)
    assert (tmp_path / "top_losses_test.svg").is_file()


def test_a_test_set_that_a_later_plugin_evaluates_at_the_end_of_a_fit_is_drawn(tmp_path: Path) -> None:
    class Tests:
        def on_fit_end(self, trainer: Trainer) -> None:
            trainer.evaluate(images(4, 4, samples=7))

    one = trainer_of(TopLosses())
    plugins = [TopLosses(), Tests()]
    Trainer(one.model, one.loss, one.optimizer, plugins, "cpu", run_dir=tmp_path).fit(images(4, 4), epochs=1)
    assert (tmp_path / "top_losses_test.svg").is_file()


def test_after_a_fit_that_failed_a_test_set_is_drawn(tmp_path: Path, fails: Any) -> None:
    one = trainer_of(TopLosses())
    trainer = Trainer(one.model, one.loss, one.optimizer, [TopLosses(), fails(epoch=1)], "cpu", run_dir=tmp_path)
    with pytest.raises(RuntimeError):
        trainer.fit(images(4, 4), epochs=3)
    trainer.evaluate(images(4, 4))
    assert [path.name for path in tmp_path.glob("*.svg")] == ["top_losses_test.svg"]
