"""Where the memory of the device goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping

import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from framework import Trainer, hookimpl

MIB = 2**20


class GpuMemory:
    """Memory of the device, in MiB: allocated, reserved and peak for each epoch, and by part at the end.

    Parts are parameters, buffers, gradients, optimizer state, activations (what a step takes and gives back, other
    temporary tensors included) and the rest (data on the device, copies that plugins hold). On a machine without a
    GPU it says so in one line, and measures the memory of the process instead.

    Adds `gpu_allocated_mib`, `gpu_reserved_mib` and `gpu_peak_mib`, or `process_mib` on a CPU: of several processes the
    largest. The lines at the start and at the end are those of the first one.
    """

    def __init__(self, name: str = "gpu_memory") -> None:
        self.name = name
        self._device = torch.device("cpu")
        self._peak = self._temporary = 0  # bytes

    def metric_names(self, split: str) -> list[str]:
        if split != "train":
            return []
        if self._device.type == "cpu":
            return ["process_mib"]
        return ["gpu_allocated_mib", "gpu_reserved_mib", "gpu_peak_mib"]

    @hookimpl(wrapper=True)
    def prepare_model(self, trainer: Trainer) -> Iterator[None]:
        self._device = trainer.device  # metric_names is asked before on_fit_start
        return (yield)

    def on_fit_start(self) -> None:
        self._peak = self._temporary = 0
        if self._device.type == "cpu":
            self._process = psutil.Process()
            _say("no GPU is used (device cpu); the memory of the process is measured instead")
        else:
            _say(f"{self._device}: {_mib(_allocated(self._device))} allocated at the start, {_left(self._device)}")

    def on_epoch_start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    @hookimpl(split="train")
    def on_split_end(self, trainer: Trainer, metrics: MutableMapping[str, float]) -> None:
        if self._device.type == "cpu":
            used = self._process.memory_info().rss
            self._peak = max(self._peak, used)
            here = [used]
        else:
            allocated, peak = _allocated(self._device), _peak(self._device)
            self._peak = max(self._peak, peak)
            self._temporary = max(self._temporary, peak - allocated)
            here = [allocated, _reserved(self._device), peak]
        most = [max(sizes) / MIB for sizes in zip(*trainer.processes.gather(here), strict=True)]
        metrics.update(zip(self.metric_names("train"), most, strict=True))

    def state_dict(self) -> dict[str, int]:
        return {"peak": self._peak, "temporary": self._temporary}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._peak, self._temporary = state["peak"], state["temporary"]

    def on_fit_end(self, trainer: Trainer) -> None:
        parts = _parts(trainer.model, trainer.optimizer)
        if self._device.type == "cpu":
            _say(f"{_shown(parts)}; the process at most {_mib(self._peak)}")
            return
        rest = _allocated(self._device) - sum(parts.values())
        parts |= {"activations": self._temporary, "the rest": max(rest, 0)}
        _say(f"{_shown(parts)}; peak {_mib(self._peak)}, {_left(self._device)}")


def _parts(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes by part. Gradients are there until the next step clears them."""
    return {
        "parameters": _bytes(model.parameters()),
        "buffers": _bytes(model.buffers()),
        "gradients": _bytes(p.grad for p in model.parameters() if p.grad is not None),
        "optimizer state": _bytes(t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)),
    }


def _shown(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_mib(size)}" for name, size in parts.items() if size or name != "buffers")


def _say(line: str) -> None:
    tqdm.write(f"memory    {line}")


def _mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB" if size >= MIB / 10 else f"{size:.0f} bytes"


def _bytes(tensors: Iterable[Tensor]) -> int:
    here = (tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors)  # a piece, if sharded
    return sum(tensor.numel() * tensor.element_size() for tensor in here)


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
