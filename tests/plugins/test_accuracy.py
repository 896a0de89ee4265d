from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from framework_plugins.accuracy import Accuracy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from framework import DataError, Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer


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


def judge(output: Tensor, target: Tensor, loss: Any, batch_size: int | None = None, **options: Any) -> float:
    """The accuracy of these outputs."""
    accuracy = Accuracy(**options)
    return echoing([accuracy], loss).evaluate((output, target), batch_size)[f"test_{accuracy.metric}"]


scores = st.integers(min_value=0, max_value=2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(scores, st.integers(1, 17), st.integers(2, 5), st.integers(1, 18), st.integers(1, 2))
def test_any_batch_size_gives_the_accuracy_of_the_whole(
    generator: torch.Generator, samples: int, classes: int, batch_size: int, top_k: int
) -> None:
    output = torch.randn(samples, classes, generator=generator)
    target = torch.randint(classes, (samples,), generator=generator)
    right = 0
    for row, label in zip(output.tolist(), target.tolist(), strict=True):
        right += sum(score > row[label] for score in row) < top_k
    assert judge(output, target, nn.CrossEntropyLoss(), batch_size, top_k=top_k) == right / samples


@settings(deadline=None, max_examples=40)
@given(scores, st.integers(1, 17), st.integers(1, 18), st.booleans())
def test_targets_of_0_and_1_are_counted_exactly_for_any_batch_size(
    generator: torch.Generator, samples: int, batch_size: int, logits: bool
) -> None:
    output = torch.randn(samples, 1, generator=generator)
    target = torch.randint(2, (samples, 1), generator=generator).float()
    right = sum((z >= 0) == (y == 1) for [z], [y] in zip(output.tolist(), target.tolist(), strict=True))
    loss: Any = nn.BCEWithLogitsLoss() if logits else nn.BCELoss()
    said = output if logits else output.sigmoid()
    assert judge(said, target, loss, batch_size) == right / samples


def test_a_probability_of_one_half_and_a_logit_of_zero_say_1() -> None:
    one = torch.ones(1, 1)
    assert judge(torch.tensor([[0.5]]), one, F.binary_cross_entropy) == 1
    assert judge(torch.tensor([[0.0]]), one, F.binary_cross_entropy_with_logits) == 1
    assert judge(torch.tensor([[0.4]]), one, nn.BCELoss()) == 0
    assert judge(torch.tensor([[0.4]]), one, nn.BCEWithLogitsLoss()) == 1


def test_another_loss_with_targets_of_0_and_1_asks_for_logits() -> None:
    output, target = torch.tensor([[0.4], [0.6]]), torch.tensor([[1.0], [1.0]])
    with pytest.raises(UsageError, match=r"cannot tell from the loss mse_loss .* say Accuracy\(logits=True\)"):
        judge(output, target, F.mse_loss)
    assert judge(output, target, F.mse_loss, logits=True) == 1
    assert judge(output, target, F.mse_loss, logits=False) == 0.5


def test_several_labels_a_sample_count_each() -> None:
    output = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
    target = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert judge(output, target, nn.BCEWithLogitsLoss(), batch_size=1) == 4 / 6


def test_top_2_is_right_where_the_class_is_among_the_two_largest() -> None:
    output = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert judge(output, torch.tensor([0, 1, 2]), nn.CrossEntropyLoss(), top_k=2) == 2 / 3


def test_class_probabilities_as_targets_mean_the_most_probable_class() -> None:
    output = torch.tensor([[3.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    target = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    for loss in (nn.CrossEntropyLoss(), F.cross_entropy):
        assert judge(output, target, loss) == 2 / 3


@pytest.mark.parametrize("ignored", [-100, -1, 0, 2])
def test_ignored_classes_do_not_count_neither_as_right_nor_as_wrong(ignored: int) -> None:
    output = torch.tensor([[9.0, 1, 1], [1, 9, 1], [1, 1, 9], [9, 1, 1], [1, 1, 9]])
    target = torch.tensor([0, 1, 1, ignored, ignored])
    pairs = [(says, y) for says, y in zip([0, 1, 2, 0, 2], target.tolist(), strict=True) if y != ignored]
    expected = sum(says == y for says, y in pairs) / len(pairs)
    assert judge(output, target, nn.CrossEntropyLoss(ignore_index=ignored), batch_size=2) == expected


def test_cross_entropy_as_a_function_ignores_minus_100_too() -> None:
    output, target = torch.tensor([[9.0, 1], [1, 9], [1, 9]]), torch.tensor([0, 0, -100])
    assert judge(output, target, F.cross_entropy) == 1 / 2


def test_a_split_in_which_everything_is_ignored_has_no_accuracy() -> None:
    assert math.isnan(judge(torch.ones(2, 3), torch.full((2,), -100), nn.CrossEntropyLoss(reduction="sum")))


def test_segmentation_counts_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(5, 3, 4, 2, generator=generator)
    target = torch.randint(-1, 3, (5, 4, 2), generator=generator)
    says, kept = output.argmax(1), target != -1
    expected = int((says == target)[kept].sum()) / int(kept.sum())
    assert judge(output, target, nn.CrossEntropyLoss(ignore_index=-1), batch_size=2) == expected


def test_every_split_of_a_fit_has_its_own_accuracy() -> None:
    trainer = echoing(["accuracy"])
    right, wrong, y = [9.0, 1.0], [1.0, 9.0], torch.zeros(4, dtype=torch.int64)
    train, val = torch.tensor([right, right, right, wrong]), torch.tensor([wrong, wrong, wrong, right])
    result = trainer.fit((train, y), (val, y), epochs=2, batch_size=3)
    assert [(row["train_accuracy"], row["val_accuracy"]) for row in result.history] == [(0.75, 0.25)] * 2
    assert trainer.metric_names == ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert trainer.evaluate((train[:3], y[:3]))["test_accuracy"] == 1


def test_evaluate_in_the_middle_of_an_epoch_does_not_disturb_the_count() -> None:
    right, y = torch.tensor([[9.0, 1.0]] * 4), torch.zeros(4, dtype=torch.int64)

    class Evaluates:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if split == "train":
                trainer.evaluate((-right, y))

    trainer = echoing(["accuracy", Evaluates()])
    assert trainer.fit((right, y), epochs=1, batch_size=2).history[0]["train_accuracy"] == 1


def test_rows_of_padding_do_not_count() -> None:
    class Padded:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 2

    output = torch.tensor([[9.0, 1.0], [1.0, 9.0], [9.0, 1.0], [9.0, 1.0]])
    assert echoing([Padded(), "accuracy"]).evaluate((output, torch.zeros(4, dtype=torch.int64)))["test_accuracy"] == 0.5


def test_a_step_never_waits_for_the_device(trained: Any, operations: Any) -> None:
    seen = operations()
    trained([seen, Accuracy(), Accuracy(top_k=2, name="top2")])
    assert seen.counts["argmax"] == 4 * (4 + 2)
    assert seen.counts["_local_scalar_dense"] == 0


def test_a_wait_in_a_step_would_be_seen(trained: Any, operations: Any) -> None:
    class Waits:
        def on_batch_end(self, loss: Tensor) -> None:
            loss.item()

    seen = operations()
    trained([seen, Waits()])
    assert seen.counts["_local_scalar_dense"] == 4 * (4 + 2)


@pytest.mark.parametrize(
    ("output", "target"),
    [((4, 3), (4, 1)), ((4, 3), (4, 3)), ((4, 3, 2), (4, 3)), ((4,), (4, 1)), ((4, 3), (4, 2))],
)
def test_shapes_that_do_not_go_together_are_told(output: tuple[int, ...], target: tuple[int, ...]) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return output.sum()

    options = {"top_k": 2} if output == target else {}
    with pytest.raises(DataError) as caught:
        judge(torch.ones(output), torch.ones(target, dtype=torch.int64), loss, **options)
    assert f"an output of shape {output} with a target of shape {target} and dtype int64" in str(caught.value)
    assert "it takes class numbers, integers of shape (N,)" in str(caught.value)


def test_targets_that_are_no_tensor_are_told() -> None:
    def loss(output: Tensor, target: Any) -> Tensor:
        return output.sum()

    with pytest.raises(DataError, match="accuracy compares two tensors, got Tensor and dict"):
        echoing(["accuracy"], loss).evaluate((torch.ones(4, 2), {"a": torch.ones(4)}))


def test_more_classes_asked_for_than_there_are_is_told() -> None:
    with pytest.raises(DataError, match="top_k=5 needs as many classes; the model gives 3"):
        judge(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), nn.CrossEntropyLoss(), top_k=5)


@pytest.mark.parametrize("top_k", [0, -1, 1.5])
def test_a_top_k_that_is_no_number_of_classes_is_refused(top_k: Any) -> None:
    with pytest.raises(UsageError, match="top_k must be a whole number from 1 up"):
        Accuracy(top_k=top_k)


def test_two_instances_add_two_figures() -> None:
    trainer = echoing([Accuracy(), Accuracy(top_k=2, name="top2")])
    output = torch.tensor([[3.0, 2.0, 1.0]] * 4)
    figures = trainer.evaluate((output, torch.tensor([0, 1, 1, 2])))
    assert (figures["test_accuracy"], figures["test_top2_accuracy"]) == (0.25, 0.75)


def test_a_fit_after_one_that_failed_counts_anew(fails: Any) -> None:
    failing = fails(epoch=0, batch=1)
    trainer = echoing(["accuracy", failing])
    data = torch.tensor([[9.0, 1.0]] * 3), torch.tensor([0, 0, 1])
    with pytest.raises(RuntimeError):
        trainer.fit(data, epochs=1, batch_size=1)
    failing.armed = False
    assert trainer.fit(data, epochs=1, batch_size=1).history[0]["train_accuracy"] == 2 / 3


def test_a_regression_is_told_that_it_has_no_accuracy_to_count() -> None:
    with pytest.raises(UsageError, match="accuracy cannot tell from the loss mse_loss"):
        tiny_trainer(["accuracy"]).fit(tiny_data(), epochs=1)


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    assert trained([Accuracy(), Accuracy(top_k=2, name="top2")]) == trained([])


def test_negative_classes_are_ignored_as_a_loss_of_your_own_ignores_them() -> None:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(output, y, ignore_index=-1)

    y = torch.tensor([0, 2, -1, -1])
    assert judge(torch.eye(3)[[0, 1, 2, 0]], y, loss) == 0.5
    assert judge(torch.eye(3)[[0, 1, 2, 0]], y, loss, top_k=3) == 1


def test_samples_without_a_dimension_for_the_batch_are_compared_as_well() -> None:
    trainer = echoing([Accuracy()], nn.BCELoss())
    trainer.count = lambda batch: 1
    batches = DataLoader(TensorDataset(torch.tensor([0.2, 0.9, 0.8]), torch.tensor([0.0, 1.0, 0.0])), batch_size=None)
    assert trainer.evaluate(batches)["test_accuracy"] == 2 / 3
