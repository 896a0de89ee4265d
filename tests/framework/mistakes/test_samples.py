"""Data sets that fail are told with the sample, here and in workers; no pass ends or hangs without a word."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    IterDataPipe,
    Subset,
    TensorDataset,
    get_worker_info,
)

from framework import DataError
from framework.mistakes import explain
from framework.mistakes.samples import Guarded, GuardedStream, guarded


@pytest.fixture(autouse=True)
def _loaders_end() -> Iterator[None]:
    """The worker of a loader that an exception ended waits for five seconds before it looks whether it is over."""
    yield
    while children := multiprocessing.active_children():
        with contextlib.suppress(RuntimeError):  # torch's, when it hears of it
            children[0].terminate()
            children[0].join()


class Rows(Dataset[Any]):
    """Six samples of three numbers; the one of row 4 is what `fails` makes of it."""

    classes = ("a", "b")

    def __init__(self, fails: Callable[[], Any] = lambda: None) -> None:
        self.fails = fails
        self.x, self.y = torch.rand(6, 3), torch.rand(6, 1)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> Any:
        return (row == 4 and self.fails()) or (self.x[row], self.y[row])


def raising(kind: type[BaseException], *given: Any) -> Callable[[], Any]:
    def fails() -> Any:
        raise kind(*given)

    return fails


def cannot_be_pickled() -> Any:
    class Local(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a} and {b}")

    raise Local(1, 2)


class Lines(Exception):
    def __repr__(self) -> str:
        return "Lines(\n    two\n)"


FAILURES: dict[str, Callable[[], Any]] = {
    "Lines( two )": raising(Lines),
    "KeyError('label')": raising(KeyError, "label"),
    "StopIteration()": raising(StopIteration),
    "SystemExit(2)": raising(SystemExit, 2),
    "Local('1 and 2')": cannot_be_pickled,
    r"ValueError('two\nlines')": raising(ValueError, "two\nlines"),
    "FileNotFoundError(2, 'No such file or directory')": raising(FileNotFoundError, 2, "No such file or directory"),
}


# ------------------------------------------------------------------------------------------- what a guarded one raises


@pytest.mark.parametrize("said", FAILURES)
def test_whatever_a_guarded_data_set_raises_can_be_sent_and_read(said: str) -> None:
    for asked in (lambda data: data[4], lambda data: data.__getitems__([3, 4, 5])):
        with pytest.raises(DataError) as caught:
            asked(Guarded(Rows(FAILURES[said]), "val"))
        told = str(pickle.loads(pickle.dumps(caught.value)))
        assert told.startswith(f"val: data set Rows[4] failed: {said}, at test_samples.py:")
        assert "\n" not in told
        assert caught.value.__cause__ is not None


def test_ctrl_c_in_a_worker_is_no_fault_of_the_data_set() -> None:
    with pytest.raises(KeyboardInterrupt):
        Guarded(Rows(raising(KeyboardInterrupt)), "train")[4]


@pytest.mark.parametrize("wrap", [lambda rows: Subset(rows, [0, 4]), lambda rows: ConcatDataset([rows]), lambda r: r])
def test_the_sample_is_that_of_the_data_set_that_failed(wrap: Callable[[Any], Any]) -> None:
    data = wrap(Rows(FAILURES["KeyError('label')"]))
    with pytest.raises(DataError, match=r"^train: data set Rows\[4\] failed: KeyError\('label'\), at "):
        Guarded(data, "train").__getitems__(list(range(len(data))))


def test_the_sample_is_told_whatever_self_is_called_and_however_deep_it_fails() -> None:
    class Odd(Dataset[Any]):
        def __getitem__(this, key: Any) -> Any:
            return this.read(f"{key}.png")

        def read(self, path: str) -> Any:
            return open(path, "rb")

    with pytest.raises(
        DataError, match=r"data set Odd\[7\] failed: FileNotFoundError\(2, 'No such file or directory'\)"
    ):
        Guarded(Odd(), "train").__getitems__([7])


def test_a_data_set_that_fails_without_a_frame_of_its_own_is_told_by_its_name() -> None:
    class Nothing(Dataset[Any]):
        __getitem__ = None  # type: ignore[assignment]

    with pytest.raises(DataError, match=r"^train: data set Nothing failed: TypeError\("):
        Guarded(Nothing(), "train")[0]


def test_a_stream_that_fails_is_told_with_its_name() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield 1
            raise KeyError("label")

    stream = iter(GuardedStream(Stream(), "train"))
    assert next(stream) == 1
    with pytest.raises(DataError, match=r"^train: data set Stream failed: KeyError\('label'\), at test_samples.py:"):
        next(stream)


# ---------------------------------------------------------------------------------------------- what is left as it was


def test_a_guarded_data_set_gives_the_same_samples_attributes_and_length() -> None:
    rows = Rows()
    data: Any = guarded(rows, "train", 2)
    assert (len(data), data.classes, data.x) == (6, rows.classes, rows.x)
    assert all(a is b for a, b in zip(data[1], data.__getitems__([0, 1])[1], strict=True)) is False
    assert torch.equal(data[1][0], rows[1][0])
    with pytest.raises(AttributeError, match="nothing"):
        data.nothing


def test_a_guarded_data_set_is_pickled_and_copied() -> None:
    for made in (
        pickle.loads(pickle.dumps(Guarded(TensorDataset(torch.ones(2)), "train"))),
        copy.deepcopy(Guarded([5], "val")),
    ):
        assert len(made) in (1, 2)
        assert made.split in ("train", "val")


def test_batches_of_rows_are_asked_for_as_torch_would_ask() -> None:
    class Several(Rows):
        def __getitems__(self, rows: list[int]) -> Any:
            return [("several", row) for row in rows]

    assert Guarded(Several(), "train").__getitems__([2, 3]) == [("several", 2), ("several", 3)]
    assert Guarded(Several(), "train")[2] == ("several", 2)


def test_only_what_workers_fetch_and_can_fail_is_guarded() -> None:
    class Pipe(IterDataPipe[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield 1

    rows, tensors, pipe = Rows(), TensorDataset(torch.ones(3)), Pipe()
    assert guarded(rows, "train", 0) is rows
    assert guarded(tensors, "train", 2) is tensors
    assert guarded(pipe, "train", 1) is pipe
    assert isinstance(guarded(Subset(rows, [1]), "train", 1), Guarded)


def test_workers_give_the_bits_of_torch_s_own_loader(fit: Callable[..., Any]) -> None:
    class Draws(Rows):
        def __getitem__(self, row: int) -> Any:
            return self.x[row] + torch.rand(3), self.y[row]

    made = []
    for ours in (True, False):
        torch.manual_seed(5)
        rows = Draws()
        model = nn.Linear(3, 1)
        if ours:
            fit(model, nn.MSELoss(), rows, epochs=2, batch_size=4, num_workers=1)
        else:
            fit(model, nn.MSELoss(), DataLoader(rows, batch_size=4, shuffle=True, num_workers=1), epochs=2)
        made.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *made))


# -------------------------------------------------------------------------------------------------- told by a whole fit


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [2, None])
def test_a_sample_that_fails_is_told_the_same_with_and_without_workers(
    fit: Callable[..., Any], refused: Callable[..., str], workers: int, batch_size: int | None
) -> None:
    rows = Rows(FAILURES["KeyError('label')"])
    options = {"batch_size": batch_size, "shuffle": False, "num_workers": workers, "accumulate": 9}
    said = refused(nn.Linear(3, 1), nn.MSELoss(), rows, **options)
    assert said.startswith("train: data set Rows[4] failed: KeyError('label'), at test_samples.py:")
    with pytest.raises(DataError, match=r"^val: data set Rows\[4\] failed"):
        fit(nn.Linear(3, 1), nn.MSELoss(), Rows(), val=rows, batch_size=batch_size, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_data_set_is_the_cause_of_what_is_told(fit: Callable[..., Any], workers: int) -> None:
    with pytest.raises(DataError) as caught:
        fit(nn.Linear(3, 1), nn.MSELoss(), Rows(FAILURES["KeyError('label')"]), batch_size=2, num_workers=workers)
    cause = caught.value.__cause__
    if workers:
        assert "in DataLoader worker process 0" in str(cause)
        assert "raise kind(*given)" in str(cause)
    else:
        assert type(cause) is KeyError


@pytest.mark.parametrize("said", [name for name in FAILURES if "Key" not in name])
def test_a_worker_neither_hangs_nor_ends_the_epoch_on_a_failure(refused: Callable[..., str], said: str) -> None:
    rows = Rows(FAILURES[said])
    told = refused(nn.Linear(3, 1), nn.MSELoss(), rows, batch_size=2, shuffle=False, num_workers=1, accumulate=9)
    assert told.startswith(f"train: data set Rows[4] failed: {said}, at test_samples.py:")


def test_a_stop_iteration_does_not_end_the_epoch_without_a_word(fit: Callable[..., Any]) -> None:
    rows = Rows(FAILURES["StopIteration()"])
    for data, options in ((rows, {"batch_size": 2, "shuffle": False}), (DataLoader(rows, batch_size=2), {})):
        with pytest.raises(DataError, match=r"train: the pass ended after 2 of 3 batches: Rows raised StopIteration"):
            fit(nn.Linear(3, 1), nn.MSELoss(), data, **options)
    with pytest.raises(DataError, match=r"val: the pass ended after 2 of 3 batches"):
        fit(nn.Linear(3, 1), nn.MSELoss(), Rows(), val=rows, batch_size=2)
    with pytest.raises(DataError, match=r"train: data set Rows\[4\] failed: StopIteration\(\)"):
        fit(nn.Linear(3, 1), nn.MSELoss(), rows)


def test_a_failure_in_a_worker_of_the_user_s_own_loader_is_told_too(refused: Callable[..., str]) -> None:
    loader = DataLoader(Rows(FAILURES["KeyError('label')"]), batch_size=2, num_workers=1)
    said = refused(nn.Linear(3, 1), nn.MSELoss(), loader, accumulate=9)
    assert said == "train: the data set failed in a worker process: KeyError: 'label'"


def test_an_error_in_the_data_set_is_not_explained_with_the_batch_before(refused: Callable[..., str]) -> None:
    data = Rows(raising(RuntimeError, "my own words: does not require grad"))
    said = refused(nn.Linear(3, 1), nn.MSELoss(), data, batch_size=2, shuffle=False, accumulate=9)
    assert said.startswith("train: data set Rows[4] failed: RuntimeError('my own words: does not require grad')")


def test_what_a_data_set_says_in_our_own_words_is_left_alone(fit: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"^mine$"):
        fit(nn.Linear(3, 1), nn.MSELoss(), Rows(raising(DataError, "mine")), batch_size=2)


def test_a_data_set_that_is_asked_by_a_plugin_fails_in_the_plugin(fit: Callable[..., Any]) -> None:
    class Asks:
        def on_epoch_start(self) -> None:
            Rows(FAILURES["KeyError('label')"])[4]

    with pytest.raises(KeyError) as caught:
        fit(nn.Linear(3, 1), nn.MSELoss(), Rows(), batch_size=2, plugins=[Asks()])
    assert caught.value.__notes__[0].startswith("plugin 'asks', hook on_epoch_start")


# ------------------------------------------------------------------------------------------ samples that make no batch


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ((torch.ones(5), torch.ones(1)), "RuntimeError"),
        (([1.0, 2.0], torch.ones(1)), "list"),
        ((None, torch.ones(1)), "NoneType"),
        ((object(), torch.ones(1)), "object"),
    ],
)
def test_samples_that_do_not_fit_together_are_told(
    refused: Callable[..., str], workers: int, other: Any, said: str
) -> None:
    options = {"batch_size": 3, "shuffle": False, "num_workers": workers, "accumulate": 9}
    told = refused(nn.Linear(3, 1), nn.MSELoss(), Rows(lambda: other), **options)
    assert told.startswith("train: the samples of a batch do not fit together: ")
    assert said in told
    assert "a missing return makes None" in told
    assert "collate_fn" in told


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_with_other_keys_are_told(refused: Callable[..., str], workers: int) -> None:
    class Dicts(Rows):
        def __getitem__(self, row: int) -> Any:
            return {"left" if row else "right": self.x[row]}, self.y[row]

    told = refused(nn.Linear(3, 1), nn.MSELoss(), Dicts(), batch_size=3, shuffle=False, num_workers=workers)
    assert told.startswith("train: the samples of a batch do not fit together: KeyError")
    assert "'right'" in told


def test_what_a_collate_fn_of_the_user_s_own_raises_is_left_alone(fit: Callable[..., Any]) -> None:
    def collate(samples: Any) -> Any:
        raise OSError("mine")

    with pytest.raises(OSError, match=r"^mine$"):
        fit(nn.Linear(3, 1), nn.MSELoss(), DataLoader(Rows(), batch_size=2, collate_fn=collate))


# -------------------------------------------------------------------------------------------------- workers that end


ENDS = """
import os, signal, sys
import torch
from torch import nn
from torch.utils.data import Dataset
from framework import Trainer

class Rows(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 4:
            os._exit(3) if sys.argv[1] == "exit" else os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(3), torch.ones(1)

model = nn.Linear(3, 1)
trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
trainer.fit(Rows(), batch_size=2, shuffle=False, num_workers=1, accumulate=9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its workers are forked")
@pytest.mark.parametrize("way", ["exit", *["SIGKILL"] * hasattr(signal, "SIGKILL")])
def test_a_worker_that_ends_is_told(way: str) -> None:
    """In a process of its own: torch raises its sentence at any instant, so now and then before ours is said."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", ENDS, way]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 1
    told = re.search(
        r"DataError: train: a worker process of the data set ended \(.*\): was memory short \(see dmesg\), or "
        r"/dev/shm\? num_workers=0 shows whether the data set exits by itself",
        done.stderr,
    )
    assert told or "RuntimeError: DataLoader worker (pid" in done.stderr


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), BrokenPipeError(32, "Broken pipe")]
)
def test_the_end_of_a_connection_is_that_of_a_worker_only_where_a_loader_waits_for_it(error: Exception) -> None:
    class Loader(DataLoader[Any]):
        def __iter__(self) -> Any:
            raise error

    space: dict[str, Any] = {"__name__": "torch.utils.data.dataloader"}
    exec("def wait(error):\n    raise error", space)
    for wait, told in ((space["wait"], True), (Loader([]).__iter__, False)):
        with pytest.raises(type(error)) as caught:
            wait(error) if told else wait()
        found = explain(caught.value.with_traceback(caught.tb), nn.Linear(1, 1), None, None, None)
        assert (found is not None and "a worker process of the data set ended" in str(found)) is told
        error.__traceback__ = None


def test_a_data_set_that_cannot_be_sent_to_workers_is_told(refused: Callable[..., str]) -> None:
    class Local(Rows):
        pass

    loader = DataLoader(Local(), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about start methods
        said = refused(nn.Linear(3, 1), nn.MSELoss(), loader)
    assert said == "train: a data set goes to workers only if its class is at the top of a file"


# ------------------------------------------------------------------------------------- streams that are read by workers


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(3), torch.ones(1))] * 4)


def warned(dataset: Any, workers: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guarded(dataset, "train", workers)
    return [str(warning.message) for warning in caught]


def test_a_stream_that_every_worker_reads_as_a_whole_is_told() -> None:
    (said,) = warned(Stream(), 3)
    assert said.startswith("train: each of num_workers=3 gives all of Stream, unless it shards itself by torch.")
    assert said.endswith("get_worker_info()")
    assert warned(Stream(), 1) == warned(Stream(), 0) == []


def test_a_stream_that_may_share_itself_out_is_not_told() -> None:
    class Shards(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return self.share()

        def share(self) -> Iterator[Any]:
            yield torch.utils.data.get_worker_info()

    class Asks(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield get_worker_info()

    class Long(IterableDataset[Any]):  # which is looked at when it has ended
        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            yield 1

    class Inherits(Stream):
        pass

    assert warned(Shards(), 2) == warned(Asks(), 2) == warned(Long(), 2) == warned(Inherits(), 2) == []
