"""Precision, recall and F1, exact over batches of any size."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import DataError, Trainer, UsageError, target_of, unpadded

AVERAGES = "macro", "micro", "weighted"
FIGURES = "precision", "recall", "f1"


class F1Score:
    """Counts right and wrong answers by class: `{split}_precision`, `{split}_recall` and `{split}_f1`.

    Precision is the share of right ones among the answers of a class, recall the share of a class that was found, F1
    their harmonic mean. Class numbers (integers) are compared with the largest of the scores in dimension 1, and
    targets equal to the loss's ignore_index do not count. Targets of 0 and 1 in the shape of the output are compared
    with probabilities of at least 0.5, or with logits of at least 0; then the figures are those of the ones, and with
    several columns each is a label of its own. Where cross entropy gets probabilities as targets, the most probable
    class is the right one.

    A share of nothing is 0. The macro mean leaves out a class that is neither a target nor an answer; it keeps such a
    label. The counts stay on the device until the end of a split, so a step never waits for them. A second instance
    needs a name, which its figures have too: `F1Score("micro", name="micro")` adds `{split}_micro_f1`.

    Args:
        average: over the classes: "macro", each alike; "weighted", by its targets; "micro", all counts at once
        class_names: one for each class or label; adds the F1 of each, `{split}_{class}_f1`
        logits: for targets of 0 and 1: True for logits, False for probabilities; None looks at the loss

    Raises:
        UsageError: another average; not as many class_names as classes; targets of 0 and 1 with a loss that is not
            torch's, and no `logits`
        DataError: output and target do not go together
    """

    added_up = ("counts",)  # over the samples that this process sees

    def __init__(
        self, average: str = "macro", class_names: Sequence[str] = (), logits: bool | None = None,
        name: str = "f1_score",
    ) -> None:  # fmt: skip
        if average not in AVERAGES:
            raise UsageError(f"average must be one of {', '.join(AVERAGES)}; got {average!r}")
        self.name = name
        self.average = average
        self.class_names = [str(name) for name in class_names]
        self.logits = logits
        prefix = "" if name == "f1_score" else f"{name}_"
        self._figures = [f"{prefix}{figure}" for figure in (*FIGURES, *(f"{one}_f1" for one in self.class_names))]
        self._counts: dict[str, Tensor] = {}  # (4, classes) by split: right answers, answers, targets, seen

    def metric_names(self, split: str) -> list[str]:
        return [f"{split}_{figure}" for figure in self._figures]

    def on_fit_start(self, trainer: Trainer) -> None:
        self._counts, self._device = {}, trainer.device

    def on_split_start(self, split: str) -> None:
        self._counts.pop(split, None)

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, output: Any) -> None:
        batch, output = unpadded(trainer, batch, output)
        target = target_of(batch, self.name)
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            kinds = f"{type(output).__name__} and {type(target).__name__}"
            raise DataError(f"{self.name} compares two tensors, got {kinds}")
        counts = self._counted(trainer, output, target)
        if split in self._counts:
            counts += self._counts[split]
        elif self.class_names and len(self.class_names) != counts.size(1):
            raise UsageError(
                f"{self.name} has {len(self.class_names)} class_names; the model has {counts.size(1)} classes"
            )
        self._counts[split] = counts

    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        counts = self._counts.pop(split, torch.zeros(4, max(len(self.class_names), 1), device=trainer.device))
        figures = self._averaged(trainer.sum(counts).cpu().double())
        metrics.update(zip(self.metric_names(split), figures, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._counts = {split: counts.to(self._device) for split, counts in state["counts"].items()}

    def _averaged(self, counts: Tensor) -> list[float]:
        """Precision, recall and F1 over the classes, and the F1 of each where they have names."""
        each, (_, _, targets, seen) = _shares(counts), counts
        if not seen.any():  # everything was ignored
            return [float("nan")] * len(self._figures)
        if self.average == "micro":
            means = _shares(counts.sum(1, keepdim=True))[:, 0]
        else:
            weights = targets if self.average == "weighted" else (seen > 0).double()
            means = each @ weights / weights.sum().clamp(min=1)
        return [*means.tolist(), *(each[2].tolist() if self.class_names else ())]

    def _counted(self, trainer: Trainer, output: Tensor, target: Tensor) -> Tensor:
        """Right answers, answers and targets of each class, and how often it was seen, of shape (4, classes)."""
        classes = output.dim() > 1 and output.shape[:1] + output.shape[2:] == target.shape
        if classes and not target.is_floating_point():
            return _of_classes(output, target, getattr(trainer.loss, "ignore_index", -100))
        if output.shape == target.shape and output.dim() > 1 and _over_classes(trainer.loss):
            return _of_classes(output, target.argmax(dim=1), -100)
        if output.shape == target.shape and output.dim():
            return _of_labels(output >= (0.0 if self._are_logits(trainer) else 0.5), target >= 0.5)
        raise DataError(
            f"{self.name} cannot compare an output of shape {tuple(output.shape)} with a target of shape "
            f"{tuple(target.shape)} and dtype {str(target.dtype).removeprefix('torch.')}: for scores of shape (N, C) "
            "it takes class numbers, integers of shape (N,), or else 0 and 1 in the shape of the output"
        )

    def _are_logits(self, trainer: Trainer) -> bool:
        if self.logits is not None:
            return self.logits
        if isinstance(trainer.loss, nn.BCEWithLogitsLoss) or trainer.loss is F.binary_cross_entropy_with_logits:
            return True
        if isinstance(trainer.loss, nn.BCELoss) or trainer.loss is F.binary_cross_entropy:
            return False
        loss = getattr(trainer.loss, "__name__", type(trainer.loss).__name__)
        raise UsageError(
            f"{self.name} cannot tell from the loss {loss} whether the outputs are logits or probabilities: "
            "say F1Score(logits=True) or F1Score(logits=False)"
        )


def _of_classes(scores: Tensor, target: Tensor, ignored: int) -> Tensor:
    classes, answers = scores.size(1), scores.argmax(dim=1)
    counted = (target >= 0) & (target < classes)
    if 0 <= ignored < classes:
        counted &= target != ignored
    target = (target * counted).long()
    cells = torch.cat([part.flatten() for part in (target, answers + classes, target + 2 * classes)])
    what = torch.cat([part.flatten() for part in (counted & (answers == target), counted, counted)]).long()
    counts = torch.zeros(3 * classes, dtype=torch.int64, device=scores.device)
    counts = counts.index_add_(0, cells, what).view(3, classes)  # bincount would wait for the device
    return torch.cat([counts, counts[1:].sum(dim=0, keepdim=True)])


def _of_labels(answers: Tensor, target: Tensor) -> Tensor:
    """Each place in dimension 1 is a label, seen in every sample; what has one dimension is one label."""
    parts = torch.stack([answers & target, answers, target, torch.ones_like(target)])
    labels, places = parts.size(2) if parts.dim() > 2 else 1, math.prod(target.shape[2:])  # there may be no row
    return parts.reshape(4, len(target), labels, places).sum(dim=(1, 3))


def _shares(counts: Tensor) -> Tensor:
    """Precision, recall and F1 of each class; a share of nothing is 0."""
    right, answers, targets, _ = counts
    return torch.stack([right, right, 2 * right]) / torch.stack([answers, targets, answers + targets]).clamp(min=1)


def _over_classes(loss: Any) -> bool:
    return isinstance(loss, nn.CrossEntropyLoss) or loss is F.cross_entropy
