"""A network as its nodes, counted as the notes count them."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from framework_plugins.diagram import Diagram, columns, diagram, draw
from torch import Tensor, nn

from framework import RunDirError, UsageError
from framework.testing import tiny_data, tiny_trainer

MNIST = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())


class Branch(nn.Module):
    """Linear layers that do not follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def texts(path: Path) -> list[str]:
    svg = path.read_text("utf-8")
    ElementTree.fromstring(svg)
    return re.findall(r"<!-- (.*?) -->", svg, re.DOTALL)


def test_a_column_is_the_input_or_a_linear_layer_with_what_is_behind_it() -> None:
    assert [(column.nodes, column.kinds) for column in columns(MNIST)] == [
        (784, []), (32, ["Linear", "ReLU"]), (1, ["Linear", "Sigmoid"]),
    ]  # fmt: skip
    normed = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 1))
    assert [column.kinds for column in columns(normed)] == [
        [],
        ["Linear", "BatchNorm1d", "ReLU", "Dropout"],
        ["Linear"],
    ]
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 1))
    assert [column.nodes for column in columns(nested)] == [2, 3, 1]


def test_every_node_is_drawn_and_of_many_the_first_and_the_last(tmp_path: Path) -> None:
    draw(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), tmp_path / "a.svg")
    said = texts(tmp_path / "a.svg")
    names = ["$x_{1}$", "$x_{2}$", "$x_{3}$", "$v^{(1)}_{1}$", "$v^{(1)}_{2}$", r"$\hat{y}_{1}$"]
    assert sorted(text for text in said if text.startswith("$")) == sorted(names)
    headings = [text for text in said if not text.startswith("$")]
    assert headings[:-1] == ["Input", "3 nodes", "Hidden 1", "2 nodes", "Linear", "ReLU", "Output", "1 node", "Linear"]
    assert "Sequential, 11 parameters in 2 layers (1 hidden)" in said
    draw(MNIST, tmp_path / "b.svg")
    names = [text for text in texts(tmp_path / "b.svg") if text.startswith("$")]
    assert names.count(r"$\vdots$") == 2
    assert {"$x_{1}$", "$x_{784}$", "$v^{(1)}_{32}$"} <= set(names)
    assert len(names) == 7 + 7 + 1


def test_the_nodes_of_a_layer_stand_in_their_order_from_the_top(tmp_path: Path) -> None:
    draw(nn.Linear(4, 1), tmp_path / "a.svg")
    svg = (tmp_path / "a.svg").read_text("utf-8")
    heights = [
        float(re.search(rf"<!-- \$x_\{{{row}\}}\$ -->.*?translate\([\d.]+ ([\d.]+)\)", svg, re.DOTALL)[1])  # type: ignore[index]
        for row in (1, 2, 3, 4)
    ]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)), "the layer '0' is a Conv2d"),
        (Branch(), "the layer 'right' takes 2 numbers, and the one before gives 3"),
        (nn.Sequential(nn.ReLU()), "Sequential has no Linear layer to draw"),
        (nn.Embedding(3, 2), "is a Embedding: only Linear layers"),
    ],
)
def test_what_is_no_chain_of_linear_layers_is_told(model: nn.Module, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        draw(model, tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(RunDirError, match=r"cannot write .*a\.svg"):
        draw(MNIST, tmp_path / "a.svg")


def test_as_a_plugin_it_draws_at_the_start_of_a_fit(tmp_path: Path) -> None:
    tiny_trainer([Diagram()], run_dir=tmp_path).fit(tiny_data(), epochs=1)
    assert "$x_{3}$" in texts(tmp_path / "diagram.svg")


def test_as_a_plugin_it_stops_no_training_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from framework import Trainer

    model = nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 1, 3), nn.Flatten())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, nn.MSELoss(), optimizer, [Diagram()], device="cpu", run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert "diagram   the layer '1' is a Conv1d" in capsys.readouterr().out
    assert list(tmp_path.glob("*.svg")) == []


def test_it_changes_no_bit_of_training(trained, tmp_path: Path) -> None:
    assert trained([Diagram()], tmp_path) == trained([])


# -------------------------------------------------------------------------------------------------- the verb


def test_the_verb_draws_the_network_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    diagram("minibatch")
    assert capsys.readouterr().out == "model     Linear, 4 parameters in 1 layer (0 hidden)\ndrawn     minibatch.svg\n"
    assert "$x_{3}$" in texts(tmp_path / "minibatch.svg")
    diagram("minibatch", "deep/mine.svg")
    assert (tmp_path / "deep" / "mine.svg").is_file()


def test_the_verb_draws_each_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    diagram("xor")
    assert {path.name for path in tmp_path.iterdir()} == {"xor-one layer.svg", "xor-two layers.svg"}
    assert "one layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "said"),
    [("tensor_manipulation", "trains nothing"), ("softmax", "is a Softmax: only Linear layers can be drawn")],
)
def test_the_verb_tells_what_cannot_be_drawn(
    recipe: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        diagram(recipe)
    assert list(tmp_path.iterdir()) == []
