"""The norms of gradients, against those that a hand-written loop measures."""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.gradient_statistics import GradientStatistics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from framework import NonFiniteError, Trainer, UsageError, hookimpl
from framework.testing import tiny_data, tiny_trainer

X, Y = tiny_data(11)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))


def fitted(model: nn.Module, plugins: Any, lr: float = 0.1, run_dir: Path | None = None, **sizes: Any) -> Any:
    trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=lr), plugins, "cpu", run_dir)
    torch.manual_seed(1)
    target = Y.expand(-1, 3) if getattr(model, "layer0", None) else Y
    return trainer.fit((X, target.contiguous()), **{"epochs": 3, "batch_size": 3, **sizes})


def by_hand(every: int = 1) -> tuple[dict[str, list[float]], list[float]]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms: dict[str, list[float]] = {"0": [], "2": [], "4": []}
    whole: list[float] = []
    step = 0
    torch.manual_seed(1)
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    for _ in range(3):
        seen: list[list[float]] = []
        for x, y in loader:
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            if step % every == 0:
                parts = [[p.grad for p in model[int(name)].parameters()] for name in norms]
                seen.append(
                    [torch.nn.utils.get_total_norm(p).item() for p in (*parts, [g for part in parts for g in part])]
                )
            optimizer.step()
            step += 1
        *layers, total = [sum(column) / len(column) for column in zip(*seen, strict=True)]
        for name, value in zip(norms, layers, strict=True):
            norms[name].append(value)
        whole.append(total)
    return norms, whole


@pytest.mark.parametrize("every", [1, 2, 3])
def test_norms_are_those_of_a_hand_written_loop(every: int) -> None:
    plugin = GradientStatistics(every)
    result = fitted(mlp(), [plugin])
    norms, whole = by_hand(every)
    assert plugin.norms.keys() == norms.keys()
    for name, values in norms.items():
        assert plugin.norms[name] == pytest.approx(values, rel=1e-5)
    assert [row["grad_norm"] for row in result.history] == pytest.approx(whole, rel=1e-5)


def test_a_window_is_looked_at_once_when_its_gradients_are_complete() -> None:
    class Counts:
        def on_gradients(self, trainer: Trainer) -> None:
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()]).item())

    norms: list[float] = []
    result = fitted(mlp(), [GradientStatistics(), Counts()], epochs=1, accumulate=3)
    assert result.history[0]["grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-5)
    assert len(norms) == 2


def test_listed_before_and_behind_one_that_clips_it_sees_both() -> None:
    class Clips:
        def on_gradients(self, trainer: Trainer) -> None:
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1e-3)

    result = fitted(mlp(), [GradientStatistics(), Clips(), GradientStatistics(name="clipped")])
    assert all(row["grad_norm"] > 1e-2 for row in result.history)
    assert [row["clipped"] for row in result.history] == pytest.approx([1e-3] * 3, rel=1e-3)


def test_it_changes_no_bit_of_training(trained: Any) -> None:
    assert trained([GradientStatistics(), GradientStatistics(2, name="other")]) == trained([])


def test_no_step_waits_for_the_device() -> None:
    counts: Counter[str] = Counter()

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counts[function.overloadpacket.__name__] += 1
            return function(*args, **(kwargs or {}))

    class Watches:
        @hookimpl(wrapper=True)
        def on_gradients(self) -> Iterator[None]:
            with Mode():
                yield

    fitted(mlp(), [Watches(), GradientStatistics()])
    assert counts["linalg_vector_norm"] == 6 * 12
    assert not {"_local_scalar_dense", "item", "nonzero", "_to_copy"} & counts.keys()


@pytest.mark.parametrize("step", range(1, 12))
def test_stopped_and_resumed_it_has_measured_the_same(tmp_path: Path, step: int) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == step:
                trainer.save()
                trainer.stop("to be resumed")

    alone, again = GradientStatistics(2), GradientStatistics(2)
    rows = fitted(mlp(), [alone]).history
    fitted(mlp(), [GradientStatistics(2), Stops()], run_dir=tmp_path)
    assert fitted(mlp(9), [again], resume=tmp_path).history == rows
    assert again.norms == alone.norms


def test_a_second_fit_measures_anew() -> None:
    plugin = GradientStatistics()
    for _ in range(2):
        fitted(mlp(), [plugin], epochs=2)
        assert [len(norms) for norms in plugin.norms.values()] == [2, 2, 2]


# ------------------------------------------------------------------------------------------------------ kinds of layers


def test_a_shared_parameter_counts_once_and_for_the_first_of_its_layers() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 1)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Any:
            return self.last(self.second(self.first(x)))

    plugin = GradientStatistics()
    row = fitted(Tied(), [plugin], epochs=1, batch_size=None).history[0]
    assert list(plugin.norms) == ["first", "last"]
    assert row["grad_norm"] == pytest.approx(math.hypot(*(norms[0] for norms in plugin.norms.values())), rel=1e-5)


def test_a_model_that_is_one_layer_has_the_name_of_its_class() -> None:
    plugin = GradientStatistics()
    tiny_trainer([plugin]).fit(tiny_data())
    assert list(plugin.norms) == ["Linear"]


def test_a_frozen_layer_has_no_gradient_and_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    model, plugin = mlp(), GradientStatistics()
    model[0].requires_grad_(False)
    fitted(model, [plugin])
    assert plugin.norms["0"] == [0.0, 0.0, 0.0]
    assert "gradients" not in capsys.readouterr().out


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_may_be_sparse(sparse: bool) -> None:
    torch.manual_seed(0)
    model, plugin = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Linear(3, 1)), GradientStatistics()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.tensor([0, 1, 1, 2, 1])
    Trainer(model, F.mse_loss, optimizer, [plugin], "cpu").fit((x, torch.ones(5, 1)), epochs=1)
    gradient = model[0].weight.grad
    assert gradient is not None
    assert plugin.norms["0"] == pytest.approx([(gradient.to_dense() if sparse else gradient).norm().item()], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_gradients_of_other_types_are_measured_in_float32(dtype: torch.dtype) -> None:
    model, plugin = mlp().to(dtype), GradientStatistics()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Trainer(model, F.mse_loss, optimizer, [plugin], "cpu").fit((X.to(dtype), Y.to(dtype)), epochs=1)
    gradients = torch.cat([parameter.grad.float().flatten() for parameter in model[0].parameters()])
    assert plugin.norms["0"] == pytest.approx([gradients.norm().item()], rel=1e-5)


# -------------------------------------------------------------------------------------------------------- what it tells


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("gradients ")]


def test_of_gradients_that_are_well_nothing_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    fitted(mlp(), [GradientStatistics()])
    assert told(capsys) == []


def test_a_layer_whose_gradient_is_zero_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(model[0].bias, -100.0)  # no unit is ever on
    fitted(model, [GradientStatistics()])
    assert told(capsys) == ["gradients zero in 0: nothing is learned there"]


def test_a_layer_whose_gradient_vanishes_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1e-9 * x

    fitted(nn.Sequential(nn.Linear(3, 4), Small(), nn.Linear(4, 1)), [GradientStatistics()])
    assert told(capsys) == ["gradients vanishing in 0: below 1e-07 of that in 2"]


def test_of_many_layers_a_few_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(7)), nn.Linear(3, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fitted(model, [GradientStatistics()], lr=0.0)
    assert told(capsys) == ["gradients zero in 0, 1, 2, 3, 4 and 2 more: nothing is learned there"]


def test_gradients_that_grow_a_thousandfold_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    fitted(nn.Linear(3, 1), [GradientStatistics()], lr=5.0)
    (line,) = told(capsys)
    assert re.fullmatch(r"gradients exploding: norm \d+ in the first epoch, \S+e\+\d+ in the last one", line)


def test_steps_that_are_not_finite_are_counted_and_left_out_of_the_mean(capsys: pytest.CaptureFixture[str]) -> None:
    class Overflows:
        def on_gradients(self, trainer: Trainer) -> None:
            for parameter in trainer.model.parameters():
                parameter.grad.fill_(3.0 if trainer.step % 2 else math.inf)

        def optimizer_step(self) -> bool:
            return False  # as a scaler skips such a step

    plugin = GradientStatistics()
    result = fitted(nn.Linear(3, 1), [Overflows(), plugin])
    assert told(capsys) == ["gradients inf or nan in 6 steps"]
    assert [row["grad_norm"] for row in result.history] == pytest.approx([6.0] * 3)


def test_when_the_loss_is_lost_it_tells_where_the_gradient_was_largest(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    with pytest.raises(NonFiniteError):
        fitted(model, [GradientStatistics()], lr=1e9)
    (line,) = told(capsys)
    assert re.fullmatch(r"gradients norm \S+ in the last epoch, most of it in [01]", line)


def test_of_another_error_it_tells_nothing(capsys: pytest.CaptureFixture[str], fails: Any) -> None:
    with pytest.raises(RuntimeError, match="the disk fell off"):
        fitted(mlp(), [GradientStatistics(), fails(0, batch=2)])
    assert told(capsys) == []


# ------------------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("depth", "named"), [(1, 1), (3, 3), (50, 10)])
def test_the_picture_has_a_line_a_layer_and_the_names_of_ten(tmp_path: Path, depth: int, named: int) -> None:
    model = nn.Sequential(OrderedDict((f"layer{index}", nn.Linear(3, 3)) for index in range(depth)))
    fitted(model, [GradientStatistics()], run_dir=tmp_path)
    text = (tmp_path / "gradients.svg").read_text("utf-8")
    assert text.count("clip-path") == depth + 1
    names = [said for said in re.findall(r"<!-- (.*?) -->", text) if said.startswith("layer") or said == "all layers"]
    assert (names[0], names[-2], names[-1]) == ("layer0", f"layer{depth - 1}", "all layers")
    assert len(names) == named + 1


def test_without_a_run_directory_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fitted(mlp(), [GradientStatistics()])
    assert list(tmp_path.iterdir()) == []


def test_layers_without_any_gradient_and_odd_names_can_be_drawn(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("$층", nn.Linear(3, 4).requires_grad_(False))
    model.add_module("last", nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fitted(model, [GradientStatistics(), GradientStatistics(name="again")], lr=0.0, run_dir=tmp_path, epochs=1)
    assert {path.name for path in tmp_path.glob("*.svg")} == {"gradients.svg", "again.svg"}


def test_stopped_in_its_first_epoch_a_fit_has_no_picture(tmp_path: Path) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.stop("enough")

    fitted(mlp(), [GradientStatistics(), Stops()], run_dir=tmp_path)
    assert list(tmp_path.glob("*.svg")) == []


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_is_a_whole_number_of_steps(every: Any) -> None:
    with pytest.raises(UsageError, match=f"every must be a whole number of steps from 1 up, got {every!r}"):
        GradientStatistics(every)
