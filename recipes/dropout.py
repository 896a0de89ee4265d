"""Lab 09-3: dropout, and why evaluation turns it off.

300 small digits, a fifth with a label drawn at random, and a network that can learn them by heart. Dropout sets a share
of the hidden numbers to 0, others in each step, and makes the rest larger, so that none can be relied on alone.

Expect: val_accuracy 0.77 without dropout and 0.86 with p = 0.5, of which 0.79 is left if dropout stays on.
p is the share that is dropped, not the share that is kept. In eval mode nothing is dropped: an answer is that of the
whole network. Whoever forgets `model.eval()` gets the answer of a random part of it, another one each time, and
`torch.no_grad()` does not help, since it only stops the bookkeeping of gradients. train_accuracy is measured while
numbers are dropped, so it can lie below val_accuracy.

Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from overfitting.

Next: --rates 0 0.2 0.5 0.8
Next: --noise 0
Next: --epochs 300
"""

from collections.abc import Callable
from functools import partial

import torch
from framework_plugins.datasets import digits
from torch import nn

from framework import Recipe, Trainer


class WithDropoutOn:
    """At the end, the accuracy of the validation digits in eval mode, and in train mode, as it must not be measured."""

    def on_fit_end(self, trainer: Trainer) -> None:
        x, y = trainer.loaders["val"].dataset.tensors
        right = trainer.predict(x).argmax(dim=1) == y
        trainer.model.train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            passes = [trainer.model(x.to(trainer.device)).argmax(dim=1).cpu() == y for _ in range(3)]
        trainer.model.eval()
        wrongly = ", ".join(f"{float(each.float().mean()):.4f}" for each in passes)
        print(f"eval mode val_accuracy {float(right.float().mean()):.4f}")
        print(f"train mode, three times over the same digits: {wrongly}")


def recipe(
    rates: tuple[float, ...] = (0.0, 0.5), epochs: int = 100, noise: float = 0.2, width: int = 256, lr: float = 1e-3
) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        rates: values of p to compare, the share of the hidden numbers that is dropped
        epochs: passes over the 300 training digits
        noise: share of the training digits that gets a random label
        width: nodes of each of the two hidden layers
        lr: learning rate of Adam
    """
    train, val, _ = digits(samples=300, noise=noise)

    def network(p: float) -> Recipe:
        model = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, width), nn.ReLU(), nn.Dropout(p),
            nn.Linear(width, 10),
        )  # fmt: skip
        return Recipe(
            model=model,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.Adam(model.parameters(), lr=lr),
            train=train,
            val=val,
            epochs=epochs,
            batch_size=20,
            plugins=["accuracy", WithDropoutOn()],
        )

    return {f"p = {p:.12g}": partial(network, p) for p in rates}
