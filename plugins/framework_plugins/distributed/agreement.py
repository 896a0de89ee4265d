"""What all processes do as one: they start from the same, and stop and save at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from framework import Trainer, UsageError

from . import launch
from .ranks import Ranks

Asked = tuple[str | None, tuple[str, ...]]  # a stop, and the labels of checkpoints

LOOK_EVERY = 0.5  # seconds between two looks for what only one process knows
MOST_STEPS = 200  # between two looks


class Agreement:
    """On the stops and the saves of one fit.

    What a plugin asks for is asked for in all processes, since all have the same figures: it is honoured at once. What
    only one process has heard of waits until they look, about twice a second.

    Attributes:
        held: what was asked for in this process alone
    """

    def __init__(self, ranks: Ranks, trainer: Trainer) -> None:
        self.held: list[Callable[[], None]] = []
        self._ranks = ranks
        self._due, self._left, self._looked_at = False, 1, (time.monotonic(), trainer.step)
        self._pace = LOOK_EVERY  # seconds a step

    def on(self, trainer: Trainer, stop: str | None, save: tuple[str, ...]) -> Asked:
        """What all have agreed on at a step boundary."""
        due, self._due = self._due or stop is not None or bool(save), False
        if due:
            return self._united(trainer, stop, save)
        self._left -= 1
        if self._left <= 0 or not trainer.place.inside:
            self._look(trainer)
        return stop, save

    def _united(self, trainer: Trainer, stop: str | None, save: tuple[str, ...]) -> Asked:
        """What any process asks for, in the same order in all of them."""
        try:
            everyone = self._ranks.gather((trainer.step, stop, save))
        except RuntimeError as error:
            error.add_note(
                f"rank {self._ranks.rank} asked for stop={stop!r}, save={save!r} at step {trainer.step}: all must ask "
                "for it at the same step; what only one knows goes through trainer.ask"
            )
            raise
        stops = [theirs for _, theirs, _ in everyone if theirs is not None]
        saves = dict.fromkeys(label for _, _, labels in everyone for label in labels)
        return (stops or [None])[0], tuple(saves)

    def _look(self, trainer: Trainer) -> None:
        """Whether a process has been asked for something that the others do not know of; and when to look again."""
        (begun, step), now = self._looked_at, time.monotonic()
        if trainer.step > step:
            self._looked_at, self._pace = (now, trainer.step), (now - begun) / (trainer.step - step)
        steps = int(LOOK_EVERY / max(1e-6, self._pace))
        asked, fewest = self._ranks.largest([len(self.held), -min(max(1, steps), MOST_STEPS)])
        self._left = -fewest
        if asked:
            held, self.held[:] = self.held[:], []
            for call in held:
                trainer.later(call)
            self._due = True


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """What must be the same in all processes, by names that a reader knows."""
    facts: dict[str, Any] = {}
    if launch.job is not None:
        about = launch.job.about
        facts |= {"the recipe": about["recipe"], "the recipe's SHA-256": about["sha256"], "the seed": about["seed"]}
        facts |= {f"the knob {name}": repr(value) for name, value in about["knobs"].items()}
    facts["the list of plugins"] = ", ".join(name for name in trainer.plugins if not name.startswith("_"))
    facts |= {"torch": str(torch.__version__), "the kind of device": trainer.device.type, "epochs": trainer.epochs}
    facts |= {"accumulate": trainer.accumulate, "the run directory": "one" if trainer.run_dir else "none"}
    facts["the optimizer"] = type(trainer.optimizer).__name__
    for index, group in enumerate(trainer.optimizer.param_groups):
        settings = {key: value for key, value in group.items() if isinstance(value, (int, float, str, tuple))}
        facts |= {f"{key} of the optimizer's group {index}": repr(value) for key, value in settings.items()}
    if any(map(is_lazy, (*trainer.model.parameters(), *trainer.model.buffers()))):
        raise UsageError("the model has lazy layers without a shape: give it one batch before it is trained")
    for name, tensor in trainer.model.state_dict().items():
        facts[name] = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
    if trainer.resumed is not None:
        facts["the checkpoint to go on from"] = trainer.resumed.path.name
    return facts
