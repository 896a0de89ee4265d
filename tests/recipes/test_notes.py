"""What the notes show without a recipe of its own: layers, devices, batches in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from framework import DeviceError, Trainer, layers

LAYERS = {"Linear": lambda: nn.Linear(2, 2), "ReLU": nn.ReLU, "Sigmoid": nn.Sigmoid, "Dropout": nn.Dropout}
X = torch.tensor([[0.0], [0.1], [0.2]])
Y = torch.tensor([[0.0], [0.2], [0.4]])

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
other_device = pytest.mark.parametrize("device", ["meta", pytest.param("cuda:0", marks=needs_cuda)])


def trainer_of(model: nn.Module, *plugins: Any) -> Trainer:
    return Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), plugins=plugins, device="cpu")


@pytest.mark.parametrize("example", range(6))
def test_layers_are_those_with_parameters(figures: Any, example: int) -> None:
    kinds, count, hidden = figures["layer_count"]["examples"][example]
    found = layers(nn.Sequential(*(LAYERS[kind]() for kind in kinds.split())))
    assert len(found) == count
    assert len(found) - 1 == hidden


def test_every_example_of_layers_is_tested(figures: Any) -> None:
    assert len(figures["layer_count"]["examples"]) == 6


def test_a_seeded_layer_predicts_what_the_notes_print(figures: Any) -> None:
    torch.manual_seed(43052)
    output = trainer_of(nn.Linear(1, 1)).predict(X)
    assert output.flatten().tolist() == pytest.approx(figures["linear_1_1"]["output"], abs=5e-5)  # four decimals


def test_batches_of_three_in_order(figures: Any) -> None:
    class Seen:
        def __init__(self) -> None:
            self.rows: list[list[int]] = []
            self.labels: list[int] = []

        def on_batch_start(self, batch: tuple[Tensor, Tensor]) -> None:
            self.rows.append([int(row) for row in batch[0].flatten().tolist()])
            self.labels += [int(label) for label in batch[1].flatten().tolist()]

    seen = Seen()
    x, y = torch.arange(10.0).reshape(-1, 1), torch.tensor([[1.0]] * 5 + [[0.0]] * 5)
    trainer_of(nn.Linear(1, 1), seen).fit((x, y), epochs=1, batch_size=3, shuffle=False)
    assert figures["batches_of_3"]["setup"].endswith(" ".join(str(rows).replace(" ", "") for rows in seen.rows))
    assert seen.labels == [1] * 5 + [0] * 5


class Moves:
    """A plugin that leaves the model on another device than the batches."""

    def __init__(self, device: str) -> None:
        self.device = device

    def on_fit_start(self, trainer: Trainer) -> None:
        trainer.model.to(self.device)


class Elsewhere(nn.Linear):
    """A model whose output is on another device than the target."""

    def __init__(self, device: str) -> None:
        super().__init__(1, 1)
        self.elsewhere = device

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.elsewhere)


def sentence(trainer: Trainer) -> str:
    with pytest.raises(DeviceError) as caught:
        trainer.fit((X, Y), epochs=1)
    return str(caught.value)


@other_device
def test_a_model_and_data_on_different_devices_end_in_one_sentence(device: str, figures: Any) -> None:
    """Examples 3 and 4 of the notes: net(x)."""
    assert "one sentence that names both" in figures["device_mismatch"]["setup"]
    said = sentence(trainer_of(nn.Linear(1, 1), Moves(device)))
    assert f"the model (parameter 'weight') is on {device}" in said
    assert "x is on cpu" in said
    assert "\n" not in said


@other_device
def test_an_output_and_a_target_on_different_devices_end_in_one_sentence(device: str) -> None:
    """Examples 7 and 8 of the notes: the loss of net(x) and y."""
    said = sentence(trainer_of(Elsewhere(device)))
    assert f"the output is on {device}" in said
    assert "on cpu" in said
    assert "\n" not in said
