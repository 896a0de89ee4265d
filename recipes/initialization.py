"""Lab 09-2: first weights, normal against Xavier against He.

Nine layers with ReLU on small digits; the variants differ in how the first weights are drawn, and in nothing else.
What a layer gives is the input of the next, so a factor a layer becomes its ninth power at the end.

Expect: val_accuracy 0.96 with He, 0.90 with Xavier; chance with normal 0.01 and torch's own; nan with normal 1.
With a standard deviation of 1 each layer makes its numbers about five times larger, with 0.01 twenty times smaller: the
loss starts in the millions, or nothing of the image arrives and no gradient comes back. Xavier's variance of a weight,
2 / (inputs + outputs), keeps the size where the activation is a straight line; ReLU sets half of the numbers to 0, so
He doubles it, to 2 / inputs. torch's Linear draws with a third of Xavier's, which is too small for nine layers.
signal.svg shows, before the first step, how far the numbers behind each layer differ from image to image.

Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks; He et al. 2015,
Delving deep into rectifiers.

Next: --depth 2
Next: --activation tanh
Next: --lr 0.1
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from framework_plugins.datasets import digits
from torch import Tensor, nn

from framework import Recipe, Trainer, UsageError, picture

INITIALIZATIONS: dict[str, Callable[[Tensor], Any] | None] = {
    "normal 1": nn.init.normal_,
    "normal 0.01": partial(nn.init.normal_, std=0.01),
    "torch's own": None,
    "xavier": nn.init.xavier_normal_,
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
}


class Signal:
    """Tells how far the numbers behind each layer differ from image to image; the last variant draws that of all."""

    def __init__(self, label: str, found: dict[str, list[float]]) -> None:
        self.label, self.found = label, found

    def on_fit_start(self, trainer: Trainer) -> None:
        x = trainer.loaders["val"].dataset.tensors[0].to(trainer.device)
        sizes = []
        with torch.no_grad():
            for layer in trainer.model.children():
                x = layer(x)
                if isinstance(layer, nn.Linear):
                    sizes.append(float(x.std(dim=0).mean()))  # what all images share tells none from another
        self.found[self.label] = sizes
        print(f"signal    {sizes[0]:.3g} behind the first layer, {sizes[-1]:.3g} behind the last")
        if trainer.run_dir is not None and len(self.found) == len(INITIALIZATIONS):
            with picture(trainer.run_dir.parent / "signal.svg") as figure:
                axes = figure.subplots()
                for label, each in self.found.items():
                    axes.semilogy(range(1, len(each) + 1), each, "o-", label=label)
                axes.set_xlabel("layer")
                axes.set_ylabel("standard deviation over the images")
                figure.legend(loc="outside lower center", ncols=5, frameon=False)


def recipe(
    depth: int = 8, width: int = 64, activation: Literal["relu", "tanh", "sigmoid"] = "relu", lr: float = 0.05,
    epochs: int = 30,
) -> dict[str, Callable[[], Recipe]]:  # fmt: skip
    """
    Args:
        depth: hidden layers
        width: nodes of each
        activation: behind each hidden layer
        lr: learning rate of gradient descent
        epochs: passes over the 1000 training digits
    """
    if depth < 0 or width < 1:
        raise UsageError(f"depth must be from 0 up and width from 1 up, got {depth} and {width}")
    train, val, _ = digits()
    kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
    found: dict[str, list[float]] = {}

    def network(label: str) -> Recipe:
        layers: list[nn.Module] = []
        for inputs, nodes in pairwise([64, *[width] * depth, 10]):
            layers += [nn.Linear(inputs, nodes), kinds[activation]()]
        model = nn.Sequential(*layers[:-1])
        if draw := INITIALIZATIONS[label]:
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    draw(module.weight)
                    nn.init.zeros_(module.bias)
        return Recipe(
            model=model,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train=train,
            val=val,
            epochs=epochs,
            batch_size=50,
            on_nonfinite="continue",
            plugins=["accuracy", Signal(label, found)],
        )

    return {label: partial(network, label) for label in INITIALIZATIONS}
