"""The loop: what is called when, with what, and what a plugin can replace in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import framework.loop
from framework import DataError, NonFiniteError, PluginError, Trainer, UsageError, hookimpl
from framework.hooks import HOOKS
from framework.testing import Call, Recorder, tiny_data, tiny_trainer

ROOT = Path(__file__).parents[2]


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


# -------------------------------------------------------------------------------------------------------- golden trace

SETUP = """\
prepare_model(model: Linear)
make_loader(data: (Tensor, Tensor), split: 'train', batch_size: int, shuffle: bool, drop_last: bool)
make_loader(data: (Tensor, Tensor), split: 'val', batch_size: int, shuffle: bool, drop_last: bool)
on_fit_start()
agree(stop: NoneType, save: ('last'))
on_checkpoint(path: Path)
"""
EPOCH = """\
on_epoch_start(epoch: int)
on_split_start(split: 'train')
on_batch_start(split: 'train', batch: (Tensor, Tensor))
forward(model: Linear, split: 'train', batch: (Tensor, Tensor))
compute_loss(split: 'train', output: Tensor, batch: (Tensor, Tensor))
backward(loss: Tensor, output: Tensor, batch: (Tensor, Tensor))
on_gradients()
optimizer_step(output: Tensor, batch: (Tensor, Tensor))
on_batch_end(split: 'train', batch: (Tensor, Tensor), output: Tensor, loss: Tensor, samples: int)
agree(stop: NoneType, save: ())
on_batch_start(split: 'train', batch: (Tensor, Tensor))
forward(model: Linear, split: 'train', batch: (Tensor, Tensor))
compute_loss(split: 'train', output: Tensor, batch: (Tensor, Tensor))
backward(loss: Tensor, output: Tensor, batch: (Tensor, Tensor))
on_gradients()
optimizer_step(output: Tensor, batch: (Tensor, Tensor))
on_batch_end(split: 'train', batch: (Tensor, Tensor), output: Tensor, loss: Tensor, samples: int)
agree(stop: NoneType, save: ())
reduce(value: Tensor)
on_split_end(split: 'train', metrics: SplitMetrics)
on_split_start(split: 'val')
on_batch_start(split: 'val', batch: (Tensor, Tensor))
forward(model: Linear, split: 'val', batch: (Tensor, Tensor))
compute_loss(split: 'val', output: Tensor, batch: (Tensor, Tensor))
on_batch_end(split: 'val', batch: (Tensor, Tensor), output: Tensor, loss: Tensor, samples: int)
reduce(value: Tensor)
on_split_end(split: 'val', metrics: SplitMetrics)
on_epoch_end(epoch: int, metrics: mappingproxy)
agree(stop: NoneType, save: ())
"""
END = """\
on_fit_end(result: Result)
on_teardown()
"""
TRACE = (SETUP + EPOCH + EPOCH + END).splitlines()


@pytest.fixture
def trace(tmp_path: Path) -> list[Call]:
    """Every call of a fit of two epochs, each of two steps, with validation and one save."""
    recorder = Recorder(makes=True)

    class Prepares:
        @hookimpl(wrapper=True)
        def prepare_model(self, model: nn.Module) -> Iterator[None]:
            recorder.calls.append(Call("prepare_model", {"model": model}))
            return (yield)

        def on_fit_start(self, trainer: Trainer) -> None:
            trainer.save()

    trainer = tiny_trainer([recorder, Prepares()], run_dir=tmp_path)
    trainer.fit(tiny_data(3), tiny_data(2), epochs=2, batch_size=2)
    return recorder.calls


def test_every_hook_of_a_fit_is_called_at_its_place(trace: list[Call]) -> None:
    assert [str(call) for call in trace] == TRACE


def test_the_trace_holds_every_hook_but_the_one_of_failures(trace: list[Call]) -> None:
    assert {call.hook for call in trace} == set(HOOKS) - {"on_exception"}


def test_within_a_window_only_the_last_batch_is_stepped_on() -> None:
    recorder = Recorder(["backward", "on_gradients", "optimizer_step", "on_batch_end", "agree"])
    tiny_trainer([recorder]).fit(tiny_data(3), batch_size=1, accumulate=2)
    last = ["backward", "on_gradients", "optimizer_step", "on_batch_end", "agree"]
    assert recorder.names == ["agree", "backward", "on_batch_end", *last, *last, "agree"]


def hooks_in(text: str) -> list[str]:
    """The hooks that a text names, in the order of their first mention."""
    return list(dict.fromkeys(re.findall(rf"\b(?:{'|'.join(HOOKS)})\b", text)))


def first_called(trace: list[Call]) -> list[str]:
    names = list(dict.fromkeys(call.hook for call in trace))
    return [*names[: names.index("on_teardown")], "on_exception", "on_teardown"]


def test_the_docstring_of_the_loop_names_the_hooks_in_the_order_of_the_trace(trace: list[Call]) -> None:
    assert hooks_in(framework.loop.run.__doc__ or "") == first_called(trace)


def test_the_lifecycle_page_names_the_hooks_in_the_order_of_the_trace(trace: list[Call]) -> None:
    page = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    assert hooks_in(page) == first_called(trace)


def test_a_failed_fit_calls_on_exception_instead_of_on_fit_end() -> None:
    recorder = Recorder(["on_fit_start", "on_fit_end", "on_exception", "on_teardown"])

    class Fails:
        def on_batch_end(self) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        tiny_trainer([Fails(), recorder]).fit(tiny_data())
    assert [str(call) for call in recorder.calls] == [
        "on_fit_start()",
        "on_exception(exception: RuntimeError)",
        "on_teardown()",
    ]


# ------------------------------------------------------------------------------------------------ what hooks are given


class Watches:
    """Notes what the trainer says at each batch."""

    def __init__(self) -> None:
        self.starts: list[Any] = []
        self.ends: list[Any] = []

    def _now(self, trainer: Trainer) -> dict[str, Any]:
        names = ("samples", "weight", "boundary", "step", "stepped", "epoch")
        return {name: getattr(trainer, name) for name in names}

    def on_batch_start(self, trainer: Trainer, split: str) -> None:
        self.starts.append((split, self._now(trainer)))

    def on_batch_end(self, trainer: Trainer, split: str, samples: int) -> None:
        self.ends.append((split, self._now(trainer)))
        assert samples == trainer.samples


def test_output_and_loss_of_a_batch_are_detached() -> None:
    class Looks:
        def on_batch_end(self, output: Any, loss: torch.Tensor) -> None:
            assert (output.requires_grad, loss.requires_grad, loss.dim()) == (False, False, 0)

    tiny_trainer([Looks()]).fit(tiny_data(), tiny_data(), batch_size=2)


def test_nested_outputs_are_detached_leaf_by_leaf(oracle: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"y": self.layer(x), "more": [self.layer(x), "text", None]}

    seen: list[Any] = []

    class Looks:
        def on_batch_end(self, output: Any) -> None:
            seen.append((output["y"].requires_grad, output["more"][0].requires_grad, output["more"][1:]))

    model = Two()
    Trainer(model, lambda output, y: F.mse_loss(output["y"], y), sgd(model), [Looks()], "cpu").fit(tiny_data())
    assert seen == [(False, False, ["text", None])]


def test_modes_are_set_before_on_split_start() -> None:
    seen: list[Any] = []

    class Looks:
        def on_split_start(self, trainer: Trainer, split: str) -> None:
            seen.append((split, trainer.model.training, torch.is_grad_enabled()))

    tiny_trainer([Looks()]).fit(tiny_data(), tiny_data(), epochs=2)
    assert seen == [("train", True, True), ("val", False, False)] * 2


def test_nothing_is_recorded_for_gradients_in_validation_and_they_are_on_again_after_it() -> None:
    seen: list[Any] = []

    class Looks:
        @hookimpl(split="val")
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            seen.append(model(batch[0]).requires_grad)
            return model(batch[0])

        def on_epoch_end(self) -> None:
            seen.append(torch.is_grad_enabled())

    tiny_trainer([Looks()]).fit(tiny_data(), tiny_data())
    assert seen == [False, True]


def test_the_batch_given_to_hooks_is_a_tuple_whatever_the_loader_gives() -> None:
    kinds: set[type] = set()

    class Looks:
        def on_batch_start(self, batch: Any) -> None:
            kinds.add(type(batch))

    for size in (None, 2):
        tiny_trainer([Looks()]).fit(TensorDataset(*tiny_data()), tiny_data(), batch_size=size)
    assert kinds == {tuple}


# -------------------------------------------------------------------------------------------------------- accumulation


def double_mlp(oracle: Any) -> nn.Module:
    return oracle.mlp().double()


def double_data(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = tiny_data(samples)
    return x.double(), y.double()


@pytest.mark.parametrize("accumulate", [1, 2, 3, 5])
@pytest.mark.parametrize("samples", range(1, 14))
def test_accumulated_steps_are_those_of_the_big_batch_for_every_remainder(
    oracle: Any, samples: int, accumulate: int
) -> None:
    expected, got = double_mlp(oracle), double_mlp(oracle)
    rows = oracle.by_hand(
        expected, F.mse_loss, sgd(expected), double_data(samples), epochs=3, batch_size=2 * accumulate, shuffle=False
    )
    trainer = Trainer(got, F.mse_loss, sgd(got), device="cpu")
    result = trainer.fit(double_data(samples), epochs=3, batch_size=2, shuffle=False, accumulate=accumulate)
    for a, b in zip(expected.parameters(), got.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert [row["step"] for row in result.history] == [row["step"] for row in rows]
    for row, wanted in zip(result.history, rows, strict=True):
        assert math.isclose(row["train_loss"], wanted["train_loss"], rel_tol=1e-12)


@pytest.mark.parametrize("accumulate", [2, 3, 9])
def test_accumulated_steps_are_bit_for_bit_those_of_a_hand_written_window(oracle: Any, accumulate: int) -> None:
    expected, got = oracle.mlp(), oracle.mlp()
    x, y = tiny_data(11)
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.1)
    torch.manual_seed(5)
    loader, totals = DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True), []
    for _ in range(3):
        batches, total = list(loader), 0.0
        for window in [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]:
            optimizer.zero_grad()
            for x_part, y_part in window:
                loss = F.mse_loss(expected(x_part), y_part)
                total += loss.item() * len(x_part)
                share = len(x_part) / sum(len(part) for part, _ in window)
                (loss * share if share != 1 else loss).backward()
            optimizer.step()
        totals.append(total / 11)
    torch.manual_seed(5)
    trainer = Trainer(got, F.mse_loss, torch.optim.Adam(got.parameters(), lr=0.1), device="cpu")
    result = trainer.fit((x, y), epochs=3, batch_size=2, accumulate=accumulate)
    oracle.assert_same(oracle.state(expected, optimizer), oracle.state(got, trainer.optimizer))
    assert [row["train_loss"] for row in result.history] == totals


def test_a_window_says_where_it_ends_and_what_each_batch_weighs() -> None:
    watch = Watches()
    tiny_trainer([watch]).fit(tiny_data(7), tiny_data(1), batch_size=2, accumulate=3)
    rows = [
        (now["samples"], now["weight"], now["boundary"], now["step"], now["stepped"]) for _, now in watch.starts[:4]
    ]
    assert rows == [
        (2, 2 / 6, False, 0, False),
        (2, 2 / 6, False, 0, False),
        (2, 2 / 6, True, 0, False),
        (1, 1.0, True, 1, False),
    ]
    ends = [(split, now["step"], now["stepped"]) for split, now in watch.ends]
    assert ends == [("train", 0, False), ("train", 0, False), ("train", 1, True), ("train", 2, True), ("val", 2, False)]


def test_a_batch_of_another_split_weighs_one() -> None:
    watch = Watches()
    tiny_trainer([watch]).fit(tiny_data(4), tiny_data(3), batch_size=2, accumulate=2)
    assert [(split, now["samples"], now["weight"]) for split, now in watch.starts] == [
        ("train", 2, 0.5),
        ("train", 2, 0.5),
        ("val", 2, 1.0),
        ("val", 1, 1.0),
    ]


def test_a_window_that_is_longer_than_the_epoch_makes_one_step_an_epoch() -> None:
    result = tiny_trainer().fit(tiny_data(5), epochs=3, batch_size=2, accumulate=100)
    assert (result.steps, [row["step"] for row in result.history]) == (3, [1, 2, 3])


def test_gradients_are_cleared_before_the_first_batch_of_a_window_and_kept_within_it() -> None:
    seen: list[bool] = []

    class Looks:
        def on_batch_start(self, trainer: Trainer) -> None:
            seen.append(trainer.model.weight.grad is None)

    tiny_trainer([Looks()]).fit(tiny_data(5), epochs=2, batch_size=1, accumulate=2)
    assert seen == [True, False, True, False, True] * 2


def test_gradients_are_cleared_after_the_batch_is_fetched() -> None:
    trainer = tiny_trainer()
    seen: list[bool] = []

    class Looks(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            seen.append(trainer.model.weight.grad is None)
            return torch.ones(3), torch.ones(1)

    trainer.fit(Looks(), batch_size=1, shuffle=False)
    assert seen == [True, False]


def test_a_window_is_fetched_whole_before_its_first_batch_is_trained_on() -> None:
    order: list[str] = []

    class Fetches(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            order.append("fetch")
            return torch.ones(3), torch.ones(1)

    class Looks:
        def on_batch_start(self) -> None:
            order.append("train")

    tiny_trainer([Looks()]).fit(Fetches(), batch_size=1, accumulate=2)
    assert order == ["fetch", "fetch", "train", "train", "fetch", "train"]


def test_on_gradients_sees_the_sum_of_the_window_before_the_optimizer_has_stepped() -> None:
    seen: list[Any] = []

    class Looks:
        def on_gradients(self, trainer: Trainer) -> None:
            seen.append((trainer.model.weight.grad.clone(), trainer.model.weight.detach().clone()))

    x, y = tiny_data(4)
    tiny_trainer([Looks()]).fit((x, y), batch_size=2, shuffle=False, accumulate=2)
    weight = torch.zeros(1, 3, requires_grad=True)
    (F.mse_loss(x[:2] @ weight.T, y[:2]) / 2).backward()
    (F.mse_loss(x[2:] @ weight.T, y[2:]) / 2).backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0][0], weight.grad)
    assert torch.equal(seen[0][1], torch.zeros(1, 3))


def test_backward_gets_the_weighted_loss_and_on_batch_end_the_plain_one() -> None:
    weighted: list[float] = []
    plain: list[float] = []

    class Looks:
        def backward(self, trainer: Trainer, loss: torch.Tensor) -> bool:
            weighted.append(loss.item() / trainer.weight)
            loss.backward()
            return True

        def on_batch_end(self, loss: torch.Tensor) -> None:
            plain.append(loss.item())

    x, y = torch.ones(4, 3), torch.ones(4, 1)  # zero weights: each loss is 1
    tiny_trainer([Looks()]).fit((x, y), batch_size=1, accumulate=4)
    assert (weighted, plain) == ([1.0] * 4, [1.0] * 4)


def test_on_batch_start_may_change_the_weight() -> None:
    class Doubles:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.weight *= 2

    plain, doubled = tiny_trainer(lr=0.2), tiny_trainer([Doubles()], lr=0.1)
    rows = [trainer.fit(tiny_data(4), batch_size=2, shuffle=False).history for trainer in (plain, doubled)]
    torch.testing.assert_close(plain.model.weight, doubled.model.weight)
    torch.testing.assert_close(rows[0][0]["train_loss"], rows[1][0]["train_loss"])


def test_rows_beyond_trainer_samples_are_padding_and_do_not_count() -> None:
    class Padded:
        """Batches of 4 rows; the last one is filled up with rows of zeros."""

        def on_batch_start(self, trainer: Trainer, batch: Any) -> None:
            trainer.samples = int((batch[1][:, 0] != 0).sum())

        def compute_loss(self, trainer: Trainer, output: torch.Tensor, batch: Any) -> torch.Tensor:
            return F.mse_loss(output[: trainer.samples], batch[1][: trainer.samples])

    x, y = torch.randn(6, 3), torch.rand(6, 1) + 1
    padded = [torch.cat([tensor, torch.zeros(2, tensor.size(1))]) for tensor in (x, y)]
    trainer, plain = tiny_trainer([Padded()]), tiny_trainer()
    got = trainer.fit(tuple(padded), tuple(padded), epochs=3, batch_size=4, shuffle=False)
    expected = plain.fit((x, y), (x, y), epochs=3, batch_size=4, shuffle=False)
    assert got.history == expected.history
    assert torch.equal(trainer.model.weight, plain.model.weight)


# --------------------------------------------------------------------------------------------------------- inf and nan


class Snapshots:
    """What the parameters were at the start of each batch."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_batch_start(self, trainer: Trainer) -> None:
        self.weights.append(trainer.model.weight.detach().clone())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_parameters_get_it(value: float, accumulate: int) -> None:
    x, y = tiny_data(6)
    y[4] = value
    snapshots = Snapshots()
    trainer = tiny_trainer([snapshots])
    with pytest.raises(NonFiniteError, match=r"train_loss became (nan|inf)"):
        trainer.fit((x, y), batch_size=1, shuffle=False, accumulate=accumulate)
    assert torch.equal(snapshots.weights[-1], trainer.model.weight)
    assert torch.isfinite(trainer.model.weight).all()
    assert (trainer.epoch, trainer.step) == (0, 4 // accumulate)


def test_the_message_names_step_epoch_batch_and_learning_rate() -> None:
    x, y = torch.ones(3, 3), torch.ones(3, 1)
    trainer = tiny_trainer(lr=1e38)
    with pytest.raises(NonFiniteError) as caught:
        trainer.fit((x, y), epochs=5, batch_size=1)
    message = str(caught.value)
    assert "train_loss became inf" in message
    assert "step 1" in message
    assert "epoch 0" in message
    assert "batch 1" in message
    assert "1e+38" in message
    assert "the data" not in message


def test_the_message_counts_steps_over_epochs_and_batches_within_one() -> None:
    class Spoils:
        def on_batch_start(self, trainer: Trainer) -> None:
            if trainer.step == 4:
                trainer.model.weight.data.fill_(math.inf)

    with pytest.raises(NonFiniteError, match=r"step 4.*epoch 1.*batch 1"):
        tiny_trainer([Spoils()]).fit(tiny_data(6), epochs=3, batch_size=2)


def test_the_message_of_a_validation_loss_names_the_step_that_was_reached() -> None:
    x, y = tiny_data(6)
    y[5] = math.nan
    with pytest.raises(NonFiniteError, match=r"val_loss became nan at step 2\b.*epoch 0.*batch 5.*y holds nan"):
        tiny_trainer().fit(tiny_data(2), DataLoader(TensorDataset(x, y)), batch_size=1)


def test_the_message_names_the_learning_rate_of_each_group() -> None:
    model = nn.Linear(3, 1)
    groups = [{"params": [model.weight], "lr": 1e30}, {"params": [model.bias], "lr": 0.25}]
    trainer = Trainer(model, F.mse_loss, torch.optim.SGD(groups), device="cpu")
    with pytest.raises(NonFiniteError, match=r"1e\+30, 0\.25"):
        trainer.fit(tiny_data(6), epochs=9, batch_size=1)


@pytest.mark.parametrize(
    ("part", "value", "kind"), [("x", math.nan, "nan"), ("x", -math.inf, "inf"), ("y", math.nan, "nan")]
)
def test_a_nan_in_the_data_is_named_with_its_row(part: str, value: float, kind: str) -> None:
    x, y = tiny_data(5)
    {"x": x, "y": y}[part][3] = value
    with pytest.raises(NonFiniteError, match=rf"batch 1\b.*{part} holds {kind} in row 1 of this batch"):
        tiny_trainer().fit((x, y), batch_size=2, shuffle=False)


def test_a_nan_in_a_nested_input_is_named_with_its_path() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Any) -> torch.Tensor:
            return self.layer(x["image"] + x["more"][0])

    x, y = tiny_data(4)
    bad = x.clone()
    bad[2, 1] = math.nan
    model = Sums()
    with pytest.raises(NonFiniteError, match=r"x\['more'\]\[0\] holds nan in row 2"):
        Trainer(model, F.mse_loss, sgd(model), device="cpu").fit(({"image": x, "more": [bad]}, y))


def test_on_nonfinite_continue_trains_on_and_keeps_the_rows() -> None:
    result = tiny_trainer(lr=1e38, on_nonfinite="continue").fit(tiny_data(4), tiny_data(2), epochs=3, batch_size=2)
    assert (result.epochs, result.steps) == (3, 6)
    assert not math.isfinite(result.history[-1]["train_loss"])
    assert not math.isfinite(result.history[-1]["val_loss"])


def test_evaluate_tells_a_loss_that_is_not_finite_instead_of_refusing_it() -> None:
    x, y = tiny_data(4)
    y[0] = math.nan
    assert math.isnan(tiny_trainer().evaluate((x, y))["test_loss"])


def test_a_made_loss_that_is_nan_stops_too() -> None:
    class Bad:
        def compute_loss(self, output: torch.Tensor) -> torch.Tensor:
            return output.sum() * math.nan

    trainer = tiny_trainer([Bad()])
    with pytest.raises(NonFiniteError, match="train_loss became nan"):
        trainer.fit(tiny_data())
    assert torch.equal(trainer.model.weight, torch.zeros(1, 3))


# ------------------------------------------------------------------------------------------------------- make and wrap


def test_forward_replaces_the_call_of_the_model() -> None:
    class Twice:
        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return 2 * model(batch[0])

    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    trainer = tiny_trainer([Twice()])
    model = Doubled(3, 1)
    model.load_state_dict(trainer.model.state_dict())
    plain = Trainer(model, F.mse_loss, sgd(model), device="cpu")
    rows = [each.fit(tiny_data(), tiny_data(3), epochs=2).history for each in (trainer, plain)]
    assert rows[0] == rows[1]
    assert torch.equal(trainer.model.weight, model.weight)


def test_compute_loss_replaces_the_loss_in_every_split() -> None:
    class Absolute:
        def compute_loss(self, output: torch.Tensor, batch: Any) -> torch.Tensor:
            return F.l1_loss(output, batch[1])

    trainer, plain = tiny_trainer([Absolute()]), tiny_trainer()
    plain.loss = F.l1_loss
    rows = [each.fit(tiny_data(), tiny_data(3), epochs=2).history for each in (trainer, plain)]
    assert rows[0] == rows[1]
    assert trainer.evaluate(tiny_data()) == plain.evaluate(tiny_data())


def test_backward_replaces_the_backward_pass() -> None:
    class ByHand:
        def backward(self, trainer: Trainer, output: torch.Tensor, batch: Any) -> bool:
            x, y = batch
            error = 2 * (output.detach() - y) / len(x)
            trainer.model.weight.grad, trainer.model.bias.grad = error.T @ x, error.sum(0)
            return True

    trainer, plain = tiny_trainer([ByHand()]), tiny_trainer()
    for each in (trainer, plain):
        each.fit(tiny_data(), epochs=5)
    torch.testing.assert_close(trainer.model.weight, plain.model.weight)


def test_optimizer_step_replaces_the_step_and_false_says_that_nothing_moved() -> None:
    stepped: list[bool] = []

    class Skips:
        def optimizer_step(self, trainer: Trainer) -> bool:
            if trainer.step % 2:
                return False
            trainer.optimizer.step()
            return True

        def on_batch_end(self, trainer: Trainer) -> None:
            stepped.append(trainer.stepped)

    trainer = tiny_trainer([Skips()])
    result = trainer.fit(tiny_data(4), batch_size=1, shuffle=False)
    x, y = tiny_data(4)
    plain = tiny_trainer()
    plain.fit((x[::2], y[::2]), batch_size=1, shuffle=False)
    assert stepped == [True, False, True, False]
    assert result.steps == 4
    assert torch.equal(plain.model.weight, trainer.model.weight)


@pytest.mark.parametrize("answer", [True, False])
def test_what_optimizer_step_answers_is_the_core_s_where_nobody_replaces_it(answer: bool) -> None:
    class Declines:
        def optimizer_step(self, trainer: Trainer) -> Any:
            return NotImplemented if answer else False

    trainer = tiny_trainer([Declines()])
    trainer.fit(tiny_data())
    assert trainer.stepped is answer


@pytest.mark.parametrize("hook", [name for name, hook in HOOKS.items() if hook.make])
def test_not_implemented_declines_each_make(hook: str, oracle: Any) -> None:
    recorder = Recorder([hook])
    assert recorder.calls == []
    trainer, plain = tiny_trainer([recorder]), tiny_trainer()
    rows = [each.fit(tiny_data(), tiny_data(3), epochs=2).history for each in (trainer, plain)]
    assert hook in recorder.names
    assert rows[0] == rows[1]
    oracle.assert_same(dict(trainer.model.state_dict()), dict(plain.model.state_dict()))


@pytest.mark.parametrize("hook", [name for name, hook in HOOKS.items() if hook.make])
def test_none_as_the_answer_of_a_make_is_an_error_that_names_plugin_and_hook(hook: str) -> None:
    class Forgets:
        name = "forgetful"

    plugin = Forgets()
    space: dict[str, Any] = {}
    exec(f"def {hook}(trainer): pass", space)
    setattr(plugin, hook, space[hook])
    with pytest.raises(PluginError, match=rf"plugin 'forgetful', hook {hook} returned None"):
        tiny_trainer([plugin]).fit(tiny_data())


@pytest.mark.parametrize("hook", [name for name, hook in HOOKS.items() if hook.make or hook.kind == "wrap"])
def test_a_wrap_that_forgets_to_return_is_an_error_that_names_plugin_and_hook(hook: str) -> None:
    class Forgets:
        name = "forgetful"

    plugin = Forgets()
    space: dict[str, Any] = {"hookimpl": hookimpl}
    exec(f"@hookimpl(wrapper=True)\ndef {hook}(trainer):\n    yield", space)
    setattr(plugin, hook, space[hook])
    with pytest.raises(PluginError, match=rf"plugin 'forgetful', hook {hook} returned None.*yield"):
        tiny_trainer([plugin]).fit(tiny_data())


def wrapping(name: str, order: list[str], hook: str) -> Any:
    """A plugin that wraps a hook and notes when it enters and leaves it."""
    plugin = SimpleNamespace(name=name)
    space: dict[str, Any] = {"hookimpl": hookimpl, "order": order, "name": name}
    exec(
        f"@hookimpl(wrapper=True)\ndef {hook}(trainer):\n    order.append(name + ' in')\n    answer = yield\n"
        "    order.append(name + ' out')\n    return answer",
        space,
    )
    setattr(plugin, hook, space[hook])
    return plugin


@pytest.mark.parametrize(
    "hook", [name for name, hook in HOOKS.items() if not hook.isolated and name != "on_checkpoint"]
)
def test_wraps_surround_each_hook_and_the_first_listed_is_outermost(hook: str) -> None:
    order: list[str] = []
    inside = Recorder([hook], name="inside") if hook != "prepare_model" else Recorder()
    plugins = [wrapping("a", order, hook), inside, wrapping("b", order, hook)]
    plain, trainer = tiny_trainer(), tiny_trainer(plugins)
    rows = [each.fit(tiny_data(), tiny_data(2)).history for each in (plain, trainer)]
    assert order[:4] == ["a in", "b in", "b out", "a out"]
    assert rows[0] == rows[1]


def test_a_wrap_sees_the_answer_of_the_loop_and_may_change_it() -> None:
    class Halves:
        @hookimpl(wrapper=True)
        def compute_loss(self) -> Any:
            loss = yield
            return loss / 2

    trainer, plain = tiny_trainer([Halves()], lr=0.2), tiny_trainer(lr=0.1)
    rows = [each.fit(tiny_data(), epochs=3).history for each in (trainer, plain)]
    assert [row["train_loss"] * 2 for row in rows[0]] == [row["train_loss"] for row in rows[1]]
    torch.testing.assert_close(trainer.model.weight, plain.model.weight)


def test_a_wrap_surrounds_a_make_that_replaces_the_answer_and_one_that_declines() -> None:
    seen: list[Any] = []

    class Makes:
        def compute_loss(self, split: str, output: torch.Tensor) -> Any:
            return output.sum() * 0 + 7 if split == "val" else NotImplemented

    class Wraps:
        @hookimpl(wrapper=True)
        def compute_loss(self, split: str) -> Any:
            loss = yield
            seen.append((split, loss.item()))
            return loss

    x, y = torch.ones(2, 3), torch.ones(2, 1)
    tiny_trainer([Makes(), Wraps()]).fit((x, y), (x, y))
    assert seen == [("train", 1.0), ("val", 7.0)]


def test_an_error_from_inside_reaches_the_wrap_at_its_yield() -> None:
    seen: list[str] = []

    class Wraps:
        @hookimpl(wrapper=True)
        def forward(self) -> Any:
            try:
                return (yield)
            except DataError as error:
                seen.append(str(error))
                raise

    class Makes:
        def forward(self) -> Any:
            raise DataError("not this one")

    with pytest.raises(DataError, match="not this one"):
        tiny_trainer([Wraps(), Makes()]).fit(tiny_data())
    assert seen == ["not this one"]


@pytest.mark.parametrize("wrapper", [False, True])
def test_a_hook_narrowed_to_a_split_is_called_for_that_split_only(wrapper: bool) -> None:
    seen: list[str] = []

    class Narrow:
        if wrapper:

            @hookimpl(wrapper=True, split="val")
            def forward(self, split: str) -> Any:
                seen.append(split)
                return (yield)

            @hookimpl(wrapper=True, split="val")
            def on_batch_end(self, split: str) -> Any:
                seen.append(f"end {split}")
                yield

        else:

            @hookimpl(split="val")
            def forward(self, model: nn.Module, split: str, batch: Any) -> Any:
                seen.append(split)
                return model(batch[0])

            @hookimpl(split="val")
            def on_batch_end(self, split: str) -> None:
                seen.append(f"end {split}")

    trainer = tiny_trainer([Narrow(), Recorder()])
    trainer.fit(tiny_data(), tiny_data())
    trainer.evaluate(tiny_data())
    trainer.predict(tiny_data()[0])
    assert seen == ["val", "end val"]


def test_two_makes_of_one_hook_may_share_it_by_split() -> None:
    class Train:
        @hookimpl(split="train")
        def compute_loss(self, output: torch.Tensor, batch: Any) -> torch.Tensor:
            return 10 * F.mse_loss(output, batch[1])

    class Val:
        @hookimpl(split="val")
        def compute_loss(self, output: torch.Tensor, batch: Any) -> torch.Tensor:
            return output.sum() * 0 + 3

    x, y = torch.ones(2, 3), torch.ones(2, 1)
    trainer = tiny_trainer([Train(), Val()])
    assert trainer.fit((x, y), (x, y)).history == [{"epoch": 0, "step": 1, "train_loss": 10.0, "val_loss": 3.0}]


def test_two_makes_of_one_hook_for_one_split_are_an_error_before_anything_runs() -> None:
    class One:
        def forward(self, model: nn.Module, batch: Any) -> Any:
            return model(batch[0])

    class Two(One):
        @hookimpl(split="test")
        def forward(self, model: nn.Module, batch: Any) -> Any:
            return model(batch[0])

    with pytest.raises(PluginError, match=r"forward: one and two both replace it"):
        tiny_trainer([One(), Two()])


# ------------------------------------------------------------------------------------------ prepare_model, make_loader


def test_prepare_model_changes_the_model_before_it_is_placed_and_wraps_what_forward_gets() -> None:
    class Outer(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.inner(x)

    given: list[Any] = []

    class Prepares:
        @hookimpl(wrapper=True)
        def prepare_model(self, trainer: Trainer, model: nn.Module) -> Any:
            with torch.no_grad():
                model.weight.fill_(1.0)
            placed = yield
            assert placed is model
            return Outer(placed)

        def forward(self, model: nn.Module, batch: Any) -> Any:
            given.append(type(model))
            return model(batch[0])

    x, y = torch.ones(2, 3), torch.zeros(2, 1)
    trainer = tiny_trainer([Prepares()])
    model = trainer.model
    result = trainer.fit((x, y), (x, y))
    assert trainer.model is model
    assert isinstance(model, nn.Linear)
    assert result.history[0]["train_loss"] == 9.0
    assert given == [Outer, Outer]
    trainer.evaluate((x, y))
    trainer.predict(x)
    assert given == [Outer] * 4
    assert not trainer.prepared.training
    assert list(trainer.snapshot().model) == ["weight", "bias"]


def test_prepare_model_runs_before_the_loaders_are_made() -> None:
    recorder = Recorder(["make_loader", "on_fit_start"], makes=True)

    class Prepares:
        @hookimpl(wrapper=True)
        def prepare_model(self) -> Any:
            assert recorder.calls == []
            return (yield)

    tiny_trainer([recorder, Prepares()]).fit(tiny_data(), tiny_data())
    assert recorder.names == ["make_loader", "make_loader", "on_fit_start"]


def test_prepare_model_that_rebinds_the_optimizer_trains_the_new_parameters() -> None:
    class Replaces:
        @hookimpl(wrapper=True)
        def prepare_model(self, trainer: Trainer, model: nn.Module) -> Any:
            model.weight = nn.Parameter(torch.full((1, 3), 2.0))
            trainer.optimizer.param_groups[0]["params"] = list(model.parameters())
            return (yield)

    trainer = tiny_trainer([Replaces()])
    trainer.fit(tiny_data(), epochs=2)
    assert not torch.equal(trainer.model.weight, torch.full((1, 3), 2.0))


def test_make_loader_may_give_any_iterable_of_batches_for_any_data() -> None:
    asked: list[Any] = []

    class Loads:
        def make_loader(self, data: Any, split: str, batch_size: int | None, shuffle: bool, drop_last: bool) -> Any:
            asked.append((data, split, batch_size, shuffle, drop_last))
            return [(torch.ones(2, 3), torch.ones(2, 1))] * data

    trainer = tiny_trainer([Loads()])
    result = trainer.fit(4, 2, epochs=2, batch_size=8, drop_last=True)
    assert (result.epochs, result.steps) == (2, 8)
    trainer.evaluate(1, batch_size=5)
    assert asked == [(4, "train", 8, True, True), (2, "val", 8, False, False), (1, "test", 5, False, False)]


def test_make_loader_may_wrap_the_loader_of_the_core() -> None:
    class Limits:
        @hookimpl(wrapper=True, split="train")
        def make_loader(self) -> Any:
            loader = yield
            return list(loader)[:2]

    result = tiny_trainer([Limits()]).fit(tiny_data(9), tiny_data(9), batch_size=2)
    assert result.steps == 2


def test_the_loaders_are_known_to_plugins_by_split() -> None:
    class Looks:
        def on_fit_start(self, trainer: Trainer) -> None:
            assert [len(loader) for loader in trainer.loaders.values()] == [3, 1]
            assert list(trainer.loaders) == ["train", "val"]

    tiny_trainer([Looks()]).fit(tiny_data(5), tiny_data(2), batch_size=2)


def test_a_loader_that_is_used_up_after_one_epoch_is_an_error() -> None:
    class Once:
        def make_loader(self) -> Any:
            return iter([(torch.ones(2, 3), torch.ones(2, 1))])

    with pytest.raises(DataError, match="train: not a single batch"):
        tiny_trainer([Once()]).fit(tiny_data(), epochs=2)


# ---------------------------------------------------------------------------------------------------- reduce and agree


def test_reduce_is_the_sum_over_processes_for_losses_and_plugins() -> None:
    class Three:
        """As if there were three processes with the same figures, the last with none of the samples."""

        def reduce(self, value: torch.Tensor) -> torch.Tensor:
            return value * 3

        def on_split_end(self, trainer: Trainer, split: str, metrics: Any) -> None:
            metrics[f"{split}_sum"] = trainer.sum(torch.tensor(2.0))

    row = tiny_trainer([Three()]).fit((torch.ones(2, 3), torch.ones(2, 1))).history[0]
    assert row == {"epoch": 0, "step": 1, "train_loss": 1.0, "train_sum": 6.0}


def test_reduce_gets_sum_and_count_in_doubles() -> None:
    seen: list[Any] = []

    class Looks:
        def reduce(self, value: torch.Tensor) -> torch.Tensor:
            seen.append((value.dtype, value.tolist()))
            return value + torch.tensor([10.0, 5.0], dtype=torch.float64)

    row = tiny_trainer([Looks()]).fit((torch.ones(5, 3), torch.ones(5, 1)), batch_size=2).history[0]
    assert seen[0][0] == torch.float64
    assert seen[0][1][1] == 5.0
    assert row["train_loss"] == (seen[0][1][0] + 10) / 10


def test_without_a_reduce_the_sum_is_the_value() -> None:
    value = torch.tensor([1.0, 2.0])
    assert tiny_trainer().sum(value) is value


def test_agree_may_drop_add_and_replace_requests(tmp_path: Path) -> None:
    class Peer:
        """Another process that vetoes the stops of this one and asks for its own at step 3."""

        def agree(self, trainer: Trainer, stop: str | None, save: tuple[str, ...]) -> Any:
            return ("the peer" if trainer.step == 3 else None), (("peer",) if trainer.step == 2 else ())

        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.stop("mine")
            trainer.save("mine")

    recorder = Recorder(["on_checkpoint"])
    result = tiny_trainer([Peer(), recorder], run_dir=tmp_path).fit(tiny_data(5), epochs=2, batch_size=1)
    assert (result.stop_reason, result.steps, result.epochs) == ("the peer", 3, 0)
    assert len(recorder.calls) == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["PEER", "step-000000000002"]


# --------------------------------------------------------------------------------------------- batches of other shapes


class Described(Dataset):
    """Samples that are dicts."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        x, y = tiny_data()
        return {"x": x[index], "y": y[index], "name": f"sample {index}"}


class OfDicts:
    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch["x"])

    def compute_loss(self, output: torch.Tensor, batch: Any) -> torch.Tensor:
        return F.mse_loss(output, batch["y"])


@pytest.mark.parametrize("batch_size", [None, 2])
def test_batches_that_are_dicts_train_through_forward_and_compute_loss(batch_size: int | None) -> None:
    trainer, plain = tiny_trainer([OfDicts()]), tiny_trainer()
    got = trainer.fit(Described(), Described(), epochs=2, batch_size=batch_size, shuffle=False)
    expected = plain.fit(tiny_data(), tiny_data(), epochs=2, batch_size=batch_size, shuffle=False)
    assert got.history == expected.history


@pytest.mark.parametrize("batch_size", [None, 2])
def test_batches_that_are_dicts_without_such_a_plugin_are_a_mistake(batch_size: int | None) -> None:
    with pytest.raises(DataError, match=r"a batch must be a pair \(x, y\).*(dict|parts)"):
        tiny_trainer().fit(Described(), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_three_tensors_are_a_mistake_and_not_cut_to_two(batch_size: int | None) -> None:
    x, y = tiny_data()
    with pytest.raises(DataError, match=r"a batch must be a pair \(x, y\), this one is 3 parts"):
        tiny_trainer().fit(TensorDataset(x, y, torch.ones(5)), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_inputs_without_targets_are_a_mistake(batch_size: int | None) -> None:
    x, _ = tiny_data()
    with pytest.raises(DataError, match=r"a batch must be a pair \(x, y\), this one is 1 part"):
        tiny_trainer().fit(TensorDataset(x), batch_size=batch_size)


def test_a_bare_tensor_as_batch_is_a_mistake_and_its_rows_are_not_taken_for_x_and_y() -> None:
    class Rows(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.ones(3)

    model = nn.Linear(3, 3)
    with pytest.raises(DataError, match=r"a batch must be a pair \(x, y\), this one is a Tensor"):
        Trainer(model, F.mse_loss, sgd(model), device="cpu").fit(Rows(), batch_size=2)


def test_three_tensors_are_fine_for_a_plugin_that_computes_the_loss() -> None:
    class Weighted:
        def compute_loss(self, output: torch.Tensor, batch: Any) -> torch.Tensor:
            _, y, weight = batch
            return (weight * (output - y) ** 2).mean()

    x, y = torch.ones(4, 3), torch.ones(4, 1)
    data = TensorDataset(x, y, torch.full((4, 1), 5.0))
    assert tiny_trainer([Weighted()]).fit(data, batch_size=2).steps == 2
    assert tiny_trainer([Weighted()]).evaluate(data)["test_loss"] == 5.0


def test_a_batch_without_samples_is_a_mistake() -> None:
    class Empty(IterableDataset):
        def __iter__(self) -> Any:
            yield torch.ones(2, 3), torch.ones(2, 1)
            yield torch.ones(0, 3), torch.ones(0, 1)

    with pytest.raises(DataError, match=r"x \(0, 3\), y \(0, 1\)"):
        tiny_trainer().fit(DataLoader(Empty(), batch_size=None))


def test_leading_dimensions_that_differ_are_a_mistake_unless_samples_says_how_many_there_are() -> None:
    class Sequences:
        """Time first: x is (steps, samples, features)."""

        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return model(batch[0].mean(0))

    x, y = torch.ones(7, 2, 3), torch.ones(2, 1)
    loader = [(x, y), (x[:, :1], y[:1])]

    class Loads(Sequences):
        def make_loader(self) -> Any:
            return loader

    with pytest.raises(DataError, match=r"x \(7, 2, 3\), y \(2, 1\).*samples="):
        tiny_trainer([Loads()]).fit(None)
    watch = Watches()
    trainer = tiny_trainer([Loads(), watch], samples=lambda batch: len(batch[1]))
    trainer.fit(None)
    assert [now["samples"] for _, now in watch.starts] == [2, 1]


@pytest.mark.parametrize("where", ["forward", "loss", "hook"])
def test_stop_iteration_in_the_user_s_code_does_not_end_the_epoch_silently(where: str) -> None:
    def stops(*arguments: Any) -> Any:
        raise StopIteration("mine")

    trainer = tiny_trainer([SimpleNamespace(name="plugin", on_batch_end=lambda: stops() if where == "hook" else None)])
    if where == "forward":
        trainer.model.forward = stops
    if where == "loss":
        trainer.loss = stops
    with pytest.raises(StopIteration, match="mine"):
        trainer.fit(tiny_data(), batch_size=2)
    assert trainer.history == []


# ------------------------------------------------------------------------------------------------------------- figures


def test_means_are_weighted_by_samples_so_that_a_short_last_batch_counts_what_it_holds() -> None:
    x, y = torch.zeros(5, 3), torch.tensor([[0.0], [0.0], [0.0], [0.0], [10.0]])
    trainer = tiny_trainer(lr=0.0)
    assert trainer.fit((x, y), (x, y), batch_size=2, shuffle=False).history[0]["val_loss"] == 20.0
    assert trainer.history[0]["train_loss"] == 20.0
    assert trainer.evaluate((x, y), batch_size=3) == {"test_loss": pytest.approx(20.0)}


def test_a_plugin_adds_its_figures_in_the_order_of_the_splits() -> None:
    class Adds:
        def metric_names(self, split: str) -> list[str]:
            return [f"{split}_twice"] + ["lr"] * (split == "train")

        def on_split_end(self, split: str, metrics: Any) -> None:
            metrics[f"{split}_twice"] = 2 * metrics[f"{split}_loss"]
            if split == "train":
                metrics["lr"] = 0.5

    trainer = tiny_trainer([Adds()])
    x, y = torch.ones(2, 3), torch.ones(2, 1)
    row = trainer.fit((x, y), (x, y)).history[0]
    assert list(row) == ["epoch", "step", "train_loss", "train_twice", "lr", "val_loss", "val_twice"]
    assert trainer.metric_names == ("train_loss", "train_twice", "lr", "val_loss", "val_twice")
    assert row["train_twice"] == 2.0
    assert trainer.evaluate((x, y)).keys() == {"test_loss", "test_twice"}


@pytest.mark.parametrize("name", ["train_loss", "epoch", "step"])
def test_a_figure_that_is_there_already_is_an_error_that_names_the_plugin(name: str) -> None:
    class Adds:
        def on_split_end(self, metrics: Any) -> None:
            metrics[name] = 1.0

    with pytest.raises(UsageError, match=f"the metric '{name}' is there already") as caught:
        tiny_trainer([Adds()]).fit(tiny_data())
    assert "plugin 'adds', hook on_split_end, epoch 0, step 1" in caught.value.__notes__[0]


def test_one_plain_name_for_train_and_val_is_an_error_too() -> None:
    class Adds:
        def on_split_end(self, metrics: Any) -> None:
            metrics["lr"] = 1.0

    with pytest.raises(UsageError, match="the metric 'lr' is there already"):
        tiny_trainer([Adds()]).fit(tiny_data(), tiny_data())


def test_the_row_given_to_on_epoch_end_is_read_only() -> None:
    class Writes:
        def on_epoch_end(self, metrics: Any) -> None:
            metrics["mine"] = 1.0

    with pytest.raises(TypeError):
        tiny_trainer([Writes()]).fit(tiny_data())


def test_the_row_is_in_the_history_when_on_epoch_end_is_called() -> None:
    class Looks:
        def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Any) -> None:
            assert trainer.history[-1] == dict(metrics)
            assert (trainer.epoch, metrics["epoch"], epoch) == (len(trainer.history), epoch, trainer.epoch - 1)

    tiny_trainer([Looks()]).fit(tiny_data(), epochs=3)
