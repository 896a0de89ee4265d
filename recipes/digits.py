"""Lab 07-2: handwritten digits without a download.

1,797 digits of 8 x 8 pixels come with scikit-learn. A thousand are learned, 400 choose the best epoch, and the last 397
are looked at once, at the end. The model is softmax regression, or a network with --hidden.

Expect: a test_accuracy of 0.950, and of 0.962 with --hidden 64.
Each part has its own job: the training images set the weights, the validation images choose the epoch, and only the
test images tell what to expect of new ones. The weights that are tested are those of the best epoch. With a tenth of
the images (--samples 100) it is still 0.872.

Next: --hidden 64
Next: --samples 100
Next: --lr 0.01
"""

import torch
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.datasets import digits
from torch import nn

from framework import Recipe


def recipe(lr: float = 0.5, epochs: int = 30, batch_size: int = 50, hidden: int = 0, samples: int = 1000) -> Recipe:
    """
    Args:
        lr: learning rate of gradient descent
        epochs: passes over the training images
        batch_size: images in a batch
        hidden: nodes of a hidden layer; 0 for none
        samples: training images, at most 1000
    """
    train, val, test = digits(samples)
    layers = [nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10)] if hidden else [nn.Linear(64, 10)]
    model = nn.Sequential(*layers)
    return Recipe(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        train=train,
        val=val,
        test=test,
        epochs=epochs,
        batch_size=batch_size,
        plugins=["accuracy", "confusion_matrix", "top_losses", BestCheckpoint(restore_best=True)],
        class_names=[str(digit) for digit in range(10)],
    )
