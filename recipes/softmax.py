"""Lab 06: softmax classification of eight points in three classes.

Eight points with four features are put into three classes by softmax regression: scores x @ W + b, and the cross
entropy between their softmax and the right class, lowered by gradient descent on all eight points at once.

Expect: train_loss 1.098612 in epoch 0, which is ln 3 (three classes, all equally likely), 0.399962 in epoch 1000.
The one bias is shared by the three scores, as in the notes. Softmax does not change when the same number is added
to every score, so the gradient of this bias is zero up to rounding: it cannot learn. --bias-per-class gives each
class a bias of its own.

The curve is a zigzag: with a learning rate of 0.1 each step jumps across the valley, so the loss rises in every second
epoch. 0.08 walks down smoothly, ends lower (0.378215) and gets all eight points right.

Next: --lr 0.08
Next: --bias-per-class
"""

import torch
from torch import nn

from framework import Recipe

X = [[1, 2, 1, 1], [2, 1, 3, 2], [3, 1, 3, 4], [4, 1, 5, 5], [1, 7, 5, 5], [1, 2, 5, 6], [1, 6, 6, 6], [1, 7, 7, 7]]
Y = [2, 2, 2, 1, 1, 1, 0, 0]


class Softmax(nn.Module):
    """Scores of three classes; the softmax itself is in the loss."""

    def __init__(self, biases: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))
        self.bias = nn.Parameter(torch.zeros(biases))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def recipe(lr: float = 0.1, epochs: int = 1001, bias_per_class: bool = False) -> Recipe:
    """
    Args:
        lr: learning rate of gradient descent
        epochs: passes over the eight points
        bias_per_class: a bias of its own for each class instead of one that all share
    """
    model = Softmax(3 if bias_per_class else 1)
    return Recipe(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=(torch.tensor(X, dtype=torch.float32), torch.tensor(Y)),
        epochs=epochs,
        plugins=["accuracy"],
    )
