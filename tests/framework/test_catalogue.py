"""A catalogue of mistakes: each is told in the user's own names, shapes and values; none is silent, none hangs.

Every entry of MISTAKES is made on purpose, and must end in an error of the given kind whose text has the given words,
before the optimizer's first step, unless it is one of LATE, which nobody can know before. DOUBTS are only warned of.
COMMANDS are typed on the command line: exit status 2, and a line or two on stderr.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.early_stopping import EarlyStopping
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from framework import (
    CheckpointError,
    DataError,
    DeviceError,
    NonFiniteError,
    PluginError,
    RecipeError,
    Trainer,
    UsageError,
    hookimpl,
    run,
)
from framework.cli import main

X, Y = torch.linspace(0.05, 0.95, 15).reshape(5, 3), torch.linspace(0.1, 0.9, 5).reshape(5, 1)
LABELS = torch.tensor([0, 1, 2, 1, 0])
MADE: list[Trainer] = []  # by the entry that is tried


def trainer(model: nn.Module | None = None, loss: Any = None, **options: Any) -> Trainer:
    model = model or nn.Linear(3, 1)
    kind, lr = options.pop("kind", torch.optim.SGD), options.pop("lr", 0.1)
    optimizer = options.pop("optimizer", None) or kind(model.parameters(), lr=lr)
    MADE.append(Trainer(model, loss or nn.MSELoss(), optimizer, **{"device": "cpu", **options}))
    return MADE[-1]


def fit(data: Any = (X, Y), model: nn.Module | None = None, loss: Any = None, **options: Any) -> None:
    """A fit of a Trainer, which gets of the options what is its own."""
    own = "plugins", "device", "kind", "lr"
    made = trainer(model, loss, **{name: options.pop(name) for name in own if name in options})
    made.fit(data, **options)


class Rows(Dataset[Any]):
    """Five samples, each of which is what `sample` makes of its row."""

    def __init__(self, sample: Callable[[int], Any], length: Any = 5) -> None:
        self.sample, self.length = sample, length

    def __len__(self) -> int:
        return self.length  # type: ignore[no-any-return]

    def __getitem__(self, row: int) -> Any:
        return self.sample(row)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(X, Y, strict=True)))


class LongStream(Stream):
    def __len__(self) -> int:
        return 5


class Net(nn.Module):
    """A linear layer, and a forward that is given."""

    def __init__(self, forward: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.how, self.layer = forward, nn.Linear(3, 1)

    def forward(self, x: Any) -> Any:
        return self.how(self, x)


def raises(error: type[BaseException], *given: Any) -> Any:
    raise error(*given)


def on(row: int, otherwise: Callable[[], Any]) -> Callable[[int], Any]:
    return lambda asked: otherwise() if asked == row else (X[asked], Y[asked])


def plugin(**members: Any) -> Any:
    return type("Mine", (), members)()


def layers(*of: nn.Module) -> nn.Module:
    return nn.Sequential(*of)


def with_nan() -> torch.Tensor:
    x = X.clone()
    x[2, 1] = float("nan")
    return x


def keeps(net: Any, x: Any) -> Any:
    """The forward of a model with a state that is never detached."""
    net.state = net.layer(x) + getattr(net, "state", torch.zeros(1)).exp()
    return net.state


Words = tuple[str, ...]
MISTAKES: dict[str, tuple[Callable[[], Any], type[Exception], Words]] = {
    # ------------------------------------------------------------------------------------------------- the Trainer
    "a class as the model": (
        lambda: Trainer(nn.Linear, F.mse_loss, None),
        UsageError,
        ("model must be a torch Module", "Linear"),
    ),
    "no model": (lambda: Trainer(None, F.mse_loss, None), UsageError, ("model must be a torch Module", "None")),
    "a class as the loss": (lambda: trainer(loss=nn.MSELoss), UsageError, ("loss(output, y)", "nn.MSELoss()")),
    "a name as the loss": (lambda: trainer(loss="mse"), UsageError, ("loss(output, y)", "'mse'")),
    "a class as the optimizer": (lambda: trainer(optimizer=torch.optim.SGD), UsageError, ("optimizer", "SGD")),
    "an optimizer of another model": (
        lambda: trainer(optimizer=torch.optim.Adam(nn.Linear(3, 1).parameters())),
        UsageError,
        ("Adam", "none of the model's parameters", "model.parameters()"),
    ),
    "a misspelt device": (lambda: trainer(device="cdua"), DeviceError, ("'cdua'", "'cuda'", "This machine has: ")),
    "a device by another name": (lambda: trainer(device="gpu"), DeviceError, ("'gpu'", "cpu")),
    "a device that is not there": (lambda: trainer(device="cuda:77"), DeviceError, ("'cuda:77'", "cpu")),
    "a device of no kind": (lambda: trainer(device=3.5), DeviceError, ("'3.5'", "cpu")),
    "a misspelt choice": (lambda: trainer(on_nonfinite="stopp"), UsageError, ("on_nonfinite", "'stop'", "'stopp'")),
    # ----------------------------------------------------------------------------------------------------- fit itself
    "no epochs": (lambda: fit(epochs=0), UsageError, ("epochs", "from 1 up", "got 0")),
    "epochs as text": (lambda: fit(epochs="3"), UsageError, ("epochs", "whole number", "'3'")),
    "half an epoch": (lambda: fit(epochs=0.5), UsageError, ("epochs", "whole number", "0.5")),
    "a batch size below one": (lambda: fit(batch_size=-2), UsageError, ("batch_size", "from 1 up", "-2")),
    "a batch size that is a float": (lambda: fit(batch_size=2.0), UsageError, ("batch_size", "2.0")),
    "accumulation of nothing": (lambda: fit(accumulate=0), UsageError, ("accumulate", "from 1 up", "got 0")),
    "fewer workers than none": (lambda: fit(num_workers=-1), UsageError, ("num_workers", "from 0 up", "-1")),
    "shuffle as text": (lambda: fit(shuffle="no"), UsageError, ("shuffle", "True or False", "'no'")),
    "drop_last as a number": (lambda: fit(drop_last=1), UsageError, ("drop_last", "True or False", "got 1")),
    "a way to load that is not there": (lambda: fit(loader="fast"), UsageError, ("loader='fast'", "auto", "torch")),
    "a misspelt speed": (lambda: fit(fast="maths"), UsageError, ("fast='maths'", "'math'")),
    "a cache that is no flag": (lambda: fit(cache=1), UsageError, ("cache", "True or False", "got 1")),
    "a cache and torch's loader": (
        lambda: fit(cache=True, loader="torch"),
        UsageError,
        ("cache=True", "leave out one"),
    ),
    "a graph and other bits": (lambda: fit(graph=True, fast="math"), UsageError, ("graph=True", "fast='math'")),
    "a batch size beside a DataLoader": (
        lambda: fit(DataLoader(TensorDataset(X, Y)), batch_size=2),
        UsageError,
        ("DataLoader", "leave out batch_size=2"),
    ),
    "a stream that is to be shuffled": (
        lambda: fit(Stream(), batch_size=2, shuffle=True),
        UsageError,
        ("IterableDataset", "leave out shuffle=True"),
    ),
    "a fit inside a fit": (
        lambda: fit(plugins=[plugin(on_epoch_start=lambda self, trainer: trainer.fit((X, Y)))]),
        UsageError,
        ("a fit of this trainer is running",),
    ),
    "a resume from nowhere": (lambda: fit(resume="nowhere"), CheckpointError, ("nowhere",)),
    # ------------------------------------------------------------------------------------------------------- the data
    "nothing as the data": (lambda: fit(None), DataError, ("train", "NoneType", "pair of tensors (x, y)")),
    "a path as the data": (lambda: fit("data.csv"), DataError, ("train", "str", "must be a Dataset")),
    "x without y": (lambda: fit(X), DataError, ("train", "Tensor", "(x, y)")),
    "arrays as the data": (lambda: fit((X.numpy(), Y.numpy())), DataError, ("train", "ndarray", "pair of tensors")),
    "lists as the data": (lambda: fit((X.tolist(), Y.tolist())), DataError, ("train", "list", "pair of tensors")),
    "a class as the data set": (lambda: fit(Rows), DataError, ("train", "type", "must be a Dataset")),
    "x and y of different length": (lambda: fit((X, Y[:3])), DataError, ("same number of samples", "x 5", "y 3")),
    "x the wrong way round": (lambda: fit((X.T, Y)), DataError, ("x 3", "y 5")),
    "no samples": (lambda: fit((X[:0], Y[:0])), DataError, ("train: the data set is empty",)),
    "no samples to validate": (lambda: fit(val=(X[:0], Y[:0])), DataError, ("val: the data set is empty",)),
    "an empty stream": (lambda: fit(DataLoader([])), DataError, ("train", "no batch")),
    "no full batch": (
        lambda: fit(batch_size=9, drop_last=True),
        DataError,
        ("drop_last=True leaves no batch", "5 samples", "batch_size=9"),
    ),
    "a data set without a length": (
        lambda: fit(type("Endless", (Dataset,), {"__getitem__": lambda self, row: (X[row], Y[row])})(), batch_size=2),
        DataError,
        ("train", "Endless", "__len__"),
    ),
    "a length that is negative": (lambda: fit(Rows(lambda row: X, -1), batch_size=2), DataError, ("Rows", "__len__")),
    "a length that is too long": (
        lambda: fit(Rows(lambda row: (X[row], Y[row]), 9), batch_size=9, shuffle=False),
        DataError,
        ("train: data set Rows[5] failed: IndexError", "size 5", "test_catalogue.py:"),
    ),
    "samples of one part": (lambda: fit(Rows(lambda row: X[row]), batch_size=2), DataError, ("pair (x, y)", "(2, 3)")),
    "samples of three parts": (
        lambda: fit(Rows(lambda row: (X[row], Y[row], row)), batch_size=2),
        DataError,
        ("pair (x, y)", "3 parts", "batch[2] (2,) int64"),
    ),
    "samples that are dicts": (
        lambda: fit(Rows(lambda row: {"image": X[row], "label": Y[row]}), batch_size=2),
        DataError,
        ("pair (x, y)", "batch['image'] (2, 3)", "forward and compute_loss"),
    ),
    "samples of different shape": (
        lambda: fit(Rows(lambda row: (torch.ones(row + 1), Y[row])), batch_size=2, shuffle=False),
        DataError,
        ("do not fit together", "[1] at entry 0 and [2] at entry 1", "collate_fn"),
    ),
    "samples with other keys": (
        lambda: fit(Rows(lambda row: ({"a" if row else "b": X[row]}, Y[row])), batch_size=2, shuffle=False),
        DataError,
        ("do not fit together", "KeyError('b')", "same shapes, keys and types"),
    ),
    "a sample without a return": (
        lambda: fit(Rows(lambda row: None), batch_size=2),
        DataError,
        ("do not fit together", "NoneType", "a missing return makes None"),
    ),
    "a sample that is an image object": (
        lambda: fit(Rows(lambda row: (object(), Y[row])), batch_size=2),
        DataError,
        ("do not fit together", "<class 'object'>", "numpy arrays, numbers"),
    ),
    "a sample that fails": (
        lambda: fit(Rows(on(4, lambda: raises(KeyError, "label"))), batch_size=5),
        DataError,
        ("train: data set Rows[4] failed: KeyError('label'), at test_catalogue.py:",),
    ),
    "a sample that fails in validation": (
        lambda: trainer().evaluate(Rows(on(4, lambda: raises(FileNotFoundError, "4.png"))), batch_size=5),
        DataError,
        ("test: data set Rows[4] failed: FileNotFoundError('4.png')",),
    ),
    "a StopIteration in a sample": (
        lambda: fit(Rows(on(4, lambda: raises(StopIteration)))),
        DataError,
        ("train: data set Rows[4] failed: StopIteration()",),
    ),
    "a sample that fails in a worker": (
        lambda: fit(Rows(on(1, lambda: raises(KeyError, "label"))), batch_size=5, num_workers=1),
        DataError,
        ("train: data set Rows[1] failed: KeyError('label'), at test_catalogue.py:",),
    ),
    "a StopIteration in a worker": (
        lambda: fit(Rows(on(1, lambda: raises(StopIteration))), batch_size=5, num_workers=1),
        DataError,
        ("train: data set Rows[1] failed: StopIteration()",),
    ),
    "an exit in a worker": (
        lambda: fit(Rows(on(1, lambda: raises(SystemExit, 2))), batch_size=5, num_workers=1),
        DataError,
        ("train: data set Rows[1] failed: SystemExit(2)",),
    ),
    "an exception that cannot be sent": (
        lambda: fit(Rows(on(1, lambda: raises(type("Own", (Exception,), {}), "mine"))), batch_size=5, num_workers=1),
        DataError,
        ("train: data set Rows[1] failed: Own('mine')",),
    ),
    "samples that draw, in a cache": (
        lambda: fit(Rows(lambda row: (torch.rand(3), Y[row])), batch_size=2, cache=True),
        DataError,
        ("cache=True", "Rows", "draws random numbers"),
    ),
    "batches whose samples cannot be counted": (
        lambda: fit(([X, X[:3]], Y)),
        DataError,
        ("x[0] 5, x[1] 3, y 5",),
    ),
    # ------------------------------------------------------------------------------------------ targets and the loss
    "a target that would be broadcast": (
        lambda: fit((X, Y[:, 0])),
        DataError,
        ("(5, 1)", "(5,)", "broadcast to (5, 5)", "y.reshape(-1, 1)"),
    ),
    "the same in a loss of one's own": (
        lambda: fit((X, Y[:, 0]), loss=lambda output, y: ((output - y) ** 2).mean()),
        DataError,
        ("broadcast to (5, 5)", "output.squeeze(1)"),
    ),
    "class numbers for mean squared error": (
        lambda: fit((X, LABELS), nn.Linear(3, 3)),
        DataError,
        ("(5, 3)", "(5,)", "element by element"),
    ),
    "a label that is too large": (
        lambda: fit((X, LABELS + 1), nn.Linear(3, 3), nn.CrossEntropyLoss()),
        DataError,
        ("label 3 in row 2", "3 classes (0..2)", "Labels count from 0"),
    ),
    "a label below zero": (
        lambda: fit((X, LABELS - 1), nn.Linear(3, 3), nn.CrossEntropyLoss()),
        DataError,
        ("label -1 in row 0", "3 classes (0..2)"),
    ),
    "two classes for one output": (
        lambda: fit((X, LABELS.clamp(max=1)), nn.Linear(3, 1), nn.CrossEntropyLoss()),
        DataError,
        ("label 1 in row 1", "one output"),
    ),
    "labels that are floats": (
        lambda: fit((X, LABELS.float()), nn.Linear(3, 3), nn.CrossEntropyLoss()),
        DataError,
        ("class numbers", "float32 (5,)", "y.long()"),
    ),
    "labels that are small integers": (
        lambda: fit((X, LABELS.int()), nn.Linear(3, 3), nn.CrossEntropyLoss()),
        DataError,
        ("class numbers", "int32 (5,)", "y.long()"),
    ),
    "labels in a column": (
        lambda: fit((X, LABELS[:, None]), nn.Linear(3, 3), nn.CrossEntropyLoss()),
        DataError,
        ("class numbers", "int64 (5, 1)", "y.squeeze(1)"),
    ),
    "labels as rows of zeros and a one": (
        lambda: fit((X, F.one_hot(LABELS)), nn.Linear(3, 3), nn.CrossEntropyLoss()),
        DataError,
        ("int64 (5, 3)", "y.argmax(1)"),
    ),
    "scores without classes": (
        lambda: fit((X, LABELS), layers(nn.Linear(3, 1), nn.Flatten(0)), nn.CrossEntropyLoss()),
        DataError,
        ("(samples, classes)", "(5,)"),
    ),
    "another number of outputs than labels": (
        lambda: fit((X, LABELS), layers(nn.Linear(3, 3), nn.Unflatten(0, (1, 5))), nn.CrossEntropyLoss()),
        Exception,
        ("(5,)",),
    ),
    "whole numbers for a loss of logits": (
        lambda: fit((X, LABELS[:, None]), loss=nn.BCEWithLogitsLoss()),
        DataError,
        ("int64", "y.float()"),
    ),
    "scores for a loss of probabilities": (
        lambda: fit(model=Net(lambda net, x: net.layer(x) + 9), loss=nn.BCELoss()),
        DataError,
        ("needs probabilities", "outputs of the model reach from", "sigmoid"),
    ),
    "targets beyond one for a loss of probabilities": (
        lambda: fit((X, Y + 7), layers(nn.Linear(3, 1), nn.Sigmoid()), nn.BCELoss()),
        DataError,
        ("needs probabilities", "targets y reach from 7", "to 7."),
    ),
    "a loss for each sample": (
        lambda: fit(loss=nn.MSELoss(reduction="none")),
        DataError,
        ("one number", "shape (5, 1)", "reduction='mean'"),
    ),
    "a loss that is a Python number": (
        lambda: fit(loss=lambda output, y: F.mse_loss(output, y).item()),
        DataError,
        ("one number in a tensor", "a float"),
    ),
    "a loss without a return": (lambda: fit(loss=lambda output, y: None), DataError, ("one number", "a NoneType")),
    "a complex loss": (lambda: fit(loss=lambda o, y: (o * 1j).mean()), DataError, ("one number", "complex64")),
    "a loss that takes one argument": (
        lambda: fit(loss=lambda output: output.mean()),
        TypeError,
        ("argument", "(5, 3)"),
    ),
    "a loss that is cut off": (
        lambda: fit(loss=lambda output, y: F.mse_loss(output.detach(), y)),
        DataError,
        ("does not depend on any parameter", "detach()"),
    ),
    "weights for another number of classes": (
        lambda: fit((X, LABELS), nn.Linear(3, 3), nn.CrossEntropyLoss(torch.ones(2))),
        RuntimeError,
        ("all 3 classes", "[2]", "x (5, 3) float32"),
    ),
    "targets that are text": (
        lambda: fit(Rows(lambda row: (X[row], "cat")), batch_size=2),
        DataError,
        ("the target y is a tuple of 2 (str, str)",),
    ),
    # ------------------------------------------------------------------------------------------------------ the model
    "inputs of another size": (
        lambda: fit(model=nn.Linear(4, 1)),
        DataError,
        ("'Linear' is Linear(4, 1)", "takes 4 numbers a sample", "(5, 3)"),
    ),
    "an inner layer of another size": (
        lambda: fit(model=layers(nn.Linear(3, 4), layers(nn.ReLU(), nn.Linear(5, 1)))),
        DataError,
        ("'1.1' is Linear(5, 1)", "(5, 4)"),
    ),
    "images that are not flattened": (
        lambda: fit((torch.rand(2, 1, 4, 4), LABELS[:2]), nn.Linear(16, 3), nn.CrossEntropyLoss()),
        DataError,
        ("Linear(16, 3)", "(2, 1, 4, 4)", "nn.Flatten()"),
    ),
    "images of other channels": (
        lambda: fit((torch.rand(5, 3, 4, 4), Y), layers(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))),
        DataError,
        ("'0' is Conv2d(1, 2", "(5, 3, 4, 4)", "to have 1 channels"),
    ),
    "images that are flattened": (
        lambda: fit((torch.rand(5, 16), Y), layers(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))),
        DataError,
        ("'0' is Conv2d(1, 2", "(5, 16)", "4D (batched)"),
    ),
    "a normalization of other features": (
        lambda: fit(model=layers(nn.Linear(3, 4), nn.BatchNorm1d(3), nn.Linear(4, 1))),
        DataError,
        ("'1' is BatchNorm1d(3", "(5, 4)"),
    ),
    "a normalization of one sample": (
        lambda: fit((X[:1], Y[:1]), layers(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))),
        DataError,
        ("batch normalization", "larger batch_size", "drop_last=True"),
    ),
    "a view of another size": (
        lambda: fit(model=Net(lambda net, x: net.layer(x.view(-1, 4)))),
        DataError,
        ("'Net'", "(5, 3)", "'[-1, 4]'"),
    ),
    "a word that is not in the vocabulary": (
        lambda: fit((torch.tensor([[0, 9]] * 5), Y), layers(nn.Embedding(4, 1), nn.Flatten(), nn.Linear(2, 1))),
        DataError,
        ("'0' is Embedding(4, 1)", "rows from 0 to 9"),
    ),
    "words that are floats": (
        lambda: fit(model=layers(nn.Embedding(4, 1), nn.Flatten(), nn.Linear(3, 1))),
        DataError,
        ("'0' is Embedding(4, 1)", "float32 (5, 3)", "Long"),
    ),
    "several inputs": (
        lambda: fit(({"a": X, "b": X}, Y)),
        DataError,
        ("'Linear' takes one tensor", "a dict of 'a', 'b'", "forward"),
    ),
    "inputs of double precision": (lambda: fit((X.double(), Y)), DataError, ("x is float64", "float32", "x.float()")),
    "inputs that are whole numbers": (lambda: fit((X.long(), Y)), DataError, ("x is int64", "x.float()")),
    "images that are bytes": (
        lambda: fit((torch.zeros(5, 3, dtype=torch.uint8), Y)),
        DataError,
        ("x is uint8", "x.float()"),
    ),
    "a model of double precision": (
        lambda: fit(model=nn.Linear(3, 1).double()),
        DataError,
        ("x is float32", "float64", "model.float()"),
    ),
    "a forward without a return": (
        lambda: fit(model=Net(lambda net, x: None)),
        DataError,
        ("forward of the model returns a NoneType",),
    ),
    "a forward that returns two": (
        lambda: fit(model=Net(lambda net, x: (net.layer(x), x))),
        DataError,
        ("forward of the model returns a tuple of 2 (Tensor, Tensor)",),
    ),
    "a model without a forward": (
        lambda: fit(model=type("NoForward", (nn.Linear,), {"forward": nn.Module.forward})(3, 1)),
        NotImplementedError,
        ("NoForward", "forward", "x (5, 3) float32"),
    ),
    "a model that is frozen": (
        lambda: fit(model=nn.Linear(3, 1).requires_grad_(False)),
        DataError,
        ("no parameter to train",),
    ),
    "a model under no_grad": (
        lambda: fit(model=Net(lambda net, x: torch.no_grad()(net.layer)(x))),
        DataError,
        ("does not depend on any parameter", "no_grad()"),
    ),
    "an operation in place": (
        lambda: fit(model=Net(lambda net, x: (lambda z: z * 2 + z.add_(1))(net.layer(x).exp()))),
        DataError,
        ("changed in place", "copy it"),
    ),
    "an optimizer that needs a closure": (
        lambda: fit(kind=torch.optim.LBFGS),
        DataError,
        ("this optimizer", "needs a closure, which a plugin gives it"),
    ),
    "a model on meta": (
        lambda: fit(model=nn.Linear(3, 1, device="meta")),
        UsageError,
        ("'weight'", "meta", "real device"),
    ),
    "targets on another device": (lambda: fit((X, Y.to("meta"))), DeviceError, ("y is on meta", "cpu", "same device")),
    "a layer on another device": (
        lambda: fit(model=Net(lambda net, x: net.layer(x) + torch.ones(5, 1, device="meta"))),
        DeviceError,
        ("a tensor is made elsewhere", "device=x.device", "meta"),
    ),
    "a batch that is too large for the memory": (
        lambda: fit(model=Net(lambda net, x: net.layer(x) + torch.empty(10**15).sum())),
        torch.OutOfMemoryError,
        ("out of memory at step 0", "4000000000000000 bytes", "x (5, 3)", "batch_size=2 and accumulate=2"),
    ),
    # ------------------------------------------------------------------------------------ numbers that are not finite
    "nan in the data": (
        lambda: fit((with_nan(), Y)),
        NonFiniteError,
        ("train_loss became nan at step 0", "x holds nan in row 2"),
    ),
    "labels that are all ignored": (
        lambda: fit((X, torch.full((5,), -100)), nn.Linear(3, 3), nn.CrossEntropyLoss()),
        NonFiniteError,
        ("became nan at step 0", "every label y of this batch is -100"),
    ),
    "a logarithm of a negative number": (
        lambda: fit(loss=lambda output, y: (output - 100).log().mean()),
        NonFiniteError,
        ("became nan at step 0", "the outputs are finite", "log(0)"),
    ),
    "a layer that overflows": (
        lambda: fit(model=Net(lambda net, x: net.layer(x) / 0)),
        NonFiniteError,
        ("became inf at step 0", "inf comes first out of the layer '' (Net)"),
    ),
    "a learning rate that is too large": (
        lambda: fit((X * 1e3, Y), lr=1e9, epochs=50),
        NonFiniteError,
        ("learning rate 1e+09", "try a smaller"),
    ),
    # --------------------------------------------------------------------------------------------------- known late
    "a StopIteration that ends an epoch": (
        lambda: fit(Rows(on(3, lambda: raises(StopIteration))), batch_size=1, shuffle=False),
        DataError,
        ("the pass ended after 3 of 5 batches", "Rows raised StopIteration"),
    ),
    "a stream that two workers repeat": (
        lambda: fit(LongStream(), batch_size=1, num_workers=2),
        DataError,
        ("10 batches of 1 came from LongStream, whose length is 5", "num_workers=2", "get_worker_info()"),
    ),
    "a state that the model keeps": (
        lambda: fit(model=Net(keeps), epochs=2),
        DataError,
        ("a tensor of an earlier step", "detach()"),
    ),
    # ---------------------------------------------------------------------------------------------------- the plugins
    "a plugin that is not there": (lambda: trainer(plugins=["progres"]), PluginError, ("'progres'", "'progress'")),
    "a class as a plugin": (lambda: trainer(plugins=[type("Mine", (), {})]), PluginError, ("Mine", "Mine()")),
    "a misspelt hook": (
        lambda: trainer(plugins=[plugin(on_epoch_ended=lambda self: None)]),
        PluginError,
        ("on_epoch_ended is not a hook", "'on_epoch_end'"),
    ),
    "a misspelt argument of a hook": (
        lambda: trainer(plugins=[plugin(on_epoch_end=lambda self, metric: None)]),
        PluginError,
        ("'metric'", "'metrics'"),
    ),
    "an argument with a default": (
        lambda: trainer(plugins=[plugin(on_epoch_end=lambda self, metrics=None: None)]),
        PluginError,
        ("'metrics' has a default", "leave it out"),
    ),
    "a plugin without a hook": (lambda: trainer(plugins=[object()]), PluginError, ("implements no hook",)),
    "a wrap without a yield": (
        lambda: trainer(plugins=[plugin(on_epoch_end=hookimpl(wrapper=True)(lambda self: None))]),
        PluginError,
        ("yields exactly once",),
    ),
    "two plugins of one name": (
        lambda: trainer(plugins=[plugin(name="a", on_epoch_end=len), plugin(name="a", on_epoch_end=len)]),
        PluginError,
        ("2 plugins are called 'a'", "name="),
    ),
    "two plugins that replace the same": (
        lambda: trainer(plugins=[plugin(name=name, forward=lambda self, model, batch: None) for name in "ab"]),
        PluginError,
        ("forward: a and b both replace it", "split="),
    ),
    "a plugin that forgets its answer": (
        lambda: fit(plugins=[plugin(name="mine", backward=lambda self, loss: loss.backward())]),
        PluginError,
        ("plugin 'mine', hook backward returned None", "it must return True"),
    ),
    "a figure twice": (
        lambda: fit(plugins=[plugin(on_split_end=lambda self, metrics: metrics.update(train_loss=1.0))]),
        UsageError,
        ("'train_loss' is there already",),
    ),
    "a misspelt figure to stop at": (
        lambda: fit(val=(X, Y), plugins=[EarlyStopping("val_los")]),
        UsageError,
        ("'val_los'", "'val_loss'"),
    ),
    "a choice of hook that is not there": (
        lambda: hookimpl(tryfirst=True)(len),
        PluginError,
        ("tryfirst", "in the order in which they are listed"),
    ),
    "a split that is not there": (lambda: hookimpl(split="valid"), PluginError, ("'valid'", "'val'")),
    # ---------------------------------------------------------------------------------------- saving, predicting, run
    "a checkpoint that goes nowhere": (lambda: trainer().save(), UsageError, ("run_dir",)),
    "a label that is no word": (lambda: trainer(run_dir="run").save("The Best"), UsageError, ("'The Best'",)),
    "predictions of nothing": (lambda: trainer().predict("x"), DataError, ("inputs must be a tensor", "str")),
    "predictions of another size": (lambda: trainer().predict(torch.rand(2, 4)), DataError, ("Linear(3, 1)", "(2, 4)")),
    "a recipe that is not there": (lambda: run("no_such_recipe"), RecipeError, ("no_such_recipe",)),
    "a misspelt knob": (lambda: run("softmax", epoch=3), RecipeError, ("epoch", "epochs")),
    "a seed that is too large": (lambda: run("softmax", seed=2**99), UsageError, ("seed", "64 bits")),
}


LATE = {
    "a learning rate that is too large", "a StopIteration that ends an epoch", "a stream that two workers repeat",
    "a state that the model keeps", "a figure twice",
}  # fmt: skip

DOUBTS: dict[str, tuple[Callable[[], Any], Words]] = {
    "probabilities for cross entropy": (
        lambda: fit((X, LABELS), layers(nn.Linear(3, 3), nn.Softmax(1)), nn.CrossEntropyLoss()),
        ("the loss gets probabilities", "leave out softmax"),
    ),
    "probabilities for the negative log-likelihood": (
        lambda: fit((X, LABELS), layers(nn.Linear(3, 3), nn.Softmax(1)), nn.NLLLoss()),
        ("the loss gets probabilities", "use CrossEntropyLoss"),
    ),
    "targets beyond one for logits": (
        lambda: fit((X, Y * 0 + 7), loss=nn.BCEWithLogitsLoss()),
        ("BCEWithLogitsLoss needs targets from 0 to 1", "the targets y reach from 7 to 7"),
    ),
    "a stream without a length that two workers repeat": (
        lambda: fit(Stream(), batch_size=5, num_workers=2),
        ("num_workers=2", "all of Stream", "get_worker_info()"),
    ),
    "a stream that is shorter than it says": (
        lambda: fit(type("Short", (Stream,), {"__len__": lambda self: 50})(), batch_size=1),
        ("5 batches of 1 came from Short", "length is 50", "correct its __len__"),
    ),
    "a stream that is longer than it says": (
        lambda: fit(type("Long", (Stream,), {"__len__": lambda self: 2})(), batch_size=1),
        ("5 batches of 1 came from Long", "length is 2", "correct its __len__"),
    ),
}

HEAD = """
import torch
from torch import nn
from framework import Recipe

def made(x=torch.ones(4, 3), y=torch.ones(4, 1), model=None, loss=nn.MSELoss(), lr=0.1, **settings):
    model = model or nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Recipe(model=model, loss=loss, optimizer=optimizer, train=(x, y), **settings)

"""
PLAIN = "def recipe(lr: float = 0.1, epochs: int = 2): return made(lr=lr, epochs=epochs)"

# the recipe lab.py, what is typed after its name (or in its place, with None), and what stderr says
COMMANDS: dict[str, tuple[str | None, str, Words]] = {
    "a misspelt verb": (None, "plugin", ("'plugin' is neither a verb nor a recipe", "'plugins'")),
    "a misspelt recipe": (None, "softmx", ("'softmx'", "'softmax'")),
    "a recipe file that is not there": (None, "labs/no.py", ("there is no recipe 'labs/no.py'",)),
    "an option before the recipe": (None, "--lr 0.5", ("the recipe comes first", "RECIPE --lr")),
    "a run that is not there": (None, "resume runs/none", ("runs/none is not a run directory",)),
    "predictions of a run that is not there": (None, "predict runs/none x.pt", ("runs/none is not a run directory",)),
    "a misspelt option": (PLAIN, "--epoch 3", ("--epoch", "--epochs")),
    "a value of another kind": (PLAIN, "--epochs many", ("--epochs", "int()", "'many'")),
    "an option without its value": (PLAIN, "--lr", ("Missing value", "'--lr'")),
    "a misspelt plugin": (PLAIN, "-p progres", ("'progres'", "'progress'")),
    "a plugin to leave out that is not there": (PLAIN, "-p no:plto", ("no:plto", "'plot'")),
    "a plugin file that is not there": (PLAIN, "-p mine.py", ("there is no plugin file 'mine.py'",)),
    "a misspelt device": (PLAIN, "--device cdua", ("'cdua'", "'cuda'")),
    "no epochs": (PLAIN, "--epochs 0", ("epochs", "from 1 up", "got 0")),
    "a recipe without a recipe": ("x = 1", "", ("lab.py has no function recipe()", "returns a Recipe")),
    "a recipe that returns something else": ("def recipe(): return 5", "", ("recipe() must return a Recipe", "int 5")),
    "a recipe without a default": ("def recipe(lr): return made(lr=lr)", "", ("the knob 'lr'", "needs a default")),
    "a knob that the command line owns": (
        "def recipe(seed: int = 0): return made()",
        "",
        ("'seed'", "the command line owns"),
    ),
    "an error of syntax": ("def recipe(:", "", ("lab.py, line 11", "invalid syntax")),
    "a module that is not there": (
        "import not_there\ndef recipe(): return made()",
        "",
        ("lab.py, line 11", "No module named 'not_there'"),
    ),
    "a setting that is not there": (
        "def recipe(): return made(batchsize=2)",
        "",
        ("Recipe", "unexpected keyword argument 'batchsize'"),
    ),
    "a target that would be broadcast": (
        "def recipe(): return made(y=torch.ones(4))",
        "",
        ("(4, 1)", "(4,)", "y.reshape(-1, 1)"),
    ),
    "a sample that fails": (
        "class Rows(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, row): return {'x': row}['label']\n"
        "def recipe():\n"
        "    one = made(batch_size=2, shuffle=False)\n"
        "    one.train = Rows()\n"
        "    return one",
        "",
        ("train: data set Rows[0] failed: KeyError('label'), at lab.py:13",),
    ),
    "an inner layer of another size": (
        "def recipe(): return made(model=nn.Sequential(nn.Linear(3, 2), nn.Linear(4, 1)))",
        "",
        ("'1' is Linear(4, 1)", "(4, 2)"),
    ),
}


def told(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    MADE.clear()
    yield
    while workers := multiprocessing.active_children():  # they would wait for seconds before they look for the end
        with contextlib.suppress(RuntimeError):  # torch's, when it hears of it
            workers[0].terminate()
            workers[0].join()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_the_first_step(name: str) -> None:
    make, kind, words = MISTAKES[name]
    with pytest.raises(kind) as caught:
        make()
    said = told(caught.value)
    for word in words:
        assert word in said
    assert said.isascii()
    assert name in LATE or all(trainer.step == 0 for trainer in MADE)


@pytest.mark.parametrize("name", DOUBTS)
def test_a_doubt_is_told_once_and_the_fit_goes_on(name: str) -> None:
    make, words = DOUBTS[name]
    with pytest.warns(UserWarning, match=re.escape(words[0])) as caught:
        make()
    assert len(caught) == 1
    for word in words:
        assert word in str(caught[0].message)
    assert MADE[0].step > 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_on_the_command_line_is_a_line_or_two(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, typed, words = COMMANDS[name]
    Path("lab.py").write_text(HEAD + (source or PLAIN), encoding="utf-8")
    arguments = [] if source is None else ["lab.py", "-p", "no:plot", "-p", "no:progress"]
    assert main([*arguments, *typed.split()]) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 2


def test_the_catalogue_is_as_long_as_it_says() -> None:
    assert len(MISTAKES) + len(DOUBTS) + len(COMMANDS) >= 160
    assert set(MISTAKES) > LATE
