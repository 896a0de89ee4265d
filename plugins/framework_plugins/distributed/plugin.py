"""The plugin: one fit in several processes, with the numbers of one."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from framework import DeviceError, FrameworkError, Trainer, UsageError, hookimpl

from . import launch
from .agreement import Agreement, Asked, facts_of
from .batches import cutter, of_rank, part
from .draws import Common, seed_alone
from .ranks import Ranks, own_gpu, world
from .state import State


class Distributed:
    """Trains one model in several processes that torchrun starts; each takes its rows of every batch.

    ::

        torchrun --nproc-per-node 4 -m framework recipes/mnist_cnn.py -p distributed

    `batch_size` is that of the whole batch. The batches and their order are those of one process, the losses are the
    same to rounding, figures are sums over all samples, each counted once. Gradients are averaged by torch's DDP, once
    a step of the optimizer. With `shard` the weights, the gradients and the state of the optimizer are cut over the
    processes by torch's FSDP2. Without torchrun, and with one process, it does nothing.

    The first process prints and writes. A checkpoint is written by all of them, and is read by any number of processes.
    A stop or a save that a plugin asks for must be asked for in all of them; what only one knows, such as a signal,
    goes through `trainer.ask`, and all of them honour it at the same step.

    Args:
        shard: cut the weights over the processes, where they do not fit on one device
        find_unused: for a model of which a step may leave out parameters (DDP's find_unused_parameters)
        timeout: seconds that a process waits for the others

    Raises:
        UsageError: before the first step: the processes differ in what they are to train, or in their data; the data is
            cut already; `async_save`; a device that cannot do it. After an epoch: their weights have come apart
        CheckpointError: a process cannot write its part; the same in all of them
    """

    def __init__(
        self, shard: bool = False, find_unused: bool = False, timeout: float = 600.0, name: str = "distributed"
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout <= 0:
            raise UsageError(f"{name}: timeout must be a number of seconds above 0, got {timeout!r}")
        if shard and find_unused:
            raise UsageError(f"{name}: find_unused=True is of DDP, and shard=True is FSDP2: leave out one of them")
        self.name = name
        self.shard, self.find_unused, self.timeout = shard, find_unused, timeout
        self.rank, self.size = world()
        self.keeps_nothing = self.rank > 0  # plugins that write beyond the run directory look for it
        self._undo = contextlib.ExitStack()
        self._wrapped: Any = None
        self._common: Any = None  # the stream of draws that all have, since the first fit
        self._first = False  # whether the first step of a fit is to come
        self._cutters: dict[str, Any] = {}  # of each split: what knows the sizes of its whole batches
        if self.size > 1:  # else nobody is to be asked about anything
            self.on_split_start = self._start_pass
            self.on_batch_start = self._weigh
            self.on_split_end = self._compare_batches
            self.on_epoch_end = self._compare
            self.on_fit_end = self._same_buffers
            self.reduce = self._sum
            self.agree = self._agree

    # -------------------------------------------------------------------------------------------- before the first step

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer, model: nn.Module) -> Generator[None, nn.Module, nn.Module]:
        if self.size == 1:
            return (yield)
        self._undo.close()
        self._place(trainer)
        self._ranks = trainer.processes = Ranks(self.timeout, trainer.device)
        self._ranks.same(facts_of(trainer), "what they train")
        if self.rank and launch.job is None:  # the library
            self._undo.enter_context(launch.silence())
        self._share_run_dir(trainer)
        self._split_draws()
        whole = yield
        if self.shard:
            return self._cut(trainer, whole)
        self._take_up(trainer)
        self._learning = _learning(whole)
        if not any(self._learning):
            return whole
        return self._copies_of(trainer, whole)

    def _place(self, trainer: Trainer) -> None:
        if trainer.async_save:
            raise UsageError("async_save=True: several processes write a checkpoint together, while training waits")
        if trainer.on_plugin_error == "disable":
            raise UsageError("on_plugin_error='disable' would leave a plugin out in one process; the others would wait")
        if getattr(trainer.count, "__module__", "") != "framework.data":
            raise UsageError("Trainer(samples=...): over several processes a row of a batch is a sample; leave it out")
        if trainer.device.type == "cuda":
            trainer.device = own_gpu(self.rank)
        elif trainer.device.type != "cpu":
            raise DeviceError(f"torch trains in several processes on CUDA devices and CPUs, not on {trainer.device}: "
                              "say --device cpu")  # fmt: skip

    def _share_run_dir(self, trainer: Trainer) -> None:
        """The first process writes into the run directory, each other one into one that is thrown away."""
        if self.rank == 0 and trainer.run_dir is not None:
            (trainer.run_dir / launch.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            if launch.job is not None:
                launch.remember(launch.job.path)
        real, *others = self._ranks.gather(trainer.run_dir and os.path.abspath(trainer.run_dir))
        if launch.job is None and set(others) != {real}:
            raise UsageError(
                f"the processes would write into {real} and {others[0]}; where a recipe lists this plugin, the command "
                f"line says -p {self.name} as well"
            )
        if self.rank and trainer.run_dir is not None:
            if launch.job is None:
                self._undo.callback(setattr, trainer, "run_dir", trainer.run_dir)
                trainer.run_dir = Path(self._undo.enter_context(tempfile.TemporaryDirectory()))
            launch.link(trainer.run_dir, Path(real))

    def _split_draws(self) -> None:
        """From now on each process draws its own numbers; the common ones go on from those of the first."""
        numpy = sys.modules.get("numpy.random")
        here = torch.get_rng_state(), random.getstate(), numpy.get_state() if numpy else None
        states = self._ranks.gather(here if self.rank == 0 else None)[0]
        torch.set_rng_state(states[0])
        self._common = Common()
        self._undo.callback(random.setstate, states[1])
        if numpy and states[2]:
            self._undo.callback(numpy.set_state, states[2])
        self._undo.callback(lambda: torch.set_rng_state(self._common.generator.get_state()))
        seed_alone(states[0], self.rank)

    def _copies_of(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        on = [trainer.device.index] if trainer.device.type == "cuda" else None
        made = DistributedDataParallel(model, device_ids=on, find_unused_parameters=self.find_unused)
        self._wrapped = made
        return made

    def _cut(self, trainer: Trainer, model: nn.Module) -> nn.Module:
        from .sharding import cut_snapshot, piece, shard  # it takes a while to import

        made: Any = shard(model, trainer.optimizer, trainer.device)
        self._wrapped = made
        self._take_up(trainer, piece)
        if trainer.resumed:
            cut_snapshot(trainer.resumed.snapshot, model, trainer.optimizer)
        return made  # type: ignore[no-any-return]

    def _take_up(self, trainer: Trainer, piece: Callable[[Tensor], Any] | None = None) -> None:
        """How checkpoints are written; and what of the one that is gone on from is for this process."""
        state = State(self._ranks, trainer.plugins, piece)
        self._ranks.local_of = state.local
        if trainer.resumed:
            state.take_up(trainer.resumed.snapshot)

    @hookimpl(wrapper=True)
    def make_loader(self, trainer: Trainer, split: str) -> Generator[None, Any, Any]:
        loader = yield
        if self.size == 1:
            return loader
        if self._common is None:  # evaluated before a fit
            self._ranks = trainer.processes = Ranks(self.timeout, trainer.device)
            self._common = Common(self._ranks.gather(torch.get_rng_state())[0])
        if cutter(loader) is None:  # else it is one of this fit's, which a plugin evaluates
            # what is evaluated beside a fit leaves no trace in the order of its data
            common = self._common if split in ("train", "val") else self._common.aside()
            loader = of_rank(loader, self.rank, self.size, common)
        self._cutters[split] = cutter(loader)
        return loader

    @hookimpl(wrapper=True)
    def on_fit_start(self, trainer: Trainer) -> Iterator[None]:
        if self.size > 1:
            self._begin(trainer)
        yield  # a plugin may freeze or thaw something
        self._follow(trainer)

    @hookimpl(wrapper=True)
    def on_epoch_start(self, trainer: Trainer) -> Iterator[None]:
        yield
        self._follow(trainer)

    def _begin(self, trainer: Trainer) -> None:
        looks = trainer.place.facts(trainer)
        facts = {f"{name} of {split}": value for split, look in looks.items() for name, value in look.items()}
        self._ranks.same(facts, "their data")
        self._agreement = Agreement(self._ranks, trainer)
        self._in_window, self._first = 0, True
        trainer.ask = self._agreement.held.append  # type: ignore[assignment]
        self._undo.callback(vars(trainer).pop, "ask", None)
        how = "its weights cut over them (FSDP2)" if self.shard else "each with a copy of the weights (DDP)"
        tqdm.write(f"processes {self.size} on {trainer.device.type}, {how}")

    def _follow(self, trainer: Trainer) -> None:
        """DDP averages the gradients of what learned when it was made."""
        if self.size > 1 and not self.shard and self._learning != (now := _learning(trainer.model)):
            if trainer.prepared is not self._wrapped:
                raise UsageError(
                    f"{self.name}: which parameters learn has changed, inside of a {type(trainer.prepared).__name__}"
                )
            self._learning, trainer.prepared = now, self._copies_of(trainer, trainer.model)

    # ---------------------------------------------------------------------------------------------------- in each step

    def _start_pass(self, split: str) -> None:
        self._seen = 0

    def _weigh(self, trainer: Trainer, split: str) -> None:
        sizes = self._cutters[split].sizes
        if split != "train":
            rows = sizes[self._seen]
            self._seen += 1
        else:
            begun = (trainer.step - trainer.place.first) * trainer.accumulate
            rows = sizes[begun + self._in_window]
            if self._in_window == 0:
                end = min(begun + trainer.accumulate, _length(trainer.loaders["train"]) or len(sizes))
                self._of_window = sum(sizes[begun:end])  # more may have been fetched ahead
                if self._first:
                    self._compare_batches("train")
            trainer.weight = self.size * len(part(rows, self.rank, self.size)) / self._of_window
            if trainer.accumulate > 1:
                self._average_gradients(trainer.boundary)
            if self.shard:  # DDP does it by itself
                self._same_buffers(trainer)
            self._in_window = 0 if trainer.boundary else self._in_window + 1
        if rows < self.size and not part(rows, self.rank, self.size):
            trainer.samples = 0  # its row is padding

    def _average_gradients(self, now: bool) -> None:
        """Only the last batch of a window is worth an all-reduce."""
        if self.shard:
            self._wrapped.set_requires_gradient_sync(now)
        else:
            self._wrapped.require_backward_grad_sync = now

    def _compare_batches(self, split: str) -> None:
        """All have drawn the same; those of an epoch are compared at its end."""
        if split == "test" or self._first:
            self._first = False
            self._look_at_batches([split])

    def _compare(self, trainer: Trainer, epoch: int) -> None:
        """At the end of an epoch: all have drawn the same batches, and have come to the same weights."""
        self._same_buffers(trainer)
        splits = [split for split in trainer.loaders if self._cutters[split] is not None]
        weights = {} if self.shard else dict(trainer.model.named_parameters())
        sums = [_sum_of_bits(weight) for weight in weights.values()]
        if self._ranks.agree([*(self._cutters[split].mark for split in splits), *sums]):
            return
        self._look_at_batches(splits)
        others = self._ranks.gather(sums)
        rank = next(rank for rank, theirs in enumerate(others) if theirs != others[0])
        first = next(name for name, *each in zip(weights, *others, strict=True) if len(set(each)) > 1)
        raise FrameworkError(
            f"after epoch {epoch} the weights of rank {rank} are not those of rank 0 any more, first {first}. "
            "Gradients are averaged where `forward` calls the model that it is given, and all must take a step"
        )

    def _look_at_batches(self, splits: list[str]) -> None:
        for split in splits:
            if not self._ranks.agree([self._cutters[split].mark]):
                raise UsageError(
                    f"{split}: the processes have drawn different batches. A sampler must draw from torch's own "
                    "generator, or from one that it seeds: those of Python and NumPy differ from process to process"
                )

    def _same_buffers(self, trainer: Trainer) -> None:
        """Running statistics are those of the first process, as with DDP."""
        for buffer in trainer.model.buffers():
            dist.broadcast(buffer, 0)

    def _sum(self, value: Tensor) -> Tensor:
        return self._ranks.sum(value)

    def _agree(self, trainer: Trainer, stop: str | None, save: tuple[str, ...]) -> Asked:
        return self._agreement.on(trainer, stop, save)

    def on_teardown(self, trainer: Trainer) -> None:
        if self.size > 1 and not self.shard and trainer.prepared is self._wrapped:
            trainer.prepared, self._wrapped = trainer.model, None  # which one process may call without the others
        self._undo.close()


def _sum_of_bits(tensor: Tensor) -> int:
    bits = tensor.detach().contiguous().reshape(-1).view(torch.int32 if tensor.itemsize == 4 else torch.uint8)
    return int(bits.sum())


def _learning(model: nn.Module) -> list[bool]:
    return [parameter.requires_grad for parameter in model.parameters()]


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
