"""Prefetched batches against the loop that moves each one, and the order in which they are asked for."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from framework.device import leaves
from framework.engine.prefetch import in_order, may_fetch_ahead, prefetched

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def journal(count, failing=None):
    """Batches that write down when they are asked for, sent and taken."""
    seen = []

    def batches():
        for number in range(count):
            if number == failing:
                raise ValueError("bad sample")
            seen.append(f"fetch {number}")
            yield number

    def send(batch):
        seen.append(f"send {batch}")
        return lambda: seen.append(f"take {batch}") or batch

    return seen, batches(), send


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_batches_come_in_their_order(count, ahead):
    _, batches, send = journal(count)

    assert list(in_order(batches, send, ahead)) == list(range(count))


def test_a_batch_is_asked_for_when_the_loop_asks():
    seen, batches, send = journal(3)

    for batch in in_order(batches, send, ahead=False):
        seen.append(f"step {batch}")

    assert seen == [f"{word} {number}" for number in range(3) for word in ("fetch", "send", "take", "step")]


def test_one_batch_is_on_its_way_while_the_step_before_it_runs():
    seen, batches, send = journal(3)

    for batch in in_order(batches, send, ahead=True):
        seen.append(f"step {batch}")

    assert seen == [
        "fetch 0", "send 0", "fetch 1", "send 1", "take 0", "step 0",
        "fetch 2", "send 2", "take 1", "step 1", "take 2", "step 2",
    ]  # fmt: skip


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_comes_after_the_batches_before_it(failing, ahead):
    _, batches, send = journal(4, failing)
    taken = []

    with pytest.raises(ValueError, match="bad sample"):
        taken.extend(in_order(batches, send, ahead))

    assert taken == list(range(failing))


def test_an_interruption_is_not_kept_for_later():
    def batches():
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(in_order(batches(), lambda batch: lambda: batch, ahead=True))


@pytest.mark.parametrize("ahead", [False, True])
def test_a_loop_may_stop_early(ahead):
    seen, batches, send = journal(9)
    fetched = in_order(batches, send, ahead)
    next(fetched)
    fetched.close()

    assert seen[-1] == "take 0"
    assert next(batches) == 1 + ahead  # the batches themselves go on for others


class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([float(index)])


class Mine(RandomSampler):
    pass


@pytest.mark.parametrize(
    ("legal", "settings"),
    [
        (True, {"num_workers": 1, "shuffle": True}),
        (True, {"num_workers": 1, "sampler": SequentialSampler(Numbers())}),
        (True, {"num_workers": 1, "sampler": RandomSampler(Numbers(), replacement=True)}),
        (False, {"num_workers": 0, "shuffle": True}),
        (False, {"num_workers": 1, "shuffle": True, "generator": torch.Generator()}),
        (False, {"num_workers": 1, "sampler": WeightedRandomSampler([1.0] * 8, 8)}),
        (False, {"num_workers": 1, "sampler": Mine(Numbers())}),
        (False, {"num_workers": 1, "batch_sampler": [[0, 1], [2]]}),
        (False, {"num_workers": 1, "batch_size": None}),
    ],
)
def test_when_a_batch_may_be_asked_for_early(legal, settings):
    assert may_fetch_ahead(DataLoader(Numbers(), **settings)) is legal


def test_other_iterables_are_asked_in_their_time():
    assert not may_fetch_ahead([1, 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_fetching_ahead_draws_what_the_plain_loop_draws(workers):
    """Where it is legal: dropout on the CPU draws between the batches."""

    def run(fetched):
        torch.manual_seed(1)
        loader = DataLoader(Numbers(), batch_size=3, shuffle=True, num_workers=workers)
        drawn = [(batch, torch.rand(1)) for batch in fetched(loader)]
        return [part for pair in drawn for part in pair] + [torch.rand(1)]

    plain = run(iter)
    ahead = run(lambda loader: in_order(loader, lambda batch: lambda: batch, may_fetch_ahead(loader)))

    assert all(map(torch.equal, plain, ahead))


def test_on_the_cpu_each_batch_is_as_it_is():
    first, second = torch.ones(2), {"x": [torch.zeros(1), "name"]}
    taken = list(prefetched([first, second], CPU))

    assert taken[0] is first
    assert taken[1]["x"][0] is second["x"][0]
    assert taken[1]["x"][1] == "name"


# -------------------------------------------------------------------------------------------------- needs a CUDA device


@needs_cuda
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pinned", [False, True])
def test_training_from_prefetched_batches_gives_the_bits_of_plain_copies(workers, pinned):
    device = torch.device("cuda:0")

    def run(fetched):
        torch.manual_seed(0)
        made = torch.Generator().manual_seed(2)
        rows = TensorDataset(torch.randn(5000, 512, generator=made), torch.randn(5000, 1, generator=made))
        loader = DataLoader(rows, 64, shuffle=True, num_workers=workers, pin_memory=pinned)
        model = nn.Sequential(nn.Linear(512, 512), nn.Dropout(0.2), nn.Linear(512, 1)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(2):
            for x, y in fetched(loader):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), y).backward()
                optimizer.step()
        return [*model.state_dict().values(), torch.rand(1), torch.rand(1, device=device)]

    plain = run(lambda loader: ([part.to(device) for part in batch] for batch in loader))

    assert all(map(torch.equal, plain, run(lambda loader: prefetched(loader, device))))


@needs_cuda
def test_every_kind_of_leaf_arrives():
    device = torch.device("cuda:0")
    there = torch.ones(3, device=device)
    batch = {
        "plain": torch.arange(6.0), "strided": torch.arange(6.0).view(2, 3).t(), "empty": torch.zeros(0),
        "expanded": torch.ones(1).expand(4), "sparse": torch.eye(3).to_sparse(), "there": there,
        "packed": pack_sequence([torch.ones(2), torch.zeros(1)]), "name": "text",
    }  # fmt: skip
    (moved,) = prefetched([batch], device)

    assert all(tensor.device == device for _, tensor in leaves({k: v for k, v in moved.items() if k != "packed"}))
    assert moved["there"] is there
    assert moved["name"] == "text"
    assert isinstance(moved["packed"], PackedSequence)
    assert moved["packed"].data.device == device
    assert moved["strided"].stride() == batch["strided"].to(device).stride()
    assert torch.equal(moved["strided"].cpu(), batch["strided"])


@needs_cuda
def test_memory_of_a_batch_is_not_reused_while_a_step_reads_it():
    device, sums = torch.device("cuda:0"), []
    for batch in prefetched([torch.full((1 << 22,), float(number)) for number in range(20)], device):
        busy = torch.randn(1024, 1024, device=device)
        for _ in range(random.Random(0).randrange(20, 40)):
            busy = busy @ busy
        sums.append(batch.mean())
        del batch

    assert torch.stack(sums).tolist() == [float(number) for number in range(20)]
