"""What a recipe function returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(kw_only=True)
class Recipe:
    """What a recipe function returns: the objects of a run, as `Trainer` and `Trainer.fit` take them.

    `test` is evaluated once, after training. `class_names` name the classes in predictions.
    """

    model: nn.Module
    loss: Callable[[Any, Any], Tensor]
    optimizer: torch.optim.Optimizer
    train: Any
    val: Any = None
    test: Any = None
    epochs: int = 1
    batch_size: int | None = None
    shuffle: bool | None = None
    drop_last: bool | None = None
    accumulate: int = 1
    on_nonfinite: str = "stop"
    on_plugin_error: str = "stop"
    on_save_error: str = "stop"
    async_save: bool = False
    num_workers: int = 0
    loader: str = "auto"
    cache: bool = False
    graph: bool = False
    fast: str = "exact"
    plugins: Sequence[Any] = ()
    class_names: Sequence[str] | None = None
