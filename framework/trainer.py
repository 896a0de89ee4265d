"""The trainer: what `fit`, `evaluate` and `predict` do before and after the loop of loop.py."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework import checkpoint, data, device, loop, mistakes
from framework.checkpoint import ALONE, Place, Processes, Resumed, Snapshot, Writer
from framework.device import resolve
from framework.discovery import several
from framework.engine import Engine, without_compiler
from framework.errors import NonFiniteError, UsageError, one_of
from framework.plugins import Plugins
from framework.seed import kept_random_states

without_compiler()  # before anyone who imports the Trainer makes an optimizer for it


@dataclass
class Result:
    """What a fit gives back.

    `epochs` and `steps` count what was completed; `stop_reason` is None where no stop was asked for; `history` has a
    dict an epoch (`epoch`, `step`, `train_loss`, ...); `seconds` is the time of the fit. `best` is filled by the
    plugin best_checkpoint: the row of the best epoch, with `monitor`, `value` and `path` (None if nothing is
    written). `test` is filled by `run`: the figures of the recipe's test set.
    """

    epochs: int
    steps: int
    stop_reason: str | None
    history: list[dict[str, Any]]
    seconds: float
    run_dir: Path | None
    best: dict[str, Any] | None = None
    test: dict[str, float] | None = None


class Trainer:
    """Trains a model: data set, batches, model, loss, optimizer step; everything else is a plugin.

    Args:
        model: any nn.Module; it is moved to the device in place
        loss: `loss(output, y)`, a 0-dim tensor, the mean over the batch
        optimizer: an instance over the model's parameters
        plugins: instances, or names of available plugins; they run in this order
        device: "auto" (cuda, else mps, else cpu), or a device by name
        run_dir: where checkpoints and plugins write; None writes nothing
        samples: how many samples a batch has, where the leading dimensions of its tensors differ
        on_nonfinite: "stop" raises NonFiniteError when a loss is inf or nan; "continue" trains on
        on_plugin_error: "stop" ends the fit where a plugin fails; "disable" warns and goes on without a plugin that
            only looks
        on_save_error: "stop" ends the fit where a checkpoint cannot be written; "continue" warns and trains on
        async_save: write checkpoints in the background; training waits only while the state is copied

    Raises:
        UsageError: an optimizer without any of the model's parameters, a device that is absent, and with every
            finding about the plugins
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Any, Any], Tensor], optimizer: torch.optim.Optimizer,
        plugins: Iterable[Any] = (), device: str | torch.device = "auto", run_dir: str | Path | None = None, *,
        samples: Callable[[Any], int] | None = None, on_nonfinite: str = "stop", on_plugin_error: str = "stop",
        on_save_error: str = "stop", async_save: bool = False,
    ) -> None:  # fmt: skip
        _check(model, loss, optimizer)
        self.on_nonfinite = one_of("on_nonfinite", on_nonfinite, ("stop", "continue"))
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.device = resolve(device)
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.plugins = Plugins(several(plugins), loop.ANSWERS)
        self.on_plugin_error = one_of("on_plugin_error", on_plugin_error, ("stop", "disable"))
        if self.on_plugin_error == "disable":
            self.plugins.disable_failing(lambda: f"epoch {self.epoch}, step {self.step}")
        self.prepared = model  # what prepare_model gave; the user's module before that
        self.count = samples or data.count_samples
        self.epochs = self.epoch = self.step = 0
        self.accumulate, self.num_workers, self.engine = 1, 0, Engine()
        self.samples, self.weight, self.boundary, self.stepped = 0, 1.0, True, False
        self.loaders: dict[str, Any] = {}
        self.metric_names: tuple[str, ...] = ()
        self.history: list[dict[str, Any]] = []
        self.place, self._run_lock = Place(self), None  # type: Place, Any
        forgiving = one_of("on_save_error", on_save_error, ("stop", "continue")) == "continue"
        self.async_save, self._writer = async_save, Writer(async_save, forgiving)
        self.processes: Processes = ALONE  # those that train together; a plugin may put others here
        self.resumed: Resumed | None = None  # from what, until everything is loaded
        self.looked_at: set[str] = set()  # the splits of which a first batch was looked at for mistakes
        self._running = self.asked = False  # asked: whether a stop or a save waits for the next step boundary
        self._stop: str | None = None
        self._saves, self._later = [], []  # type: list[str], list[Callable[[], None]]

    # ------------------------------------------------------------------------------------------------ public verbs

    def fit(
        self, train: Any, val: Any = None, epochs: int = 1, batch_size: int | None = None, shuffle: bool | None = None,
        drop_last: bool | None = None, *, accumulate: int = 1, num_workers: int = 0, loader: str = "auto",
        cache: bool = False, graph: bool = False, fast: str = "exact", resume: str | Path | None = None,
    ) -> Result:  # fmt: skip
        """Train from epoch 0, step 0; or from where an earlier fit was, of objects that were made in the same way.

        Args:
            train, val: a Dataset, a pair of tensors (x, y), or a DataLoader (then leave out the next three)
            epochs: passes over train
            batch_size: samples in a batch; None is gradient descent on the whole, in its own order
            shuffle: a new order each epoch, drawn as torch's DataLoader draws it; True where not given
            drop_last: leave out a last batch that is not full
            accumulate: batches to a step of the optimizer; the last window of an epoch may be shorter
            num_workers: processes that fetch the batches
            loader: "auto" takes batches from memory where they are those of the DataLoader bit for bit; "torch" never
            cache: keep the samples of a data set of your own in memory; each must always be the same
            graph: on a GPU, record the step as a CUDA graph also where it cannot be proved that it may be recorded
            fast: "exact"; "math" gives up the bits for speed; "plain" calls only what a loop by hand would call
            resume: a run directory, whose newest sound checkpoint is taken, or one checkpoint of it. Model, optimizer,
                data, sizes and plugins are given as they were; the fit ends as if it had never been interrupted

        Raises:
            UsageError: bad input, before anything is trained where it can be known
            CheckpointError: a checkpoint that cannot be read or written, or is of another fit than this one
            NonFiniteError: the loss became inf or nan
        """
        if self._running:
            raise UsageError("a fit of this trainer is running; another one cannot begin inside it")
        started = time.monotonic()
        sizes = data.sizes(batch_size, shuffle, drop_last, train, num_workers or None)
        self.epochs, self.accumulate = data.positive("epochs", epochs), data.positive("accumulate", accumulate)
        self.num_workers = data.positive("num_workers", num_workers, least=0)
        self.engine = Engine(loader, cache, graph, fast)
        self.resumed = resumed = None if resume is None else Resumed(Path(resume))
        self.run_dir = self.run_dir if resumed is None else resumed.goes_on_in(self.run_dir)
        self._writer.bad = () if resumed is None else resumed.passed_over
        failure: BaseException | None = None
        try:
            with self._explained():
                self._start(train, val, *sizes)
                loop.run(self)
                self._running, self.place.exact = False, True
                self._tell_of(self._writer.finished(leave=0))
                seconds = time.monotonic() - started
                result = Result(self.epoch, self.step, self._stop, self.history, seconds, self.run_dir)
                self.plugins.frozen("train").on_fit_end(self, result)
            return result
        except BaseException as error:
            self._running, failure = False, error
            self.processes.fail()
            self.plugins.tell_each("on_exception", failure, trainer=self, exception=failure)
            raise
        finally:
            try:  # a Ctrl-C in here leaves the rest to be done all the same
                self.engine.close()
                self._writer.close(failure)
            finally:
                self._run_lock, held = None, self._run_lock
                if held:
                    held.close()
                broken = self.plugins.tell_each("on_teardown", failure, trainer=self)
            if failure is None and broken is not None:
                raise broken

    def evaluate(self, data_set: Any, batch_size: int | None = None) -> dict[str, float]:
        """The figures of a data set, under the split "test": in eval mode, without gradients.

        Random states, modes and counters are left as they were found. Takes what `fit` takes.
        """
        with self._aside(data_set), self._explained():
            size, _, _ = data.sizes(batch_size, None, None, data_set)
            loader = self.plugins.frozen("test").make_loader(self, data_set, "test", size, False, False)
            return dict(loop.evaluate(self, "test", loader))

    def predict(self, inputs: Any, batch_size: int | None = None) -> Any:
        """What the model gives for inputs, on the CPU: in eval mode, without gradients.

        Random states, modes and counters are left as they were found.

        Args:
            inputs: a tensor, or a dict, list or tuple of tensors, with the samples in dimension 0
            batch_size: so many samples at a time; None takes all at once
        """
        hooks, model, outputs = self.plugins.frozen("predict"), self.prepared, []
        with self._aside(), self._explained(), torch.no_grad():
            model.eval()
            for chunk in data.in_chunks(inputs, batch_size):
                batch: Any = chunk, None
                batch = device.move(batch, self.device)
                output = hooks.forward(self, model, "predict", batch) if hooks.forward else model(batch[0])
                outputs.append(device.move(output, torch.device("cpu")))
        return data.joined(outputs)

    def stop(self, reason: str) -> None:
        """Ask to end the fit; honoured at the next step boundary. The first reason counts."""
        self._stop, self.asked = self._stop or str(reason), True

    def save(self, label: str | Iterable[str] = "last", snapshot: Snapshot | None = None) -> None:
        """Ask for a checkpoint: at the next step boundary, or at once where no fit is in its loop.

        Args:
            label: what points at it afterwards, such as "last" or "best"; a checkpoint without a label is dropped
            snapshot: an earlier `snapshot()` in place of the present state; it is written at once

        Raises:
            UsageError: this trainer has no run_dir
            CheckpointError: it cannot be written
        """
        labels = [label] if isinstance(label, str) else list(label)
        if self.run_dir is None:
            raise UsageError("there is nowhere to save to: give the Trainer a run_dir")
        if not labels or not all(name.isidentifier() and name.isascii() and name.islower() for name in labels):
            raise UsageError(f"a label of a checkpoint is a word in small letters, got {label!r}")
        if self._running and snapshot is None:
            self._saves += [name for name in labels if name not in self._saves]
            self.asked = True
        else:
            self._commit(labels, snapshot)

    def later(self, call: Callable[[], None]) -> None:
        """Call it at the next step boundary: when every plugin has been told what the one that asks was told."""
        self._later.append(call)
        self.asked = True

    def ask(self, call: Callable[[], None]) -> None:
        """As `later`, for what only this process knows, a signal or a clock: several agree on the boundary."""
        self.later(call)

    def snapshot(self, over: Snapshot | None = None) -> Snapshot:
        """A copy of the present state: model, optimizer, counters, plugins. `save` takes it later.

        Args:
            over: an earlier one that nobody needs any more; its memory is taken
        """
        over = None if self._writer.holds(over) else over
        taken = checkpoint.take(self.epoch, self.step, self.model, self.optimizer, self.plugins.states(), over)
        taken.loop, taken.exact = self.place.tell(self), self.place.exact
        taken.rows = self.history, len(self.history)
        return taken

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes; plugins sum before they divide."""
        return self.plugins.frozen("train").reduce(self, value)  # type: ignore[no-any-return]

    # --------------------------------------------------------------------------------------------- around the loop

    def _start(self, train: Any, val: Any, batch_size: int | None, shuffle: bool, drop_last: bool) -> None:
        hooks = self.plugins.frozen("train")
        self.place.exact, self.epoch, self.step = False, 0, 0  # whatever an earlier fit has left
        self._stop, self._saves, self._later, self.asked = None, [], [], False
        self.plugins.disabled.clear()
        self.history, self.loaders, self.looked_at = [], {}, set()
        self.prepared = hooks.prepare_model(self, self.model)
        self._run_lock = checkpoint.lock(self.run_dir, by="fit") if self.run_dir else None
        device.place(self.model, self.optimizer, self.device)
        self.loaders["train"] = hooks.make_loader(self, train, "train", batch_size, shuffle, drop_last)
        if val is not None:
            make_loader = self.plugins.frozen("val").make_loader
            self.loaders["val"] = make_loader(self, val, "val", batch_size, False, False)
        self.engine.start(self)
        self.metric_names = tuple(
            name for split in self.loaders for name in (f"{split}_loss", *self.plugins.metric_names(split))
        )
        self.place = Place(self)
        if self.resumed:
            self.resumed.check(self)
        self._running = True
        hooks.on_fit_start(self)
        if self.resumed:
            self.resumed.load(self)
        self.resumed = None  # it is as large as the model and its optimizer
        if self.run_dir:
            checkpoint.storable(self)

    def honour(self) -> bool:
        """At a step boundary: do what was asked for; True if the fit is to end."""
        self.place.exact, self.asked = True, False  # first: what is asked from here on waits for the next boundary
        self._tell_of(self._writer.finished())
        later, self._later = self._later, []
        for call in later:
            call()
        stop, saves, self._saves = self._stop, tuple(self._saves), []
        if agree := self.plugins.frozen("train").agree:
            stop, saves = agree(self, stop, saves)
            self._stop = stop
        if saves:
            self._commit(saves)
        self.place.exact = False
        if stop is not None or self._writer.busy:  # never the other way: a signal may have asked for something just now
            self.asked = True
        return stop is not None

    def _commit(self, labels: Iterable[str], snapshot: Snapshot | None = None) -> None:
        assert self.run_dir is not None
        # of several processes the first one holds it
        with (
            contextlib.nullcontext() if self._run_lock or self.processes.rank else checkpoint.lock(self.run_dir, "fit")
        ):
            self._tell_of(self._writer.finished())  # before the state is asked for: it may be about what was written
            taken = snapshot or self.snapshot()
            self._tell_of(self._writer.write(taken, self.run_dir, labels, not self._running, self.processes))

    def _tell_of(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self.plugins.frozen("train").on_checkpoint(self, path)

    def refusing(self, split: str) -> Callable[[int, float], None] | None:
        """What a Mean calls for a loss that is inf or nan; None where it may pass."""
        if self.on_nonfinite == "continue" or split == "test":
            return None
        step = self.step

        def refuse(position: int, loss: float) -> None:
            rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
            ahead = position // self.accumulate if split == "train" else 0
            at = f"step {step + ahead}, epoch {self.epoch}, batch {position}"
            raise NonFiniteError(f"{split}_loss became {loss} at {at} (learning rate {rates}); try a smaller one")

        return refuse

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """An error leaves with the plugin that raised it, or as the mistake in the user's data that caused it."""
        try:
            yield
        except BaseException as error:
            batch, output = _at_work(error)
            if impl := self.plugins.blame(error):
                error.add_note(f"{impl.place}, epoch {self.epoch}, step {self.step}")
            elif isinstance(error, NonFiniteError) and self.device.type == "cpu":
                if cause := mistakes.nonfinite_from(self, batch, output):
                    raise NonFiniteError(f"{str(error).partition(';')[0]}; {cause}") from None
            elif found := mistakes.explain(error, self.model, self.loss, batch, output):
                raise found from error
            elif batch is not None and not isinstance(error, UsageError):
                error.add_note(f"epoch {self.epoch}, step {self.step}, batch: {device.describe(batch)}")
            raise

    @contextlib.contextmanager
    def _aside(self, data_set: Any = None) -> Iterator[None]:
        """Leave modes, counters and random states as they were found."""
        device.place(self.model, self.optimizer, self.device)
        modes = [(module, module.training) for module in self.prepared.modules()]
        counters = self.samples, self.weight, self.boundary, self.stepped
        with kept_random_states(*data.generators(data_set)):
            try:
                yield
            finally:
                self.samples, self.weight, self.boundary, self.stepped = counters
                for module, mode in modes:
                    module.training = mode


def _check(model: Any, loss: Any, optimizer: Any) -> None:
    for name, value, kind in (("model", model, nn.Module), ("optimizer", optimizer, torch.optim.Optimizer)):
        if not isinstance(value, kind):
            raise UsageError(f"{name} must be a torch {kind.__name__}, got {value!r:.60}")
    if isinstance(loss, type) or not callable(loss):
        raise UsageError(f"loss must be callable as loss(output, y), such as nn.MSELoss(); got {loss!r:.60}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in model.parameters()):
        raise UsageError(
            f"the {type(optimizer).__name__} optimizer holds none of the model's parameters: build it from "
            "model.parameters() of this very model"
        )


# The modules whose functions hold a batch under this name.
_IN_HAND = loop.__name__, data.__name__, "framework.engine.prefetch", __name__


def _at_work(error: BaseException) -> tuple[Any, Any]:
    """The batch that the loop had in hand when the error came, and the model's output for it, or None."""
    batch = output = None
    traceback = error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") in _IN_HAND and "batch" in frame.f_locals:
            batch, output = frame.f_locals["batch"], frame.f_locals.get("output", output)
        traceback = traceback.tb_next
    return batch, output
