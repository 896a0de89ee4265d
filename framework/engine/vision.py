"""torchvision's MNIST and CIFAR as tensors: what their samples become, computed for a whole batch with the same bits.

The two versions of the transforms scale differently: the first divides by 255, the second multiplies by 1 / 255.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framework.engine.private import version

GRAY, COLOR = ("MNIST", "FashionMNIST", "KMNIST"), ("CIFAR10", "CIFAR100")
DRAWING = ("Rand", "ColorJitter", "AutoAugment", "TrivialAugment", "AugMix", "MixUp", "CutMix")
DIVIDING = (["v1 ToTensor"], ["v1 PILToTensor", "v1 ConvertImageDtype"])
MULTIPLYING = (["v2 ToImage", "v2 ToDtype"], ["v2 PILToTensor", "v2 ToDtype"])


@dataclass(frozen=True, slots=True)
class Recipe:
    """What deterministic transforms make of pixels: a dtype, a scale, and any number of (mean, std)."""

    dtype: torch.dtype
    divide: bool
    norms: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]


class Images:
    """Pixels, of which batches of floats are gathered as from a tensor. They stay bytes, a quarter of the floats."""

    def __init__(self, pixels: Tensor, recipe: Recipe) -> None:
        self.pixels, self.recipe, self.device, self.shape = pixels, recipe, pixels.device, pixels.shape
        self._norms = [[torch.tensor(n, dtype=recipe.dtype).view(-1, 1, 1) for n in norm] for norm in recipe.norms]

    def __len__(self) -> int:
        return self.pixels.size(0)

    @property
    def nbytes(self) -> int:
        """Of all of them as floats."""
        return self.pixels.numel() * self.recipe.dtype.itemsize

    def mark(self) -> tuple[Any, ...]:
        """Another one when the pixels have been changed, as far as torch knows, or the transform."""
        return self.pixels.data_ptr(), version(self.pixels), self.shape, self.recipe

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        return self._floats(self.pixels.index_select(dim, index))

    def to(self, device: torch.device) -> Tensor:
        """All of them as floats on a device. They are made on the CPU: a GPU divides by way of a reciprocal."""
        return torch.cat([self._floats(span).to(device) for span in self.pixels.split(4096)])

    def _floats(self, pixels: Tensor) -> Tensor:
        floats = pixels.to(self.recipe.dtype, memory_format=torch.contiguous_format)
        floats = floats.div_(255) if self.recipe.divide else floats.mul_(1.0 / 255)
        for mean, std in self._norms:
            floats.sub_(mean).div_(std)
        return floats


def columns_of(dataset: Any) -> tuple[Images, Tensor] | str | None:
    """Images and labels of a data set of torchvision, or why its samples can only be asked for one by one.

    None for any other data set. Nothing is imported for it: who has such a data set has imported torchvision.
    """
    name = type(dataset).__name__
    if name not in GRAY + COLOR or getattr(sys.modules.get("torchvision.datasets"), name, None) is not type(dataset):
        return None
    pixels, labels = _pixels(dataset.data, name in GRAY), _labels(dataset.targets, name in GRAY)
    if pixels is None or labels is None or not len(pixels) == len(labels) > 0:
        return f"data and targets of the {name} are not as torchvision reads them"
    if dataset.target_transform is not None:
        return f"the {name} has a target_transform"
    recipe = _recipe(dataset.transform, pixels.size(1))
    return recipe if isinstance(recipe, str) else (Images(pixels, recipe), labels)


def _pixels(data: Any, gray: bool) -> Tensor | None:
    if gray:
        fit = type(data) is Tensor and data.dtype is torch.uint8 and data.dim() == 3 and data.device.type == "cpu"
        return data.unsqueeze(1) if fit else None
    if type(data).__name__ != "ndarray" or data.dtype != "uint8" or data.ndim != 4 or data.shape[3] != 3:
        return None
    return torch.from_numpy(data).permute(0, 3, 1, 2) if data.flags.writeable and min(data.strides) > 0 else None


def _labels(targets: Any, gray: bool) -> Tensor | None:
    if not gray:
        whole = type(targets) is list and set(map(type, targets)) == {int}
        return torch.tensor(targets, dtype=torch.int64) if whole else None
    if type(targets) is not Tensor or targets.dim() != 1 or targets.device.type != "cpu":
        return None
    return targets.to(torch.int64) if targets.dtype in (torch.uint8, torch.int32, torch.int64) else None


def _recipe(transform: Any, channels: int) -> Recipe | str:
    steps = list(_steps(transform))
    names = [name for name, _ in steps]
    head = next((head for head in DIVIDING + MULTIPLYING if names[: len(head)] == head), [])
    norms = []
    for name, step in steps if not head else steps[len(head) :]:
        if name == "v2 ToPureTensor" and head in MULTIPLYING:
            continue
        mean, std = (torch.as_tensor(getattr(step, key, ()), dtype=torch.float64).view(-1) for key in ("mean", "std"))
        if not head or name != f"{head[0][:2]} Normalize" or not {len(mean), len(std)} <= {1, channels}:
            what = "draws random numbers" if name[3:].startswith(DRAWING) else "is none that it can follow"
            return f"the transform {type(step).__name__} {what}"
        norms.append((tuple(mean.tolist()), tuple(std.tolist())))
    if not head:
        return "it has no transform"
    convert = steps[len(head) - 1][1]
    dtype = torch.get_default_dtype() if len(head) == 1 else convert.dtype
    if dtype not in (torch.float32, torch.float64) or not getattr(convert, "scale", True):
        return f"the transform {type(convert).__name__} makes no floats from 0 to 1"
    return Recipe(dtype, head in DIVIDING, tuple(norms))


def _steps(transform: Any) -> Iterator[tuple[str, Any]]:
    """Each transform with a name such as "v1 ToTensor"; one that is not torchvision's own has none."""
    name = type(transform).__name__
    for short, module in ("v1", "torchvision.transforms"), ("v2", "torchvision.transforms.v2"):
        if getattr(sys.modules.get(module), name, None) is type(transform) and "forward" not in vars(transform):
            if name == "Compose":
                for step in transform.transforms:
                    yield from _steps(step)
            else:
                yield f"{short} {name}", transform
            return
    if transform is not None:
        yield "", transform
