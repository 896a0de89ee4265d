"""What the tests of the built-in plugins share."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from framework import Trainer, hookimpl


def _bits(tree: Any) -> Any:
    """A tree with each tensor as its dtype, shape and bytes, so that == compares bit by bit."""
    if isinstance(tree, Tensor):
        return str(tree.dtype), tuple(tree.shape), tree.detach().contiguous().numpy().tobytes()
    if isinstance(tree, dict):
        return {key: _bits(value) for key, value in tree.items()}
    return [_bits(value) for value in tree] if isinstance(tree, (list, tuple)) else repr(tree)


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """tests/framework/oracle.py: the hand-written loop and the comparison bit by bit."""
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).parents[1] / "framework" / "oracle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trained() -> Callable[..., Any]:
    """Trains a model with dropout and batch normalization; parameters, optimizer, losses and generators, in bits."""

    def train(plugins: Iterable[Any], run_dir: Path | None = None) -> Any:
        torch.manual_seed(3)
        random.seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 3))
        x, y = torch.randn(11, 4), torch.randint(3, (11,))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins=plugins, device="cpu", run_dir=run_dir)
        result = trainer.fit((x, y), (x[:5], y[:5]), epochs=4, batch_size=3)
        losses = [{name: row[name] for name in ("epoch", "step", "train_loss", "val_loss")} for row in result.history]
        drawn = torch.get_rng_state(), random.getstate()
        modes = [module.training for module in model.modules()]
        return _bits([model.state_dict(), optimizer.state_dict(), losses, drawn, modes, trainer.predict(x)])

    return train


class Scripted:
    """Adds a figure whose value in each epoch is given."""

    def __init__(self, values: Sequence[float], metric: str = "score_loss", name: str = "scripted") -> None:
        self.values = values
        self.metric = metric
        self.name = name

    def metric_names(self, split: str) -> list[str]:
        return [self.metric] if split == "train" else []

    def on_split_end(self, trainer: Trainer, split: str, metrics: MutableMapping[str, float]) -> None:
        if split == "train":
            metrics[self.metric] = self.values[trainer.epoch]


class Fails:
    """Raises at the start of an epoch, or after a batch of it."""

    def __init__(self, epoch: int, batch: int | None = None, error: BaseException | None = None) -> None:
        self.epoch = epoch
        self.batch = batch
        self.error = error or RuntimeError("the disk fell off")
        self.armed = True
        self._batches = 0

    def on_epoch_start(self, epoch: int) -> None:
        self._batches = 0
        if self.armed and epoch == self.epoch and self.batch is None:
            raise self.error

    def on_batch_end(self, trainer: Trainer, split: str) -> None:
        self._batches += split == "train"
        if self.armed and trainer.epoch == self.epoch and self._batches == self.batch:
            raise self.error


class Weights:
    """Remembers the weights at the end of each epoch."""

    def on_fit_start(self) -> None:
        self.by_epoch: list[dict[str, Tensor]] = []

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.by_epoch.append({name: value.clone() for name, value in trainer.model.state_dict().items()})


class Operations:
    """Counts the operations of torch while the other plugins are in on_batch_end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @hookimpl(wrapper=True)
    def on_batch_end(self) -> Iterator[None]:
        counts = self.counts

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                counts[function.overloadpacket.__name__] += 1
                return function(*args, **(kwargs or {}))

        with Mode():
            yield


@pytest.fixture
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture
def fails() -> type[Fails]:
    return Fails


@pytest.fixture
def weights() -> type[Weights]:
    return Weights


@pytest.fixture
def operations() -> type[Operations]:
    return Operations


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], SimpleNamespace]:
    """Gives a plugin's module a clock that stands still until the test moves `now`."""

    def install(module: ModuleType) -> SimpleNamespace:
        fake = SimpleNamespace(now=1000.0)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: fake.now))
        return fake

    return install
