"""The recipes end with the figures that the notes print (tests/figures.json), each at its full length."""

from __future__ import annotations

import json
import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import framework
from framework.cli.lab import find_lab

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


def test_every_entry_is_reproduced_by_a_test(figures: Any) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for entry in figures:
        assert entry == "about" or f'figures["{entry}"]' in tests, f"no test reproduces {entry}"


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


# --------------------------------------------------------------------------------------- learning rate, preprocessing


def test_learning_rate(train: Any, figures: Any) -> None:
    notes = figures["learning_rate"]
    assert "20 epochs" in notes["setup"]
    trained = train("learning_rate")
    assert list(trained.result) == ["lr 100000", "lr 1e-10", "lr 0.1"]
    large, small, right = (trained.column("train_loss", label) for label in trained.result)
    assert large[0] == small[0] == right[0] < 10  # the same first weights
    assert max(large[1:3]) > 1e5
    assert len({f"{loss:.6f}" for loss in small}) == 1
    assert len(right) == 20
    assert right[-1] < 1.1
    assert all(after < before for before, after in pairwise(right[2:]))
    assert trained.result["lr 0.1"].test["test_accuracy"] == 1.0  # all three, as in the notes


def test_learning_rate_with_another_seed_and_other_rates(train: Any, figures: Any) -> None:
    assert "seed 1 gets 0 of 3" in figures["learning_rate"]["test_accuracy_lr_0.1"]
    assert train("learning_rate", seed=1).result["lr 0.1"].test["test_accuracy"] == 0.0
    trained = train("learning_rate", lrs=(0.01, 3.0), epochs=5)
    assert {label: result.epochs for label, result in trained.result.items()} == {"lr 0.01": 5, "lr 3": 5}


def test_preprocessing(train: Any, figures: Any) -> None:
    notes = figures["preprocessing"]
    trained = train("preprocessing")
    raw, standardized = trained.column("train_loss", "raw"), trained.column("train_loss", "standardized")
    assert len(raw) == len(standardized) == 20
    assert math.isfinite(raw[3])
    assert any(math.isinf(loss) for loss in raw[4:7])
    assert math.isnan(raw[13])
    assert math.isnan(raw[-1])
    assert all(after < before for before, after in pairwise(standardized))
    assert standardized[-1] < 10
    standardize, _ = trained.trainers[1].model
    x = trained.trainers[1].loaders["train"].batch[0]
    seen = [[round(value, 4) for value in row] for row in standardize(x).tolist()]
    assert seen == notes["standardized_x"]
    assert "n-1" in notes["std"]


def test_the_statistics_are_those_of_the_training_part_and_part_of_the_model(train: Any) -> None:
    trainer = train("preprocessing").trainers[1]
    x = trainer.loaders["train"].batch[0]
    names = dict(trainer.model.named_buffers())
    torch.testing.assert_close(names["0.mean"], x.sum(dim=0) / 5)
    torch.testing.assert_close(names["0.std"], ((x - x.mean(dim=0)) ** 2).sum(dim=0).div(5 - 1).sqrt())  # n - 1
    new = torch.tensor([[100.0, 100.0, 100.0]])
    linear = trainer.model[1]
    torch.testing.assert_close(trainer.predict(new), linear((new - names["0.mean"]) / names["0.std"]).detach())


# ------------------------------------------------------------------------------------------------ batches, layers


def test_data_loader(train: Any, figures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    notes = figures["batches_of_3"]
    trained = train("data_loader")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ") and "rows" in line]
    found = [re.search(r"rows (\[.*?\])  classes (\[.*?\])", line) for line in lines]
    rows = [json.loads(match[1]) for match in found if match]
    labels = [json.loads(match[2]) for match in found if match]
    first = " ".join(str(batch).replace(" ", "") for batch in rows[:4])
    assert notes["setup"].endswith(first)
    assert [label for batch in labels[:4] for label in batch] == [1] * 5 + [0] * 5
    assert {label: result.steps for label, result in trained.result.items()} == {
        "in order": 8, "shuffled": 8, "drop_last": 6,
    }  # fmt: skip
    assert rows[4:8] == rows[:4]  # the second epoch in order
    shuffled = [[row for batch in rows[at : at + 4] for row in batch] for at in (8, 12)]
    assert all(sorted(epoch) == list(range(10)) for epoch in shuffled)
    assert shuffled[0] != shuffled[1]
    assert [len(batch) for batch in rows[16:]] == [3] * 6


def test_network_diagrams(figures: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    framework.run(ROOT / "recipes" / "network_diagrams.py", run_dir=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    for kinds, count, hidden in figures["layer_count"]["examples"]:
        assert f"{count:>6}  {hidden:>6}  {kinds}" in lines
    assert "mnist     nodes 784-32-1: Sequential, 25,153 parameters in 2 layers (1 hidden)" in lines
    pictures = {path.stem for path in (tmp_path / "run").glob("*.svg")}
    assert pictures == {"logistic", "bent_line", "mnist", "yours"}


# ------------------------------------------------------------------------------------------------ devices


def test_cpu_vs_gpu(figures: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = figures["cpu_vs_gpu"]
    assert list(notes["notes_seconds_rtx3090"]) == ["H=500", "H=200000"]  # the widths by default
    lab = find_lab(ROOT / "recipes" / "cpu_vs_gpu.py")
    assert lab.knobs["widths"].default == (500, 200_000)
    framework.run(lab, run_dir=tmp_path / "run", widths=(5, 50), steps=3)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if re.match(r"(cpu|cuda|mps) +\d", line)]
    assert [row[:2] for row in rows][:2] == [["cpu", "5"], ["cpu", "50"]]
    for row in rows:
        seconds, before, with_model, peak = map(float, row[2:])
        assert seconds > 0
        assert before <= with_model <= peak
    if not torch.accelerator.is_available():
        assert "finds none here" in out
        assert len(rows) == 2
    assert (tmp_path / "run" / "cpu_vs_gpu.svg").is_file()


def test_cpu_vs_gpu_trains_what_the_notes_train(figures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws in the same order, so the same loss as the loop of the setup after as many steps."""
    assert "manual_seed(5)" in figures["cpu_vs_gpu"]["setup"]
    module = find_lab(ROOT / "recipes" / "cpu_vs_gpu.py").module
    assert module is not None
    losses = []

    class Seen(torch.nn.MSELoss):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            losses.append(super().forward(output, target))
            return losses[-1]

    monkeypatch.setattr(module.nn, "MSELoss", Seen)
    module.train(7, 4, torch.device("cpu"))
    monkeypatch.undo()
    torch.manual_seed(5)
    x, y = torch.linspace(0, 1, 100).reshape(-1, 1), torch.randn(100).reshape(-1, 1) * 0.01
    model = torch.nn.Sequential(torch.nn.Linear(1, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for seen in losses:
        loss = torch.nn.functional.mse_loss(model(x), y)
        assert torch.equal(seen, loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(losses) == module.WARM_UP + 4


# ------------------------------------------------------------------------------------------------ MNIST


@pytest.mark.usefixtures("mnist")
def test_mnist_binary(train: Any, figures: Any, capsys: pytest.CaptureFixture[str]) -> None:
    notes = figures["mnist_binary"]
    trained = train("mnist_binary")
    steps = [int(part["epochs"]) for part in (notes["gradient_descent"], notes["minibatch_2048"])]
    assert [result.epochs for result in trained.result.values()] == steps == [700, 100]
    assert [result.steps for result in trained.result.values()] == [700, 700]
    printed = [float(number) for number in re.findall(r"^accuracy  ([\d.]+)", capsys.readouterr().out, re.MULTILINE)]
    wanted = [notes["gradient_descent"]["accuracy"], notes["minibatch_2048"]["accuracy"]]
    assert printed == pytest.approx(wanted, abs=notes["abs_tol"])


@pytest.mark.usefixtures("mnist")
def test_mnist_binary_counts_without_another_plugin(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"epochs": 2, "minibatch_epochs": 2}
    train("mnist_binary", **few)
    without = train("mnist_binary", **few, plugins=["no:accuracy"])
    printed = re.findall(r"^accuracy  .*$", capsys.readouterr().out, re.MULTILINE)
    assert len(printed) == 4
    assert printed[:2] == printed[2:]
    for result in without.result.values():
        assert "train_accuracy" not in result.history[-1]


@pytest.mark.usefixtures("mnist")
def test_the_seed_of_mnist_binary_draws_the_order_and_not_the_first_weights(train: Any) -> None:
    def trained(seed: int, lr: float) -> list[torch.Tensor]:
        run = train("mnist_binary", epochs=1, minibatch_epochs=1, lr=lr, seed=seed, shuffle=True)
        return [parameter for trainer in run.trainers for parameter in trainer.model.parameters()]

    assert all(map(torch.equal, trained(0, 0.0), trained(1, 0.0)))
    assert not all(map(torch.equal, trained(0, 0.1), trained(1, 0.1)))


@pytest.mark.usefixtures("mnist")
def test_mnist_softmax(train: Any, figures: Any) -> None:
    """Test images of the same scale, in eval mode, the mean over all of them: what the notes do not do."""
    assert "do it right" in figures["mnist_softmax"]["setup"]
    trained = train("mnist_softmax")
    (trainer,) = trained.trainers
    assert trained.result.test["test_accuracy"] >= 0.92
    images, digits = trainer.loaders["val"].dataset.dataset.data, trainer.loaders["val"].dataset.dataset.targets
    chosen = list(trainer.loaders["val"].dataset.indices)
    right = trainer.predict(images[chosen].unsqueeze(1) / 255).argmax(dim=1) == digits[chosen]
    best = trained.result.best
    assert best["val_accuracy"] == pytest.approx(float(right.double().mean()))  # the best weights are in the model
    assert len(chosen) == 5000
    pictures = {path.name for path in trained.result.run_dir.glob("*.svg")}
    assert pictures >= {"weights.svg", "confusion_test.svg", "top_losses_test.svg", "curves.svg"}
