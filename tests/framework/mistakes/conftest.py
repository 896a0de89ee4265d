"""What the tests of common mistakes share: a fit of a model, and one that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from framework import DataError, Trainer


def _fit(model: nn.Module, loss: Any, data: Any, **options: Any) -> Any:
    trainer = Trainer(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), options.pop("plugins", ()), "cpu")
    return trainer.fit(data, **options)


@pytest.fixture
def fit() -> Callable[..., Any]:
    """Fits a model with SGD on the CPU."""
    return _fit


@pytest.fixture
def refused() -> Callable[..., str]:
    """What a fit of these says; it must refuse them, and leave the weights alone."""

    def refuse(model: nn.Module, loss: Any, data: Any, kind: type[Exception] = DataError, **options: Any) -> str:
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(kind) as caught:
            _fit(model, loss, data, **options)
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.device.type == "cpu":
                assert torch.equal(value, before[name]), f"{name} was changed before the mistake was told"
        return str(caught.value)

    return refuse
