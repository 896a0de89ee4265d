"""Which class a model of two features gives to each point of the plane."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework import DataError, Trainer, picture, unpadded

POINTS = 2000  # at most so many of the data are drawn
GRID = 100  # points of the plane in each direction


class DecisionBoundary:
    """Draws `decision_boundary.svg` at the end of a fit: the classes of the plane, and the data.

    For a model of two features and targets that are classes. One output is the probability of class 1 (of a loss that
    takes logits, its sigmoid), and the boundary is where it is 0.5; several are the scores of classes. Samples of the
    loss's ignore_index are left out. Without a run directory nothing is drawn.

    Raises:
        DataError: x is no batch of two features, of shape (N, 2), or y are no classes
    """

    def __init__(self, name: str = "decision_boundary") -> None:
        self.name = name
        self._seen: list[tuple[Tensor, Tensor]] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        self._seen, self._device = [], trainer.device

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any) -> None:
        seen = trainer.processes.size * sum(len(x) for x, _ in self._seen)
        if split != "train" or trainer.epoch > 0 or seen >= POINTS or not trainer.samples:
            return
        (x, y), _ = unpadded(trainer, batch, None)
        if not isinstance(x, Tensor) or x.dim() != 2 or x.size(1) != 2:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"{self.name} draws a plane of two features, x of shape (N, 2); a batch has {shape}")
        classes, ignored = y.reshape(len(x), -1).float(), getattr(trainer.loss, "ignore_index", -100)
        wrong = classes[(classes != classes.round()) | (classes < 0) & (classes != ignored)]
        if len(wrong):
            raise DataError(f"{self.name} draws classes; the target y has {float(wrong[0]):g}, which is no class")
        if classes.size(1) != 1:
            raise DataError(f"{self.name} draws classes, y of shape (N,) or (N, 1); a batch has {tuple(y.shape)}")
        known = classes[:, 0] != ignored
        self._seen.append((x[known], classes[known, 0].int()))  # copies: the loader may use its memory again

    def on_fit_end(self, trainer: Trainer) -> None:
        if trainer.run_dir is None:
            return
        everywhere = trainer.processes.gather([(x.cpu(), y.cpu()) for x, y in self._seen])
        seen = [pair for pairs in everywhere for pair in pairs]
        if not any(len(x) for x, _ in seen):
            return
        points, classes = (torch.cat(parts) for parts in zip(*seen, strict=True))
        low, high = points.min(dim=0).values, points.max(dim=0).values
        margin = 0.25 * (high - low).clamp(min=1e-6)
        across, up = (torch.linspace(a, b, GRID) for a, b in zip(low - margin, high + margin, strict=True))
        plane = torch.cartesian_prod(across, up).to(points.dtype)
        values = _values(trainer, trainer.predict(plane)).reshape(GRID, GRID).T
        with picture(trainer.run_dir / "decision_boundary.svg", 8, 6) as figure:
            axes = figure.subplots()
            x, y = across.numpy(), up.numpy()
            if values.is_floating_point():
                levels = torch.linspace(0, 1, 11).tolist()
                shade = axes.contourf(x, y, values.numpy(), levels, cmap="coolwarm", alpha=0.6)
                figure.colorbar(shade, label="probability of class 1")
                if values.min() < 0.49 and values.max() > 0.51:  # a flat 0.5 has no boundary but rounding errors
                    axes.contour(x, y, values.numpy(), [0.5], colors="black")
            else:
                axes.pcolormesh(x, y, values.numpy(), cmap="tab10", vmin=0, vmax=9, alpha=0.3, rasterized=True)
            kinds = classes.unique().tolist()
            for kind in kinds:
                color = ("C0" if kind == 0 else "C3") if len(kinds) <= 2 else f"C{kind}"
                chosen = points[classes == kind]
                axes.plot(chosen[:, 0], chosen[:, 1], "osD^v"[kind % 5], color=color, markeredgecolor="black",
                          label=f"class {kind}")  # fmt: skip
            axes.set_xlabel("x[0]")
            axes.set_ylabel("x[1]")
            figure.legend(loc="outside lower center", ncols=6, frameon=False)

    def on_teardown(self) -> None:
        self._seen = []

    def state_dict(self) -> dict[str, Any]:
        if len(self._seen) > 1:  # as one, so that a checkpoint does not hold each batch by itself
            x, y = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
            self._seen = [(x, y)]
        return {"seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen = [(x.to(self._device), y.to(self._device)) for x, y in state["seen"]]


def _values(trainer: Trainer, output: Tensor) -> Tensor:
    """Of each point the probability of class 1, or the number of its class."""
    if output.dim() == 2 and output.size(1) > 1:
        return output.argmax(dim=1)
    logits = isinstance(trainer.loss, nn.BCEWithLogitsLoss) or trainer.loss is F.binary_cross_entropy_with_logits
    return (output.sigmoid() if logits else output).clamp(0, 1).float()
