"""Random numbers of several processes.

Which samples are in a batch must be the same in all of them, as it is in one process; dropout, noise and augmentation
must not. So there are two streams. The common one is in a generator of its own, and takes the place of torch's own one
while the order of the data is drawn: a model that draws nothing gets the order that one process would give it. All else
is drawn from torch's, Python's and NumPy's own generators, which each process seeds in another way.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from framework import seed_everything


class Common:
    """The common stream; inside of a `with` it is torch's own, and may not be entered twice."""

    def __init__(self, state: Any = None) -> None:
        self.generator = torch.Generator()
        self.generator.set_state(torch.get_rng_state() if state is None else state)
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
    seed_everything(seed_of(state, rank))


def seed_of(state: Any, rank: int) -> int:
    """A seed of 64 bits for one process, of a state of the common stream."""
    digest = hashlib.sha256(state.numpy().tobytes() + rank.to_bytes(4, "little")).digest()
    return int.from_bytes(digest[:8], "little")
