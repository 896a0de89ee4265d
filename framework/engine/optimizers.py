"""The steps of SGD, Adam and AdamW, operation for operation as torch takes them, without the work around them.

For a small model that work is most of a step. That the bits are torch's is not taken on trust, since the next version
of torch may order its operations in another way: the second and the third step of a fit are taken both ways.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor

from framework.engine.private import Step, foreach
from framework.engine.samples import same_bits

LARGEST = 2**20  # numbers; above it the work around the operations is nothing, and trying both ways costs memory
TRIALS = 2
Taken = Iterable[tuple[Tensor, Tensor, dict[str, Any]]]  # parameter, gradient, and what the optimizer keeps of it
_WIDE = torch.float32, torch.float64  # those in which torch does not compute more exactly than it stores


def _sgd(taken: Taken, group: dict[str, Any]) -> None:
    rate, momentum, decay = -group["lr"], group["momentum"], group["weight_decay"]
    for parameter, gradient, state in taken:
        if decay:
            gradient = gradient.add(parameter, alpha=decay)
        if momentum:
            buffer = state["momentum_buffer"].mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
            gradient = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        parameter.add_(gradient, alpha=rate)


def _adam(taken: Taken, group: dict[str, Any]) -> None:
    rate, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
    parameters, gradients, states = zip(*taken, strict=True)
    kind = parameters[0].dtype
    counts = [state["step"] for state in states]
    means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
    foreach("add")(counts, [_number(1.0, counts[0].dtype)] * len(counts))
    if decay and group["decoupled_weight_decay"]:
        foreach("mul")(parameters, _number(1 - rate * decay, kind))
    elif decay:
        gradients = tuple(g.add(p, alpha=decay) for g, p in zip(gradients, parameters, strict=True))
    foreach("lerp")(means, gradients, 1 - beta1)
    foreach("mul")(squares, _number(beta2, kind))
    foreach("addcmul")(squares, gradients, gradients, 1 - beta2)
    steps = [count.item() for count in counts]
    roots = [square.sqrt() for square in squares]
    if len({*steps}) == 1:
        foreach("div")(roots, torch.tensor((1 - beta2 ** steps[0]) ** 0.5, dtype=kind, device="cpu"))
    else:
        foreach("div")(roots, [(1 - beta2**step) ** 0.5 for step in steps])
    foreach("add")(roots, [_number(group["eps"], kind)] * len(roots))
    foreach("addcdiv")(parameters, means, roots, [-(rate / (1 - beta1**step)) for step in steps])


@functools.lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as each operation would wrap and convert it anew."""
    return torch.tensor(value, dtype=dtype, device="cpu")


_RULES = {torch.optim.SGD: _sgd, torch.optim.Adam: _adam, torch.optim.AdamW: _adam}


def flat(optimizer: torch.optim.Optimizer, bare: Step) -> Callable[[], Any]:
    """The step of `optimizer`, the short way where there is one; `bare` is torch's own.

    It is torch's own as long as a parameter has no state yet, for another kind of optimizer, for switches that are set,
    for tensors that are not plain numbers on the CPU, and for good as soon as the short way has given other bits.
    """
    rule: Any = _RULES.get(type(optimizer))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    plain = all(map(_plain, parameters))  # asked first: parameters that are not there yet have no size
    if rule is None or not plain or sum(map(torch.numel, parameters)) > LARGEST:
        return functools.partial(bare, optimizer)
    trials, members = TRIALS, [list(group["params"]) for group in optimizer.param_groups]

    def step() -> None:
        nonlocal trials
        found: list[tuple[Any, dict[str, Any]]] = []
        for index, group in enumerate(optimizer.param_groups if trials >= 0 else ()):
            taken = _taken(optimizer, group, members[index] if index < len(members) else [])
            if taken is None:
                found = []
                break
            if taken:
                found.append((taken, group))
        if not found:
            bare(optimizer)
        elif not trials:
            for taken, group in found:
                rule(taken, group)
        else:
            copies = [([(p.clone(), g.clone(), _copied(s)) for p, g, s in taken], group) for taken, group in found]
            for copied, group in copies:
                rule(copied, group)
            bare(optimizer)
            same = all(_same(copied, taken) for (copied, _), (taken, _) in zip(copies, found, strict=True))
            trials = trials - 1 if same else -1

    return step


def _taken(optimizer: torch.optim.Optimizer, group: dict[str, Any], members: list[Tensor]) -> list[Any] | None:
    """What a step of a group works on; None where it is one for torch itself."""
    switches = (
        group["foreach"] or group["fused"] or group["maximize"] or group.get("amsgrad") or group.get("capturable")
    )
    if switches or type(group["lr"]) is not float:
        return None
    if len(members) != len(group["params"]) or not all(map(is_, members, group["params"])):
        return None  # others than those that were found to be plain
    needed = "step" if "betas" in group else "momentum_buffer"
    keeps = needed == "step" or group["momentum"]  # reading the state of SGD without momentum would create one
    taken: list[Any] = []
    kind = members[0].dtype if members else None
    if kind not in _WIDE:
        return None
    for parameter in group["params"]:
        gradient = parameter.grad
        if gradient is not None:
            state = optimizer.state[parameter] if keeps else {}
            if (keeps and state.get(needed) is None) or gradient.is_sparse or parameter.dtype is not kind:
                return None
            taken.append((parameter, gradient, state))
    return taken


def _plain(parameter: Tensor) -> bool:
    kinds = (torch.nn.Parameter, Tensor)
    return type(parameter) in kinds and parameter.device.type == "cpu" and parameter.dtype in _WIDE


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() for key, value in state.items()}


def _same(ours: Taken, torchs: Taken) -> bool:
    """Whether parameters and states have the same bits."""
    return all(
        same_bits(mine, parameter) and all(same_bits(kept[key], state[key]) for key in state)
        for (mine, _, kept), (parameter, _, state) in zip(ours, torchs, strict=True)
    )
