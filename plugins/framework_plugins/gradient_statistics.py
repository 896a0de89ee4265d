"""How large the gradient of each layer is, over the epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from framework import NonFiniteError, Trainer, UsageError, hookimpl, layers, picture, plain

VANISHING = 1e-7  # of the largest layer's: below it the layer stands still beside the others
EXPLODING = 1e3  # times the norm of the first epoch
NAMED = 10  # lines of the picture that have a name beside it
TOLD = 5  # layers that are named in a sentence


class GradientStatistics:
    """Measures the norm of the gradient of each layer, draws it over the epochs, and tells what is wrong with it.

    A norm is that of a step when its backward pass is over and the optimizer has not stepped, the mean over the steps
    of an epoch. That of all layers together is the figure `grad_norm`; `norms` has for each layer a list with a value
    an epoch; `gradients.svg` in the run directory shows them. At the end the layers are named whose gradient was zero
    or vanishing in the last epoch; and it is told if the gradient has grown a thousandfold since the first epoch, was
    not finite in some steps, or where it was largest when the loss became inf or nan.

    Gradients are seen as they are when it is this plugin's turn: those of mixed precision are unscaled by then, and
    those of a plugin that clips are clipped if that is listed before. `GradientStatistics(name="clipped")` is a second
    one; its figure is `clipped`, and its picture `clipped.svg`.

    Where weights are sharded, a step that is looked at costs a small sum over the processes for each parameter.

    Args:
        every: look only at each so manyth step

    Raises:
        UsageError: every is below 1
    """

    def __init__(self, every: int = 1, name: str = "gradient_statistics") -> None:
        if type(every) is not int or every < 1:
            raise UsageError(f"every must be a whole number of steps from 1 up, got {every!r}")
        self.name, self.every = name, every
        usual = name == "gradient_statistics"
        self.figure, self.file = ("grad_norm", "gradients.svg") if usual else (name, f"{name}.svg")
        self.norms: dict[str, list[float]] = {}
        self._whole: list[float] = []  # the norm of all layers in each epoch
        self._looked = self._not_finite = 0  # steps of this epoch, and of all epochs

    def metric_names(self, split: str) -> list[str]:
        return [self.figure] if split == "train" else []

    def on_fit_start(self, trainer: Trainer) -> None:
        owned = dict(_owned(trainer.model))
        self.norms, self._whole = {name: [] for name in owned}, []
        self._looked = self._not_finite = 0
        self._parameters = [parameter for parameters in owned.values() for parameter in parameters]
        owners = [layer for layer, parameters in enumerate(owned.values()) for _ in parameters]
        self._owners = torch.tensor(owners, device=trainer.device)
        self._zero = torch.zeros((), device=trainer.device)
        self._sums = torch.zeros(len(owned) + 2, device=trainer.device)  # the layers, all of them, and how many steps

    def on_gradients(self, trainer: Trainer) -> None:
        """Adds up on the device, so that the loop waits for nothing. What is not finite is left out, and counted."""
        if trainer.step % self.every:
            return
        found = torch.stack([self._zero if p.grad is None else _norm(p.grad) for p in self._parameters])
        squares = found.to(self._sums.dtype).square()
        norms = torch.zeros_like(self._sums).index_add_(0, self._owners, squares)
        norms[-2] = squares.sum()
        norms.sqrt_()[-1] = 1.0
        self._sums += torch.where(norms[-2].isfinite(), norms, self._zero)
        self._looked += 1

    @hookimpl(split="train")
    def on_split_end(self, metrics: MutableMapping[str, float]) -> None:
        self._close()
        metrics[self.figure] = self._whole[-1]

    def _close(self) -> None:
        """The means of an epoch; nan where no step was looked at, or none was finite."""
        *sums, whole, count = self._sums.tolist()
        for norms, total in zip([*self.norms.values(), self._whole], [*sums, whole], strict=True):
            norms.append(total / count if count else math.nan)
        self._not_finite += self._looked - int(count)
        self._sums.zero_()
        self._looked = 0

    def state_dict(self) -> dict[str, Any]:
        steps = {"looked": self._looked, "not_finite": self._not_finite}
        return {**steps, "sums": self._sums, "norms": self.norms, "whole": self._whole}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._looked, self._not_finite = state["looked"], state["not_finite"]
        self._sums.copy_(state["sums"])
        self.norms, self._whole = state["norms"], state["whole"]

    def on_fit_end(self, trainer: Trainer) -> None:
        for line in self._findings(trainer.model):
            tqdm.write(f"gradients {line}")
        if trainer.run_dir is not None and self._whole:
            with picture(trainer.run_dir / self.file, 8, 4) as figure:
                self._draw(figure)

    def on_exception(self, trainer: Trainer, exception: BaseException) -> None:
        if isinstance(exception, NonFiniteError) and self._looked:
            self._close()
            last = {name: norms[-1] for name, norms in self.norms.items()}
            largest = max(last, key=lambda name: last[name])
            tqdm.write(f"gradients norm {self._whole[-1]:.3g} in the last epoch, most of it in {largest}")

    def _findings(self, model: nn.Module) -> Iterator[str]:
        learning = [name for name, members in _owned(model) if any(member.requires_grad for member in members)]
        last = {name: self.norms[name][-1] for name in learning if self.norms.get(name)}
        largest = max(last, key=lambda name: last[name], default="")
        if zero := [name for name, norm in last.items() if norm == 0]:
            yield f"zero in {_listed(zero)}: nothing is learned there"
        if small := [name for name, norm in last.items() if 0 < norm < VANISHING * last[largest]]:
            yield f"vanishing in {_listed(small)}: below {VANISHING:g} of that in {largest}"
        if self._whole and self._whole[-1] > EXPLODING * self._whole[0]:
            yield f"exploding: norm {self._whole[0]:.3g} in the first epoch, {self._whole[-1]:.3g} in the last one"
        if self._not_finite:
            yield f"inf or nan in {self._not_finite} step{'s' * (self._not_finite != 1)}"

    def _draw(self, figure: Any) -> None:
        import matplotlib

        axes, names = figure.subplots(), list(self.norms)
        colors = matplotlib.colormaps["viridis"]
        step = max(1, math.ceil((len(names) - 1) / (NAMED - 1)))  # the first and the last one are named
        marker = "." if len(self._whole) < 3 else ""  # a line needs two points
        for depth, (name, norms) in enumerate(self.norms.items()):
            label = plain(name) if depth % step == 0 or depth == len(names) - 1 else None
            seen = [norm or math.nan for norm in norms]  # there is no place for zero
            color = colors(0.9 * depth / max(1, len(names) - 1))
            axes.plot(seen, marker=marker, color=color, linewidth=1.2, label=label)
        axes.plot(self._whole, marker=marker, color="black", linestyle="--", label="all layers")
        axes.set_yscale("log")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch")
        axes.set_ylabel("norm of the gradient")
        axes.set_title("mean over the steps of each epoch, from the first layer (dark) to the last", fontsize="medium")
        figure.legend(loc="outside right center", fontsize="small")


def _owned(model: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Each layer with its parameters; one that several layers share belongs to the first of them."""
    seen: set[int] = set()
    for name, module in layers(model):
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(map(id, own))
        if own:
            yield name or type(model).__name__, own


def _norm(gradient: Tensor) -> Tensor:
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32))
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of all pieces, where it is sharded


def _listed(names: Iterable[str]) -> str:
    first, more = list(names)[:TOLD], len(list(names)) - TOLD
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")
