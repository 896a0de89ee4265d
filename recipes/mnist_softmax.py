"""Lab 07-2: MNIST with softmax regression.

60,000 handwritten digits of 28 x 28 pixels: 55,000 to learn from, 5,000 to choose the best epoch by, and 10,000 more to
be measured once at the end. One linear layer gives each digit a score.

Expect: a test_accuracy of 0.922 after 10 epochs.
All three parts go through the same ToTensor, which makes pixels of 0 to 255 numbers from 0 to 1. The notes feed their
test images undivided, 255 times larger than those that were learned. The figures of validation and test are means over
all of their images, also where the last batch is smaller, in eval mode and without gradients.
weights.svg shows the ten rows of the weight matrix: red pixels speak for a digit, blue ones against it.

Next: --lr 1
Next: --epochs 30
Next: --batch-size 1000
"""

import torch
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.datasets import mnist
from torch import nn
from torch.utils.data import random_split

from framework import Recipe, Trainer, picture


def recipe(lr: float = 0.1, epochs: int = 10, batch_size: int = 100, data_root: str = "") -> Recipe:
    """
    Args:
        lr: learning rate of gradient descent
        epochs: passes over the training images
        batch_size: images in a batch
        data_root: folder of data sets; by default what FRAMEWORK_DATA names, else data
    """
    known, test = mnist(data_root)
    train, val = random_split(known, [55_000, 5_000])
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    return Recipe(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=train,
        val=val,
        test=test,
        epochs=epochs,
        batch_size=batch_size,
        drop_last=True,
        plugins=["accuracy", "confusion_matrix", "top_losses", BestCheckpoint(restore_best=True)],
        class_names=[str(digit) for digit in range(10)],
    )


def on_fit_end(trainer: Trainer) -> None:
    if trainer.run_dir is None:
        return
    weight = next(trainer.model.parameters()).detach().cpu().reshape(10, 28, 28)
    limit = float(weight.abs().max())
    with picture(trainer.run_dir / "weights.svg", 8, 3.6) as figure:
        for digit, axes in enumerate(figure.subplots(2, 5).flat):
            image = axes.imshow(weight[digit].numpy(), cmap="coolwarm", vmin=-limit, vmax=limit)
            axes.set_title(f"for {digit}", fontsize=10)
            axes.axis("off")
        figure.colorbar(image, ax=figure.axes, label="weight of a pixel")
