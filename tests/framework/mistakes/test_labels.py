"""Targets that do not fit the loss are told with their labels, shapes and kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework import DataError


def squared(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((output - y) ** 2).mean()


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, lambda o, y: F.nll_loss(o.log_softmax(1), y)])
@pytest.mark.parametrize(
    ("label", "hint"), [(3, "Labels count from 0."), (17, None), (-1, None)], ids=["one too many", "far", "negative"]
)
def test_a_class_label_out_of_range_is_named_with_its_row(
    refused: Callable[..., str], loss: Any, label: int, hint: str | None
) -> None:
    y = torch.tensor([0, 1, 2, label, 0])
    message = refused(nn.Linear(3, 3), loss, (torch.rand(5, 3), y), batch_size=2, shuffle=False, accumulate=9)
    assert f"label {label} in row 1 of this batch, but the model gives 3 classes (0..2)" in message
    assert ("Labels count from 0." in message) == (hint is not None)


def test_the_ignored_label_is_not_blamed(refused: Callable[..., str]) -> None:
    y = torch.tensor([0, 7, 5, 0, 1])
    message = refused(nn.Linear(3, 3), nn.CrossEntropyLoss(ignore_index=7), (torch.rand(5, 3), y))
    assert "label 5 in row 2" in message


def test_a_label_out_of_range_in_an_image_of_labels_is_named_with_its_sample(refused: Callable[..., str]) -> None:
    y = torch.zeros(4, 2, 2, dtype=torch.int64)
    y[2, 1, 1] = 9
    assert "label 9 in row 2" in refused(nn.Conv2d(1, 3, 1), nn.CrossEntropyLoss(), (torch.rand(4, 1, 2, 2), y))


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.zeros(5), ("float32", "(5,)", "y.long()")),
        (torch.zeros(5, 1), ("float32", "(5, 1)", "y.long().squeeze(1)")),
        (torch.zeros(5, 1, dtype=torch.int64), ("int64", "(5, 1)", "y.squeeze(1)")),
        (torch.zeros(5, dtype=torch.int32), ("int32", "(5,)", "y.long()")),
        (torch.zeros(5, dtype=torch.float64), ("float64", "(5,)", "y.long()")),
    ],
    ids=["float", "float column", "column", "int32", "double"],
)
def test_labels_of_the_wrong_kind_for_cross_entropy_are_named(
    refused: Callable[..., str], y: torch.Tensor, said: tuple[str, ...]
) -> None:
    message = refused(nn.Linear(3, 3), nn.CrossEntropyLoss(), (torch.rand(5, 3), y))
    for part in (*said, "class numbers", "int64"):
        assert part in message


def test_probabilities_of_classes_as_targets_are_no_mistake(fit: Callable[..., Any]) -> None:
    assert fit(nn.Linear(3, 3), nn.CrossEntropyLoss(), (torch.rand(5, 3), torch.rand(5, 3).softmax(1))).steps == 1


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCELoss(), nn.BCEWithLogitsLoss(), squared])
def test_whole_numbers_as_targets_of_a_loss_of_numbers_are_told_or_trained_on(
    fit: Callable[..., Any], loss: Any
) -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    data = torch.rand(5, 3), torch.ones(5, 1, dtype=torch.int64)
    try:
        assert fit(model, loss, data).steps == 1
    except DataError as error:
        assert "y is int64: use y.float()" in str(error)  # noqa: PT017


@pytest.mark.parametrize("targets", [False, True])
def test_numbers_that_are_no_probabilities_are_told_with_their_range(
    refused: Callable[..., str], targets: bool
) -> None:
    x, y = torch.rand(5, 3), torch.full((5, 1), 1.0)
    y[0] = 7.0 if targets else 0.0
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()) if targets else nn.Linear(3, 1)
    if not targets:
        nn.init.constant_(model.weight, 0.0)
        nn.init.constant_(model.bias, -2.5)
    message = refused(model, nn.BCELoss(), (x, y))
    if targets:
        assert "targets y reach from 1 to 7" in message
    else:
        assert "outputs of the model reach from -2.5 to -2.5" in message
        assert "sigmoid" in message


def test_rows_of_zeros_and_a_one_as_labels_are_told(refused: Callable[..., str]) -> None:
    y = F.one_hot(torch.tensor([0, 1, 2, 1, 0]))
    said = refused(nn.Linear(3, 3), nn.CrossEntropyLoss(), (torch.rand(5, 3), y))
    assert said.endswith("the labels y are int64 (5, 3): use y.argmax(1)")


def test_one_output_without_a_dimension_for_classes_is_told(refused: Callable[..., str]) -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    said = refused(model, nn.CrossEntropyLoss(), (torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 0])))
    assert said == "cross entropy takes a score for each class, (samples, classes); the model gives (5,)"


def test_two_labels_for_a_model_with_one_output_are_told(refused: Callable[..., str]) -> None:
    said = refused(nn.Linear(3, 1), nn.CrossEntropyLoss(), (torch.rand(2, 3), torch.tensor([0, 1])))
    assert said.startswith("label 1 in row 1 of this batch, but the model gives one output, which is one class (0)")
