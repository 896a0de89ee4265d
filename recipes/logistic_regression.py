"""Lab 05: logistic regression, two classes of points in a plane.

Six points, three of class 0 and three of class 1. A sigmoid turns the score x @ W + b into the probability of class 1,
and gradient descent on all six lowers the binary cross entropy; W = b = 0 at first.

Expect: train_loss 0.693147 in epoch 0, which is ln 2 (both classes equally likely), 0.019852 in epoch 1000.
The train_accuracy is 1.0 from epoch 69 on: all six right, 100 %, which the notes print as "1.00%".
The loss keeps falling after that: a larger W makes the model surer of a line that separates the classes already, so
there is no best W to arrive at. decision_boundary.svg shows the line and how sure the model is on either side.

With --lr 10 the first steps are so long that the sigmoid is as good as 0 or 1. There it is flat, its gradient is too
small to move a weight, and nothing is learned any more. --logits leaves the sigmoid to the loss, which then knows the
score and gets out again.

Next: --lr 10
Next: --lr 10 --logits
"""

import torch
from torch import nn

from framework import Recipe

X = [[1, 2], [2, 3], [3, 1], [4, 3], [5, 3], [6, 2]]
Y = [[0], [0], [0], [1], [1], [1]]


def recipe(lr: float = 1.0, epochs: int = 1001, logits: bool = False) -> Recipe:
    """
    Args:
        lr: learning rate of gradient descent
        epochs: passes over the six points, one step each
        logits: the model gives scores, and the loss takes the sigmoid
    """
    score = nn.Linear(2, 1)
    for parameter in score.parameters():
        nn.init.zeros_(parameter)
    model = score if logits else nn.Sequential(score, nn.Sigmoid())
    return Recipe(
        model=model,
        loss=nn.BCEWithLogitsLoss() if logits else nn.BCELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=(torch.tensor(X, dtype=torch.float32), torch.tensor(Y, dtype=torch.float32)),
        epochs=epochs,
        plugins=["accuracy", "decision_boundary"],
    )
