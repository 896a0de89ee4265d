"""The data sets of the labs: on the disk whole, or told in one sentence; and the verb that fetches them for a class."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from framework import DataError

if TYPE_CHECKING:
    from torch.utils.data import TensorDataset
    from torchvision.datasets import MNIST

FILES = {  # the files of MNIST with their sizes in bytes, by which one that was cut off is known
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
TIMEOUT = 10  # seconds without a byte after which a server is given up


def mnist(root: str | Path = "", transform: Any = None) -> tuple[MNIST, MNIST]:
    """The 60,000 training and the 10,000 test images of MNIST: pairs of an image and a digit.

    What is missing or cut off is downloaded to `root/MNIST/raw`, where torchvision looks for it.

    Args:
        root: the folder of data sets; by default what the environment variable FRAMEWORK_DATA names, else `data`
        transform: of an image; by default ToTensor, which gives a tensor of shape (1, 28, 28) with values from 0 to 1

    Raises:
        DataError: a file is not there and cannot be downloaded
    """
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    root = _root(root)
    _complete(root / "MNIST" / "raw")
    transform = transform or ToTensor()
    return MNIST(root, train=True, transform=transform), MNIST(root, train=False, transform=transform)


def digits(samples: int = 1000, noise: float = 0.0) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, in an order drawn by torch.

    Returns:
        training, validation (400) and test data (397): images of shape (64,) with values from 0 to 1, and their digits

    Args:
        samples: how many to train on, at most 1000
        noise: the share of the training images that get a label drawn at random

    Raises:
        DataError: samples is not from 1 to 1000, or noise not from 0 to 1
    """
    import torch
    from sklearn.datasets import load_digits
    from torch.utils.data import TensorDataset

    if not 1 <= samples <= 1000 or not 0 <= noise <= 1:
        raise DataError(f"samples must be from 1 to 1000 and noise from 0 to 1, got {samples} and {noise:g}")
    found = load_digits()  # E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository, doi 10.24432/C50P49
    x, y = torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)
    order = torch.randperm(len(y))
    x, y = x[order], y[order]
    labels = y[:samples].clone()
    wrong = round(noise * samples)
    labels[:wrong] = torch.randint(10, (wrong,))
    parts = (x[:samples], labels), (x[1000:1400], y[1000:1400]), (x[1400:], y[1400:])
    train, val, test = (TensorDataset(*part) for part in parts)
    return train, val, test


def _root(root: str | Path) -> Path:
    path = Path(root or os.environ.get("FRAMEWORK_DATA") or "data")
    try:
        return path.expanduser()
    except RuntimeError as error:  # no such user, or no home at all
        raise DataError(f"the folder of data sets, {path}, names a home directory that is not there") from error


def _complete(folder: Path) -> bool:
    """See that the four files are there as long as they should be; whether one had to be fetched."""
    missing = [name for name, size in FILES.items() if not _is_whole(folder / name, size)]
    for name in missing:
        with _said(folder, name):
            _fetch(folder, name)
    return bool(missing)


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _is_packed(folder: Path, name: str) -> bool:
    """Whether the .gz of a file is there and whole."""
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import check_integrity

    return bool(check_integrity(str(folder / f"{name}.gz"), dict(MNIST.resources)[f"{name}.gz"]))


def _fetch(folder: Path, name: str) -> None:
    """Unpack a file from the .gz that is there, or from the first mirror that has one; never half of it."""
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import download_and_extract_archive

    packed = f"{name}.gz"
    md5 = dict(MNIST.resources)[packed]
    folder.mkdir(parents=True, exist_ok=True)
    failure: Exception | None = None
    for mirror in MNIST.mirrors:
        try:
            with _impatient(), tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as beside:
                source = str(folder) if _is_packed(folder, name) else beside
                download_and_extract_archive(mirror + packed, source, beside, packed, md5)
                for file in os.listdir(beside):
                    os.replace(Path(beside, file), folder / file)
                return
        except (OSError, RuntimeError, http.client.HTTPException) as error:  # torchvision catches too few of them
            failure = failure or error
    assert failure is not None
    raise failure


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """A server that says nothing is given up after a while; torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _said(folder: Path, name: str) -> Iterator[None]:
    """Turns any failure into one sentence with what to put where."""
    try:
        yield
    except Exception as error:
        what = "is cut off" if (folder / name).is_file() else "is not there"
        if _is_packed(folder, name):
            raise DataError(f"{folder / name} {what} and cannot be unpacked from {name}.gz ({error})") from error
        if (folder / f"{name}.gz").is_file():
            what = f"{what}, {name}.gz is damaged,"
        printable = "".join(letter if letter.isprintable() else " " for letter in str(error))
        reason = printable[:200]  # some servers answer with a whole page
        *first, last = (f"{name}.gz" for name in FILES)
        raise DataError(
            f"{folder / name} {what} and cannot be downloaded ({reason}): put {', '.join(first)} and {last} into "
            f"{folder}, or name the folder that has MNIST{os.sep}raw with --data-root or FRAMEWORK_DATA "
            "(the recipe digits needs no download)"
        ) from error


# ------------------------------------------------------------------------------------------------------ the verb


def data(action: Literal["fetch"], dataset: Literal["mnist"], to: str = "") -> None:
    """Fetch a data set, such as for a class room: data fetch mnist --to DIR.

    Args:
        action: fetch
        dataset: mnist
        to: the folder of data sets; by default what FRAMEWORK_DATA names, else data
    """
    root = _root(to)
    fetched = _complete(root / "MNIST" / "raw")
    print(f"{'fetched' if fetched else 'complete':<10}{root / 'MNIST' / 'raw'} ({len(FILES)} files)")
    print(f'use       --data-root "{root}", or the environment variable FRAMEWORK_DATA={root.absolute()}')
