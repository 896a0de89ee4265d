"""Every hook of the loop. The docstrings are the manual; `python -m framework hooks` prints them.

A plugin is an object of a plain class, or a module. It implements a hook by having a method (in a module: a
function) of the hook's name, and gets, by name, only the arguments that it asks for::

    class WeightNorm:
        def on_epoch_end(self, trainer, epoch):
            ...

Three kinds:

* **tell**: all plugins are called, in the written order, and what they return is ignored;
* **make**: replaces the loop's own answer. At most one plugin may implement it for a split;
  `NotImplemented` declines this one time, `None` is an error;
* **wrap**: any hook, marked `@hookimpl(wrapper=True)`, yields exactly once around what is inside.
  The yield gives the inner answer; a wrap of a make returns it (changed or not).

*Hot* hooks are called for every batch: nothing in them may wait for the device (`.item()`, `print(loss)`), and
what they are given is borrowed until they return. This module knows torch only by name.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import pluggy

from framework.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from framework.trainer import Result, Trainer

PROJECT = "framework_trainer"
SPLITS = ("train", "val", "test", "predict")

Function = TypeVar("Function", bound=Callable[..., Any])
_spec = pluggy.HookspecMarker(PROJECT)


@overload
def hookimpl(function: Function, /) -> Function: ...
@overload
def hookimpl(*, wrapper: bool = False, split: str | None = None) -> Callable[[Function], Function]: ...
def hookimpl(
    function: Function | None = None, /, *, wrapper: bool = False, split: str | None = None, **refused: object
) -> Any:
    """Mark a function as a hook, where its name alone does not do.

    Args:
        wrapper: the function is a generator that yields exactly once, around the hook
        split: call it only for this split: "train", "val", "test" or "predict"

    Raises:
        PluginError: for tryfirst, trylast and old-style wrappers (plugins run in the order in which they are
            written, and there is no other rule), and for a split that does not exist
    """
    if refused:
        names = ", ".join(sorted(refused))
        rule = " Plugins run in the order in which they are listed, the first first" if "try" in names else ""
        raise PluginError(f"hookimpl has no {names}.{did_you_mean(names, ('split', 'wrapper'))}{rule}")
    if split is not None and split not in SPLITS:
        raise PluginError(f"hookimpl(split={split!r}): no such split.{did_you_mean(split, SPLITS)}")

    def mark(marked: Function) -> Function:
        inner = getattr(marked, "__func__", marked)  # that of a staticmethod or classmethod
        if not inspect.isfunction(inner):
            raise PluginError(f"hookimpl marks a function, got {type(marked).__name__}; it takes split= and wrapper=")
        setattr(inner, f"{PROJECT}_impl", {"wrapper": wrapper, "split": split})
        return marked

    return mark if function is None else mark(function)


@dataclass(frozen=True)
class Hook:
    """What is known of one hook: its name, its argument names in order, its kind, when it is called."""

    name: str
    arguments: tuple[str, ...]
    kind: str
    hot: bool
    isolated: bool
    when: str

    @property
    def make(self) -> bool:
        return "make" in self.kind

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(self.arguments)})"


def hook(kind: str, *, hot: bool = False, isolated: bool = False) -> Callable[[Function], Function]:
    """Declare a hook of the class below."""

    def declare(function: Function) -> Function:
        arguments = tuple(inspect.signature(function).parameters)[1:]
        when = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
        function.hook = Hook(function.__name__, arguments, kind, hot, isolated, when)  # type: ignore[attr-defined]
        return _spec(function, firstresult="make" in kind or kind == "wrap")

    return declare


class HookSpecs:
    """The hooks in the order of a fit."""

    @hook("wrap")
    def prepare_model(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        """Once a fit, before everything: change the model in place before `yield`, wrap what `yield` gives.

        The yield gives the model on its device; what the wrap returns is what `forward` gets.
        """

    @hook("make or wrap")
    def make_loader(
        self, trainer: Trainer, data: Any, split: str, batch_size: int | None, shuffle: bool, drop_last: bool
    ) -> Any:
        """Once a data set: an iterable of batches from what `fit` or `evaluate` was given."""

    @hook("tell")
    def on_fit_start(self, trainer: Trainer) -> None:
        """Everything is on its device and nothing has run: build and reset here."""

    @hook("tell")
    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Before an epoch; epochs count from 0."""

    @hook("tell")
    def on_split_start(self, trainer: Trainer, split: str) -> None:
        """Before a pass over a split, after `model.train()` or `model.eval()`."""

    @hook("tell", hot=True)
    def on_batch_start(self, trainer: Trainer, split: str, batch: Any) -> None:
        """The batch `(x, y)` is on the device. May lower `trainer.samples` (the rest is padding) and set `weight`."""

    @hook("make", hot=True)
    def forward(self, trainer: Trainer, model: nn.Module, split: str, batch: Any) -> Any:
        """Replaces `model(x)`; `model` is what prepare_model gave."""

    @hook("make", hot=True)
    def compute_loss(self, trainer: Trainer, split: str, output: Any, batch: Any) -> Tensor:
        """Replaces `loss(output, y)`; a 0-dim tensor."""

    @hook("make", hot=True)
    def backward(self, trainer: Trainer, loss: Tensor, output: Any, batch: Any) -> bool:
        """Replaces `loss.backward()`; answers True. `loss` is weighted by `trainer.weight`."""

    @hook("tell", hot=True)
    def on_gradients(self, trainer: Trainer) -> None:
        """The gradients of the window are complete and the optimizer has not stepped."""

    @hook("make", hot=True)
    def optimizer_step(self, trainer: Trainer, output: Any, batch: Any) -> bool:
        """Replaces `optimizer.step()`; answers True, or False if it left the parameters alone."""

    @hook("tell", hot=True)
    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, output: Any, loss: Tensor, samples: int) -> None:
        """After a batch; output and loss are detached and still on the device."""

    @hook("tell")
    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        """After a pass over a split: a plugin adds its figures to `metrics`."""

    @hook("tell")
    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Every figure of the epoch is there, read-only: look and decide."""

    @hook("tell")
    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint is complete on the disk, at `path`."""

    @hook("tell")
    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        """After the last epoch or an honoured stop; not after an exception."""

    @hook("tell", isolated=True)
    def on_exception(self, trainer: Trainer, exception: BaseException) -> None:
        """The fit failed. Every plugin is called, also one that never started or that raised."""

    @hook("tell", isolated=True)
    def on_teardown(self, trainer: Trainer) -> None:
        """Always, at the very end of a fit: close files, put back what was changed."""

    @hook("make")
    def reduce(self, trainer: Trainer, value: Tensor) -> Tensor:
        """The sum of `value` over processes; plugins call `trainer.sum(tensor)` before they divide."""

    @hook("make", hot=True)
    def agree(self, trainer: Trainer, stop: str | None, save: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
        """At a step boundary: the stop and the saves that all processes agreed on."""


HOOKS: dict[str, Hook] = {name: member.hook for name, member in vars(HookSpecs).items() if hasattr(member, "hook")}


def attributes(plugin: Any) -> dict[str, Any]:
    """Functions of a module or methods of an object by name, found without running a property."""
    if isinstance(plugin, types.ModuleType):
        return {n: f for n, f in vars(plugin).items() if inspect.isfunction(f) and (mark_of(f) or n.startswith("on_"))}
    names = dict.fromkeys((*dir(type(plugin)), *getattr(plugin, "__dict__", ())))
    kinds = (types.FunctionType, types.MethodType, staticmethod, classmethod)
    statics = {name: inspect.getattr_static(plugin, name, None) for name in names}
    return {
        name: getattr(plugin, name)
        for name, static in statics.items()
        if isinstance(static, kinds) and (not name.startswith("_") or mark_of(getattr(static, "__func__", static)))
    }


def mark_of(function: Any) -> dict[str, Any]:
    return getattr(function, f"{PROJECT}_impl", {})
