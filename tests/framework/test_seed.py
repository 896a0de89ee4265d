"""Seeding every generator, and leaving every generator as it was found."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch

from framework.seed import kept_random_states, seed_everything


def draws() -> tuple[Any, ...]:
    return random.random(), numpy.random.rand(), torch.rand(()).item(), random.gauss(0, 1), numpy.random.randn()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**40, 2**63 - 1])
def test_one_seed_gives_the_same_draws_of_every_generator(seed: int) -> None:
    seed_everything(seed)
    first = draws()
    seed_everything(seed)
    assert draws() == first


def test_other_seeds_give_other_draws_of_every_generator() -> None:
    seed_everything(1)
    first = draws()
    seed_everything(2)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


def test_the_seed_is_that_of_torch_itself() -> None:
    seed_everything(7)
    first = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(first, torch.rand(3))


def test_draws_inside_leave_no_trace_outside(oracle: Any) -> None:
    random.gauss(0, 1)  # half of a pair is kept by Python's generator, and by NumPy's
    numpy.random.randn()
    before = oracle.random_states()
    with kept_random_states():
        draws()
        seed_everything(3)
    oracle.assert_same(before, oracle.random_states())


def test_draws_inside_go_on_from_the_state_outside() -> None:
    seed_everything(5)
    expected = draws()
    seed_everything(5)
    with kept_random_states():
        assert draws() == expected
    assert draws() == expected


def test_an_error_inside_leaves_no_trace_either(oracle: Any) -> None:
    @kept_random_states()
    def fails() -> None:
        draws()
        raise KeyError

    before = oracle.random_states()
    with pytest.raises(KeyError):
        fails()
    oracle.assert_same(before, oracle.random_states())


def test_generators_that_are_named_are_kept_too() -> None:
    kept, moved = torch.Generator(), torch.Generator()
    before = kept.get_state()
    with kept_random_states(kept, kept):
        torch.rand(3, generator=kept)
        torch.rand(3, generator=moved)
    assert torch.equal(before, kept.get_state())
    assert not torch.equal(before, moved.get_state())


def test_one_may_lie_inside_another(oracle: Any) -> None:
    before = oracle.random_states()
    with kept_random_states():
        draws()
        inner = oracle.random_states()
        with kept_random_states():
            draws()
        oracle.assert_same(inner, oracle.random_states())
    oracle.assert_same(before, oracle.random_states())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_on_a_gpu_leave_no_trace_outside() -> None:
    torch.cuda.init()
    before = torch.cuda.get_rng_state()
    with kept_random_states():
        torch.rand(3, device="cuda")
    assert torch.equal(before, torch.cuda.get_rng_state())
