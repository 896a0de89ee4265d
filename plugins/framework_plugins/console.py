"""What a run tells on stdout: data, model, device, a baseline, the table of epochs, why it stopped, the result."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, Subset, TensorDataset, default_collate
from tqdm import tqdm

from framework import Result, Trainer, UsageError, described, hookimpl

WIDTH = 12  # letters of a figure: -1.2346e-100, 29661.800781
MOST = 2_000_000  # targets up to which a baseline is worked out: some milliseconds


class Console:
    """The table of epochs, with what is trained above and the result below.

    However long the run, the table has about `rows` lines: epochs 0, 50, 100, ... of a thousand, and the last.

    The baseline is what one gets without looking at x: the figures of always the most frequent class, always the mean,
    or a uniform guess, as learned from the training targets, on the validation set where there is one. It is told for
    the losses of torch whose targets lie in memory (pairs of tensors, a TensorDataset, torchvision's data sets with
    `targets`, parts of these); nothing of yours is run for it and nothing is drawn.

    Args:
        rows: about so many lines of the table

    Raises:
        UsageError: rows below 1
    """

    def __init__(self, rows: int = 20, name: str = "console") -> None:
        if rows < 1:
            raise UsageError(f"rows must be 1 or more, got {rows!r}")
        self.name = name
        self.rows = rows
        self._columns: list[str] = []
        self._pending: Mapping[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        self._digits = len(str(trainer.epochs - 1))
        self._every = _spacing(trainer.epochs, self.rows)
        self._columns, self._pending, self._started = [], None, time.monotonic()
        ways = trainer.engine.told()  # from memory, or why not
        for split, loader in trainer.loaders.items():
            way = f", {ways.pop(split)}" if split in ways else ""
            _say(f"{split if split != 'train' else 'data':<10}{_described(loader)}{way}")
        _say(f"model     {described(trainer.model)}")
        _say(f"device    {trainer.device}")
        if line := _baseline(trainer):
            _say(f"baseline  {line}")
        _say(f"plugins   {', '.join(name for name in trainer.plugins if not name.startswith('_'))}")

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        self._pending = metrics
        if epoch % self._every == 0:
            self._print_pending()

    @hookimpl(wrapper=True)
    def on_fit_end(self, trainer: Trainer, result: Result) -> Iterator[None]:
        self._print_pending()
        yield  # what others print at the end, such as the recipe, stands between the table and the result
        ways = trainer.engine.told()
        for name in [name for name in ways if name not in trainer.loaders]:
            _say(f"{name:<10}{ways[name]}")  # known only now: what was recorded, what could not be compiled
        amount = f"{_plural(result.epochs, 'epoch')}, {_plural(result.steps, 'step')}, {result.seconds:.1f} s"
        _say(f"stopped   {result.stop_reason}; {amount}" if result.stop_reason else f"stopped   after {amount}")
        if result.history:
            _say(f"result    {_figures(result.history[-1])}")
        if result.best and result.best["epoch"] != result.epochs - 1:
            _say(f"best      {_figures(result.best)} in epoch {result.best['epoch']}")

    def on_exception(self) -> None:
        self._print_pending()

    def _print_pending(self) -> None:
        row, self._pending = self._pending, None
        if row is None:
            return
        names = [name for name in row if name not in ("epoch", "step")]
        widths = [max(len(name), WIDTH) for name in names]
        if names != self._columns:
            self._columns = names
            _say("")
            self._line("epoch", names, widths, "seconds")
        cells = [_number(row[name]) for name in names]
        self._line(str(row["epoch"]), cells, widths, f"{time.monotonic() - self._started:.1f}")

    def _line(self, epoch: str, cells: list[str], widths: list[int], seconds: str) -> None:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        _say("  ".join([epoch.rjust(max(self._digits, 5)), *padded, seconds.rjust(7)]))


def _say(line: str) -> None:
    tqdm.write(line)  # clears a bar that is on the screen, and redraws it below


def _plural(count: int, what: str, ending: str = "s") -> str:
    return f"{count} {what}{ending * (count != 1)}"


def _number(value: Any) -> str:
    """At most WIDTH letters, as long as a whole number has no more."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.6f}"
    return text if value == 0 or (abs(value) >= 1e-4 and len(text) <= WIDTH) else f"{value:.4e}"


def _figures(row: Mapping[str, Any]) -> str:
    skipped = ("epoch", "step", "monitor", "value", "path")
    return "  ".join(f"{name} {_number(value)}" for name, value in row.items() if name not in skipped)


def _spacing(epochs: int, rows: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that gives at most `rows` lines, and one for the last epoch."""
    for power in itertools.count():
        for step in (1, 2, 5):
            if (epochs - 1) // (step * 10**power) <= rows:
                return int(step * 10**power)
    raise AssertionError


def _described(loader: Any) -> str:
    batches_of, loader = loader, getattr(loader, "whole", loader)  # of which this process takes a part
    data_set = getattr(loader, "dataset", None)
    try:
        batches = len(batches_of)
        samples = loader.samples if data_set is None else len(data_set)
    except (TypeError, AttributeError):
        return f"{type(loader if data_set is None else data_set).__name__} of unknown length"
    if data_set is None:
        return f"{_plural(samples, 'sample')}, all in one batch"
    size = getattr(loader, "batch_size", None)
    return f"{_plural(samples, 'sample')} in {_plural(batches, 'batch', 'es')}{f' of {size}' if size else ''}"


# ------------------------------------------------------------------------------------------------------ the baseline

CLASSES = nn.CrossEntropyLoss, F.cross_entropy, nn.NLLLoss, F.nll_loss
LOGITS = nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits
BINARY = (*LOGITS, nn.BCELoss, F.binary_cross_entropy)
SQUARES = nn.MSELoss, F.mse_loss
NUMBERS = (*SQUARES, nn.L1Loss, F.l1_loss)


def _baseline(trainer: Trainer) -> str:
    """What an answer that does not look at x gets, or nothing where that cannot be known without running the data."""
    split, loss = "val" if "val" in trainer.loaders else "train", trainer.loss
    kind = type(loss) if isinstance(loss, nn.Module) else loss
    known, judged = (_targets_of(trainer.loaders.get(name)) for name in ("train", split))
    altered = trainer.plugins.frozen(split).compute_loss or getattr(loss, "reduction", "mean") != "mean"
    if altered or known is None or judged is None or known.shape[1:] != judged.shape[1:]:
        return ""
    if kind in CLASSES and not (known.is_floating_point() or judged.is_floating_point()):
        return _of_classes(known, judged, split, loss)
    weighted = getattr(loss, "weight", None) is not None or getattr(loss, "pos_weight", None) is not None
    known, judged = known.detach().cpu().double(), judged.detach().cpu().double()  # large ones may differ by little
    if kind in BINARY and not weighted:
        return _of_answers(known, judged, split, loss, kind in LOGITS)
    if kind in NUMBERS:
        what, guess = ("mean", known.mean(dim=0)) if kind in SQUARES else ("median", known.median(dim=0).values)
        return f"always the {what}: {split}_loss {_number(loss(guess.expand_as(judged), judged).item())}"
    return ""


def _of_classes(known: Tensor, judged: Tensor, split: str, loss: Any) -> str:
    """Cross entropy: the most frequent class, and ln C, the loss of a uniform guess with weights or smoothed labels."""
    ignored = getattr(loss, "ignore_index", -100)
    classes, counts = known[(known != ignored) & (known >= 0)].unique(return_counts=True)
    counted = judged[judged != ignored]
    if not len(classes) or not len(counted):
        return ""
    first, count = int(classes[counts.argmax()]), 1 + max(int(classes[-1]), int(counted.max()))
    right = _number(int(torch.count_nonzero(counted == first)) / counted.numel())
    uniform = f"; a uniform guess of {_plural(count, 'class', 'es')}: {split}_loss {_number(math.log(count))}"
    weights = getattr(loss, "weight", None) is not None
    both = weights and getattr(loss, "label_smoothing", 0.0) > 0  # then it is not ln C
    return f"always class {first}: {split}_accuracy {right}{'' if both else uniform}"


def _of_answers(known: Tensor, judged: Tensor, split: str, loss: Any, logits: bool) -> str:
    """Binary cross entropy: the more frequent answer, and the rate of class 1, each output by itself."""
    rate = known.mean(dim=0)
    if not bool(((rate >= 0) & (rate <= 1)).all()):
        return ""
    answers = (known >= 0.5).float().mean(dim=0) > 0.5
    right = _number(int(torch.count_nonzero((judged >= 0.5) == answers)) / judged.numel())
    value = _number(loss((rate.logit(eps=1e-6) if logits else rate).expand_as(judged), judged).item())
    always = f"class {int(answers)}" if answers.numel() == 1 else "the more frequent class of each output"
    rates = f"{rate.item():.4g} for class 1" if rate.numel() == 1 else "the rates of class 1"
    return f"always {always}: {split}_accuracy {right}; always {rates}: {split}_loss {value}"


def _targets_of(loader: Any) -> Tensor | None:
    """The targets of all samples that a loader gives, to all processes, where they lie in memory."""
    loader = getattr(loader, "whole", loader)
    if isinstance(loader, DataLoader):
        sampler: Any = loader.sampler
        plain = loader.batch_size and loader.collate_fn is default_collate
        found = _targets(loader.dataset) if plain and type(sampler) in (SequentialSampler, RandomSampler) else None
        if found is not None and len(found) != len(sampler):  # not each sample once
            return None
    else:
        pair = getattr(loader, "batch", None)  # the whole
        found = pair[1] if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor) else None
    return found if found is not None and found.dim() and 0 < found.numel() <= MOST else None


def _targets(data: Any) -> Tensor | None:
    home = type(data).__module__.partition(".")[0]
    if home == "framework":  # a data set as worker processes have it
        return _targets(data.dataset)
    if type(data) is Subset:
        found = _targets(data.dataset)
        return None if found is None else found[torch.as_tensor(data.indices)]
    if type(data) is TensorDataset:
        return data.tensors[1] if len(data.tensors) == 2 else None
    if home != "torchvision" or getattr(data, "target_transform", None) or len(data) > MOST:
        return None
    found = getattr(data, "targets", None)
    if isinstance(found, list) and set(map(type, found)) == {int}:
        return torch.tensor(found)
    return found if isinstance(found, Tensor) and found.dim() == 1 else None
