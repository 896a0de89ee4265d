"""The exceptions of the framework; every one says what was wrong in the user's own names and what would be right.

::

    FrameworkError
    +-- UsageError (also a ValueError)   the user's mistake; the command line exits with 2
    |   +-- RecipeError                  the recipe file, its knobs or what it returned
    |   +-- PluginError                  a plugin: unknown, broken, misspelt hook, wrong answer
    |   +-- DataError                    a data set, a batch, a shape, a label
    |   +-- DeviceError                  a device that is absent, or two devices in one operation
    |   +-- RunDirError                  a run directory that cannot be used
    +-- NonFiniteError                   the loss became inf or nan; the command line exits with 1
    +-- CheckpointError                  a checkpoint that cannot be written, read or fitted to the model
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FrameworkError(Exception):
    """Anything that the framework raises by itself."""


class UsageError(FrameworkError, ValueError):
    """The user's mistake: a name, a value, a shape. Nothing has been trained or lost by it."""


class RecipeError(UsageError):
    """A recipe file that cannot be loaded, a knob that it lacks, or something else than a Recipe returned."""


class PluginError(UsageError):
    """Every finding about the plugins of one trainer, or a plugin that answered wrongly."""


class DataError(UsageError):
    """Data that cannot be trained on: empty, ragged, labels out of range, shapes that would broadcast."""


class DeviceError(UsageError):
    """A device that this machine lacks, or a batch and a model on different devices."""


class RunDirError(UsageError):
    """A run directory that is taken, cannot be written or holds something else."""


class NonFiniteError(FrameworkError):
    """The loss became inf or nan."""


class CheckpointError(FrameworkError):
    """A checkpoint that cannot be written or read, or that belongs to another model."""


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """`value`, one of `known`; else a UsageError that names both."""
    if value not in known:
        raise UsageError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
    return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of `known`, else what there is to choose from."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" There is: {', '.join(names)}." if names else ""
