"""mixed_precision: the loop by hand under autocast, with a GradScaler for fp16; steps that are skipped; refusals.

Torch's autocast and GradScaler work on the CPU too, so all of it is tested without a GPU.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from framework_plugins import mixed_precision
from framework_plugins.average_weights import AverageWeights
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.closure import Closure
from framework_plugins.freeze import Freeze
from framework_plugins.mixed_precision import MixedPrecision
from framework_plugins.schedule import Schedule
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from framework import NonFiniteError, PluginError, Trainer, UsageError, hookimpl
from framework.testing import tiny_data, tiny_trainer

X = torch.randn(14, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(14) % 3
EPOCHS = 3
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
HIGH = 2.0**26  # a scale with which the first steps overflow


def objects(make: Any = torch.optim.Adam) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))
    return model, make(model.parameters(), lr=0.05)


def fitted(plugins: Any, make: Any = torch.optim.Adam, run_dir: Path | None = None, **options: Any) -> Any:
    model, optimizer = objects(make)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, "cpu", run_dir)
    return trainer, trainer.fit((X, Y), (X[:5], Y[:5]), **{"epochs": EPOCHS, "batch_size": 3, **options})


def by_hand(
    kind: str, accumulate: int = 1, clip: float | None = None, make: Any = torch.optim.Adam, scale: float = 2.0**16,
    growth_interval: int = 2000,
) -> tuple[nn.Module, Any, list[Any], int]:  # fmt: skip
    """Model, optimizer, the rows, and how many steps were skipped."""
    model, optimizer = objects(make)
    loss, dtype = nn.CrossEntropyLoss(), DTYPES[kind]
    scaler = torch.amp.GradScaler("cpu", scale, growth_interval=growth_interval, enabled=kind == "fp16")
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    rows, step, skipped = [], 0, 0
    for epoch in range(EPOCHS):
        model.train()
        batches, total = list(loader), 0.0
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            optimizer.zero_grad()
            for x, y in window:
                with torch.autocast("cpu", dtype):
                    l = loss(model(x), y)  # noqa: E741
                weight = len(x) / sum(len(part) for part, _ in window)
                scaler.scale(l if weight == 1 else l * weight).backward()
                total += l.item() * len(x)
            scaler.unscale_(optimizer)
            if clip:
                clip_grad_norm_(model.parameters(), clip)
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
            step += 1
        row = {"epoch": epoch, "step": step, "train_loss": total / len(X)}
        if kind == "fp16":
            row["loss_scale"] = scaler.get_scale()
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype):
            losses = [loss(model(x), y).item() * len(x) for x, y in DataLoader(TensorDataset(X[:5], Y[:5]), 3)]
        rows.append({**row, "val_loss": sum(losses) / 5})
    return model, optimizer, rows, skipped


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", DTYPES)
def test_it_is_the_loop_by_hand_to_the_bit(oracle: Any, kind: str, accumulate: int, make: Any) -> None:
    """The last window of an epoch is shorter: Lightning #19987."""
    trainer, result = fitted([MixedPrecision(kind)], make, accumulate=accumulate)
    mine = oracle.state(trainer.model, trainer.optimizer)
    model, optimizer, rows, _ = by_hand(kind, accumulate, make=make)
    oracle.assert_same(oracle.state(model, optimizer), mine)
    oracle.assert_same(rows, result.history)


@pytest.mark.parametrize("first", [True, False], ids=["listed before clipping", "listed after clipping"])
@pytest.mark.parametrize("kind", DTYPES)
def test_it_is_the_true_gradient_that_is_clipped(oracle: Any, kind: str, first: bool) -> None:
    plugins = [MixedPrecision(kind), ClipGradients(0.5)]
    trainer, result = fitted(plugins if first else plugins[::-1], accumulate=4)
    mine = oracle.state(trainer.model, trainer.optimizer)
    model, optimizer, _, _ = by_hand(kind, 4, clip=0.5)
    oracle.assert_same(oracle.state(model, optimizer), mine)
    assert result.history[-1]["clipped"] > 0


def test_a_step_whose_gradients_are_inf_is_skipped_and_told(oracle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, result = fitted([MixedPrecision("fp16", HIGH, growth_interval=3)])
    mine = oracle.state(trainer.model, trainer.optimizer)
    model, optimizer, rows, skipped = by_hand("fp16", scale=HIGH, growth_interval=3)
    assert 0 < skipped < result.steps
    oracle.assert_same(oracle.state(model, optimizer), mine)
    oracle.assert_same(rows, result.history)
    assert f"fp16      {skipped} of 15 steps skipped: their gradients were inf" in capsys.readouterr().out


@pytest.mark.parametrize("order", [1, -1], ids=["as written", "the other way round"])
@pytest.mark.parametrize("kind", DTYPES)
def test_precision_windows_clipping_schedule_freezing_and_averages_are_one_loop(
    oracle: Any, kind: str, order: int
) -> None:
    """Everything that a practitioner writes into a step, at once; the window of two batches is shorter than three."""
    scale = 2.0**20  # the first steps are skipped
    first, last = [MixedPrecision(kind, scale), ClipGradients(0.5)], [AverageWeights(0.8), Freeze(["0", "1"], 2)]
    plugins = [*first, Schedule(), *last]
    trainer, result = fitted(plugins[::order], accumulate=3, epochs=5)
    left = [dict(trainer.model.state_dict()), trainer.optimizer.state_dict()]

    model, optimizer = objects()
    loss, dtype, epochs = nn.CrossEntropyLoss(), DTYPES[kind], 5
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    scaler = torch.amp.GradScaler("cpu", scale, enabled=kind == "fp16")
    schedule = CosineAnnealingLR(optimizer, T_max=epochs * 2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    rows = []
    for epoch in range(epochs):
        model.train()
        for part in list(model.children())[:2]:
            part.requires_grad_(epoch >= 2).train(epoch >= 2)
        batches, total, clipped = list(loader), 0.0, 0
        for window in (batches[:3], batches[3:]):
            optimizer.zero_grad()
            for x, y in window:
                with torch.autocast("cpu", dtype):
                    l = loss(model(x), y)  # noqa: E741
                scaler.scale(l * (len(x) / sum(len(part) for part, _ in window))).backward()
                total += l.item() * len(x)
            scaler.unscale_(optimizer)
            clipped += int(clip_grad_norm_(model.parameters(), 0.5) > 0.5)
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() >= before:
                schedule.step()
                average.update_parameters(model)
        for mine, own in zip(average.module.buffers(), model.buffers(), strict=True):
            mine.copy_(own)  # as torch does with each update, the last of which was earlier if a step was skipped
        now = (average.module if average.n_averaged else model).eval()
        with torch.no_grad(), torch.autocast("cpu", dtype):
            losses = [loss(now(x), y).item() * len(x) for x, y in DataLoader(TensorDataset(X[:5], Y[:5]), 3)]
        rows.append((total / len(X), clipped / 2, optimizer.param_groups[0]["lr"], sum(losses) / 5))
    names = "train_loss", "clipped", "lr", "val_loss"
    oracle.assert_same(rows, [tuple(row[name] for name in names) for row in result.history])
    oracle.assert_same([dict(average.module.state_dict()), optimizer.state_dict()], left)
    assert average.n_averaged > 0


def test_nothing_is_told_where_no_step_was_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    fitted([MixedPrecision("fp16", 8.0)])
    assert capsys.readouterr().out == ""


def test_a_schedule_stays_where_it_is_in_a_skipped_step() -> None:
    class Counts:
        steps = skipped = 0

        @hookimpl(split="train")
        def on_batch_end(self, trainer: Trainer) -> None:
            self.steps += trainer.stepped
            self.skipped += not trainer.stepped

    counts, schedule = Counts(), Schedule()
    fitted([MixedPrecision("fp16", HIGH), schedule, counts])
    assert counts.skipped > 0
    assert schedule.state_dict()["scheduler"]["last_epoch"] == counts.steps


def test_gradients_that_are_inf_at_every_scale_end_the_fit() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x.register_hook(lambda gradient: gradient * float("nan"))
            return x

    model = nn.Sequential(nn.Linear(4, 3), Broken())
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), [MixedPrecision("fp16", 1.0)], "cpu"
    )
    with pytest.raises(NonFiniteError, match=r"inf or nan in fp16, now with a scale of .*epoch 1; try dtype='bf16'"):
        trainer.fit((X, Y), epochs=5, batch_size=2)


def test_a_loss_that_is_inf_is_an_error_that_names_the_precision() -> None:
    """Transformers #13758 filters such a loss out of the logs."""
    x, y = tiny_data()
    trainer = tiny_trainer([MixedPrecision("fp16")])
    torch.nn.init.constant_(next(trainer.model.parameters()), 1e4)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit((x * 100, y))
    assert "mixed_precision: fp16 ends at 65504; bf16 has the range of float32" in caught.value.__notes__


@pytest.mark.parametrize("kind", DTYPES)
def test_what_is_evaluated_and_predicted_is_the_same_model(kind: str) -> None:
    trainer, result = fitted([MixedPrecision(kind)])
    assert trainer.evaluate((X[:5], Y[:5]), 3)["test_loss"] == result.history[-1]["val_loss"]
    with torch.no_grad(), torch.autocast("cpu", DTYPES[kind]):
        output = trainer.model.eval()(X)
    assert output.dtype is DTYPES[kind]
    predicted = trainer.predict(X)
    assert predicted.dtype is torch.float32
    assert torch.equal(predicted, output.float())


def test_it_works_without_a_fit() -> None:
    model, optimizer = objects()
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [MixedPrecision("fp16")], "cpu")
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        wanted = model.eval()(X)
    assert torch.equal(trainer.predict(X), wanted.float())
    assert trainer.evaluate((X, Y))["test_loss"] > 0


def test_predictions_of_several_parts_become_float32_too() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            out = self.layer(x)
            return {"scores": out, "pair": (out, out.argmax(dim=1)), "kept": [x]}

    model = Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    out = Trainer(model, nn.MSELoss(), optimizer, [MixedPrecision("bf16")], "cpu").predict(X)
    kinds = out["scores"].dtype, out["pair"][0].dtype, out["pair"][1].dtype, out["kept"][0].dtype
    assert kinds == (torch.float32, torch.float32, torch.int64, torch.float32)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("step", [4, 6, 11])
def test_interrupted_and_resumed_it_ends_as_it_does_alone(oracle: Any, tmp_path: Path, kind: str, step: int) -> None:
    class StopAt:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == step:
                trainer.save()
                trainer.stop("to be resumed")

    def plugin() -> MixedPrecision:
        return MixedPrecision(kind, HIGH, growth_interval=5)

    alone, whole = fitted([plugin()])
    fitted([plugin(), StopAt()], run_dir=tmp_path)
    resumed, result = fitted([plugin()], run_dir=tmp_path, resume=tmp_path)
    oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(resumed.model, resumed.optimizer))
    oracle.assert_same(whole.history, result.history)
    oracle.assert_same(alone.plugins.states(), resumed.plugins.states())


def test_one_instance_begins_anew_in_a_second_fit(oracle: Any) -> None:
    plugin = MixedPrecision("fp16", HIGH)
    oracle.assert_same(fitted([plugin])[1].history, fitted([plugin])[1].history)


@pytest.mark.parametrize(
    ("cuda", "bfloat16", "kind"), [(False, False, "bf16"), (True, True, "bf16"), (True, False, "fp16")]
)
def test_auto_is_fp16_only_on_a_cuda_device_without_bf16(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, bfloat16: bool, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(mixed_precision, "_has_bfloat16", lambda: bfloat16)
    plugin = MixedPrecision()
    here, there = (SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda"))
    assert plugin._computes_in(there) is DTYPES[kind]  # type: ignore[arg-type]
    assert plugin._computes_in(here) is torch.bfloat16  # type: ignore[arg-type]
    assert hasattr(plugin, "backward") == hasattr(plugin, "optimizer_step") == (kind == "fp16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fitted([plugin])[1].history == by_hand("bf16")[2]  # also where it could have been another


def test_bf16_leaves_backward_and_step_to_the_loop() -> None:
    trainer, _ = fitted([MixedPrecision("bf16")])
    hooks = trainer.plugins.frozen("train")
    assert (hooks.backward, hooks.optimizer_step) == (None, None)


def test_a_batch_that_is_no_pair_goes_through_the_plugins_of_the_user() -> None:
    class Dicts:
        def forward(self, model: Any, batch: Any) -> Any:
            return model(batch["x"])

        def compute_loss(self, output: Tensor, batch: Any) -> Tensor:
            assert output.dtype is torch.bfloat16
            return nn.functional.cross_entropy(output, batch["y"])

    model, optimizer = objects()
    data = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, [Dicts(), MixedPrecision("bf16")], "cpu")
    history = trainer.fit(DataLoader(data, batch_size=3, shuffle=True), epochs=EPOCHS).history  # type: ignore[arg-type]
    assert history[0]["train_loss"] == by_hand("bf16")[2][0]["train_loss"]


def test_lbfgs_takes_bf16_and_not_fp16() -> None:
    model, _ = objects()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    loss = nn.CrossEntropyLoss()
    history = Trainer(model, loss, optimizer, [Closure(), MixedPrecision("bf16")], "cpu").fit((X, Y), epochs=4).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    with pytest.raises(PluginError, match="optimizer_step: closure and mixed_precision both replace it; only one can"):
        Trainer(model, loss, optimizer, [Closure(), MixedPrecision("fp16")], "cpu")


def test_one_model_has_one_precision() -> None:
    trainer = tiny_trainer([MixedPrecision("bf16"), MixedPrecision("fp16", name="half")])
    with pytest.raises(UsageError, match="in one precision: list one of mixed_precision and half"):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_weights_that_are_float16_are_refused_before_the_first_step() -> None:
    trainer = tiny_trainer([MixedPrecision("fp16")])
    trainer.model.half()
    with pytest.raises(UsageError, match=r"the weights must be float32, and some are float16: leave out .half\(\)"):
        trainer.fit(tiny_data())
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": 0}, "mixed_precision: scale must be a number above 0, got 0"),
        ({"scale": float("inf")}, "scale must be a number above 0, got inf"),
        ({"scale": "1e4"}, "scale must be a number above 0, got '1e4'"),
        ({"growth_interval": 0}, "growth_interval must be a whole number of steps from 1 up, got 0"),
    ],
    ids=str,
)
def test_what_is_no_scale_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MixedPrecision("fp16", **settings)


@pytest.mark.parametrize("dtype", ["16", "float16", torch.float16, None], ids=str)
def test_another_dtype_is_refused_with_those_that_there_are(dtype: Any) -> None:
    with pytest.raises(UsageError, match="dtype must be 'auto', 'bf16' or 'fp16', got"):
        MixedPrecision(dtype)
