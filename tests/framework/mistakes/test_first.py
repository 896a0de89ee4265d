"""The first batch is looked at: shapes that would broadcast, a loss of another kind, doubtful targets and outputs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from framework import DataError, Trainer

COLUMN, ROW = (torch.rand(5, 3), torch.rand(5, 1)), (torch.rand(5, 3), torch.rand(5))
LABELS = torch.tensor([0, 1, 2, 1, 0])


def squared(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((output - y) ** 2).mean()


ELEMENTWISE = {
    "MSELoss": nn.MSELoss(),
    "L1Loss": nn.L1Loss(),
    "SmoothL1Loss": nn.SmoothL1Loss(),
    "HuberLoss": nn.HuberLoss(),
    "BCEWithLogitsLoss": nn.BCEWithLogitsLoss(),
    "PoissonNLLLoss": nn.PoissonNLLLoss(),
    "KLDivLoss": nn.KLDivLoss(reduction="batchmean"),
    "SoftMarginLoss": nn.SoftMarginLoss(),
    "GaussianNLLLoss": lambda output, y: F.gaussian_nll_loss(output, y, torch.ones(5, 1)),
    "mse_loss": F.mse_loss,
    "mse_loss by keyword": lambda output, y: F.mse_loss(input=output, target=y),
    "mse_loss the other way": lambda output, y: F.mse_loss(y, output),
    "written": squared,
    "written the other way": lambda output, y: (y - output).abs().mean(),
    "written with a method": lambda output, y: output.sub(y).square().mean(),
    "written with a function": lambda output, y: torch.sub(output, y).square().mean(),
    "written by keyword": lambda output, y: torch.sub(input=output, other=y).square().mean(),
    "multiplied": lambda output, y: F.softplus(-output * y).mean(),
    "multiplied by a function": lambda output, y: F.softplus(-torch.multiply(output, y)).mean(),
    "divided": lambda output, y: (output / (y + 1) - 1).abs().mean(),
    "after a sigmoid": lambda output, y: (torch.sigmoid(output) - y).square().mean(),
    "the larger": lambda output, y: torch.maximum(output, y).mean(),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_output_of_n_1_against_a_target_of_n_is_refused(refused: Callable[..., str], name: str) -> None:
    message = refused(nn.Linear(3, 1), ELEMENTWISE[name], ROW)
    for part in ("(5, 1)", "(5,)", "(5, 5)", "y.reshape(-1, 1)", "output.squeeze(1)"):
        assert part in message


@pytest.mark.parametrize("name", ["MSELoss", "written"])
def test_an_output_of_n_against_a_target_of_n_1_is_refused(refused: Callable[..., str], name: str) -> None:
    message = refused(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), ELEMENTWISE[name], COLUMN)
    assert "(5,)" in message
    assert "(5, 1)" in message


def test_a_target_that_would_be_repeated_over_columns_is_refused_by_a_loss_of_elements(
    refused: Callable[..., str],
) -> None:
    message = refused(nn.Linear(3, 2), nn.MSELoss(), COLUMN)
    assert "shape (5, 2)" in message
    assert "shape (5, 1)" in message


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_target_that_would_broadcast_is_refused_in_validation_too(
    fit: Callable[..., Any], batch_size: int | None
) -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(DataError, match=r"\(\d, 1\).*\(\d,\)"):
        fit(model, squared, COLUMN, val=ROW, batch_size=batch_size)
    trainer = Trainer(model, squared, torch.optim.SGD(model.parameters()), device="cpu")
    with pytest.raises(DataError, match=r"\(\d, 1\).*\(\d,\)"):
        trainer.evaluate(ROW, batch_size=batch_size)


def test_a_class_label_for_each_row_of_scores_is_no_mistake(fit: Callable[..., Any]) -> None:
    y = torch.tensor([0, 1, 2, 1, 0])
    losses = {
        "cross_entropy": F.cross_entropy,
        "smooth": nn.CrossEntropyLoss(label_smoothing=0.1),
        "nll": lambda output, y: F.nll_loss(output.log_softmax(1), y),
        "margin": nn.MultiMarginLoss(),
        "indexed": lambda output, y: -output.log_softmax(1)[torch.arange(5), y].mean(),
        "gathered": lambda output, y: -output.log_softmax(1).gather(1, y.unsqueeze(1)).mean(),
        "one hot": lambda output, y: -(F.one_hot(y, 3) * output.log_softmax(1)).sum(1).mean(),
    }
    for loss in losses.values():
        assert fit(nn.Linear(3, 3), loss, (torch.rand(5, 3), y)).steps == 1


def test_a_target_that_is_repeated_without_growing_is_no_mistake_in_a_written_loss(fit: Callable[..., Any]) -> None:
    quantiles = torch.tensor([0.1, 0.5, 0.9])

    def pinball(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        error = y - output
        return torch.maximum(quantiles * error, (quantiles - 1) * error).mean()

    assert fit(nn.Linear(3, 3), pinball, COLUMN).steps == 1


def test_shapes_that_the_loss_itself_makes_equal_are_no_mistake(fit: Callable[..., Any]) -> None:
    assert fit(nn.Linear(3, 1), lambda output, y: F.mse_loss(output.squeeze(1), y), ROW).steps == 1
    assert fit(nn.Linear(3, 1), lambda output, y: squared(output, y.unsqueeze(1)), ROW).steps == 1


def test_looking_at_the_first_batch_leaves_no_mode_behind(refused: Callable[..., str]) -> None:
    refused(nn.Linear(3, 1), nn.MSELoss(), ROW)
    assert squared(torch.ones(5, 1), torch.zeros(5)).item() == 1.0


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (nn.MSELoss(reduction="none"), r"a tensor of shape \(5, 1\)"),
        (lambda output, y: squared(output, y).item(), "a float"),
        (lambda output, y: None, "a NoneType"),
        (lambda output, y: (squared(output, y), 1), "a tuple"),
    ],
)
def test_a_loss_that_is_not_one_number_is_told(fit: Callable[..., Any], loss: Any, got: str) -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(DataError, match=f"the loss must be one number in a tensor, got {got}"):
        fit(model, loss, COLUMN)


def test_a_loss_of_one_number_in_a_vector_trains(fit: Callable[..., Any]) -> None:
    assert fit(nn.Linear(3, 1), lambda output, y: squared(output, y).reshape(1), COLUMN, val=COLUMN).steps == 1


def test_a_partial_of_a_loss_is_looked_at_too(refused: Callable[..., str]) -> None:
    assert "(5, 5)" in refused(nn.Linear(3, 1), functools.partial(F.mse_loss, reduction="mean"), ROW)


def test_what_is_computed_from_one_side_alone_is_no_mistake(fit: Callable[..., Any]) -> None:
    """A pairwise ranking loss broadcasts outputs against outputs and targets against targets."""

    def ranking(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((output - output.T) * (y[:, None] - y)).mean()

    torch.manual_seed(0)
    assert fit(nn.Linear(3, 1), ranking, ROW).steps == 1


def test_the_two_sides_are_followed_through_a_hand_written_loss(refused: Callable[..., str]) -> None:
    def hidden(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (output.clamp(min=0) - y.float()).pow(2).mean()

    assert "they would be broadcast to (5, 5)" in refused(nn.Linear(3, 1), hidden, ROW)


def test_the_loss_of_a_plugin_is_looked_at_as_well(refused: Callable[..., str]) -> None:
    class Own:
        def compute_loss(self, trainer: Trainer, output: torch.Tensor, batch: Any) -> torch.Tensor:
            return trainer.loss(output, batch[1])

    assert "they would be broadcast to (5, 5)" in refused(nn.Linear(3, 1), nn.MSELoss(), ROW, plugins=[Own()])
    told = refused(nn.Linear(3, 1), nn.MSELoss(reduction="none"), COLUMN, plugins=[Own()])
    assert told.startswith("the loss must be one number in a tensor, got a tensor of shape (5, 1)")


def test_a_complex_loss_is_told(refused: Callable[..., str]) -> None:
    said = refused(nn.Linear(3, 1), lambda output, y: (output * 1j).mean(), COLUMN)
    assert "got a tensor of shape (), torch.complex64" in said


# --------------------------------------------------------------------------------------------- what is only doubtful


def doubts(fit: Callable[..., Any], *given: Any, **options: Any) -> list[str]:
    """What a fit warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(*given, **options)
    return [str(warning.message) for warning in caught]


class SumsToOne(nn.Linear):
    """Scores whose rows sum to 1, and are no probabilities."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = super().forward(x * 9)
        return scores - scores.mean(1, keepdim=True) + 1 / 3


def softmaxed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize("far", [7.0, -1.0])
def test_targets_beyond_0_and_1_for_bce_with_logits_are_told_once(
    fit: Callable[..., Any], loss: Any, far: float
) -> None:
    y = torch.zeros(5, 1)
    y[3] = far
    said = doubts(fit, nn.Linear(3, 1), loss, (torch.rand(5, 3), y), val=(torch.rand(5, 3), y), epochs=3)
    low, high = sorted((0, int(far)))
    assert said == [f"BCEWithLogitsLoss needs targets from 0 to 1; the targets y reach from {low} to {high}"]


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.NLLLoss(),
        F.cross_entropy,
        lambda output, y: F.cross_entropy(output, y),
        lambda output, y: F.cross_entropy(input=output, target=y),
        lambda output, y: F.cross_entropy(output, F.one_hot(y, 3).float()),
        lambda output, y: F.cross_entropy(output.log().softmax(1), y),
    ],
)
def test_probabilities_where_a_loss_takes_scores_are_told_once(fit: Callable[..., Any], loss: Any) -> None:
    data = torch.rand(5, 3), LABELS
    (said,) = doubts(fit, softmaxed(), loss, data, val=data, epochs=3)
    assert "the loss gets probabilities (rows sum to 1)" in said
    assert "leave out softmax" in said


@pytest.mark.parametrize(
    ("model", "loss", "y"),
    [
        (nn.Linear(3, 3), nn.CrossEntropyLoss(), LABELS),
        (nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1)), nn.CrossEntropyLoss(), LABELS),
        (nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax(1)), nn.NLLLoss(), LABELS),
        (softmaxed(), lambda output, y: F.nll_loss(output.log(), y), LABELS),
        (softmaxed(), nn.MSELoss(), F.one_hot(LABELS, 3).float()),
        (SumsToOne(), nn.CrossEntropyLoss(), LABELS),
        (nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), nn.CrossEntropyLoss(), LABELS),
        (nn.Linear(3, 3), nn.CrossEntropyLoss(), torch.rand(5, 3).softmax(1)),
        (nn.Linear(3, 1), nn.BCEWithLogitsLoss(), torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0])[:, None]),
        (nn.Linear(3, 1), nn.MSELoss(), torch.rand(5, 1) * 9),
        (nn.Linear(3, 1), lambda output, y: F.binary_cross_entropy_with_logits(output, y / 9), torch.full((5, 1), 9.0)),
    ],
)
def test_what_is_as_it_should_be_is_not_doubted(fit: Callable[..., Any], model: nn.Module, loss: Any, y: Any) -> None:
    assert doubts(fit, model, loss, (torch.rand(5, 3), y), epochs=2) == []


def test_targets_that_cannot_be_looked_at_train(fit: Callable[..., Any]) -> None:
    def of_sparse(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return squared(output, y.to_dense() if y.is_sparse else y.abs())

    batches = torch.utils.data.DataLoader([0], collate_fn=lambda _: (torch.rand(5, 3), torch.rand(5, 1).to_sparse()))
    assert fit(nn.Linear(3, 1), of_sparse, batches).steps == 1
    assert fit(nn.Linear(3, 1), of_sparse, (torch.rand(5, 3), torch.rand(5, 1, dtype=torch.complex64))).steps == 1


def test_what_is_doubted_is_trained_with_the_same_bits(oracle: ModuleType) -> None:
    x, y = torch.rand(6, 3), torch.rand(6, 1) * 9
    made = []
    for by_hand in (True, False):
        model = oracle.mlp()
        optimizer = torch.optim.Adam(model.parameters())
        if by_hand:
            rows = oracle.by_hand(model, F.binary_cross_entropy_with_logits, optimizer, (x, y), epochs=3, batch_size=4)
        else:
            trainer = Trainer(model, F.binary_cross_entropy_with_logits, optimizer, device="cpu")
            with pytest.warns(UserWarning, match="targets from 0 to 1"):
                rows = trainer.fit((x, y), epochs=3, batch_size=4).history
        made.append([oracle.state(model, optimizer), rows])
    oracle.assert_same(*made)


def test_a_label_of_no_class_is_told_before_the_loss_is_computed(fit: Callable[..., Any]) -> None:
    """On a GPU computing it would take the whole process with it."""
    with pytest.raises(DataError, match="label 3 in row 1") as caught:
        fit(nn.Linear(3, 3), nn.CrossEntropyLoss(), (torch.rand(2, 3), torch.tensor([0, 3])))
    assert caught.value.__cause__ is None
