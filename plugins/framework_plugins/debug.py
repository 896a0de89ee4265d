"""Which plugin changes what is not its own."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from framework import PluginError, Trainer, hookimpl


class Debug:
    """Looks before and after every hook of every other plugin, and names the one that leaves something changed.

    What a plugin leaves as it finds it: whether gradients are enabled; the train or eval mode of the layers, which it
    may choose in prepare_model and on_split_start; the global random generators, from which it may draw where it
    replaces or wraps a part of the loop, and which it may put back in on_teardown; the default dtype and the
    deterministic settings, which it may choose in prepare_model and put back in on_teardown; the batch, the output and
    the loss that it is shown. A wrap is looked at as a whole.

    It begins when the first prepare_model is over. Looking takes longer than most plugins do: it is there to find a
    fault, not for a long run.

    Raises:
        PluginError: names plugin and hook, what was left changed, and what would be right
    """

    def __init__(self, name: str = "debug") -> None:
        self.name = name
        self._looked_at: WeakSet[Trainer] = WeakSet()

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Iterator[None]:
        if trainer not in self._looked_at:
            self._looked_at.add(trainer)
            trainer.plugins.around(lambda impl, function: self._between_looks(trainer, impl, function))
        return (yield)

    def _between_looks(self, trainer: Trainer, impl: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def look(values: tuple[Any, ...]) -> dict[tuple[Rule, str], Any]:
            shown = dict(zip(impl.arguments, values, strict=True))
            found, here = _found(trainer.model, shown), {impl.hook.name, impl.hook.kind}
            return {(rule, what): value for rule, what, value in found if not here & rule.free}

        def compare(before: Mapping[tuple[Rule, str], Any], after: Mapping[tuple[Rule, str], Any]) -> None:
            for (rule, what), was in before.items():
                if (now := after.get((rule, what), was)) != was:
                    done = rule.done.format(what=what, was=was, now=now)
                    raise PluginError(f"{impl.place} {done} (epoch {trainer.epoch}, step {trainer.step}): {rule.right}")

        def call(*values: Any) -> Any:
            before = look(values)
            answer = function(*values)
            compare(before, look(values))
            return answer

        def wrap(*values: Any) -> Any:
            before = look(values)
            answer = yield from function(*values)
            compare(before, look(values))
            return answer

        return wrap if impl.wrapper else call


class Rule(NamedTuple):
    """What a plugin did that left something changed, what would be right, and the hooks and kinds that may do it."""

    done: str
    right: str
    free: frozenset[str] = frozenset()


OF_THE_LOOP = frozenset({"make", "make or wrap", "wrap"})
GRADIENTS = Rule("left {what} {now}", "`with torch.no_grad():` puts back what it changes")
MODE = Rule(
    "left {what} in {now} mode", "put the mode back, or choose it in on_split_start",
    frozenset({"prepare_model", "on_split_start", "on_teardown"}),
)  # fmt: skip
GENERATOR = Rule(
    "drew from {what} random generator", "draw from one of its own, such as a torch.Generator",
    OF_THE_LOOP | {"on_teardown"},  # where one that it has set is put back
)  # fmt: skip
SETTING = Rule(
    "changed {what} from {was} to {now}", "put it back, or change it in prepare_model until on_teardown",
    frozenset({"prepare_model", "on_teardown"}),
)  # fmt: skip
SHOWN = Rule("changed the {what} in place", "change a clone; the loop and other plugins use this one", OF_THE_LOOP)


def _found(model: nn.Module, shown: Mapping[str, Any]) -> Iterator[tuple[Rule, str, Any]]:
    """Everything that is looked at, as it is now: its rule, its name and its value."""
    yield GRADIENTS, "gradients", "enabled" if torch.is_grad_enabled() else "disabled"
    for name, layer in model.named_modules():
        yield MODE, f"layer {name}" if name else "the model", "train" if layer.training else "eval"
    yield GENERATOR, "Python's", random.getstate()
    yield GENERATOR, "torch's", torch.get_rng_state().tolist()
    if numpy := sys.modules.get("numpy.random"):
        _, numbers, *rest = numpy.get_state()
        yield GENERATOR, "NumPy's", (numbers.tolist(), rest)
    if torch.cuda.is_initialized():
        yield GENERATOR, "torch's CUDA", [state.tolist() for state in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        yield GENERATOR, "torch's MPS", torch.mps.get_rng_state().tolist()
    yield SETTING, "the default dtype", torch.get_default_dtype()
    yield SETTING, "torch.use_deterministic_algorithms", torch.are_deterministic_algorithms_enabled()
    yield SETTING, "torch.backends.cudnn.deterministic", torch.backends.cudnn.deterministic
    yield SETTING, "torch.backends.cudnn.benchmark", torch.backends.cudnn.benchmark
    for name in ("batch", "output", "loss"):
        yield SHOWN, name, [_checksum(tensor) for tensor in _leaves(shown.get(name))]


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (Mapping, list, tuple)):
        for part in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _leaves(part)


def _checksum(tensor: Tensor) -> tuple[torch.Size, str]:
    numbers = tensor.cpu().to_dense().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
    return tensor.shape, hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
