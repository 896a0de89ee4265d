"""Parts of a model that are not trained, or not yet."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from framework import Trainer, UsageError, hookimpl


class Freeze:
    """Keeps parts of the model as they are: for the whole fit, or until an epoch begins.

    Parts are modules or parameters, by their names in `model.named_modules()` and `model.named_parameters()`; a `*`
    stands for anything, dots too::

        Freeze(["backbone"])                                            # fine-tune what comes after it
        Freeze(["backbone"], until_epoch=5)                             # and the whole from the sixth epoch on
        Freeze(["layer1*", "conv1", "bn1"], until_epoch=10, name="early"), Freeze(["layer2*"], until_epoch=5)

    What is frozen gets no gradient, so that neither momentum nor weight decay of the optimizer moves it; give the
    optimizer all parameters as ever. Frozen modules are in eval mode during training: the running statistics of batch
    normalization stand still, and nothing is dropped out. What had `requires_grad=False` before the fit keeps it, and
    at the end of the fit every parameter has again what it had.

    Args:
        modules: names of modules or parameters, or patterns of them
        until_epoch: the first epoch in which they are trained; None never. Epochs count from 0

    Raises:
        UsageError: a name that is none of the model's, with similar ones; nothing is left to train; two instances that
            freeze the same parameter
    """

    def __init__(self, modules: Sequence[str] | str = (), until_epoch: int | None = None, name: str = "freeze") -> None:
        self.name = name
        self.modules: list[str] = [modules] if isinstance(modules, (str, nn.Module)) else list(modules)
        self.until_epoch = until_epoch
        if not self.modules:
            raise UsageError(f"{name}: say what is to be frozen, by name: Freeze(['backbone'])")
        for given in self.modules:
            if not isinstance(given, str):
                told = f"such as Freeze(['backbone']), got {given!r:.60}"
                raise UsageError(f"{name}: modules are given by their names, {told}")
        if until_epoch is not None and (type(until_epoch) is not int or until_epoch < 1):
            raise UsageError(f"{name}: until_epoch must be an epoch, a whole number from 1 up, got {until_epoch!r}")
        self._model: nn.Module | None = None  # some of whose parameters are frozen
        self._names: list[str] = []  # of those, without what was frozen before the fit
        self._modules: list[nn.Module] = []  # in eval mode

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Iterator[None]:
        self._thaw()
        found = _found(trainer.model, self.modules, self.name)
        for other, plugin in trainer.plugins.items():
            if not isinstance(plugin, Freeze):
                continue
            frozen = {id(parameter) for parameter in plugin._frozen()}  # one that is tied has several names
            if both := [name for name, parameter in found.items() if id(parameter) in frozen]:
                raise UsageError(f"{other} and {self.name} both freeze {min(both)}: name it in one of them")
        self._model = trainer.model
        self._names = [name for name, parameter in found.items() if parameter.requires_grad]
        named = trainer.model.named_modules()
        self._modules = [m for name, m in named if any(fnmatchcase(name, pattern) for pattern in self.modules)]
        for parameter in self._frozen():
            parameter.requires_grad = False  # a lazy one has the attribute, and not requires_grad_()
            parameter.grad = None  # one that is left over would move it
        return (yield)

    def on_fit_start(self, trainer: Trainer) -> None:
        self.on_epoch_start(trainer.epoch)  # resumed in an epoch that has begun
        members = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        if not any(parameter.requires_grad for parameter in members):
            raise UsageError(f"{self.name}: nothing is left to train in epoch {trainer.epoch}: all of it is frozen")

    def on_epoch_start(self, epoch: int) -> None:
        if self.until_epoch is not None and epoch >= self.until_epoch:
            self._thaw()

    @hookimpl(split="train")
    def on_split_start(self) -> None:
        for module in self._modules:
            module.eval()

    def on_teardown(self) -> None:
        self._thaw()

    def _frozen(self) -> list[nn.Parameter]:
        """As they are now: where they are sharded, others have taken the place of those that were frozen."""
        parameters = {} if self._model is None else dict(self._model.named_parameters(remove_duplicate=False))
        return [parameters[name] for name in self._names]

    def _thaw(self) -> None:
        for parameter in self._frozen():
            parameter.requires_grad = True
        self._model, self._names, self._modules = None, [], []


def _found(model: nn.Module, patterns: Sequence[str], plugin: str) -> dict[str, nn.Parameter]:
    """The parameters that the patterns name, by their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))  # one that is tied has several names
    known = [*filter(None, dict(model.named_modules())), *parameters]
    found = {}
    for pattern in patterns:
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            near = difflib.get_close_matches(pattern, known)
            there = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"It has {', '.join(known[:8])}, ..."
            raise UsageError(f"{plugin}: the model has no {pattern!r}. {there}")
        for name, parameter in parameters.items():
            if any(name == part or name.startswith(f"{part}.") for part in names):
                found[name] = parameter
    return found
