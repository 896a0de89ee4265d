"""The processes that train together, as a checkpoint needs them: every step of a save is taken by all, or by none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from framework.errors import CheckpointError

Made = TypeVar("Made")


class Processes:
    """This process by itself. A plugin that lets several train together puts another one in its place.

    Attributes:
        rank: the number of this process, from 0; that of rank 0 commits a checkpoint
        size: how many there are
    """

    rank, size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """What each of them gives, in the order of their ranks. All of them call it at the same place."""
        return [value]

    def local(self, name: str, tree: Any) -> Any:
        """A tree of a snapshot as it is written: each tensor of which this process holds only a part is a Piece."""
        return tree

    def fail(self) -> None:
        """This one has an error that the others do not know of: they are not to be waited for."""


ALONE = Processes()


@dataclass(frozen=True)
class Piece:
    """What one process holds of a tensor that is cut along a dimension, in the order of ranks."""

    dimension: int
    tensor: Tensor


def together(processes: Processes, do: Callable[[], Made]) -> list[Made]:
    """What `do` gives in each process; what went wrong in one is raised in all of them."""
    made: tuple[Any, Exception | None] = None, None
    try:
        made = do(), None
    except (OSError, MemoryError, CheckpointError) as error:
        if processes.size > 1:
            error.add_note(f"rank {processes.rank}")
        made = None, error
    everyone = processes.gather(made)
    for rank, (_, failed) in enumerate(everyone):  # the same one in all, or they would go on in different ways
        if failed is not None:
            raise made[1] if rank == processes.rank and made[1] else failed
    return [value for value, _ in everyone]


def at_first(processes: Processes, do: Callable[[], Made]) -> Made:
    """What `do` gives in the process of rank 0, which alone does it; what goes wrong there is raised in all of them."""
    return together(processes, do if processes.rank == 0 else lambda: None)[0]  # type: ignore[return-value]
