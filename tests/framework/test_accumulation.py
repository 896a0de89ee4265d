"""`fit(..., accumulate=k)` against the big batch and against the window written by hand, for whatever sizes there are.

What users of others complain of is named where it is tested. test_loop.py has what a window tells plugins.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Trainer
from framework.testing import tiny_data

LOSSES = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
sizes = {"samples": st.integers(1, 23), "batch_size": st.integers(1, 6), "accumulate": st.integers(1, 9)}
examples = settings(max_examples=60, deadline=None, derandomize=True)


class Windows:
    """Per window: its samples, its gradients when they are complete, and the loss of each batch as it is told."""

    def on_fit_start(self) -> None:
        self.samples: list[Tensor] = []
        self.gradients: list[list[Tensor]] = []
        self.losses: list[tuple[float, int]] = []
        self._batches: list[Tensor] = []

    def on_batch_start(self, split: str, batch: Any) -> None:
        if split == "train":
            self._batches.append(batch[0])

    def on_gradients(self, trainer: Trainer) -> None:
        self.samples.append(torch.cat(self._batches))
        self.gradients.append([parameter.grad.clone() for parameter in trainer.model.parameters()])
        self._batches = []

    def on_batch_end(self, split: str, loss: Tensor, samples: int) -> None:
        if split == "train":
            self.losses.append((loss.item(), samples))


def model_of(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def data_of(samples: int, loss: str) -> tuple[Tensor, Tensor]:
    x, y = tiny_data(samples)
    return x.double(), y.double() if loss == "mse" else torch.arange(samples) % 3


def gradients_of(model: nn.Module, loss: Any, x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss(model(x), y), list(model.parameters())))


def close(got: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@examples
@given(loss=st.sampled_from([*LOSSES]), shuffle=st.booleans(), drop_last=st.booleans(), **sizes)
@example(
    loss="mse", shuffle=False, drop_last=False, samples=7, batch_size=2, accumulate=3
)  # a window of one batch of one
@example(loss="cross_entropy", shuffle=True, drop_last=False, samples=5, batch_size=2, accumulate=9)
def test_each_window_has_the_gradient_of_its_samples_as_one_batch(
    loss: str, shuffle: bool, drop_last: bool, samples: int, batch_size: int, accumulate: int
) -> None:
    # Lightning #19987: the last window divided by k; #21808: nothing accumulated where an epoch is shorter than k;
    # transformers #34191, ms-swift #10084: not the loss of the big batch
    if drop_last and samples < batch_size:
        return
    x, y = data_of(samples, loss)
    model, windows = model_of(1 if loss == "mse" else 3), Windows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # so that all windows are of the same weights
    trainer = Trainer(model, LOSSES[loss], optimizer, [windows], "cpu")
    result = trainer.fit((x, y), epochs=2, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last,
                         accumulate=accumulate)  # fmt: skip
    batches = samples // batch_size if drop_last else -(-samples // batch_size)
    assert result.steps == len(windows.samples) == 2 * -(-batches // accumulate)
    for seen, gradients in zip(windows.samples, windows.gradients, strict=True):
        rows = [int((x == sample).all(1).nonzero()[0]) for sample in seen]
        close(gradients, gradients_of(model, LOSSES[loss], x[rows], y[rows]))
    for epoch in range(2):  # Ignite counts windows over the whole fit, so that one reaches into the next epoch
        own = windows.samples[epoch * result.steps // 2 : (epoch + 1) * result.steps // 2]
        lengths = [len(seen) for seen in own]
        assert sum(lengths) == (batches * batch_size if drop_last else samples)
        assert all(length == accumulate * batch_size for length in lengths[:-1])


@examples
@given(loss=st.sampled_from([*LOSSES]), momentum=st.booleans(), **sizes)
def test_the_bits_are_those_of_a_window_by_hand(
    oracle: Any, loss: str, momentum: bool, samples: int, batch_size: int, accumulate: int
) -> None:
    x, y = data_of(samples, loss)
    outputs = 1 if loss == "mse" else 3

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = model_of(outputs).float()
        if momentum:
            return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    x, y = x.float(), y.float() if loss == "mse" else y
    model, optimizer = made()
    torch.manual_seed(1)
    loader, means = DataLoader(TensorDataset(x, y), batch_size, shuffle=True), []
    for _ in range(2):
        batches, total = list(loader), 0.0
        for first in range(0, len(batches), accumulate):
            window = batches[first : first + accumulate]
            optimizer.zero_grad()
            for part, target in window:
                value = LOSSES[loss](model(part), target)
                weight = len(part) / sum(len(other) for other, _ in window)
                (value if weight == 1.0 else value * weight).backward()
                total += value.item() * len(part)
            optimizer.step()
        means.append(total / samples)
    got, own = made()
    trainer = Trainer(got, LOSSES[loss], own, device="cpu")
    torch.manual_seed(1)
    result = trainer.fit((x, y), epochs=2, batch_size=batch_size, accumulate=accumulate)
    oracle.assert_same(oracle.state(model, optimizer), oracle.state(got, own))
    assert [row["train_loss"] for row in result.history] == means


@examples
@given(**sizes)
def test_the_loss_that_is_told_is_that_of_the_batch(samples: int, batch_size: int, accumulate: int) -> None:
    # Lightning #2569, #13243: the logged loss was divided by k
    x, y = data_of(samples, "mse")
    model, windows = model_of(1), Windows()
    trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.0), [windows], "cpu")
    result = trainer.fit((x, y), epochs=1, batch_size=batch_size, shuffle=False, accumulate=accumulate)
    wanted = [(F.mse_loss(model(a), b).item(), len(a)) for a, b in zip(x.split(batch_size), y.split(batch_size))]  # noqa: B905
    assert windows.losses == wanted
    assert result.history[0]["train_loss"] == pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 100])
def test_a_stream_that_does_not_tell_its_length_has_whole_windows_and_a_last_one(accumulate: int) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(TensorDataset(*data_of(7, "mse")))

    model, windows = model_of(1), Windows()
    trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.0), [windows], "cpu")
    trainer.fit(DataLoader(Stream(), 2), epochs=2, accumulate=accumulate)
    x, y = data_of(7, "mse")
    spans = [range(7)[start : start + 2 * accumulate] for start in range(0, 7, 2 * accumulate)]
    assert [len(seen) for seen in windows.samples] == [len(span) for span in spans] * 2
    for rows, gradients in zip(spans * 2, windows.gradients, strict=True):
        close(gradients, gradients_of(model, F.mse_loss, x[rows.start : rows.stop], y[rows.start : rows.stop]))


@pytest.mark.parametrize("accumulate", [2, 3, 9])
def test_where_tokens_count_samples_may_be_tokens(accumulate: int) -> None:
    # transformers #34191, #35438: sequences of different length, and a loss that is the mean over their tokens
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(7, 5, 3, generator=generator).double(), torch.randint(4, (7, 5), generator=generator)
    y[torch.rand(7, 5, generator=generator) < 0.4] = -100  # padding

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    def tokens(batch: Any) -> int:
        return int((batch[1] != -100).sum())

    model, windows = model_of(4), Windows()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, loss, optimizer, [windows], "cpu", samples=tokens)
    result = trainer.fit((x, y), (x, y), epochs=1, batch_size=2, shuffle=False, accumulate=accumulate)
    for first, gradients in zip(range(0, 7, 2 * accumulate), windows.gradients, strict=True):
        span = slice(first, first + 2 * accumulate)
        close(gradients, gradients_of(model, loss, x[span], y[span]))
    for name in ("train_loss", "val_loss"):
        assert result.history[0][name] == pytest.approx(loss(model(x), y).item(), rel=1e-12)


def test_what_clips_clips_the_gradient_of_the_window_once() -> None:
    # Poutyne clips before it divides by the samples; others once a batch
    class Clips:
        def on_gradients(self, trainer: Trainer) -> None:
            norms.append(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 0.1).item())

    norms: list[float] = []
    x, y = data_of(7, "mse")
    model = model_of(1)
    whole = torch.nn.utils.get_total_norm(gradients_of(model, F.mse_loss, x, y)).item()
    trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=0.0), [Clips()], "cpu")
    trainer.fit((x, y), epochs=1, batch_size=2, shuffle=False, accumulate=4)
    assert norms == [pytest.approx(whole, rel=1e-12)]
