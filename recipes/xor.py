"""Lab 08-1: XOR, where one layer fails and two succeed.

Four points: (0, 0) and (1, 1) are class 0, (0, 1) and (1, 0) are class 1. One layer divides the plane by a straight
line, and no line has both points of a class on its side. A hidden layer bends it.

Expect: one layer stays at train_loss 0.693147, which is ln 2; two layers end at 0.0012 with all four points right.
One layer answers 0.5 everywhere: the best that a line can do here is to tell nothing. (Its accuracy is an accident of
rounding: 0.5 is called class 1, 0.4999999 class 0.) Without an activation between them two layers are one line too,
since the product of two matrices is a matrix: try --activation none.

Two hidden nodes are enough, if the first weights are good: seeds 0 to 4 find the way, seed 5 leaves two points at 0.5.

Next: --activation none
Next: --hidden 2
Next: --hidden 2 --seed 5
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from framework import Recipe

X = [[0, 0], [0, 1], [1, 0], [1, 1]]
Y = [[0], [1], [1], [0]]
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "none": nn.Identity}


def recipe(
    hidden: int = 10, activation: Literal["sigmoid", "relu", "tanh", "none"] = "sigmoid", lr: float = 1.0,
    epochs: int = 5001,
) -> dict[str, Callable[[], Recipe]]:  # fmt: skip
    """
    Args:
        hidden: nodes of the hidden layer
        activation: between the two layers
        lr: learning rate of gradient descent
        epochs: passes over the four points, one step each
    """

    def network(*layers: nn.Module) -> Recipe:
        model = nn.Sequential(*layers)
        return Recipe(
            model=model,
            loss=nn.BCEWithLogitsLoss(),  # takes the sigmoid itself
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train=(torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32)),
            epochs=epochs,
            plugins=["accuracy", "decision_boundary"],
        )

    return {
        "one layer": lambda: network(nn.Linear(2, 1)),
        "two layers": lambda: network(nn.Linear(2, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, 1)),
    }
