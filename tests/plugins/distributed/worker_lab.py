"""A fit of several processes in which every part draws, and that saves often."""

import torch
from framework_plugins.accuracy import Accuracy
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint
from torch import nn

from framework import Recipe


def recipe(epochs: int = 4, lr: float = 0.05, every: int = 2) -> Recipe:
    """
    Args:
        epochs: passes over the data, of five steps each
        lr: the learning rate
        every: so many steps from one checkpoint to the next
    """
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(38, 3)
    y = x.argmax(1)
    return Recipe(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=lr),
        train=(x, y),
        val=(x[:7], y[:7]),
        epochs=epochs,
        batch_size=8,
        plugins=[Accuracy(), AverageWeights(0.9), BestCheckpoint(every_steps=every, every_seconds=1e9)],
    )
