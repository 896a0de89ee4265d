"""The model as kernels made for it, by torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import nn

from framework import Trainer, UsageError, hookimpl


class Compile:
    """Calls the model by way of `torch.compile`, in training and wherever it is evaluated::

        Compile()
        Compile(mode="max-autotune")
        Compile(backend="aot_eager")        # no compiler needed: to find out what in a model does not compile

    `trainer.model` stays the model itself, so that checkpoints have the names of its own parameters and are read with
    and without this plugin. The first batch of each shape waits for the compiler. Sums of numbers are taken in another
    order than without it, and dropout draws other ones: it learns as well, and not the same bits.

    Whether the backend works on this machine is tried with two numbers, before anything of the fit is done. What was
    compiled earlier in this process is forgotten at the start of a fit, and compiled again when it is called.

    Args:
        mode: "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
        backend: its name, one of `torch.compiler.list_backends()`, or a function
        fullgraph: an error where the model cannot be compiled as one piece, in place of several pieces
        dynamic: kernels for any size of batch; None makes them when a second size comes

    Raises:
        UsageError: the backend does not work here, with the reason; an unknown mode; the model is compiled already
    """

    def __init__(
        self, mode: str | None = None, backend: str | Callable[..., Any] = "inductor", fullgraph: bool = False,
        dynamic: bool | None = None, name: str = "compile",
    ) -> None:  # fmt: skip
        self.name = name
        self.settings: dict[str, Any] = {"mode": mode, "backend": backend, "fullgraph": fullgraph, "dynamic": dynamic}

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Generator[None, Any, Any]:
        several = [name for name, plugin in trainer.plugins.items() if isinstance(plugin, Compile)]
        if len(several) > 1:
            raise UsageError(f"a model is compiled once: list one of {' and '.join(several)}")
        if trainer.engine.fast == "math":
            raise UsageError(f"fast='math' compiles the model already: leave out it or the plugin {self.name}")
        torch.compiler.reset()  # it keeps few kernels of one function, and earlier fits may have left no room
        self._try(trainer.device)
        compiled = torch.compile((yield), **self.settings)
        if not isinstance(compiled, nn.Module):
            raise UsageError(f"{self.name}: the model is compiled already: give the Trainer the model itself")
        return compiled

    def _try(self, device: torch.device) -> None:
        backend = self.settings["backend"]
        try:
            torch.compile(lambda x: x + x, **self.settings)(torch.zeros(2, device=device))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).partition("\n\n")[0].replace("\n", " ").rstrip(".")
            needs = "It needs a C++ compiler (on Windows that of Visual Studio), and on a GPU Triton. "
            raise UsageError(
                f"{self.name}: torch.compile with the backend {backend!r} does not work here: {reason}. "
                f"{needs * (backend == 'inductor')}Backends: {', '.join(torch.compiler.list_backends())}; eager, "
                "aot_eager compile nothing"
            ) from error
