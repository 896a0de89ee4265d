"""The recipes that test_recipes.py compares: `torchrun --nproc-per-node 2 worker_recipes.py FOLDER`.

Each recipe is trained with its own plugins for two epochs of a few batches, since its data is cut to its first rows.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from framework import assemble, build, fit_recipe
from framework.modules import installed, installed_file

DRAW = ("cpu_vs_gpu", "network_diagrams", "tensor_manipulation")  # they train nothing
TRAIN = [name for name in installed() if name not in DRAW]
FEW = ("digits", "linear_regression", "minibatch", "mnist_mlp", "sgd_variants", "softmax")  # those of four processes
ROWS = {"train": 130, "val": 51, "test": 33}  # at most
KNOBS: dict[str, dict[str, Any]] = {
    "sgd_variants": {"samples": 41, "updates": 4, "batch_size": 6},
    "mnist_binary": {"batch_size": 50},
    "mnist_cnn": {"channels": (4, 8)},
}
SAVE = ("checkpointing", "digits", "overfitting")  # what is written is written by all ranks: these get a run directory


def first(data: Any, rows: int) -> Any:
    """The first rows of a data set, which stays of its kind."""
    if data is None:
        return None
    if isinstance(data, tuple):
        return tuple(first(part, rows) for part in data)
    if isinstance(data, Tensor):
        return data[:rows]
    if isinstance(data, TensorDataset):
        return TensorDataset(*first(data.tensors, rows))
    return Subset(data, range(min(rows, len(data))))


def trained(name: str, plugins: list[Any], folder: Path | None = None) -> dict[str, Any]:
    """The figures of each variant of a recipe, or the error that it ends with."""
    path = installed_file(name)
    knobs = KNOBS.get(name, {})
    made = build(path, **knobs)
    return {
        label: _trained(path, label, plugins, folder, knobs) for label in (made if isinstance(made, dict) else [""])
    }


def _trained(path: Path, label: str, plugins: list[Any], folder: Path | None, knobs: dict[str, Any]) -> dict[str, Any]:
    run_dir = None
    if folder is not None and path.stem in SAVE:
        run_dir = folder / label
        run_dir.mkdir(parents=True, exist_ok=True)
    recipe, trainer = assemble(path, label=label, device="cpu", plugins=plugins, run_dir=run_dir, **knobs)
    data = {split: first(getattr(recipe, split), rows) for split, rows in ROWS.items()}
    try:
        result = fit_recipe(trainer, recipe, train=data["train"], val=data["val"], epochs=2)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    test = trainer.evaluate(data["test"], recipe.batch_size) if data["test"] is not None else {}
    weights = [value.detach().double().flatten().tolist() for value in trainer.model.parameters()]
    return {
        "history": result.history, "test": test, "steps": result.steps, "size": norm(weights),
        "kept": None if result.best is None else result.best["epoch"],
    }  # fmt: skip


def norm(weights: list[list[float]]) -> list[float]:
    """The size of each parameter."""
    return [sum(value * value for value in each) ** 0.5 for each in weights]


def is_there(name: str) -> bool:
    """Whether the data of a recipe is on the disk."""
    images = Path(os.environ["FRAMEWORK_DATA"]) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    return not name.startswith("mnist") or images.is_file()


def cases(names: Iterable[str]) -> dict[str, Callable[[Path], Any]]:
    """What a rank runs."""
    from framework_plugins.distributed import Distributed

    return {name: partial(trained, name, [Distributed()]) for name in names if is_there(name)}


if __name__ == "__main__":
    from running import work

    work(cases(TRAIN))
