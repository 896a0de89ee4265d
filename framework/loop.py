"""The loop that you would have written by hand, with a hook at every place where something could be different.

A hook that nobody implements is None, so each line below is the plain line of a hand-written loop plus one test.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framework.data import complete, length, make_loader, promised, windows
from framework.device import apply, place
from framework.engine import Mean, Step
from framework.errors import DataError
from framework.metrics import SplitMetrics
from framework.mistakes import checked
from framework.plugins import nobody

if TYPE_CHECKING:
    from framework.trainer import Trainer


def run(trainer: Trainer) -> None:
    """All epochs of a fit. Every hook, in the order in which they are called:

    prepare_model
    make_loader                                 # once for train, once for val
    on_fit_start
    while no stop was asked for and epochs are left:
        agree, on_checkpoint                    # a step boundary: stops and saves that were asked for
        on_epoch_start
        on_split_start                          # after model.train()
        for window in train:
            optimizer.zero_grad()
            for batch in window:
                on_batch_start
                forward                         # output = model(x)
                compute_loss                    # loss = loss(output, y)
                backward                        # loss.backward()
                if it is the last batch of the window:
                    on_gradients
                    optimizer_step              # optimizer.step()
                on_batch_end
            agree, on_checkpoint                # a step boundary
        reduce
        on_split_end
        with val, after model.eval() and under torch.no_grad():
            on_split_start, for batch in val: on_batch_start, forward, compute_loss, on_batch_end
            reduce, on_split_end
        on_epoch_end
    on_fit_end                                  # after an error: on_exception
    on_teardown
    """
    hooks = trainer.plugins.frozen("train")
    while not trainer.honour() and trainer.epoch < trainer.epochs:
        epoch = trainer.epoch
        if not trainer.place.inside:
            hooks.on_epoch_start(trainer, epoch)
        figures = train(trainer, trainer.loaders["train"])
        if figures is None:  # stopped inside the epoch: it has no row
            return
        trainer.place.leave()
        if "val" in trainer.loaders:
            figures = {**figures, **evaluate(trainer, "val", trainer.loaders["val"], taken=figures)}
        trainer.epoch += 1
        row = {"epoch": epoch, "step": trainer.step, **figures}
        trainer.history.append(row)
        hooks.on_epoch_end(trainer, epoch, MappingProxyType(row))


def train(trainer: Trainer, loader: Iterable[Any]) -> Mapping[str, float] | None:
    """One pass over train; its figures, or None where a stop was honoured before its end."""
    hooks, model = trainer.plugins.frozen("train"), trainer.prepared
    mean, place = Mean(trainer.device, trainer.refusing("train")), trainer.place
    trainer.engine.set_mode(model, True)
    if not place.inside:
        hooks.on_split_start(trainer, "train")
    step = trainer.engine.step(trainer)
    loss_of, later = _losses(trainer, "train", step)
    pairs = not (hooks.forward or hooks.compute_loss)
    promise = None if trainer.engine.draws_alone("train") else promised(loader)
    fetched = place.windows(
        trainer, mean, lambda: windows(trainer.engine.batches(trainer, "train", loader, pairs), trainer.accumulate)
    )
    for window in fetched:
        step.clear()
        counts = list(map(trainer.count, window))
        for index, batch in enumerate(window):
            output = None  # an error in forward is not to be explained with the output of the batch before
            trainer.samples, trainer.weight = counts[index], counts[index] / sum(counts)
            trainer.boundary, trainer.stepped = index + 1 == len(window), False
            if hooks.on_batch_start:
                hooks.on_batch_start(trainer, "train", batch)
            output = hooks.forward(trainer, model, "train", batch) if hooks.forward else step.forward(batch)
            loss = loss_of(output, batch)
            mean.add(loss, trainer.samples)  # on a CPU it stops at inf and nan here, before the parameters get them
            weighted = loss if trainer.weight == 1.0 else loss * trainer.weight
            if hooks.backward:
                hooks.backward(trainer, weighted, output, batch)
            else:
                step.backward(weighted)
            if trainer.boundary:
                if hooks.on_gradients:
                    hooks.on_gradients(trainer)
                if hooks.optimizer_step:
                    trainer.stepped = hooks.optimizer_step(trainer, output, batch)
                else:
                    step.update()
                    trainer.stepped = True
                trainer.step += 1
            if hooks.on_batch_end:
                seen = apply(Tensor.detach, output) if hooks.output_is_asked_for else None
                hooks.on_batch_end(trainer, "train", batch, seen, loss.detach(), trainer.samples)
            loss_of = later
        batch = None  # an error in the data set is not to be explained with the batch before
        if (trainer.asked or hooks.agree) and trainer.honour():
            windows_of_all = math.ceil((length(loader) or 0) / trainer.accumulate)
            if trainer.step - place.first < windows_of_all or (not windows_of_all and place.more(trainer, fetched)):
                return None
    return _figures(trainer, "train", loader, mean, promise)


@torch.no_grad()
def evaluate(trainer: Trainer, split: str, loader: Iterable[Any], taken: Iterable[str] = ()) -> Mapping[str, float]:
    """One pass over another split in eval mode and without gradients; its figures, none of a name that is taken."""
    hooks, model, step = trainer.plugins.frozen(split), trainer.prepared, trainer.engine.looking(trainer)
    mean = Mean(trainer.device, trainer.refusing(split))
    trainer.engine.set_mode(model, False)
    hooks.on_split_start(trainer, split)
    loss_of, later = _losses(trainer, split, step)
    pairs = not (hooks.forward or hooks.compute_loss)
    promise = None if trainer.engine.draws_alone(split) else promised(loader)
    for batch in trainer.engine.batches(trainer, split, loader, pairs):
        output = None
        trainer.samples, trainer.weight = trainer.count(batch), 1.0
        trainer.boundary = trainer.stepped = False
        if hooks.on_batch_start:
            hooks.on_batch_start(trainer, split, batch)
        output = hooks.forward(trainer, model, split, batch) if hooks.forward else step.forward(batch)
        loss = loss_of(output, batch)
        mean.add(loss, trainer.samples)
        if hooks.on_batch_end:
            hooks.on_batch_end(trainer, split, batch, output, loss, trainer.samples)
        loss_of, batch = later, None
    return _figures(trainer, split, loader, mean, promise, taken)


def _losses(trainer: Trainer, split: str, step: Step) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The loss of an output and a batch: for the first batch, which is looked at once a fit, and for later ones."""
    compute = trainer.plugins.frozen(split).compute_loss
    later = (lambda *given: compute(trainer, split, *given)) if compute else step.loss
    if split in trainer.looked_at and split != "test":
        return later, later
    trainer.looked_at.add(split)
    return functools.partial(checked, later), later


def _figures(
    trainer: Trainer, split: str, loader: Iterable[Any], mean: Mean, promise: Any, taken: Iterable[str] = ()
) -> Mapping[str, float]:
    """The mean loss over the samples of all processes, and what the plugins add."""
    mean.flush()
    complete(split, loader, promise, mean.batches)
    hooks, total, count = trainer.plugins.frozen(split), mean.total, mean.count
    if hooks.reduce is not ANSWERS["reduce"]:
        total, count = trainer.sum(torch.tensor([total, count], dtype=torch.float64)).tolist()
    if not count:
        raise DataError(f"{split}: not a single batch came from {type(loader).__name__}")
    figures = {sys.intern(f"{split}_loss"): total / count}  # one name for all the rows
    if hooks.on_split_end is not nobody:
        hooks.on_split_end(trainer, split, SplitMetrics(figures, taken))
    return figures


def _backward(trainer: Trainer, loss: Tensor, output: Any, batch: Any) -> bool:
    loss.backward()
    return True


def _optimizer_step(trainer: Trainer, output: Any, batch: Any) -> bool:
    trainer.optimizer.step()
    return True


# The loop's own answers to the makes: what a wrap surrounds, and what is asked where a plugin declines.
ANSWERS: dict[str, Callable[..., Any]] = {
    "prepare_model": lambda trainer, model: place(model, trainer.optimizer, trainer.device),
    "make_loader": lambda trainer, data, split, batch_size, shuffle, drop_last: make_loader(
        data, split, batch_size, shuffle, drop_last, trainer.num_workers, trainer.device
    ),
    "forward": lambda trainer, model, split, batch: model(batch[0]),
    "compute_loss": lambda trainer, split, output, batch: trainer.loss(output, batch[1]),
    "backward": _backward,
    "optimizer_step": _optimizer_step,
    "reduce": lambda trainer, value: value,
    "agree": lambda trainer, stop, save: (stop, save),
}
