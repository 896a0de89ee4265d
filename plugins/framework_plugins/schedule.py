"""The learning rate over a fit, by any scheduler of torch."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import CodeType, FunctionType
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from framework import CheckpointError, Monitor, Trainer, UsageError, hookimpl

BY_STEP = OneCycleLR, CyclicLR  # what each step moves, where nothing else is said


class Schedule:
    """Moves the learning rate by a scheduler of torch: after each step of the optimizer, each epoch, or on a figure.

    What makes the scheduler of an optimizer is called at the start of a fit::

        Schedule(lambda optimizer: StepLR(optimizer, step_size=10))
        Schedule(functools.partial(OneCycleLR, max_lr=0.1, total_steps=500))
        Schedule(lambda optimizer: ReduceLROnPlateau(optimizer, patience=3), monitor="val_loss")
        Schedule()                                        # half a cosine down to zero, over the steps of the fit

    It is stepped where a loop by hand does it: after `optimizer.step()`, or at the end of an epoch, after validation. A
    step that the optimizer skipped is none. A second fit begins with the settings that the optimizer had before the
    first. A scheduler of your own is taken as well; that one goes on from where it is.

    Adds `lr`, the rate when an epoch's last step has been taken (`lr_0`, `lr_1`, ... for several parameter groups).

    Args:
        scheduler: what makes the scheduler, or one over the optimizer of the Trainer
        every: "step" or "epoch"; by default "step" for OneCycleLR, CyclicLR and the cosine, else "epoch". A function
            that makes one of the first two has to say so
        monitor: the figure for ReduceLROnPlateau; by default val_loss where there is a validation set, else train_loss

    Raises:
        UsageError: before the first step: no scheduler of this optimizer; total_steps that are not those of the fit; a
            figure that will not be there, with a suggestion
        CheckpointError: the fit that is resumed had another schedule
    """

    def __init__(
        self, scheduler: Callable[[Optimizer], LRScheduler] | LRScheduler | None = None, every: str | None = None,
        monitor: str | None = None, name: str = "schedule",
    ) -> None:  # fmt: skip
        if every not in (None, "step", "epoch"):
            raise UsageError(f"every must be 'step' or 'epoch', got {every!r}")
        self.name = name
        self.monitor = Monitor(monitor)
        kind: Any = scheduler.func if isinstance(scheduler, functools.partial) else scheduler
        self.every = every or ("step" if kind in (None, *BY_STEP) or isinstance(kind, BY_STEP) else "epoch")
        self._given, self._guessed = scheduler, every is None
        self._scheduler: Any = None
        self._figures: list[str] = []
        if self.every == "step":  # else no batch is asked about it
            self.on_batch_end = self._after_batch

    def metric_names(self, split: str) -> list[str]:
        return self._figures if split == "train" else []

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Iterator[None]:
        groups, made = trainer.optimizer.param_groups, self._scheduler
        if made not in (None, self._given) and made.get_last_lr() == [group["lr"] for group in groups]:
            # after an earlier fit: as it was before that one, unless somebody has changed the rate that it left
            groups[:] = [{"params": g["params"], **kept} for g, kept in zip(groups, self._before, strict=True)]
        leads = next(plugin for plugin in trainer.plugins.values() if isinstance(plugin, Schedule)) is self
        self._figures = [f"lr_{index}" if len(groups) > 1 else "lr" for index in range(len(groups) * leads)]
        return (yield)

    def on_fit_start(self, trainer: Trainer) -> None:
        optimizer, batches = trainer.optimizer, operator.length_hint(trainer.loaders["train"])  # 0 is unknown
        self._calls = trainer.epochs * (1 if self.every == "epoch" else math.ceil(batches / trainer.accumulate))
        self._before = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        if self._given is None and not self._calls:
            raise UsageError(f"{self.name}: the training data does not tell its length; give a scheduler")
        make = self._given or functools.partial(CosineAnnealingLR, T_max=self._calls)
        made: Any = make(optimizer) if callable(make) else make
        self._follows, self._kind = isinstance(made, ReduceLROnPlateau), type(made).__name__
        told = f"{self.name}: {self._kind}"
        if not isinstance(made, LRScheduler) or made.optimizer is not optimizer:
            raise UsageError(f"{told} is no scheduler of this optimizer; write lambda optimizer: StepLR(optimizer, 10)")
        self._scheduler, self._step, self._functions = made, self._first_step, [*_functions(made)]
        if self._guessed and self.every == "epoch" and isinstance(made, BY_STEP):
            raise UsageError(f"{told} moves with each step: say every='step', or else every='epoch'")
        if self._follows and self.every == "step":
            raise UsageError(f"{told} follows a figure of the epoch: leave out every='step'")
        if isinstance(made, ReduceLROnPlateau):
            self.monitor.start(trainer)
            if (self.monitor.mode, made.mode) == ("max", "min"):
                warnings.warn(f"{told}(mode='min') takes a larger {self.monitor.name} for a worse one", stacklevel=2)
        elif self.monitor.wanted is not None:
            raise UsageError(f"{told} follows no figure: leave out monitor={self.monitor.wanted!r}")
        self._check_length(made.state_dict())

    def _check_length(self, state: Mapping[str, Any]) -> None:
        setting = "T_max" if self._given is None else "total_steps"
        if self._calls and (length := state.get(setting, self._calls)) != self._calls:
            raise UsageError(f"{self.name}: {setting} is {length}, but this fit has {self._calls} {self.every}s")

    def _after_batch(self, trainer: Trainer) -> None:
        if trainer.stepped:
            self._step()

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        if self._follows:
            self.monitor.update(epoch, metrics)  # tells it where the figure is missing
        if self.every == "epoch":
            self._step(*[metrics[self.monitor.name]] * self._follows)

    def _first_step(self, *figure: float) -> None:
        self._step = self._scheduler.step
        with warnings.catch_warnings():  # that no step of the optimizer came before: in a resumed fit it did
            warnings.filterwarnings("ignore", message=r"(?s).*lr_scheduler\.step\(\)")
            self._step(*figure)

    @hookimpl(split="train")
    def on_split_end(self, trainer: Trainer, metrics: MutableMapping[str, float]) -> None:
        for figure, group in zip(self._figures, trainer.optimizer.param_groups, strict=False):
            metrics[figure] = float(group["lr"])

    def state_dict(self) -> dict[str, Any]:
        if self._scheduler is None:
            return {}
        return {"kind": self._kind, "functions": self._functions, "scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["kind"] != self._kind:
            raise CheckpointError(f"the learning rate followed {state['kind']}, and now it would follow {self._kind}")
        self._check_length(state["scheduler"])
        self._scheduler.load_state_dict(_fitted(state["scheduler"], self._scheduler.state_dict(), self._kind))
        if state["functions"] != self._functions:
            warnings.warn(f"{self._kind} had {state['functions']}, and goes on with {self._functions}", stacklevel=2)
            self._functions = state["functions"]  # each checkpoint tells what the run began with


def _fitted(saved: Any, fresh: Any, path: str) -> Any:
    """`saved`, which must be built like `fresh`. Torch itself takes anything, such as a number in place of a method."""
    if isinstance(saved, dict) and isinstance(fresh, dict):
        if odd := sorted(map(str, saved.keys() ^ fresh.keys())):
            raise CheckpointError(f"{path} is another one: only one of the two has {', '.join(odd)}")
        made = {key: _fitted(saved[key], value, f"{path}.{key}") for key, value in fresh.items()}
        return Counter(made) if isinstance(fresh, Counter) else made  # in a copied state it is a dict
    if type(saved) is type(fresh) in (list, tuple) and len(saved) == len(fresh):
        return type(fresh)(_fitted(a, b, f"{path}.{i}") for i, (a, b) in enumerate(zip(saved, fresh, strict=True)))
    kinds = {type(saved), type(fresh)}
    if kinds == {int, float} or (len(kinds) == 1 and not kinds & {dict, list, tuple}):
        return saved
    raise CheckpointError(f"{path} was {saved!r:.60}, and is {fresh!r:.60} now")


def _functions(scheduler: LRScheduler) -> Iterator[str]:
    """Name and digest of each function of the user's; torch keeps none of them."""
    for value in vars(scheduler).values():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, LRScheduler):
                yield from _functions(one)
            elif isinstance(one, FunctionType) and not str(one.__module__).startswith("torch."):
                yield f"{one.__qualname__} {_digest(one.__code__)}"


def _digest(code: CodeType) -> str:
    constants = [_digest(part) if isinstance(part, CodeType) else part for part in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()[:16]
