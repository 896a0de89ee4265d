"""Fits of two and of four processes, against one process and against the loop written by hand.

The models are of double precision, so that what differs by more than the order of a sum does shows.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.average_weights import AverageWeights
from framework_plugins.clip_gradients import ClipGradients
from framework_plugins.distributed import Distributed
from framework_plugins.distributed.batches import cutter, of_rank, part
from framework_plugins.distributed.draws import Common
from framework_plugins.limits import Limits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

spec = importlib.util.spec_from_file_location("worker_numbers", Path(__file__).with_name("worker_numbers.py"))
assert spec is not None
assert spec.loader is not None
numbers = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(numbers)

DIFFERENT = {  # cases whose numbers are others than those of one process, each with a test of its own
    "dropout", "batch_norm", "bf16", "asked_by_one", "unused_parameters_untold", "past_the_prepared_model",
    "a_sampler_of_torch_for_ranks",
}  # fmt: skip
BY_HAND = (
    "batches_that_do_not_divide", "a_last_batch_of_one_row", "batches_of_one_row", "in_order",
    "without_the_last_batch", "all_in_one_batch", "windows_of_two_and_a_last_row", "windows_of_three_and_a_short_one",
    "a_loader_with_a_generator", "a_loader_without_a_generator", "a_weighted_sampler", "a_sampler_of_batches",
    "a_stream", "clipped", "clipped_windows", "averaged", "sharded", "sharded_windows", "sharded_and_clipped",
    "sharded_and_averaged", "three_batches_in_windows_of_two", "three_batches_of_a_stream_in_windows_of_two",
)  # fmt: skip
ENDED = [*((2, name) for name in numbers.CASES), *((4, name) for name in numbers.FOUR)]


def every(*names: str, but: Any = ()) -> pytest.MarkDecorator:
    """These cases on as many processes as run them; all of them where none is named."""
    chosen = [(w, name) for w, name in ENDED if (name in names or not names) and name not in but]
    return pytest.mark.parametrize(("world", "name"), chosen, ids=[f"{name}-on-{world}" for world, name in chosen])


@pytest.fixture
def ranks(torchrun: Callable[..., Any], world: int, name: str) -> list[Any]:
    """What each rank has found in a case."""
    found = torchrun("worker_numbers", world).case(name)
    errors = [f"{rank['error']}: {rank['told']}" for rank in found if "error" in rank]
    assert not errors, errors
    return found


@pytest.fixture
def errors(torchrun: Callable[..., Any], name: str) -> list[tuple[str, str]]:
    """The error of each of two ranks: its type, and what it tells."""
    return [(found["error"], found["told"]) for found in torchrun("worker_numbers", 2).case(name)]


@pytest.fixture
def world(request: pytest.FixtureRequest) -> int:
    return int(getattr(request, "param", 2))


@cache
def alone(name: str) -> Any:
    """The same fit on this process."""
    return numbers.trained(numbers.CASES[name], lambda **knobs: [])


def close(got: Any, wanted: Any, rel: float = 1e-9) -> None:
    """Equal, and numbers equal to rounding."""
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            close(got[key], wanted[key], rel)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            close(one, other, rel)
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=rel, abs=1e-13, nan_ok=True)
    else:
        assert got == wanted


def joined(ranks: list[Any]) -> Any:
    """The rows of each batch, those of the first rank first."""
    return {
        split: [
            [[*chain(*parts)] for parts in zip(*batches, strict=True)]
            for batches in zip(*(rank["rows"][split] for rank in ranks), strict=True)
        ]
        for split in ranks[0]["rows"]
    }


# ------------------------------------------------------------------------------------------- as many, as one, by hand


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_go_through_all_cases(torchrun: Callable[..., Any], world: int) -> None:
    ended = torchrun("worker_numbers", world)
    assert ended.status == 0, ended.output


@every(but=DIFFERENT)
def test_losses_figures_and_weights_are_those_of_one_process(ranks: Any, name: str) -> None:
    wanted = alone(name)
    for rank in ranks:
        for what in ("history", "before", "test", "steps", "stop", "weights"):
            close(rank[what], wanted[what])


@every(but=DIFFERENT - {"batch_norm", "bf16"})
def test_each_global_batch_has_the_rows_of_one_process_in_their_order(ranks: Any, name: str) -> None:
    assert joined(ranks) == alone(name)["rows"]
    sizes = [[len(batch) for splits in rank["rows"].values() for epoch in splits for batch in epoch] for rank in ranks]
    assert all(max(parts) - min(parts) <= 1 for parts in zip(*sizes, strict=True))  # none has more work than others


@every(*BY_HAND)
def test_losses_and_weights_are_those_of_the_loop_by_hand(ranks: Any, name: str) -> None:
    rows, weights = by_hand(numbers.CASES[name])
    assert all(sorted(rank["weights"]) == sorted(weights) for rank in ranks)
    for rank in ranks:
        close([{key: row[key] for key in rows[0]} for row in rank["history"]], rows)
        close({key: rank["weights"][key] for key in weights}, weights)


def by_hand(make: Callable[[], Any]) -> tuple[list[dict[str, float]], dict[str, list[float]]]:
    """Figures and last weights of the loop over global batches."""
    torch.manual_seed(0)
    fit = make()
    model, optimizer = fit.model, fit.optimizer(fit.model.parameters())
    plugin = {type(one): one for one in fit.plugins}
    clip, average, limits = plugin.get(ClipGradients), plugin.get(AverageWeights), plugin.get(Limits)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average.decay)) if average else model
    batch_size, accumulate = fit.fit.get("batch_size"), fit.fit.get("accumulate", 1)
    shuffle = not isinstance(fit.train, IterableDataset) and fit.fit.get("shuffle", True)
    train = loader_of(fit.train, batch_size, shuffle, fit.fit.get("drop_last", False))
    rows: list[dict[str, float]] = []
    for epoch in range(fit.fit["epochs"]):
        model.train()
        total, count, step = 0.0, 0, rows[-1]["step"] if rows else 0
        for window in windows(islice(train, limits and limits.batches["train"]), accumulate):
            optimizer.zero_grad()
            for x, y in window:
                loss = fit.loss(model(x), y)
                (loss * len(x) / sum(len(x) for x, _ in window)).backward()
                total, count = total + loss.item() * len(x), count + len(x)
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip.norm)
            optimizer.step()
            step += 1
            if average:
                averaged.update_parameters(model)
        rows.append({"epoch": epoch, "step": step, "train_loss": total / count})
        if fit.val is not None:
            rows[-1]["val_loss"] = measured(averaged, fit.loss, loader_of(fit.val, batch_size, False, False))
    last = averaged.module if average else model
    return rows, {name: value.flatten().tolist() for name, value in last.state_dict().items()}


def measured(model: torch.nn.Module, loss: Any, loader: Any) -> float:
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for x, y in loader:
            total, count = total + loss(model(x), y).item() * len(x), count + len(x)
    return total / count


def loader_of(data: Any, batch_size: int | None, shuffle: bool, drop_last: bool) -> Any:
    if isinstance(data, DataLoader):
        return data
    if batch_size is None:
        return [data]
    dataset = data if isinstance(data, IterableDataset) else TensorDataset(*data)
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last)


def windows(loader: Any, size: int) -> Iterator[list[Any]]:
    window: list[Any] = []
    for batch in loader:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


# --------------------------------------------------------------------------------------------------- what ranks share


@every(but={"unused_parameters_untold", "past_the_prepared_model", "a_sampler_of_torch_for_ranks"})
def test_all_ranks_end_with_the_same_bits_and_tell_the_same_figures(ranks: Any) -> None:
    for what in ("digest", "history", "before", "test", "steps", "stop"):
        assert len({repr(rank[what]) for rank in ranks}) == 1, [rank[what] for rank in ranks]


@every("figures_of_classes")
def test_the_confusion_matrix_counts_each_row_once(ranks: Any, name: str) -> None:
    assert sum(map(sum, alone(name)["matrix"])) == 7
    for rank in ranks:
        assert rank["matrix"] == alone(name)["matrix"]


@every("figures_of_classes")
def test_counted_figures_are_exact(ranks: Any, name: str) -> None:
    for rank in ranks:
        pairs = zip([*rank["history"], rank["test"]], [*alone(name)["history"], alone(name)["test"]], strict=True)
        for got, wanted in pairs:
            counted = [figure for figure in wanted if "loss" not in figure]
            assert {figure: got[figure] for figure in counted} == {figure: wanted[figure] for figure in counted}


@every("a_stream_looked_at", "rows_looked_at")
def test_a_validation_set_is_evaluated_in_the_middle_of_an_epoch(ranks: Any, name: str) -> None:
    looked = alone(name)["looked"]
    assert len(looked) > 3
    for rank in ranks:
        close(rank["looked"], looked)
        assert rank["looked"] == ranks[0]["looked"]


# ---------------------------------------------------------------------------------------------------- random numbers


@every("dropout")
def test_dropout_differs_between_ranks_and_the_order_still_agrees(ranks: Any) -> None:
    masks = [rank["masks"] for rank in ranks]
    assert len({len(mask[0]) for mask in masks}) == 1
    assert len({repr(mask[:3]) for mask in masks}) == len(ranks)
    seen = joined(ranks)["train"]
    assert [[len(batch) for batch in epoch] for epoch in seen] == [[8, 8, 8]] * 3
    assert all(sorted(chain(*epoch)) == list(range(24)) for epoch in seen)
    assert len({repr(epoch) for epoch in seen}) == 3  # a new order each


# --------------------------------------------------------------------------------------- to another rounding than one


@pytest.mark.parametrize("name", ["bf16"])
def test_mixed_precision_stays_near_one_process(ranks: Any, name: str) -> None:
    for rank in ranks:  # a number of bf16 has 8 bits
        close(
            [row["train_loss"] for row in rank["history"]], [row["train_loss"] for row in alone(name)["history"]], 0.02
        )


@pytest.mark.parametrize("name", ["batch_norm"])
def test_batch_norm_takes_the_statistics_of_a_ranks_own_rows(ranks: Any, name: str) -> None:
    """As with DDP alone: each rank normalizes its part, so the losses are near and not equal."""
    for rank in ranks:
        losses, wanted = ([row["train_loss"] for row in found["history"]] for found in (rank, alone(name)))
        assert losses != pytest.approx(wanted, rel=1e-9)
        assert losses == pytest.approx(wanted, rel=0.5)


# ------------------------------------------------------------------------------------------------------------ the end


def test_stops_come_at_the_step_at_which_they_are_asked_for(torchrun: Callable[..., Any]) -> None:
    for found in torchrun("worker_numbers", 2).ranks:
        ended = {name: (found[name]["steps"], found[name]["stop"]) for name in ("limited", "stopped_by_all")}
        assert ended == {"limited": (7, "7 steps"), "stopped_by_all": (3, "enough")}
        assert found["early_stopping"]["steps"] == 3 * 5
        assert "val_loss" in found["early_stopping"]["stop"]


@every("asked_by_one")
def test_what_one_rank_asks_for_comes_on_all_at_one_step(ranks: Any) -> None:
    assert {rank["stop"] for rank in ranks} == {"the last rank has had enough"}
    (steps,) = {rank["steps"] for rank in ranks}
    assert 3 <= steps < 25_000


# -------------------------------------------------------------------------------------------------- reduced gradients


def test_gradients_are_reduced_once_a_step_of_the_optimizer(torchrun: Callable[..., Any]) -> None:
    for found in torchrun("worker_numbers", 2).ranks:
        rounds = {name: found[name]["rounds"] for name in ("rounds_of_a_step", "rounds_of_a_window")}
        assert rounds == {"rounds_of_a_step": 2 * 5, "rounds_of_a_window": 2 * math.ceil(5 / 2)}


@pytest.mark.parametrize("name", ["past_the_prepared_model"])
def test_a_model_that_is_called_past_the_prepared_one_is_told_at_the_end_of_the_epoch(errors: Any) -> None:
    for kind, told in errors:
        assert kind == "FrameworkError"
        assert "after epoch 0 the weights of rank 1 are not those of rank 0 any more, first 0.weight" in told


@pytest.mark.parametrize("name", ["unused_parameters_untold"])
def test_parameters_that_no_batch_uses_are_told_with_the_knob_for_them(errors: Any) -> None:
    for _, told in errors:
        assert "find_unused" in told


@pytest.mark.parametrize("name", ["a_sampler_of_torch_for_ranks"])
def test_a_distributed_sampler_is_refused(errors: Any) -> None:
    for kind, told in errors:
        assert kind == "UsageError"
        assert "DistributedSampler" in told


# -------------------------------------------------------------------------------------------------------- one process


@pytest.mark.parametrize(
    "name", ["batches_that_do_not_divide", "a_loader_with_a_generator", "clipped_windows", "dropout", "a_stream"]
)
def test_without_torchrun_it_changes_no_bit(name: str) -> None:
    with_it = numbers.trained(numbers.CASES[name], lambda **knobs: [Distributed(**knobs)])
    assert with_it == alone(name)


# ------------------------------------------------------------------------------------------------- the cut of a batch


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.integers(0, 100), size=st.integers(1, 9))
def test_the_parts_of_a_batch_are_the_batch_and_as_large_as_each_other(rows: int, size: int) -> None:
    parts = [part(rows, rank, size) for rank in range(size)]
    assert [*chain(*parts)] == [*range(rows)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 30), batch_size=st.integers(1, 8), size=st.integers(2, 5), drop_last=st.booleans(),
    shuffle=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_whatever_sizes_there_are_the_ranks_share_the_batches_of_one_process(
    rows: int, batch_size: int, size: int, drop_last: bool, shuffle: bool, seed: int
) -> None:
    data = TensorDataset(torch.arange(rows))
    loader = DataLoader(data, batch_size, shuffle=shuffle, drop_last=drop_last)
    passes = []
    for rank in range(size):
        torch.manual_seed(seed)
        mine = of_rank(loader, rank, size, Common())
        torch.manual_seed(rank)  # what a rank draws itself
        passes.append([[batch.tolist() for (batch,) in mine] for _ in range(2)])
        assert cutter(mine).sizes == [len(batch) for batch in loader.batch_sampler]
    torch.manual_seed(seed)
    for number, wanted in enumerate([[batch.tolist() for (batch,) in loader] for _ in range(2)]):
        assert all(len(found[number]) == len(wanted) for found in passes)
        for index, batch in enumerate(wanted):
            theirs = [found[number][index] for found in passes]
            assert all(theirs)  # each has a row, if only as padding
            shares = [len(part(len(batch), rank, size)) for rank in range(size)]
            assert [*chain(*(share[:count] for share, count in zip(theirs, shares, strict=True)))] == batch
