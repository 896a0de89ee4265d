"""Lab 03: gradient descent by hand and with torch, the same steps.

Three points on y = x and a line y = W * x without a bias, W = 0 at first. Once the gradient is worked out with pencil
and paper and put in the place of `loss.backward()` by the plugin ByHand below; once torch does both.

Expect: W 0, 1.4, 0.84, 1.064, ... 1 and train_loss 4.666667, 0.746667, 0.119467, ... 0.000000 from both.
Each row tells W as it was before the step of that epoch. W swings around 1 because each step takes it 1.4 times the way
there; half of 1/7 as the learning rate takes it there at once, and above 1/7 it runs away.

The learning rates differ, 0.1 and 0.15, because the two gradients do. The cost is a mean, so its derivative is
2/m * sum((W * x - y) * x); by hand the factor 2/m, here 2/3, is left out, and 2/3 of 0.15 is 0.1. The notes give the
formula with the factor and the code without it.

Next: --lr 0.0714 --lr-torch 0.1071
Next: --lr 0.15 --lr-torch 0.225
"""

import torch
from torch import Tensor, nn

from framework import Recipe, Trainer, hookimpl


class ByHand:
    """Works out the gradient without autograd."""

    def backward(self, trainer: Trainer, output: Tensor, batch: tuple[Tensor, Tensor]) -> bool:
        x, y = batch
        (weight,) = trainer.model.parameters()
        weight.grad = ((output - y) * x).sum().detach().reshape_as(weight)  # output is W * x
        return True


class RecordW:
    """Adds the weight at the start of each epoch to its figures."""

    def metric_names(self, split: str) -> list[str]:
        return ["W"] if split == "train" else []

    def on_epoch_start(self, trainer: Trainer) -> None:
        (weight,) = trainer.model.parameters()
        self.weight = weight.item()

    @hookimpl(split="train")
    def on_split_end(self, metrics: dict[str, float]) -> None:
        metrics["W"] = self.weight


def line(lr: float, epochs: int, plugins: list[object]) -> Recipe:
    """A line through the origin and the three points that it is fitted to."""
    x = torch.tensor([[1.0], [2.0], [3.0]])
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Recipe(model=model, loss=nn.MSELoss(), optimizer=optimizer, train=(x, x), epochs=epochs, plugins=plugins)


def recipe(lr: float = 0.1, lr_torch: float = 0.15, epochs: int = 11) -> dict[str, Recipe]:
    """
    Args:
        lr: learning rate by hand, on sum((W * x - y) * x); W runs away above 1/7
        lr_torch: learning rate of torch.optim.SGD, on the mean squared error; 1.5 times the other for the same steps
        epochs: passes over the three points, one step each
    """
    return {
        "by hand": line(lr, epochs, [ByHand(), RecordW()]),
        "torch": line(lr_torch, epochs, [RecordW()]),
    }
