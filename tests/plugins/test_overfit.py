from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from framework.cli import main

HEAD = """
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from framework import Recipe, hookimpl

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(2))
Y = torch.arange(40) % 3


def made(model, train, lr=0.05, **more):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Recipe(model=model, loss=nn.CrossEntropyLoss(), optimizer=optimizer, train=train, **more)


def net(*inner):
    return nn.Sequential(nn.Linear(4, 32), *inner, nn.ReLU(), nn.Linear(32, 3))

"""


@pytest.fixture
def overfit(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    folder = tmp_path / "한글 폴더"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def told(recipe: str, *words: str) -> tuple[int, str]:
        Path("mine.py").write_text(HEAD + recipe, encoding="utf-8")
        status = main(["overfit", "mine.py", *words])
        said = capsys.readouterr()
        assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["mine.py"]
        return status, said.out + said.err

    return told


def test_the_losses_are_those_of_a_loop_by_hand_over_one_batch(overfit: Callable[..., Any]) -> None:
    # Lightning #2311 and #2600: the batch is the same in every step, of shuffled data too
    status, said = overfit(
        "def recipe():\n    return made(net(), (X, Y), batch_size=10, shuffle=True)\n", "--seed", "4"
    )
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    data = TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(2)), torch.arange(40) % 3)
    x, y = next(iter(DataLoader(data, batch_size=10, shuffle=True)))
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    at_the_end = nn.functional.cross_entropy(model(x), y).item()  # Lightning #7656: on the batch of the training
    assert status == 0
    assert said.splitlines() == [
        "batch     10 samples, 200 steps",
        f"loss      {losses[0]:.6g} -> {losses[-1]:.6g}",
        f"in eval   {at_the_end:.6g}, 100.0% of the classes right",
        "verdict   learned by heart",
    ]


KINDS = {
    "whole": "made(net(), (X, Y))",
    "loader": "made(net(), DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True))",
    "iterable": "made(net(), Stream(), batch_size=8)",
    "dict": "made(net(), Dicts(), batch_size=8, plugins=[OfDict()])",
    "accumulated": "made(net(), (X, Y), batch_size=8, accumulate=5)",
}
OTHERS = """
class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


class Dicts(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index], "y": Y[index]}


class OfDict:
    def forward(self, model, batch):
        return model(batch["x"])

    def compute_loss(self, output, batch):
        return nn.functional.cross_entropy(output, batch["y"])


def recipe():
    return """


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_every_kind_of_data(overfit: Callable[..., Any], kind: str) -> None:
    status, said = overfit(OTHERS + KINDS[kind] + "\n", "--steps", "300")
    assert f"batch     {40 if kind == 'whole' else 8} samples, 300 steps" in said
    assert said.endswith("verdict   learned by heart\n")
    assert status == 0
    assert ("of the classes right" in said) is (kind != "dict")  # it cannot be known which entry is the target


def test_plugins_that_end_a_fit_or_move_the_rate_do_not_take_part(overfit: Callable[..., Any]) -> None:
    recipe = """
from framework_plugins.early_stopping import EarlyStopping
from framework_plugins.schedule import Schedule

def recipe():
    schedule = Schedule(lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=3))
    plugins = ["accuracy", EarlyStopping("val_loss", patience=1), schedule, "confusion_matrix"]
    return made(net(), (X, Y), val=(X, Y), epochs=3, plugins=plugins)

def on_fit_end():
    print("of the recipe")
"""
    status, said = overfit(recipe)
    assert status == 0
    assert "of the recipe" not in said


@pytest.mark.parametrize(
    ("recipe", "words", "why"),
    [
        ("made(net(), (X, Y), lr=0.0)", (), "the loss does not move"),
        ("made(net(), (X, Y), lr=1e-4)", (), "the loss still falls. Try more --steps"),
        ("made(net(), (X, Y), lr=30.0)", ("--steps", "20"), "the loss rises. Try a smaller rate"),
        (
            "made(nn.Sequential(net(), nn.Flatten(), nn.ReLU(), nn.Softmax(1), Zero()), (X, Y))",
            (),
            "has come to a halt",
        ),
    ],
    ids=["no rate", "slow", "rises", "halts"],
)
def test_what_was_not_learned_is_told_with_what_to_check(
    overfit: Callable[..., Any], recipe: str, words: tuple[str, ...], why: str
) -> None:
    # Lightning #15021: the words are to say what is wrong
    zero = """
class Zero(nn.Module):
    def forward(self, x):
        return 0.01 * x

def recipe():
    return """
    status, said = overfit(zero + recipe + "\n", *words)
    assert status == 1
    assert re.search(rf"^verdict   not learned by heart: .*{re.escape(why)}", said, re.M)
    assert re.search(r"^check     the last layer: no softmax before CrossEntropyLoss", said, re.M)


def test_a_loss_below_0_is_not_called_learned_for_being_below_a_share_of_itself(overfit: Callable[..., Any]) -> None:
    recipe = """
def recipe():
    made_one = made(net(), (X, Y), lr=0.0, batch_size=10)
    made_one.loss = lambda output, y: nn.functional.cross_entropy(output, y) - 10
    return made_one
"""
    status, said = overfit(recipe)
    assert (status, "verdict   not learned by heart" in said) == (1, True), said
    status, said = overfit(recipe.replace("lr=0.0", "lr=1e-4"))
    assert (status, "it begins at or below 0, so no share of it tells" in said) == (1, True), said


def test_a_gap_to_the_mode_of_evaluation_is_told(overfit: Callable[..., Any]) -> None:
    # in training batch normalization sees this batch, in evaluation what it has kept: of momentum 0, nothing
    recipe = "def recipe():\n    return made(net(nn.BatchNorm1d(32, momentum=0.0)), (100 + X, Y))\n"
    _, said = overfit(recipe)
    assert re.search(r"^in eval   .*; in training mode it is lower: batch normalization", said, re.M)


def test_a_loss_that_becomes_nan_ends_it_with_its_step(overfit: Callable[..., Any]) -> None:
    recipe = "def recipe():\n    r = made(net(), (X, Y))\n    r.loss = lambda o, t: o.sum() / 0\n    return r\n"
    status, said = overfit(recipe)
    assert status == 1
    assert "error: train_loss became" in said
    assert "step 0" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps", "5"), "steps must be at least 10"), (("--target", "1"), "target a share from 0 to 1"),
        (("depth=2",), "no knob 'depth'"), (("--label", "a"), "'a' is no variant of mine"),
        (("-p", "accuracyy"), "Did you mean 'accuracy'?"),
    ],
)  # fmt: skip
def test_mistakes_end_with_status_2(overfit: Callable[..., Any], words: tuple[str, ...], said: str) -> None:
    status, told = overfit("def recipe():\n    return made(net(), (X, Y))\n", *words)
    assert status == 2
    assert said in told


def test_data_that_gives_no_batch_is_told(overfit: Callable[..., Any]) -> None:
    recipe = """
class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())

def recipe():
    return made(net(), Nothing(), batch_size=2)
"""
    status, said = overfit(recipe)
    assert status == 2
    assert "the training data, a Nothing, gives no batch" in said
