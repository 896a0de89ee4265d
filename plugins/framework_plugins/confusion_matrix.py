"""Which class was taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from framework import DataError, Trainer, UsageError, picture, plain, target_of, unpadded

MOST = 30  # classes up to which the numbers are written into the picture


class ConfusionMatrix:
    """Counts the samples of each class by the class that the model gives them, and draws the counts.

    `confusion_val.svg` is that of the last pass over the validation set (without one `confusion_train.svg`, of the last
    epoch), `confusion_test.svg` that of what is evaluated outside of a fit. A row is a class, a column an answer; what
    is right stands on the diagonal. Samples that the loss ignores do not count: targets that are its ignore_index, or
    the number of no class. The counts stay on the device until the end of a pass; `matrix[split]` holds them after it,
    of shape (classes, classes). Without a run directory nothing is drawn.

    Args:
        class_names: for the axes; by default the numbers of the classes

    Raises:
        DataError: the model gives no scores of classes, of shape (N, C), or the targets are no class numbers
        UsageError: there are not as many class_names as classes
    """

    added_up = ("counts",)  # over the samples that this process sees

    def __init__(self, class_names: Sequence[str] | None = None, name: str = "confusion_matrix") -> None:
        self.name = name
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.matrix: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}  # of the passes that are not at their end, by split
        self._looked = self._fits = False
        self._splits: tuple[str, ...] = ("test",)  # of which answers are counted

    def on_fit_start(self, trainer: Trainer) -> None:
        self._fits, self._looked, self._counts, self._device = True, False, {}, trainer.device
        self._splits = "val" if "val" in trainer.loaders else "train", "test"
        self.matrix.pop(self._splits[0], None)

    def on_split_start(self, split: str) -> None:
        self._counts.pop(split, None)

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, output: Any) -> None:
        batch, output = unpadded(trainer, batch, output)
        target = target_of(batch, self.name)
        if not self._looked:  # the first batch of all shows what is wrong, not the last pass
            self._look(output, target)
        if split not in self._splits:
            return
        classes = output.size(1)
        if split not in self._counts:
            self._counts[split] = torch.zeros(classes, classes, dtype=torch.int64, device=output.device)
        ignored = getattr(trainer.loss, "ignore_index", -100)
        counted = ((target >= 0) & (target < classes) & (target != ignored)).long()
        cells = target * counted * classes + output.argmax(dim=1)
        self._counts[split].view(-1).index_add_(0, cells, counted)

    def _look(self, output: Any, target: Any) -> None:
        scores, labels = (tuple(getattr(part, "shape", ())) for part in (output, target))
        if len(scores) != 2 or scores[1] < 2 or labels != scores[:1] or target.dtype != torch.int64:
            raise DataError(
                f"{self.name} needs scores of shape (N, C) and class numbers, int64 of shape (N,); the model gives "
                f"{scores or type(output).__name__}, and the target is {getattr(target, 'dtype', '')} {labels}"
            )
        if self.class_names is not None and len(self.class_names) != scores[1]:
            raise UsageError(f"{self.name} has {len(self.class_names)} class_names; the model has {scores[1]} classes")
        self._looked = True

    def on_split_end(self, trainer: Trainer, split: str) -> None:
        if split in self._counts:
            self.matrix[split] = trainer.sum(self._counts.pop(split)).cpu()
            if split == "test" and not self._fits:  # inside of a fit it may be any data, and many times
                self._draw(trainer, split)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts.get(self._splits[0]), "matrix": self.matrix.get(self._splits[0])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["counts"] is not None:
            self._counts[self._splits[0]] = state["counts"].to(self._device)
        if state["matrix"] is not None:
            self.matrix[self._splits[0]] = state["matrix"]

    def on_fit_end(self, trainer: Trainer) -> None:
        self._fits = False  # a plugin behind this one may evaluate the test set now
        if self._splits[0] in self.matrix:
            self._draw(trainer, self._splits[0])

    def on_teardown(self) -> None:
        self._fits = False

    def _draw(self, trainer: Trainer, split: str) -> None:
        if trainer.run_dir is None:
            return
        matrix = self.matrix[split]
        names = [plain(name) for name in self.class_names or map(str, range(len(matrix)))]
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
            for row, column in matrix.nonzero().tolist() if len(matrix) <= MOST else ():
                color = "white" if shares[row, column] > 0.5 else "black"
                number = int(matrix[row, column])
                axes.text(column, row, str(number), ha="center", va="center", color=color, fontsize=8)
