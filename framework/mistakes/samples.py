"""Data sets that fail, in this process or in a worker, and samples that do not make a batch."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset, TensorDataset

from framework.device import describe
from framework.errors import DataError
from framework.mistakes.case import Case, Rule


class Guarded(Dataset[Any]):
    """A data set for worker processes: whatever it raises becomes a DataError, which any process can send and read.

    torch hangs on an exception that cannot be pickled, loses the worker on SystemExit, and ends the epoch without a
    word on StopIteration.
    """

    dataset: Any = None  # asked for before there is one when it is unpickled

    def __init__(self, dataset: Any, split: str) -> None:
        self.dataset, self.split = dataset, split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __getitem__(self, row: Any) -> Any:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[Any]) -> Any:
        several = getattr(self.dataset, "__getitems__", None)
        with self._told():
            return several(rows) if several else [self.dataset[row] for row in rows]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            raise failed(error, self.split, kind_of(self)) or error from error


class GuardedStream(Guarded, IterableDataset[Any]):
    """The same for a data set without row numbers."""

    def __iter__(self) -> Iterator[Any]:
        with self._told():
            yield from self.dataset


def guarded(dataset: Dataset[Any], split: str, workers: int) -> Dataset[Any]:
    """The data set as its worker processes shall have it; as it is where it cannot fail, or torch knows its kind.

    It warns of a plain stream without a length, where nothing asks which worker it is in.
    """
    if not workers or type(dataset) is TensorDataset or hasattr(dataset, "register_datapipe_as_function"):
        return dataset
    if not isinstance(dataset, IterableDataset):
        return Guarded(dataset, split)
    kind = type(dataset)
    codes = [function.__code__ for function in vars(kind).values() if hasattr(function, "__code__")]
    names = {*vars(kind), *(name for code in codes for name in code.co_names)}
    if workers > 1 and kind.__bases__ == (IterableDataset,) and not names & {"get_worker_info", "__len__"}:
        warnings.warn(f"{split}: {repeated(dataset, workers)}", stacklevel=2)
    return GuardedStream(dataset, split)


def repeated(dataset: Any, workers: int) -> str:
    all_of_it = f"each of num_workers={workers} gives all of {kind_of(dataset)}"
    return f"{all_of_it}, unless it shards itself by torch.utils.data.get_worker_info()"


def kind_of(dataset: Any) -> str:
    return type(dataset.dataset if isinstance(dataset, Guarded) else dataset).__name__


def failed(error: BaseException, split: str, name: str = "") -> DataError | None:
    """An error that came out of a data set, with the sample that was asked for; None where it did not.

    Args:
        name: of a data set that it certainly came out of
    """
    place, last = "", None
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner, *asked = [frame.f_locals.get(argument) for argument in code.co_varnames[: code.co_argcount]] or [None]
        if isinstance(owner, Dataset) and not isinstance(owner, Guarded):
            if asked and code.co_name == "__getitem__":
                name = f"{type(owner).__name__}[{asked[0]!s:.60}]"
            elif owner is not last:
                name = type(owner).__name__
            last, place = owner, f", at {Path(code.co_filename).name}:{line}"
    said = " ".join(f"{error!r:.300}".split())
    return DataError(f"{split}: data set {name} failed: {said}{place}") if name else None


def in_worker(case: Case) -> DataError | None:
    """What a guarded data set said in a worker process, out of the traceback that torch hands over as text."""
    said = re.findall(rf"^{DataError.__module__}\.DataError: (.*)$", str(case.error), re.MULTILINE)
    return DataError(said[-1]) if said and str(case.error).startswith("Caught DataError in DataLoader") else None


def no_pair(batch: Any) -> str:
    """Why a batch cannot be trained on as it is."""
    parts = f"{len(batch)} part{'s' * (len(batch) != 1)}" if isinstance(batch, (tuple, list, dict)) else None
    got = f"{parts or 'a ' + type(batch).__name__}: {describe(batch)}"
    return f"a batch must be a pair (x, y), this one is {got}; a plugin with forward and compute_loss can take others"


def _ended(case: Case) -> str | None:
    if not case.frames("torch.utils.data"):
        return None
    with contextlib.suppress(RuntimeError):  # torch raises it, wherever this process is, until the worker is waited for
        for child in multiprocessing.active_children():
            child.join(0.2)
    why = "was memory short (see dmesg), or /dev/shm? num_workers=0 shows whether the data set exits by itself"
    return f"a worker process of the data set ended ({case.error.__cause__ or repr(case.error)}): {why}"


def _fetched(case: Case) -> str | None:
    """What torch's DataLoader met when it asked for samples, or put them together."""
    text, collated = str(case.error).strip(), [f for f in case.frames() if f.f_code.co_name == "default_collate"]
    in_worker = "in DataLoader worker process" in text
    said = text.splitlines()[-1] if in_worker else repr(case.error)
    if collated or (in_worker and "in default_collate" in text):
        alike = "They need the same shapes, keys and types (a missing return makes None), or a collate_fn of yours"
        return f"the samples of a batch do not fit together: {said}. {alike}"
    return f"the data set failed in a worker process: {said}" if in_worker else None


RULES: tuple[Rule, ...] = (
    (r"[Ww]orker.*exited unexpectedly|killed by signal|bus error|ConnectionResetError|EOFError|BrokenPipe", _ended),
    (r"[Cc]an't (get|pickle)|cannot pickle", "a data set goes to workers only if its class is at the top of a file"),
    (r"", _fetched),
)
