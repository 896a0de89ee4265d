"""Lab 04-2: the whole batch against mini-batches, 2001 epochs each.

The same five students and the same first weights, once all five in every step, once two at a time in a new order each
epoch.

Expect: train_loss 1.99 in epoch 2000 for the whole batch, and about 0.45 for the mini-batches.
The mini-batches jump from epoch to epoch; the best that a linear model can do is 0.104. For the first student,
[73, 80, 75], who got 152, the whole batch predicts 153.49 and the mini-batches about 152.2.

Passes are the same, steps are not: three an epoch against one, 6003 against 2001. With --batch-size 5 both make 2001
steps and agree to six digits. In the notes each model starts from random weights of its own, which decides how far it
is after 2001 steps: their whole batch ends at 0.87.

Next: --batch-size 5
Next: --batch-size 1
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import TensorDataset

from framework import Recipe, Trainer

SCORES = [[73, 80, 75], [93, 88, 93], [89, 91, 90], [96, 98, 100], [73, 66, 70]]
FINAL = [[152], [185], [180], [196], [142]]


def recipe(lr: float = 1e-5, epochs: int = 2001, batch_size: int = 2) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        lr: learning rate of gradient descent, for both
        epochs: passes over the five students
        batch_size: students in a mini-batch
    """

    def students(batch_size: int | None) -> Recipe:
        model = nn.Linear(3, 1)
        return Recipe(
            model=model,
            loss=nn.MSELoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train=TensorDataset(torch.tensor(SCORES, dtype=torch.float32), torch.tensor(FINAL, dtype=torch.float32)),
            epochs=epochs,
            batch_size=batch_size,
        )

    # Functions, not Recipes: the seed is set before each is called, so both start from the same weights.
    return {"batch": lambda: students(None), "minibatch": lambda: students(batch_size)}


def on_fit_end(trainer: Trainer) -> None:
    score = trainer.predict(torch.tensor([[73.0, 80.0, 75.0]])).item()
    print(f"predict   [73, 80, 75] -> {score:.4f} (152 is right)")
