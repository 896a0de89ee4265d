from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.closure import Closure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from framework import PluginError, Trainer, UsageError, hookimpl
from framework.testing import tiny_data, tiny_trainer

X = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
Y = X.sum(dim=1, keepdim=True)
EPOCHS = 3

OPTIMIZERS: dict[str, Any] = {
    "LBFGS": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4),
    "LBFGS with a line search": lambda parameters: torch.optim.LBFGS(
        parameters, max_iter=5, history_size=2, line_search_fn="strong_wolfe"
    ),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),  # calls it once
    "twice": lambda parameters: Twice(parameters),
}


class Twice(torch.optim.Optimizer):
    """Steps by the gradient at the point to which the first gradient leads."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        losses = []
        for _ in range(2):
            with torch.enable_grad():
                losses.append(closure())
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad, alpha=0.05)
        return losses[0]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Tanh(), nn.Linear(4, 1))


def by_hand(model: nn.Module, optimizer: Any, loss: Any = nn.functional.mse_loss) -> list[float]:
    """The loop of torch's documentation; the training losses."""
    loader, losses = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True), []
    for _ in range(EPOCHS):
        model.train()
        seen = []
        for x, y in loader:

            def closure() -> Tensor:
                optimizer.zero_grad()
                l = loss(model(x), y)  # noqa: B023, E741
                l.backward()
                return l

            seen.append(optimizer.step(closure).item())
        losses.append(seen)
    return losses


class Losses:
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_epoch_start(self) -> None:
        self.seen.append([])

    def on_batch_end(self, loss: Tensor) -> None:
        self.seen[-1].append(loss.item())


@pytest.mark.parametrize("fast", ["exact", "plain"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_the_loop_by_hand_to_the_bit(oracle: Any, kind: str, fast: str) -> None:
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Closure(), losses := Losses()], "cpu")
    trainer.fit((X, Y), epochs=EPOCHS, batch_size=3, fast=fast)
    mine = oracle.state(model, optimizer), losses.seen
    other = network()
    optimizer = OPTIMIZERS[kind](other.parameters())
    told = by_hand(other, optimizer)
    oracle.assert_same((oracle.state(other, optimizer), told), mine)


def test_the_optimizer_evaluates_as_often_as_it_wants_and_the_loop_has_done_the_first() -> None:
    model, calls = network(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    optimizer = OPTIMIZERS["LBFGS"](model.parameters())
    Trainer(model, nn.functional.mse_loss, optimizer, [Closure()], "cpu").fit((X, Y))
    assert len(calls) == optimizer.state[model[0].weight]["func_evals"] > 2


class Mixed:
    """A plugin whose forward, loss and weight are not the usual ones, and draw."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return 2 * model(batch[0])

    def compute_loss(self, output: Tensor, batch: Any) -> Tensor:
        return (output - batch[1]).square().mean() * torch.rand(()).add(0.5)

    def on_batch_start(self, trainer: Trainer) -> None:
        trainer.weight = 0.5

    def on_gradients(self, trainer: Trainer) -> None:
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 0.1)


def test_each_evaluation_goes_through_what_other_plugins_do_in_a_step(oracle: Any) -> None:
    model = network()
    optimizer = OPTIMIZERS["LBFGS"](model.parameters())
    Trainer(model, nn.functional.mse_loss, optimizer, [Closure(), Mixed()], "cpu").fit((X, Y), epochs=2, batch_size=3)
    mine = oracle.state(model, optimizer)
    model = network()
    optimizer = OPTIMIZERS["LBFGS"](model.parameters())
    model.train()
    for _ in range(2):
        for x, y in DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (2 * model(x) - y).square().mean() * torch.rand(()).add(0.5) * 0.5  # noqa: B023
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                return loss

            optimizer.step(closure)
    oracle.assert_same(oracle.state(model, optimizer), mine)


def test_what_prepare_model_gave_is_what_is_evaluated() -> None:
    class Doubles:
        calls = 0

        @hookimpl(wrapper=True)
        def prepare_model(self) -> Iterator[None]:
            model: Any = yield  # type: ignore[misc]
            doubled = nn.Sequential(model, nn.Identity())
            doubled[1].register_forward_hook(lambda *_: setattr(self, "calls", self.calls + 1))
            return doubled  # type: ignore[return-value]

    model, doubles = network(), Doubles()
    optimizer = OPTIMIZERS["LBFGS"](model.parameters())
    Trainer(model, nn.functional.mse_loss, optimizer, [doubles, Closure()], "cpu").fit((X, Y))
    assert doubles.calls == optimizer.state[model[0].weight]["func_evals"]


def test_accumulation_is_refused_before_the_first_step() -> None:
    trainer = tiny_trainer(["closure"])
    with pytest.raises(UsageError, match="closure: a closure evaluates one batch; leave out accumulate=2"):
        trainer.fit(tiny_data(), batch_size=2, accumulate=2)
    assert trainer.step == 0


def test_another_plugin_that_takes_the_step_is_refused() -> None:
    class Scaler:
        def optimizer_step(self) -> bool:
            return True

    with pytest.raises(PluginError, match="optimizer_step: closure and scaler both replace it"):
        tiny_trainer([Closure(), Scaler()])


def test_a_fit_after_one_that_failed_in_a_step_begins_anew(oracle: Any, fails: Any) -> None:
    model = network()
    optimizer = OPTIMIZERS["LBFGS"](model.parameters())

    class Breaks:
        armed = True

        def on_gradients(self) -> None:
            if self.armed:
                raise RuntimeError("the disk fell off")

    breaks = Breaks()
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Closure(), breaks], "cpu")
    with pytest.raises(RuntimeError):
        trainer.fit((X, Y))
    breaks.armed = False
    model.load_state_dict(network().state_dict())
    trainer.fit((X, Y), epochs=2)
    other = network()
    twin = OPTIMIZERS["LBFGS"](other.parameters())
    Trainer(other, nn.functional.mse_loss, twin, [Closure()], "cpu").fit((X, Y), epochs=2)
    oracle.assert_same(other.state_dict(), model.state_dict())


def test_without_the_plugin_it_is_told_that_one_is_needed() -> None:
    model = network()
    trainer = Trainer(model, nn.functional.mse_loss, torch.optim.LBFGS(model.parameters()), device="cpu")
    with pytest.raises(UsageError, match="closure"):
        trainer.fit((X, Y))


def test_stopped_and_resumed_lbfgs_is_that_of_the_fit_left_alone(oracle: Any, tmp_path: Path) -> None:
    class StopAt:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 4:
                trainer.save()
                trainer.stop("to be resumed")

    ends = []
    for plugins, run_dir, resume in (([], None, None), ([StopAt()], tmp_path, None), ([], None, tmp_path)):
        model = network()
        optimizer = OPTIMIZERS["LBFGS with a line search"](model.parameters())
        trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Closure(), *plugins], "cpu", run_dir)
        trainer.fit((X, Y), epochs=EPOCHS, batch_size=3, resume=resume)
        optimizer.zero_grad()
        ends.append(oracle.state(model, optimizer))
    oracle.assert_same(ends[0], ends[2])
