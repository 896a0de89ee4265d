"""The learning rate range test: which rate to begin with."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from framework import PluginOption, Trainer, UsageError, assemble, command_of, kept_random_states, knobs, picture

RECENT, EXPLODED = 5, 4.0  # the mean of so many losses, when it is so many times the lowest mean


@dataclass(frozen=True)
class Found:
    """What a range test saw.

    Attributes:
        rates, losses: the rate of each step that was taken, and the training loss before that step
        suggestion: the rate to begin with, two digits of it; None where no rate lowers the loss
        reason: why, in words
    """

    rates: list[float]
    losses: list[float]
    suggestion: float | None
    reason: str


def find_lr(
    trainer: Trainer, train: Any, batch_size: int | None = None, shuffle: bool | None = None, *, start: float = 1e-7,
    end: float = 10.0, steps: int = 100, **options: Any,
) -> Found:  # fmt: skip
    """Train with a rate that rises by the same factor from step to step, and look where the loss falls fastest.

    The range test of Smith (Cyclical Learning Rates for Training Neural Networks, 2017) with the reading of fastai: the
    rate at the steepest descent of the smoothed loss. It ends early when the loss explodes or is inf or nan.

    Afterwards everything is as it was, also after an error or Ctrl-C: parameters, buffers, gradients, modes, optimizer,
    every random generator of the program, that of a DataLoader too, but not those that a data set or a plugin keeps for
    itself. What is trained is the model itself, which is put back, and no
    copy of it: a loss that adds a penalty on the model's weights would go on reading those of the original.

    Plugins that change a step take part: `forward`, `compute_loss`, `optimizer_step` and the like. Those that look or
    decide at the end of an epoch do not, among them schedules. With several parameter groups the rates are those of the
    first; the others keep their ratio to it.

    ::

        found = find_lr(trainer, train, batch_size=64)
        print(found.suggestion, found.reason)

    Args:
        train, batch_size, shuffle: as for `Trainer.fit`
        start, end: the first and the last rate
        steps: how many rates
        options: more of `Trainer.fit`, such as accumulate and num_workers

    Raises:
        UsageError: the rates do not rise, too few steps, or a lazy model that has seen no batch
    """
    if not 0 < start < end < math.inf:
        raise UsageError(f"the rates must rise from a positive start to a finite end, got start={start}, end={end}")
    if steps < 10:
        raise UsageError(f"steps={steps} are too few to see where the loss falls: at least 10")
    if any(map(is_lazy, trainer.model.parameters())):
        raise UsageError("the parameters of a lazy module are made by its first batch: call the model with one first")
    ramp = _Ramp([start * (end / start) ** (step / (steps - 1)) for step in range(steps)])
    plugins = trainer.plugins.of_a_step()
    if trainer.device.type == "cuda":
        torch.cuda.init()  # a generator that is there can be kept
    with kept_random_states(*_generators(train)), _put_back(trainer, plugins):
        own = Trainer(
            trainer.model, trainer.loss, trainer.optimizer, [*plugins, ramp], trainer.device, samples=trainer.count,
            on_nonfinite="continue",
        )  # fmt: skip
        data = copy.copy(train) if isinstance(train, DataLoader) else train  # workers that persist are the copy's
        own.fit(data, None, steps, batch_size, shuffle, **options)
    rates = ramp.rates[: len(ramp.losses)]
    return Found(rates, ramp.losses, *_verdict(rates, ramp.losses, ramp.ended))


class _Ramp:
    """Sets the rate of each step and notes its loss, until the rates are used up or the loss explodes."""

    def __init__(self, rates: Sequence[float], name: str = "lr_find") -> None:
        self.name, self.rates, self.losses = name, list(rates), list[float]()
        self.ended, self._loss, self._lowest = "", 0.0, math.inf

    def on_fit_start(self, trainer: Trainer) -> None:
        groups = [float(group["lr"]) for group in trainer.optimizer.param_groups]
        self._shares = [rate / groups[0] if groups[0] else 1.0 for rate in groups]

    def on_batch_start(self, trainer: Trainer) -> None:
        for group, share in zip(trainer.optimizer.param_groups, self._shares, strict=True):
            rate = self.rates[len(self.losses)] * share
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def on_batch_end(self, trainer: Trainer, loss: Tensor) -> None:
        self._loss += float(loss) * trainer.weight  # it waits for the device: the next rate depends on it
        if not trainer.boundary:
            return
        loss_of_step, self._loss = self._loss, 0.0
        if not math.isfinite(loss_of_step):
            self.ended = f"the loss is {loss_of_step} at {self.rates[len(self.losses)]:.2g}"
        else:
            self.losses.append(loss_of_step)
            recent = statistics.fmean(self.losses[-RECENT:])
            self._lowest = min(self._lowest, recent)
            if recent - self._lowest > (EXPLODED - 1) * abs(self._lowest):
                self.ended = f"the loss explodes at {self.rates[len(self.losses) - 1]:.2g}"
        if self.ended or len(self.losses) == len(self.rates):
            trainer.stop(self.ended or "every rate was tried")


# ------------------------------------------------------------------------------------------- as everything was


def _generators(train: Any) -> list[torch.Generator]:
    """Those that a pass over a DataLoader draws from, beside the global one."""
    batches = getattr(train, "batch_sampler", None)
    owners = train, getattr(train, "sampler", None), batches, getattr(batches, "sampler", None)
    found = (getattr(owner, "generator", None) for owner in owners)
    return [generator for generator in found if isinstance(generator, torch.Generator)]


@contextlib.contextmanager
def _put_back(trainer: Trainer, plugins: Sequence[Any]) -> Iterator[None]:
    """Whatever happens inside, the model, the loss, the optimizer and what plugins hold are as they were."""
    owned = [vars(one) for one in plugins if hasattr(one, "__dict__") and not isinstance(one, ModuleType)]
    parts = [trainer.model, trainer.loss, trainer.optimizer, *(value for held in owned for value in held.values())]
    optimizers = [part for part in parts if isinstance(part, Optimizer)]
    modules = {id(m): m for part in parts if isinstance(part, nn.Module) for m in part.modules()}.values()
    tensors = {id(tensor): tensor for tensor in _tensors(modules, optimizers)}
    values = [(tensor, tensor.detach().clone(), tensor.requires_grad) for tensor in tensors.values()]
    leaves = [tensor for tensor in tensors.values() if tensor.is_leaf]
    gradients = [(leaf, leaf.grad, leaf.grad.clone()) for leaf in leaves if leaf.grad is not None]
    # each dict and list of a module, such as that of its parameters, stays the same one: handles of hooks point at it
    held = {id(one): one for outer in (*map(vars, modules), *owned) for one in _containers(outer)}.values()
    contents = [(one, copy.copy(one)) for one in held]
    settings = [(one, list(one.param_groups), *_settings(one)) for one in optimizers]
    try:
        yield
    finally:
        for one, content in contents:
            one.clear()
            one.update(content) if isinstance(one, dict) else one.extend(content)
        for tensor, value, required in values:
            tensor.detach().copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(required)
        for leaf in leaves:
            leaf.grad = None
        for leaf, gradient, before in gradients:
            leaf.grad = gradient.copy_(before)
        for optimizer, groups, groups_then, state_then in settings:
            for group, then in zip(groups, groups_then, strict=True):
                group.clear()
                group.update(then)
            optimizer.param_groups[:] = groups
            optimizer.state.clear()
            optimizer.state.update(state_then)


def _tensors(modules: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))
    for optimizer in optimizers:
        yield from (parameter for group in optimizer.param_groups for parameter in group["params"])


def _containers(held: Any) -> Iterator[Any]:
    """A dict or a list, and those inside of it."""
    if isinstance(held, (dict, list)):
        yield held
        for value in held.values() if isinstance(held, dict) else held:
            yield from _containers(value)


def _settings(optimizer: Optimizer) -> tuple[list[dict[str, Any]], dict[Tensor, Any]]:
    """Copies of the settings of each group and of the state. load_state_dict would cast what differs in dtype."""
    groups = [{k: list(v) if k == "params" else copy.deepcopy(v) for k, v in g.items()} for g in optimizer.param_groups]
    return groups, {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}


# ---------------------------------------------------------------------------------------------------- verdict


def _smoothed(losses: Sequence[float]) -> list[float]:
    """A moving mean that is centered at each step, so that it does not lag behind the rate."""
    half, last = _half(losses), len(losses) - 1
    reach = [min(half, step, last - step) for step in range(len(losses))]
    return [statistics.fmean(losses[step - r : step + r + 1]) for step, r in enumerate(reach)]


def _half(losses: Sequence[float]) -> int:
    return max(1, len(losses) // 20)


def _verdict(rates: Sequence[float], losses: Sequence[float], ended: str) -> tuple[float | None, str]:
    """The rate to begin with, and why."""
    if not losses:
        return None, f"{ended}, before a step was taken: it is not the rate"
    half, tail = _half(losses), f"; {ended}" if ended else ""
    if len(losses) <= 4 * half:
        return None, f"only {len(losses)} steps could be taken{tail}: begin with a lower rate"
    smooth, whole = _smoothed(losses), range(half, len(losses) - half)  # the steps whose mean is of a whole window
    lowest = min(whole, key=smooth.__getitem__)
    begun = smooth[half]
    noise = statistics.pstdev(a - b for a, b in zip(losses[: lowest + 1], smooth, strict=False))
    if begun - smooth[lowest] <= max(1.5 * noise, 0.01 * abs(begun)):
        return None, f"no rate lowers the loss: it begins at {begun:.4g} and is never below {smooth[lowest]:.4g}{tail}"
    if lowest == whole[-1]:
        tail = tail or "; it still falls at the last rate: try a higher end"
    told = f"the loss is lowest at {rates[lowest]:.2g}, {smooth[lowest]:.4g} after {begun:.4g}{tail}"
    steepest = min(range(half, lowest), key=lambda step: smooth[step + half] - smooth[step - half])
    if steepest == half:  # it falls from the first rate on, so the steepest may lie before it
        return _rounded(rates[lowest] / 10), f"a tenth of where the loss is lowest, as it falls at once; {told}"
    return _rounded(rates[steepest]), f"where the loss falls fastest; {told}"


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")


# ------------------------------------------------------------------------------------------------------- verb


def lr_find(
    recipe: str, knob: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KNOB=VALUE ...]")] = (),
    start: float = 1e-7, end: float = 10.0, steps: int = 100, label: str = "", seed: int = 0, device: str = "auto",
    plugin: PluginOption = (), to: str = "",
) -> None:  # fmt: skip
    """Find a learning rate to begin with: the loss while the rate rises, a suggestion, a picture.

    Args:
        recipe: a recipe file, or the name of an installed one
        knob: settings of its knobs, such as hidden=20
        start: the first rate
        end: the last rate
        steps: how many rates
        label: which variant, of a recipe of several
        seed: set before the recipe builds anything
        device: auto (cuda, else mps, else cpu), or a device by name
        to: the folder of the picture; by default runs/RECIPE
    """
    made, trainer = assemble(recipe, label=label, seed=seed, device=device, plugins=plugin, **knobs(recipe, knob))
    options = {name: getattr(made, name) for name in ("drop_last", "accumulate", "num_workers", "fast")}
    with contextlib.redirect_stdout(io.StringIO()):  # a plugin may have something to say about a fit
        found = find_lr(
            trainer, made.train, made.batch_size, made.shuffle, start=start, end=end, steps=steps, **options
        )
    print(f"rates     {start:g} to {end:g}, of {steps} steps {len(found.losses)} taken")
    groups = len(trainer.optimizer.param_groups)
    if groups > 1:
        print(f"groups    the rate is that of the first of {groups} parameter groups; the others are in proportion")
    path = (Path(to) if to else Path("runs") / Path(recipe).stem) / "lr_find.svg"
    draw(found, path)
    print(f"suggest   {'no rate' if found.suggestion is None else f'{found.suggestion:g}'}: {found.reason}")
    print(f"drawn     {path}")
    if found.suggestion is not None and groups == 1:
        with contextlib.suppress(UsageError):  # the recipe has no such knob
            print(f"next      {command_of(recipe, [*knob, f'lr={found.suggestion:g}'])}")


def draw(found: Found, path: Path) -> None:
    """The losses over the rates, smoothed too, with the suggestion marked."""
    smooth = _smoothed(found.losses)
    with picture(path, 8, 4.2) as figure:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.plot(found.rates, found.losses, color="C0", linewidth=0.8, alpha=0.5, label="loss of a step")
        axes.plot(found.rates, smooth, color="C0", linewidth=2, label="smoothed")
        if found.suggestion is not None:
            axes.axvline(found.suggestion, color="C1", linestyle="--", label=f"suggestion {found.suggestion:g}")
            fall = smooth[0] - min(smooth)  # an explosion would make a flat line of it
            axes.set_ylim(min(found.losses) - 0.1 * fall, smooth[0] + 0.5 * fall)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
