"""Lab 07-1: maximum likelihood, the coin that fits 27 heads in 100 tosses best.

How likely are 27 heads in 100 tosses of a coin that shows heads with probability theta? The best theta is found by
going uphill on the likelihood, from 0.5.

Expect: theta 0.2700, which is k / n, with a likelihood of 0.0896; the fair coin at the start has 1.5e-06.
The likelihood is C(n, k) theta^k (1 - theta)^(n - k). Its logarithm has its top in the same place, and a slope that can
be walked, so the loss is the negative logarithm, a mean over the tosses: downhill on it is uphill on the likelihood.
That is the binary cross entropy, and this is where the loss of logistic regression comes from.
The model holds the logit of theta, so that theta cannot leave the range from 0 to 1.

Next: --heads 60
Next: --tosses 10 --heads 3
Next: --lr 20
"""

import math

import torch
from torch import Tensor, nn

from framework import Recipe, Trainer, UsageError, hookimpl, picture


class Coin(nn.Module):
    """The probability of heads for each toss: the same one, theta."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(1, 1))  # theta = 0.5

    def forward(self, tosses: Tensor) -> Tensor:
        return self.logit.sigmoid().expand(len(tosses), 1)


class Likelihood:
    """Follows theta, and draws the likelihood with the way that theta went."""

    def __init__(self, tosses: int, heads: int) -> None:
        self.tosses, self.heads = tosses, heads

    def metric_names(self, split: str) -> list[str]:
        return ["theta", "likelihood"] if split == "train" else []

    def on_fit_start(self) -> None:
        self.way: list[float] = []

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.way.append(theta_of(trainer))

    @hookimpl(split="train")
    def on_split_end(self, metrics: dict[str, float]) -> None:
        metrics["theta"], metrics["likelihood"] = self.way[-1], self.of(self.way[-1])

    def of(self, theta: float) -> float:
        tails = self.tosses - self.heads
        if theta in (0.0, 1.0):  # where a logarithm ends
            return float((self.heads if theta == 0.0 else tails) == 0)
        ways = math.lgamma(self.tosses + 1) - math.lgamma(self.heads + 1) - math.lgamma(tails + 1)  # ln C(n, k)
        return math.exp(ways + self.heads * math.log(theta) + tails * math.log1p(-theta))

    def on_fit_end(self, trainer: Trainer) -> None:
        theta = theta_of(trainer)
        print(f"theta     {theta:.4f} (k / n = {self.heads / self.tosses:.4f}), likelihood {self.of(theta):.4f}")
        if trainer.run_dir is not None:
            with picture(trainer.run_dir / "likelihood.svg") as figure:
                axes = figure.subplots()
                all_thetas = [number / 500 for number in range(501)]
                axes.plot(all_thetas, [self.of(value) for value in all_thetas])
                axes.plot(self.way, [self.of(value) for value in self.way], "o", markersize=4, label="gradient ascent")
                axes.plot([theta], [self.of(theta)], "*", markersize=14, label=f"theta = {theta:.4f}")
                axes.set_xlabel("theta, the probability of heads")
                axes.set_ylabel(f"probability of {self.heads} heads in {self.tosses} tosses")
                axes.legend(frameon=False)


def theta_of(trainer: Trainer) -> float:
    (logit,) = trainer.model.parameters()
    return float(logit.detach().sigmoid())


def recipe(tosses: int = 100, heads: int = 27, lr: float = 1.0, epochs: int = 41) -> Recipe:
    """
    Args:
        tosses: how often the coin is tossed
        heads: how often it shows heads
        lr: learning rate of gradient ascent
        epochs: steps uphill
    """
    if not 0 <= heads <= tosses:
        raise UsageError(f"of {tosses} tosses, {heads} cannot be heads")
    model = Coin()
    shown = torch.tensor([[1.0]] * heads + [[0.0]] * (tosses - heads))
    return Recipe(
        model=model,
        loss=nn.BCELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=(torch.zeros(tosses, 1), shown),
        epochs=epochs,
        plugins=[Likelihood(tosses, heads)],
    )
