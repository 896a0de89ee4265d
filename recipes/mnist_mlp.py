"""Lab 09-1: MNIST with a hidden layer.

The digits of Lab 07-2, and between pixels and scores a layer of 256 nodes with ReLU, trained with Adam.

Expect: a test_accuracy of 0.977 after 6 epochs, and 0.955 with the 32 nodes of the notes (--hidden 32).
The validation images choose the epoch, and the test images are measured once, with its weights. confusion_test.svg
tells which digit is taken for which; top_losses_test.svg shows those that the model is most wrong about, and some of
them a person would get wrong as well.

Next: --hidden 32
Next: --lr 0.1
Next: --optimizer sgd
"""

from typing import Literal

import torch
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.datasets import mnist
from torch import nn
from torch.utils.data import random_split

from framework import Recipe


def recipe(
    hidden: int = 256, lr: float = 1e-3, epochs: int = 6, batch_size: int = 100,
    optimizer: Literal["adam", "sgd"] = "adam", data_root: str = "",
) -> Recipe:  # fmt: skip
    """
    Args:
        hidden: nodes of the hidden layer
        lr: learning rate
        epochs: passes over the training images
        batch_size: images in a batch
        optimizer: adam, or sgd for gradient descent
        data_root: folder of data sets; by default what FRAMEWORK_DATA names, else data
    """
    known, test = mnist(data_root)
    train, val = random_split(known, [55_000, 5_000])
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return Recipe(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=kinds[optimizer](model.parameters(), lr=lr),
        train=train,
        val=val,
        test=test,
        epochs=epochs,
        batch_size=batch_size,
        plugins=["accuracy", "confusion_matrix", "top_losses", BestCheckpoint(restore_best=True)],
        class_names=[str(digit) for digit in range(10)],
    )
