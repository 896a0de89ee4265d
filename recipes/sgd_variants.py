"""Week 05-2: three versions of gradient descent: all samples, one sample, m samples a step.

A line is fitted to 100,000 noisy points of y = 2x. Each version takes the slope of the same squared error, of other
samples: of all of them, of a single one, of a mini-batch of m.

Expect: after 1000 updates errors below 0.001 with all and with m samples; with one it trembles between 0.0001 and 0.3.
The error is that of the line itself, the mean of (w1 x + w0 - 2x)^2, without the noise of the points. Counted in
updates, all samples go straight to the place. But each of their updates costs a whole pass over the data: after one
pass they have made a single step, with an error of 116, and m samples a thousand. One sample makes 100,000 steps, each
in a direction of its own: it is near in no time, and then trembles around the place for good. versions.svg shows both
counts side by side.

Next: --batch-size 1000
Next: --lr 0.004
Next: --samples 20000
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import TensorDataset

from framework import Recipe, Trainer, UsageError, hookimpl, picture

Points = list[tuple[int, float, float]]  # updates, epochs, error


class Trace:
    """Follows the error of the line over updates and epochs, at more and more distant steps."""

    def __init__(self, label: str, traces: dict[str, Points], samples: int, updates: int) -> None:
        self.label, self.traces, self.samples, self.updates = label, traces, samples, updates

    def on_fit_start(self, trainer: Trainer) -> None:
        self.seen = 0
        self.points: Points = []
        self.traces[self.label] = self.points

    @hookimpl(split="train")
    def on_batch_end(self, trainer: Trainer, samples: int) -> None:
        self.seen += samples
        last = self.points[-1][0] if self.points else 0
        if trainer.step > last * 1.02 or trainer.step == self.updates or self.seen == self.samples:
            w1, w0 = (parameter.item() for parameter in trainer.model.parameters())
            error = (w1 - 2) ** 2 * 100 / 3 + w0**2  # the mean of x^2 is 100/3 for x from -10 to 10
            self.points.append((trainer.step, self.seen / self.samples, error))

    def on_fit_end(self, trainer: Trainer) -> None:
        for updates, epochs, error in self.points:
            if updates == self.updates:
                print(f"error     {error:.6f} after {updates} updates")
            if epochs == 1:
                print(f"error     {error:.6f} after one epoch")
        if trainer.run_dir is None or trainer.run_dir.name != "m samples":  # the last one draws them all
            return
        with picture(trainer.run_dir.parent / "versions.svg", 8, 6) as figure:
            left, right = figure.subplots(1, 2, sharey=True)
            for label, points in self.traces.items():
                left.loglog([p[0] for p in points], [p[2] for p in points], label=label)
                right.loglog([p[1] for p in points], [p[2] for p in points])
            left.axvline(self.updates, color="gray", linestyle=":")
            right.axvline(1, color="gray", linestyle=":")
            left.set_xlabel("updates")
            right.set_xlabel("epochs, passes over the data")
            left.set_ylabel("error of the line, mean of (w1 x + w0 - 2x)^2")
            figure.legend(loc="outside lower center", ncols=3, frameon=False)


def recipe(
    batch_size: int = 100, lr: float = 0.001, samples: int = 100_000, updates: int = 1000
) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        batch_size: m, samples in a mini-batch
        lr: learning rate of gradient descent, for all three
        samples: points of the data
        updates: steps after which the three are compared, at most as many as samples
    """
    if batch_size < 1 or not 1 <= updates <= samples:
        raise UsageError(f"batch_size must be from 1 up and updates from 1 to samples, got {batch_size} and {updates}")
    x = torch.linspace(-10, 10, samples).reshape(-1, 1)
    y = 2 * x + torch.randn(samples, 1)
    traces: dict[str, Points] = {}

    def version(label: str, size: int | None, epochs: int) -> Recipe:
        model = nn.Linear(1, 1)
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        return Recipe(
            model=model,
            loss=nn.MSELoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train=TensorDataset(x, y),
            batch_size=size,
            epochs=epochs,
            plugins=[Trace(label, traces, samples, updates)],
        )

    return {
        "all samples": lambda: version("all samples", None, updates),
        "one sample": lambda: version("one sample", 1, 1),
        "m samples": lambda: version("m samples", batch_size, math.ceil(updates / math.ceil(samples / batch_size))),
    }
