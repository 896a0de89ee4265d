"""One training step as the loop takes it: five calls, chosen once a pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from framework.engine import private
from framework.engine.optimizers import flat

if TYPE_CHECKING:
    from framework.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Step:
    """What the loop calls where no plugin has an answer of its own.

    `clear()` drops the gradients, `forward(batch)` gives the output, `loss(output, batch)` a 0-dim tensor,
    `backward(loss)` fills the gradients, `update()` moves the parameters. In this order, once a batch (`clear` and
    `update` once a window).
    """

    clear: Callable[[], None]
    forward: Callable[[Any], Any]
    loss: Callable[[Any, Any], Tensor]
    backward: Callable[[Tensor], None]
    update: Callable[[], None]


def plain(trainer: Trainer, model: Callable[[Any], Any] | None = None) -> Step:
    """The calls of a loop written by hand, with what takes the place of the model."""
    model, optimizer = model or trainer.prepared, trainer.optimizer
    return Step(
        clear=lambda: optimizer.zero_grad(),
        forward=lambda batch: model(batch[0]),
        loss=lambda output, batch: trainer.loss(output, batch[1]),
        backward=lambda loss: loss.backward(),
        update=lambda: optimizer.step(),
    )


def eager(trainer: Trainer, model: Callable[[Any], Any] | None = None) -> Step:
    """The same calls without the work around them that a loop does not need; the bits are the same."""
    usual, optimizer = plain(trainer), trainer.optimizer
    forward, known = model or private.calling(trainer.prepared), trainer.loss
    loss_of = private.loss_of(known)

    def loss(output: Any, batch: Any) -> Tensor:
        nonlocal known, loss_of
        if trainer.loss is not known:
            known, loss_of = trainer.loss, private.loss_of(trainer.loss)
        return loss_of(output, batch[1])  # type: ignore[no-any-return]

    bare = private.bare_step(optimizer)
    clear, update = usual.clear, usual.update
    if bare is not None:
        clear, update = private.clearing(optimizer), private.stepping(optimizer, flat(optimizer, bare))
    return Step(clear, lambda batch: forward(batch[0]), loss, private.backward(), update)
