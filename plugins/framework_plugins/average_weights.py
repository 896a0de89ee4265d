"""Averages of the weights: over the steps (EMA) or over the epochs (SWA)."""

from __future__ import annotations

import math
import operator
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_avg_fn, update_bn

from framework import CheckpointError, Trainer, UsageError, hookimpl, kept_random_states


class AverageWeights:
    """Trains as ever, and evaluates and saves an average of the weights that training went through.

    With `decay` it is the exponential moving average over the steps (EMA); with `swa_start` the plain mean of the
    weights at the end of each epoch from that one on (SWA, stochastic weight averaging)::

        AverageWeights()                    # EMA with a decay of 0.999: about the last 1000 steps
        AverageWeights(decay=0.99)
        AverageWeights(swa_start=10)        # SWA from the eleventh epoch on; epochs count from 0

    The averages are those of torch's AveragedModel, bit for bit (those of SWA on a CPU). What is evaluated is what is
    saved: at the end of an epoch's training, before validation, the averages go into the model, and the weights that
    are trained come back when the next epoch begins, or after an error. So val_loss, the best checkpoint and the
    weights that early stopping restores are those of the averages, and at the end of the fit the model keeps them, also
    where it was stopped inside of an epoch. `trainer.evaluate` in the middle of an epoch sees the weights that are
    trained. A step that the optimizer skipped does not count. A decay that is too long for the steps of a fit is warned
    of.

    Batch normalization: with SWA the running statistics are measured anew for the averages, by a pass over the training
    data at the end of each such epoch (torch's update_bn; no random number is used up by it); those of modules that are
    in eval mode in training, such as frozen ones, stay; of several processes each measures its own samples, and the
    mean of what they find is taken. With EMA the model's own statistics stay, a moving average already. With
    `use_buffers` both average them like the weights, without a pass.

    Args:
        decay: how much of the EMA each step keeps; 0.999 where no swa_start is given
        swa_start: the first epoch whose weights count; then it is SWA
        use_buffers: average the buffers too

    Raises:
        UsageError: both of decay and swa_start; a decay that is not between 0 and 1; a swa_start after the last epoch;
            two of this plugin
        CheckpointError: the fit that is resumed had another average
    """

    def __init__(
        self, decay: float | None = None, swa_start: int | None = None, use_buffers: bool = False,
        name: str = "average_weights",
    ) -> None:  # fmt: skip
        if decay is not None and swa_start is not None:
            raise UsageError(f"{name}: decay={decay!r} is for EMA, swa_start={swa_start!r} for SWA; give one of them")
        if decay is not None and (type(decay) not in (int, float) or not 0 <= decay < 1):
            raise UsageError(f"{name}: decay must be a number from 0 up and below 1, got {decay!r}")
        if swa_start is not None and (type(swa_start) is not int or swa_start < 0):
            raise UsageError(f"{name}: swa_start must be an epoch, a whole number from 0 up, got {swa_start!r}")
        self.name = name
        self.decay = 0.999 if decay is None and swa_start is None else decay
        self.swa_start = swa_start
        self.use_buffers = use_buffers
        self._settings = [self.decay, swa_start, use_buffers]
        self._running = False
        self._forget()
        if self.decay is not None:  # else no batch is asked about it
            self._update = get_ema_multi_avg_fn(self.decay)
            self.on_batch_end = self._after_batch

    def _forget(self) -> None:
        self._count = 0  # of the weights that have been averaged
        self._others: list[Tensor] = []  # the averages; while those are in the model, the weights that are trained
        self._is_in = False

    def on_fit_start(self, trainer: Trainer) -> None:
        self._check(trainer)
        self._forget()
        self._running, self._model = True, trainer.model
        if trainer.step:
            trainer.later(partial(self._go_on, trainer))

    def _check(self, trainer: Trainer) -> None:
        several = [name for name, plugin in trainer.plugins.items() if isinstance(plugin, AverageWeights)]
        if len(several) > 1:
            raise UsageError(f"a model holds one average: list one of {' and '.join(several)}")
        last = trainer.epochs - 1
        if self.swa_start is not None and self.swa_start > last:
            raise UsageError(f"{self.name}: swa_start={self.swa_start} comes after the last epoch, {last}")
        steps = trainer.epochs * math.ceil(operator.length_hint(trainer.loaders["train"]) / trainer.accumulate)
        if self.decay is not None and 0 < steps < 1 / (1 - self.decay):  # 0 is unknown
            warnings.warn(
                f"{self.name}: decay={self.decay} averages about {1 / (1 - self.decay):.0f} steps, and this fit has "
                f"{steps}: the average stays close to the first weights; try decay={max(0.0, 1 - 10 / steps):.2g}",
                stacklevel=2,
            )

    def _go_on(self, trainer: Trainer) -> None:
        """Resumed. What a fit that was stopped inside of an epoch has saved at its end holds the averages."""
        if self._is_in and trainer.place.inside:
            self._exchange()

    def on_epoch_start(self) -> None:
        if self._is_in:
            self._exchange()

    def _after_batch(self, trainer: Trainer) -> None:
        if trainer.stepped:
            self._average()

    def _average(self) -> None:
        if not self._count:
            self._others = [tensor.clone() for tensor in self._held().values()]
        elif self.decay is not None:
            for averages, trained in _alike(self._others, self._averaged()):
                self._update(averages, trained, self._count)
        else:
            for average, weight in zip(self._others, self._averaged(), strict=False):
                average.copy_(get_swa_avg_fn()(average, weight, self._count))
        self._count += 1

    @hookimpl(wrapper=True, split="train")
    def on_split_end(self, trainer: Trainer) -> Iterator[None]:
        if self.swa_start is not None and trainer.epoch >= self.swa_start:
            self._average()
        self._put_in(trainer)
        yield  # whatever other plugins evaluate here are the averages

    def _put_in(self, trainer: Trainer) -> None:
        if not self._count:
            return
        kept = len(self._averaged())
        for other, buffer in zip(self._others[kept:], [*self._held().values()][kept:], strict=True):
            other.copy_(buffer)  # of the weights that are trained; the averages get their own
        self._exchange()
        if kept < len(self._others):
            _measure_statistics(trainer)

    def _named(self, buffers: bool) -> dict[str, Tensor]:
        model = self._model
        named = *model.named_parameters(), *(model.named_buffers() if buffers else ())
        return {name: tensor.detach() for name, tensor in named}

    def _averaged(self) -> list[Tensor]:
        return [*self._named(self.use_buffers).values()]

    def _held(self) -> dict[str, Tensor]:
        """What the averages replace in the model: with SWA the buffers too, which are measured anew."""
        return self._named(self.use_buffers or self.swa_start is not None)

    def _exchange(self) -> None:
        for held, other in zip(self._held().values(), self._others, strict=True):  # in place: the optimizer has them
            kept = held.clone()
            held.copy_(other)
            other.copy_(kept)
        self._is_in = not self._is_in

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer) -> Iterator[None]:
        restored = trainer.history and any(getattr(p, "restore_best", False) for p in trainer.plugins.values())
        if not self._is_in and not restored:  # stopped inside of an epoch
            self._put_in(trainer)
        yield

    def on_exception(self) -> None:
        if self._running and self._is_in:
            self._exchange()

    def on_teardown(self) -> None:
        self._running = False

    def state_dict(self) -> dict[str, Any]:
        others = dict(zip(self._held(), self._others, strict=True)) if self._others else {}
        return {"settings": self._settings, "count": self._count, "others": others, "in_model": self._is_in}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["settings"] != self._settings:
            told = f"were {state['settings']}, now they are {self._settings}"
            raise CheckpointError(f"decay, swa_start and use_buffers of {self.name} {told}")
        self._count, self._is_in = state["count"], state["in_model"]
        others, held = state["others"].values(), self._held().values()
        self._others = [other.to(one.device) for other, one in zip(others, held, strict=self._count > 0)]


def _alike(averages: Sequence[Tensor], weights: Iterable[Tensor]) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Both in groups of one device and dtype, as torch averages them; what is sharded is apart from what is not."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for average, weight in zip(averages, weights, strict=True):
        group = groups[average.device, average.dtype, type(average)]
        group[0].append(average)
        group[1].append(weight)
    return groups.values()


class _Pass(nn.Module):
    """What torch's update_bn takes for the model: it calls that as the loop does, with whole batches.

    Each module keeps the mode that it has in training: statistics that stand still there do so here.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.model, self._trainer = trainer.model, trainer
        self._forward = trainer.plugins.frozen("train").forward

    def modules(self, *arguments: Any, **named: Any) -> Iterator[nn.Module]:  # torch 2.14 has one, 2.11 none
        return (module for module in super().modules(*arguments, **named) if module.training)

    def train(self, mode: bool = True) -> _Pass:
        return self

    def forward(self, batch: Any) -> None:
        trainer = self._trainer
        if self._forward:
            self._forward(trainer, trainer.prepared, "train", batch)
        else:
            trainer.prepared(batch[0])


def _measure_statistics(trainer: Trainer) -> None:
    """The running statistics of batch normalization for the weights that are in the model."""
    loader = trainer.loaders["train"]
    kept = [(module, module.momentum) for module in trainer.model.modules() if "momentum" in vars(module)]
    try:
        with kept_random_states(*_generators(loader)):
            batches = trainer.engine.batches(trainer, "train", loader, False)
            update_bn(([batch] for batch in batches), _Pass(trainer))
    finally:  # an error keeps torch from putting it back
        for module, momentum in kept:
            module.momentum = momentum
    for buffer in (buffer for module, _ in kept if module.training for buffer in module.buffers(recurse=False)):
        if buffer.is_floating_point():  # each process has measured its own samples
            buffer.copy_(trainer.sum(buffer) / trainer.processes.size)


def _generators(loader: Any) -> list[torch.Generator]:
    """Those of its own that a DataLoader draws from."""
    owners = loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners) if g is not None}
    return list(found.values())
