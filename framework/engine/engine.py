"""Which way each part of a fit takes: chosen at its start, looked at again at each pass, and told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from framework.data import Whole
from framework.engine.graph import Graphs, refusal
from framework.engine.loader import InMemory, in_memory
from framework.engine.memory import LargeBlocks
from framework.engine.precision import FastMath
from framework.engine.prefetch import on_device, prefetched
from framework.engine.private import set_mode
from framework.engine.step import Step, eager, plain
from framework.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from framework.trainer import Trainer

LOADERS, FASTS = ("auto", "torch"), ("exact", "math", "plain")


class Engine:
    """The fast paths of one fit. Each gives the bits of the plain loop, or is asked for by name.

    Args:
        loader: "auto" takes batches from memory where that is the same; "torch" never does
        cache: keep the samples of every data set in memory, each of which is always the same
        graph: record a step as a CUDA graph also where only the user knows that it may be recorded
        fast: "exact"; "math" gives up the bits for speed; "plain" calls only what a loop written by hand calls

    Raises:
        UsageError: another value than these, or two that exclude each other
    """

    def __init__(self, loader: str = "auto", cache: bool = False, graph: bool = False, fast: str = "exact") -> None:
        for name, value, known in (("loader", loader, LOADERS), ("fast", fast, FASTS)):
            if value not in known:
                raise UsageError(f"{name}={value!r}: no such way.{did_you_mean(str(value), known)}")
        for name, flag in (("cache", cache), ("graph", graph)):
            if not isinstance(flag, bool):
                raise UsageError(f"{name} must be True or False, got {flag!r}")
        if cache and (loader == "torch" or fast == "plain"):
            other = "loader='torch'" if loader == "torch" else "fast='plain'"
            raise UsageError(f"cache=True keeps samples in memory, {other} asks for each anew: leave out one of them")
        if graph and fast != "exact":
            raise UsageError(f"graph=True records the exact step, not that of fast={fast!r}: leave out one of them")
        self.loader, self.cache, self.graph, self.fast = loader, cache, graph, fast
        self._sources: dict[str, tuple[Any, InMemory | str]] = {}
        self._undo, self._math = ExitStack(), None  # type: ExitStack, FastMath | None
        self._eager: tuple[Any, Any, Step] | None = None  # for this model and this optimizer
        self._graphs, self._refused = None, None  # type: Graphs | None, str | None
        self._blocks: LargeBlocks | None = None

    def start(self, trainer: Trainer) -> None:
        """Everything is on its device: choose, and switch on what stays on for the fit."""
        for split, loader in trainer.loaders.items():
            if type(loader) is not Whole:
                self._source(trainer, split, loader)
        if self.fast == "math":
            self._math = FastMath(trainer.prepared, trainer.optimizer, trainer.device, self._undo)
        if self.fast != "plain":
            self._blocks = LargeBlocks(trainer.device.type)
            self._undo.callback(self._blocks.close)

    def close(self) -> None:
        """The fit is over: whatever was switched on for it is switched off."""
        self._math = self._graphs = self._eager = None
        self.cache = False  # asked for the data sets of this fit, not for those that are evaluated after it
        self._sources = {split: (None, _why(source)) for split, (_, source) in self._sources.items()}  # data may go
        self._undo.close()

    def step(self, trainer: Trainer) -> Step:
        """The calls of a training step, for one pass over the data."""
        model, optimizer = trainer.prepared, trainer.optimizer
        if self._eager is None or self._eager[0] is not model or self._eager[1] is not optimizer:
            made = plain(trainer) if self.fast == "plain" else eager(trainer, self._math)
            self._eager, self._graphs = (model, optimizer, made), None
        if self.fast == "exact" and (self.graph or trainer.device.type == "cuda"):
            hooks = trainer.plugins.frozen("train")
            self._refused = refusal(
                model, trainer.loss, optimizer, trainer.device, hooks, trainer.accumulate, self.graph
            )
            if self._refused is None:
                self._graphs = self._graphs or Graphs(model, trainer.loss, optimizer, self._eager[2])
                return self._graphs.step()
        return self._eager[2]

    def looking(self, trainer: Trainer) -> Step:
        """The calls of a step that only looks."""
        return self._eager[2] if self._eager and self._eager[0] is trainer.prepared else plain(trainer, self._math)

    def set_mode(self, model: Any, training: bool) -> None:
        """`model.train()` or `model.eval()`."""
        if self.fast == "plain":
            model.train() if training else model.eval()
        else:
            set_mode(model, training)

    def batches(self, trainer: Trainer, split: str, loader: Any, pairs: bool) -> Iterator[Any]:
        """Each batch of a pass on the device, a list as a tuple: the usual batch is `(x, y)`.

        Raises:
            DataError: a batch that is no pair, with `pairs`
        """
        if type(loader) is Whole and type(loader.batch) is tuple and len(loader.batch) == 2:
            batches = iter((loader.batch,))  # on the device since it was made
        elif isinstance(source := self._source(trainer, split, loader), InMemory):
            batches = iter(source) if source.pairs else on_device(source, trainer.device, pairs)
        else:
            ahead = trainer.device.type == "cuda" and self.fast != "plain"
            batches = on_device(prefetched(loader, trainer.device) if ahead else loader, trainer.device, pairs)
        return self._blocks.watch(batches) if self._blocks and split == "train" else batches

    def draws_alone(self, split: str) -> bool:
        """Whether a pass over a split draws from torch's own generator and runs no code that could draw from others."""
        _, source = self._sources.get(split, (None, ""))
        return isinstance(source, InMemory) and source.usual is not None

    def _source(self, trainer: Trainer, split: str, loader: Any) -> InMemory | str:
        """The twin of a loader in memory, or why there is none."""
        known, source = self._sources.get(split, (None, ""))
        if known is not loader or source == "":
            asked = "loader='torch'" * (self.loader == "torch") or "fast='plain'" * (self.fast == "plain")
            source = asked or in_memory(loader, trainer.device, self.cache)
            if trainer.loaders.get(split) is loader:  # one of this fit's; others are not kept
                self._sources[split] = loader, source
        return source

    def told(self) -> dict[str, str]:
        """What was taken, and why not the faster way: under the name of a split, `step` and `math`."""
        told = {}
        for split, (_, source) in self._sources.items():
            why = _why(source)
            told[split] = f"by torch's DataLoader: {why}" if why else "from memory"
        if self._refused or self._graphs:
            recorded = self._graphs.why if self._graphs else ""
            told["step"] = f"no CUDA graph: {self._refused}" if self._refused else recorded
        if self._math:
            told["math"] = ", ".join(self._math.taken)
        return told


def _why(source: InMemory | str) -> str:
    """Why the batches of a source do not come from memory, or nothing."""
    return source if isinstance(source, str) else source.why
