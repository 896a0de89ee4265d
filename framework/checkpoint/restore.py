"""From a checkpoint back into the live objects: compared first, then loaded all or nothing."""

from __future__ import annotations

from torch import Tensor, nn

from framework.checkpoint.snapshot import Snapshot
from framework.errors import CheckpointError


def restore_model(snapshot: Snapshot, model: nn.Module) -> None:
    """Put the weights of a snapshot into a model; nothing is changed if they do not fit.

    Raises:
        CheckpointError: with the first differences of names and shapes
    """
    live = model.state_dict()
    differences = [f"{name} is missing in the checkpoint" for name in live if name not in snapshot.model]
    differences += [f"{name} is not in the model" for name in snapshot.model if name not in live]
    differences += [
        f"{name}: checkpoint {tuple(held.shape)}, model {tuple(live[name].shape)}"
        for name, held in snapshot.model.items()
        if isinstance(held, Tensor) and isinstance(live.get(name), Tensor) and held.shape != live[name].shape
    ]
    if differences:
        raise CheckpointError("the checkpoint is of another model: " + "; ".join(differences[:5]))
    model.load_state_dict(snapshot.model)
