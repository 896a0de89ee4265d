"""`fit` against the loop written by hand: the same bits, for random models, data, loaders and optimizers.

A few hundred examples, always the same ones, run by default. `FRAMEWORK_EXAMPLES=5000 pytest
tests/framework/test_same_numbers.py` runs that many for each property, and other ones each time.
"""

from __future__ import annotations

import inspect
import math
import os
import random
import tempfile
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from framework_plugins.best_checkpoint import BestCheckpoint
from framework_plugins.early_stopping import EarlyStopping
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from framework import Trainer
from framework.testing import Recorder

# Adagrad on sparse gradients makes torch say this.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

EXAMPLES = int(os.environ.get("FRAMEWORK_EXAMPLES") or 0)


def examples(default: int) -> Any:
    return settings(
        max_examples=EXAMPLES or default, derandomize=not EXAMPLES, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- what is run


class Tied(nn.Module):
    """The second layer uses the weight of the first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Linear(inputs, inputs),
            nn.Linear(inputs, inputs),
            nn.Linear(inputs, outputs),
        )
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).tanh()))


class Draws(nn.Module):
    """Adds noise of all three global generators, in training and in evaluation alike."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.rand_like(x) + 0.01 * random.random() + 0.01 * numpy.random.rand()


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


MODELS = {
    "linear": lambda d, k: nn.Linear(d, k),
    "mlp": lambda d, k: nn.Sequential(nn.Linear(d, 4), nn.ReLU(), nn.Linear(4, k)),
    "double": lambda d, k: nn.Sequential(nn.Linear(d, 4), nn.Tanh(), nn.Linear(4, k)).double(),
    "batchnorm": lambda d, k: nn.Sequential(nn.Linear(d, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, k)),
    "dropout": lambda d, k: nn.Sequential(nn.Linear(d, 6), nn.Dropout(0.4), nn.ReLU(), nn.Linear(6, k)),
    "draws": lambda d, k: nn.Sequential(Draws(), nn.Linear(d, k)),
    "tied": Tied,
    "frozen": lambda d, k: nn.Sequential(frozen(nn.Linear(d, 4)), nn.Tanh(), nn.Linear(4, k)),
    "spectral": lambda d, k: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(d, 4)), nn.Linear(4, k)),
    "conv": lambda d, k: nn.Sequential(
        nn.Unflatten(1, (1, 1, d)), nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * d, k)
    ).to(memory_format=torch.channels_last),
    "embedding": lambda d, k: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(3 * d, k)),
    "sparse": lambda d, k: nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), frozen(nn.Linear(3 * d, k))),
}
ON_NUMBERS = sorted(set(MODELS) - {"embedding", "sparse"})


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": parameters[:1], "lr": 0.02}, {"params": parameters[1:], "weight_decay": 0.1}]


OPTIMIZERS = {
    "SGD": [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5, dampening=0.3, foreach=False),
        lambda p: torch.optim.SGD(p, lr=1e-4, maximize=True),
        lambda p: torch.optim.SGD(groups(p), lr=0.1, momentum=0.3),
    ],
    "Adam": [
        lambda p: torch.optim.Adam(p, lr=0.05),
        lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True, foreach=True),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(0.05), foreach=False),
        lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
        lambda p: torch.optim.Adam(groups(p), lr=0.05),
    ],
    "AdamW": [lambda p: torch.optim.AdamW(p, lr=0.05), lambda p: torch.optim.AdamW(p, betas=(0.5, 0.9), amsgrad=True)],
    "NAdam": [lambda p: torch.optim.NAdam(p), lambda p: torch.optim.NAdam(p, lr=0.05, decoupled_weight_decay=True)],
    "RAdam": [lambda p: torch.optim.RAdam(p, lr=0.05)],
    "Adamax": [lambda p: torch.optim.Adamax(p, lr=0.05)],
    "Adadelta": [lambda p: torch.optim.Adadelta(p)],
    "Adagrad": [lambda p: torch.optim.Adagrad(p, lr=0.05), lambda p: torch.optim.Adagrad(p, lr_decay=0.1)],
    "RMSprop": [lambda p: torch.optim.RMSprop(p), lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True)],
    "Rprop": [lambda p: torch.optim.Rprop(p)],
    "ASGD": [lambda p: torch.optim.ASGD(p, t0=2)],
    "Adafactor": [lambda p: torch.optim.Adafactor(p)],
    "Muon": [lambda p: torch.optim.Muon([q for q in p if q.dim() == 2], lr=0.01)],
    "SparseAdam": [lambda p: torch.optim.SparseAdam([q for q in p if q.requires_grad])],
}
DENSE = sorted(set(OPTIMIZERS) - {"SparseAdam"})
SPARSE = ["SparseAdam", "SGD sparse", "Adagrad sparse"]


LOSSES = {
    "mse": nn.MSELoss(),
    "sum": nn.MSELoss(reduction="sum"),
    "written": lambda output, y: (output - y).abs().mean(),
    "cross_entropy": nn.CrossEntropyLoss(),
    "functional": F.cross_entropy,
    "bce": nn.BCEWithLogitsLoss(),
}


class Noisy(Dataset):
    """Samples that draw from all three global generators each time that they are asked for."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, noise = self.x[index], torch.rand(()).item() + random.random() + numpy.random.rand()
        return (x + 0.1 * noise if x.is_floating_point() else (x + int(noise)) % 7), self.y[index]


class Stream(IterableDataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Any:
        yield from zip(self.x, self.y, strict=True)


@dataclass(frozen=True)
class Case:
    """One example: everything that is drawn, in plain values, so that a failure can be written down."""

    model: str = "mlp"
    loss: str = "mse"
    optimizer: str = "SGD"
    variant: int = 0
    seed: int = 0
    epochs: int = 2
    samples: int = 5
    inputs: int = 3
    outputs: int = 2
    batch_size: int | None = 2
    shuffle: bool | None = True
    drop_last: bool | None = False
    data: str = "tensors"
    loader: str = "given"
    val: int | None = None
    val_loader: str = "given"

    @property
    def batches(self) -> list[int]:
        """The sizes of the batches of an epoch."""
        if self.batch_size is None:
            return [self.samples]
        full, rest = divmod(self.samples, self.batch_size)
        return [self.batch_size] * full + [rest] * (rest > 0 and not self.drop_last)

    def build(self) -> SimpleNamespace:
        """Model, loss, optimizer, data and generators of this case; the same ones each time."""
        random.seed(self.seed)
        numpy.random.seed(self.seed)
        torch.manual_seed(self.seed)
        model = MODELS[self.model](self.inputs, self.outputs)
        parameters = list(model.parameters())
        name = self.optimizer.removesuffix(" sparse")
        make = {"SGD sparse": OPTIMIZERS["SGD"][:1], "Adagrad sparse": OPTIMIZERS["Adagrad"]}.get(
            self.optimizer, OPTIMIZERS[name]
        )
        made = SimpleNamespace(model=model, loss=LOSSES[self.loss], generators=[])
        made.optimizer = make[self.variant % len(make)](parameters)
        made.train = self._loaded(self._data(self.samples, 1), self.loader, made.generators)
        made.val = None if self.val is None else self._loaded(self._data(self.val, 2), self.val_loader, made.generators)
        sizes = {"batch_size": self.batch_size, "shuffle": self.shuffle, "drop_last": self.drop_last}
        made.sizes = sizes if self.loader == "given" else {}
        if self.data == "stream" and self.loader == "given":
            made.sizes["shuffle"] = None
        return made

    def _data(self, samples: int, salt: int) -> Any:
        generator = torch.Generator().manual_seed(self.seed + salt)
        dtype = torch.float64 if self.model == "double" else torch.float32
        x = torch.randn(samples, self.inputs, generator=generator, dtype=dtype)
        if self.model in ("embedding", "sparse"):
            x = torch.randint(7, (samples, self.inputs), generator=generator)
        y = torch.randn(samples, self.outputs, generator=generator, dtype=dtype)
        if self.loss in ("cross_entropy", "functional"):
            y = torch.randint(self.outputs, (samples,), generator=generator)
        elif self.loss == "bce":
            y = (y > 0).to(dtype)
        return {"tensors": (x, y), "dataset": TensorDataset(x, y), "noisy": Noisy(x, y), "stream": Stream(x, y)}[
            self.data
        ]

    def _loaded(self, data: Any, loader: str, generators: list[torch.Generator]) -> Any:
        """The data as it is, or in a DataLoader that the user built."""
        if loader == "given":
            return data
        data = TensorDataset(*data) if isinstance(data, tuple) else data
        size, generator = self.batch_size or 3, torch.Generator().manual_seed(self.seed + 9)
        generators.append(generator)
        if loader == "own" or self.data == "stream":
            return DataLoader(data, size, shuffle=bool(self.shuffle) and self.data != "stream")
        if loader == "generator":
            return DataLoader(data, size, shuffle=bool(self.shuffle), generator=generator)
        if loader == "sampler":
            weights = [1.0 + index for index in range(len(data))]
            return DataLoader(data, size, sampler=WeightedRandomSampler(weights, 2 * size, generator=generator))
        return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, generator=generator), size, False))


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    loss = draw(st.sampled_from(sorted(LOSSES)))
    case = Case(
        loss=loss,
        model=draw(st.sampled_from(sorted(MODELS))),
        optimizer=draw(st.sampled_from(DENSE)),
        variant=draw(st.integers(0, 5)),
        seed=draw(st.integers(0, 2**31)),
        epochs=draw(st.integers(1, 3)),
        samples=draw(st.integers(1, 20)),
        inputs=draw(st.integers(1, 4)),
        outputs=draw(st.integers(2 if loss in ("cross_entropy", "functional") else 1, 3)),
        batch_size=draw(st.none() | st.integers(1, 8)),
        shuffle=draw(st.sampled_from([True, False, None])),
        drop_last=draw(st.sampled_from([True, False, None])),
        data=draw(st.sampled_from(["tensors", "tensors", "dataset", "noisy", "stream"])),
        loader=draw(st.sampled_from(["given", "given", "own", "generator", "sampler", "batch_sampler"])),
        val=draw(st.none() | st.integers(1, 9)),
        val_loader=draw(st.sampled_from(["given", "given", "own", "generator"])),
    )
    case = replace(case, **fixed)
    if case.model == "sparse":
        case = replace(case, optimizer=draw(st.sampled_from(SPARSE)))
    if case.drop_last and case.batch_size is not None:
        case = replace(case, batch_size=min(case.batch_size, case.samples))
    if case.loader != "given":
        case = replace(case, drop_last=None, batch_size=case.batch_size or 3)
    if case.model in ("batchnorm", "conv") and (1 in case.batches or case.loader == "sampler"):
        case = replace(case, model="dropout")  # batch normalization cannot train on one sample
    return case


# ------------------------------------------------------------------------------------------------------- how it is run


def outcome(oracle: Any, case: Case, plugins: Any = None, **options: Any) -> dict[str, Any]:
    """All that a run leaves behind: by hand without `plugins`, else by `fit`."""
    made = case.build()
    if plugins is None:
        sizes = {name: value for name, value in made.sizes.items() if value is not None}
        if case.data == "stream" and sizes:
            sizes["shuffle"] = False
        rows = oracle.by_hand(made.model, made.loss, made.optimizer, made.train, made.val, case.epochs, **sizes)
    else:
        trainer = Trainer(made.model, made.loss, made.optimizer, plugins=plugins, device="cpu", **options)
        rows = trainer.fit(made.train, made.val, epochs=case.epochs, **made.sizes).history
    generators = [generator.get_state() for generator in made.generators]
    return {"rows": rows, **oracle.state(made.model, made.optimizer), "generators": generators}


def by_hand(oracle: Any, case: Case) -> dict[str, Any]:
    """The outcome of the hand-written loop, where it stays finite: outside of that nothing is promised."""
    expected = outcome(oracle, case)
    assume(all(math.isfinite(figure) for row in expected["rows"] for figure in row.values()))
    return expected


class Looks:
    """Evaluates, predicts and takes a snapshot at every place from which a plugin may do so."""

    def on_fit_start(self, trainer: Any) -> None:
        self._x, self._y = torch.ones(2, 3), torch.ones(2, 2)
        self._look(trainer)

    def on_batch_start(self, trainer: Any, split: str) -> None:
        self._look(trainer, split)

    def on_gradients(self, trainer: Any) -> None:
        self._look(trainer)

    def on_batch_end(self, trainer: Any, split: str) -> None:
        self._look(trainer, split)

    def on_split_end(self, trainer: Any, split: str) -> None:
        self._look(trainer, split)

    def on_epoch_end(self, trainer: Any) -> None:
        self._look(trainer)

    def _look(self, trainer: Any, split: str = "train") -> None:
        if split in ("train", "val"):
            trainer.evaluate((self._x, self._y), batch_size=1)
            trainer.evaluate(trainer.loaders["train"])
            trainer.predict(self._x, batch_size=1)
            trainer.snapshot()


# ---------------------------------------------------------------------------------------------------------- properties


@given(case=cases())
@example(case=Case(batch_size=None, val=3))
@example(case=Case(data="noisy", batch_size=None, val=3))
@example(case=Case(loader="generator", val_loader="generator", val=4))
@examples(150)
def test_fit_ends_with_the_bits_of_the_hand_written_loop(oracle: Any, case: Case) -> None:
    expected = by_hand(oracle, case)
    oracle.assert_same(expected, outcome(oracle, case, []))


@given(case=cases())
@examples(40)
def test_a_recorder_of_every_hook_changes_no_bit(oracle: Any, case: Case) -> None:
    expected = by_hand(oracle, case)
    oracle.assert_same(expected, outcome(oracle, case, [Recorder()]))


@given(case=cases())
@examples(40)
def test_makes_that_decline_change_no_bit(oracle: Any, case: Case) -> None:
    expected = by_hand(oracle, case)
    oracle.assert_same(expected, outcome(oracle, case, [Recorder(makes=True)]))


@given(
    case=cases(inputs=3, outputs=2, loss="mse"), model=st.sampled_from(["linear", "mlp", "dropout", "tied", "draws"])
)
@examples(40)
def test_evaluating_and_predicting_at_every_hook_changes_no_bit(oracle: Any, case: Case, model: str) -> None:
    case = replace(case, model=model, optimizer=case.optimizer.removesuffix(" sparse").replace("SparseAdam", "Adam"))
    expected = by_hand(oracle, case)
    oracle.assert_same(expected, outcome(oracle, case, [Looks()]))


@given(case=cases(), every_seconds=st.sampled_from([None, 0]))
@examples(25)
def test_all_built_in_observers_together_change_no_bit(oracle: Any, case: Case, every_seconds: float | None) -> None:
    expected = by_hand(oracle, case)
    plugins = ["accuracy"] * (case.loss in ("cross_entropy", "functional", "bce"))
    plugins += ["history", BestCheckpoint(every_seconds=every_seconds), EarlyStopping(patience=1000)]
    plugins += ["summary", "gpu_memory"]
    with tempfile.TemporaryDirectory() as folder:
        got = outcome(oracle, case, plugins, run_dir=folder)
    names = set(expected["rows"][0])
    got["rows"] = [{name: value for name, value in row.items() if name in names} for row in got["rows"]]
    oracle.assert_same(expected, got)


# ------------------------------------------------------------------------------------------------------- certain cases


def test_every_optimizer_of_torch_is_tried_but_the_one_that_needs_a_closure() -> None:
    kinds = [kind for kind in vars(torch.optim).values() if inspect.isclass(kind)]
    offered = {kind.__name__ for kind in kinds if issubclass(kind, torch.optim.Optimizer)}
    assert offered - {"Optimizer", "LBFGS"} == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in DENSE for variant in range(len(OPTIMIZERS[name]))]
)
def test_each_optimizer_ends_with_the_same_bits(oracle: Any, name: str, variant: int) -> None:
    case = Case(model="dropout", optimizer=name, variant=variant, samples=7, epochs=3, val=3)
    oracle.assert_same(outcome(oracle, case), outcome(oracle, case, []))


@pytest.mark.parametrize("name", SPARSE)
def test_each_optimizer_of_sparse_gradients_ends_with_the_same_bits(oracle: Any, name: str) -> None:
    case = Case(model="sparse", optimizer=name, samples=7, epochs=3)
    oracle.assert_same(outcome(oracle, case), outcome(oracle, case, []))


@pytest.mark.parametrize("model", ON_NUMBERS)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_each_model_ends_with_the_same_bits(oracle: Any, model: str, batch_size: int | None) -> None:
    case = Case(model=model, optimizer="Adam", samples=9, batch_size=batch_size, val=4, epochs=3)
    oracle.assert_same(outcome(oracle, case), outcome(oracle, case, []))


def test_the_inputs_are_left_as_they_were() -> None:
    made, before = Case().build(), Case().build()
    Trainer(made.model, made.loss, made.optimizer, device="cpu").fit(made.train, epochs=2, batch_size=2)
    assert torch.equal(before.train[0], made.train[0])
    assert torch.equal(before.train[1], made.train[1])


def test_a_fit_without_batch_size_draws_no_random_number(oracle: Any) -> None:
    made = Case(batch_size=None, val=3).build()
    before = oracle.random_states()
    Trainer(made.model, made.loss, made.optimizer, device="cpu").fit(made.train, made.val, epochs=3)
    oracle.assert_same(before, oracle.random_states())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of the fork of a DataLoader
def test_a_worker_process_changes_no_bit(oracle: Any) -> None:
    case = Case(data="dataset", samples=5, epochs=2)
    made = case.build()
    loader = DataLoader(made.train, batch_size=2, shuffle=True, num_workers=1)
    rows = oracle.by_hand(made.model, made.loss, made.optimizer, loader, epochs=2)
    expected = {"rows": rows, **oracle.state(made.model, made.optimizer)}
    made = case.build()
    trainer = Trainer(made.model, made.loss, made.optimizer, device="cpu")
    rows = trainer.fit(made.train, epochs=2, batch_size=2, num_workers=1).history
    oracle.assert_same(expected, {"rows": rows, **oracle.state(made.model, made.optimizer)})


def test_a_second_fit_goes_on_with_the_same_bits_as_a_second_hand_written_loop(oracle: Any) -> None:
    case = Case(model="batchnorm", optimizer="Adam", samples=6, val=3)
    made = case.build()
    expected = [
        oracle.by_hand(made.model, made.loss, made.optimizer, made.train, made.val, 2, batch_size=2) for _ in range(2)
    ]
    hand = oracle.state(made.model, made.optimizer)
    made = case.build()
    trainer = Trainer(made.model, made.loss, made.optimizer, device="cpu")
    rows = [trainer.fit(made.train, made.val, epochs=2, batch_size=2).history for _ in range(2)]
    oracle.assert_same(expected, rows)
    oracle.assert_same(hand, oracle.state(made.model, made.optimizer))


def test_a_long_run_ends_with_the_same_bits(oracle: Any) -> None:
    case = Case(model="dropout", optimizer="AdamW", samples=19, batch_size=3, epochs=60, val=5, data="noisy")
    oracle.assert_same(outcome(oracle, case), outcome(oracle, case, []))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_bits_are_those_of_the_hand_written_loop_there(oracle: Any) -> None:
    case = Case(model="dropout", optimizer="Adam", samples=300, batch_size=1, val=5)
    made = case.build()
    made.model.cuda()
    rows = oracle.by_hand(
        made.model, made.loss, made.optimizer, made.train, made.val, case.epochs, batch_size=1, device="cuda"
    )
    expected = {"rows": rows, **oracle.state(made.model, made.optimizer)}
    made = case.build()
    trainer = Trainer(made.model, made.loss, made.optimizer, device="cuda")
    rows = trainer.fit(made.train, made.val, epochs=case.epochs, batch_size=1).history
    oracle.assert_same(expected, {"rows": rows, **oracle.state(made.model, made.optimizer)})


class InPlace(nn.Module):
    """Changes its input, which with the whole as one batch is the data itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mul_(0.5))


def one_generator_and_collate(data: tuple[torch.Tensor, torch.Tensor]) -> list[DataLoader[Any]]:
    """A shuffled loader for train and one for val that draw from one generator, with a collate of their own."""
    generator = torch.Generator().manual_seed(3)

    def collate(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([x for x, _ in rows]) * 2, torch.stack([y for _, y in rows])

    return [
        DataLoader(TensorDataset(*data), batch_size=2, shuffle=True, generator=generator, collate_fn=collate)
        for _ in range(2)
    ]


@pytest.mark.parametrize("kind", ["whole", "loaders"])
def test_a_model_that_changes_its_input_and_loaders_that_share_a_generator_give_the_same_bits(
    oracle: Any, kind: str
) -> None:
    outcomes = []
    for ours in (False, True):
        torch.manual_seed(0)
        data = (torch.randn(7, 3), torch.randn(7, 1))
        train, val = one_generator_and_collate(data) if kind == "loaders" else (data, None)
        model = InPlace()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if ours:
            rows = Trainer(model, F.mse_loss, optimizer, device="cpu").fit(train, val, epochs=3).history
        else:
            rows = oracle.by_hand(model, F.mse_loss, optimizer, train, val, 3)
        outcomes.append({"rows": rows, "data": data, **oracle.state(model, optimizer)})
    oracle.assert_same(*outcomes)
