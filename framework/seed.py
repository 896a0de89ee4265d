"""The generators of random numbers: seeding all of them, their states, and leaving all of them as they were found."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (if it is imported) and torch on every device."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(*generators: torch.Generator) -> dict[str, Any]:
    """The states of Python, NumPy (if its generators are imported), torch, every CUDA device, MPS, `generators`."""
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    states["generators"] = [generator.get_state() for generator in generators]
    if numpy := sys.modules.get("numpy.random"):  # importing it takes longer than many a fit
        kind, key, *rest = numpy.get_state()
        states["numpy"] = (kind, torch.from_numpy(key), *rest)
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict[str, Any], *generators: torch.Generator) -> None:
    """Put back what `random_states` gave; a device that is not there, and one that was not there then, is left alone.

    Raises:
        ValueError: another number of generators than then
    """
    torch.set_rng_state(states["torch"])
    for generator, state in zip(generators, states.get("generators", ()), strict=True):
        generator.set_state(state)
    if "python" in states:
        random.setstate(states["python"])
    if "numpy" in states:
        import numpy.random

        kind, key, *rest = states["numpy"]
        numpy.random.set_state((kind, key.numpy(), *rest))
    for index, state in enumerate(states.get("cuda", ())[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


@contextlib.contextmanager
def kept_random_states(*generators: torch.Generator) -> Iterator[None]:
    """Whatever is drawn inside leaves no trace outside: Python, NumPy, torch, every CUDA device, MPS, `generators`."""
    states = random_states(*generators)
    try:
        yield
    finally:
        set_random_states(states, *generators)
