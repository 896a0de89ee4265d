"""Stop when a figure no longer gets better."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from framework import Monitor, Trainer, UsageError


class EarlyStopping:
    """Ends the fit after `patience` epochs in a row in which a figure did not improve.

    patience=3 with the best in epoch 7 stops after epoch 10. An epoch whose figure is nan did not improve.

    Args:
        monitor: the figure; by default val_loss where there is a validation set, else train_loss
        patience: epochs without improvement, 1 or more
        min_delta: by how much a figure must beat the best so far to count
        mode: "min", "max", or "auto" by the name of the figure
        restore_best: leave the model with the weights of the best epoch, also when all epochs have run

    Raises:
        UsageError: patience below 1; or the figure will not be there (before the first epoch, with a suggestion)
    """

    def __init__(
        self, monitor: str | None = None, patience: int = 10, min_delta: float = 0.0, mode: str = "auto",
        restore_best: bool = False, name: str = "early_stopping",
    ) -> None:  # fmt: skip
        if not isinstance(patience, int) or patience < 1:
            raise UsageError(f"patience must be a whole number of epochs from 1 up, got {patience!r}")
        self.name = name
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience = patience
        self.restore_best = restore_best
        self._weights: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self.monitor.start(trainer)
        self._weights = None
        if trainer.step:  # resumed, maybe from the very boundary at which it was decided; all is loaded by then
            trainer.later(lambda: self._decide(trainer))

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        monitor = self.monitor
        if monitor.update(epoch, metrics):
            if self.restore_best:
                self._weights = copy.deepcopy(trainer.model.state_dict())
        else:
            self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        monitor = self.monitor
        if monitor.waited >= self.patience:
            epochs = f"{monitor.waited} epoch{'s' * (monitor.waited != 1)}"
            best = "nan in each" if monitor.best is None else f"best {monitor.best:.6g} in epoch {monitor.epoch}"
            trainer.stop(f"{self.name}: {monitor.name} has not improved for {epochs} ({best})")

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._weights is not None:
            weights = trainer.model.state_dict()  # it also tells which version of each module these are
            weights.update(self._weights)
            trainer.model.load_state_dict(weights)

    def on_teardown(self) -> None:
        self._weights = None

    def state_dict(self) -> dict[str, Any]:
        return {**self.monitor.state_dict(), "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state)
        self._weights = state["weights"]
