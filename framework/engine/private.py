"""Every private name of torch that speed needs. Each is looked for when it is used; without it the public way is taken.

What stands here gives the same bits as the public way beside it: tests/framework/engine/test_private.py compares them.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

Step = Callable[[torch.optim.Optimizer], Any]


def profiling() -> bool:
    """Whether a profiler listens, which would miss the ranges that a fast path leaves out."""
    return bool(getattr(torch.autograd.profiler, "_is_profiler_enabled", False))


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; -1 where torch does not tell (a tensor of inference mode)."""
    try:
        return tensor._version
    except (AttributeError, RuntimeError):
        return -1


def collates_plainly(collate: Any) -> bool:
    """Whether `collate` is torch's default_collate, and nobody has taught that to stack in another way."""
    return collate is default_collate and _collate_map() == _collate_plain


_collating = sys.modules.get(default_collate.__module__)


def _collate_map() -> list[Any]:
    known = getattr(_collating, "default_collate_fn_map", {})
    return [known.get(Tensor), known.get(int), known.get(float)]


_collate_plain = [  # as torch has them, whoever has changed them before this is imported
    getattr(_collating, f"collate_{name}_fn", "unknown") for name in ("tensor", "int", "float")
]


def calling(module: Any, inside: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`module(...)` without the two calls around its forward that are there for hooks, as long as there are none.

    Args:
        inside: what gives the same as its forward
    """
    everywhere: Any = sys.modules["torch.nn.modules.module"]
    kinds = "forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks"
    known = [getattr(everywhere, f"_global_{kind}", None) for kind in kinds]
    if type(module).__call__ is not nn.Module.__call__ or None in known:
        return module  # type: ignore[no-any-return]
    own, (all_after, all_before, all_back, all_back_before) = vars(module), known
    if any(f"_{kind}" not in own for kind in kinds):
        return module  # type: ignore[no-any-return]

    def call(*values: Any) -> Any:
        if (
            own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
            or all_after or all_before or all_back or all_back_before or "_compiled_call_impl" in own
        ):  # fmt: skip
            return module(*values)
        return inside(*values) if inside and "forward" not in own else module.forward(*values)

    return call


class _Defaults:
    """The settings of a loss that is a function."""

    reduction, weight, ignore_index, label_smoothing = "mean", None, -100, 0.0


def loss_of(loss: Any) -> Callable[[Any, Any], Any]:
    """`loss(output, target)`; mean squared error and cross entropy without what torch does around their kernels."""
    kernels, modes = getattr(torch._C, "_nn", None), _functions or (lambda: 1)
    numbers = {"none": 0, "mean": 1, "sum": 2}
    settings: Any = loss if isinstance(loss, nn.Module) else _Defaults
    usual = loss if settings is _Defaults else lambda *values: loss.forward(*values)

    def mean_squared_error(output: Any, target: Any) -> Any:
        how = numbers.get(settings.reduction)
        if how is not None and type(output) is type(target) is Tensor and output.shape == target.shape and not modes():
            return kernel(output, target, how)
        return usual(output, target)

    def cross_entropy(output: Any, target: Any) -> Any:
        how = numbers.get(settings.reduction)
        if how is not None and type(output) is type(target) is Tensor and not modes():
            return kernel(output, target, settings.weight, how, settings.ignore_index, settings.label_smoothing)
        return usual(output, target)

    for function, kind, name, mine in (
        (functional.mse_loss, nn.MSELoss, "mse_loss", mean_squared_error),
        (functional.cross_entropy, nn.CrossEntropyLoss, "cross_entropy_loss", cross_entropy),
    ):
        kernel: Any = getattr(kernels, name, None)
        if kernel and loss is function:
            return mine
        if kernel and type(loss) is kind:
            return calling(loss, mine)
    return calling(loss)


def backward() -> Callable[[Tensor], None]:
    """`loss.backward()`, for a plain number on the CPU without looking at its arguments anew each step.

    The gradient of the loss itself, a one, is made once, and anew only if somebody has changed it. On a device
    torch's own way is needed: it hands the context of this thread to those that run the backward pass there.
    """
    engine = getattr(torch.autograd.Variable, "_execution_engine", None)
    run: Any = getattr(engine, "run_backward", None)
    if run is None or Tensor.backward is not _BACKWARD:
        return lambda loss: loss.backward()
    ones = {dtype: torch.ones((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}

    def backward(loss: Tensor) -> None:
        one = ones.get(loss.dtype)
        if one is None or type(loss) is not Tensor or loss.dim() or not loss.is_cpu:
            loss.backward()
            return
        if one.item() != 1.0:  # its version does not tell of changes through .data or NumPy
            one = ones[loss.dtype] = torch.ones_like(one)
        run((loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)

    return backward


def bare_step(optimizer: torch.optim.Optimizer) -> Step | None:
    """The step of an optimizer of torch without the profiler's range around it; None for any other optimizer."""
    kind = type(optimizer)
    if getattr(torch.optim, kind.__name__, None) is not kind or optimizer.defaults.get("differentiable"):
        return None
    if not all(hasattr(owner, name) for owner, names in _looked_at(optimizer) for name in names):
        return None  # what is looked at in each step
    hooked: Any = kind.step
    ranged = getattr(hooked, "__wrapped__", None)  # under the range and the hooks
    bare: Step | None = getattr(ranged, "__wrapped__", None)  # under the switch that turns gradients off
    return bare if getattr(hooked, "hooked", False) and not hasattr(bare, "__wrapped__") else None


def _looked_at(optimizer: torch.optim.Optimizer) -> list[tuple[Any, tuple[str, ...]]]:
    everywhere = sys.modules.get("torch.optim.optimizer")
    return [
        (optimizer, ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")),
        (everywhere, ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")),
        (torch.autograd.profiler, ("_is_profiler_enabled",)),
        (torch._C, ("_set_grad_enabled",)),
    ]


@functools.cache
def foreach(name: str) -> Callable[..., Any]:
    """An operation in place on a list of tensors, one after another: torch's own, or the loop that it stands for."""

    def each(tensors: Any, *others: Any) -> None:
        value = {"lerp": "weight"}.get(name, "value" if name.startswith("addc") else "other")
        for index, tensor in enumerate(tensors):
            *lists, last = [other[index] if isinstance(other, (list, tuple)) else other for other in others]
            getattr(tensor, f"{name}_")(*lists, **{value: last})

    return getattr(torch, f"_foreach_{name}_", each)


def stepping(optimizer: torch.optim.Optimizer, step: Callable[[], Any]) -> Callable[[], None]:
    """`optimizer.step()` by way of `step`, which runs without gradients; as long as nothing has been put around it.

    Hooks, a profiler and a `step` of the instance are looked for each time: a plugin may bring them along in any step.
    A learning rate scheduler's own wrapper only marks that the optimizer has stepped, so it is marked here.
    """
    everywhere = sys.modules["torch.optim.optimizer"]
    own, before, after = (
        vars(optimizer),
        everywhere._global_optimizer_pre_hooks,
        everywhere._global_optimizer_post_hooks,
    )
    profiler, switch = torch.autograd.profiler, torch._C._set_grad_enabled

    def update() -> None:
        if (
            before or after or own["_optimizer_step_pre_hooks"] or own["_optimizer_step_post_hooks"]
            or profiler._is_profiler_enabled
        ):  # fmt: skip
            optimizer.step()
            return
        if "step" in own:
            if not _only_marks(optimizer):
                optimizer.step()
                return
            own["_opt_called"] = True
        enabled = torch.is_grad_enabled()
        try:
            switch(False)  # in here, since a Ctrl-C may come right after it
            step()
        finally:
            switch(enabled)

    return update


def _only_marks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step of the instance is that of its class in nothing but the mark of a learning rate scheduler.

    Whoever wraps a step with functools.wraps copies the mark too, so it is what lies under it that is looked at.
    """
    step = vars(optimizer)["step"]
    return hasattr(step, "_wrapped_by_lr_sched") and getattr(step, "__wrapped__", None) is type(optimizer).step


_BACKWARD, _ZERO_GRAD = Tensor.backward, torch.optim.Optimizer.zero_grad  # to notice whoever replaces them later


def clearing(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """`optimizer.zero_grad()` of an optimizer of torch, as long as nothing has been put around it."""
    own, profiler = vars(optimizer), torch.autograd.profiler
    if type(optimizer).zero_grad is not _ZERO_GRAD or not hasattr(profiler, "_is_profiler_enabled"):
        return lambda: optimizer.zero_grad()

    def clear() -> None:
        if "zero_grad" in own or profiler._is_profiler_enabled:
            optimizer.zero_grad()
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    return clear


def set_mode(model: nn.Module, training: bool) -> None:
    """`model.train()` or `model.eval()`, which for modules that are in that mode already does nothing."""
    if type(model).eval is nn.Module.eval and "eval" not in vars(model):
        _train(model, training)
    else:
        model.train() if training else model.eval()


def _train(module: nn.Module, mode: bool) -> None:
    """`module.train(mode)`, asked of each module that has a way of its own."""
    if type(module).train is not nn.Module.train or "train" in vars(module):
        module.train(mode)
        return
    if module.training is not mode:
        module.training = mode
    for child in module._modules.values():
        if child is not None:
            _train(child, mode)


def without_compiler() -> None:
    """Make and load optimizers without importing torch's compiler, which takes longer than many a training.

    Four methods of torch's Optimizer tell the compiler to leave them alone, and import it for that. Where it has not
    been imported nobody can be compiling, so they are called as they are; as soon as it has been, they are torch's own.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            setattr(method, "__dynamo_disable", _until_compiling(method))


def _until_compiling(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any, **named: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        if compiler is None:
            return method(*values, **named)
        disabled = compiler.disable(method, True, wrapping=False)
        setattr(method, "__dynamo_disable", disabled)
        return disabled(*values, **named)

    return call


def copy_over(targets: list[Tensor], sources: list[Tensor]) -> None:
    """The numbers of each source into its target, without a gradient."""
    with torch.no_grad():
        foreach("copy")(targets, sources)


_HELD = {
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks",
}  # fmt: skip


def held_by(model: nn.Module) -> list[Tensor] | None:
    """The tensors that `model.state_dict()` is made of, in its order; None where a module makes its own way."""
    held: list[Tensor] = []

    def visit(module: nn.Module) -> bool:
        kind, own = type(module), vars(module)
        if (
            not own.keys() >= _HELD
            or kind.state_dict is not nn.Module.state_dict or "state_dict" in own
            or kind._save_to_state_dict is not nn.Module._save_to_state_dict or "_save_to_state_dict" in own
            or kind.get_extra_state is not nn.Module.get_extra_state
            or own["_state_dict_hooks"] or own["_state_dict_pre_hooks"]
        ):  # fmt: skip
            return False
        held.extend(parameter for parameter in own["_parameters"].values() if parameter is not None)
        passing = own["_non_persistent_buffers_set"]
        held.extend(b for name, b in own["_buffers"].items() if b is not None and name not in passing)
        return all(visit(child) for child in own["_modules"].values() if child is not None)

    return held if visit(model) else None


def hooks_of_state_dict(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the state_dict of an optimizer is another one than torch's, or something has been put around it."""
    own, usual = vars(optimizer), type(optimizer).state_dict is torch.optim.Optimizer.state_dict
    kinds = "_optimizer_state_dict_pre_hooks", "_optimizer_state_dict_post_hooks"
    return not usual or "state_dict" in own or any(own.get(kind, True) for kind in kinds)


def hooked(module: nn.Module) -> bool:
    """Whether anything of the user's runs around this module or the gradients of its own parameters."""
    everywhere, own = sys.modules["torch.nn.modules.module"], vars(module)
    kinds = "forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks"
    of_tensors = "_backward_hooks", "_post_accumulate_grad_hooks"
    return (
        any(getattr(everywhere, f"_global_{kind}", None) or own.get(f"_{kind}") for kind in kinds)
        or any(getattr(held, kind, None) for held in module.parameters(recurse=False) for kind in of_tensors)
    )  # fmt: skip


def step_hooked(optimizer: torch.optim.Optimizer) -> bool:
    """Whether anything but a learning rate scheduler's mark has been put around the step of this optimizer."""
    everywhere, own = sys.modules["torch.optim.optimizer"], vars(optimizer)
    kinds = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"
    everyones = "_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"
    return (
        any(own.get(kind) for kind in kinds)
        or any(getattr(everywhere, kind, None) for kind in everyones)
        or ("step" in own and not _only_marks(optimizer))
    )


def abandon(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """After a capture that failed: without this, allocator and generator go on waiting for its end.

    The allocator would keep freed memory back, and the generator refuse to draw.
    """
    generator = torch.cuda.default_generators[device.index or 0]
    for tidy in (
        lambda: torch._C._cuda_endAllocateToPool(device.index or 0, pool),
        graph.reset,
        lambda: generator.graphsafe_set_state(generator.clone_state()),
    ):
        with contextlib.suppress(AttributeError, RuntimeError):  # it has ended already, or this torch tidies up itself
            tidy()


_functions = getattr(torch._C, "_len_torch_function_stack", None)
_dispatches = getattr(torch._C, "_len_torch_dispatch_stack", None)


def overridden() -> bool:
    """Whether something stands between torch and who calls it, such as torch.set_default_device or a FakeTensorMode."""
    return _functions is None or _dispatches is None or _functions() + _dispatches() > 0


def undisturbed() -> bool:
    """Nothing is on that the three of these look for: `overridden`, `profiling`, another `collates_plainly`."""
    return not overridden() and not profiling() and _collate_map() == _collate_plain
