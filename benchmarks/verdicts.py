"""What the plugin throughput says of runs whose answer is known: `python benchmarks/verdicts.py`.

Five fits, each with something else that holds it up: the data, the device, Python. Rates are those of this machine;
the table of docs/plugins/throughput.md has a run of this script.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from framework_plugins.throughput import Throughput
from torch import Tensor, nn
from torch.utils.data import Dataset

from framework import Trainer


class Slow(Dataset[tuple[Tensor, Tensor]]):
    """Sleeps a millisecond for each sample."""

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(1e-3)
        return torch.full((10,), index / 400), torch.zeros(1)


def network(*widths: int) -> nn.Sequential:
    layers = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def fit(model: nn.Module, data: Any, batch_size: int, epochs: int, **options: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Throughput()], "cpu")
    trainer.fit(data, epochs=epochs, batch_size=batch_size, **options)


def pair(samples: int, features: int, outputs: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, features), torch.randn(samples, outputs)


RUNS: dict[str, Callable[[], None]] = {
    "a data set that sleeps 1 ms for each sample": lambda: fit(network(10, 1), Slow(), 8, 3),
    "the same with cache=True": lambda: fit(network(10, 1), Slow(), 8, 100, cache=True),
    "2000-2000-1, batches of 128": lambda: fit(network(2000, 2000, 1), pair(2560, 2000, 1), 128, 5),
    "Linear(3, 1), batches of 2": lambda: fit(network(3, 1), pair(1000, 3, 1), 2, 20),
    "784-32-10, batches of 100": lambda: fit(network(784, 32, 10), pair(10_000, 784, 10), 100, 20),
}


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    for name, run in RUNS.items():
        torch.manual_seed(0)
        print(f"\n{name}")
        run()


if __name__ == "__main__":
    main()
