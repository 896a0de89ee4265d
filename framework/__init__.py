"""A training loop with the same numbers as the one that you would have written by hand; everything else is a plugin.

>>> import torch
>>> from framework import Trainer
>>> x = torch.tensor([[1.0], [2.0], [3.0]])
>>> model = torch.nn.Linear(1, 1)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> result = Trainer(model, torch.nn.functional.mse_loss, optimizer, device="cpu").fit((x, 2 * x), epochs=200)
>>> round(result.history[-1]["train_loss"], 3)
0.0
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Where the public names live. Each is imported when it is first used, so that `python -m framework --help` does not
# wait for torch; __init__.pyi tells type checkers and editors.
_HOMES = {
    "CheckpointError": "errors", "DataError": "errors", "DeviceError": "errors", "FrameworkError": "errors",
    "Monitor": "metrics", "NonFiniteError": "errors", "Piece": "checkpoint", "PluginError": "errors",
    "PluginOption": "cli.options", "Processes": "checkpoint", "Recipe": "recipe", "RecipeError": "errors",
    "Result": "trainer", "RunDirError": "errors", "Snapshot": "checkpoint", "Trainer": "trainer",
    "UsageError": "errors", "apply": "device", "assemble": "cli.building", "build": "cli.building",
    "command_of": "cli.building", "described": "architecture", "fit_recipe": "cli.building", "hookimpl": "hooks",
    "is_finished": "cli.rundir", "kept_random_states": "seed", "knobs": "cli.building", "layers": "architecture",
    "mode_of": "metrics", "picture": "cli.pictures", "plain": "cli.pictures", "read_runs": "cli.rundir",
    "rebuild": "cli.building", "run": "cli.running", "seed_everything": "seed", "settings_of": "architecture",
    "target_of": "metrics", "unpadded": "data", "write_whole": "checkpoint",
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'framework' has no attribute {name!r}")
    return getattr(importlib.import_module(f"framework.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
