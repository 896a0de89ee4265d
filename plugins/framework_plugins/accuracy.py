"""The share of right answers, exact over batches of any size."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import DataError, Trainer, UsageError, target_of, unpadded


class Accuracy:
    """Counts right answers: `{split}_accuracy`, or `{split}_top5_accuracy` for top_k=5.

    What an answer is follows from the target: class numbers (integers) are compared with the largest of the scores
    in dimension 1, and negative ones and the loss's ignore_index do not count; targets of 0 and 1 in the shape of the
    output are compared with probabilities of at least 0.5, or with logits of at least 0. Probabilities or logits
    follows from the loss, where it is one of torch's. Cross entropy also takes class probabilities as targets: the
    most probable class is the right one.

    The counts stay on the device until the end of a split, so a step never waits for them.

    Args:
        top_k: an answer is right if the class is among the k largest scores
        logits: for targets of 0 and 1: True for logits, False for probabilities; None looks at the loss

    Raises:
        UsageError: top_k below 1; or targets of 0 and 1 with a loss that is not torch's, and no `logits`
        DataError: output and target do not go together
    """

    added_up = ("counts",)  # over the samples that this process sees

    def __init__(self, top_k: int = 1, logits: bool | None = None, name: str = "accuracy") -> None:
        if not isinstance(top_k, int) or top_k < 1:
            raise UsageError(f"top_k must be a whole number from 1 up, got {top_k!r}")
        self.name = name
        self.top_k = top_k
        self.logits = logits
        self.metric = "accuracy" if top_k == 1 else f"top{top_k}_accuracy"
        self._counts: dict[str, list[Any]] = {}  # right answers and all answers of a split: ints, then 0-dim tensors

    def metric_names(self, split: str) -> list[str]:
        return [f"{split}_{self.metric}"]

    def on_split_start(self, split: str) -> None:
        self._counts[split] = [0, 0]

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, output: Any) -> None:
        batch, output = unpadded(trainer, batch, output)
        target = target_of(batch, self.name)
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            raise DataError(f"accuracy compares two tensors, got {type(output).__name__} and {type(target).__name__}")
        right, count = self._judged(trainer, output, target)
        counts = self._counts.setdefault(split, [0, 0])  # is not there where a fit was resumed that had no accuracy yet
        counts[0] = counts[0] + torch.count_nonzero(right)  # not in place: a count that was loaded is on the CPU
        counts[1] = counts[1] + count

    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        counts = [torch.as_tensor(count, device=trainer.device) for count in self._counts.pop(split, [0, 0])]
        right, count = trainer.sum(torch.stack(counts)).tolist()
        metrics[f"{split}_{self.metric}"] = right / count if count else float("nan")

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._counts = state["counts"]

    def _judged(self, trainer: Trainer, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor | int]:
        """True where an answer is right, and how many answers there are."""
        classes = output.dim() > 1 and output.shape[:1] + output.shape[2:] == target.shape
        if classes and not target.is_floating_point():
            return self._in_classes(output, target, getattr(trainer.loss, "ignore_index", -100))
        if output.shape == target.shape and output.dim() > 1 and _over_classes(trainer.loss):
            return self._in_classes(output, target.argmax(dim=1), -100)
        if output.shape == target.shape and self.top_k == 1:
            threshold = 0.0 if self._are_logits(trainer) else 0.5
            return (output >= threshold) == (target >= 0.5), target.numel()
        raise DataError(
            f"{self.name} cannot compare an output of shape {tuple(output.shape)} with a target of shape "
            f"{tuple(target.shape)} and dtype {str(target.dtype).removeprefix('torch.')}: for scores of shape (N, C) "
            f"it takes class numbers, integers of shape (N,)"
            + (", or else 0 and 1 in the shape of the output" if self.top_k == 1 else "")
        )

    def _in_classes(self, scores: Tensor, classes: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
        if self.top_k == 1:
            right = scores.argmax(dim=1) == classes
        elif self.top_k <= scores.size(1):
            right = (scores.topk(self.top_k, dim=1).indices == classes.unsqueeze(1)).any(dim=1)
        else:
            raise DataError(f"top_k={self.top_k} needs as many classes; the model gives {scores.size(1)}")
        counted = classes >= 0
        if ignored >= 0:
            counted &= classes != ignored
            right &= counted
        return right, torch.count_nonzero(counted)

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
            "say Accuracy(logits=True) or Accuracy(logits=False)"
        )


def _over_classes(loss: Any) -> bool:
    return isinstance(loss, nn.CrossEntropyLoss) or loss is F.cross_entropy
