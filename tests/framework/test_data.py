"""From what a user gives as data to batches; the bits of a DataLoader are held in test_same_numbers.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from framework import DataError, Trainer, UsageError, unpadded
from framework.data import (
    Whole,
    complete,
    count_samples,
    generators,
    in_chunks,
    joined,
    make_loader,
    positive,
    promised,
    sizes,
    windows,
)
from framework.engine.prefetch import on_device
from framework.testing import Recorder, tiny_data, tiny_trainer

CPU = torch.device("cpu")


class Counted(Dataset):
    """Five samples; it remembers which were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.x, self.y = tiny_data()

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.x[index], self.y[index]


class Stream(IterableDataset):
    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        x, y = tiny_data(max(self.samples, 1))
        yield from list(zip(x, y, strict=True))[: self.samples]


class Flat:
    """Samples 0 to 2, but says that there are 90."""

    def __iter__(self) -> Iterator[int]:
        return iter([0, 1, 2])

    def __len__(self) -> int:
        return 90


# ----------------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("shuffle", [None, True, False])
def test_without_a_batch_size_the_whole_is_one_batch_in_its_own_order(shuffle: bool | None) -> None:
    seen: list[Any] = []

    class Looks:
        def on_batch_start(self, batch: Any) -> None:
            seen.append(batch)

    x, y = tiny_data()
    result = tiny_trainer([Looks()]).fit((x, y), epochs=2, shuffle=shuffle)
    assert result.steps == 2
    assert all(batch[0] is x and batch[1] is y for batch in seen)


def test_without_a_batch_size_a_data_set_is_collated_once() -> None:
    data = Counted()
    tiny_trainer().fit(data, epochs=3)
    assert data.asked == [0, 1, 2, 3, 4]


def test_without_a_batch_size_a_stream_is_collated_once() -> None:
    assert torch.equal(make_loader(Stream(4), "train", None, False, False).batch[0], tiny_data(4)[0])


def test_without_a_batch_size_a_list_of_two_is_a_pair() -> None:
    x, y = tiny_data()
    assert tiny_trainer().fit([x, y]).history == tiny_trainer().fit((x, y)).history


def test_the_whole_is_an_iterable_of_one_batch() -> None:
    batch = (torch.ones(3, 2), torch.ones(3))
    whole = Whole(batch)
    assert (len(whole), list(whole), list(whole)) == (1, [batch], [batch])


# --------------------------------------------------------------------------------------------------------------- nests


class Point(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


NESTS = {
    "dict": lambda x, y: ({"a": x, "b": {"c": x + 1}}, y),
    "list": lambda x, y: ([x, (x + 1, x + 2)], y),
    "target": lambda x, y: (x, {"y": y, "z": [y, y]}),
    "both": lambda x, y: ({"a": [x]}, (y, {"w": y})),
    "whole numbers as keys": lambda x, y: ({0: x, 1: x}, {2: y}),
    "named tuple": lambda x, y: (Point(x, x + 1), y),
}


def flat(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in flat(part)]


def keys(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: keys(value) for key, value in tree.items()}
    return [keys(value) for value in tree] if isinstance(tree, (list, tuple)) else None


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("batch_size", [None, 1, 2, 5])
def test_nested_pairs_are_cut_leaf_by_leaf(nest: str, batch_size: int | None) -> None:
    data = NESTS[nest](*tiny_data())
    loader = make_loader(data, "train", batch_size, False, False)
    batches = list(on_device(loader, CPU))
    step = batch_size or 5
    assert len(batches) == -(-5 // step)
    for start, batch in zip(range(0, 5, step), batches, strict=True):
        assert keys(batch) == keys(data)
        for leaf, whole in zip(flat(batch), flat(data), strict=True):
            assert torch.equal(leaf, whole[start : start + step])


@pytest.mark.parametrize("drop_last", [False, True])
def test_nested_pairs_are_shuffled_like_a_data_set_of_the_same_samples(drop_last: bool) -> None:
    x, y = tiny_data(7)
    torch.manual_seed(3)
    nested = list(on_device(make_loader(({"a": x}, y), "train", 2, True, drop_last), CPU))
    torch.manual_seed(3)
    plain = list(DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True, drop_last=drop_last))
    assert len(nested) == len(plain)
    for (inputs, targets), (wanted_x, wanted_y) in zip(nested, plain, strict=True):
        assert torch.equal(inputs["a"], wanted_x)
        assert torch.equal(targets, wanted_y)


@pytest.mark.parametrize("strange", ["text", None, 3.0, ["a", "b", "c", "d", "e"]])
def test_a_leaf_of_a_nest_that_is_no_tensor_is_named(strange: Any) -> None:
    x, y = tiny_data()
    with pytest.raises(DataError, match=r"train: .*one is a (str|NoneType|float)"):
        tiny_trainer().fit(({"a": x, "b": strange}, y), batch_size=2)


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.ones(0, 3), torch.ones(0, 1)), "train: the data set is empty"),
        (TensorDataset(torch.ones(0, 3), torch.ones(0, 1)), "train: the data set is empty"),
        (({"a": torch.ones(0, 3)}, torch.ones(0, 1)), "train: the data set is empty"),
        (DataLoader(TensorDataset(torch.ones(0, 3), torch.ones(0, 1))), "train: the DataLoader gives no batch"),
        (
            DataLoader(TensorDataset(torch.ones(3)), batch_size=5, drop_last=True),
            "train: the DataLoader gives no batch",
        ),
        (DataLoader(Stream(0), batch_size=2), "train: not a single batch came from DataLoader"),
        ((torch.ones(4, 3), torch.ones(3, 1)), "x and y must have the same number of samples; there are: x 4, y 3"),
        (({"a": torch.ones(4, 3)}, torch.ones(3, 1)), r"there are: x\['a'\] 4, y 3"),
        (torch.ones(4, 3), "train is .*Tensor.*; it must be a Dataset, a pair of tensors"),
        ((torch.ones(4, 3),), "train is .*tuple.*; it must be"),
        (
            (torch.ones(4, 3), torch.ones(4), torch.ones(4)),
            r"train is .*tuple.*; it must be .*; of these tensors make a TensorDataset\(\*data\), whose batches",
        ),
        ({"image": torch.ones(4, 3)}, r"train is .*dict; .*; of these tensors make a StackDataset\(\*\*data\)"),
        ((torch.ones(4, 3), torch.tensor(1.0)), "train is .*tuple.*; it must be"),
        ((numpy.ones((4, 3)), numpy.ones(4)), "train is .*ndarray.*; it must be"),
        (([[1.0], [2.0]], [1.0, 2.0]), "train is .*list.*; it must be .* or a DataLoader$"),
        ([1.0, 2.0], "train is .*float.*; it must be .* or a DataLoader$"),
        (Counted, "train is .*type.*; it must be"),
        ("data.csv", "train is .*str.*; it must be"),
        (None, "train is .*NoneType.*; it must be"),
    ],
)
def test_data_that_cannot_be_trained_on_is_named(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tiny_trainer().fit(data)


def test_a_validation_set_that_cannot_be_used_is_named_before_anything_is_trained() -> None:
    recorder = Recorder(["on_fit_start", "on_batch_start"])
    with pytest.raises(DataError, match="val: the data set is empty"):
        tiny_trainer([recorder]).fit(tiny_data(), (torch.ones(0, 3), torch.ones(0, 1)))
    x, y = tiny_data()
    with pytest.raises(DataError, match=r"val is .*Tensor"):
        tiny_trainer([recorder]).fit((x, y), y)
    assert recorder.calls == []


@pytest.mark.parametrize("batch_size", [6, 100])
def test_drop_last_that_leaves_no_batch_is_told_with_both_numbers(batch_size: int) -> None:
    message = f"train: drop_last=True leaves no batch: 5 samples are fewer than batch_size={batch_size}"
    with pytest.raises(DataError, match=message):
        tiny_trainer().fit(tiny_data(), batch_size=batch_size, drop_last=True)


def test_drop_last_does_not_drop_anything_of_validation() -> None:
    recorder = Recorder(["on_batch_end"])
    tiny_trainer([recorder]).fit(tiny_data(4), tiny_data(3), batch_size=4, drop_last=True)
    assert [call.arguments["samples"] for call in recorder.calls] == [4, 3]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_data_set_without_a_length_is_named(batch_size: int | None) -> None:
    class NoLength(Dataset):
        def __getitem__(self, index: int) -> Any:
            return torch.ones(3), torch.ones(1)

    with pytest.raises(DataError, match=r"train: .*NoLength.*__len__"):
        tiny_trainer().fit(NoLength(), batch_size=batch_size)


def test_an_error_of_the_data_set_is_told_with_the_sample() -> None:
    class Breaks(Counted):
        def __getitem__(self, index: int) -> Any:
            raise FileNotFoundError(f"sample {index}.png")

    for batch_size in (None, 2):
        with pytest.raises(
            DataError, match=r"train: data set Breaks\[0\] failed: FileNotFoundError\('sample 0\.png'\)"
        ):
            tiny_trainer().fit(Breaks(), batch_size=batch_size, shuffle=False)


@pytest.mark.parametrize("length", [-1, "5", None])
def test_a_data_set_whose_length_is_no_number_is_named(length: Any) -> None:
    class Lies(Counted):
        def __len__(self) -> int:
            return length  # type: ignore[no-any-return]

    with pytest.raises(DataError, match=r"train: .*Lies has no length"):
        tiny_trainer().fit(Lies(), batch_size=2)


@pytest.mark.parametrize("name", ["shuffle", "drop_last"])
@pytest.mark.parametrize("value", ["no", 1, 0.0, []])
def test_only_true_and_false_say_whether(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be True or False, got {re.escape(repr(value))}$"):
        tiny_trainer().fit(tiny_data(), batch_size=2, **{name: value})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"batch_size": 2}, "batch_size=2"),
        ({"shuffle": False}, "shuffle=False"),
        ({"drop_last": True}, "drop_last=True"),
        ({"batch_size": 4, "shuffle": True, "drop_last": False}, "batch_size=4, shuffle=True, drop_last=False"),
    ],
)
def test_what_a_data_loader_decides_may_not_be_given_beside_it(given: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=f"DataLoader, .*leave out {named}$"):
        tiny_trainer().fit(DataLoader(TensorDataset(*tiny_data())), **given)


def test_a_stream_cannot_be_shuffled() -> None:
    with pytest.raises(UsageError, match=r"IterableDataset.*leave out shuffle=True"):
        tiny_trainer().fit(Stream(4), batch_size=2, shuffle=True)
    for shuffle in (None, False):
        assert tiny_trainer().fit(Stream(5), batch_size=2, shuffle=shuffle).steps == 3


def test_sizes_are_those_of_the_design_where_nothing_is_given() -> None:
    assert sizes(None, None, None, tiny_data()) == (None, True, False)
    assert sizes(3, False, True, tiny_data()) == (3, False, True)
    assert sizes(None, None, None, Stream(3)) == (None, False, False)


@pytest.mark.parametrize("value", [0, -3, 1.0, "2", None, True, False, float("nan")])
def test_only_a_whole_number_from_one_up_is_positive(value: Any) -> None:
    with pytest.raises(UsageError, match="size must be a whole number from 1 up, got "):
        positive("size", value)


# --------------------------------------------------------------------------------------------------------- DataLoaders


def test_a_data_loader_is_taken_as_it_is() -> None:
    loader = DataLoader(TensorDataset(*tiny_data()), batch_size=2)
    assert make_loader(loader, "train", None, True, False) is loader


def test_a_data_loader_beside_a_data_set_for_validation() -> None:
    loader = DataLoader(TensorDataset(*tiny_data(4)), batch_size=2)
    recorder = Recorder(["on_batch_end"])
    trainer = tiny_trainer([recorder])
    trainer.fit(loader, tiny_data(3))
    trainer.fit(tiny_data(3), loader, batch_size=3)
    assert [call.arguments["samples"] for call in recorder.calls] == [2, 2, 3, 3, 2, 2]


def test_a_data_loader_that_does_not_collate_gives_its_samples_as_batches() -> None:
    x, y = tiny_data(6)
    batches = TensorDataset(x.reshape(3, 2, 3), y.reshape(3, 2, 1))
    got = tiny_trainer().fit(DataLoader(batches, batch_size=None), epochs=2)
    assert got.history == tiny_trainer().fit((x, y), epochs=2, batch_size=2, shuffle=False).history


def test_workers_are_given_to_the_loader() -> None:
    assert make_loader(tiny_data(), "train", 2, False, False, num_workers=1).num_workers == 1


def test_a_data_set_is_guarded_where_workers_fetch_it_and_else_left_alone() -> None:
    data = Counted()
    assert make_loader(data, "train", 2, False, False).dataset is data
    guarded: Any = make_loader(data, "val", 2, False, False, num_workers=1).dataset
    assert (guarded.dataset, guarded.split) == (data, "val")
    assert make_loader(Stream(4), "val", 2, False, False, num_workers=1).dataset.split == "val"


# ------------------------------------------------------------------------------------- as many batches as are promised


class Long(Stream):
    """A stream of `samples`, which says that there are `told`."""

    def __init__(self, samples: int, told: int) -> None:
        super().__init__(samples)
        self.told = told

    def __len__(self) -> int:
        return self.told


@pytest.mark.parametrize(
    ("loader", "batches"),
    [
        (DataLoader(Counted(), batch_size=2), 3),
        (DataLoader(Counted(), batch_size=2, shuffle=True, drop_last=True), 2),
        (DataLoader(Counted(), sampler=SubsetRandomSampler([0, 3, 4]), batch_size=2), 2),
        (DataLoader(Counted(), batch_size=None), 5),
        (DataLoader(Counted(), batch_sampler=BatchSampler(RandomSampler(Counted()), 2, False)), 3),
    ],
)
def test_a_loader_of_torch_promises_its_length(loader: Any, batches: int) -> None:
    assert promised(loader) == (batches, 1)
    complete("train", loader, promised(loader), sum(1 for _ in loader))
    with pytest.raises(
        DataError, match=f"^val: the pass ended after {batches - 1} of {batches} batches: Counted raised"
    ):
        complete("val", loader, promised(loader), batches - 1)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Counted(), batch_size=2, sampler=Flat()),
        DataLoader(Counted(), batch_sampler=BatchSampler(Flat(), 2, False)),
        DataLoader(Counted(), batch_sampler=Flat()),
        DataLoader(Counted(), batch_size=None, sampler=Flat()),
        DataLoader(Stream(5), batch_size=2),
        [(torch.ones(2), torch.ones(2))],
        Whole((torch.ones(2), torch.ones(2))),
    ],
)
def test_what_nobody_can_be_sure_of_is_not_promised(loader: Any) -> None:
    assert promised(loader) is None
    complete("train", loader, None, 1)


def test_a_data_set_that_grows_in_an_epoch_keeps_its_promise() -> None:
    class Grows(Counted):
        def __len__(self) -> int:
            return 4 + len(self.asked)

        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index % 5)

    data = Grows()
    assert tiny_trainer().fit(data, batch_size=2, shuffle=False).steps == 2
    assert len(data) > 4


MANY = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # torch's own advice, on a small machine


@MANY
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("samples", range(1, 14))
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_workers_that_share_a_stream_out_keep_its_promise(
    drop_last: bool, workers: int, samples: int, batch_size: int
) -> None:
    loader = DataLoader(Long(samples, samples), batch_size=batch_size, num_workers=workers, drop_last=drop_last)
    shares = [len(range(worker, samples, workers or 1)) for worker in range(workers or 1)]
    seen = sum(share // batch_size if drop_last else -(-share // batch_size) for share in shares)
    complete("train", loader, promised(loader), seen)  # which raises nothing, and warns of nothing


@MANY
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("samples", [4, 5, 6, 7, 20])
def test_a_stream_that_every_worker_gave_as_a_whole_is_told(workers: int, samples: int) -> None:
    loader = DataLoader(Long(samples, samples), batch_size=2, num_workers=workers)
    seen = workers * -(-samples // 2)
    with pytest.raises(
        DataError, match=f"^train: {seen} batches of 2 came from Long, whose length is {samples}: each of"
    ):
        complete("train", loader, promised(loader), seen)


def test_a_stream_that_two_workers_read_as_a_whole_is_told_after_its_first_pass() -> None:
    with pytest.raises(
        DataError, match=r"train: 6 batches of 2 .* shards itself by torch\.utils\.data\.get_worker_info"
    ):
        tiny_trainer().fit(Long(6, 6), batch_size=2, num_workers=2, epochs=2)


def test_workers_that_give_less_than_a_stream_says_are_no_repetition() -> None:
    loader = DataLoader(Long(4, 40), batch_size=2, num_workers=2)
    with pytest.warns(UserWarning, match=r"2 batches of 2 came from Long, whose length is 40: correct its __len__"):
        complete("train", loader, promised(loader), 2)


@pytest.mark.parametrize("told", [2, 50])
def test_a_stream_whose_length_is_not_true_is_told(told: int) -> None:
    with pytest.warns(UserWarning, match=f"^train: 4 batches of 2 came from Long, whose length is {told}: correct its"):
        assert tiny_trainer().fit(Long(8, told), batch_size=2).steps == 4


def test_a_sampler_of_the_user_s_own_may_know_better_than_its_length() -> None:
    class Lies:
        def __iter__(self) -> Iterator[Any]:
            yield from [[0, 1], [2]]

        def __len__(self) -> int:
            return 99

    data = Counted()
    assert len(list(on_device(DataLoader(data, batch_sampler=Lies()), CPU))) == 2
    inner = BatchSampler(Flat(), 2, False)
    assert len(list(on_device(DataLoader(data, batch_sampler=inner), CPU))) == 2


def test_a_data_set_that_grows_during_an_epoch_is_not_short_of_batches() -> None:
    class Grows(Counted):
        def __len__(self) -> int:
            return 4 + len(self.asked)

        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index % 5)

    assert len(list(on_device(DataLoader(Grows(), batch_size=2), CPU))) >= 2


def test_the_generators_of_a_loader_are_found_wherever_they_are() -> None:
    own = [torch.Generator() for _ in range(3)]
    data = Counted()
    assert generators(DataLoader(data)) == []
    assert own[0] in generators(DataLoader(data, shuffle=True, generator=own[0]))
    assert own[1] in generators(DataLoader(data, sampler=RandomSampler(data, generator=own[1])))
    batches = BatchSampler(RandomSampler(data, generator=own[2]), 2, False)
    assert own[2] in generators(DataLoader(data, batch_sampler=batches))
    assert generators(tiny_data()) == generators(None) == generators(Stream(2)) == []


# ------------------------------------------------------------------------------------------------ batches on their way


def test_on_device_gives_a_pair_as_a_tuple_and_leaves_what_is_there_uncopied() -> None:
    x, y = tiny_data()
    (batch,) = on_device([[x, y]], CPU)
    assert isinstance(batch, tuple)
    assert batch[0] is x
    assert batch[1] is y


def test_on_device_keeps_dicts_and_single_tensors_as_they_are() -> None:
    x = torch.ones(2)
    assert list(on_device([{"x": x, "n": "name"}], CPU)) == [{"x": x, "n": "name"}]
    assert next(iter(on_device([x], CPU))) is x


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        ((torch.ones(2), torch.ones(2), torch.ones(2)), r"3 parts: batch\[0\] \(2,\) float32 on cpu, batch\[1\]"),
        ([torch.ones(2, 3)], r"1 part: batch\[0\] \(2, 3\) float32 on cpu"),
        ({"x": torch.ones(2)}, r"1 part: batch\['x'\] \(2,\) float32 on cpu"),
        (torch.ones(2, 3), r"a Tensor: batch \(2, 3\) float32 on cpu"),
        ("words", "a str"),
    ],
)
def test_on_device_refuses_what_is_no_pair_where_pairs_are_needed(batch: Any, got: str) -> None:
    assert len(list(on_device([batch], CPU))) == 1
    with pytest.raises(DataError, match=rf"a batch must be a pair \(x, y\), this one is {got}"):
        list(on_device([batch], CPU, pairs=True))


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_windows_are_full_but_for_the_last(count: int, size: int) -> None:
    groups = list(windows(range(count), size))
    assert [batch for group in groups for batch in group] == list(range(count))
    assert all(len(group) == size for group in groups[:-1])
    assert all(groups)


def test_windows_fetch_no_further_than_their_size() -> None:
    fetched: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(5):
            fetched.append(number)
            yield number

    iterator = windows(batches(), 2)
    assert (next(iterator), fetched) == ((0, 1), [0, 1])
    assert (next(iterator), fetched) == ((2, 3), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.ones(4, 3), torch.ones(4)), 4),
        ([torch.ones(1, 3), torch.ones(1)], 1),
        (({"a": torch.ones(2, 3), "b": [torch.ones(2)]}, torch.ones(2)), 2),
        ({"x": torch.ones(6, 2), "y": torch.ones(6)}, 6),
        ((torch.ones(3), None), 3),
        ((torch.ones(3), ["a", "b", "c"]), 3),
        (torch.ones(7), 7),
    ],
)
def test_the_samples_of_a_batch_are_its_leading_dimension(batch: Any, count: int) -> None:
    assert count_samples(batch) == count


@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        ((torch.ones(4, 3), torch.ones(3)), r"x \(4, 3\), y \(3,\)"),
        ((torch.ones(0, 3), torch.ones(0)), r"x \(0, 3\), y \(0,\)"),
        ((torch.ones(4, 3), torch.tensor(1.0)), r"x \(4, 3\), y \(\)"),
        (({"a": torch.ones(2), "b": torch.ones(3)}, torch.ones(2)), r"x\['a'\] \(2,\), x\['b'\] \(3,\), y \(2,\)"),
        ({"x": torch.ones(6, 2), "y": torch.ones(5)}, r"batch\['x'\] \(6, 2\), batch\['y'\] \(5,\)"),
        ("text", "a str"),
        (None, "a NoneType"),
        ((), "a tuple"),
    ],
)
def test_a_batch_whose_samples_cannot_be_counted_is_shown(batch: Any, shown: str) -> None:
    with pytest.raises(DataError, match=f"cannot tell how many samples this batch has: {shown}.*samples="):
        count_samples(batch)


# ----------------------------------------------------------------------------------------------------- chunks and back


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5, 9])
def test_chunks_joined_are_the_whole(size: int | None) -> None:
    x = torch.arange(10.0).reshape(5, 2)
    inputs = {"a": x, "b": [x + 1, (x + 2,)], "p": Point(x, -x), "n": None}
    back = joined(list(in_chunks(inputs, size)))
    assert keys(back) == keys(inputs)
    assert isinstance(back["p"], Point)
    assert isinstance(back["b"][1], tuple)
    for got, wanted in zip(flat({**back, "n": []}), flat({**inputs, "n": []}), strict=True):
        assert torch.equal(got, wanted)


def test_all_at_once_is_the_input_itself() -> None:
    x = torch.ones(3, 2)
    assert next(iter(in_chunks(x, None))) is x
    assert next(iter(in_chunks(x, 3))) is x


# -------------------------------------------------------------------------------------------------- a data set by hand


def test_a_data_set_over_python_lists_trains_like_its_tensors() -> None:
    class Lists(Dataset):
        x, y = [[73.0, 80.0, 75.0], [93.0, 88.0, 93.0], [89.0, 91.0, 90.0]], [[152.0], [185.0], [180.0]]

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return torch.tensor(self.x[index]), torch.tensor(self.y[index])

    tensors = torch.tensor(Lists.x), torch.tensor(Lists.y)
    rows = []
    for data in (Lists(), tensors):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        trainer = Trainer(model, F.mse_loss, torch.optim.SGD(model.parameters(), lr=1e-5), device="cpu")
        rows.append(trainer.fit(data, epochs=5, batch_size=2).history)
    assert rows[0] == rows[1]


def test_the_whole_of_a_data_set_is_what_collating_it_gives() -> None:
    class Dicts(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            return {"x": torch.ones(2) * index, "n": index}, float(index)

    whole = make_loader(Dicts(), "train", None, False, False).batch
    wanted = default_collate([Dicts()[index] for index in range(3)])
    torch.testing.assert_close(whole, wanted, rtol=0, atol=0)


def test_rows_that_are_padding_are_left_out_of_batch_and_output() -> None:
    x, y = torch.arange(6.0).view(3, 2), torch.arange(3)
    output = {"scores": torch.arange(3), "scale": torch.tensor(2.0)}
    trainer = SimpleNamespace(samples=2, count=count_samples)
    (left_x, left_y), left = unpadded(trainer, (x, y), output)
    assert (left_x.tolist(), left_y.tolist()) == ([[0, 1], [2, 3]], [0, 1])
    assert (left["scores"].tolist(), left["scale"]) == ([0, 1], 2)
    trainer.samples = 3
    assert unpadded(trainer, (x, y), output)[1] is output


def test_rows_that_are_not_what_is_counted_are_no_padding() -> None:
    """Such as the words of sentences, or the nodes of a graph."""
    trainer = SimpleNamespace(samples=1, count=lambda batch: 1)
    assert len(unpadded(trainer, (torch.ones(5), torch.ones(5)), torch.ones(5))[1]) == 5
