"""Where in its epochs a fit is: told by every checkpoint, and gone to by the fit that is resumed from it.

Torch's own draws decide the order of the data, so a place is the states of all generators before the epoch's first
draw, how many steps were taken since, and the states at the save. A resumed fit draws the same order again, lets the
batches of those steps go by (so that the workers of a DataLoader draw what they drew), and then takes the states of the
save.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import StackDataset, Subset, TensorDataset

from framework.checkpoint.restore import differing
from framework.data import Whole, generators, length
from framework.device import apply
from framework.errors import CheckpointError
from framework.seed import kept_random_states, random_states, set_random_states

if TYPE_CHECKING:
    from framework.engine import Mean
    from framework.trainer import Trainer

WORKERS = "num_workers"
ROWS = 64  # of each end of a tensor, looked at to tell whether it is still the same data


class Place:
    """Where the fit of a trainer is.

    Attributes:
        exact: whether nothing has happened since the last step boundary
        inside: whether this epoch has begun: on_epoch_start, and on_split_start of "train", have been called
        first: the step that this epoch began with
    """

    def __init__(self, trainer: Trainer) -> None:
        self.exact = self.inside = False
        self.first = 0
        self._mean: Mean | None = None  # of the losses of this epoch
        self._before: dict[str, Any] = {}  # the states of the generators before its first draw
        self._told: dict[str, Any] = {}  # by the checkpoint, until a resumed fit has gone there
        self._optimizer, self._groups = type(trainer.optimizer).__name__, settings(trainer.optimizer)
        self._shapes = shapes(trainer.optimizer)
        self._facts: dict[str, Any] | None = None

    def windows(self, trainer: Trainer, mean: Mean, start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """The windows of an epoch that `start` gives, from where the fit is. `mean` takes up what it had."""
        self._mean, told, self._told = mean, self._told, {}
        if told:
            return self._again(trainer, mean, start, told)
        self.inside, self.first = True, trainer.step
        loader = trainer.loaders["train"]
        if type(loader) is not Whole:
            alone = trainer.engine.draws_alone("train")
            self._before = {"torch": torch.get_rng_state()} if alone else random_states(*generators(loader))
        return start()

    def _again(
        self, trainer: Trainer, mean: Mean, start: Callable[[], Iterator[Any]], told: dict[str, Any]
    ) -> Iterator[Any]:
        sampler: Any = _sampler(trainer)
        if told["sampler_epoch"] != getattr(sampler, "epoch", None):  # told by an on_epoch_start, which is not repeated
            sampler.set_epoch(told["sampler_epoch"])
        if self._before:
            own = generators(trainer.loaders["train"]) if "generators" in self._before else []
            set_random_states(self._before, *own)
        fetched, steps = start(), trainer.step - self.first
        if sum(1 for _ in islice(fetched, steps)) < steps:
            raise CheckpointError(f"the data ends before step {trainer.step}, where the checkpoint was taken")
        set_random_states(told["random"], *_all_generators(trainer))
        mean.total, mean.count, mean.batches = told["mean"]
        for name, module in trainer.model.named_modules():
            module.training = name not in told["evaluating"]
        return fetched

    def more(self, trainer: Trainer, fetched: Iterator[Any]) -> bool:
        """Whether the epoch has another window, where only the data knows; no generator has moved afterwards."""
        with kept_random_states(*_all_generators(trainer)):
            return next(fetched, None) is not None

    def leave(self) -> None:
        """The epoch's pass over train is over."""
        self.inside, self._mean, self._before = False, None, {}

    def tell(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        if self._facts is None:
            self._facts = self.facts(trainer)
        told: dict[str, Any] = {
            "inside": self.inside, "random": random_states(*_all_generators(trainer)), "data": self._facts,
            "accumulate": trainer.accumulate, "optimizer": self._optimizer, "groups": self._groups,
            "shapes": self._shapes,
        }  # fmt: skip
        if self._told:  # resumed and not there yet: nothing of the epoch has happened since
            told |= {name: self._told[name] for name in ("first", "before", "mean", "evaluating", "sampler_epoch")}
        elif self.inside and self._mean is not None:
            self._mean.flush()
            modules = trainer.model.named_modules()
            told |= {
                "first": self.first, "before": self._before,
                "mean": [self._mean.total, self._mean.count, self._mean.batches],
                "evaluating": [name for name, module in modules if not module.training],
                "sampler_epoch": getattr(_sampler(trainer), "epoch", None),
            }  # fmt: skip
        return told

    def facts(self, trainer: Trainer) -> dict[str, Any]:
        """What shows whether the data is still the same, by split."""
        return {split: _facts(loader) for split, loader in trainer.loaders.items()}

    def differences(self, trainer: Trainer, told: dict[str, Any]) -> Iterator[str]:
        """Why a fit of this trainer would not be the one that a checkpoint told of."""
        if told["accumulate"] != trainer.accumulate:
            yield f"accumulate was {told['accumulate']}, now it is {trainer.accumulate}"
        now = self.facts(trainer)
        for split in {**told["data"], **now}:
            then, there = told["data"].get(split), now.get(split)
            if then is None or there is None:
                yield f"there was {'no ' * (then is None)}{split} data, now there is {'no ' * (there is None)}such"
            else:
                yield from (
                    f"{split}: {name} was {then.get(name)}, now it is {value}"
                    for name, value in there.items()
                    if then.get(name) != value and name != WORKERS
                )
                if then.get(WORKERS) != there[WORKERS]:
                    was = f"{split}: {WORKERS} was {then.get(WORKERS)}, now it is {there[WORKERS]}"
                    warnings.warn(f"{was}: samples that draw random numbers will draw others", stacklevel=4)
        drawn = len(_all_generators(trainer))
        if drawn != len(told["random"]["generators"]):
            yield f"the loaders had {len(told['random']['generators'])} generators of their own, now they have {drawn}"
        if told["optimizer"] != self._optimizer:
            yield f"the optimizer was {told['optimizer']}, now it is {self._optimizer}"
        elif told["shapes"] != self._shapes:
            yield f"the optimizer's parameters had the shapes {told['shapes']}, group by group, now {self._shapes}"
        else:
            yield from differing(told["groups"], self._groups, "the optimizer's settings at the start, group")

    def go(self, trainer: Trainer, told: dict[str, Any]) -> None:
        """Be where a checkpoint was taken; in the middle of an epoch that comes true when its data is asked for."""
        self.inside, self.first = told["inside"], told.get("first", 0)
        self._before, self._told = told.get("before", {}), told if self.inside else {}
        for split, loader in trainer.loaders.items():
            if trainer.epoch and getattr(loader, "persistent_workers", False):
                iter(loader)  # torch draws a seed when it starts them, which had been done when the states were taken
                kept = f"{split}: persistent_workers=True keeps generators in the workers, which begin anew"
                warnings.warn(kept, stacklevel=4)
        set_random_states(told["random"], *_all_generators(trainer))


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each group of an optimizer, without its parameters."""
    return [
        apply(lambda tensor: tensor.detach().clone(), {k: v for k, v in group.items() if not k.startswith("param")})
        for group in optimizer.param_groups
    ]


def shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    """The shapes of the parameters of each group."""
    groups = [group["params"] for group in optimizer.param_groups]
    return [[[] if is_lazy(member) else list(member.shape) for member in members] for members in groups]


def _sampler(trainer: Trainer) -> Any:
    loader = trainer.loaders["train"]
    return getattr(getattr(loader, "whole", loader), "sampler", None)  # the user's, of which this process takes a part


def _all_generators(trainer: Trainer) -> list[torch.Generator]:
    found = [generator for loader in trainer.loaders.values() for generator in generators(loader)]
    return list({id(generator): generator for generator in found}.values())


def _facts(loader: Any) -> dict[str, Any]:
    """What shows whether a loader gives the same batches: sizes, the kind of its order, and a look at its data."""
    loader = getattr(loader, "whole", loader)  # of which this process takes a part
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    seen = hashlib.sha256()
    _look_at(loader.batch if isinstance(loader, Whole) else dataset, seen)
    return {
        "the number of samples": loader.samples if isinstance(loader, Whole) else length(dataset),
        "the number of batches": length(loader),
        "batch_size": getattr(loader, "batch_size", None),
        "the order": [type(part).__name__ for part in (sampler, getattr(loader, "batch_sampler", None))],
        "the SHA-256 of the data": seen.hexdigest()[:16],
        WORKERS: getattr(loader, WORKERS, 0),
    }


def _look_at(data: Any, seen: Any) -> None:
    """Both ends of each tensor, and of the row numbers of a Subset; nothing of a data set that makes its samples."""
    if isinstance(data, Tensor):
        seen.update(f"{tuple(data.shape)} {data.dtype}".encode())
        for part in (data[:ROWS], data[-ROWS:]) if data.dim() else (data,):
            seen.update(_bytes(part))
    elif isinstance(data, dict):
        _look_at([part for pair in data.items() for part in pair], seen)
    elif isinstance(data, (list, tuple)):
        for part in data:
            _look_at(part, seen)
    elif isinstance(data, str):
        seen.update(data.encode("utf-8", "backslashreplace"))
    elif isinstance(data, Subset):
        ends = [*data.indices[:ROWS], *data.indices[-ROWS:]]
        seen.update(f"{[int(row) for row in ends]}".encode())
        _look_at(data.dataset, seen)
    elif type(data) in (TensorDataset, StackDataset):
        _look_at(data.tensors if isinstance(data, TensorDataset) else data.datasets, seen)


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.layout == torch.strided else b""
