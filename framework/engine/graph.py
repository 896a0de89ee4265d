"""A whole training step as a CUDA graph, which the loop takes for a Step like any other.

A graph is a recording: the same kernels, in the same order, on the same memory, started by one call. So it gives the
bits of the step that was recorded, as long as what it took for granted still holds. That is looked at in every step,
and the first replay of each graph is compared, bit for bit, with the plain step of the same batch.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from framework.device import apply, leaves
from framework.engine import private
from framework.engine.samples import same_bits
from framework.engine.step import Step
from framework.seed import kept_random_states

WARM_UP = 3  # plain steps of a signature before its graph: kernels are loaded and chosen, an optimizer makes its state
FEW = 4  # graphs, which live side by side with all that they keep; and changes, after which a fit goes on without them
HOOKS = "on_batch_start", "forward", "compute_loss", "backward", "on_gradients", "optimizer_step"
KINDS = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
UNFIT = "fused", "amsgrad", "capturable", "differentiable"

Made = tuple[Any, Tensor, list[Tensor | None]]  # output, loss and gradients of a step


class Recorder:
    """Records one graph and runs it again, with a stream and a pool of memory of its own.

    Graphs of one stream share the workspace of cuBLAS, and one that is freed takes it from the others
    (pytorch#193402): keep each recorder until the last of them has run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """On the stream of the graph: what recording needs there (handles, workspaces) is made by what runs in here."""
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            here.wait_stream(self.stream)

    def record(self, function: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        """What runs the kernels of `function` again, and where it leaves its results; nothing is computed yet."""
        # torch.cuda.graph leaves its stream current where it fails; threads of a DataLoader may go on pinning
        with torch.cuda.device(self.device), torch.cuda.stream(torch.cuda.current_stream(self.device)):
            try:
                with torch.cuda.graph(self.graph, self.pool, self.stream, capture_error_mode="thread_local"):
                    made = function()
            except BaseException:
                private.abandon(self.graph, self.device, self.pool)
                raise
        return self.graph.replay, made


class Graphs:
    """The graphs of one fit, one for each signature (shapes, dtypes, strides) of a batch. Ask for `step()` each pass.

    The loop must not hold an output of a step with its gradients when the next one begins: what autograd keeps for it
    is bound to the stream it came from. For the same reason the losses that it gets have none.

    Args:
        plain: the step that a graph records, and that is taken where there is none
        record: makes what records one graph

    Attributes:
        why: what was taken, or why not
    """

    def __init__(
        self, model: nn.Module, loss: Callable[..., Any], optimizer: torch.optim.Optimizer, plain: Step,
        record: Callable[[torch.device], Recorder] = Recorder,
    ) -> None:  # fmt: skip
        self.why = "no shape of a batch has come often enough to be recorded"
        self._roots = [root for root in (model, loss) if isinstance(root, nn.Module)]
        self._optimizer, self._plain, self._recorder = optimizer, plain, record
        # Adam's bias corrections are doubles of Python, which a graph would freeze: only SGD's step is recorded.
        self._whole, self._on, self._changes = type(optimizer) is torch.optim.SGD, True, 0
        self._seen: Counter[Any] = Counter()
        self._recorded: dict[Any, tuple[tuple[Tensor, ...], Callable[[], None], Made]] = {}
        self._kept: list[Recorder] = []
        self._taken: tuple[list[Any], list[Any]] | None = None
        self._done: Tensor | None = None  # the loss of the batch in hand, where all of its step is done
        self._live: Any = None  # or with its gradients, where it is not

    def step(self) -> Step:
        """The step for one pass over the data."""
        self._modules = [module for root in self._roots for module in root.modules()]
        self._params = [held for group in self._optimizer.param_groups for held in group["params"]]
        owned = (chain(root.parameters(), root.buffers()) for root in self._roots)
        self._tensors = list({id(held): held for held in chain(*owned, self._params)}.values())
        return Step(lambda: None, self._forward, self._loss, self._backward, self._update)

    def _forward(self, batch: Any) -> Any:
        key, made, self._left = self._signature(batch), None, False
        if key in self._recorded:
            static, replay, made = self._recorded[key]
            for mine, part in zip(static, batch, strict=True):
                mine.copy_(part)
            replay()
            self._left = not self._whole
        elif key is not None:
            self._seen[key] += 1
            if self._seen[key] > WARM_UP and len(self._recorded) < FEW:
                made = self._prove(key, batch)
        if made is None:
            self._done, self._left = None, True
            self._plain.clear()
            return self._plain.forward(batch)
        output, self._done, grads = made
        for held, grad in zip(self._params, grads, strict=True):
            if held.grad is not grad:
                held.grad = grad
        return output

    def _loss(self, output: Any, batch: Any) -> Any:
        if self._done is not None:
            return self._done.clone()  # the loop reads it when others have been written over it
        self._live = self._plain.loss(output, batch)
        return self._live.detach() if isinstance(self._live, Tensor) else self._live

    def _backward(self, loss: Tensor) -> None:
        if self._done is None:
            live, self._live = self._live, None
            self._plain.backward(live)

    def _update(self) -> None:
        if self._left:
            self._plain.update()

    def _signature(self, batch: Any) -> Any:
        """What the graph of a batch is found by; None where the plain step is to be taken."""
        if self._taken is not None and not self._holds():  # recorded anew, without what is the likely cause
            self._taken, self._whole, self._changes = None, False, self._changes + 1
            self.step()
            self._seen.clear()
            self._recorded.clear()
            if self._changes > FEW:
                self._give_up("the model, its optimizer or their settings change again and again")
        # kernels are chosen by alignment too, and the memory of a graph has that of a tensor that was just made
        fit = self._on and type(batch) is tuple and len(batch) == 2 and all(
            type(part) is Tensor and not part.requires_grad and part.data_ptr() % 64 == 0 for part in batch
        )  # fmt: skip
        return tuple((part.shape, part.dtype, part.stride(), part.device) for part in batch) if fit else None

    def _look(self) -> tuple[list[Any], list[Any]]:
        """What a graph takes for granted: objects that must stay the same, and values that must stay equal."""
        groups = self._optimizer.param_groups
        objects = [*self._tensors, *chain.from_iterable(map(dict.values, map(vars, self._modules)))]
        objects += chain.from_iterable(group["params"] for group in groups)
        values = [*map(Tensor.data_ptr, self._tensors), *map(attrgetter("requires_grad"), self._tensors)]
        if self._whole:
            objects += chain.from_iterable(map(dict.values, self._optimizer.state.values()))
            values += chain.from_iterable(map(dict.values, groups))
            values.append(vars(self._optimizer).get("step"))  # a scheduler wants to see the optimizer step
        return objects, values

    def _holds(self) -> bool:
        taken, (objects, values) = self._taken, self._look()
        return taken is not None and _are(objects, taken[0]) and values == taken[1]

    def _give_up(self, why: str) -> None:
        self._on, self._taken, self.why = False, None, why
        self._recorded.clear()

    def _run(self, batch: Any, update: bool) -> Made:
        self._plain.clear()
        output = self._plain.forward(batch)
        loss = self._plain.loss(output, batch)
        self._plain.backward(loss)
        if update:
            self._plain.update()
        return apply(Tensor.detach, output), loss.detach(), [held.grad for held in self._params]

    def _state(self) -> list[Tensor]:
        """Every tensor that a step may write to."""
        owners = chain(map(vars, self._modules), self._optimizer.state.values())
        return [*self._tensors, *(value for owner in owners for value in owner.values() if isinstance(value, Tensor))]

    def _prove(self, key: Any, batch: tuple[Tensor, ...]) -> Made | None:
        """Take the plain step; then record it, replay it from where the plain one began, and compare.

        Whatever happens, what is left is what the plain step left. None: it has not been taken.
        """
        state, device, begun = self._state(), batch[0].device, contextlib.ExitStack()
        before, after = list[Tensor](), list[Tensor]()
        try:
            recorder, static = self._recorder(device), tuple(part.clone() for part in batch)
            self._kept.append(recorder)
            versions, before = [private.version(part) for part in batch], [held.detach().clone() for held in state]
            self._taken = self._taken or self._look()
            begun.enter_context(kept_random_states())  # closing it goes back to the draws from before the step
            with recorder.beside():
                plain = self._run(batch, True)
        except torch.OutOfMemoryError as error:  # the copies may be what was too much: as if they had not been made
            begun.close()
            _write(state, before)
            self._give_up(_line(error))
            return None
        try:
            with kept_random_states():
                with kept_random_states():
                    drawn = _draws(device)
                begun.close()
                untouched = versions == [private.version(part) for part in batch]
                if not (untouched and self._holds() and _are(state, self._state())):
                    raise RuntimeError("a step changes more than parameters, buffers and the optimizer's state")
                after = [held.detach().clone() for held in state]
                _write(state, before)
                with kept_random_states():
                    replay, made = recorder.record(partial(self._run, static, self._whole))
                _write(state, before)
                replay()
                if not self._whole:
                    self._plain.update()
                mine, theirs = (
                    [*held, loss, *grads, *(part for _, part in leaves(output))]
                    for held, (output, loss, grads) in ((state, made), (after, plain))
                )
                if drawn != _draws(device) or len(mine) != len(theirs) or not all(map(_same, mine, theirs)):
                    raise RuntimeError("the bits of a replayed step differ from those of the plain one")
        except BaseException as error:
            _write(state, after)
            self._give_up(_line(error))
            if not isinstance(cause := error.__context__ or error, Exception):
                raise cause from None  # Ctrl-C, under the error of a capture that it ended
            return plain
        self._recorded[key] = static, replay, made
        rest = "and update" if self._whole else f"; {type(self._optimizer).__name__} updates by itself"
        self.why = f"one CUDA graph for forward, loss, backward {rest}"
        return made


def refusal(
    model: nn.Module, loss: Callable[..., Any], optimizer: torch.optim.Optimizer, device: torch.device, hooks: object,
    accumulate: int = 1, asked: bool = False,
) -> str | None:  # fmt: skip
    """Why a graph is not to be tried; None where it is. Cheap enough to be asked at the start of every pass.

    Args:
        model: what the loop calls, as `prepare_model` gave it
        hooks: the frozen hooks of the split train
        asked: the user has asked for a graph, and vouches for a model and a loss that are not torch's own
    """
    name, settings = type(optimizer).__name__, [item for group in optimizer.param_groups for item in group.items()]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    modules = [*model.modules(), *(loss.modules() if isinstance(loss, nn.Module) else ())]
    others = [m for m in modules if getattr(nn, type(m).__name__, None) is not type(m) or "forward" in vars(m)]
    own_state = [m for m in modules if isinstance(m, nn.DataParallel) or (isinstance(m, nn.RNNBase) and m.dropout)]
    ours = isinstance(loss, nn.Module) or getattr(nn.functional, getattr(loss, "__name__", ""), None) is loss
    reasons: list[tuple[list[Any], str]] = [
        ([device.type] * (device.type != "cuda"), "a CUDA graph needs a CUDA device, this is {}"),
        ([accumulate] * (accumulate != 1), "gradients are accumulated over {} batches"),
        ([hook for hook in HOOKS if getattr(hooks, hook, None)], "a plugin has {}, which cannot run inside a graph"),
        ([1] * (torch.distributed.is_available() and torch.distributed.is_initialized()), "processes train together"),
        ([1] * private.profiling(), "a profiler listens"),
        ([1] * torch.is_autocast_enabled("cuda"), "autocast is on around the fit, and keeps copies of the weights"),
        ([name] * (type(optimizer) not in KINDS), "the optimizer {} is not torch's SGD, Adam or AdamW"),
        ([name] * private.step_hooked(optimizer), "something has been put around the step of {}"),
        ([n for n, v in settings if isinstance(v, Tensor) or (v and n in UNFIT)], "the optimizer has its own {}"),
        ([p for p in model.parameters() if p.requires_grad and id(p) not in held], "gradients outside it add up"),
        ([type(m).__name__ for m in modules if private.hooked(m)], "the layer {} has hooks"),
        ([type(m).__name__ for m in own_state], "the layer {} has random states or devices of its own"),
        ([type(m).__name__ for m in others if not asked], "the layer {} is not one of torch.nn"),
        ([1] * (not asked and not ours), "the loss is not one of torch.nn or torch.nn.functional"),
    ]
    return next((why.format(found[0]) for found, why in reasons if found), None)


@torch.no_grad()
def _write(tensors: list[Tensor], values: list[Tensor]) -> None:
    """Into the same memory. No values at all: nothing has been changed since."""
    for tensor, value in zip(tensors, values, strict=bool(values)):
        tensor.copy_(value)


def _draws(device: torch.device) -> list[float]:
    """A number from each generator: equal ones tell equal states."""
    drawn = [random.random(), torch.rand(()).item(), torch.rand((), device=device).item()]
    return [*drawn, sys.modules["numpy"].random.random()] if "numpy" in sys.modules else drawn


def _are(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """In every bit; a gradient may be missing, but then in both."""
    return one is other if one is None or other is None else same_bits(one, other)


def _line(error: BaseException) -> str:
    """Of the error itself: the end of a capture that failed raises another one over it."""
    root = error.__context__ or error
    return f"{type(root).__name__}: {root}".partition("\n")[0]
