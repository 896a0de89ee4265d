"""Where an inf or a nan came from is found after the fact, and nothing is changed by the search."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from framework import NonFiniteError, Trainer
from framework.mistakes import nonfinite_from, nonfinite_in


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.ones(3, 2), torch.ones(3)), ""),
        ((torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), torch.ones(2)), "x holds nan in row 1"),
        ((torch.ones(2), torch.tensor([1.0, float("-inf")])), "y holds inf in row 1"),
        (({"a": torch.ones(2), "b": [torch.tensor([float("inf")])]}, None), "x['b'][0] holds inf in row 0"),
        ((torch.ones(2, dtype=torch.int64), torch.tensor(float("nan"))), "y holds nan in row 0"),
        ((torch.zeros(0, 3), torch.zeros(0)), ""),
        (None, ""),
    ],
)
def test_a_number_that_is_not_finite_is_found_in_any_batch(batch: Any, said: str) -> None:
    found = nonfinite_in(batch)
    assert found == said or (said and found == f"the data is the cause: {said} of this batch")


def found(model: nn.Module, loss: Any, batch: Any, plugins: Any = ()) -> str:
    trainer = Trainer(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), plugins, device="cpu")
    with torch.no_grad():
        output = model(batch[0])
    return nonfinite_from(trainer, batch, output)


class Overflows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e38 * 1e38


PAIR = torch.rand(4, 3) + 1, torch.rand(4, 1)


def test_data_that_is_not_finite_is_found_before_anything_else() -> None:
    x = PAIR[0].clone()
    x[2, 1] = float("nan")
    assert found(nn.Linear(3, 1), nn.MSELoss(), (x, PAIR[1])).startswith("the data is the cause: x holds nan in row 2")


def test_labels_that_are_all_ignored_are_found() -> None:
    y = torch.full((4,), 7)
    said = found(nn.Linear(3, 3), nn.CrossEntropyLoss(ignore_index=7), (PAIR[0], y))
    assert said.startswith("every label y of this batch is 7, which the loss ignores")
    y[0] = 1
    assert not found(nn.Linear(3, 3), nn.CrossEntropyLoss(ignore_index=7), (PAIR[0], y)).startswith("every label")


def test_a_parameter_that_is_not_finite_is_found_by_its_name() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight[0, 1] = float("inf")
    assert found(model, nn.MSELoss(), PAIR).startswith("the parameter '1.weight' holds inf since the step before")


def test_a_loss_that_makes_it_of_finite_outputs_is_found() -> None:
    model = nn.Linear(3, 1)
    nn.init.constant_(model.weight, 0.0)
    nn.init.constant_(model.bias, -2.0)
    assert found(model, lambda output, y: output.log().mean(), PAIR).startswith("the outputs are finite, -2 to -2:")


def test_the_first_layer_whose_output_is_not_finite_is_found() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(Overflows(), nn.Linear(2, 2)), nn.ReLU())
    assert found(model, nn.MSELoss(), PAIR).startswith("inf comes first out of the layer '1.0' (Overflows)")


def test_a_model_of_its_own_that_makes_it_is_found_without_a_name() -> None:
    class Whole(Overflows):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    assert found(Whole(), nn.MSELoss(), PAIR).startswith("inf comes first out of the layer '' (Whole)")


def test_a_model_that_a_plugin_runs_is_not_run_by_anyone_else() -> None:
    class Runs:
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return model(batch[0])

    assert found(nn.Sequential(nn.Linear(3, 2), Overflows()), nn.MSELoss(), PAIR, [Runs()]) == ""


def test_the_search_leaves_buffers_draws_and_hooks_as_they_were(oracle: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), Overflows())
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    before = oracle.state(model, trainer.optimizer)
    before = {**before, "model": {name: value.clone() for name, value in before["model"].items()}}
    output = torch.full((4, 4), float("inf"))
    assert "'3' (Overflows)" in nonfinite_from(trainer, PAIR, output)
    oracle.assert_same(before, oracle.state(model, trainer.optimizer))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("batch", [{"x": torch.ones(2)}, torch.ones(2), None, (torch.ones(2),)])
def test_a_batch_that_is_no_pair_is_searched_as_far_as_it_goes(batch: Any) -> None:
    model = nn.Linear(3, 1)
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    assert nonfinite_from(trainer, batch, None) == ""


def test_a_fit_that_becomes_nan_says_where_it_came_from() -> None:
    model = nn.Sequential(nn.Linear(3, 2), Overflows(), nn.Linear(2, 1))
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    with pytest.raises(NonFiniteError, match=r"at step 0, epoch 0, batch 0 .*; inf comes first .* '1' \(Overflows\)"):
        trainer.fit(PAIR)
