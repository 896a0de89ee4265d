"""The labs without figures in the notes end where their headers say, each at its full length."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import framework
from framework import UsageError

ROOT = Path(__file__).resolve().parents[2]


def said(pattern: str, out: str) -> list[float]:
    """The number of each line that matches."""
    return [float(number) for number in re.findall(pattern, out, re.MULTILINE)]


# ------------------------------------------------------------------------------------------------ tensors


@pytest.fixture
def session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the session of tensor_manipulation printed."""

    def run(**knobs: Any) -> str:
        directory = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        assert framework.run(ROOT / "recipes" / "tensor_manipulation.py", run_dir=directory, **knobs) is None
        assert (directory / "tensors.svg").stat().st_size > 1000
        return capsys.readouterr().out

    return run


def test_every_operation_of_the_notes_is_printed_with_its_result(session: Any) -> None:
    out = session()
    parts = re.findall(r"^-- (.+)$", out, re.MULTILINE)
    assert parts == [
        "rank and shape", "indexing", "broadcasting", "mul and matmul", "mean", "sum", "max and argmax", "view",
        "squeeze", "unsqueeze", "casting", "concatenate", "stack", "ones and zeros", "in place",
    ]  # fmt: skip
    for shown in (
        ">>> t.dim(), t.shape, t.dtype\n(2, torch.Size([4, 3]), torch.float32)",
        ">>> m1 + m2\ntensor([[4., 5.],\n        [5., 6.]])",
        ">>> a.mul(b)\ntensor([[1., 2.],\n        [6., 8.]])",
        ">>> a.matmul(b)\ntensor([[ 5.],\n        [11.]])",
        ">>> torch.tensor([1, 2]).mean()\nRuntimeError: mean(): ",
        ">>> a.max(dim=0)\ntorch.return_types.max(\nvalues=tensor([3., 4.]),\nindices=tensor([1, 1]))",
        ">>> torch.stack([x, y, z], dim=1)\ntensor([[1., 2., 3.],\n        [4., 5., 6.]])",
        ">>> w.mul(2.)\ntensor([[2., 4.],\n        [6., 8.]])\n>>> w\ntensor([[1., 2.],\n        [3., 4.]])",
        ">>> w.mul_(2.)\ntensor([[2., 4.],\n        [6., 8.]])\n>>> w\ntensor([[2., 4.],\n        [6., 8.]])",
    ):
        assert shown in out


def test_a_part_is_printed_alone_with_the_same_results(session: Any) -> None:
    whole, part = session(), session(part="ones and zeros")  # which needs a tensor of an earlier part
    assert re.findall(r"^-- (.+)$", part, re.MULTILINE) == ["ones and zeros"]
    begin, end = part.index("-- ones"), part.index("\nsaved")
    assert part[begin:end] in whole


def test_a_part_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no part 'viev'; there is: all, rank and shape, indexing"):
        framework.run(ROOT / "recipes" / "tensor_manipulation.py", run_dir=tmp_path / "run", part="viev")


# ------------------------------------------------------------------------------------------------ gradient descent


def test_sgd_variants(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trained = train("sgd_variants")
    errors = said(r"^error +([\d.]+|nan) after 1000 updates", capsys.readouterr().out)
    assert [(result.epochs, result.steps) for result in trained.result.values()] == [
        (1000, 1000),
        (1, 100_000),
        (1, 1000),
    ]
    whole, one, some = errors
    assert whole < 0.001
    assert some < 0.001
    assert one < 1
    for trainer in trained.trainers:
        w1, w0 = (parameter.item() for parameter in trainer.model.parameters())
        assert (w1, w0) == pytest.approx((2, 0), abs=0.2)
    assert (trained.result["m samples"].run_dir.parent / "versions.svg").is_file()


def test_the_error_of_sgd_variants_is_that_of_the_line(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the plain loop: gradient descent on all samples, and the mean of (w1 x + w0 - 2x)^2 over x."""
    trained = train("sgd_variants", samples=1001, updates=20, batch_size=1001)
    errors = said(r"^error +([\d.]+|nan) after 20 updates", capsys.readouterr().out)
    torch.manual_seed(0)
    x = torch.linspace(-10, 10, 1001).reshape(-1, 1)
    y = 2 * x + torch.randn(1001, 1)
    w1, w0 = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([w1, w0], lr=0.001)
    for _ in range(20):
        optimizer.zero_grad()
        ((w1 * x + w0 - y) ** 2).mean().backward()
        optimizer.step()
    error = ((w1 * x + w0 - 2 * x) ** 2).mean().item()
    assert errors[0] == pytest.approx(error, rel=1e-2)
    assert errors[2] == pytest.approx(errors[0], rel=1e-4)  # a batch of all, in another order
    assert trained.result["one sample"].steps == 1001


def test_maximum_likelihood(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trained = train("maximum_likelihood")
    (theta,) = said(r"^theta +([\d.]+)", capsys.readouterr().out)
    assert theta == 0.27
    likelihoods = trained.column("likelihood")
    assert all(after > before for before, after in pairwise(likelihoods[:30]))  # uphill
    assert likelihoods[-1] == pytest.approx(math.comb(100, 27) * 0.27**27 * 0.73**73, rel=1e-4)
    assert likelihoods[0] == pytest.approx(math.comb(100, 27) * 0.5**100, rel=1e-6)
    losses = trained.column("train_loss")  # the mean over the tosses of the negative logarithm, but for ln C(n, k)
    assert losses[0] * 100 == pytest.approx(math.log(math.comb(100, 27)) - math.log(likelihoods[0]), rel=1e-5)


@pytest.mark.parametrize(("tosses", "heads"), [(10, 3), (5, 0), (5, 5), (100, 60), (3000, 810)])
def test_maximum_likelihood_finds_k_of_n(train: Any, tosses: int, heads: int) -> None:
    trained = train("maximum_likelihood", tosses=tosses, heads=heads, epochs=300)
    assert trained.column("theta")[-1] == pytest.approx(heads / tosses, abs=0.01)


def test_more_heads_than_tosses_are_refused(train: Any) -> None:
    with pytest.raises(UsageError, match="of 5 tosses, 6 cannot be heads"):
        train("maximum_likelihood", tosses=5, heads=6)


# ------------------------------------------------------------------------------------------------ networks


def test_xor(train: Any) -> None:
    trained = train("xor")
    assert trained.column("train_loss", "one layer")[-1] == pytest.approx(math.log(2), abs=1e-6)
    assert trained.column("train_loss", "two layers")[-1] < 0.01
    assert trained.column("train_accuracy", "two layers")[-1] == 1.0
    for result in trained.result.values():
        assert (result.run_dir / "decision_boundary.svg").is_file()


def test_two_layers_without_an_activation_are_one(train: Any) -> None:
    trained = train("xor", activation="none")
    assert trained.column("train_loss", "two layers")[-1] == pytest.approx(math.log(2), abs=1e-4)


def test_two_hidden_nodes_depend_on_the_first_weights(train: Any) -> None:
    assert train("xor", hidden=2).column("train_accuracy", "two layers")[-1] == 1.0
    assert train("xor", hidden=2, seed=5).column("train_loss", "two layers")[-1] > 0.3  # two points stay at one half


def test_initialization(train: Any) -> None:
    trained = train("initialization")
    accuracy = {label: result.history[-1]["val_accuracy"] for label, result in trained.result.items()}
    assert accuracy["he"] > 0.92
    assert 0.8 < accuracy["xavier"] < accuracy["he"]
    assert max(accuracy["normal 0.01"], accuracy["torch's own"]) < 0.2
    assert math.isnan(trained.column("train_loss", "normal 1")[-1])
    assert (trained.result["he"].run_dir.parent / "signal.svg").is_file()


def test_initialization_draws_what_its_names_say(train: Any) -> None:
    trained = train("initialization", epochs=1, lr=0.0, depth=2, width=500)
    spread = dict(zip(trained.result, (next(t.model.parameters()).std().item() for t in trained.trainers), strict=True))
    inputs, outputs = 64, 500
    wanted = {
        "normal 1": 1.0, "normal 0.01": 0.01, "torch's own": (1 / inputs / 3) ** 0.5,
        "xavier": (2 / (inputs + outputs)) ** 0.5, "he": (2 / inputs) ** 0.5,
    }  # fmt: skip
    assert spread == pytest.approx(wanted, rel=0.05)
    for label, trainer in zip(trained.result, trained.trainers, strict=True):
        biases = [value for name, value in trainer.model.named_parameters() if name.endswith("bias")]
        assert all(bool((bias == 0).all()) for bias in biases) == (label != "torch's own")


def test_measuring_the_signal_changes_no_weight(train: Any) -> None:
    """Dropped from the command line, with `-p no:signal`, the run is the same to the last bit."""
    trained, without = (train("initialization", epochs=2, depth=2, **more) for more in ({}, {"plugins": ["no:signal"]}))
    for a, b in zip(trained.trainers, without.trainers, strict=True):
        assert all(map(torch.equal, a.model.parameters(), b.model.parameters()))


def test_the_smallest_network_of_the_lab_has_no_hidden_layer(train: Any) -> None:
    assert len(train("initialization", epochs=1, depth=0).trainers[0].model) == 1


def test_batch_norm(train: Any) -> None:
    trained = train("batch_norm")
    assert trained.column("val_accuracy", "with batch norm")[-1] > 0.92
    assert trained.column("val_accuracy", "without")[-1] < 0.2
    with pytest.raises(UsageError, match="batch normalization cannot train on one sample"):
        train("batch_norm", batch_size=1, epochs=1)


def test_dropout(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trained = train("dropout")
    out = capsys.readouterr().out
    without, with_dropout = (trained.column("val_accuracy", label)[-1] for label in ("p = 0", "p = 0.5"))
    assert with_dropout > without + 0.04
    evaluated = said(r"^eval mode val_accuracy ([\d.]+)", out)
    assert evaluated == pytest.approx([without, with_dropout], abs=1e-4)
    off, on = (
        [float(n) for n in line.split(", ")] for line in re.findall(r"the same digits: (.+)$", out, re.MULTILINE)
    )
    assert off == pytest.approx([without] * 3, abs=1e-4)  # nothing is dropped, so the mode makes no difference
    assert max(on) < with_dropout - 0.02
    assert len(set(on)) > 1  # another part of the network each time


def test_overfitting(train: Any) -> None:
    trained = train("overfitting")
    plain = trained.result["plain"]
    losses = [row["val_loss"] for row in plain.history]
    best = losses.index(min(losses))
    assert plain.history[-1]["train_accuracy"] > 0.98
    assert 5 < best < 60
    assert losses[-1] > 1.5 * losses[best]
    assert plain.best["epoch"] == best
    for label, result in trained.result.items():
        if label != "plain":
            assert result.test["test_accuracy"] > plain.test["test_accuracy"]
    stopped = trained.result["early stopping"]
    assert stopped.epochs == best + 1 + 15
    (trainer,) = (t for t in trained.trainers if "early_stopping" in t.plugins)
    val = trainer.loaders["val"].dataset
    restored = trainer.evaluate(val, 20)["test_loss"]
    assert restored == pytest.approx(min(losses), rel=1e-6)  # the best weights are back


def test_checkpointing(train: Any) -> None:
    trained = train("checkpointing")
    last, best = trained.result["last weights"], trained.result["best weights"]
    assert last.history == best.history
    assert best.test["test_accuracy"] > last.test["test_accuracy"] + 0.05
    assert best.best["path"].is_dir()
    last_trainer, best_trainer = trained.trainers
    val = best_trainer.loaders["val"].dataset
    assert best_trainer.evaluate(val, 20)["test_loss"] == pytest.approx(best.best["val_loss"], rel=1e-6)
    assert last_trainer.evaluate(val, 20)["test_loss"] == pytest.approx(last.history[-1]["val_loss"], rel=1e-6)


def test_char_rnn(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trained = train("char_rnn")
    assert trained.column("train_accuracy")[-1] > 0.93
    (text,) = re.findall(r"^writes    (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert text.startswith("A model is a function with numbers that it can learn. ")


@pytest.mark.parametrize(
    ("recipe", "knobs", "told"),
    [
        ("char_rnn", {"start": "A mud#"}, "--start must be made of letters"),
        ("char_rnn", {"start": ""}, "--start must be made of letters"),
        ("char_rnn", {"length": 0}, "--length must be from 1 to"),
        ("char_rnn", {"length": 10_000}, "--length must be from 1 to"),
        ("initialization", {"width": 0}, "depth must be from 0 up and width from 1 up, got 8 and 0"),
        ("initialization", {"depth": -1}, "depth must be from 0 up and width from 1 up, got -1 and 64"),
        ("overfitting", {"samples": 1}, "samples must be from 2 to 1000, got 1"),
        (
            "sgd_variants",
            {"batch_size": 0},
            "batch_size must be from 1 up and updates from 1 to samples, got 0 and 1000",
        ),
        ("sgd_variants", {"updates": 0}, "updates from 1 to samples, got 100 and 0"),
        ("sgd_variants", {"updates": 11, "samples": 10}, "updates from 1 to samples, got 100 and 11"),
    ],
)
def test_what_a_recipe_cannot_do_is_told_before_it_trains(
    train: Any, recipe: str, knobs: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=told):
        train(recipe, **knobs)
    assert "epoch " not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ digits and MNIST


def test_digits(train: Any) -> None:
    trained = train("digits")
    assert trained.result.test["test_accuracy"] > 0.92
    assert train("digits", hidden=64).result.test["test_accuracy"] > trained.result.test["test_accuracy"]
    pictures = {path.name for path in trained.result.run_dir.glob("*.svg")}
    assert pictures >= {"confusion_test.svg", "top_losses_test.svg"}


@pytest.mark.usefixtures("mnist")
def test_mnist_mlp(train: Any) -> None:
    trained = train("mnist_mlp")
    assert trained.result.epochs == 6
    assert trained.result.test["test_accuracy"] >= 0.975
    (trainer,) = trained.trainers
    matrix = trainer.plugins["confusion_matrix"].matrix["test"]
    assert matrix.sum() == 10_000
    assert int(matrix.trace()) / 10_000 == pytest.approx(trained.result.test["test_accuracy"])


@pytest.mark.usefixtures("mnist")
def test_mnist_cnn(train: Any) -> None:
    trained = train("mnist_cnn")
    assert trained.result.epochs == 2
    assert trained.result.test["test_accuracy"] >= 0.985
    assert isinstance(trained.trainers[0].model[0], nn.Conv2d)
    assert (trained.result.run_dir / "filters.svg").is_file()
