"""Lab 02: linear regression, a line through three points.

Hours of study and points in the test: 1 h gives 2, 2 h give 4, 3 h give 6; how many do 4 h give? The line
y = W * x + b starts flat (W = b = 0), and gradient descent on the mean squared error of all three points tilts it.

Expect: train_loss 0.048 in epoch 99 and 0.001 in epoch 999, and 7.9495 points for 4 hours where 8 would be right.
The line is near the points after 50 epochs; what is left is slow. W = 1.7 is too small and b = 0.65 too large, each
makes up for the other, and along this valley the error hardly falls.

Next: --lr 0.1
Next: --lr 0.2 --epochs 50
"""

import torch
from torch import nn

from framework import Recipe, Trainer

HOURS = [[1], [2], [3]]
POINTS = [[2], [4], [6]]


def recipe(lr: float = 0.01, epochs: int = 1000) -> Recipe:
    """
    Args:
        lr: learning rate of gradient descent; above 0.18 each step overshoots by more than it gains
        epochs: passes over the three points, one step each
    """
    model = nn.Linear(1, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return Recipe(
        model=model,
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=(torch.tensor(HOURS, dtype=torch.float32), torch.tensor(POINTS, dtype=torch.float32)),
        epochs=epochs,
    )


def on_fit_end(trainer: Trainer) -> None:
    points = trainer.predict(torch.tensor([[4.0]])).item()
    print(f"predict   4 hours -> {points:.4f} points (2 an hour would be 8)")
