"""The loop of docs/design.md, written by hand, and a comparison that forgives nothing.

The test modules get this file as the fixture `oracle` (tests/framework/conftest.py).
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate


def mlp(inputs: int = 3, outputs: int = 1, seed: int = 0) -> nn.Sequential:
    """Linear, ReLU, Linear, with weights of this seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 4), nn.ReLU(), nn.Linear(4, outputs))


def by_hand(
    model: nn.Module, loss: Any, optimizer: Any, train: Any, val: Any = None, epochs: int = 1, *,
    batch_size: int | None = None, shuffle: bool = True, drop_last: bool = False, device: str = "cpu",
) -> list[dict[str, float]]:  # fmt: skip
    """The hand-written loop. Its rows are what `result.history` must be; losses are summed in Python's doubles."""
    loader = _loader(train, batch_size, shuffle, drop_last)
    val_loader = None if val is None else _loader(val, batch_size, False, False)
    rows, step = [], 0
    for epoch in range(epochs):
        model.train()
        total, count = 0.0, 0
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            optimizer.zero_grad()
            l = loss(model(x), y)  # noqa: E741
            l.backward()
            optimizer.step()
            total, count, step = total + l.item() * len(x), count + len(x), step + 1
        row = {"epoch": epoch, "step": step, "train_loss": total / count}
        if val_loader is not None:
            model.eval()
            total, count = 0.0, 0
            with torch.no_grad():
                for x, y in val_loader:
                    x, y = x.to(device), y.to(device)
                    total, count = total + loss(model(x), y).item() * len(x), count + len(x)
            row["val_loss"] = total / count
        rows.append(row)
    return rows


def _loader(data: Any, batch_size: int | None, shuffle: bool, drop_last: bool) -> Any:
    if isinstance(data, DataLoader):
        return data
    if batch_size is None and isinstance(data, tuple):
        return [data]
    if batch_size is None:
        samples = list(data) if isinstance(data, IterableDataset) else [data[index] for index in range(len(data))]
        return [tuple(default_collate(samples))]
    dataset = TensorDataset(*data) if isinstance(data, tuple) else data
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)


def random_states() -> dict[str, Any]:
    """The state of every global generator."""
    return {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything that a loop changes: parameters, buffers, gradients, modes, optimizer, global generators."""
    return {
        "model": dict(model.state_dict()),
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "optimizer": optimizer.state_dict(),
        "random": random_states(),
    }


def assert_same(a: Any, b: Any, path: str = "state") -> None:
    """Fails at the first place where two trees differ in a bit, a type, a dtype, a stride or the order of keys."""
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor), path
        assert (a.dtype, a.shape, a.device, a.layout) == (b.dtype, b.shape, b.device, b.layout), path
        if a.is_sparse:
            a, b = a.coalesce(), b.coalesce()
            assert_same([a.indices(), a.values()], [b.indices(), b.values()], path)
            return
        if a.numel():  # those of an empty tensor say nothing
            assert a.stride() == b.stride(), f"{path}: strides {a.stride()} and {b.stride()}"
        assert torch.equal(_bits(a), _bits(b)), f"{path}: {a} and {b}"
    elif isinstance(a, numpy.ndarray):
        assert numpy.array_equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), f"{path}: keys {list(a)} and {list(b)}"
        for key in a:
            assert_same(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert type(a) is type(b), path
        assert len(a) == len(b), path
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{path}[{index}]")
    elif isinstance(a, float):
        assert isinstance(b, float), path
        assert a.hex() == b.hex(), f"{path}: {a!r} and {b!r}"
    else:
        assert type(a) is type(b), path
        assert a == b, f"{path}: {a!r} and {b!r}"


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: 0.0 and -0.0 differ, equal nans do not."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
