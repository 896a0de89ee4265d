"""Week 05-2: batches of three from ten rows, in order and shuffled.

Ten rows, 0 to 9, the first five of class 1, and a DataLoader that takes three at a time. Each batch that reaches the
model is printed, so you see what the loader makes of `batch_size`, `shuffle` and `drop_last`.

Expect: in order [0, 1, 2] [3, 4, 5] [6, 7, 8] [9], which is 4 iterations an epoch, and 3 with drop_last.
An iteration is one batch and one step of the optimizer; an epoch is one pass over the rows. The last batch has a single
row, and its step weighs as much as those of three. `drop_last` leaves it out; the order is new in each epoch, so over
the epochs every row has its turn.

Next: --batch-size 5
Next: --batch-size 4 --epochs 3
Next: --seed 1
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from framework import Recipe, Result, Trainer, hookimpl, picture

SHOWN = 4  # epochs in the picture, at most


class ShowBatches:
    """Prints the rows of each batch, and draws in which batch a row came."""

    def on_fit_start(self) -> None:
        self.epochs: list[list[list[int]]] = []  # the rows of each batch of each epoch

    def on_epoch_start(self) -> None:
        self.epochs.append([])

    @hookimpl(split="train")
    def on_batch_end(self, trainer: Trainer, batch: tuple[Tensor, Tensor]) -> None:
        rows, classes = ([int(number) for number in part.flatten().tolist()] for part in batch)
        self.epochs[-1].append(rows)
        print(f"epoch {len(self.epochs) - 1}  iteration {len(self.epochs[-1])}  rows {rows}  classes {classes}")

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        print(f"epochs {result.epochs} x batches {len(self.epochs[0])} = iterations {result.steps}")
        if trainer.run_dir is None:
            return
        with picture(trainer.run_dir / "batches.svg", 8, 3.5) as figure:
            shown = self.epochs[:SHOWN]
            all_axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
            for epoch, (axes, batches) in enumerate(zip(all_axes, shown, strict=True)):
                for number, rows in enumerate(batches, start=1):
                    axes.plot([number] * len(rows), rows, "s", markersize=9, color=f"C{number - 1}")
                axes.set_title(f"epoch {epoch}", fontsize=10)
                axes.set_xticks(range(1, len(batches) + 1))
                axes.set_xlim(0.5, len(batches) + 0.5)
                axes.set_xlabel("iteration")
            all_axes[0].set_yticks(range(10))
            all_axes[0].set_ylabel("row")


def recipe(batch_size: int = 3, epochs: int = 2, lr: float = 0.1) -> dict[str, Callable[[], Recipe]]:
    """
    Args:
        batch_size: rows in a batch
        epochs: passes over the ten rows
        lr: learning rate of gradient descent
    """
    rows = torch.arange(10.0).reshape(-1, 1)
    classes = torch.tensor([1.0] * 5 + [0.0] * 5).reshape(-1, 1)

    def loader(shuffle: bool, drop_last: bool = False) -> Recipe:
        model = nn.Linear(1, 1)
        return Recipe(
            model=model,
            loss=nn.BCEWithLogitsLoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            train=TensorDataset(rows, classes),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            epochs=epochs,
            plugins=[ShowBatches()],
        )

    return {
        "in order": lambda: loader(shuffle=False),
        "shuffled": lambda: loader(shuffle=True),
        "drop_last": lambda: loader(shuffle=True, drop_last=True),
    }
