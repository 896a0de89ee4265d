"""`fast="math"`: what is quicker and gives other bits, for the length of a fit. It is never on by itself."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn, optim

from framework.device import apply


class FastMath:
    """What is called in place of the model, and gives what that gives, in the same dtypes.

    Model and optimizer are on the device. The model stays the same module with the same names. When `undo` is closed,
    the flags of torch, the groups of the optimizer and the memory formats are as they were found, so that the next fit
    is exact again.

    Attributes:
        taken: in words, what is on, and why compiling is not; that is known after the first batch
    """

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer, device: torch.device, undo: ExitStack) -> None:
        self._model, self._device, self._compiled = model, device.type, None  # type: nn.Module, str, Any
        self.taken = [*_lay_out(model, optimizer, undo), *_fuse(model, optimizer, undo)]
        self.taken += switch_flags(undo) if device.type == "cuda" else []
        self._images, self._bfloat16 = "channels_last" in self.taken, _has_bfloat16(model, device)
        self.taken += ["bfloat16", "torch.compile"] if self._bfloat16 else ["torch.compile"]

    def __call__(self, inputs: Any) -> Any:
        if self._images:
            inputs = apply(lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, inputs)
        with torch.autocast(self._device, torch.bfloat16) if self._bfloat16 else nullcontext():
            output = self._run(inputs)
        return apply(lambda x: x.float() if x.dtype is torch.bfloat16 else x, output) if self._bfloat16 else output

    def _run(self, inputs: Any) -> Any:
        if self._compiled is self._model:
            return self._model(inputs)
        try:
            self._compiled = torch.compile(self._model) if self._compiled is None else self._compiled
            return self._compiled(inputs)
        except Exception as error:  # the compiler's, or one of the model's own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        output = self._model(inputs)  # one of the model's own leaves from here, as it would without a compiler
        self._compiled, self.taken[-1] = self._model, f"no torch.compile ({reason:.100})"
        return output


def _lay_out(model: nn.Module, optimizer: optim.Optimizer, undo: ExitStack) -> list[str]:
    """Weights of convolutions in channels_last, with what goes with them: a fused step needs all of it alike."""
    weights = [p for p in model.parameters() if p.dim() == 4 and p.is_contiguous() and p.stride(1) != 1]

    def lay_out(memory_format: torch.memory_format) -> None:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=memory_format)
            weight.grad = None if weight.grad is None else weight.grad.contiguous(memory_format=memory_format)
            for key, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor) and value.dim() == 4:
                    optimizer.state[weight][key] = value.contiguous(memory_format=memory_format)

    undo.callback(lay_out, torch.contiguous_format)
    lay_out(torch.channels_last)
    return ["channels_last"] if weights else []


def _fuse(model: nn.Module, optimizer: optim.Optimizer, undo: ExitStack) -> list[str]:
    """The steps of an optimizer as one kernel each, where torch has it, and where nobody has asked for another kind."""
    groups, sparse = optimizer.param_groups, any(getattr(module, "sparse", False) for module in model.modules())
    numbers = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    chosen = any(g.get(name) for g in groups for name in ("fused", "foreach", "capturable", "differentiable"))
    if type(optimizer) not in (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad) or sparse or chosen or not numbers:
        return []

    def fuse(groups: list[dict[str, Any]], fused: list[bool | None]) -> None:
        for group, value in zip(groups, fused, strict=False):  # a plugin may add a group
            group["fused"] = value

    def count(on_device: bool) -> None:
        for parameter, state in optimizer.state.items():
            if "step" in state:  # a fused step counts on the device, any other on the CPU
                state["step"] = state["step"].to(parameter.device if on_device else "cpu")

    was = [group.get("fused") for group in groups]
    # A checkpoint of this fit is one for any fit.
    undo.callback(optimizer.register_state_dict_post_hook(lambda _, state: fuse(state["param_groups"], was)).remove)
    undo.callback(count, False)
    undo.callback(lambda: fuse(optimizer.param_groups, was))
    fuse(groups, [True] * len(groups))
    count(True)
    return [f"fused {type(optimizer).__name__}"]


def switch_flags(undo: ExitStack) -> list[str]:
    """TF32 in matrix products (torch has it on for convolutions), and the quickest convolution of cudnn."""
    backends: Any = torch.backends
    for owner in (backends.cuda.matmul, backends.mkldnn.matmul):  # the call below leaves others than it found
        undo.callback(setattr, owner, "fp32_precision", owner.fp32_precision)
    undo.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    undo.callback(setattr, backends.cudnn, "benchmark", backends.cudnn.benchmark)
    torch.set_float32_matmul_precision("high")
    backends.cudnn.benchmark = True
    return ["TF32", "cudnn.benchmark"]


def _has_bfloat16(model: nn.Module, device: torch.device) -> bool:
    """Whether the device computes in it; a CPU without it emulates it, and is slower than in float32."""
    cpu = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16")
    cuda = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(cpu or cuda) and {p.dtype for p in model.parameters() if p.is_floating_point()} == {torch.float32}
