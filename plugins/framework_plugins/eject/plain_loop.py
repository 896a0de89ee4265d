"""The training loop as one would write it by hand, for what a Recipe asks for."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from framework import UsageError, mode_of

FIGURES = [f"{split}_{figure}" for split in ("train", "val") for figure in ("loss", "accuracy")]


@dataclass
class Best:
    """What the script does about the best epoch: goes back to its weights, stops when it lies too far behind."""

    monitor: tuple[str, str, float] | None = None  # figure, mode, min_delta
    patience: int = 0
    restores: bool = False

    def take(self, name: str, plugin: Any, val: bool) -> None:
        """Follow what a plugin follows, where it does something about it."""
        if not (plugin.restore_best or hasattr(plugin, "patience")):
            return
        figure = plugin.monitor.wanted or ("val_loss" if val else "train_loss")
        monitor = figure, mode_of(figure, plugin.monitor.wanted_mode), plugin.monitor.min_delta
        if figure not in FIGURES or self.monitor not in (None, monitor):
            raise UsageError(f"the plugin {name} cannot be ejected: it follows {figure}; write its part by hand")
        self.monitor, self.restores = monitor, self.restores or plugin.restore_best
        self.patience = getattr(plugin, "patience", self.patience)

    def before(self) -> Iterator[str]:
        if self.monitor:
            worst = 'float("inf")' if self.monitor[1] == "min" else '-float("inf")'
            yield f"best, best_epoch = {worst}, -1" if self.patience else f"best = {worst}"

    def inside(self) -> Iterator[str]:
        if self.monitor:
            figure, mode, delta = self.monitor
            margin = f" {'-' if mode == 'min' else '+'} {delta}" if delta else ""
            yield f"if {figure} {'<' if mode == 'min' else '>'} best{margin}:"
            yield f"    best, best_epoch = {figure}, epoch" if self.patience else f"    best = {figure}"
            if self.restores:
                yield "    weights = copy.deepcopy(model.state_dict())"
            if self.patience:
                yield from (f"elif epoch - best_epoch >= {self.patience}:", "    break")

    def after(self) -> Iterator[str]:
        if self.restores and self.monitor:
            yield f"model.load_state_dict(weights)  # those of the epoch with the best {self.monitor[0]}"


@dataclass
class Loop:
    """The lines of the loop.

    Attributes:
        epochs, accumulate: how the script names these numbers; accumulate is "1" where a window is one batch
        whole: whether the training data is one batch, `x` and `y`; else there are `batches`
        splits: of val and test, those that there are
        accuracy: an expression of `output` and `y`, true where an answer is right; empty where nothing is counted
        wide: whether a sample has more than one answer
    """

    epochs: str
    accumulate: str
    whole: bool
    splits: list[str]
    accuracy: str
    wide: bool
    best: Best

    def lines(self) -> Iterator[str]:
        yield from self._measure() if self.splits else [""]
        yield from self.best.before()
        yield f"for epoch in range({self.epochs}):"
        yield from _indented(self._epoch())
        yield from self.best.after()
        if "test" in self.splits:
            yield f"{self._figures('test')} = measure(test_batches)"
            yield self._print("test")

    def _epoch(self) -> Iterator[str]:
        yield "model.train()"
        yield from self._whole() if self.whole else self._pass()
        if "val" in self.splits:
            yield f"{self._figures('val')} = measure(val_batches)"
            yield self._print("train", start="epoch {epoch}  ", end=', end="  "')
            yield self._print("val")
        else:
            yield self._print("train", start="epoch {epoch}  ")
        yield from self.best.inside()

    def _whole(self) -> Iterator[str]:
        """Gradient descent on all samples at once."""
        yield from ("optimizer.zero_grad()", "output = model(x)", "batch_loss = loss(output, y)")
        yield from ("batch_loss.backward()", "optimizer.step()", "train_loss = batch_loss.item()")
        if self.accuracy:
            yield f"train_accuracy = ({self.accuracy}).sum().item() / {'y.numel()' if self.wide else 'len(y)'}"

    def _pass(self) -> Iterator[str]:
        """One pass over the batches."""
        moved, step = "x, y = x.to(device), y.to(device)", ["output = model(x)", "batch_loss = loss(output, y)"]
        counting = list(self._counting("batch_loss.item()"))
        yield self._zeros()
        if self.accumulate == "1":
            yield "for x, y in batches:"
            step += ["batch_loss.backward()", "optimizer.step()"]
            yield from _indented([moved, "optimizer.zero_grad()", *step, *counting])
        else:
            step += ["(batch_loss * (len(x) / samples)).backward()  # its share of the mean over the window"]
            window = ["samples = sum(len(x) for x, _ in window)", "optimizer.zero_grad()", "for x, y in window:"]
            window += [*_indented([moved, *step, *counting]), "optimizer.step()"]
            yield "iterator = iter(batches)"
            yield f"while window := list(islice(iterator, {self.accumulate})):  # the last one may be shorter"
            yield from _indented(window)
        yield f"{self._figures('train')} = {self._means()}"

    def _measure(self) -> Iterator[str]:
        """A function that evaluates a data set, with the blank lines around it."""
        inner = ["x, y = x.to(device), y.to(device)", "output = model(x)", *self._counting("loss(output, y).item()")]
        body = [
            f'"""Mean {"loss and accuracy" if self.accuracy else "loss"} over the samples, without gradients."""',
            self._zeros(),
            "model.eval()",
            "with torch.no_grad():",
            *_indented(["for x, y in batches:", *_indented(inner)]),
            f"return {self._means()}",
        ]
        yield from ("", "", "def measure(batches):", *_indented(body), "", "")

    def _zeros(self) -> str:
        return " = ".join(["total", *["right"] * bool(self.accuracy), *["answers"] * self.wide, "count", "0"])

    def _counting(self, loss: str) -> Iterator[str]:
        yield f"total += {loss} * len(x)"
        if self.accuracy:
            yield f"right += ({self.accuracy}).sum().item()"
        if self.wide:
            yield "answers += y.numel()"
        yield "count += len(x)"

    def _means(self) -> str:
        return f"total / count, right / {'answers' if self.wide else 'count'}" if self.accuracy else "total / count"

    def _names(self, split: str) -> list[str]:
        return [f"{split}_loss", *[f"{split}_accuracy"] * bool(self.accuracy)]

    def _figures(self, split: str) -> str:
        return ", ".join(self._names(split))

    def _print(self, split: str, start: str = "", end: str = "") -> str:
        figures = "  ".join(f"{name} {{{name}:.6f}}" for name in self._names(split))
        return f'print(f"{start}{figures}"{end})'


def _indented(lines: Any) -> list[str]:
    return textwrap.indent("\n".join(lines), "    ").split("\n")
