"""The generators of random numbers: seeding all of them, and leaving all of them as they were found."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (if it is imported) and torch on every device."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def kept_random_states(*generators: torch.Generator) -> Iterator[None]:
    """Whatever is drawn inside leaves no trace outside: Python, NumPy, torch, every CUDA device, MPS, `generators`."""
    states = [generator.get_state() for generator in generators]
    numpy = sys.modules.get("numpy.random")  # importing it takes longer than many a fit
    python_state, numpy_state = random.getstate(), numpy.get_state() if numpy else None
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(cuda):  # the CPU and these devices
        try:
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            random.setstate(python_state)
            if numpy:
                numpy.set_state(numpy_state)
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)
