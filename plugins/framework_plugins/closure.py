"""The closure that LBFGS asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import LBFGS

from framework import Trainer, UsageError, hookimpl


class Closure:
    """Gives the optimizer a closure, with which it evaluates loss and gradients as often as it wants in a step.

    For LBFGS, and any other optimizer of `step(closure)`. The step is that of::

        def closure():
            optimizer.zero_grad()
            l = loss(model(x), y)
            l.backward()
            return l

        optimizer.step(closure)

    The loop has evaluated the batch once when the step begins: that is what the closure's first call hands out, and
    what the figures are measured on. Each later call goes the way of the loop again, through the plugins' forward,
    compute_loss, backward and on_gradients. With several processes it is handed the loss of the whole batch, so that
    all of them evaluate as often and take the same step.

    Raises:
        UsageError: gradients are to be accumulated over several batches, of which a closure sees only the last; LBFGS,
            which takes all parameters as one vector, where they are sharded
    """

    def __init__(self, name: str = "closure") -> None:
        self.name = name
        self._loss: Tensor | None = None  # of the loop's own evaluation, until it is handed out

    def on_fit_start(self, trainer: Trainer) -> None:
        if trainer.accumulate != 1:
            raise UsageError(f"{self.name}: a closure evaluates one batch; leave out accumulate={trainer.accumulate}")
        sharded = any(hasattr(parameter, "full_tensor") for parameter in trainer.model.parameters())
        if sharded and isinstance(trainer.optimizer, LBFGS):
            raise UsageError(f"{self.name}: LBFGS takes all parameters as one vector; leave out shard=True")

    @hookimpl(wrapper=True)
    def backward(self, loss: Tensor) -> Iterator[None]:
        self._loss = loss.detach()
        return (yield)

    def optimizer_step(self, trainer: Trainer, batch: Any) -> bool:
        def closure() -> Tensor:
            if self._loss is None:
                self._evaluate(trainer, batch)
            loss, self._loss = self._loss, None
            assert loss is not None
            return trainer.sum(loss) / trainer.processes.size  # weighted so that their mean is that of the whole batch

        trainer.optimizer.step(closure)  # type: ignore[arg-type]
        return True

    def _evaluate(self, trainer: Trainer, batch: Any) -> None:
        """What the loop does with a batch."""
        hooks, step = trainer.plugins.frozen("train"), trainer.engine.step(trainer)
        step.clear()
        output = hooks.forward(trainer, trainer.prepared, "train", batch) if hooks.forward else step.forward(batch)
        compute = hooks.compute_loss
        loss = compute(trainer, "train", output, batch) if compute else step.loss(output, batch)
        hooks.backward(trainer, loss if trainer.weight == 1.0 else loss * trainer.weight, output, batch)
        if hooks.on_gradients:
            hooks.on_gradients(trainer)
