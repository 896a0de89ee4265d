"""Using a run: its figures on the recipe's data, and its predictions for numbers and for image files."""

from __future__ import annotations

import functools
import glob
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from framework import PluginOption, Recipe, UsageError, rebuild

if TYPE_CHECKING:
    from PIL.Image import Image

Flag = tyro.conf.FlagCreatePairsOff[bool]
AT_ONCE = 64  # image files that are in memory together
COMPARED = 32  # training images that tell what an image should look like
SMALLEST = 8  # pixels of a side: four features are no image of 2 x 2


def evaluate(
    run: Path, recipe: str = "", checkpoint: str = "", plugin: PluginOption = (), trust_run: Flag = False
) -> int:
    """The figures of a run's weights on the data of its recipe.

    Args:
        run: a run directory
        recipe: the recipe file to use, where the original has gone or changed
        checkpoint: best or last; by default the best if it was chosen on validation data, else the last
        plugin: as for a run; those of the recipe are there already
        trust_run: run the copy of the recipe that is in the run directory
    """
    made, trainer, path = rebuild(run, recipe, checkpoint, plugin, trust_run)
    print(f"weights   {path}")
    for split in ("train", "val", "test"):
        data = getattr(made, split)
        if data is not None:
            figures = trainer.evaluate(data, None if isinstance(data, DataLoader) else made.batch_size)
            shown = "  ".join(f"{name.removeprefix('test_')} {value:.6g}" for name, value in figures.items())
            print(f"{split:<9} {shown}")
    return 0


def predict(
    run: Path, input: tuple[str, ...], top: int = 3, invert: Flag = False, recipe: str = "", checkpoint: str = "",
    plugin: PluginOption = (), trust_run: Flag = False,
) -> int:  # fmt: skip
    """What a run's model says about image files, or about numbers.

    Args:
        run: a run directory
        input: image files, folders of them or patterns such as "new/*.png"; or one sample, or a list of samples, as
            JSON, such as "[73,80,75]"
        top: how many classes to show, the most probable first
        invert: turn dark into bright first, as for dark strokes on white paper where the training images have bright
            strokes on black
        recipe: the recipe file to use, where the original has gone or changed
        checkpoint: best or last; by default the best if it was chosen on validation data, else the last
        plugin: as for a run; those of the recipe are there already
        trust_run: run the copy of the recipe that is in the run directory
    """
    if not input:
        raise UsageError('name an input: image files, a folder of them, or JSON such as "[73,80,75]"')
    if top < 1:
        raise UsageError(f"--top must be a whole number from 1 up, got {top}")
    made, trainer, path = rebuild(run, recipe, checkpoint, plugin, trust_run)
    files = [_files(word) for word in input]
    images = Images(made, invert) if any(files) else None
    numbers = [_numbers(word, made) for word, found in zip(input, files, strict=True) if not found]
    print(f"weights   {path}")
    answers = Answers(made, top)
    for inputs, rows in numbers:
        answers.print([json.dumps(row) for row in rows], trainer.predict(inputs))
    if images is not None:
        named = [file for found in files for file in found]
        for start in range(0, len(named), AT_ONCE):
            chunk = named[start : start + AT_ONCE]
            answers.print(map(str, chunk), trainer.predict(images.batch(chunk)))
        for hint in images.hints():
            print(f"hint      {hint}")
    return 0


# --------------------------------------------------------------------------------------------------------- what goes in


def _files(word: str) -> list[Path]:
    """The files that a word of the command line names; none where it is meant as numbers."""
    if os.path.isdir(word):
        from torchvision.datasets.folder import IMG_EXTENSIONS

        found = sorted(file for file in Path(word).rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            raise UsageError(f"the folder {word} has no image: no file with one of {', '.join(IMG_EXTENSIONS)}")
        return found
    if os.path.isfile(word):
        return [Path(word)]
    if {"*", "?"} & set(word):
        matching = [Path(name) for name in sorted(glob.glob(word, recursive=True)) if os.path.isfile(name)]
        if not matching:
            raise UsageError(f"no file matches {word!r}")
        return matching
    if Path(word).suffix[1:2].isalpha():
        raise UsageError(f"there is no file {word!r}")
    return []


def _numbers(text: str, made: Recipe) -> tuple[Tensor, list[Any]]:
    """The input as a batch shaped like the samples that the recipe trains on."""
    sample = next(_samples(made.train))
    try:
        values = json.loads(text)
        tensor = torch.tensor(values, dtype=sample.dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(
            f'the input {text!r} is not a JSON list of numbers such as "[73,80,75]", and there is no such file: {error}'
        ) from None
    if tensor.dim() == sample.dim():
        tensor, values = tensor.unsqueeze(0), [values]
    if tensor.shape[1:] != sample.shape:
        raise UsageError(
            f"the input has shape {tuple(tensor.shape[1:] or tensor.shape)}; "
            f"a sample of this recipe has shape {tuple(sample.shape)}"
        )
    return tensor, values


def _data_set(data: Any) -> Any:
    return data.dataset if isinstance(data, DataLoader) else data


def _samples(data: Any) -> Iterator[Tensor]:
    """The x of a few samples, spread over the data."""
    found = _data_set(data)
    if isinstance(found, tuple) and isinstance(found[0], Tensor):  # a pair (x, y)
        picked: Iterator[Any] = ((found[0][index],) for index in _spread(len(found[0])))
    elif isinstance(found, IterableDataset):
        picked = itertools.islice(found, COMPARED)
    else:
        picked = (found[index] for index in _spread(len(found)))
    for sample in picked:
        x = sample[0] if isinstance(sample, (tuple, list)) else sample
        if not isinstance(x, Tensor):
            raise UsageError("predict takes recipes whose x is one tensor; use Trainer.predict for others")
        yield x


def _spread(length: int) -> Iterator[int]:
    return (index * length // COMPARED for index in range(COMPARED)) if length > COMPARED else iter(range(length))


def _chain(data: Any) -> list[Any]:
    """A data set and those that it is a part of, as with Subset and random_split: the innermost first."""
    chain = [_data_set(data)]
    while (inner := getattr(chain[0], "dataset", None)) is not None:
        chain.insert(0, inner)
    return chain


class Images:
    """Image files, brought to what the samples of a recipe are.

    By the transform of the recipe's data set, if it has one: that of the validation data, else of the test data, else
    of the training data. Without one an image is resized, and its values go from 0 to 1.

    Args:
        made: its samples are of shape (1 or 3, H, W), (H, W), or flat ones of square images

    Raises:
        UsageError: a sample is no image
    """

    def __init__(self, made: Recipe, invert: bool = False) -> None:
        given = [data for data in (made.val, made.test, made.train) if data is not None]
        transformed = [(data, found) for data in given if (found := _transforms(data))]
        data, self._transforms = transformed[0] if transformed else (made.train, [])
        samples = list(_samples(data))
        self._sample, self._invert = samples[0], invert
        self._channels, self._height, self._width = _image_shape(self._sample)
        self._low, self._high, self._mean = _figures([x for x in samples if x.shape == self._sample.shape])
        self._inverted: list[Path] = []
        self._count = 0

    def batch(self, files: Sequence[Path]) -> Tensor:
        """The files as one batch.

        Raises:
            UsageError: a file is no image, or the transform does not make a sample of it
        """
        return torch.stack([self._read(file) for file in files])

    def hints(self) -> Iterator[str]:
        """What is odd about the images that were read."""
        if self._inverted:
            what = "leave out --invert" if self._invert else "try --invert"
            yield (
                f"{len(self._inverted)} of {self._count} images look inverted beside the training images, "
                f"such as {self._inverted[0]}: {what}"
            )
        if not self._transforms and self._sample.is_floating_point() and (self._low < -0.01 or self._high > 1.01):
            yield (
                f"the values of the training images go from {self._low:.4g} to {self._high:.4g}, and those of files "
                "from 0 to 1: give the recipe's data set an attribute `transform` that makes a sample of an image"
            )

    def _read(self, file: Path) -> Tensor:
        from PIL.Image import Resampling

        image = _opened(file, "L" if self._channels == 1 else "RGB", self._invert)
        x = self._made_of(image, file) if self._transforms else None
        if x is None or x.shape != self._sample.shape:  # the images of the data set have a size of their own
            resized = image.resize((self._width, self._height), Resampling.BILINEAR)  # which looks at every pixel
            x = self._made_of(resized, file)
        if x.shape != self._sample.shape:
            raise UsageError(
                f"{file}: the transform of the data set gives a tensor of shape {tuple(x.shape)}, also for an image of "
                f"{self._width} x {self._height} pixels; a sample of this recipe has shape {tuple(self._sample.shape)}"
            )
        self._count += 1
        if self._looks_inverted(x):
            self._inverted.append(file)
        return x

    def _made_of(self, image: Image, file: Path) -> Tensor:
        if not self._transforms:
            from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

            pixels: Tensor = to_dtype(pil_to_tensor(image), self._sample.dtype, scale=True)
            return pixels.reshape(self._sample.shape)
        try:
            made = functools.reduce(lambda value, transform: transform(value), self._transforms, image)
        except Exception as error:
            error.add_note(f"in the transform of the recipe's data set, for {file}")
            raise
        if not isinstance(made, Tensor):
            raise UsageError(f"the transform of the data set gives {type(made).__name__}, and no tensor, for {file}")
        return made

    def _looks_inverted(self, x: Tensor) -> bool:
        """Whether its mean is far from that of the training images, and would be near to it if it were inverted."""
        span = max(self._high - self._low, 1e-12)
        mean, usual = (float(x.float().mean()) - self._low) / span, (self._mean - self._low) / span
        return abs(1 - mean - usual) + 0.25 < abs(mean - usual)


def _transforms(data: Any) -> list[Any]:
    found = [getattr(data_set, "transform", None) for data_set in _chain(data)]
    return [transform for transform in found if callable(transform)]


def _figures(samples: list[Tensor]) -> tuple[float, float, float]:
    values = torch.stack(samples).float()
    return float(values.min()), float(values.max()), float(values.mean())


def _image_shape(sample: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of the image that a sample is.

    Raises:
        UsageError: it is none
    """
    shape = tuple(sample.shape)
    if len(shape) == 2:
        shape = (1, *shape)
    elif len(shape) == 1:
        channels = 1 if math.isqrt(shape[0]) ** 2 == shape[0] else 3
        side = math.isqrt(shape[0] // channels)
        shape = channels, side, side
    fits = math.prod(shape) == sample.numel() and len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= SMALLEST
    if not fits or not (sample.is_floating_point() or sample.dtype == torch.uint8):
        raise UsageError(
            f"a sample of this recipe is no image: it is {sample.dtype} of shape {tuple(sample.shape)}, and not "
            "(1 or 3, H, W), (H, W) or the S * S pixels of a square; give numbers as JSON"
        )
    return shape[0], shape[1], shape[2]


def _opened(file: Path, mode: str, invert: bool) -> Image:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).copy()  # photographs say which side is up
    except UnidentifiedImageError:
        raise UsageError(f"{file} is not an image that PIL can open") from None
    except Exception as error:  # each format of PIL has errors of its own for a file that is damaged
        raise UsageError(f"{file} cannot be read as an image: {type(error).__name__}: {error}") from error
    if image.mode.startswith(("I", "F")):  # PIL would cut off what does not fit into 8 bits
        raise UsageError(f"{file} has more than 8 bits for each value of a pixel (mode {image.mode}): save it with 8")
    if "A" in image.getbands() or "transparency" in image.info:  # under it is paper, not the black that is stored there
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert(mode)
    return ImageOps.invert(image) if invert else image


# ------------------------------------------------------------------------------------------------------- what comes out


class Answers:
    """Prints outputs: the most probable classes of a classifier, else numbers."""

    def __init__(self, made: Recipe, top: int) -> None:
        self._loss, self._top = made.loss, top
        given = [data_set for data in (made.train, made.val) if data is not None for data_set in _chain(data)]
        found = [names for data_set in given if (names := getattr(data_set, "classes", None))]
        self._names: Sequence[Any] = made.class_names or (found[0] if found else ())

    def print(self, rows: Any, outputs: Any) -> None:
        if not isinstance(outputs, Tensor):
            raise UsageError(f"predict shows outputs that are one tensor; the model gives {type(outputs).__name__}")
        for row, output in zip(rows, outputs, strict=True):
            print(f"{row} -> {self._said(output)}")

    def _said(self, output: Tensor) -> str:
        probabilities = _probabilities(output, self._loss)
        if probabilities is None:
            return json.dumps([float(f"{value:.6g}") for value in output.flatten().tolist()])
        largest = probabilities.topk(min(self._top, len(probabilities)))
        found = zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
        return ", ".join(f"{self._name(index, len(probabilities))} ({value:.4f})" for value, index in found)

    def _name(self, index: int, classes: int) -> str:
        return str(self._names[index]) if len(self._names) == classes else f"class {index}"


def _probabilities(output: Tensor, loss: Any) -> Tensor | None:
    """Those of the classes, where the loss tells that the output is about classes; of two, where it is one number."""
    loss = loss.func if isinstance(loss, functools.partial) else loss
    if output.dim() == 1:
        if isinstance(loss, nn.CrossEntropyLoss) or loss is F.cross_entropy:
            return output.softmax(0)
        if isinstance(loss, nn.NLLLoss) or loss is F.nll_loss:
            return output.exp()
    if output.numel() == 1:
        if isinstance(loss, nn.BCEWithLogitsLoss) or loss is F.binary_cross_entropy_with_logits:
            return _both(output.sigmoid())
        if isinstance(loss, nn.BCELoss) or loss is F.binary_cross_entropy:
            return _both(output)
    return None


def _both(second: Tensor) -> Tensor:
    second = second.flatten()
    return torch.cat([1 - second, second])
