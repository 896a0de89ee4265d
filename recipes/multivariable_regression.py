"""Lab 04-1: linear regression with three variables.

Three test scores of five students predict the final one: x @ W, one matrix product for all five, W = 0 at first.
Gradient descent on the mean squared error of all five at once.

Expect: train_loss 29661.8 in epoch 0, 1.62 in epoch 20.
Ten epochs do nearly all of it and then it crawls, far from the best that such a W can do, 0.167: the three scores of a
student are much alike, so the error is a valley that is 18,000 times steeper across than along. A learning rate above
4.5e-5 jumps out of it, and 2001 epochs only reach 0.76.

The notes make a bias b and hand it to the optimizer, but leave it out of the product, so it stays 0 without a word.
--bias puts it in.

Next: --epochs 2001
Next: --lr 1e-4
Next: --bias
"""

import torch
from torch import nn

from framework import Recipe

SCORES = [[73, 80, 75], [93, 88, 93], [89, 91, 90], [96, 98, 100], [73, 66, 70]]
FINAL = [[152], [185], [180], [196], [142]]


def recipe(lr: float = 1e-5, epochs: int = 21, bias: bool = False) -> Recipe:
    """
    Args:
        lr: learning rate of gradient descent
        epochs: passes over the five students, one step each
        bias: add a bias to the product
    """
    model = nn.Linear(3, 1, bias=bias)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return Recipe(
        model=model,
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=(torch.tensor(SCORES, dtype=torch.float32), torch.tensor(FINAL, dtype=torch.float32)),
        epochs=epochs,
    )
