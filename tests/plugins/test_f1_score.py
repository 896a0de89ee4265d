from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from framework_plugins.f1_score import F1Score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from framework import DataError, Monitor, Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer

NINE = 9 * torch.eye(3)


class Echo(nn.Module):
    """Answers its input, so that a test chooses what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.zero


def echoing(plugins: list[Any], loss: Any = F.cross_entropy) -> Trainer:
    model = Echo()
    return Trainer(model, loss, torch.optim.SGD(model.parameters()), plugins=plugins, device="cpu")


def judge(output: Tensor, target: Tensor, loss: Any = F.cross_entropy, *options: Any, **more: Any) -> dict[str, float]:
    """Precision, recall and F1 of these outputs, in batches of two."""
    figures = echoing([F1Score(*options, **more)], loss).evaluate((output, target), 2)
    return {name.removeprefix("test_"): figure for name, figure in figures.items() if name != "test_loss"}


def test_the_macro_mean_is_that_of_the_classes_by_hand() -> None:
    says, target = [0, 0, 1, 2, 2], [0, 1, 1, 1, 2]
    figures = judge(NINE[says], torch.tensor(target))
    assert figures["precision"] == pytest.approx((1 / 2 + 1 / 1 + 1 / 2) / 3)
    assert figures["recall"] == pytest.approx((1 / 1 + 1 / 3 + 1 / 1) / 3)
    assert figures["f1"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)


def test_a_class_that_is_neither_target_nor_answer_is_left_out_of_the_macro_mean() -> None:
    assert judge(NINE[[0, 1, 1]], torch.tensor([0, 1, 0]))["recall"] == pytest.approx((1 / 2 + 1) / 2)


def test_a_label_that_never_occurs_is_a_zero_in_the_macro_mean() -> None:
    output, target = torch.tensor([[1.0, -1.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert judge(output, target, nn.BCEWithLogitsLoss())["f1"] == 0.5


def test_without_any_one_every_figure_of_labels_is_zero() -> None:
    for average in ("macro", "micro", "weighted"):
        figures = judge(-torch.ones(4, 2), torch.zeros(4, 2), nn.BCEWithLogitsLoss(), average)
        assert figures == {"precision": 0, "recall": 0, "f1": 0}


@pytest.mark.parametrize("shape", [(5,), (5, 1)], ids=str)
def test_one_column_of_0_and_1_gives_the_figures_of_the_ones(shape: tuple[int, ...]) -> None:
    output = torch.tensor([0.5, 0.9, 0.1, 0.8, 0.2]).reshape(shape)
    target = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]).reshape(shape)
    for average in ("macro", "micro", "weighted"):
        figures = judge(output, target, nn.BCELoss(), average)
        assert figures == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})


def test_segmentation_counts_pixels_of_classes_and_of_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(5, 3, 4, 2, generator=generator)
    target = torch.randint(3, (5, 4, 2), generator=generator)
    flat = judge(output.permute(0, 2, 3, 1).reshape(-1, 3), target.reshape(-1))
    assert judge(output, target) == pytest.approx(flat)
    ones = (torch.rand(5, 3, 4, 2, generator=generator) > 0.5).float()
    columns = [part.permute(0, 2, 3, 1).reshape(-1, 3) for part in (output, ones)]
    loss = nn.BCEWithLogitsLoss()
    assert judge(output, ones, loss) == pytest.approx(judge(columns[0], columns[1], loss))


def test_class_probabilities_as_targets_mean_the_most_probable_class() -> None:
    target = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    assert judge(NINE[[0, 2]], target, nn.CrossEntropyLoss())["f1"] == 1
    assert judge(NINE[[0, 1]], target, F.cross_entropy)["f1"] == 0.5 * (1 + 0) * 2 / 3


@pytest.mark.parametrize("ignored", [-100, -1, 0, 2])
def test_ignored_targets_count_for_no_class(ignored: int) -> None:
    says, target = [0, 1, 2, 0, 1, 1], [0, 1, 1, ignored, ignored, 2]
    kept = [index for index, y in enumerate(target) if y != ignored]
    figures = judge(NINE[says], torch.tensor(target), nn.CrossEntropyLoss(ignore_index=ignored))
    assert figures == judge(NINE[says][kept], torch.tensor(target)[kept])


def test_a_split_in_which_everything_is_ignored_has_no_figures() -> None:
    figures = judge(torch.ones(2, 3), torch.full((2,), -100), nn.CrossEntropyLoss(reduction="sum"))
    assert all(math.isnan(figure) for figure in figures.values())
    assert len(figures) == 3


def test_each_class_with_a_name_has_a_figure_that_can_be_monitored() -> None:
    plugin = F1Score(class_names=["cat", "dog", "고양이"])
    names = [f"test_{name}" for name in ("precision", "recall", "f1", "cat_f1", "dog_f1", "고양이_f1")]
    figures = echoing([plugin]).evaluate((NINE[[0, 0, 1]], torch.tensor([0, 1, 1])))
    assert plugin.metric_names("test") == names == list(figures)[1:]
    assert [figures[name] for name in names[3:]] == pytest.approx([2 / 3, 2 / 3, 0])
    assert Monitor(names[5]).mode == "max"


def test_another_instance_adds_figures_under_its_name() -> None:
    trainer = echoing([F1Score(), F1Score("micro", name="micro")])
    figures = trainer.evaluate((NINE[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 1])))
    assert figures["test_micro_f1"] == figures["test_micro_recall"] == 0.5
    assert figures["test_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_every_split_of_a_fit_has_its_own_figures() -> None:
    trainer = echoing(["f1_score"])
    train, val, y = NINE[[0, 0, 0, 1]], NINE[[0, 0, 0, 0]], torch.tensor([0, 0, 0, 1])
    result = trainer.fit((train, y), (val, y), epochs=2, batch_size=3)
    assert [(row["train_f1"], row["val_recall"]) for row in result.history] == [(1.0, 0.5)] * 2
    names = [f"{split}_{figure}" for split in ("train", "val") for figure in ("loss", "precision", "recall", "f1")]
    assert trainer.metric_names == tuple(names)


def test_evaluate_in_the_middle_of_an_epoch_does_not_disturb_the_count() -> None:
    class Evaluates:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if split == "train":
                trainer.evaluate((-NINE, torch.arange(3)))

    trainer = echoing([F1Score(), Evaluates()])
    assert trainer.fit((NINE, torch.arange(3)), epochs=2, batch_size=2).history[1]["train_f1"] == 1


def test_rows_of_padding_do_not_count() -> None:
    class Padded:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 2

    figures = echoing([Padded(), F1Score()]).evaluate((NINE[[0, 1, 2]], torch.tensor([0, 1, 1])))
    assert figures["test_f1"] == 1


def test_the_counts_of_all_processes_are_added() -> None:
    """Trainer.sum adds over processes; here a trainer of which the other process has all of class 0 wrong."""

    class Two(Trainer):
        def sum(self, value: Tensor) -> Tensor:
            return value + torch.tensor([[0, 0, 0], [0, 4, 0], [4, 0, 0], [4, 4, 0]])

    model = Echo()
    trainer = Two(model, F.cross_entropy, torch.optim.SGD(model.parameters()), [F1Score("micro")], device="cpu")
    assert trainer.evaluate((NINE[[0, 1]], torch.tensor([0, 1])))["test_recall"] == pytest.approx(2 / 6)


def test_a_step_never_waits_for_the_device(trained: Any, operations: Any) -> None:
    seen = operations()
    trained([seen, F1Score(class_names="abc")])
    assert seen.counts["index_add_"] == 4 * (4 + 2)
    assert seen.counts["_local_scalar_dense"] == 0


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    assert trained([F1Score()]) == trained([])


def test_a_fit_after_one_that_failed_counts_anew(fails: Any) -> None:
    failing = fails(epoch=0, batch=1)
    trainer = echoing([F1Score("micro"), failing])
    data = NINE, torch.tensor([0, 0, 0])
    with pytest.raises(RuntimeError):
        trainer.fit(data, epochs=1, batch_size=1)
    failing.armed = False
    assert trainer.fit(data, epochs=1, batch_size=1).history[0]["train_f1"] == pytest.approx(1 / 3)


def test_a_pass_after_one_that_failed_counts_anew() -> None:
    class Fails:
        def on_split_end(self, trainer: Trainer) -> None:
            if trainer.loss is F.cross_entropy:
                raise RuntimeError

    trainer = echoing([Fails(), F1Score("micro")])
    with pytest.raises(RuntimeError):
        trainer.evaluate((NINE, torch.tensor([0, 0, 0])))
    trainer.loss = nn.CrossEntropyLoss()
    assert trainer.evaluate((NINE, torch.arange(3)))["test_f1"] == 1


# -------------------------------------------------------------------------------------------------------------- errors


def test_another_average_is_refused() -> None:
    with pytest.raises(UsageError, match="average must be one of macro, micro, weighted; got 'samples'"):
        F1Score("samples")


def test_as_many_names_as_classes_are_needed() -> None:
    with pytest.raises(UsageError, match="f1_score has 2 class_names; the model has 3 classes"):
        judge(NINE, torch.arange(3), class_names=["cat", "dog"])


def test_another_loss_with_targets_of_0_and_1_asks_for_logits() -> None:
    output, target = torch.tensor([[0.4], [0.6]]), torch.tensor([[1.0], [1.0]])
    with pytest.raises(UsageError, match=r"cannot tell from the loss mse_loss .* say F1Score\(logits=True\)"):
        judge(output, target, F.mse_loss)
    assert judge(output, target, F.mse_loss, logits=True)["recall"] == 1
    assert judge(output, target, F.mse_loss, logits=False)["recall"] == 0.5


def test_a_regression_is_told_that_it_has_no_classes() -> None:
    with pytest.raises(UsageError, match="f1_score cannot tell from the loss mse_loss"):
        tiny_trainer(["f1_score"]).fit(tiny_data(), epochs=1)


def test_shapes_that_do_not_go_together_are_told() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return output.sum()

    with pytest.raises(DataError, match=r"an output of shape \(2, 3\) with a target of shape \(2, 1\) and dtype int64"):
        judge(torch.ones(4, 3), torch.ones(4, 1, dtype=torch.int64), loss)
    trainer = echoing(["f1_score"], F.mse_loss)
    trainer.count = lambda batch: 1
    with pytest.raises(DataError, match=r"an output of shape \(\) with a target of shape \(\)"):
        trainer.evaluate(DataLoader(TensorDataset(torch.ones(3), torch.ones(3)), batch_size=None))
    with pytest.raises(DataError, match="f1_score compares two tensors, got Tensor and dict"):
        echoing(["f1_score"], loss).evaluate((torch.ones(4, 2), {"a": torch.ones(4)}))
