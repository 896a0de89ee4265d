"""Where the memory of the device goes."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from framework import Trainer, hookimpl

MIB = 2**20


class GpuMemory:
    """Memory of the device, in MiB: allocated, reserved and peak for each epoch, and by part at the end.

    Parts are parameters, gradients, optimizer state, and activations (with other temporary tensors: the peak less
    the rest). On a machine without a GPU it says so in one line, and measures the memory of the process instead.

    Adds `gpu_allocated_mib`, `gpu_reserved_mib` and `gpu_peak_mib`, or `process_mib` on a CPU.
    """

    def __init__(self, name: str = "gpu_memory") -> None:
        self.name = name
        self._device = torch.device("cpu")

    def metric_names(self, split: str) -> list[str]:
        if split != "train":
            return []
        return (
            ["process_mib"]
            if self._device.type == "cpu"
            else [f"gpu_{k}_mib" for k in ("allocated", "reserved", "peak")]
        )

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Any:
        self._device = trainer.device  # metric_names is asked before on_fit_start
        return (yield)

    def on_fit_start(self, trainer: Trainer) -> None:
        self._gradients = self._peak = self._start = 0
        if self._device.type == "cpu":
            _say("no GPU is used (device cpu); the memory of the process is measured instead")
        else:
            self._start = _allocated(self._device)
            _say(f"{trainer.device}: {_mib(self._start)} allocated at the start, {_left(self._device)}")

    def on_epoch_start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_gradients(self, trainer: Trainer) -> None:
        if not self._gradients:  # they are of one size all the time
            self._gradients = _bytes(p.grad for p in trainer.model.parameters() if p.grad is not None)

    @hookimpl(split="train")
    def on_split_end(self, metrics: MutableMapping[str, float]) -> None:
        if self._device.type == "cpu":
            used = psutil.Process().memory_info().rss
            self._peak = max(self._peak, used)
            metrics["process_mib"] = used / MIB
            return
        peak = _peak(self._device)
        self._peak = max(self._peak, peak)
        metrics["gpu_allocated_mib"] = _allocated(self._device) / MIB
        metrics["gpu_reserved_mib"] = _reserved(self._device) / MIB
        metrics["gpu_peak_mib"] = peak / MIB

    def on_fit_end(self, trainer: Trainer) -> None:
        state = _bytes(t for held in trainer.optimizer.state.values() for t in held.values() if isinstance(t, Tensor))
        parts = {
            "parameters": _bytes((*trainer.model.parameters(), *trainer.model.buffers())),
            "gradients": self._gradients,
            "optimizer state": state,
        }
        if self._device.type != "cpu":
            parts["activations"] = max(self._peak - sum(parts.values()), 0)
        shown = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
        left = "" if self._device.type == "cpu" else f"; {_left(self._device)}"
        _say(f"{shown}; peak {_mib(self._peak)}{left}")


def _say(line: str) -> None:
    tqdm.write(f"memory    {line}")


def _mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB" if size >= MIB / 10 else f"{size:.0f} bytes"


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else torch.mps.current_allocated_memory()


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else torch.mps.driver_allocated_memory()


def _peak(device: torch.device) -> int:
    """The peak since the epoch began; MPS keeps none, so there it is what is allocated now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else torch.mps.current_allocated_memory()


def _left(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    else:
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
    return f"{_mib(free)} of {_mib(total)} free"
