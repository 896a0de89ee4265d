"""The short steps of SGD, Adam and AdamW against torch's own, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from framework.engine import optimizers, private

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"maximize": True}),
    ("SGD", {"foreach": True, "momentum": 0.5}),
    ("Adam", {}),
    ("Adam", {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"fused": True}),
    ("Adam", {"lr": torch.tensor(0.01)}),
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.3, "maximize": True}),
    ("NAdam", {}),
]
SHORT = ("SGD", "Adam", "AdamW")


def made(name: str, options: dict[str, Any], dtype: torch.dtype = torch.float32, groups: int = 1) -> Any:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((1,), (7,), (33, 3), ())]
    split = [{"params": parameters[index::groups], "lr": 0.01 * (index + 1)} for index in range(groups)]
    kind = getattr(torch.optim, name)
    return parameters, kind(parameters if groups == 1 else split, **{"lr": 0.05, **options})


def run(ours: bool, name: str, options: dict[str, Any], *, steps: int = 6, change: Any = None, **how: Any) -> Any:
    parameters, optimizer = made(name, options, **how)
    generator = torch.Generator().manual_seed(1)
    bare = private.bare_step(optimizer)
    assert bare is not None
    step = private.stepping(optimizer, optimizers.flat(optimizer, bare)) if ours else lambda: optimizer.step()
    for index in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        if change is not None:
            change(index, parameters, optimizer)
        step()
    return {"parameters": [p.detach() for p in parameters], "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("variant", range(len(VARIANTS)))
def test_every_variant_ends_with_torchs_bits(oracle: Any, variant: int, dtype: torch.dtype, groups: int) -> None:
    name, options = VARIANTS[variant]
    how = {"dtype": dtype, "groups": groups}

    oracle.assert_same(run(False, name, options, **how), run(True, name, options, **how))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(SHORT), lr=st.floats(1e-6, 1.0), decay=st.sampled_from([0.0, 1e-4, 0.3]),
    momentum=st.sampled_from([0.0, 0.3, 0.9]), beta=st.floats(0.0, 0.999), eps=st.sampled_from([1e-8, 1e-3]),
)  # fmt: skip
def test_any_hyper_parameters_give_torchs_bits(
    oracle: Any, name: str, lr: float, decay: float, momentum: float, beta: float, eps: float
) -> None:
    own = {"momentum": momentum} if name == "SGD" else {"betas": (beta, min(0.999, 0.5 + beta / 2)), "eps": eps}
    options = {"lr": lr, "weight_decay": decay, **own}

    oracle.assert_same(run(False, name, options, steps=12), run(True, name, options, steps=12))


def lr_falls(index: int, parameters: Any, optimizer: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.9


def gradients_come_and_go(index: int, parameters: Any, optimizer: Any) -> None:
    for position, parameter in enumerate(parameters):
        if (index + position) % 3 == 0 or index == 4:
            parameter.grad = None


def state_is_loaded(index: int, parameters: Any, optimizer: Any) -> None:
    if index == 4:
        optimizer.load_state_dict(optimizer.state_dict())


def state_is_dropped(index: int, parameters: Any, optimizer: Any) -> None:
    if index == 4:
        optimizer.state.clear()


def a_switch_is_set(index: int, parameters: Any, optimizer: Any) -> None:
    if index == 4:
        optimizer.param_groups[0]["maximize"] = True


def a_group_is_added(index: int, parameters: Any, optimizer: Any) -> None:
    if index == 4:
        parameters.append(nn.Parameter(torch.ones(3)))
        parameters[-1].grad = torch.ones(3)
        optimizer.add_param_group({"params": parameters[-1:], "lr": 0.5})


def a_parameter_is_complex(index: int, parameters: Any, optimizer: Any) -> None:
    if index == 4:
        parameters.append(nn.Parameter(torch.ones(3, dtype=torch.complex64)))
        parameters[-1].grad = torch.full((3,), 1 + 2j)
        optimizer.add_param_group({"params": parameters[-1:]})


def the_dtype_changes(index: int, parameters: Any, optimizer: Any) -> None:
    if index == 4:
        for parameter in parameters:
            gradient, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.bfloat16()
            parameter.grad = gradient.bfloat16()
        optimizer.load_state_dict(optimizer.state_dict())
    elif index > 4:
        for parameter in parameters:
            gradient, parameter.grad = parameter.grad, None
            parameter.grad = gradient.to(parameter.dtype)


CHANGES = [
    the_dtype_changes,
    lr_falls, gradients_come_and_go, state_is_loaded, state_is_dropped, a_switch_is_set, a_group_is_added,
    a_parameter_is_complex,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_changes_on_the_way_gives_torchs_bits(oracle: Any, name: str, momentum: float, change: Any) -> None:
    options = {"momentum": momentum} if name == "SGD" else {}

    expected = run(False, name, options, steps=8, change=change)
    oracle.assert_same(expected, run(True, name, options, steps=8, change=change))


def test_sparse_gradients_are_left_to_torch(oracle: Any) -> None:
    def after(ours: bool) -> Any:
        torch.manual_seed(0)
        table = nn.Embedding(9, 3, sparse=True)
        optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
        bare = private.bare_step(optimizer)
        assert bare is not None
        step = private.stepping(optimizer, optimizers.flat(optimizer, bare)) if ours else lambda: optimizer.step()
        for _ in range(4):
            optimizer.zero_grad()
            table(torch.tensor([1, 2, 2])).sum().backward()
            step()
        return table.weight.detach()

    oracle.assert_same(after(False), after(True))


def test_a_short_way_with_other_bits_is_given_up_and_the_bits_stay_torchs(
    oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def wrong(taken: Any, group: Any) -> None:
        calls.append(len(taken))
        for parameter, gradient, _ in taken:
            parameter.add_(gradient, alpha=-group["lr"] * (1 + 1e-6))

    expected = run(False, "SGD", {})
    monkeypatch.setitem(optimizers._RULES, torch.optim.SGD, wrong)

    oracle.assert_same(expected, run(True, "SGD", {}))
    assert calls == [4]  # tried once, on copies


def test_the_short_way_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    rule = optimizers._RULES[torch.optim.SGD]
    monkeypatch.setitem(optimizers._RULES, torch.optim.SGD, lambda *given: (taken.append(1), rule(*given)))
    parameters, optimizer = made("SGD", {})
    step = optimizers.flat(optimizer, lambda _: pytest.fail("torch's own step was called"))
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad(), pytest.raises(pytest.fail.Exception):
        step()  # the first is taken both ways
    assert taken == [1]


def test_a_large_model_is_left_to_torch() -> None:
    parameter = nn.Parameter(torch.zeros(optimizers.LARGEST + 1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    calls: list[Any] = []
    optimizers.flat(optimizer, calls.append)()

    assert calls == [optimizer]


def test_parameters_that_are_not_there_yet_are_left_to_torch() -> None:
    model = nn.LazyLinear(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls: list[Any] = []
    optimizers.flat(optimizer, calls.append)()

    assert calls == [optimizer]


def test_a_momentum_buffer_that_is_none_is_left_to_torch(oracle: Any) -> None:
    def buffers_go(index: int, parameters: Any, optimizer: Any) -> None:
        if index == 4:
            for state in optimizer.state.values():
                state["momentum_buffer"] = None

    options = {"momentum": 0.9}
    expected = run(False, "SGD", options, steps=8, change=buffers_go)
    oracle.assert_same(expected, run(True, "SGD", options, steps=8, change=buffers_go))
