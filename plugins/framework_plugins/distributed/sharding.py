"""A model whose weights, gradients and optimizer state are cut over the processes, by torch's FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from framework import Piece, Snapshot, apply


def shard(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> nn.Module:
    """Cut a model in place: each element of a Sequential or a ModuleList that has parameters, and the rest as a whole.

    The optimizer goes on with the new parameters.
    """
    if isinstance(model, FSDPModule):  # by a fit before this one
        return model
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, 0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    before = dict(model.named_parameters(remove_duplicate=False))
    units = [part for each in model.modules() if isinstance(each, (nn.Sequential, nn.ModuleList)) for part in each]
    for unit in reversed([unit for unit in units if unit is not model and any(True for _ in unit.parameters())]):
        if not isinstance(unit, (FSDPModule, nn.ModuleList)):
            fully_shard(unit, mesh=mesh)  # inner ones first
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # else the parameters are whole after an evaluation
    now = dict(model.named_parameters(remove_duplicate=False))
    cut = {id(parameter): now[name] for name, parameter in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [cut.get(id(parameter), parameter) for parameter in group["params"]]
    for parameter in [parameter for parameter in optimizer.state if id(parameter) in cut]:
        held = optimizer.state.pop(parameter)
        optimizer.state[cut[id(parameter)]] = apply(like(cut[id(parameter)]), held)
    return model


def like(held: Any) -> Callable[[Tensor], Tensor]:
    """Cuts a whole tensor as `held` is cut, where it is of the same shape."""

    def cut(whole: Tensor) -> Tensor:
        if not isinstance(held, DTensor) or isinstance(whole, DTensor) or whole.shape != held.shape:
            return whole
        there = whole.to(held.to_local().device)
        return distribute_tensor(there, held.device_mesh, held.placements, src_data_rank=None)

    return cut


def piece(tensor: Tensor) -> Any:
    """What this process holds of a tensor."""
    if not isinstance(tensor, DTensor):
        return tensor
    here, placement = tensor.to_local(), tensor.placements[0]
    return Piece(placement.dim, here) if isinstance(placement, Shard) else here


def cut_snapshot(snapshot: Snapshot, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Cut what was read from a checkpoint as the live model and optimizer are cut."""
    live = model.state_dict()
    snapshot.model = {name: like(live.get(name))(value) for name, value in snapshot.model.items()}
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = snapshot.optimizer.get("state", {})
    cut = {index: apply(like(members[index]), held) for index, held in state.items()}
    snapshot.optimizer = {**snapshot.optimizer, "state": cut}

    def of_plugins(tree: Any) -> Any:
        """Averages and copies of weights stand under the names of the weights."""
        if isinstance(tree, dict):
            same = tree.copy()
            same.update({k: like(live.get(k))(v) if isinstance(v, Tensor) else of_plugins(v) for k, v in tree.items()})
            return same
        return type(tree)(map(of_plugins, tree)) if type(tree) in (list, tuple) else tree

    snapshot.plugins = of_plugins(snapshot.plugins)
