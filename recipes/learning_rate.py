"""Lab 07-1: learning rates, too large, too small and right.

Eight points with three features in three classes, and softmax regression by gradient descent on all of them. Every
variant starts from the same weights; only the learning rate differs. Three more points are kept apart as a test.

Expect: 1e5 jumps to a loss of 1e6, 1e-10 stays at 2.100021, 0.1 falls to 0.97 and has 3 of 3 test points right.
Too large a step lands on the other side of the valley, higher than it started, and so does the next. With 1e-10 a step
changes a weight of 0.5 by less than float32 can tell apart (6e-8), so nothing moves at all, however many epochs. The
loss is curved so much after these 20 epochs, 17.8, that for the time being no rate above 2 / 17.8 = 0.11 settles.

Three points are no measurement: another --seed starts from other weights, and with seed 1 the rate of 0.1 gets 0 of 3.

Next: --lrs 0.01 0.1 0.5
Next: --lrs 0.3 1 3 --epochs 100
Next: --seed 1
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from framework import Recipe

X = [[1, 2, 1], [1, 3, 2], [1, 3, 4], [1, 5, 5], [1, 7, 5], [1, 2, 5], [1, 6, 6], [1, 7, 7]]
Y = [2, 2, 2, 1, 1, 1, 0, 0]
X_TEST = [[2, 1, 1], [3, 1, 2], [3, 3, 4]]
Y_TEST = [2, 2, 2]


def recipe(lrs: tuple[float, ...] = (1e5, 1e-10, 0.1), epochs: int = 20) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        lrs: learning rates to compare, such as --lrs 1e5 1e-10 0.1
        epochs: passes over the eight points, one step each
    """

    def softmax(lr: float) -> Recipe:
        model = nn.Linear(3, 3)
        return Recipe(
            model=model,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train=(torch.tensor(X, dtype=torch.float32), torch.tensor(Y)),
            test=(torch.tensor(X_TEST, dtype=torch.float32), torch.tensor(Y_TEST)),
            epochs=epochs,
            on_nonfinite="continue",  # a loss that leaves all bounds is what the lab is about
            plugins=["accuracy"],
        )

    return {f"lr {lr:.12g}": partial(softmax, lr) for lr in lrs}
