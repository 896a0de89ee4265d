"""Lab 07-1: a validation set, and the best weights against the last ones.

The network of the lab on overfitting, trained twice alike for 100 epochs. After each epoch 400 digits of the validation
set are looked at, and the weights of the best epoch are kept. One run ends with the last weights, the other goes back
to the best.

Expect: test_accuracy 0.753 with the last weights, and 0.854 with those of the best epoch, 24.
The training loss could not have told: it falls to the end. The test set is a third one, because the best of a hundred
epochs was picked to suit the validation set. Both weights are on the disk, in checkpoints/; evaluate and predict take
the best, or with --checkpoint last the last.

Next: --epochs 300
Next: --monitor val_accuracy
Next: --noise 0
"""

from collections.abc import Callable
from typing import Literal

import torch
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.datasets import digits
from torch import nn

from framework import Recipe, Result


def recipe(
    epochs: int = 100, noise: float = 0.2, monitor: Literal["val_loss", "val_accuracy"] = "val_loss", lr: float = 1e-3
) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        epochs: passes over the training digits
        noise: share of the training digits that gets a random label
        monitor: the figure by which an epoch is the best
        lr: learning rate of Adam
    """
    train, val, test = digits(samples=300, noise=noise)

    def network(restore_best: bool) -> Recipe:
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        return Recipe(
            model=model,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.Adam(model.parameters(), lr=lr),
            train=train,
            val=val,
            test=test,
            epochs=epochs,
            batch_size=20,
            plugins=["accuracy", BestCheckpoint(monitor, restore_best=restore_best)],
        )

    return {"last weights": lambda: network(restore_best=False), "best weights": lambda: network(restore_best=True)}


def on_fit_end(result: Result) -> None:
    if result.best:
        print(f"kept      {result.best['monitor']} {result.best['value']:.4f} in {result.best['path']}")
