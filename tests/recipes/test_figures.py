"""Every recipe that carries its data ends with the figures that the notes print (tests/figures.json)."""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
REL = 2e-5  # "about" in figures.json: the tolerance where an entry names none
FIRST_STUDENT = torch.tensor([[73.0, 80.0, 75.0]])


def predictions(printed: str) -> list[float]:
    """What the recipe itself prints at the end of each fit."""
    return [float(number) for number in re.findall(r"^predict .* -> (-?[0-9.]+)", printed, flags=re.MULTILINE)]


def test_the_figures_are_a_copy() -> None:
    original = ROOT.parent / "shared" / "labs" / "figures.json"
    if not original.is_file():
        reason = f"{original} is missing, so tests/figures.json cannot be compared with it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    assert (ROOT / "tests" / "figures.json").read_bytes() == original.read_bytes()


def test_linear_regression(train: Any, figures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    notes = figures["linear_regression"]
    losses = train("linear_regression").column("train_loss")
    assert len(losses) == 1000
    assert [losses[row] for row in notes["rows"]] == pytest.approx(notes["train_loss"], abs=notes["abs_tol"])
    assert predictions(capsys.readouterr().out) == [pytest.approx(8, abs=0.1)]


@pytest.mark.parametrize("variant", ["by hand", "torch"])
def test_gradient_descent(train: Any, figures: Any, variant: str) -> None:
    notes = figures["gradient_descent"]
    trained = train("gradient_descent")
    assert list(trained.result) == ["by hand", "torch"]
    assert trained.column("train_loss", variant) == pytest.approx(notes["train_loss"], abs=notes["abs_tol"])
    assert [round(w, 3) for w in trained.column("W", variant)] == notes["W"]  # printed to three decimals


def test_the_gradient_by_hand_does_not_use_autograd(train: Any) -> None:
    """Both variants step alike only because the rates make up for the factor 2/m; with one rate they differ."""
    trained = train("gradient_descent", lr=0.1, lr_torch=0.1)
    by_hand, by_torch = trained.column("W", "by hand"), trained.column("W", "torch")
    assert by_hand[1] == pytest.approx(1.4)
    assert by_torch[1] == pytest.approx(1.4 * 2 / 3)
    assert "by_hand" in trained.trainers[0].plugins
    assert "by_hand" not in trained.trainers[1].plugins


def test_multivariable_regression(train: Any, figures: Any) -> None:
    notes = figures["multivariable_regression"]
    trained = train("multivariable_regression")
    assert trained.column("train_loss") == pytest.approx(notes["train_loss"], rel=notes["rel_tol"])
    # The notes print the hypothesis of an epoch as its cost was computed: before the step.
    assert trained.outputs[0].flatten().tolist() == pytest.approx(notes["hypothesis_last"], rel=notes["rel_tol"])


def test_multivariable_regression_with_the_bias_that_the_notes_leave_out(train: Any) -> None:
    (trainer,) = train("multivariable_regression", bias=True).trainers
    weight, bias = trainer.model.parameters()
    assert weight.shape == (1, 3)
    assert bias.item() != 0


def test_logistic_regression(train: Any, figures: Any) -> None:
    notes = figures["logistic_regression"]
    trained = train("logistic_regression")
    losses = trained.column("train_loss")
    assert len(losses) == 1001
    assert [losses[row] for row in notes["rows"]] == pytest.approx(notes["train_loss"], rel=REL)
    assert trained.column("train_accuracy")[-1] == notes["accuracy_last"]
    points = torch.tensor([[1.0, 2.0], [2.0, 3.0], [3.0, 1.0], [4.0, 3.0], [5.0, 3.0]])
    probabilities = trained.trainers[0].predict(points).flatten().tolist()
    shown = [float(f"{probability:.5g}") for probability in probabilities]  # printed to five digits
    assert shown == pytest.approx(notes["probability_first5"], rel=REL)


def test_logistic_regression_from_logits(train: Any, figures: Any) -> None:
    """The same figures with the sigmoid in the loss, and no standstill where probabilities have no gradient left."""
    notes = figures["logistic_regression"]
    losses = train("logistic_regression", logits=True).column("train_loss")
    assert [losses[row] for row in notes["rows"]] == pytest.approx(notes["train_loss"], rel=REL)
    stuck = train("logistic_regression", lr=10.0, epochs=200).column("train_loss")
    assert stuck[-1] == stuck[10] > 1
    assert train("logistic_regression", lr=10.0, epochs=200, logits=True).column("train_loss")[-1] < 0.01


def test_softmax(train: Any, figures: Any) -> None:
    notes = figures["softmax"]
    trained = train("softmax")
    lines = (trained.result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["epoch"] for row in rows] == list(range(1001))
    assert [rows[row]["train_loss"] for row in notes["rows"]] == pytest.approx(notes["train_loss"], rel=REL)
    assert rows == trained.result.history


def test_softmax_says_how_its_bias_and_its_learning_rate_matter(train: Any) -> None:
    shared = train("softmax")
    _, bias = shared.trainers[0].model.parameters()
    assert bias.shape == (1,)
    assert abs(bias.item()) < 1e-6  # its gradient is zero up to rounding
    rises = sum(after > before for before, after in pairwise(shared.column("train_loss")))
    assert rises == 500  # every second epoch
    own = train("softmax", bias_per_class=True)
    assert own.column("train_accuracy")[-1] == 1.0
    smooth = train("softmax", lr=0.08)
    losses = smooth.column("train_loss")
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0.378215, rel=REL)
    assert smooth.column("train_accuracy")[-1] == 1.0


@pytest.mark.parametrize("recipe", ["minibatch", "custom_dataset"])
def test_prediction_for_the_first_student(
    train: Any, figures: Any, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = figures["minibatch"]["predict"]["must_lie_in"]
    trained = train(recipe)
    assert trained.result.steps == 21 * 3
    (printed,) = predictions(capsys.readouterr().out)
    assert low <= printed <= high
    assert printed == pytest.approx(trained.trainers[0].predict(FIRST_STUDENT).item(), abs=1e-4)
    assert figures["minibatch"]["predict"]["input"] == FIRST_STUDENT.flatten().tolist()


def test_a_dataset_over_lists_trains_like_one_over_tensors(train: Any) -> None:
    assert train("custom_dataset").result.history == train("minibatch").result.history


def test_batch_or_minibatch(train: Any, figures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    low, high = figures["minibatch"]["predict"]["must_lie_in"]
    trained = train("batch_or_minibatch")
    printed = predictions(capsys.readouterr().out)
    assert [(label, result.epochs, result.steps) for label, result in trained.result.items()] == [
        ("batch", 2001, 2001),
        ("minibatch", 2001, 6003),
    ]
    assert len(printed) == 2
    assert all(low <= score <= high for score in printed)
    assert printed == pytest.approx([t.predict(FIRST_STUDENT).item() for t in trained.trainers], abs=1e-4)
    whole, small = trained.column("train_loss", "batch"), trained.column("train_loss", "minibatch")
    assert whole[-1] == pytest.approx(1.990371, rel=1e-3)
    assert small[-1] < whole[-1] / 2


def test_both_variants_start_from_the_same_weights(train: Any) -> None:
    """One batch of all five in a shuffled order is the whole batch, up to the order of a sum."""
    trained = train("batch_or_minibatch", epochs=50, batch_size=5)
    whole, small = trained.column("train_loss", "batch"), trained.column("train_loss", "minibatch")
    assert whole == pytest.approx(small, rel=1e-5)
