"""clip_gradients: the loop by hand with torch's own clipping, the share that was clipped, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.clip_gradients import ClipGradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader, TensorDataset

from framework import Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer

X = torch.randn(11, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(dim=1, keepdim=True)
EPOCHS, LIMIT = 3, 2.0


def objects(make: Any = torch.optim.Adam) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 1))
    return model, make(model.parameters(), lr=0.05)


def fitted(plugins: Any, make: Any = torch.optim.Adam, **options: Any) -> tuple[Trainer, Any]:
    model, optimizer = objects(make)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, plugins, "cpu")
    return trainer, trainer.fit((X, Y), **{"epochs": EPOCHS, "batch_size": 2, **options})


def by_hand(clip: Any, accumulate: int = 1, make: Any = torch.optim.Adam) -> tuple[Any, Any, list[float]]:
    """A loop with windows whose last one is shorter; model, optimizer, and the share of norms above LIMIT by epoch."""
    model, optimizer = objects(make)
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, shuffle=True)
    shares = []
    for _ in range(EPOCHS):
        batches, norms = list(loader), []
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            optimizer.zero_grad()
            for x, y in window:
                weight = len(x) / sum(len(part) for part, _ in window)
                loss = nn.functional.mse_loss(model(x), y)
                (loss if weight == 1 else loss * weight).backward()
            norms.append(clip(list(model.parameters())))
            optimizer.step()
        shares.append(sum(norm is not None and norm.item() > LIMIT for norm in norms) / len(norms))
    return model, optimizer, shares


CLIPS: dict[str, tuple[ClipGradients, Any]] = {
    "norm": (ClipGradients(norm=LIMIT), lambda parameters: clip_grad_norm_(parameters, LIMIT)),
    "value": (ClipGradients(value=0.1), lambda parameters: clip_grad_value_(parameters, 0.1)),
}


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("kind", CLIPS)
def test_it_is_the_loop_by_hand_to_the_bit(oracle: Any, kind: str, make: Any) -> None:
    plugin, clip = CLIPS[kind]
    trainer, result = fitted([plugin], make)
    mine = oracle.state(trainer.model, trainer.optimizer)
    model, optimizer, shares = by_hand(clip, make=make)
    oracle.assert_same(oracle.state(model, optimizer), mine)
    if kind == "norm":
        assert [row["clipped"] for row in result.history] == shares
        assert 0 < sum(shares) < EPOCHS


@pytest.mark.parametrize("kind", CLIPS)
def test_it_is_the_sum_of_a_window_that_is_clipped(oracle: Any, kind: str) -> None:
    """Poutyne clips before it divides by the number of samples. The last window is shorter: Lightning #19987."""
    plugin, clip = CLIPS[kind]
    trainer, result = fitted([plugin], accumulate=4)
    mine = oracle.state(trainer.model, trainer.optimizer)
    model, optimizer, shares = by_hand(clip, accumulate=4)
    oracle.assert_same(oracle.state(model, optimizer), mine)
    if kind == "norm":
        assert [row["clipped"] for row in result.history] == shares


@settings(max_examples=10, deadline=None)
@given(size=st.integers(1, 11), norm=st.floats(0.01, 10))
def test_an_accumulated_window_is_clipped_as_the_big_batch_is(size: int, norm: float) -> None:
    def weights(**sizes: Any) -> Tensor:
        trainer = tiny_trainer([ClipGradients(norm)])
        trainer.fit(tiny_data(11), epochs=1, shuffle=False, **sizes)
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    assert torch.allclose(weights(batch_size=size, accumulate=11), weights(batch_size=11), atol=1e-6)


def test_by_default_it_is_a_norm_of_one() -> None:
    assert (ClipGradients().norm, ClipGradients().value) == (1.0, None)
    assert (ClipGradients(value=2).norm, ClipGradients(value=2).value) == (None, 2)


def test_a_norm_that_is_never_reached_changes_no_bit(trained: Any) -> None:
    assert trained([ClipGradients(math.inf), ClipGradients(value=math.inf, name="by_value")]) == trained([])


def test_several_run_in_the_order_in_which_they_are_listed() -> None:
    def rows(*plugins: ClipGradients) -> Any:
        return fitted(plugins, torch.optim.SGD)[1].history

    by_value, by_norm = ClipGradients(value=0.05, name="by_value"), ClipGradients(norm=0.08, name="by_norm")
    one, other = rows(by_value, by_norm), rows(by_norm, by_value)
    assert [{*row} for row in one] == [{"epoch", "step", "train_loss", "by_norm_clipped"}] * EPOCHS
    assert one != other


def test_two_norms_tell_a_share_each() -> None:
    trainer, result = fitted([ClipGradients(1e9), ClipGradients(1e-9, name="tight")])
    assert [(row["clipped"], row["tight_clipped"]) for row in result.history] == [(0.0, 1.0)] * EPOCHS
    assert trainer.metric_names == ("train_loss", "clipped", "tight_clipped")


def test_the_share_is_that_of_the_epoch_also_after_a_break(tmp_path: Path) -> None:
    class StopAt:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 8:
                trainer.save()
                trainer.stop("to be resumed")

    def fit(plugins: Any, **options: Any) -> Any:
        model, optimizer = objects()
        trainer = Trainer(model, nn.functional.mse_loss, optimizer, plugins, "cpu", tmp_path)
        return trainer.fit((X, Y), epochs=EPOCHS, batch_size=2, **options).history

    whole = fitted([ClipGradients(LIMIT)])[1].history
    torch.manual_seed(3)
    fit([ClipGradients(LIMIT), StopAt()])
    assert fit([ClipGradients(LIMIT)], resume=tmp_path) == whole


def test_one_instance_counts_anew_in_a_second_fit() -> None:
    plugin = ClipGradients(LIMIT)
    assert fitted([plugin])[1].history == fitted([plugin])[1].history


@pytest.mark.parametrize("plugin", [ClipGradients(0.5), ClipGradients(value=0.5)], ids=["norm", "value"])
def test_nothing_waits_for_the_device(plugin: ClipGradients, operations: Any) -> None:
    """A hidden wait in each step, as in transformers #33693: no number is read before the end of an epoch."""
    counted = operations()

    class Looks:
        """Calls on_gradients again where operations are counted."""

        def on_batch_end(self, trainer: Trainer) -> None:
            plugin.on_gradients(trainer)

    fitted([plugin, counted, Looks()], epochs=1)
    assert counted.counts
    assert not {name for name in counted.counts if "local_scalar" in name or "nonzero" in name or name == "_to_copy"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": 1.0, "value": 0.5}, r"clip_gradients: clip by norm=1.0 or by value=0.5; for both, list two"),
        ({"norm": 0}, "norm must be a number above 0, got 0"),
        ({"norm": -1.0}, "norm must be a number above 0, got -1.0"),
        ({"norm": math.nan}, "norm must be a number above 0, got nan"),
        ({"norm": True}, "norm must be a number above 0, got True"),
        ({"value": "0.5"}, "value must be a number above 0, got '0.5'"),
    ],
    ids=str,
)
def test_what_is_no_limit_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ClipGradients(**settings)
