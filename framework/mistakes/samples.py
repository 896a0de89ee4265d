"""Data sets that fail, in this process or in a worker, and samples that do not make a batch."""

from __future__ import annotations

import contextlib
import re
import traceback
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

    def __init__(self, dataset: Any, split: str) -> None:
        self.dataset, self.split = dataset, split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, row: Any) -> Any:
        with self._told():
            return self.dataset[row]

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


def guarded(dataset: Dataset[Any], split: str) -> Dataset[Any]:
    """The data set as worker processes shall have it; as it is where it cannot fail, or torch knows its kind."""
    if type(dataset) is TensorDataset or hasattr(dataset, "register_datapipe_as_function"):
        return dataset
    return (GuardedStream if isinstance(dataset, IterableDataset) else Guarded)(dataset, split)


def kind_of(dataset: Any) -> str:
    return type(dataset.dataset if isinstance(dataset, Guarded) else dataset).__name__


def failed(error: BaseException, split: str, name: str = "") -> DataError | None:
    """An error that came out of a data set, with the sample that was asked for; None where it did not.

    Args:
        name: of a data set that it certainly came out of
    """
    place, last = "", None
    for frame, line in traceback.walk_tb(error.__traceback__):
        code, owner = frame.f_code, frame.f_locals.get("self")
        if isinstance(owner, Dataset) and not isinstance(owner, Guarded):
            if code.co_name == "__getitem__" and code.co_argcount > 1:
                name = f"{type(owner).__name__}[{frame.f_locals[code.co_varnames[1]]!r:.60}]"
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


def _ragged(case: Case) -> str:
    sizes = re.search(r"got (\[.*?\]) at entry 0 and (\[.*?\]) at entry \d+", str(case.error))
    are = f": {sizes[1]} and {sizes[2]}" if sizes else ""
    return f"samples of one batch differ in shape{are}; cut or pad them, or pass a DataLoader with a collate_fn"


def _no_tensor(case: Case) -> str:
    kind = re.findall(r"found <class '(.*?)'>", str(case.error))[-1]
    why = " (does __getitem__ end with a return?)" if kind == "NoneType" else ""
    return f"a sample is or holds a {kind}{why}; it must be made of tensors, arrays, numbers, dicts, lists and tuples"


def _other_keys(case: Case) -> str | None:
    collated = any(frame.f_code.co_name == "default_collate" for frame in case.frames())
    return f"samples of one batch must have the same keys; one has no {case.error}" if collated else None


def _ended(case: Case) -> str:
    said = re.findall(r"exit code -?\d+|signal: \w+", f"{case.error.__cause__ or case.error.__context__} {case.error}")
    return (
        f"a worker process ended{' with ' * bool(said)}{''.join(said[:1])}. Was memory short (see dmesg), or /dev/shm? "
        "Does the data set exit or crash? num_workers=0 shows what it does"
    )


def _in_a_loader(case: Case) -> str:
    return f"the data set failed in a worker process: {str(case.error).strip().splitlines()[-1]}"


RULES: tuple[Rule, ...] = (
    (r"stack expects each tensor|list of batch should be of equal size|storage that is not resizable", _ragged),
    (r"batch must contain tensors", _no_tensor),
    (r"[Ww]orker.*exited unexpectedly|killed by signal|bus error|Connection reset|received 0 items", _ended),
    (r"[Cc]an't (get|pickle)|cannot pickle", "a data set goes to workers only if its class is at the top of a file"),
    (r"Caught \w+ in DataLoader worker process", _in_a_loader),
    (r"^'.*'$", _other_keys),
)
