"""Which class was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from framework import DataError, Trainer, picture

SPLITS = ("val", "test")
MOST = 30  # classes up to which the numbers are written into the picture


class ConfusionMatrix:
    """Counts the samples of each class by the class that the model gives them, and draws the counts.

    `confusion_val.svg` is that of the last pass over the validation set, `confusion_test.svg` that of the test set. A
    row is a class, a column an answer; what is right stands on the diagonal. The counts stay on the device until the
    end of a pass; `matrix[split]` holds them after it, of shape (classes, classes). Without a run directory nothing is
    drawn.

    Args:
        class_names: for the axes; by default the numbers of the classes

    Raises:
        DataError: the model gives no scores of classes, of shape (N, C), or the targets are no class numbers
    """

    def __init__(self, class_names: Sequence[str] | None = None, name: str = "confusion_matrix") -> None:
        self.name = name
        self.class_names = class_names
        self.matrix: dict[str, Tensor] = {}
        self._looked = False

    def on_fit_start(self) -> None:
        self._looked = False

    def on_split_start(self, split: str) -> None:
        self.matrix.pop(split, None)

    def on_batch_end(self, split: str, batch: Any, output: Any, samples: int) -> None:
        if split not in SPLITS and self._looked:  # the first batch of all shows what is wrong, not the last pass
            return
        target, self._looked = batch[1], True
        classes = isinstance(output, Tensor) and output.dim() == 2 and output.size(1) > 1
        if not (classes and target.shape == output.shape[:1] and target.dtype == torch.int64):
            raise DataError(f"{self.name} needs scores of shape (N, C) and class numbers, int64 of shape (N,)")
        if split in SPLITS:
            size = output.size(1)
            cells = target[:samples] * size + output[:samples].argmax(dim=1)
            counts = self.matrix.setdefault(split, torch.zeros(size, size, dtype=torch.int64, device=output.device))
            counts.view(-1).index_add_(0, cells, torch.ones_like(cells))

    def on_split_end(self, trainer: Trainer, split: str) -> None:
        if split in self.matrix:
            self.matrix[split] = trainer.sum(self.matrix[split]).cpu()
            if split == "test":  # evaluated after the fit
                self._draw(trainer, split)

    def on_fit_end(self, trainer: Trainer) -> None:
        if "val" in self.matrix:
            self._draw(trainer, "val")

    def _draw(self, trainer: Trainer, split: str) -> None:
        if trainer.run_dir is None:
            return
        matrix = self.matrix[split]
        names = self.class_names or [str(number) for number in range(len(matrix))]
        shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)  # colors show small classes as well as large
        with picture(trainer.run_dir / f"confusion_{split}.svg", 8, 6.5) as figure:
            axes = figure.subplots()
            image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
            figure.colorbar(image, label="share of the class (a row)")
            axes.set_xticks(range(len(matrix)), names, rotation=90 if max(map(len, names)) > 3 else 0)
            axes.set_yticks(range(len(matrix)), names)
            axes.set_xlabel("answer of the model")
            axes.set_ylabel("right class")
            right, count = int(matrix.trace()), int(matrix.sum())
            axes.set_title(f"{split}: {right} of {count} right ({right / max(count, 1):.2%})", fontsize=11)
            for row, column in (matrix.nonzero().tolist()) if len(matrix) <= MOST else ():
                color = "white" if shares[row, column] > 0.5 else "black"
                number = int(matrix[row, column])
                axes.text(column, row, str(number), ha="center", va="center", color=color, fontsize=8)
