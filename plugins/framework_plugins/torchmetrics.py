"""Any metric of torchmetrics, over whole splits."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from framework import CheckpointError, DataError, Trainer, UsageError, kept_random_states, unpadded

SPLITS = "train", "val", "test"
METHODS = "update", "compute", "reset", "metric_state"
EXAMPLE = 'TorchMetrics({"f1": torchmetrics.F1Score(task="multiclass", num_classes=3)})'


class TorchMetrics:
    """Feeds metrics of torchmetrics with each batch, and adds what they give at the end of a split: `{split}_{key}`.

    ::

        TorchMetrics({
            "f1": torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro"),
            "auroc": (torchmetrics.AUROC(task="binary"), lambda output, batch: (output.sigmoid(), batch[1].long())),
            "perplexity": (Perplexity(), lambda output, batch: (output["logits"], batch[1]["words"])),
        })

    A metric is fed with `output` and `y` of the batch `(x, y)`. Where it takes something else, give a pair: the metric,
    and a function of output and batch that gives the arguments of `update`, several as a tuple. Torchmetrics takes a
    batch whose logits all lie between 0 and 1 for probabilities; give it probabilities where more than the order of
    the classes counts.

    Each split has a copy of its own on the device, which adds up over the batches and is asked once, at the end; a mean
    of the batches' figures would be another one. A metric that gives several figures adds `{split}_{key}_0`, ..., or
    `{split}_{key}_{name}` where it gives them by name. Only those of a MetricCollection are known before the first
    epoch; to monitor another one, take it alone: `F1Score(..., average="none")[0]`.

    With several processes each feeds its own samples, and torchmetrics brings together what was added up. Where a fit
    goes on inside of an epoch with another number of them, its figures of that epoch are of a part of the samples.

    Args:
        metrics: by the names that their figures shall have; or a MetricCollection, which has names
        splits: where they are computed

    Raises:
        UsageError: something that is no metric of torchmetrics, such as a class in place of an instance; a name that
            is there already; a metric that gives no numbers, or draws random ones in training; one of several processes
            had no sample
        DataError: output or y are no tensors, and the metric has no function
        CheckpointError: the fit that is resumed had other metrics
    """

    of_samples = ("states",)  # that this process sees

    def __init__(
        self, metrics: Mapping[str, Any] | None = None, splits: Sequence[str] = SPLITS, name: str = "torchmetrics"
    ) -> None:
        if isinstance(splits, str) or not splits or not set(splits) <= set(SPLITS):
            raise UsageError(f"splits must be some of {SPLITS}, got {splits!r}")
        if hasattr(metrics, "metric_state") and hasattr(metrics, "keys"):  # a MetricCollection
            metrics = {"": metrics}
        if not isinstance(metrics, Mapping) or not metrics:
            raise UsageError(f"{name} needs metrics by name, such as {EXAMPLE}; got {metrics!r:.60}")
        self.name = name
        self.splits = tuple(splits)
        pairs = {key: value if isinstance(value, tuple) else (value, _output_and_y) for key, value in metrics.items()}
        for key, pair in pairs.items():
            _check(key, pair)
        self.metrics = {key: metric for key, (metric, _) in pairs.items()}
        self._arguments: dict[str, Callable[[Any, Any], Any]] = {key: function for key, (_, function) in pairs.items()}
        self._copies: dict[str, dict[str, Any]] = {}
        self._updated: set[str] = set()  # the splits of which a batch was seen

    def metric_names(self, split: str) -> list[str]:
        if split not in self.splits:
            return []
        names = [(key, metric.keys() if hasattr(metric, "keys") else [""]) for key, metric in self.metrics.items()]
        return [_joined(split, key, name) for key, several in names for name in several]

    def on_fit_start(self, trainer: Trainer) -> None:
        self._copies, self._updated, self._device = {}, set(), trainer.device
        for split in trainer.loaders:
            for name in self.metric_names(split):
                if trainer.metric_names.count(name) > 1:
                    raise UsageError(f"{self.name}: there is a figure {name!r} already; give yours another name")

    def on_split_start(self, trainer: Trainer, split: str) -> None:
        if split in self.splits:
            for metric in self._copies_of(split, trainer.device).values():
                metric.reset()
                metric.to(trainer.device)

    def on_batch_end(self, trainer: Trainer, split: str, batch: Any, output: Any) -> None:
        if split not in self.splits or not trainer.samples:  # all of it is padding: other processes have the batch
            return
        batch, output = unpadded(trainer, batch, output)
        state = None if split in self._updated or split == "test" else torch.get_rng_state()
        for key, metric in self._copies_of(split, trainer.device).items():
            arguments = self._arguments[key](output, batch)
            metric.update(*arguments if isinstance(arguments, tuple) else [arguments])
            if state is not None and not torch.equal(state, torch.get_rng_state()):
                raise UsageError(
                    f"{self.name}: {key!r} draws random numbers with each batch, so the training would be another one "
                    'than without it; say splits=("test",)'
                )
        self._updated.add(split)

    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        if split not in self.splits:
            return
        seen = int(trainer.sum(torch.tensor(int(split in self._updated))))  # by so many processes
        if not seen:  # of a fit that was resumed between the last batch and here
            metrics.update(dict.fromkeys(self.metric_names(split), math.nan))
            return
        if seen < trainer.processes.size:
            told = f"{seen} of {trainer.processes.size} processes; a metric needs some in each"
            raise UsageError(f"{self.name}: the samples of {split} came to {told}: make its batches larger")
        for key, metric in self._copies_of(split, trainer.device).items():
            with kept_random_states():
                figures = metric.compute()
            metrics.update(_numbers(_joined(split, key), figures))
            metric.reset()  # lets go of what it has gathered
        self._updated.discard(split)

    def state_dict(self) -> dict[str, Any]:
        states = {
            split: {key: _state(metric, self.metrics[key]) for key, metric in self._copies[split].items()}
            for split in self._copies.keys() & self._updated
        }
        return {"kinds": self._kinds(), "states": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["kinds"] != self._kinds():
            raise CheckpointError(f"the metrics were {_listed(state['kinds'])}, and are {_listed(self._kinds())} now")
        self._updated = set(state["states"])
        for split, states in state["states"].items():
            for key, metric in self._copies_of(split, self._device).items():
                _put_back(metric, states[key], self._device)

    def _kinds(self) -> dict[str, str]:
        return {key: type(metric).__name__ for key, metric in self.metrics.items()}

    def _copies_of(self, split: str, device: torch.device) -> dict[str, Any]:
        if split not in self._copies:
            copies = {key: copy.deepcopy(metric).to(device) for key, metric in self.metrics.items()}
            for metric in copies.values():
                metric.reset()
            self._copies[split] = copies
        return self._copies[split]


def _check(key: Any, pair: tuple[Any, ...]) -> None:
    metric, *rest = pair
    if not isinstance(key, str):
        raise UsageError(f"a metric goes by a name, which is text; got {key!r}")
    if isinstance(metric, type):
        raise UsageError(f"{key!r} is the class {metric.__name__}; give an instance, {metric.__name__}(...)")
    if missing := [name for name in METHODS if not hasattr(metric, name)]:
        raise UsageError(f"{key!r} is no metric of torchmetrics: {metric!r:.60} has no {', '.join(missing)}")
    if len(rest) != 1 or not callable(rest[0]):
        raise UsageError(
            f"{key!r} is a metric, or a pair of a metric and a function of output and batch; got {pair!r:.60}"
        )


def _output_and_y(output: Any, batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(output, Tensor) and isinstance(batch[1], Tensor):
        return output, batch[1]
    raise DataError(
        f"a metric is fed with two tensors, output and y, and these are {type(output).__name__} and "
        f"{type(batch[1]).__name__}: give a pair, (metric, lambda output, batch: (..., ...))"
    )


def _joined(*parts: str) -> str:
    return "_".join(part for part in parts if part)


def _numbers(name: str, figures: Any) -> Iterator[tuple[str, float]]:
    """Figures by name: one, or those of a vector or a dict."""
    if isinstance(figures, Mapping):
        for part, figure in figures.items():
            yield from _numbers(f"{name}_{part}", figure)
    elif isinstance(figures, Tensor) and figures.dim() == 1:
        yield from ((f"{name}_{place}", number) for place, number in enumerate(figures.tolist()))
    elif isinstance(figures, (int, float)) or (isinstance(figures, Tensor) and figures.numel() == 1):
        yield name, float(figures)
    else:
        what = f"of shape {tuple(figures.shape)}" if isinstance(figures, Tensor) else f"a {type(figures).__name__}"
        raise UsageError(
            f'{name} is {what}, which is no figure for a table: set average="macro" where the metric has an average, '
            "or take one number of it: metric[0]"
        )


def _parts(metric: Any) -> Iterator[tuple[str, Any]]:
    """A metric and those inside it, by path."""
    return ((path, part) for path, part in metric.named_modules() if hasattr(part, "update_count"))


def _state(metric: Any, given: Any) -> dict[str, dict[str, Any]]:
    """What has been added up, and the counts, such as of the updates: the whole numbers that were others when given."""
    fresh = dict(_parts(given))
    return {path: {**_counts(vars(part), vars(fresh[path])), **part.metric_state} for path, part in _parts(metric)}


def _counts(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, int]:
    return {name: value for name, value in now.items() if type(value) is int and value != before[name]}


def _put_back(metric: Any, state: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    for path, part in _parts(metric):
        for name, value in state[path].items():
            setattr(part, name, value)
    metric.to(device)


def _listed(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{key} ({kind})" if key else kind for key, kind in kinds.items())
