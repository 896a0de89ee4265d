"""For plugin authors: a tiny model with tiny data, a recorder of every hook call, an assertion on their order.

>>> from framework.testing import Recorder, tiny_trainer, tiny_data
>>> recorder = Recorder()
>>> result = tiny_trainer(plugins=[recorder]).fit(tiny_data(), epochs=1, batch_size=2)
>>> recorder.assert_order("on_fit_start", "on_epoch_start", "on_batch_end", "on_epoch_end", "on_fit_end")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework.hooks import HOOKS
from framework.trainer import Trainer


def tiny_data(samples: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x of shape (samples, 3) and y = the sum of each row, of shape (samples, 1), from a generator of their own."""
    x = torch.randn(samples, 3, generator=torch.Generator().manual_seed(seed))
    return x, x.sum(dim=1, keepdim=True)


def tiny_trainer(plugins: Iterable[Any] = (), lr: float = 0.1, **options: Any) -> Trainer:
    """A Trainer of Linear(3, 1) with zero weights, mean squared error and SGD, on the CPU. Draws no random number."""
    model = nn.utils.skip_init(nn.Linear, 3, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Trainer(model, nn.functional.mse_loss, optimizer, plugins=plugins, device="cpu", **options)


@dataclass(frozen=True)
class Call:
    """One call of a hook: its name and its arguments, without the trainer."""

    hook: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.hook}({', '.join(f'{name}: {kind(value)}' for name, value in self.arguments.items())})"


def kind(value: Any) -> str:
    """What sort of thing an argument is, in a word that does not change from run to run."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({', '.join(kind(part) for part in value)})"
    return "Path" if isinstance(value, Path) else type(value).__name__


class Recorder:
    """A plugin that implements every tell, and remembers each call in `calls`.

    Args:
        hooks: only these; by default all tells
        makes: record the makes as well, and decline each with NotImplemented
    """

    def __init__(self, hooks: Iterable[str] | None = None, makes: bool = False, name: str = "recorder") -> None:
        self.name = name
        self.calls: list[Call] = []
        wanted = set(hooks) if hooks is not None else {n for n, h in HOOKS.items() if h.kind == "tell" or makes}
        for hook in wanted - {"prepare_model"}:
            setattr(self, hook, self._recording(hook))

    def _recording(self, name: str) -> Callable[..., Any]:
        def record(values: dict[str, Any]) -> Any:
            self.calls.append(Call(name, {key: value for key, value in values.items() if key != "trainer"}))
            return NotImplemented if HOOKS[name].make else None

        space: dict[str, Any] = {"record": record}
        exec(f"def {HOOKS[name].signature}: return record(locals())", space)
        function: Callable[..., Any] = space[name]
        return function

    @property
    def names(self) -> list[str]:
        """The names of the hooks in the order in which they were called."""
        return [call.hook for call in self.calls]

    def assert_order(self, *names: str) -> None:
        """The hooks were called in this order; others may lie between.

        Raises:
            AssertionError: with what was called
        """
        remaining = iter(self.names)
        for name in names:
            if name not in remaining:  # consumes up to the match
                raise AssertionError(f"{name} is not called in the order {names}; called were {self.names}")
