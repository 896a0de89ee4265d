from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.regression import Regression
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from framework import DataError, Trainer, hookimpl
from framework.testing import tiny_data, tiny_trainer


class Echo(nn.Module):
    """Answers its input, so that a test chooses what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.zero


def echoing(plugins: list[Any], loss: Any = F.mse_loss, kind: type[Trainer] = Trainer) -> Trainer:
    model = Echo()
    return kind(model, loss, torch.optim.SGD(model.parameters()), plugins=plugins, device="cpu")


def judge(output: Tensor, target: Tensor, batch_size: int | None = None) -> list[float]:
    """mae, rmse and r2 of these outputs."""
    return list(echoing([Regression()]).evaluate((output, target), batch_size).values())[1:]


def by_hand(output: Tensor, target: Tensor) -> list[float]:
    output, target = (part.double().reshape(len(part), -1) for part in (output, target))
    error, deviation = output - target, target - target.mean(0)
    r2 = (1 - error.square().sum(0) / deviation.square().sum(0)).mean()
    return [float(error.abs().mean()), float(error.square().mean().sqrt()), float(r2)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 40), st.sampled_from([(), (1,), (3,), (2, 2)]))
def test_any_batch_size_gives_the_figures_of_the_whole(seed: int, samples: int, size: int, shape: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    output, target = (torch.randn(samples, *shape, generator=generator) for _ in range(2))
    assert judge(output, target, size) == pytest.approx(by_hand(output, target), rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())
def test_large_targets_that_differ_little_lose_nothing(seed: int, size: int, ordered: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = 1e6 + torch.randn(40, generator=generator)
    output = target + 0.5 * torch.randn(40, generator=generator)
    target, order = target.sort() if ordered else (target, torch.arange(40))
    assert judge(output[order], target, size) == pytest.approx(by_hand(output[order], target), rel=1e-6)


@pytest.mark.parametrize("size", [1, 3, 7, None])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6 / 3])
def test_targets_that_are_all_alike_have_no_variance_to_explain(value: float, size: int | None) -> None:
    target = torch.full((50,), value)
    assert judge(target, target, size)[2] == 1
    assert judge(target + 1, target, size)[2] == 0


def test_a_single_sample_has_no_r2() -> None:
    mae, rmse, r2 = judge(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    assert (mae, rmse) == (2, 2)
    assert math.isnan(r2)


def test_whole_numbers_as_targets_are_taken() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    trainer = echoing([Regression()], loss)
    assert trainer.evaluate((torch.tensor([1.5, 2.0]), torch.tensor([1, 3])))["test_mae"] == 0.75


def test_every_split_of_a_fit_has_its_own_figures() -> None:
    trainer = tiny_trainer(["regression"], lr=0.0)
    train, val = tiny_data(7), tiny_data(4, seed=1)
    result = trainer.fit(train, val, epochs=2, batch_size=3)
    for split, (_, y) in (("train", train), ("val", val)):  # the model says 0
        names = trainer.plugins["regression"].metric_names(split)
        assert [result.history[1][name] for name in names] == pytest.approx(by_hand(torch.zeros_like(y), y))
    assert trainer.metric_names == (
        "train_loss", "train_mae", "train_rmse", "train_r2", "val_loss", "val_mae", "val_rmse", "val_r2",
    )  # fmt: skip


def test_another_instance_adds_figures_under_its_name() -> None:
    target = torch.tensor([1.0, 2.0, 4.0])
    figures = echoing([Regression(), Regression(name="second")]).evaluate((target + 1, target))
    assert figures["test_second_mae"] == figures["test_mae"] == 1


def test_rows_of_padding_do_not_count() -> None:
    class Padded:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 2

    figures = echoing([Padded(), Regression()]).evaluate((torch.zeros(3), torch.tensor([1.0, -1.0, 50.0])))
    assert (figures["test_mae"], figures["test_r2"]) == (1, 0)


@pytest.mark.parametrize("counted", [2, 100])
def test_samples_that_are_counted_in_another_way_are_no_padding(counted: int) -> None:
    output, target = torch.randn(23, 3), torch.randn(23, 3)
    model = Echo()
    optimizer = torch.optim.SGD(model.parameters())
    trainer = Trainer(model, F.mse_loss, optimizer, [Regression()], "cpu", samples=lambda batch: counted)
    assert list(trainer.evaluate((output, target), 5).values())[1:] == pytest.approx(by_hand(output, target))


def test_the_sums_of_all_processes_are_those_of_the_whole() -> None:
    """Trainer.sum adds over processes: here two passes, of which each is given what the other would have summed."""
    target = torch.tensor([1.0, 2.0, 9.0, 30.0, 31.0])
    output = target + torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    asked: list[list[Tensor]] = [[], []]

    class One(Trainer):
        process = 0

        def sum(self, value: Tensor) -> Tensor:
            asked[self.process].append(value)
            other = asked[1 - self.process]
            at = len(asked[self.process]) - 1
            return value + other[at] if at < len(other) else value

    parts = [(output[:2], target[:2]), (output[2:], target[2:])]
    figures: dict[str, float] = {}
    for turn in (0, 1, 0, 1, 0, 1):  # by the third turn each knows what the other says with the mean of all
        asked[turn] = []
        trainer = echoing([Regression()], kind=One)
        trainer.process = turn  # type: ignore[attr-defined]
        figures = trainer.evaluate(parts[turn])
    assert list(figures.values())[1:] == pytest.approx(by_hand(output, target))


def test_evaluate_in_the_middle_of_an_epoch_does_not_disturb_the_sums() -> None:
    class Evaluates:
        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.evaluate((torch.ones(3), torch.zeros(3)))

    target = torch.arange(5.0)
    trainer = echoing([Regression(), Evaluates()], lambda output, target: (output * 0).sum())
    assert trainer.fit((target, target), epochs=1, batch_size=2).history[0]["train_r2"] == 1


def test_a_step_never_waits_for_the_device(operations: Any) -> None:
    seen = operations()
    tiny_trainer([seen, Regression()]).fit(tiny_data(), tiny_data(), epochs=2, batch_size=2)
    assert seen.counts["abs"] == 2 * (3 + 3)
    assert seen.counts["_local_scalar_dense"] == 0


def test_it_changes_no_bit_of_training() -> None:
    plain, watched = tiny_trainer(), tiny_trainer([Regression()])
    drawn = []
    for trainer in (plain, watched):
        torch.manual_seed(0)
        trainer.fit(tiny_data(), tiny_data(), epochs=3, batch_size=2)
        drawn.append([*trainer.model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *drawn))


def test_a_pass_after_one_that_failed_sums_anew() -> None:
    class Fails:
        def on_split_end(self, trainer: Trainer) -> None:
            if trainer.loss is F.mse_loss:
                raise RuntimeError

    trainer = echoing([Fails(), Regression()])
    with pytest.raises(RuntimeError):
        trainer.evaluate((torch.zeros(3), torch.ones(3)))
    trainer.loss = nn.MSELoss()
    assert trainer.evaluate((torch.zeros(3), torch.zeros(3)))["test_mae"] == 0


# ------------------------------------------------------------------------------------------------------------- resumed


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_fit_that_was_stopped_and_resumed_ends_as_the_one_left_alone(tmp_path: Path, step: int) -> None:
    class Stops:
        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == step:
                trainer.save()
                trainer.stop("to be resumed")

    def fitted(*plugins: Any, **options: Any) -> list[dict[str, Any]]:
        torch.manual_seed(0)
        trainer = tiny_trainer([Regression(), *plugins], run_dir=options.pop("run_dir", None))
        return trainer.fit(tiny_data(), tiny_data(4), epochs=2, batch_size=2, **options).history

    fitted(Stops(), run_dir=tmp_path)
    assert fitted(resume=tmp_path) == fitted()


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("loss", [F.mse_loss, nn.L1Loss(), nn.HuberLoss(), lambda a, b: (a - b).square().mean()])
def test_a_column_against_a_row_is_an_error_and_not_a_broadcast(loss: Any) -> None:
    trainer = echoing([Regression()], loss)
    with pytest.raises(DataError, match=r"\(4, 1\)"):
        trainer.fit((torch.ones(4), torch.ones(4, 1)), epochs=1)
    assert trainer.step == 0


def test_shapes_that_a_loss_of_your_own_takes_are_told_all_the_same() -> None:
    trainer = echoing([Regression()], lambda output, target: output.sum())
    with pytest.raises(DataError, match=r"one shape: the model gives \(4, 2\), and the target is \(4, 3\)"):
        trainer.fit((torch.ones(4, 2), torch.ones(4, 3)), epochs=1)
    with pytest.raises(DataError, match=r"one shape: the model gives \(4, 2\), and the target is dict"):
        trainer.evaluate((torch.ones(4, 2), {"a": torch.ones(4)}))
