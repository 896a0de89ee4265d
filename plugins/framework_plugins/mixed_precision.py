"""Model and loss in 16 bits where that is enough, by torch's autocast."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from framework import NonFiniteError, Trainer, UsageError, hookimpl

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST = 1e-4  # a scale below it means that the gradients are inf or nan whatever it is


class MixedPrecision:
    """Runs model and loss under `torch.autocast`: matrix products and convolutions in 16 bits, the weights in 32.

    It is the loop by hand, bit for bit, for training, validation and what is evaluated or predicted later::

        with torch.autocast(device, torch.bfloat16):
            l = loss(model(x), y)

    **bf16** has the range of float32 and needs nothing else. **fp16** is more exact, and its numbers end at 65504 and
    6e-8: so that small gradients do not vanish, torch's GradScaler multiplies the loss by a scale and divides the
    gradients by it again. That is done before `on_gradients`, so that clipping and statistics see the true gradients
    in whichever order the plugins are listed. A step whose gradients became inf is skipped and the scale is halved:
    `trainer.stepped` is False then, and a schedule or an average that follows the steps stays where it is. How many
    were skipped is told at the end. A *loss* that is inf is an error, as it is without this plugin.

    With fp16 it adds `loss_scale`, the scale at the end of an epoch. What `predict` gives is float32 again.

    Args:
        dtype: "bf16", "fp16", or "auto": bf16, but fp16 on a CUDA device that does not compute in bf16
        scale: with fp16, the first scale
        growth_interval: with fp16, steps in a row without inf after which the scale is doubled

    Raises:
        UsageError: another dtype; a scale or interval that can be none; two of this plugin; with fp16, parameters that
            are float16 themselves
        NonFiniteError: with fp16, gradients that stay inf or nan with the smallest scale
    """

    def __init__(
        self, dtype: str = "auto", scale: float = 2.0**16, growth_interval: int = 2000, name: str = "mixed_precision"
    ) -> None:
        if dtype not in ("auto", *DTYPES):
            raise UsageError(f"{name}: dtype must be 'auto', 'bf16' or 'fp16', got {dtype!r}")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise UsageError(f"{name}: scale must be a number above 0, got {scale!r}")
        if type(growth_interval) is not int or growth_interval < 1:
            raise UsageError(
                f"{name}: growth_interval must be a whole number of steps from 1 up, got {growth_interval!r}"
            )
        self.name = name
        self.dtype = dtype
        self.scale = scale
        self.growth_interval = growth_interval
        self._scaler: torch.amp.GradScaler | None = None  # with fp16, in a fit
        self._told = scale  # by the scaler after the last step
        self._skipped = 0
        self._by_device = dtype == "auto" and torch.cuda.is_available() and not _has_bfloat16()
        if dtype == "fp16" or self._by_device:  # else the loop's own are asked
            self.backward = self._scaled_backward
            self.optimizer_step = self._scaled_step

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Iterator[None]:
        several = [name for name, plugin in trainer.plugins.items() if isinstance(plugin, MixedPrecision)]
        if len(several) > 1:
            raise UsageError(f"a model is run in one precision: list one of {' and '.join(several)}")
        self._scaler, self._told, self._skipped = None, self.scale, 0
        if self._computes_in(trainer) is torch.float16:
            if any(parameter.dtype is torch.float16 for parameter in trainer.model.parameters()):
                raise UsageError(f"{self.name}: the weights must be float32, and some are float16: leave out .half()")
            self._scaler = torch.amp.GradScaler(
                trainer.device.type, init_scale=self.scale, growth_interval=self.growth_interval
            )
        return (yield)

    def _computes_in(self, trainer: Trainer) -> torch.dtype:
        if self.dtype == "auto":
            return torch.float16 if self._by_device and trainer.device.type == "cuda" else torch.bfloat16
        return DTYPES[self.dtype]

    def metric_names(self, split: str) -> list[str]:
        return ["loss_scale"] if split == "train" and self._scaler is not None else []

    @hookimpl(wrapper=True)
    def forward(self, trainer: Trainer, split: str) -> Generator[None, Any, Any]:
        with torch.autocast(trainer.device.type, self._computes_in(trainer)):
            output = yield
        return _widened(output) if split == "predict" else output

    @hookimpl(wrapper=True)
    def compute_loss(self, trainer: Trainer) -> Iterator[None]:
        with torch.autocast(trainer.device.type, self._computes_in(trainer)):
            return (yield)

    def _scaled_backward(self, trainer: Trainer, loss: Tensor) -> Any:
        if self._scaler is None:
            return NotImplemented
        self._scaler.scale(loss).backward()
        if trainer.boundary:
            self._scaler.unscale_(trainer.optimizer)
        return True

    def _scaled_step(self, trainer: Trainer) -> Any:
        if self._scaler is None:
            return NotImplemented
        before = self._told
        self._scaler.step(trainer.optimizer)
        self._scaler.update()
        self._told = self._scaler.get_scale()  # waits for the device, as step() above does to know of inf
        stepped = self._told >= before
        self._skipped += not stepped
        if self._told < SMALLEST and trainer.on_nonfinite == "stop":
            raise NonFiniteError(
                f"the gradients are inf or nan in fp16, now with a scale of {self._told:g}, at step {trainer.step}, "
                f"epoch {trainer.epoch}; try dtype='bf16'"
            )
        return stepped

    @hookimpl(split="train")
    def on_split_end(self, metrics: MutableMapping[str, float]) -> None:
        if self._scaler is not None:
            metrics["loss_scale"] = self._told

    def on_fit_end(self, trainer: Trainer) -> None:
        if self._skipped:
            tqdm.write(f"fp16      {self._skipped} of {trainer.step} steps skipped: their gradients were inf")

    def on_exception(self, exception: BaseException) -> None:
        if self._scaler is not None and isinstance(exception, NonFiniteError):
            exception.add_note(f"{self.name}: fp16 ends at 65504; bf16 has the range of float32")

    def state_dict(self) -> dict[str, Any]:
        return {"scaler": self._scaler and self._scaler.state_dict(), "skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._skipped = state["skipped"]
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])
            self._told = state["scaler"]["scale"]


def _has_bfloat16() -> bool:
    """Whether the CUDA device computes in it, and not by way of float32."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _widened(output: Any) -> Any:
    """The same tree of dicts, lists and tuples in float32: NumPy knows no bfloat16."""
    if isinstance(output, Tensor):
        return output.float() if output.dtype in DTYPES.values() else output
    if isinstance(output, dict):
        return {key: _widened(value) for key, value in output.items()}
    if isinstance(output, (list, tuple)):
        parts = map(_widened, output)
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    return output
