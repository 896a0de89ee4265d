"""A fit of several processes in which every part draws, and that saves often."""

import torch
from framework_plugins.accuracy import Accuracy
from framework_plugins.average_weights import AverageWeights
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.distributed import Distributed
from torch import nn

from framework import Recipe, Trainer


class Halt:
    """Stops a fit in a step, as Ctrl-C would; one that is resumed is left alone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        if split == "train" and trainer.step == self.step:
            trainer.stop("Ctrl-C")


def recipe(epochs: int = 4, lr: float = 0.05, every: int = 2, halt: int = 0, shard: bool = False) -> Recipe:
    """
    Args:
        epochs: passes over the data, of five steps each
        lr: the learning rate
        every: so many steps from one checkpoint to the next
        halt: the step in which it stops
        shard: cut the weights over the processes
    """
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(38, 3)
    y = x.argmax(1)
    plugins = [Accuracy(), AverageWeights(0.9), BestCheckpoint(every_steps=every, every_seconds=1e9), Halt(halt)]
    return Recipe(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=lr),
        train=(x, y),
        val=(x[:7], y[:7]),
        epochs=epochs,
        batch_size=8,
        plugins=[*plugins, *([Distributed(shard=True)] if shard else [])],
    )
