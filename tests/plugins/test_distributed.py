"""What the plugin distributed is made of, without processes; tests/plugins/distributed/ runs it in several."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy
import pytest
import torch
from framework_plugins.distributed import Distributed
from framework_plugins.distributed.batches import RankRows, RankSlices, _marked, cut, cutter, of_rank, part
from framework_plugins.distributed.draws import Common, seed_alone
from framework_plugins.distributed.ranks import Ranks, is_of_connection
from framework_plugins.distributed.state import OWN, State, common_form, own_form
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from framework import Snapshot, UsageError, apply
from framework.testing import tiny_data, tiny_trainer


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


@given(rows=st.integers(0, 5000), size=st.integers(1, 300))
def test_the_parts_are_the_batch_in_order_and_differ_by_one_row_at_most(rows: int, size: int) -> None:
    parts = [part(rows, rank, size) for rank in range(size)]
    assert [row for each in parts for row in each] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def samplers(name: str, length: int) -> Any:
    if name == "random":
        return RandomSampler(range(length))
    if name == "own generator":
        return RandomSampler(range(length), generator=torch.Generator().manual_seed(5))
    return WeightedRandomSampler([1.0 + row for row in range(length)], length)


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 40), batch=st.integers(1, 9), size=st.integers(2, 5), drop=st.booleans(),
    kind=st.sampled_from(["random", "own generator", "weighted"]),
)  # fmt: skip
def test_the_rows_of_all_processes_are_the_batches_of_one_in_each_epoch(
    length: int, batch: int, size: int, drop: bool, kind: str
) -> None:
    torch.manual_seed(7)
    one = DataLoader(range(length), batch_sampler=BatchSampler(samplers(kind, length), batch, drop), collate_fn=list)
    expected = [list(one) for _ in range(3)]
    found: list[list[list[list[int]]]] = []  # by process, epoch and batch
    for rank in range(size):
        torch.manual_seed(7)
        rows = RankRows(BatchSampler(samplers(kind, length), batch, drop), rank, size, Common(), None)
        seed_alone(torch.get_rng_state(), rank)
        found.append([])
        for _ in range(3):
            torch.rand(rank + 1)  # what a model draws
            found[-1].append(list(rows))
            assert rows.sizes == [len(each) for each in expected[len(found[-1]) - 1]]
    for epoch, batches in enumerate(expected):
        for number, whole in enumerate(batches):
            parts = [found[rank][epoch][number] for rank in range(size)]
            real = [mine for rank, mine in enumerate(parts) if part(len(whole), rank, size)]
            assert [row for mine in real for row in mine] == whole
            assert all(mine == whole[:1] for mine in parts if mine not in real)


def test_all_processes_mark_the_same_batches_alike_and_other_ones_differently() -> None:
    def mark(seed: int, rank: int) -> int:
        torch.manual_seed(seed)
        rows = RankRows(BatchSampler(RandomSampler(range(9)), 4, False), rank, 2, Common(), None)
        list(rows)
        return rows.mark

    assert mark(1, 0) == mark(1, 1) != mark(2, 0)


def test_a_batch_of_any_form_is_cut_row_by_row() -> None:
    batch = {
        "x": torch.arange(5),
        "more": (torch.arange(10).view(5, 2), [torch.arange(5)]),
        "n": 3,
        "one": torch.tensor(1),
    }
    sizes: list[int] = []
    made = cut(batch, 1, 2, sizes)
    assert sizes == [5]
    assert made["x"].tolist() == [2, 3, 4]
    assert made["more"][0].tolist() == [[4, 5], [6, 7], [8, 9]]
    assert made["more"][1][0].tolist() == [2, 3, 4]
    assert (made["n"], int(made["one"])) == (3, 1)


def test_tensors_of_different_lengths_cannot_be_cut() -> None:
    with pytest.raises(UsageError, match=r"cut over 2 processes along dimension 0 of its tensors, and theirs are 5, 3"):
        cut((torch.zeros(5), torch.zeros(3)), 0, 2, [])


def test_rows_that_numpy_has_drawn_are_marked_as_well() -> None:
    def mark(seed: int) -> int:
        order = numpy.random.default_rng(seed).permutation(8)
        rows = RankRows(BatchSampler(order, 4, False), 0, 2, Common(), None)
        list(rows)
        return rows.mark

    assert 0 != mark(1) == mark(1) != mark(2)


def test_another_stream_has_another_mark() -> None:
    def mark(seed: int) -> int:
        loader = RankSlices(
            DataLoader(Stream(), batch_size=3), 0, 2, Common(torch.Generator().manual_seed(seed).get_state())
        )
        list(loader)
        return loader.mark

    assert 0 != mark(1) == mark(1) != mark(2)


def test_a_batch_with_nan_is_the_same_batch_in_each_process() -> None:
    numbers = torch.tensor([[1.0, float("nan")]]), torch.tensor([True]), torch.tensor(3)
    assert _marked(numbers, 0) == _marked([numbers[0].clone(), *numbers[1:]], 0) == 1161105537  # in any process
    assert _marked(numbers, 0) != _marked((numbers[0] + 1, *numbers[1:]), 0)


def test_names_go_with_their_rows() -> None:
    made = cut({"x": torch.arange(5), "names": list("abcde")}, 1, 2, [])
    assert (made["x"].tolist(), made["names"]) == ([2, 3, 4], ["c", "d", "e"])
    with pytest.raises(UsageError, match="a batch of 5 rows has a list of 2 values"):
        cut({"x": torch.arange(5), "names": ["a", "b"]}, 0, 2, [])


def test_workers_that_stay_are_seeded_once_as_torch_does_it() -> None:
    torch.manual_seed(2)
    data = TensorDataset(torch.arange(6))
    one = DataLoader(data, 2, shuffle=True, num_workers=1, persistent_workers=True)
    expected = [[row for (batch,) in one for row in batch.tolist()] for _ in range(3)]
    del one
    torch.manual_seed(2)
    loader = DataLoader(data, 2, shuffle=True, num_workers=1, persistent_workers=True)
    rows = of_rank(loader, 0, 1, Common()).batch_sampler
    assert [[row for batch in rows for row in batch] for _ in range(3)] == expected


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:5: Connection reset by peer."), True),
        (RuntimeError("my loss: a timeout of 3 must be positive"), False),
        (ValueError("Connection closed by peer [127.0.0.1]"), False),
    ],
    ids=["of gloo", "of the user", "of another kind"],
)
def test_an_error_of_the_user_is_none_of_a_connection(error: Exception, lost: bool) -> None:
    assert is_of_connection(error) == lost


class Second(Ranks):
    """The second of two, for what asks nobody."""

    def __init__(self) -> None:
        self.rank, self.size = 1, 2


def test_another_number_of_processes_starts_with_what_the_first_one_has_added_up() -> None:
    class Metric:
        added_up = ("right",)
        of_samples = ("sums",)

    state = {"metric": {"right": {"train": torch.tensor(5)}, "sums": {"train": (3, torch.ones(2))}, "best": 0.5}}
    snapshot = Snapshot(0, 4, {}, {}, copy.deepcopy(state), {"mean": [6.0, 8, 2]})  # of one process
    State(Second(), {"metric": Metric()}).take_up(snapshot)
    assert snapshot.plugins == {"metric": {"right": {"train": torch.tensor(0)}, "sums": {}, "best": 0.5}}
    assert snapshot.loop["mean"] == [0.0, 0, 2]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.rand(7))


def test_a_stream_is_the_same_for_all_processes_whatever_a_model_draws() -> None:
    torch.manual_seed(4)
    expected = [torch.cat(list(DataLoader(Stream(), batch_size=3))) for _ in range(2)]
    found = []
    for rank in range(2):
        torch.manual_seed(4)
        loader = RankSlices(DataLoader(Stream(), batch_size=3), rank, 2, Common())
        seed_alone(torch.get_rng_state(), rank)
        found.append([])
        for _ in range(2):
            torch.rand(5 + rank)
            found[rank].append(list(loader))
            assert loader.sizes == [3, 3, 1]
    for epoch, whole in enumerate(expected):
        batches = [torch.cat((mine, theirs)) for mine, theirs in zip(found[0][epoch], found[1][epoch], strict=True)]
        assert torch.equal(torch.cat(batches)[:6], whole[:6])
        assert batches[-1].tolist() == [float(whole[6])] * 2  # one of them is padding


def test_a_loader_that_is_cut_already_is_refused() -> None:
    data = TensorDataset(torch.zeros(8))
    loader = DataLoader(data, 2, sampler=DistributedSampler(data, 2, 0))
    with pytest.raises(UsageError, match="DistributedSampler: leave it out"):
        of_rank(loader, 0, 2, Common())


def test_a_loader_of_one_process_keeps_what_the_whole_one_was_made_of() -> None:
    data = TensorDataset(torch.arange(10))
    whole = DataLoader(data, 4, shuffle=True, timeout=0, collate_fn=list, pin_memory=False)
    made = of_rank(whole, 1, 2, Common())
    assert (made.whole, made.dataset, made.collate_fn) == (whole, data, list)
    assert len(made) == len(whole) == 3
    assert isinstance(cutter(made), RankRows)
    assert cutter(whole) is None


def test_what_processes_draw_for_themselves_differs_and_is_always_the_same() -> None:
    def drawn(rank: int) -> tuple[float, float, float]:
        torch.manual_seed(1)
        seed_alone(torch.get_rng_state(), rank)
        return float(torch.rand(())), random.random(), float(numpy.random.rand())

    assert drawn(0) == drawn(0)
    assert len({number for rank in range(3) for number in drawn(rank)}) == 9


def place(torch_state: Any, *generators: Any) -> dict[str, Any]:
    states = {"torch": torch_state, "python": (1, 2), "generators": list(generators)}
    return {"inside": True, "random": states, "before": {"torch": torch_state, "generators": list(generators)}}


def test_a_place_in_a_fit_is_told_as_one_process_would_tell_it_and_comes_back() -> None:
    own, of_all, user = (torch.Generator().manual_seed(seed).get_state() for seed in (1, 2, 3))
    tree = {"loop": place(own, of_all, user), "other": [1]}
    told = common_form(tree)
    assert told["loop"]["random"]["torch"] is of_all
    assert told["loop"]["random"]["generators"] == [user]
    assert set(told["loop"][OWN]) == {"random", "before"}
    back = own_form(told, rank=1, mine=True)
    assert back == tree


def test_another_number_of_processes_goes_on_with_the_common_stream_and_streams_of_its_own() -> None:
    own, of_all = (torch.Generator().manual_seed(seed).get_state() for seed in (1, 2))
    told = common_form(place(own, of_all))
    made = [own_form(told, rank, mine=False) for rank in range(2)]
    for each in made:
        assert each["random"]["generators"] == [of_all]
        assert "python" not in each["random"]  # stays as this process has seeded it
        assert not torch.equal(each["random"]["torch"], of_all)
    assert not torch.equal(made[0]["random"]["torch"], made[1]["random"]["torch"])


def test_a_tree_keeps_its_kinds() -> None:
    tree = {"a": [torch.ones(2)], "b": (1, torch.zeros(1)), "c": "text"}
    made = apply(lambda tensor: tensor + 1, tree)
    assert made["a"][0].tolist() == [2, 2]
    assert made["b"] == (1, torch.ones(1))
    assert made["c"] == "text"


def test_with_one_process_it_changes_no_bit() -> None:
    results = []
    for plugins in ([], [Distributed()]):
        torch.manual_seed(0)
        trainer = tiny_trainer(plugins=plugins)
        result = trainer.fit(tiny_data(11), tiny_data(4, seed=1), epochs=3, batch_size=4)
        results.append((result.history, trainer.model.state_dict(), torch.get_rng_state()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())
    assert torch.equal(results[0][2], results[1][2])


def test_with_one_process_no_step_asks_it_anything() -> None:
    hooks = tiny_trainer(plugins=[Distributed()]).plugins.frozen("train")
    assert (hooks.on_batch_start, hooks.agree, hooks.on_batch_end) == (None, None, None)


def test_bad_knobs_are_told() -> None:
    with pytest.raises(UsageError, match="timeout must be a number of seconds above 0, got 0"):
        Distributed(timeout=0)
    with pytest.raises(UsageError, match="find_unused=True is of DDP, and shard=True is FSDP2"):
        Distributed(shard=True, find_unused=True)
