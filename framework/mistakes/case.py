"""What was at work when a fit failed: read from the traceback, so that a healthy fit pays nothing for it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn


@dataclass
class Case:
    """The error, the batch in hand or None, and the model's output for it or None."""

    error: BaseException
    model: nn.Module
    loss: Any
    batch: Any
    output: Any

    @property
    def y(self) -> Tensor | None:
        pair = isinstance(self.batch, (tuple, list)) and len(self.batch) == 2
        return self.batch[1] if pair and isinstance(self.batch[1], Tensor) else None

    def frames(self, package: str = "") -> list[FrameType]:
        """The frames of the traceback, the innermost first; only those of a package where one is named."""
        frames = [frame for frame, _ in traceback.walk_tb(self.error.__traceback__)][::-1]
        return [frame for frame in frames if str(frame.f_globals.get("__name__")).startswith(package)]

    def known_as(self, name: str) -> Any:
        """What the innermost function of the framework that knows something under this name calls so, or None."""
        values = (frame.f_locals.get(name) for frame in self.frames("framework."))
        return next((value for value in values if value is not None), None)

    def layers(self) -> Iterator[tuple[str, nn.Module, Any]]:
        """The model's modules on the traceback, the innermost first, each with its name and its input."""
        names = {module: name or type(module).__name__ for name, module in self.model.named_modules()}
        for frame in self.frames():
            arguments = [frame.f_locals.get(name) for name in frame.f_code.co_varnames[: frame.f_code.co_argcount]]
            if len(arguments) > 1 and isinstance(arguments[0], nn.Module) and arguments[0] in names:
                yield names[arguments[0]], arguments[0], arguments[1]


Rule = tuple[str, Callable[[Case], str | None] | str]  # for errors whose text matches; None where the facts are others
