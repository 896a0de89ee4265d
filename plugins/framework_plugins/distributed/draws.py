"""Random numbers of several processes.

Which samples are in a batch must be the same in all of them, as it is in one process; dropout, noise and augmentation
must not. So there are two streams. The common one is in a generator of its own, and takes the place of torch's own one
while the order of the data is drawn: a model that draws nothing gets the order that one process would give it. All else
is drawn from torch's, Python's and NumPy's own generators, which each process seeds in another way.
"""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

import torch


class Common:
    """The common stream; inside of a `with` it is torch's own, and may not be entered twice."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.generator.set_state(torch.get_rng_state())
        self._own: Any = None

    def __enter__(self) -> None:
        self._own = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())

    def __exit__(self, *_: Any) -> None:
        self.generator.set_state(torch.get_rng_state())
        torch.set_rng_state(self._own)

    def aside(self) -> Common:
        """A stream that begins here and leaves no trace."""
        other = Common()
        other.generator.set_state(self.generator.get_state())
        return other

    @staticmethod
    def seed_of_workers(generator: Any) -> None:
        """The draw of a DataLoader at the start of a pass, which the one of this process makes from its own stream."""
        torch.empty((), dtype=torch.int64).random_(generator=generator)


def seed_alone(state: Any, rank: int) -> None:
    """Seed what one process draws for itself, by the state of the common stream and its rank."""
    torch.manual_seed(seed := _seed(state, rank))
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def _seed(state: Any, rank: int) -> int:
    digest = hashlib.sha256(state.numpy().tobytes() + rank.to_bytes(4, "little")).digest()
    return int.from_bytes(digest[:8], "little")


# -------------------------------------------------------------------------- the states of generators in a checkpoint

OWN = "of_rank"  # under which a place in a fit keeps what only one process had


def common_form(tree: Any) -> Any:
    """Places in a fit as one process would tell them: torch's generator in the state of the common stream.

    That is the first of the generators that the loaders hold. What the processes differ in stands beside it, under OWN.
    """
    if not isinstance(tree, dict):
        return tree
    if not _is_place(tree):
        return {key: common_form(value) for key, value in tree.items()}
    own, told = {}, {}
    for name in _STATES & tree.keys():
        states = tree[name]
        if "torch" in states:
            (of_all, *others), own[name] = states["generators"], states["torch"]
            told[name] = {**states, "torch": of_all, "generators": others}
    return {**tree, **told, OWN: own}


def own_form(tree: Any, rank: int, mine: bool) -> Any:
    """The inverse of `common_form` for one process.

    Args:
        mine: whether OWN is of this process, out of as many; else its own streams stay as it has seeded them
    """
    if not isinstance(tree, dict):
        return tree
    if not _is_place(tree):
        return {key: own_form(value, rank, mine) for key, value in tree.items()}
    own, told = tree.get(OWN, {}) if mine else {}, {key: value for key, value in tree.items() if key != OWN}
    for name in _STATES & tree.keys():
        states = tree[name]
        if "torch" in states:
            told[name] = {
                **states,
                "torch": own.get(name),
                "generators": [states["torch"], *states.get("generators", [])],
            }
            if name not in own:
                told[name] = {key: value for key, value in told[name].items() if key in ("torch", "generators")}
                told[name]["torch"] = torch.Generator().manual_seed(_seed(states["torch"], rank)).get_state()
    return told


_STATES = {"random", "before"}


def _is_place(tree: dict[Any, Any]) -> bool:
    return isinstance(tree.get("random"), dict) and "torch" in tree["random"] and "inside" in tree
