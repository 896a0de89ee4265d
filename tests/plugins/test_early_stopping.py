from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from framework_plugins.early_stopping import EarlyStopping
from hypothesis import given
from hypothesis import strategies as st

from framework import UsageError
from framework.testing import Recorder, tiny_data, tiny_trainer

NAN, INF = math.nan, math.inf


@pytest.fixture
def stopped(scripted: Any) -> Any:
    """How many epochs run with these figures, and the result."""

    def run(values: list[float], metric: str = "score_loss", **knobs: Any) -> tuple[int, Any]:
        plugins = [scripted(values, metric), EarlyStopping(metric, **knobs)]
        result = tiny_trainer(plugins).fit(tiny_data(), epochs=len(values))
        return result.epochs, result

    return run


def by_hand(values: list[float], patience: int) -> int:
    """Epochs that run, by looking back from each epoch at the whole past."""
    for epoch in range(len(values)):
        best = min(range(epoch + 1), key=lambda e: (math.isnan(values[e]), values[e]))
        if epoch - (-1 if math.isnan(values[best]) else best) >= patience:
            return epoch + 1
    return len(values)


def test_patience_3_stops_after_exactly_three_epochs_without_improvement(stopped: Any) -> None:
    epochs, result = stopped([5, 4, 3, 9, 9, 9, 9, 9], patience=3)
    assert epochs == 6
    assert result.stop_reason == ("early_stopping: score_loss has not improved for 3 epochs (best 3 in epoch 2)")


def test_patience_1_stops_at_the_first_epoch_that_is_not_better(stopped: Any) -> None:
    epochs, result = stopped([5, 4, 4, 3], patience=1)
    assert epochs == 3
    assert "for 1 epoch (best 4 in epoch 1)" in result.stop_reason


def test_an_improvement_starts_the_count_again(stopped: Any) -> None:
    assert stopped([5, 6, 6, 4, 6, 6, 3, 6, 6, 2], patience=3)[0] == 10


def test_the_first_epoch_counts_as_the_best_so_far(stopped: Any) -> None:
    assert stopped([1, 2, 2, 2, 2], patience=2)[0] == 3


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, INF, NAN]), min_size=1, max_size=12),
    st.integers(min_value=1, max_value=4),
)
def test_it_stops_where_looking_back_by_hand_says(values: list[float], patience: int) -> None:
    early = EarlyStopping("train_loss", patience=patience)
    trainer = tiny_trainer([early])
    trainer.metric_names = ("train_loss",)
    early.on_fit_start(trainer)
    epochs = 0
    for epoch, value in enumerate(values):
        early.on_epoch_end(trainer, epoch, {"train_loss": value})
        epochs += 1
        if trainer.asked:
            break
    assert epochs == by_hand(values, patience)


def test_nan_never_improves(stopped: Any) -> None:
    assert stopped([2, NAN, NAN, 1], patience=2)[0] == 3
    epochs, result = stopped([NAN, NAN, NAN], patience=2)
    assert epochs == 2
    assert "for 2 epochs (nan in each)" in result.stop_reason
    assert stopped([NAN, 3, 2, 1], patience=2)[0] == 4


def test_an_improvement_must_beat_min_delta(stopped: Any) -> None:
    assert stopped([1.0, 0.75, 0.75, 0.5], patience=2, min_delta=0.25)[0] == 3
    assert stopped([1.0, 0.7, 0.4, 0.1], patience=2, min_delta=0.25)[0] == 4


@pytest.mark.parametrize(
    ("metric", "mode", "epochs"),
    [("a_loss", "auto", 3), ("a_accuracy", "auto", 4), ("a_top5_accuracy", "auto", 4), ("f1", "auto", 4),
     ("a_loss", "max", 4), ("a_accuracy", "min", 3), ("perplexity", "auto", 3)],
)  # fmt: skip
def test_mode_says_which_direction_is_better(stopped: Any, metric: str, mode: str, epochs: int) -> None:
    assert stopped([1, 2, 3, 4], metric, patience=2, mode=mode)[0] == epochs


def test_the_default_is_the_validation_loss_where_there_is_one() -> None:
    early = EarlyStopping(patience=1)
    trainer = tiny_trainer([early], lr=0.0)
    assert "val_loss has" in str(trainer.fit(tiny_data(), tiny_data(seed=1), epochs=9).stop_reason)
    assert "train_loss has" in str(trainer.fit(tiny_data(), epochs=9).stop_reason)


def test_a_misspelt_monitor_is_refused_before_the_first_epoch() -> None:
    recorder = Recorder(["on_epoch_start"])
    trainer = tiny_trainer([recorder, EarlyStopping("val_los")])
    with pytest.raises(UsageError, match=r"no metric 'val_los' to monitor\. Did you mean 'val_loss'\?"):
        trainer.fit(tiny_data(), tiny_data(), epochs=2)
    assert recorder.names == []


def test_a_misspelt_figure_of_another_plugin_gets_a_suggestion_too(scripted: Any) -> None:
    trainer = tiny_trainer([EarlyStopping("val_acuracy"), scripted([1.0], "val_accuracy")])
    with pytest.raises(UsageError, match=r"Did you mean 'val_accuracy'\?"):
        trainer.fit(tiny_data(), epochs=1)


def test_val_loss_without_validation_data_is_refused_and_says_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no metric 'val_loss' to monitor.*train_loss"):
        tiny_trainer([EarlyStopping("val_loss")]).fit(tiny_data(), epochs=1)


@pytest.mark.parametrize("patience", [0, -1, 2.5, "3"])
def test_a_patience_that_is_no_number_of_epochs_is_refused(patience: Any) -> None:
    with pytest.raises(UsageError, match=f"patience must be a whole number of epochs from 1 up, got {patience!r}"):
        EarlyStopping(patience=patience)


def test_a_mode_or_min_delta_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="mode must be"):
        EarlyStopping(mode="minimum")
    with pytest.raises(UsageError, match="min_delta must not be negative"):
        EarlyStopping(min_delta=-0.1)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 2.0, 2.0], [3.0, 1.0, 2.0]], ids=["stopped", "all epochs ran"])
def test_restore_best_leaves_the_best_weights_however_the_fit_ends(
    values: list[float], scripted: Any, weights: Any
) -> None:
    seen = weights()
    trainer = tiny_trainer([scripted(values), seen, EarlyStopping("score_loss", patience=3, restore_best=True)])
    trainer.fit(tiny_data(), epochs=len(values))
    assert torch.equal(trainer.model.weight, seen.by_epoch[1]["weight"])
    assert not torch.equal(trainer.model.weight, seen.by_epoch[-1]["weight"])


def test_without_restore_best_the_last_weights_stay(scripted: Any, weights: Any) -> None:
    seen = weights()
    trainer = tiny_trainer([scripted([1.0, 2.0, 3.0]), seen, EarlyStopping("score_loss", patience=2)])
    trainer.fit(tiny_data(), epochs=3)
    assert torch.equal(trainer.model.weight, seen.by_epoch[-1]["weight"])


def test_two_instances_keep_their_states_apart(scripted: Any) -> None:
    one, other = EarlyStopping("a_loss", patience=9), EarlyStopping("b_loss", patience=2, name="second")
    trainer = tiny_trainer([scripted([1, 2, 3, 4], "a_loss", "a"), scripted([4, 3, 3, 3], "b_loss", "b"), one, other])
    result = trainer.fit(tiny_data(), epochs=4)
    assert str(result.stop_reason).startswith("second: b_loss")
    states = trainer.snapshot().plugins
    assert (states["early_stopping"]["best"], states["early_stopping"]["waited"]) == (1, 3)
    assert (states["second"]["best"], states["second"]["waited"]) == (3, 2)


def test_a_second_fit_starts_anew(scripted: Any) -> None:
    trainer = tiny_trainer([scripted([1, 2, 2]), EarlyStopping("score_loss", patience=2)])
    assert [trainer.fit(tiny_data(), epochs=3).epochs for _ in range(2)] == [3, 3]
    trainer.plugins["scripted"].values = [9, 8, 7]
    assert trainer.fit(tiny_data(), epochs=3).stop_reason is None


def test_a_fit_after_one_that_failed_starts_anew(scripted: Any, fails: Any) -> None:
    failing = fails(epoch=2)
    trainer = tiny_trainer([scripted([1, 2, 2]), EarlyStopping("score_loss", patience=2), failing])
    with pytest.raises(RuntimeError):
        trainer.fit(tiny_data(), epochs=3)
    failing.armed = False
    assert trainer.fit(tiny_data(), epochs=3).epochs == 3


def test_a_loaded_state_goes_on_counting_and_keeps_the_best_weights(scripted: Any) -> None:
    before = EarlyStopping("score_loss", patience=3, restore_best=True)
    first = tiny_trainer([scripted([1, 2, 2]), before])
    first.fit(tiny_data(), epochs=2)
    state = first.snapshot().plugins["early_stopping"]

    class Resumes:
        def on_fit_start(self) -> None:
            after.load_state_dict({**state, "weights": {"weight": torch.ones(1, 3), "bias": torch.ones(1)}})

    after = EarlyStopping("score_loss", patience=3, restore_best=True)
    second = tiny_trainer([scripted([2, 2, 2, 2]), after, Resumes()])
    assert second.fit(tiny_data(), epochs=4).epochs == 2
    assert torch.equal(second.model.weight, torch.ones(1, 3))


def test_evaluate_outside_a_fit_leaves_it_alone() -> None:
    trainer = tiny_trainer([EarlyStopping(patience=1)])
    assert list(trainer.evaluate(tiny_data())) == ["test_loss"]


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    assert trained([EarlyStopping(patience=100, restore_best=False)]) == trained([])


def test_the_figure_of_an_epoch_is_that_of_all_its_samples_and_not_of_its_last_step() -> None:
    # Lightning #4216, #5298: what was monitored was the last step's
    x, y = tiny_data(6)
    y[4:] = x[4:].sum(dim=1, keepdim=True) * torch.tensor([[50.0], [-50.0]])  # the last batch stays bad
    plugin = EarlyStopping("train_loss", patience=1)
    result = tiny_trainer([plugin], lr=1e-3).fit((x, y), epochs=5, batch_size=2, shuffle=False)
    losses = [row["train_loss"] for row in result.history]
    assert plugin.monitor.best == min(losses)
    assert result.epochs == by_hand(losses, patience=1)
