"""Where in its epochs a fit is: told by every checkpoint, and gone to by the fit that is resumed from it.

Torch's own draws decide the order of the data, so a place is the states of all generators before the epoch's first
draw, how many steps were taken since, and the states at the save. A resumed fit draws the same order again, lets the
batches of those steps go by (so that the workers of a DataLoader draw what they drew), and then takes the states of the
save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from framework.checkpoint.restore import differing
from framework.data import Whole, generators, length
from framework.device import apply, leaves
from framework.errors import CheckpointError
from framework.seed import random_states, set_random_states

if TYPE_CHECKING:
    from framework.engine import Mean
    from framework.trainer import Trainer

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
        if self._before:
            own = generators(trainer.loaders["train"]) if "generators" in self._before else []
            set_random_states(self._before, *own)
        fetched, steps = start(), trainer.step - self.first
        if sum(1 for _ in islice(fetched, steps)) < steps:
            raise CheckpointError(f"the data ends before step {trainer.step}, where the checkpoint was taken")
        set_random_states(told["random"], *_all_generators(trainer))
        mean.total, mean.count, mean.batches = told["mean"]
        for name, module in trainer.prepared.named_modules():
            module.training = name not in told["evaluating"]
        return fetched

    def leave(self) -> None:
        """The epoch's pass over train is over."""
        self.inside, self._mean, self._before = False, None, {}

    def tell(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        if self._facts is None:
            self._facts = {split: _facts(loader) for split, loader in trainer.loaders.items()}
        told: dict[str, Any] = {
            "inside": self.inside, "random": random_states(*_all_generators(trainer)), "data": self._facts,
            "accumulate": trainer.accumulate, "optimizer": self._optimizer, "groups": self._groups,
            "shapes": shapes(trainer.optimizer),
        }  # fmt: skip
        if self.inside and self._mean is not None:
            self._mean.flush()
            modules = trainer.prepared.named_modules()
            told |= {
                "first": self.first, "before": self._before,
                "mean": [self._mean.total, self._mean.count, self._mean.batches],
                "evaluating": [name for name, module in modules if not module.training],
            }  # fmt: skip
        return told

    def differences(self, trainer: Trainer, told: dict[str, Any]) -> Iterator[str]:
        """Why a fit of this trainer would not be the one that a checkpoint told of."""
        if told["accumulate"] != trainer.accumulate:
            yield f"accumulate was {told['accumulate']}, now it is {trainer.accumulate}"
        now: dict[str, Any] = {split: _facts(loader) for split, loader in trainer.loaders.items()}
        for split in {**told["data"], **now}:
            then, there = told["data"].get(split), now.get(split)
            if then is None or there is None:
                yield f"there was {'no ' * (then is None)}{split} data, now there is {'no ' * (there is None)}such"
            else:
                yield from (
                    f"{split}: {name} was {then.get(name)}, now it is {value}"
                    for name, value in there.items()
                    if then.get(name) != value
                )
        drawn = len(_all_generators(trainer))
        if drawn != len(told["random"]["generators"]):
            yield f"the loaders had {len(told['random']['generators'])} generators of their own, now they have {drawn}"
        if told["optimizer"] != self._optimizer:
            yield f"the optimizer was {told['optimizer']}, now it is {self._optimizer}"
        elif told["shapes"] != (live := shapes(trainer.optimizer)):
            yield f"the optimizer's parameters had the shapes {told['shapes']}, group by group, now {live}"
        else:
            yield from differing(told["groups"], self._groups, "the optimizer's settings at the start, group")

    def go(self, trainer: Trainer, told: dict[str, Any]) -> None:
        """Be where a checkpoint was taken; in the middle of an epoch that comes true when its data is asked for."""
        self.inside, self.first = told["inside"], told.get("first", 0)
        self._before, self._told = told.get("before", {}), told if self.inside else {}
        set_random_states(told["random"], *_all_generators(trainer))


def settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each group of an optimizer, without its parameters."""
    return [
        apply(lambda tensor: tensor.detach().clone(), {k: v for k, v in group.items() if not k.startswith("param")})
        for group in optimizer.param_groups
    ]


def shapes(optimizer: torch.optim.Optimizer) -> list[list[list[int]]]:
    """The shapes of the parameters of each group."""
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _all_generators(trainer: Trainer) -> list[torch.Generator]:
    found = [generator for loader in trainer.loaders.values() for generator in generators(loader)]
    return list({id(generator): generator for generator in found}.values())


def _facts(loader: Any) -> dict[str, Any]:
    """What shows whether a loader gives the same batches: sizes, the kind of its order, and a look at its tensors."""
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    tensors = loader.batch if isinstance(loader, Whole) else getattr(dataset, "tensors", None)
    plain = isinstance(loader, Whole) or type(dataset) is TensorDataset
    return {
        "the number of samples": loader.samples if isinstance(loader, Whole) else length(dataset),
        "the number of batches": length(loader),
        "batch_size": getattr(loader, "batch_size", None),
        "the order": [type(part).__name__ for part in (sampler, getattr(loader, "batch_sampler", None))],
        "the SHA-256 of the data": _looked_at(tensors) if plain else None,
    }


def _looked_at(tensors: Any) -> str:
    seen = hashlib.sha256()
    for name, tensor in leaves(tensors):
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in (tensor[:ROWS], tensor[-ROWS:]) if tensor.dim() else (tensor,):
            seen.update(_bytes(part))
    return seen.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.layout == torch.strided else b""
