"""Lab 07-1: overfitting, and five remedies.

300 small digits, a fifth of them with a label drawn at random, and a network that is large enough to learn them all by
heart, the wrong ones too. Then the same with one remedy at a time, each judged by 400 digits that it did not learn.

Expect: the plain network ends with train_accuracy 1.00 and val_accuracy 0.77, where it had 0.89 in epoch 24.
train_loss falls on and on; val_loss falls, turns in epoch 24 and rises to nearly twice its best. Early stopping ends
there and puts the best weights back, which the test set confirms: 0.85 against 0.75. Weight decay and dropout keep the
network from learning by heart so fast, with fewer nodes it cannot; batch normalization learns even faster, and only
ends a little better. The circles in compare.svg are the best epochs by val_loss.

Next: --noise 0
Next: --samples 1000
Next: --epochs 300
"""

from collections.abc import Callable

import torch
from framework_plugins.datasets import digits
from framework_plugins.early_stopping import EarlyStopping
from torch import nn

from framework import Recipe, UsageError


def network(width: int, dropout: float = 0.0, batch_norm: bool = False) -> nn.Module:
    """64 pixels, two hidden layers, ten scores."""
    layers: list[nn.Module] = []
    for inputs in (64, width):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width) if batch_norm else nn.Identity(), nn.ReLU()]
        layers += [nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def recipe(
    samples: int = 300, noise: float = 0.2, epochs: int = 100, width: int = 256, lr: float = 1e-3
) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        samples: digits to learn from, from 2 to 1000
        noise: share of them that gets a random label
        epochs: passes over them
        width: nodes of each hidden layer; a sixteenth of them in the variant with fewer
        lr: learning rate of Adam
    """
    if samples < 2:
        raise UsageError(f"samples must be from 2 to 1000, got {samples}: of one, batch normalization has no deviation")
    train, val, test = digits(samples, noise)

    def variant(model: nn.Module, *plugins: object, weight_decay: float = 0.0) -> Recipe:
        return Recipe(
            model=model,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay),
            train=train,
            val=val,
            test=test,
            epochs=epochs,
            batch_size=min(20, samples),
            drop_last=True,
            plugins=["accuracy", *plugins],
        )

    return {
        "plain": lambda: variant(network(width)),
        "early stopping": lambda: variant(network(width), EarlyStopping(patience=15, restore_best=True)),
        "weight decay": lambda: variant(network(width), weight_decay=1.0),
        "dropout": lambda: variant(network(width, dropout=0.5)),
        "batch norm": lambda: variant(network(width, batch_norm=True)),
        "fewer nodes": lambda: variant(network(max(1, width // 16))),
    }
