"""torchvision's data sets from memory against torch's DataLoader over them, and what is left to the DataLoader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset, random_split
from torchvision import datasets, transforms
from torchvision.transforms import v2

from framework.engine.loader import InMemory, in_memory

CPU = torch.device("cpu")
GRAY = [datasets.MNIST, datasets.FashionMNIST, datasets.KMNIST]
COLOR = [datasets.CIFAR10, datasets.CIFAR100]


def first(channels: int) -> list[Any]:
    means = [0.1307, 0.48, 0.3][:channels]
    return [transforms.Normalize(means, [0.3081, 0.2, 0.7][:channels]), transforms.Normalize(0.5, (0.25,))]


def second(channels: int) -> list[Any]:
    return [v2.Normalize([0.1307, 0.48, 0.3][:channels], [0.3081, 0.2, 0.7][:channels]), v2.Normalize([0.5], [0.25])]


RECIPES = {
    "ToTensor": lambda c: transforms.ToTensor(),
    "nested": lambda c: transforms.Compose([transforms.Compose([transforms.ToTensor()])]),
    "v1": lambda c: transforms.Compose([transforms.ToTensor(), first(c)[0]]),
    "v1 twice": lambda c: transforms.Compose([transforms.ToTensor(), *first(c)]),
    "PIL": lambda c: transforms.Compose([transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)]),
    "PIL double": lambda c: transforms.Compose(
        [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float64), first(c)[0]]
    ),
    "v2": lambda c: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    "v2 in v1": lambda c: transforms.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *second(c)]),
    "v2 pure": lambda c: v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), second(c)[0], v2.ToPureTensor()]
    ),
    "v2 PIL": lambda c: v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float64, scale=True), second(c)[0]]),
}


def made(kind: Any, rows: int, transform: Any, layout: str = "as it comes") -> Any:
    """A data set of random pixels, all 256 values among them, without a download."""
    generator = numpy.random.RandomState(rows)
    dataset = kind.__new__(kind)
    if kind in COLOR:
        pixels = generator.randint(0, 256, (rows, 3, 32, 32), dtype=numpy.uint8).transpose(0, 2, 3, 1)
        dataset.data = numpy.ascontiguousarray(pixels) if layout == "contiguous" else pixels
        dataset.targets = generator.randint(0, 10, rows).tolist()
        if layout == "sliced":
            dataset.data, dataset.targets = dataset.data[::2], dataset.targets[::2]
    else:
        dataset.data = torch.from_numpy(generator.randint(0, 256, (rows, 28, 28), dtype=numpy.uint8))
        dataset.targets = torch.from_numpy(generator.randint(0, 10, rows))
        if layout == "sliced":
            dataset.data, dataset.targets = dataset.data[::2], dataset.targets[::2].to(torch.uint8)
    dataset.transform, dataset.target_transform = transform, None
    return dataset


def passes(oracle: Any, loader: DataLoader[Any], source: Any = None) -> InMemory:
    """Two passes over a loader and over its twin, compared."""
    source = in_memory(loader, CPU) if source is None else source
    assert isinstance(source, InMemory), source
    for _ in range(2):
        torch.manual_seed(3)
        expected = [tuple(batch) for batch in loader]
        torch.manual_seed(3)
        batches = list(source)
        assert not source.why
        oracle.assert_same(expected, batches)
    return source


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(GRAY + COLOR), recipe=st.sampled_from(sorted(RECIPES)), rows=st.integers(1, 12),
    size=st.integers(1, 5), layout=st.sampled_from(["as it comes", "contiguous", "sliced"]), subset=st.booleans(),
)  # fmt: skip
def test_batches_are_those_of_the_dataloader(
    oracle: Any, kind: Any, recipe: str, rows: int, size: int, layout: str, subset: bool
) -> None:
    dataset = made(kind, rows, RECIPES[recipe](3 if kind in COLOR else 1), layout)
    if subset:
        dataset = Subset(dataset, [*range(len(dataset))][::-2])
    passes(oracle, DataLoader(dataset, batch_size=size, shuffle=True))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_all_256_values_of_a_pixel_are_scaled_with_the_same_bits(oracle: Any, recipe: str) -> None:
    dataset = made(datasets.MNIST, 2, RECIPES[recipe](1))
    dataset.data[1].view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    passes(oracle, DataLoader(dataset, batch_size=2))


def test_the_two_versions_of_the_transforms_do_not_give_the_same_bits() -> None:
    """Else the tests above could not tell them apart."""
    one, two = (made(datasets.MNIST, 4, RECIPES[name](1))[0][0] for name in ("ToTensor", "v2"))
    assert not torch.equal(one, two)


def test_the_real_mnist(oracle: Any, mnist: Path) -> None:
    dataset = datasets.MNIST(str(mnist), transform=transforms.ToTensor())
    train, _ = random_split(dataset, [1_000, 59_000], torch.Generator().manual_seed(0))
    passes(oracle, DataLoader(train, batch_size=100, shuffle=True))
    assert isinstance(in_memory(DataLoader(dataset, batch_size=100), CPU), InMemory)


def test_to_tensor_makes_the_default_dtype(oracle: Any) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        source = passes(oracle, DataLoader(made(datasets.MNIST, 5, RECIPES["v1"](1)), batch_size=2))
        assert next(iter(source))[0].dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [datasets.MNIST, datasets.CIFAR10])
def test_what_is_changed_between_passes_counts(oracle: Any, kind: Any) -> None:
    dataset = made(kind, 6, transforms.ToTensor())
    loader = DataLoader(dataset, batch_size=4, shuffle=True)
    source = passes(oracle, loader)

    dataset.data[2] = 17
    dataset.targets[1] = 3
    passes(oracle, loader, source)
    dataset.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    passes(oracle, loader, source)
    dataset.transform.transforms[1].mean = (0.25,)
    passes(oracle, loader, source)
    dataset.transform.transforms.append(transforms.RandomHorizontalFlip())
    torch.manual_seed(3)
    expected = [tuple(batch) for batch in loader]
    torch.manual_seed(3)
    oracle.assert_same(expected, list(source))
    assert source.why == "the transform RandomHorizontalFlip draws random numbers"


class Mine(transforms.ToTensor):
    pass


class Twice(datasets.MNIST):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return 2 * x, y


def changed(kind: Any = datasets.MNIST, transform: Any = None, **attributes: Any) -> Any:
    dataset = made(kind, 6, transform or transforms.ToTensor())
    for name, value in attributes.items():
        setattr(dataset, name, value(getattr(dataset, name)))
    return dataset


READ = "data and targets of the {} are not as torchvision reads them"
REFUSED = {
    "no transform": (lambda: changed(transform=transforms.Compose([])), "it has no transform"),
    "random": (
        lambda: changed(transform=transforms.Compose([transforms.RandomCrop(28, 4), transforms.ToTensor()])),
        "the transform RandomCrop draws random numbers",
    ),
    "random at last": (
        lambda: changed(transform=v2.Compose([*RECIPES["v2"](1).transforms, v2.RandomErasing()])),
        "the transform RandomErasing draws random numbers",
    ),
    "own": (lambda: changed(transform=Mine()), "the transform Mine is none that it can follow"),
    "function": (
        lambda: changed(transform=transforms.Compose([transforms.ToTensor(), torch.flatten])),
        "the transform builtin_function_or_method is none that it can follow",
    ),
    "mixed": (
        lambda: changed(transform=transforms.Compose([transforms.ToTensor(), v2.Normalize([0.5], [0.5])])),
        "the transform Normalize is none that it can follow",
    ),
    "broadcast": (
        lambda: changed(transform=v2.Compose([*RECIPES["v2"](1).transforms, v2.Normalize([0.1] * 3, [0.5] * 3)])),
        "the transform Normalize is none that it can follow",
    ),
    "unscaled": (
        lambda: changed(transform=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)])),
        "the transform ToDtype makes no floats from 0 to 1",
    ),
    "integers": (
        lambda: changed(transform=v2.Compose([v2.ToImage(), v2.ToDtype(torch.int32, scale=True)])),
        "the transform ToDtype makes no floats from 0 to 1",
    ),
    "target": (lambda: changed(target_transform=lambda _: float), "the MNIST has a target_transform"),
    "float data": (lambda: changed(data=lambda d: d.float()), READ.format("MNIST")),
    "float targets": (lambda: changed(targets=lambda t: t.float()), READ.format("MNIST")),
    "too few targets": (lambda: changed(targets=lambda t: t[:3]), READ.format("MNIST")),
    "targets of tensors": (lambda: changed(datasets.CIFAR10, targets=torch.tensor), READ.format("CIFAR10")),
    "mixed targets": (lambda: changed(datasets.CIFAR10, targets=lambda t: [*t[:5], 1.5]), READ.format("CIFAR10")),
    "flipped": (lambda: changed(datasets.CIFAR10, data=lambda d: d[:, ::-1]), READ.format("CIFAR10")),
    "tensor": (lambda: changed(datasets.CIFAR10, data=lambda d: torch.tensor(d)), READ.format("CIFAR10")),
    "subclass": (
        lambda: made(Twice, 6, transforms.ToTensor()),
        "the data set is a Twice; cache=True would keep its samples",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_anything_else_is_left_to_the_dataloader(case: str) -> None:
    make, reason = REFUSED[case]
    assert in_memory(DataLoader(make(), batch_size=2), CPU) == reason


def test_a_hook_in_a_transform_is_seen_in_the_first_batch() -> None:
    normalize = transforms.Normalize((0.5,), (0.5,))
    normalize.register_forward_hook(lambda module, inputs, output: output + 1)
    dataset = changed(transform=transforms.Compose([transforms.ToTensor(), normalize]))
    assert in_memory(DataLoader(dataset, batch_size=2), CPU) == "its samples are not the rows of its tensors"
