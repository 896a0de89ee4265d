"""Counting layers as the labs count them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from framework import Trainer, described, layers, settings_of
from framework.testing import tiny_data, tiny_trainer


class Block(nn.Module):
    """A module with a parameter of its own beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 3)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_a_layer_is_a_module_with_parameters_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 1), nn.Sigmoid())
    assert [name for name, _ in layers(model)] == ["0", "3"]
    assert [type(layer) for _, layer in layers(model)] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(2, 3), "Linear, 9 parameters in 1 layer (0 hidden)"),
        (nn.Linear(1, 1, bias=False), "Linear, 1 parameter in 1 layer (0 hidden)"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 1), nn.Sigmoid()),
            "Sequential, 9 parameters in 2 layers (1 hidden)",
        ),
        (nn.ReLU(), "ReLU, 0 parameters in 0 layers (0 hidden)"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), "Sequential, 24 parameters in 2 layers (1 hidden)"),
        (nn.Linear(1000, 1000), "Linear, 1,001,000 parameters in 1 layer (0 hidden)"),
        (nn.Linear(2, 3).requires_grad_(False), "Linear, 9 parameters in 1 layer (0 hidden)"),
        (Block(), "Block, 15 parameters in 2 layers (1 hidden)"),
        (nn.LSTM(2, 3), "LSTM, 84 parameters in 1 layer (0 hidden)"),
        (Tied(), "Tied, 15 parameters in 2 layers (1 hidden)"),
    ],
)
def test_a_model_is_described_in_one_line(model: nn.Module, said: str) -> None:
    assert described(model) == said


def test_a_model_that_has_a_parameter_of_its_own_is_a_layer_without_a_name() -> None:
    assert [name for name, _ in layers(Block())] == ["", "inner"]


def test_a_layer_that_is_used_twice_counts_once() -> None:
    layer = nn.Linear(3, 3)
    assert len(layers(nn.Sequential(layer, nn.ReLU(), layer))) == 1


def test_parameters_without_numbers_are_counted_when_they_have_some() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(4))
    assert described(model) == "Sequential, 8 parameters so far in 2 layers (1 hidden)"
    model(torch.ones(1, 3))
    assert described(model) == "Sequential, 20 parameters in 2 layers (1 hidden)"


# ---------------------------------------------------------------------------------------------------- settings_of


class Told:
    """Asks for the settings when a logger would."""

    def on_fit_start(self, trainer: Trainer) -> None:
        self.settings = settings_of(trainer)


def test_the_settings_of_a_fit_are_those_that_it_was_given() -> None:
    told = Told()
    trainer = tiny_trainer(plugins=[told])
    trainer.fit(tiny_data(), epochs=3, batch_size=2, accumulate=2)
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert told.settings == {
        "model": "Linear", "optimizer": "SGD", "parameters": size, "lr": trainer.optimizer.param_groups[0]["lr"],
        "accumulate": 2, "epochs": 3, "batch_size": 2, "device": "cpu",
    }  # fmt: skip


def test_the_settings_of_a_recipes_run_have_its_name_its_seed_and_its_knobs(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        json.dumps({"recipe": "한글", "seed": 4, "knobs": {"hidden": 3, "widths": [1, 2]}}), encoding="utf-8"
    )
    told = Told()
    tiny_trainer(plugins=[told], run_dir=tmp_path).fit(tiny_data(), epochs=1, batch_size=2)
    assert {name: told.settings[name] for name in ("recipe", "seed", "hidden", "widths")} == {
        "recipe": "한글", "seed": 4, "hidden": 3, "widths": [1, 2],
    }  # fmt: skip
    assert told.settings["optimizer"] == "SGD"
