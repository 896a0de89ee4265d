"""The images that the model is most wrong about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from framework import DataError, Trainer, UsageError, picture, plain, target_of, unpadded

COLUMNS = 6


class TopLosses:
    """Draws the images with the largest losses, each with its class and with what the model took it for.

    `top_losses_val.svg` shows those of the last pass over the validation set (without one `top_losses_train.svg`, of
    the last epoch), `top_losses_test.svg` those of what is evaluated outside of a fit. Samples that the loss ignores
    have none: targets that are its ignore_index, or the number of no class. Only the few largest are kept, on the
    device, until the end of a pass; `worst[split]` holds losses, images, right classes, answers and their probabilities
    after it. Without a run directory nothing is drawn. Of several processes each keeps a few, and the largest of
    all are drawn; where a fit goes on inside of an epoch with another number of them, those of that epoch without a
    validation set are the largest of a part.

    Args:
        count: how many images
        class_names: for the titles; by default the numbers of the classes

    Raises:
        UsageError: count below 1, or not as many class_names as classes
        DataError: x is no batch of images, of shape (N, H, W), (N, C, H, W) with 1 or 3 channels, or (N, S * S); or
            the model gives no scores of classes, of shape (N, C)
    """

    of_samples = ("found",)  # that this process sees

    def __init__(self, count: int = 12, class_names: Sequence[str] | None = None, name: str = "top_losses") -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(f"count must be a whole number from 1 up, got {count!r}")
        self.name = name
        self.count = count
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.worst: dict[str, tuple[Tensor, ...]] = {}
        self._found: dict[str, tuple[Tensor, ...]] = {}  # of the passes that are not at their end, by split
        self._looked = self._fits = False
        self._splits: tuple[str, ...] = ("test",)  # of which images are kept

    def on_fit_start(self, trainer: Trainer) -> None:
        self._fits, self._looked, self._found, self._device = True, False, {}, trainer.device
        self._splits = "val" if "val" in trainer.loaders else "train", "test"
        self.worst.pop(self._splits[0], None)

    def on_split_start(self, split: str) -> None:
        self._found.pop(split, None)

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, output: Any) -> None:
        batch, output = unpadded(trainer, batch, output)
        target, x = target_of(batch, self.name), batch[0]
        if not self._looked:  # the first batch of all shows what is wrong, not the last pass
            self._look(output, x, target)
        if split not in self._splits:
            return
        output = output.float()
        ignored = getattr(trainer.loss, "ignore_index", -100)
        counted = (target >= 0) & (target < output.size(1)) & (target != ignored)
        losses = F.cross_entropy(output, target * counted, reduction="none").where(counted, -math.inf)
        sure, answer = output.softmax(dim=1).max(dim=1)
        found: tuple[Tensor, ...] = losses, x, target, answer, sure
        if split in self._found:
            found = tuple(torch.cat(pair) for pair in zip(self._found[split], found, strict=True))
        largest = found[0].topk(min(self.count, len(found[0]))).indices
        self._found[split] = tuple(part[largest] for part in found)

    def _look(self, output: Any, x: Any, target: Any) -> None:
        scores, labels = (tuple(getattr(part, "shape", ())) for part in (output, target))
        if len(scores) != 2 or scores[1] < 2 or labels != scores[:1] or target.dtype != torch.int64:
            raise DataError(
                f"{self.name} needs scores of shape (N, C) and class numbers, int64 of shape (N,); the model gives "
                f"{scores or type(output).__name__}, and the target is {getattr(target, 'dtype', '')} {labels}"
            )
        if self.class_names is not None and len(self.class_names) != scores[1]:
            raise UsageError(f"{self.name} has {len(self.class_names)} class_names; the model has {scores[1]} classes")
        _as_images(x[:1] if isinstance(x, Tensor) else x, self.name)
        self._looked = True

    def on_split_end(self, trainer: Trainer, split: str) -> None:
        if found := self._found.pop(split, None):
            everywhere = trainer.processes.gather(tuple(part.cpu() for part in found))
            found = tuple(torch.cat(parts) for parts in zip(*everywhere, strict=True))
            largest = found[0].argsort(descending=True, stable=True)[: self.count]
            counted = largest[found[0][largest] != -math.inf]
            self.worst[split] = tuple(part[counted] for part in found)
            if split == "test" and not self._fits:  # inside of a fit it may be any data, and many times
                self._draw(trainer, split)

    def state_dict(self) -> dict[str, Any]:
        return {"found": self._found.get(self._splits[0]), "worst": self.worst.get(self._splits[0])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["found"] is not None:
            self._found[self._splits[0]] = tuple(part.to(self._device) for part in state["found"])
        if state["worst"] is not None:
            self.worst[self._splits[0]] = state["worst"]

    def on_fit_end(self, trainer: Trainer) -> None:
        self._fits = False  # a plugin behind this one may evaluate the test set now
        if self._splits[0] in self.worst:
            self._draw(trainer, self._splits[0])

    def on_teardown(self) -> None:
        self._fits = False

    def _draw(self, trainer: Trainer, split: str) -> None:
        losses, x, right, answer, sure = self.worst[split]
        if trainer.run_dir is None or not len(losses):
            return
        rows = math.ceil(len(losses) / COLUMNS)
        with picture(trainer.run_dir / f"top_losses_{split}.svg", 8, 0.5 + 1.9 * rows) as figure:
            for number, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).flat):
                axes.axis("off")
                if number < len(losses):
                    said = f"{self._name(right[number])}, taken for\n{self._name(answer[number])} ({sure[number]:.0%})"
                    axes.imshow(_as_images(x, self.name)[number].float().numpy(), cmap="gray_r")
                    axes.set_title(said, fontsize=9)
            figure.suptitle(f"{split}: the {len(losses)} largest losses", fontsize=11)

    def _name(self, number: Tensor) -> str:
        return plain(self.class_names[int(number)]) if self.class_names else str(int(number))


def _as_images(x: Any, plugin: str) -> Tensor:
    """(N, H, W) or (N, H, W, 3), as matplotlib draws them."""
    if isinstance(x, Tensor) and x.dim() == 2 and math.isqrt(x.size(1)) ** 2 == x.size(1):
        return x.reshape(len(x), math.isqrt(x.size(1)), math.isqrt(x.size(1)))
    if isinstance(x, Tensor) and x.dim() == 3:
        return x
    if isinstance(x, Tensor) and x.dim() == 4 and x.size(1) in (1, 3):
        low, high = x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)
        scaled = (x - low) / (high - low).clamp(min=1e-12)  # colors are from 0 to 1
        return scaled[:, 0] if x.size(1) == 1 else scaled.permute(0, 2, 3, 1)
    shape = tuple(getattr(x, "shape", ())) or type(x).__name__
    raise DataError(f"{plugin} draws images, of shape (N, H, W), (N, 1 or 3, H, W) or (N, S * S); x is {shape}")
