"""Memory that does not suffice."""

from __future__ import annotations

import re

import torch

from framework.device import describe, named
from framework.errors import FrameworkError
from framework.mistakes.case import Case


class OutOfMemoryError(FrameworkError, torch.OutOfMemoryError, MemoryError):
    """Memory of a device or of the machine does not suffice; the error of torch or Python is its cause."""


def short(case: Case) -> OutOfMemoryError | None:
    """Where the memory ended, and what needs less of it."""
    text, trainer = str(case.error), case.known_as("trainer")
    if not (isinstance(case.error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in text):
        return None
    at = f" at step {trainer.step}, epoch {trainer.epoch}" if trainer else ""
    if case.frames("framework.checkpoint"):
        return OutOfMemoryError(f"out of memory while a checkpoint was taken{at}; those before it are as they were")
    sizes = re.findall(r"[Tt]ried to allocate (\d[\d.]* \w+)|total capacity of (\d[\d.]* \w+)", text)
    asked = f", {' of '.join(''.join(size) for size in sizes)} could not be had" if sizes else ""
    samples = next((len(tensor) for _, tensor in named(case.batch) if tensor.dim()), 0)
    half = f"try batch_size={samples // 2} and accumulate=2" if samples > 1 else "use a smaller model or input"
    return OutOfMemoryError(f"out of memory{at}{asked}; batch: {describe(case.batch) or 'none'}; {half}")
