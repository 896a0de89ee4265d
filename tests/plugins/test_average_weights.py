"""average_weights: torch's AveragedModel updated by hand, in validation, in checkpoints and after the fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.early_stopping import EarlyStopping
from framework_plugins.freeze import Freeze
from framework_plugins.mixed_precision import MixedPrecision
from framework_plugins.validation import Validation
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader, TensorDataset

from framework import CheckpointError, DataError, Trainer, UsageError, hookimpl, kept_random_states
from framework.checkpoint import find, read
from framework.testing import tiny_data, tiny_trainer

X = torch.randn(14, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(14) % 3
VAL = X[:5], Y[:5]
EPOCHS, STEPS = 4, 5  # five batches an epoch, of which the last is smaller
KINDS: dict[str, Callable[[], AverageWeights]] = {
    "EMA": lambda: AverageWeights(decay=0.9),
    "EMA with buffers": lambda: AverageWeights(decay=0.9, use_buffers=True),
    "SWA": lambda: AverageWeights(swa_start=1),
    "SWA with buffers": lambda: AverageWeights(swa_start=1, use_buffers=True),
}


def objects() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.05)


def fitted(plugins: Any, run_dir: Path | None = None, val: Any = VAL, **options: Any) -> tuple[Trainer, Any]:
    model, optimizer = objects()
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, "cpu", run_dir)
    return trainer, trainer.fit((X, Y), val, **{"epochs": EPOCHS, "batch_size": 3, **options})


class StopAt:
    """Saves and stops after a step."""

    def __init__(self, step: int, save: bool = True) -> None:
        self.step, self.save = step, save

    @hookimpl(split="train")
    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.step == self.step:
            if self.save:
                trainer.save()
            trainer.stop("to be resumed")


def averaged_by_hand(kind: str, epochs: int = EPOCHS, stop: int = 10**9) -> tuple[Any, Any, Any, list[Any]]:
    """The loop of torch's documentation: AveragedModel, model, optimizer, rows."""
    model, optimizer = objects()
    ema, buffers = kind.startswith("EMA"), kind.endswith("buffers")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9) if ema else None, use_buffers=buffers)
    loss, loader = nn.CrossEntropyLoss(), DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    rows: list[Any] = []
    step = 0
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            l = loss(model(x), y)  # noqa: E741
            l.backward()
            optimizer.step()
            step, total = step + 1, total + l.item() * len(x)
            if ema:
                average.update_parameters(model)
            if step == stop:
                return average, model, optimizer, rows
        if not ema and epoch >= 1:
            average.update_parameters(model)
            if not buffers:
                with kept_random_states():
                    update_bn(loader, average.module)
        now = (average.module if average.n_averaged else model).eval()
        with torch.no_grad():
            losses = [loss(now(x), y).item() * len(x) for x, y in DataLoader(TensorDataset(*VAL), 3)]
        rows.append({"epoch": epoch, "step": step, "train_loss": total / len(X), "val_loss": sum(losses) / 5})
    return average, model, optimizer, rows


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_averaged_model_of_torch_to_the_bit(oracle: Any, kind: str) -> None:
    trainer, result = fitted([KINDS[kind]()])
    drawn = torch.get_rng_state()
    average, model, optimizer, rows = averaged_by_hand(kind)
    oracle.assert_same(drawn, torch.get_rng_state())
    oracle.assert_same(rows, result.history)
    oracle.assert_same(dict(average.module.state_dict()), dict(trainer.model.state_dict()))
    oracle.assert_same(optimizer.state_dict(), trainer.optimizer.state_dict())
    others = trainer.plugins.states()["average_weights"]["others"]
    for name, parameter in model.named_parameters():
        oracle.assert_same(parameter.detach(), others[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_that_are_trained_are_those_of_a_fit_without_it(kind: str, weights: Any, oracle: Any) -> None:
    class Trained:
        def on_fit_start(self) -> None:
            self.by_step: list[Any] = []

        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            self.by_step.append(weights_of(trainer.model))

    with_it, without = Trained(), Trained()
    held = next(iter(fitted([KINDS[kind](), with_it])[0].model.parameters()))
    fitted([without])
    oracle.assert_same(without.by_step, with_it.by_step)
    assert isinstance(held, nn.Parameter)


def test_the_parameters_stay_the_same_objects() -> None:
    model, optimizer = objects()
    before = [*model.parameters(), *model.buffers()]
    Trainer(model, nn.CrossEntropyLoss(), optimizer, [AverageWeights(0.5)], "cpu").fit((X, Y), epochs=2, batch_size=3)
    assert all(a is b for a, b in zip(before, [*model.parameters(), *model.buffers()], strict=True))


def test_by_default_it_is_an_ema_of_a_thousand_steps() -> None:
    assert (AverageWeights().decay, AverageWeights().swa_start) == (0.999, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [3, 5, 7, 10, 18])
def test_interrupted_and_resumed_it_ends_as_it_does_alone(oracle: Any, tmp_path: Path, kind: str, step: int) -> None:
    """In the middle of an epoch, and after its last batch."""
    alone, whole = fitted([KINDS[kind]()])
    fitted([KINDS[kind](), StopAt(step)], tmp_path)
    resumed, result = fitted([KINDS[kind]()], tmp_path, resume=tmp_path)
    oracle.assert_same(whole.history, result.history)
    oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(resumed.model, resumed.optimizer))
    oracle.assert_same(alone.plugins.states(), resumed.plugins.states())


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_of_an_epochs_end_holds_the_averages_and_goes_on_from_it(
    oracle: Any, tmp_path: Path, kind: str
) -> None:
    class SaveAt:
        def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
            if epoch == 2:
                trainer.save()
                trainer.stop("enough")

    alone, whole = fitted([KINDS[kind]()])
    stopped, _ = fitted([KINDS[kind](), SaveAt()], tmp_path)
    average = averaged_by_hand(kind, epochs=3)[0]
    path = find(tmp_path, "last")
    assert path is not None
    oracle.assert_same(dict(average.module.state_dict()), dict(read(path).model))
    oracle.assert_same(dict(average.module.state_dict()), dict(stopped.model.state_dict()))
    resumed, result = fitted([KINDS[kind]()], tmp_path, resume=tmp_path)
    oracle.assert_same(whole.history, result.history)
    oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(resumed.model, resumed.optimizer))


@pytest.mark.parametrize("first", [True, False], ids=["listed before", "listed after"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_inside_an_epoch_leaves_the_averages_and_a_checkpoint_to_go_on_from(
    oracle: Any, tmp_path: Path, kind: str, first: bool
) -> None:
    """The last checkpoint is written by best_checkpoint when the fit ends."""

    def plugins() -> list[Any]:
        listed = [KINDS[kind](), BestCheckpoint()]
        return listed if first else listed[::-1]

    alone, whole = fitted(plugins(), tmp_path / "alone")
    stopped, _ = fitted([*plugins(), StopAt(13, save=False)], tmp_path / "stopped")
    average, model, _, _ = averaged_by_hand(kind, stop=13)
    wanted, left = dict(average.module.state_dict()), dict(stopped.model.state_dict())
    if kind == "SWA":  # its statistics are those of one more pass
        wanted, left = dict(average.module.named_parameters()), dict(stopped.model.named_parameters())
    oracle.assert_same(wanted, left)
    path = find(tmp_path / "stopped", "last")
    assert path is not None
    saved = stopped.model if first else model  # the averages, where they were put in before it was written
    oracle.assert_same(dict(saved.state_dict()), dict(read(path).model))
    resumed, result = fitted(plugins(), tmp_path / "stopped", resume=tmp_path / "stopped")
    oracle.assert_same(whole.history, result.history)
    oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(resumed.model, resumed.optimizer))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_taken_after_such_a_stop_goes_on_from_the_weights_that_are_trained(
    oracle: Any, tmp_path: Path, kind: str
) -> None:
    alone, whole = fitted([KINDS[kind]()])
    stopped, _ = fitted([KINDS[kind](), StopAt(13, save=False)], tmp_path)
    stopped.save()
    resumed, result = fitted([KINDS[kind]()], tmp_path, resume=tmp_path)
    oracle.assert_same(whole.history, result.history)
    oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(resumed.model, resumed.optimizer))


@pytest.mark.parametrize("step", [10**9, 18], ids=["all epochs", "stopped inside the last"])
@pytest.mark.parametrize("first", [True, False], ids=["listed before", "listed after"])
@pytest.mark.parametrize("restorer", ["best_checkpoint", "early_stopping"])
def test_the_best_weights_that_are_restored_are_averages(
    oracle: Any, scripted: Any, weights: Any, restorer: str, first: bool, step: int
) -> None:
    """And they are restored also where nothing was stopped early: Keras #12511."""
    seen = weights()
    restores: Any = (
        BestCheckpoint("score_loss", restore_best=True)
        if restorer == "best_checkpoint"
        else EarlyStopping("score_loss", restore_best=True)
    )
    listed = [AverageWeights(0.9), restores]
    figures = scripted([3.0, 1.0, 2.0, 2.0])
    trainer, _ = fitted([*(listed if first else listed[::-1]), figures, seen, StopAt(step, save=False)])
    oracle.assert_same(seen.by_epoch[1], weights_of(trainer.model))
    average = averaged_by_hand("EMA", epochs=2)[0]
    oracle.assert_same(dict(average.module.state_dict()), weights_of(trainer.model))


def test_the_best_checkpoint_is_chosen_by_the_averages_and_holds_them(oracle: Any, tmp_path: Path) -> None:
    _, result = fitted([AverageWeights(0.9), BestCheckpoint()], tmp_path)
    best = min(averaged_by_hand("EMA")[3], key=lambda row: row["val_loss"])
    assert result.best["val_loss"] == best["val_loss"]
    average = averaged_by_hand("EMA", epochs=best["epoch"] + 1)[0]
    oracle.assert_same(dict(average.module.state_dict()), dict(read(result.best["path"]).model))


@pytest.mark.parametrize("first", [True, False], ids=["listed before", "listed after"])
def test_without_a_validation_set_other_plugins_evaluate_the_averages_that_are_saved(
    tmp_path: Path, first: bool
) -> None:
    listed = [AverageWeights(0.9), Validation(VAL, name="hard"), BestCheckpoint("hard_loss")]
    trainer, result = fitted(listed if first else listed[::-1], tmp_path, val=None)
    trainer.model.load_state_dict(read(result.best["path"]).model)
    assert trainer.evaluate(VAL)["test_loss"] == result.best["hard_loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_gives_back_the_weights_that_are_trained(oracle: Any, kind: str) -> None:
    class Fails:
        @hookimpl(split="val")
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.epoch == 2:
                raise RuntimeError("the disk fell off")

    model, optimizer = objects()
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [KINDS[kind](), Fails()], "cpu")
    with pytest.raises(RuntimeError, match="the disk fell off"):
        trainer.fit((X, Y), VAL, epochs=EPOCHS, batch_size=3)
    oracle.assert_same(dict(averaged_by_hand(kind, epochs=3)[1].state_dict()), dict(model.state_dict()))


def test_a_later_fit_that_fails_before_it_begins_leaves_the_averages() -> None:
    trainer, _ = fitted([AverageWeights(0.9)])
    before = weights_of(trainer.model)
    with pytest.raises(DataError, match="the data set is empty"):
        trainer.fit((X[:0], Y[:0]), epochs=2, batch_size=3)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_an_error_in_the_pass_for_the_statistics_puts_everything_back(oracle: Any) -> None:
    class Fails(TensorDataset):
        broken = False

        def __getitem__(self, row: int) -> Any:
            if self.broken:
                raise RuntimeError("no such file")
            return X[row], Y[row]

    class Breaks:
        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            data.broken = trainer.step == 2 * STEPS

    data = Fails(X, Y)
    model, optimizer = objects()
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [AverageWeights(swa_start=1), Breaks()], "cpu")
    with pytest.raises(RuntimeError, match="no such file"):
        trainer.fit(data, VAL, epochs=3, batch_size=3)
    oracle.assert_same(dict(averaged_by_hand("SWA", epochs=2)[1].state_dict()), dict(model.state_dict()))
    assert [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm1d)] == [0.1]


def test_the_pass_for_the_statistics_leaves_generators_and_modes(oracle: Any) -> None:
    def fit(plugins: Any) -> Any:
        model, optimizer = objects()
        generator = torch.Generator().manual_seed(7)
        loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, generator=generator)
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [Frozen(), *plugins], "cpu")
        result = trainer.fit(loader, epochs=EPOCHS)
        losses = [row["train_loss"] for row in result.history]
        return losses, generator.get_state(), torch.get_rng_state(), [module.training for module in model.modules()]

    class Frozen:
        @hookimpl(split="train")
        def on_split_start(self, trainer: Trainer) -> None:
            next(trainer.model.children()).eval()

    oracle.assert_same(fit([]), fit([AverageWeights(swa_start=0)]))


def test_statistics_that_stand_still_in_training_are_not_measured_anew(oracle: Any) -> None:
    model, optimizer = objects()
    frozen = weights_of(model[1])
    plugins = [AverageWeights(swa_start=0), Freeze(["1"])]
    Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, "cpu").fit((X, Y), VAL, epochs=2, batch_size=3)
    oracle.assert_same(frozen, weights_of(model[1]))


def test_the_statistics_are_measured_on_batches_of_any_kind(oracle: Any) -> None:
    class Dicts:
        def forward(self, model: Any, batch: Any) -> Any:
            return model(batch["x"])

        def compute_loss(self, output: Tensor, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(output, batch["y"])

    model, optimizer = objects()
    data: Any = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
    loader = DataLoader(data, batch_size=3, shuffle=True)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [AverageWeights(swa_start=1), Dicts()], "cpu")
    trainer.fit(loader, epochs=EPOCHS)
    model, optimizer = objects()
    usual = Trainer(model, nn.CrossEntropyLoss(), optimizer, [AverageWeights(swa_start=1)], "cpu")
    usual.fit((X, Y), epochs=EPOCHS, batch_size=3)
    oracle.assert_same(weights_of(usual.model), weights_of(trainer.model))


def test_before_swa_begins_the_weights_are_those_that_are_trained(oracle: Any) -> None:
    plugin = AverageWeights(swa_start=2, use_buffers=True)
    plain, swa = fitted([])[1].history, fitted([plugin])[1].history
    assert plain[:2] == swa[:2]
    assert plain[2] == swa[2]  # the mean of one
    assert plain[3]["train_loss"] == swa[3]["train_loss"]
    assert plain[3]["val_loss"] != swa[3]["val_loss"]


def test_a_step_that_was_skipped_does_not_count() -> None:
    """The first steps of fp16 with too high a scale."""
    plugin = AverageWeights(0.9)
    steps = fitted([MixedPrecision("fp16", 2.0**26), plugin])[1].steps
    assert 0 < plugin.state_dict()["count"] < steps


def test_a_model_without_numbers_before_its_first_batch_has_averages() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 3))
    with torch.no_grad():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [AverageWeights(0.5)], "cpu")
    trainer.fit((X, Y), VAL, epochs=2, batch_size=3)
    assert trainer.plugins.states()["average_weights"]["count"] == 2 * STEPS


def test_one_instance_begins_anew_in_a_second_fit(oracle: Any) -> None:
    plugin = AverageWeights(swa_start=1)
    oracle.assert_same(fitted([plugin])[1].history, fitted([plugin])[1].history)


def test_nothing_waits_for_the_device(operations: Any) -> None:
    """A hidden wait in each step, as in transformers #33693."""
    counted = operations()
    fitted([counted, AverageWeights(0.5)], epochs=1, val=None)
    assert counted.counts
    assert not {name for name in counted.counts if "local_scalar" in name or "nonzero" in name or name == "_to_copy"}


def test_swa_costs_no_call_a_batch() -> None:
    assert fitted([AverageWeights(swa_start=0)])[0].plugins.frozen("train").on_batch_end is None


def test_a_model_holds_one_average() -> None:
    trainer = tiny_trainer([AverageWeights(), AverageWeights(swa_start=0, name="swa")])
    with pytest.raises(UsageError, match="a model holds one average: list one of average_weights and swa"):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_another_average_is_no_way_to_go_on(tmp_path: Path) -> None:
    fitted([AverageWeights(0.9), StopAt(7)], tmp_path)
    said = r"of average_weights were \[0.9, None, False\], now they are \[0.8, None, False\]"
    with pytest.raises(CheckpointError, match=said):
        fitted([AverageWeights(0.8)], tmp_path, resume=tmp_path)


def test_a_decay_that_is_too_long_for_the_fit_is_warned_of() -> None:
    said = "decay=0.999 averages about 1000 steps, and this fit has 20: .* first weights; try decay=0.5"
    with pytest.warns(UserWarning, match=said):
        fitted([AverageWeights()])
    with pytest.warns(UserWarning, match="this fit has 8"):
        fitted([AverageWeights(0.9)], accumulate=3)


def test_swa_that_would_never_begin_is_refused() -> None:
    trainer = tiny_trainer([AverageWeights(swa_start=3)])
    with pytest.raises(UsageError, match="swa_start=3 comes after the last epoch, 2"):
        trainer.fit(tiny_data(), epochs=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"decay": 0.9, "swa_start": 1}, "decay=0.9 is for EMA, swa_start=1 for SWA; give one of them"),
        ({"decay": 1.0}, "decay must be a number from 0 up and below 1, got 1.0"),
        ({"decay": "0.9"}, "decay must be a number from 0 up and below 1, got '0.9'"),
        ({"decay": float("nan")}, "decay must be a number from 0 up and below 1, got nan"),
        ({"swa_start": -1}, "swa_start must be an epoch, a whole number from 0 up, got -1"),
        ({"swa_start": 0.75}, "swa_start must be an epoch, a whole number from 0 up, got 0.75"),
    ],
    ids=str,
)
def test_what_is_no_average_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AverageWeights(**settings)
