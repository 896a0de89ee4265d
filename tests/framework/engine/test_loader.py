"""The twin in memory against torch's DataLoader: batches, strides and generators bit for bit."""

from __future__ import annotations

import collections
import random
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data import random_split as split_at_random

from framework.data import generators
from framework.engine.loader import SPAN, InMemory, in_memory
from framework.errors import DataError

CPU = torch.device("cpu")
EXAMPLES = settings(
    max_examples=120, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def tensors(rows: int, shape: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(rows)
    x = (torch.randn(rows, *shape, generator=generator) * 50).to(dtype)
    return TensorDataset(x, torch.arange(rows) * 10)


def trace(make: Callable[[], Any], ours: bool, passes: int = 2, stop: int | None = None, draws: bool = False) -> Any:
    """Everything that can be seen of some passes: each batch, and every generator at each point of time."""
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    loader = make()
    drawn = generators(loader)

    def states() -> list[Any]:
        return [torch.get_rng_state(), *(g.get_state() for g in drawn), random.random(), numpy.random.rand()]

    seen: list[Any] = []
    source = in_memory(loader, CPU) if ours else loader
    assert not isinstance(source, str), source
    seen.append(states())
    for _ in range(passes):
        iterator = iter(source)
        seen.append(states())
        taken = 0
        while taken != stop:
            try:
                batch = next(iterator)
            except StopIteration:
                seen.append("end")
                break
            taken += 1
            if draws:
                torch.rand(3)
            seen += [tuple(batch) if isinstance(batch, list) else batch, states()]
        seen.append(states())
    if ours:
        assert isinstance(source, InMemory)
        assert not source.why
    return seen


class Backwards(Sampler):
    """A sampler of the user's, which draws as soon as it is asked for its iterator, and gives NumPy's numbers."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        first = torch.randint(self.rows, ()).item()
        return iter([numpy.int64((first - k) % self.rows) for k in range(self.rows)])

    def __len__(self) -> int:
        return self.rows


class Batches:
    """A batch sampler of the user's: batches of one and of two rows, as tensors, arrays, tuples or generators."""

    def __init__(self, rows: int, kind: Callable[[list[int]], Any]) -> None:
        self.rows, self.kind = rows, kind

    def __iter__(self) -> Iterator[Any]:
        for row in torch.randperm(self.rows).tolist():
            yield self.kind([row])
            yield self.kind([row, -1 - row])

    def __len__(self) -> int:
        return 2 * self.rows


SAMPLERS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "sequential": lambda data, g: {"shuffle": False, "generator": g},
    "shuffled": lambda data, g: {"shuffle": True, "generator": g},
    "own generator": lambda data, g: {"sampler": RandomSampler(data, generator=g)},
    "replacement": lambda data, g: {"sampler": RandomSampler(data, replacement=True, num_samples=7, generator=g)},
    "more than all": lambda data, g: {"sampler": RandomSampler(data, num_samples=2 * len(data) + 1, generator=g)},
    "exactly all": lambda data, g: {"sampler": RandomSampler(data, num_samples=len(data), generator=g)},
    "of another": lambda data, g: {"sampler": RandomSampler(range(len(data)), generator=g), "generator": g},
    "subset": lambda data, g: {"sampler": SubsetRandomSampler(range(0, len(data), 2), generator=g)},
    "weighted": lambda data, g: {"sampler": WeightedRandomSampler([1.0] * len(data), 6, generator=g)},
    "own": lambda data, g: {"sampler": Backwards(len(data)), "generator": g},
}


def subsets(data: Dataset[Any], depth: int, kind: str) -> Dataset[Any]:
    for _ in range(depth):
        rows = [*range(len(data))][::-1][: max(1, len(data) - 1)]
        made = {"list": list, "tuple": tuple, "array": numpy.array, "tensor": torch.tensor}[kind](rows)
        data = Subset(data, made)
    return data


@EXAMPLES
@given(
    rows=st.integers(1, 12), size=st.integers(1, 14), sampler=st.sampled_from(sorted(SAMPLERS)),
    drop_last=st.booleans(), generator=st.booleans(), stop=st.none() | st.integers(0, 4), draws=st.booleans(),
    depth=st.integers(0, 2),
    kind=st.sampled_from(["list", "tuple", "array", "tensor"]),
    shape=st.sampled_from([(), (3,), (1,), (0,), (1, 2, 2), (2, 1, 1), (3, 2, 2), (1, 1, 1, 1)]),
    dtype=st.sampled_from([torch.float32, torch.uint8, torch.bool, torch.complex64, torch.bfloat16, torch.float64]),
)  # fmt: skip
def test_batches_and_generators_are_those_of_the_dataloader(oracle: Any, **drawn: Any) -> None:
    case = SimpleNamespace(**drawn)

    def make() -> DataLoader[Any]:
        data = subsets(tensors(case.rows, case.shape, case.dtype), case.depth, case.kind)
        generator = torch.Generator().manual_seed(5) if case.generator else None
        options = SAMPLERS[case.sampler](data, generator)
        return DataLoader(data, batch_size=case.size, drop_last=case.drop_last, **options)

    expected = trace(make, False, 2, case.stop, case.draws)
    oracle.assert_same(expected, trace(make, True, 2, case.stop, case.draws))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("rows", [SPAN * 2 - 1, SPAN * 2, SPAN * 2 + 2, SPAN * 4 + 1])
def test_more_batches_than_are_cut_at_once(
    oracle: Any, rows: int, shuffle: bool, generator: bool, drop_last: bool
) -> None:
    def make() -> DataLoader[Any]:
        given = torch.Generator().manual_seed(5) if generator else None
        return DataLoader(tensors(rows), batch_size=2, shuffle=shuffle, drop_last=drop_last, generator=given)

    oracle.assert_same(trace(make, False), trace(make, True))


def zero_dim(rows: list[int]) -> Any:
    return map(torch.tensor, rows)


@pytest.mark.parametrize("kind", [list, tuple, iter, torch.tensor, numpy.array, zero_dim])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_batch_sampler_of_the_users_may_give_rows_in_any_form_and_from_the_end(
    oracle: Any, kind: Any, depth: int
) -> None:
    def make() -> DataLoader[Any]:
        data = subsets(tensors(5), depth, "list")
        return DataLoader(data, batch_sampler=Batches(len(data), kind))

    oracle.assert_same(trace(make, False), trace(make, True))


@pytest.mark.parametrize("bad", [[0, 7], [-6], [1.0], [True, 1], ["0"], [None], [], [torch.tensor([1])]])
def test_rows_that_are_none_raise_what_torch_raises_or_give_what_it_gives(oracle: Any, bad: Any) -> None:
    def outcome(ours: bool) -> Any:
        loader: DataLoader[Any] = DataLoader(tensors(5), batch_sampler=[[1, 2], bad])
        source = in_memory(loader, CPU) if ours else loader
        seen: list[Any] = []
        try:
            for batch in source:
                seen.append(tuple(batch))
        except Exception as error:
            seen += [type(error).__name__, str(error)]
        return seen

    oracle.assert_same(outcome(False), outcome(True))
    assert len(outcome(True)) > 1


def test_two_passes_at_once_and_a_pass_that_is_never_begun(oracle: Any) -> None:
    def seen(ours: bool) -> Any:
        torch.manual_seed(1)
        loader = DataLoader(tensors(7), batch_size=2, shuffle=True)
        source: Any = in_memory(loader, CPU) if ours else loader
        iter(source)
        found = [
            (tuple(one), tuple(two), torch.get_rng_state()) for one, two in zip(iter(source), iter(source), strict=True)
        ]
        return [*found, torch.get_rng_state()]

    oracle.assert_same(seen(False), seen(True))


def test_an_exhausted_pass_stays_exhausted() -> None:
    source = in_memory(DataLoader(tensors(5), batch_size=2), CPU)
    assert isinstance(source, InMemory)
    iterator = iter(source)
    assert len(list(iterator)) == 3
    assert list(iterator) == []


def test_batches_share_no_memory_with_the_data_or_with_each_other() -> None:
    data = tensors(6)
    source = in_memory(DataLoader(data, batch_size=3), CPU)
    before = [tensor.clone() for tensor in data.tensors]
    for _ in range(2):
        batches = list(source)
        assert len({t.untyped_storage().data_ptr() for batch in batches for t in (*batch, *data.tensors)}) == 6
        for x, y in batches:
            x.zero_(), y.zero_()
    assert all(map(torch.equal, data.tensors, before))


def test_it_can_be_made_and_used_inside_and_outside_of_inference_mode(oracle: Any) -> None:
    loader = DataLoader(tensors(5), batch_size=2, shuffle=True)
    with torch.inference_mode():
        source: Any = in_memory(loader, CPU)
        list(source)
    torch.manual_seed(0)
    expected = [tuple(batch) for batch in loader]
    torch.manual_seed(0)
    batches = list(source)
    oracle.assert_same(expected, batches)
    assert not any(tensor.is_inference() for batch in batches for tensor in batch)


# ------------------------------------------------------------------------------------------- what is left to the loader


class Shapes(Dataset):
    """Samples that are made one by one, always the same ones."""

    def __init__(self, rows: int = 5, make: Callable[[int], Any] = lambda row: (torch.ones(2) * row, row)) -> None:
        self.rows, self.make, self.asked = rows, make, 0

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        self.asked += 1
        return self.make(row)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(tensors(5))


class Mine(TensorDataset):
    pass


class MySubset(Subset):
    pass


class MyLoader(DataLoader):
    pass


def of(*parts: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*parts), **options)


def with_getitems(data: Any) -> Any:
    data.__getitems__ = lambda rows: [(torch.ones(1), 2) for _ in rows]
    return data


def with_tensors(*parts: Any) -> DataLoader[Any]:
    loader = of(torch.ones(5))
    loader.dataset.tensors = parts
    return loader


HINT = "; cache=True would keep its samples"
FIVE = torch.arange(5.0)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "list": (lambda: [1], "the loader is a list"),
    "loader": (lambda: MyLoader(tensors(5)), "the loader is a MyLoader"),
    "workers": (lambda: DataLoader(tensors(5), num_workers=2), "num_workers=2"),
    "no batches": (lambda: DataLoader(tensors(5), batch_size=None), "batch_size=None"),
    "collate": (lambda: DataLoader(tensors(5), collate_fn=list), "its collate_fn is one of your own"),
    "wrapped": (
        lambda: DataLoader(tensors(5), collate_fn=lambda rows: default_collate(rows)),
        "its collate_fn is one of your own",
    ),
    "samples": (lambda: DataLoader(Shapes()), f"the data set is a Shapes{HINT}"),
    "stream": (lambda: DataLoader(Stream()), "the data set is a Stream, an IterableDataset"),
    "subclass": (lambda: DataLoader(Mine(FIVE)), f"the data set is a Mine{HINT}"),
    "subset": (
        lambda: DataLoader(MySubset(tensors(5), [1])),
        f"the data set is a MySubset{HINT}",
    ),
    "stack": (
        lambda: DataLoader(StackDataset(tensors(5))),
        f"the data set is a StackDataset{HINT}",
    ),
    "getitems": (
        lambda: DataLoader(with_getitems(tensors(5))),
        "the TensorDataset has a __getitems__ of its own",
    ),
    "parameter": (lambda: of(torch.nn.Parameter(FIVE)), "a tensor of the data set is a Parameter"),
    "gradient": (lambda: of(FIVE.clone().requires_grad_()), "a tensor of the data set requires a gradient"),
    "transposed": (lambda: of(torch.ones(2, 3, 5).T), "a tensor of the data set is not contiguous"),
    "channels last": (
        lambda: of(torch.ones(5, 3, 2, 2).to(memory_format=torch.channels_last)),
        "a tensor of the data set is not contiguous",
    ),
    "conjugate": (
        lambda: of(torch.ones(5, dtype=torch.complex64).conj()), "a tensor of the data set is not contiguous"
    ),
    "sparse": (lambda: of(torch.eye(5).to_sparse()), "a tensor of the data set is sparse, nested or quantized"),
    "meta": (lambda: of(torch.ones(5, device="meta")), "a tensor of the data set is on meta"),
    "empty": (lambda: of(torch.ones(0, 2)), "a tensor of the data set has no rows"),
    "uneven": (lambda: with_tensors(FIVE, FIVE[:3]), "a tensor of the data set has 3 rows, not 5"),
    "from the end": (
        lambda: DataLoader(Subset(tensors(5), [0, -1])), "the indices of a Subset are not row numbers from 0 up"
    ),
    "too far": (
        lambda: DataLoader(Subset(tensors(5), [5])), "the indices of a Subset are not row numbers from 0 up"
    ),
    "mask": (
        lambda: DataLoader(Subset(tensors(2), [True, False])), "the indices of a Subset are not row numbers from 0 up"
    ),
    "bytes": (
        lambda: DataLoader(Subset(tensors(2), torch.tensor([0, 1], dtype=torch.uint8))),
        "the indices of a Subset are not row numbers from 0 up",
    ),
    "deque": (
        lambda: DataLoader(Subset(tensors(2), collections.deque([0, 1]))),
        "the indices of a Subset are not row numbers from 0 up",
    ),
    "none": (lambda: DataLoader(Subset(tensors(2), [])), "the indices of a Subset are not row numbers from 0 up"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_certain_is_left_to_the_dataloader_and_says_why(case: str) -> None:
    make, reason = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of more workers than processors
        loader = make()
    assert in_memory(loader, CPU) == reason


def test_another_way_to_collate_tensors_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data._utils.collate import default_collate_fn_map

    source: Any = in_memory(DataLoader(tensors(5), batch_size=2), CPU)
    stack = default_collate_fn_map[torch.Tensor]
    other = lambda batch, *, collate_fn_map=None: stack(batch, collate_fn_map=collate_fn_map) + 1  # noqa: E731
    monkeypatch.setitem(default_collate_fn_map, torch.Tensor, other)
    assert in_memory(DataLoader(tensors(5)), CPU) == "its collate_fn is one of your own"
    assert next(iter(source))[1].tolist() == [1, 11]
    assert source.why == "its collate_fn is one of your own"


def test_another_getitem_of_torchs_own_class_is_seen_in_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda self, row: tuple(t[row] + 1 for t in self.tensors))
    assert in_memory(DataLoader(tensors(5)), CPU) == "its samples are not the rows of its tensors"
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda self, row: (torch.rand(3),))
    assert in_memory(DataLoader(tensors(5)), CPU) == "its samples draw random numbers"
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda self, row: self.missing)
    reason = in_memory(DataLoader(tensors(5)), CPU)
    assert isinstance(reason, str)
    assert reason.startswith("its first batch cannot be made (AttributeError: ")


def test_a_profiler_and_a_mode_of_torch_have_the_loader_itself(oracle: Any) -> None:
    loader = DataLoader(tensors(5), batch_size=2, shuffle=True)
    source: Any = in_memory(loader, CPU)
    with torch.autograd.profiler.profile() as profile:
        list(source)
    assert source.why == "a profiler is on"
    assert any("enumerate(DataLoader)" in event.name for event in profile.function_events)
    with torch.device("cpu"):
        assert len(list(source)) == 3
        assert source.why == in_memory(loader, CPU) == "a mode of torch is on, such as that of torch.set_default_device"
    assert len(list(source)) == 3
    assert not source.why


CHANGES: dict[str, tuple[Callable[[DataLoader[Any]], Any], str]] = {
    "in place": (lambda loader: loader.dataset.dataset.tensors[0].mul_(2), ""),
    "other tensors": (lambda loader: setattr(loader.dataset.dataset, "tensors", tensors(9).tensors), ""),
    "more tensors": (lambda loader: setattr(loader.dataset.dataset, "tensors", (FIVE, FIVE, FIVE)), ""),
    "indices": (lambda loader: loader.dataset.indices.__setitem__(0, 3), ""),
    "fewer indices": (lambda loader: loader.dataset.indices.pop(), ""),
    "other indices": (lambda loader: setattr(loader.dataset, "indices", range(3)), ""),
    "batch size": (lambda loader: setattr(loader.batch_sampler, "batch_size", 3), ""),
    "drop_last": (lambda loader: setattr(loader.batch_sampler, "drop_last", True), ""),
    "sampler": (lambda loader: setattr(loader.batch_sampler, "sampler", SequentialSampler(loader.dataset)), ""),
    "replacement": (lambda loader: setattr(loader.sampler, "replacement", True), ""),
    "generator": (lambda loader: setattr(loader, "generator", torch.Generator().manual_seed(9)), ""),
    "sampler's generator": (
        lambda loader: setattr(loader.sampler, "generator", torch.Generator().manual_seed(9)), ""
    ),
    "collate": (lambda loader: setattr(loader, "collate_fn", tuple), "its collate_fn is one of your own"),
    "negative": (
        lambda loader: loader.dataset.indices.__setitem__(0, -1),
        "the indices of a Subset are not row numbers from 0 up",
    ),
    "gradient": (
        lambda loader: loader.dataset.dataset.tensors[0].requires_grad_(),
        "a tensor of the data set requires a gradient",
    ),
    "reshaped": (
        lambda loader: loader.dataset.dataset.tensors[0].t_(), ""
    ),
    "re-strided": (
        lambda loader: setattr(loader.dataset.dataset, "tensors", (torch.ones(2, 2, 5).permute(2, 0, 1), FIVE)),
        "a tensor of the data set is not contiguous",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_what_is_changed_between_passes_counts_from_the_next_one_on(oracle: Any, change: str) -> None:
    alter, reason = CHANGES[change]

    def seen(ours: bool) -> Any:
        torch.manual_seed(1)
        data = tensors(5, (5,))
        loader = DataLoader(Subset(data, [4, 2, 0, 1]), batch_size=2, shuffle=True)
        source: Any = in_memory(loader, CPU) if ours else loader
        found: list[Any] = [list(batch) for batch in source]
        alter(loader)
        for _ in range(2):
            found += [list(batch) for batch in source]
            found.append(torch.get_rng_state())
        assert not ours or source.why == reason
        return found

    oracle.assert_same(seen(False), seen(True))


def test_a_tensor_that_is_changed_in_place_within_a_pass_is_read_as_the_loader_reads_it(oracle: Any) -> None:
    def seen(ours: bool) -> Any:
        data = tensors(5)
        loader = DataLoader(data, batch_size=2)
        found = []
        for batch in in_memory(loader, CPU) if ours else loader:
            found.append(tuple(batch))
            data.tensors[0].add_(1)
        return found

    oracle.assert_same(seen(False), seen(True))


@pytest.mark.parametrize(
    "rows", [torch.ones(3, 7).cumsum(1).T, torch.arange(7.0)[:, None].expand(7, 3), torch.ones(1).expand(7)]
)
def test_rows_of_up_to_two_dimensions_may_lie_in_any_order(oracle: Any, rows: torch.Tensor) -> None:
    def seen(source: Any) -> Any:
        torch.manual_seed(0)
        return [list(batch) for _ in range(2) for batch in source]

    loader = DataLoader(TensorDataset(rows, torch.arange(9).unfold(0, 3, 1)), batch_size=3, shuffle=True)
    twin = in_memory(loader, CPU)

    assert isinstance(twin, InMemory)
    oracle.assert_same(seen(loader), seen(twin))


def test_a_random_split_of_a_split(oracle: Any) -> None:
    def make() -> DataLoader[Any]:
        one, _ = split_at_random(tensors(20), [15, 5])
        two, _ = split_at_random(one, [0.5, 0.5])
        return DataLoader(two, batch_size=3, shuffle=True)

    oracle.assert_same(trace(make, False), trace(make, True))


# ------------------------------------------------------------------------------------------------------------ the cache

Pair = collections.namedtuple("Pair", "a b")
SAMPLES: dict[str, Callable[[int], Any]] = {
    "pair": lambda row: (torch.arange(3.0) + row, row),
    "tensor": lambda row: torch.arange(3.0) + row,
    "number": lambda row: row / 3,
    "numbers": lambda row: (row, row / 3, row % 2 == 0, numpy.float32(row)),
    "array": lambda row: (numpy.arange(4) * row, row),
    "dict": lambda row: ({"image": torch.ones(2) * row, "size": row}, [row, torch.tensor(row)]),
    "names": lambda row: {"x": torch.ones(2) * row, 7: Pair(row, torch.zeros(1))},
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_kept_samples_give_the_batches_of_the_dataloader_and_are_fetched_once(
    oracle: Any, kind: str, shuffle: bool
) -> None:
    def seen(ours: bool) -> Any:
        torch.manual_seed(1)
        data = Shapes(5, SAMPLES[kind])
        loader = DataLoader(data, batch_size=2, shuffle=shuffle)
        source: Any = in_memory(loader, CPU, cache=True) if ours else loader
        asked, found = data.asked, []
        for _ in range(3):
            for batch in source:
                found += [tuple(batch) if type(batch) is list else batch, torch.get_rng_state()]
        assert not ours or data.asked == asked
        return found

    oracle.assert_same(seen(False), seen(True))


def test_kept_samples_follow_any_sampler_and_the_data_set_is_not_asked_again(oracle: Any) -> None:
    data = Shapes(5)
    loader = DataLoader(data, batch_sampler=Batches(5, lambda rows: [abs(row) % 5 for row in rows]))
    source: Any = in_memory(loader, CPU, cache=True)
    torch.manual_seed(0)
    expected = [tuple(batch) for batch in loader]
    data.make = lambda row: 1 / 0
    torch.manual_seed(0)
    oracle.assert_same(expected, list(source))
    assert source.pairs
    source = in_memory(DataLoader(Shapes(5), batch_sampler=[[0, 5]]), CPU, cache=True)
    with pytest.raises(DataError, match=r"the sampler gives \[0, 5\]; with cache=True a row is a number from 0 to 4"):
        list(source)


def mixed(row: int) -> Any:
    return row if row else 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataLoader(Stream()), "a Stream, has no length"),
        (lambda: DataLoader(Shapes(), num_workers=1), "whose samples have numbers; num_workers=1"),
        (lambda: DataLoader(Shapes(), collate_fn=list), "its collate_fn is one of your own"),
        (lambda: DataLoader(Shapes(), batch_size=None), "batch_size=None"),
        (lambda: MyLoader(Shapes()), "the loader is a MyLoader"),
        (lambda: DataLoader(Shapes(0)), "has no length"),
        (lambda: DataLoader(Shapes(5, lambda row: torch.rand(2))), "the same; a Shapes draws random numbers"),
        (lambda: DataLoader(Shapes(5, lambda row: random.random())), "the same; a Shapes draws random numbers"),
        (lambda: DataLoader(Shapes(5, lambda row: numpy.random.randn())), "the same; a Shapes draws random numbers"),
        (lambda: DataLoader(Shapes(5, mixed)), r"all alike; sample 0:  float \(\); sample 1:  int \(\)"),
        (lambda: DataLoader(Shapes(5, torch.ones)), r"all alike; sample 0:  Tensor \(0,\); sample 1:  Tensor \(1,\)"),
        (lambda: DataLoader(Shapes(5, lambda row: (row, "a"))), r"all alike; sample 0: \[0\] int \(\), \[1\] str"),
        (lambda: DataLoader(Shapes(5, lambda row: None)), "cannot keep the samples of a Shapes: default_collate"),
        (
            lambda: DataLoader(Shapes(5, lambda row: torch.ones(2, requires_grad=True))),
            "cannot keep the samples of a Shapes: a tensor of all of them requires a gradient",
        ),
        (
            lambda: DataLoader(Shapes(5, lambda row, seen=collections.Counter(): seen.update("a") or seen.total())),
            "needs samples that are always the same: its samples are not the rows",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_an_error(make: Any, message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(DataError, match=message):
        in_memory(make(), CPU, cache=True)
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------------------------------------------------- the devices


def test_a_device_without_room_for_the_data_gets_each_batch_from_memory() -> None:
    """The device meta stands for one: what arrives there has its shape and dtype, and no numbers."""
    meta = torch.device("meta")
    for loader in (
        DataLoader(tensors(5), batch_size=2, shuffle=True),
        DataLoader(tensors(5), batch_sampler=[[0, 1], [-1]]),
    ):
        source: Any = in_memory(loader, meta)
        batches = list(source)
        assert [tuple(x.shape) for x, _ in batches] == [tuple(x.shape) for x, _ in loader]
        assert all(type(batch) is tuple and tensor.device == meta for batch in batches for tensor in batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pin", [False, True])
def test_on_a_gpu_the_data_lives_there_and_changes_of_it_count(oracle: Any, pin: bool) -> None:
    cuda = torch.device("cuda:0")
    data = tensors(50)
    loader = DataLoader(Subset(data, [*range(40)]), batch_size=7, shuffle=True, pin_memory=pin)
    source: Any = in_memory(loader, cuda)
    for _ in range(3):
        torch.manual_seed(2)
        expected = [(x.to(cuda), y.to(cuda)) for x, y in loader]
        torch.manual_seed(2)
        oracle.assert_same(expected, list(source))
        assert not source.why
        data.tensors[0].add_(1)
