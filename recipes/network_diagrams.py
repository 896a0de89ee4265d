"""Week 05-2: networks as diagrams, and how their layers are counted.

A layer is counted where there are parameters to learn, so activations and dropout are none; hidden layers are all
layers but the last; the nodes of a layer are the numbers that it gives. Nothing is trained.

Expect: the six examples of the notes have 2, 2, 1, 1, 3 and 3 layers, of which 1, 1, 0, 0, 2 and 2 are hidden.
Some books count the input as a layer and come to one more; the hidden layers are the same for all. In a diagram the
linear part and the activation behind it are one node, and the nodes that are always 1, for the biases, are left out.

`python -m framework diagram RECIPE` draws the network of any recipe that is a chain of Linear layers.

Next: --widths 4 8 8 3
Next: --widths 784 256 10
"""

from itertools import pairwise
from pathlib import Path

from framework_plugins.diagram import columns, draw
from torch import nn

from framework import UsageError, described, layers

EXAMPLES = (
    "Linear ReLU Linear",
    "Linear ReLU Linear Sigmoid",
    "Linear",
    "Linear Sigmoid",
    "Linear Sigmoid Linear Sigmoid Linear",
    "Linear ReLU Dropout Linear ReLU Dropout Linear Sigmoid",
)
KINDS = {"ReLU": nn.ReLU, "Sigmoid": nn.Sigmoid, "Dropout": nn.Dropout}


def chain(kinds: str, widths: tuple[int, ...]) -> nn.Sequential:
    """Modules by name; the first Linear goes from widths[0] to widths[1], and so on."""
    steps = pairwise(widths)
    return nn.Sequential(*(nn.Linear(*next(steps)) if kind == "Linear" else KINDS[kind]() for kind in kinds.split()))


def recipe(run_dir: Path, widths: tuple[int, ...] = (3, 5, 5, 2)) -> None:
    """
    Args:
        widths: nodes of the input and of each layer of a network of your own, such as --widths 784 256 10
    """
    if len(widths) < 2 or min(widths) < 1:
        raise UsageError(f"widths must be two numbers or more, each from 1 up, got {widths}")
    print("\nlayers  hidden  modules")
    for kinds in EXAMPLES:
        count = len(layers(chain(kinds, (2,) * 4)))
        print(f"{count:>6}  {count - 1:>6}  {kinds}")
    yours = " ReLU ".join(["Linear"] * (len(widths) - 1))
    networks = {
        "logistic": chain("Linear Sigmoid", (1, 1)),
        "bent_line": chain("Linear ReLU Linear Sigmoid", (1, 2, 1)),
        "mnist": chain("Linear ReLU Linear Sigmoid", (784, 32, 1)),
        "yours": chain(yours, widths),
    }
    print()
    for name, model in networks.items():
        draw(model, run_dir / f"{name}.svg")
        print(f"{name:<10}nodes {'-'.join(str(column.nodes) for column in columns(model))}: {described(model)}")
