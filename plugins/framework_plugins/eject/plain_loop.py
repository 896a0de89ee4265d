"""The training loop as one would write it by hand, for what a Recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from typing import Any

from framework import UsageError, mode_of

# A line is written where all that stands before its bar holds, or does not hold after a "!".
LOOP = Template('''\
                |
measured        |
measured        |def measure(batches):
measured        |    """Mean $means_of over the samples, without gradients."""
measured        |    $zeros
measured        |    model.eval()
measured        |    with torch.no_grad():
measured        |        for x, y in batches:
measured        |            x, y = x.to(device), y.to(device)
measured        |            output = model(x)
measured        |            total += loss(output, y).item() * len(x)
measured hits   |            right += ($hits).sum().item()
measured many   |            answers += y.numel()
measured        |            count += len(x)
measured        |    return $means
measured        |
measured        |
best !patience  |best = $worst
best patience   |best, best_epoch = $worst, -1
                |for epoch in range($epochs):
                |    model.train()
whole           |    optimizer.zero_grad()
whole           |    output = model(x)
whole           |    batch_loss = loss(output, y)
whole           |    batch_loss.backward()
whole           |    optimizer.step()
whole           |    train_loss = batch_loss.item()
whole hits !many|    train_accuracy = ($hits).sum().item() / len(y)
whole hits many |    train_accuracy = ($hits).sum().item() / y.numel()
!whole          |    $zeros
each            |    for x, y in batches:
each            |        x, y = x.to(device), y.to(device)
each            |        optimizer.zero_grad()
each            |        output = model(x)
each            |        batch_loss = loss(output, y)
each            |        batch_loss.backward()
each            |        optimizer.step()
each            |        total += batch_loss.item() * len(x)
each hits       |        right += ($hits).sum().item()
each many       |        answers += y.numel()
each            |        count += len(x)
windows         |    iterator = iter(batches)
windows         |    while window := list(islice(iterator, $accumulate)):  # the last one may be shorter
windows         |        samples = sum(len(x) for x, _ in window)
windows         |        optimizer.zero_grad()
windows         |        for x, y in window:
windows         |            x, y = x.to(device), y.to(device)
windows         |            output = model(x)
windows         |            batch_loss = loss(output, y)
windows         |            (batch_loss * (len(x) / samples)).backward()  # its share of the mean over the window
windows         |            total += batch_loss.item() * len(x)
windows hits    |            right += ($hits).sum().item()
windows many    |            answers += y.numel()
windows         |            count += len(x)
windows         |        optimizer.step()
!whole          |    $train = $means
!val            |    print(f"epoch {epoch}  $show_train")
val             |    $val = measure(val_batches)
val             |    print(f"epoch {epoch}  $show_train", end="  ")
val             |    print(f"$show_val")
best            |    if $better:
best !patience  |        best = $figure
best patience   |        best, best_epoch = $figure, epoch
restores        |        weights = copy.deepcopy(model.state_dict())
patience        |    elif epoch - best_epoch >= $patience:
patience        |        break
restores        |model.load_state_dict(weights)  # those of the epoch with the best $figure
test            |$test = measure(test_batches)
test            |print(f"$show_test")
''')


@dataclass
class Loop:
    """What the loop depends on.

    Attributes:
        epochs, accumulate: how the script names these numbers; accumulate is "" where a window is one batch
        whole: whether the training data is one batch, `x` and `y`; else there are `batches`
        splits: of val and test, those that there are
        hits: an expression of `output` and `y`, true where an answer is right; empty where nothing is counted
        many: whether a sample has more than one answer
        figure, mode, min_delta: by which an epoch is the best, where it matters
        patience: epochs without a better one that end the training; 0 for none
        restores: whether the script goes back to the weights of the best epoch
    """

    epochs: str = ""
    accumulate: str = ""
    whole: bool = False
    splits: tuple[str, ...] = ()
    hits: str = ""
    many: bool = False
    figure: str = ""
    mode: str = ""
    min_delta: float = 0.0
    patience: int = 0
    restores: bool = False

    def follow(self, name: str, plugin: Any) -> None:
        """Do what a plugin does about the best epoch, if it does anything about it."""
        if not (plugin.restore_best or hasattr(plugin, "patience")):
            return
        figure = plugin.monitor.wanted or ("val_loss" if "val" in self.splits else "train_loss")
        best = figure, mode_of(figure, plugin.monitor.wanted_mode), plugin.monitor.min_delta
        known = [f"{split}_{kind}" for split in ("train", "val") for kind in ("loss", "accuracy")]
        if figure not in known or (self.figure and best != (self.figure, self.mode, self.min_delta)):
            raise UsageError(f"the plugin {name} cannot be ejected: it follows {figure}; write its part by hand")
        self.figure, self.mode, self.min_delta = best
        self.patience = getattr(plugin, "patience", self.patience)
        self.restores = self.restores or plugin.restore_best

    def text(self) -> str:
        holds = {
            "measured": self.splits, "val": "val" in self.splits, "test": "test" in self.splits, "hits": self.hits,
            "many": self.hits and self.many, "whole": self.whole, "each": not (self.whole or self.accumulate),
            "windows": self.accumulate and not self.whole, "best": self.figure, "patience": self.patience,
            "restores": self.restores,
        }  # fmt: skip
        sign, margin, worst = ("<", "-", "") if self.mode == "min" else (">", "+", "-")
        words = {
            **vars(self), "worst": f'{worst}float("inf")', "means_of": "loss and accuracy" if self.hits else "loss",
            "zeros": " = ".join(["total", *["right"] * bool(self.hits), *["answers"] * self.many, "count", "0"]),
            "means": f"total / count, right / {'answers' if self.many else 'count'}" if self.hits else "total / count",
            "better": f"{self.figure} {sign} best" + (f" {margin} {self.min_delta}" if self.min_delta else ""),
        }  # fmt: skip
        for split in ("train", "val", "test"):
            names = [f"{split}_loss", *[f"{split}_accuracy"] * bool(self.hits)]
            words[split] = ", ".join(names)
            words[f"show_{split}"] = "  ".join(f"{name} {{{name}:.6f}}" for name in names)
        lines = (line.split("|", 1) for line in LOOP.substitute(words).splitlines())
        return "".join(
            f"{code}\n"
            for conditions, code in lines
            if all(bool(holds[word.lstrip("!")]) != word.startswith("!") for word in conditions.split())
        )
