"""The share of right answers, exact over batches of any size."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import DataError, Trainer, UsageError


class Accuracy:
    """Counts right answers: `{split}_accuracy`, or `{split}_top5_accuracy` for top_k=5.

    What an answer is follows from the target: class numbers (integers) are compared with the largest of the scores
    in dimension 1, and classes equal to the loss's ignore_index do not count; targets of 0 and 1 in the shape of the
    output are compared with probabilities of at least 0.5, or with logits of at least 0. Probabilities or logits
    follows from the loss, where it is one of torch's.

    The counts stay on the device until the end of a split, so a step never waits for them.

    Args:
        top_k: an answer is right if the class is among the k largest scores
        logits: for targets of 0 and 1: True for logits, False for probabilities; None looks at the loss

    Raises:
        UsageError: top_k below 1
        DataError: output and target do not go together
    """

    def __init__(self, top_k: int = 1, logits: bool | None = None, name: str = "accuracy") -> None:
        if top_k < 1:
            raise UsageError(f"top_k must be 1 or more, got {top_k!r}")
        self.name = name
        self.top_k = top_k
        self.logits = logits
        self.metric = "accuracy" if top_k == 1 else f"top{top_k}_accuracy"

    def metric_names(self, split: str) -> list[str]:
        return [f"{split}_{self.metric}"]

    def on_split_start(self, trainer: Trainer) -> None:
        self._correct = torch.zeros((), dtype=torch.int64, device=trainer.device)
        self._masked = torch.zeros((), dtype=torch.int64, device=trainer.device)
        self._count = 0

    def on_batch_end(self, trainer: Trainer, batch: Any, output: Any, samples: int) -> None:
        target = batch[1]
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            raise DataError(f"accuracy compares two tensors, got {type(output).__name__} and {type(target).__name__}")
        output, target = output[:samples], target[:samples]
        ignored = getattr(trainer.loss, "ignore_index", None)
        right = self._right(trainer, output, target)
        self._correct += right.sum()
        if ignored is not None and not target.is_floating_point():
            self._masked += (target == ignored).sum()
        self._count += target.numel() if right.shape == target.shape else right.numel()

    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        counts = torch.stack([self._correct, self._count - self._masked])
        correct, count = trainer.sum(counts).tolist()
        metrics[f"{split}_{self.metric}"] = correct / count if count else float("nan")

    def _right(self, trainer: Trainer, output: Tensor, target: Tensor) -> Tensor:
        """True where the answer is right, one for each target."""
        if output.dim() == target.dim() + 1 and not target.is_floating_point():
            self._check_classes(output)
            if self.top_k == 1:
                return output.argmax(dim=1) == target
            return (output.topk(self.top_k, dim=1).indices == target.unsqueeze(1)).any(dim=1)
        if output.shape == target.shape and _over_classes(trainer.loss) and output.dim() > 1:
            return self._right(trainer, output, target.argmax(dim=1))  # targets are class probabilities
        if output.shape == target.shape and self.top_k == 1:
            threshold = 0.0 if self._are_logits(trainer) else 0.5
            return (output >= threshold) == (target >= 0.5)
        raise DataError(
            f"accuracy cannot compare an output of shape {tuple(output.shape)} with a target of shape "
            f"{tuple(target.shape)} and dtype {target.dtype}"
        )

    def _check_classes(self, output: Tensor) -> None:
        if output.size(1) < self.top_k:
            raise DataError(f"top_k={self.top_k} needs as many classes; the model gives {output.size(1)}")

    def _are_logits(self, trainer: Trainer) -> bool:
        if self.logits is not None:
            return self.logits
        if isinstance(trainer.loss, nn.BCEWithLogitsLoss) or trainer.loss is F.binary_cross_entropy_with_logits:
            return True
        if isinstance(trainer.loss, nn.BCELoss) or trainer.loss is F.binary_cross_entropy:
            return False
        loss = getattr(trainer.loss, "__name__", type(trainer.loss).__name__)
        raise UsageError(f"accuracy cannot tell from the loss {loss} whether outputs are logits: Accuracy(logits=...)")


def _over_classes(loss: Any) -> bool:
    return isinstance(loss, nn.CrossEntropyLoss) or loss is F.cross_entropy
