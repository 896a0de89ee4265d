"""Devices: which one is meant, and moving trees of tensors."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from framework import DeviceError, Trainer, UsageError
from framework.device import apply, describe, leaves, move, named, place, present, resolve
from framework.testing import tiny_data, tiny_trainer

CPU = torch.device("cpu")


class Point(NamedTuple):
    x: Any
    y: Any


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices, as far as torch's questions about it go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.fixture
def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_cuda_where_there_is_one(two_gpus: None) -> None:
    assert present() == ["cuda:0", "cuda:1", "cpu"]
    assert resolve("auto") == torch.device("cuda:0")


def test_auto_is_mps_on_a_mac(a_mac: None) -> None:
    assert present() == ["mps", "cpu"]
    assert resolve("auto") == torch.device("mps")


def test_auto_is_the_cpu_where_there_is_nothing_else(only_cpu: None) -> None:
    assert present() == ["cpu"]
    assert resolve("auto") == CPU


@pytest.mark.parametrize(
    ("name", "device"),
    [("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), (torch.device("cuda"), "cuda:0")],
)
def test_a_device_by_name_is_that_device(two_gpus: None, name: Any, device: str) -> None:
    assert resolve(name) == torch.device(device)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:99", "mps", "meta", "xpu"])
def test_a_device_that_is_absent_is_an_error_that_lists_those_present(two_gpus: None, name: str) -> None:
    with pytest.raises(DeviceError, match=f"there is no device '{name}' here.* cuda:0, cuda:1, cpu") as caught:
        resolve(name)
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", torch.device("cuda")])
def test_a_device_that_is_absent_is_never_replaced_by_the_cpu(only_cpu: None, name: Any) -> None:
    with pytest.raises(DeviceError, match=f"there is no device '{name}' here. This machine has: cpu"):
        resolve(name)
    model = nn.Linear(3, 1)
    with pytest.raises(DeviceError, match=f"there is no device '{name}' here"):
        Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters()), device=name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cdua", "Did you mean 'cuda'"),
        ("cpuu", "Did you mean 'cpu'"),
        ("mpss", "Did you mean 'mps'"),
        ("gpu", ""),
        ("", ""),
    ],
)
def test_a_misspelt_device_is_named_with_a_suggestion(only_cpu: None, name: str, near: str) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve(name)
    assert f"'{name}' is not a device" in str(caught.value)
    assert near in str(caught.value)
    assert "This machine has: cpu" in str(caught.value)


@pytest.mark.parametrize("name", ["cuda:", "cuda:-1", "cuda:x", "CPU", None, 3.5])
def test_what_is_no_name_of_a_device_is_refused(only_cpu: None, name: Any) -> None:
    with pytest.raises(DeviceError):
        resolve(name)


def test_a_trainer_tells_the_device_that_was_found() -> None:
    assert tiny_trainer().device == CPU


# --------------------------------------------------------------------------------------------------------------- trees


def test_apply_keeps_the_tree_and_leaves_other_leaves_alone() -> None:
    marker = object()
    tree = {"a": torch.ones(2), 3: [torch.zeros(1), (torch.ones(1), "text", None)], "p": Point(torch.ones(1), marker)}
    got = apply(lambda tensor: tensor + 1, tree)
    assert list(got) == ["a", 3, "p"]
    assert got["a"].tolist() == [2.0, 2.0]
    assert isinstance(got[3], list)
    assert got[3][0].tolist() == [1.0]
    assert got[3][1][1:] == ("text", None)
    assert isinstance(got["p"], Point)
    assert got["p"].y is marker
    assert tree["a"].tolist() == [1.0, 1.0]


def test_apply_takes_dicts_and_lists_of_other_kinds() -> None:
    class Mine(list):
        pass

    got = apply(torch.Tensor.tolist, OrderedDict(a=Mine([torch.ones(1)]), b=torch.Size([3])))
    assert got == {"a": [[1.0]], "b": (3,)}
    assert isinstance(got["a"], Mine)


def test_move_does_not_copy_what_is_there_already() -> None:
    tensor = torch.ones(2)
    assert move({"x": [tensor]}, CPU)["x"][0] is tensor


def test_leaves_have_the_paths_by_which_a_user_reaches_them() -> None:
    tree = {"image": torch.ones(1), "more": [torch.ones(2), (torch.ones(3), "no tensor")], 0: None}
    found = {path: tensor.numel() for path, tensor in leaves(tree, "x")}
    assert found == {"x['image']": 1, "x['more'][0]": 2, "x['more'][1][0]": 3}


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        ((torch.ones(1), torch.ones(1)), ["x", "y"]),
        ([torch.ones(1), None], ["x"]),
        (({"a": torch.ones(1)}, [torch.ones(1)]), ["x['a']", "y[0]"]),
        ((torch.ones(1),) * 3, ["batch[0]", "batch[1]", "batch[2]"]),
        ({"x": torch.ones(1)}, ["batch['x']"]),
        (torch.ones(1), ["batch"]),
        (None, []),
        ("text", []),
    ],
)
def test_the_tensors_of_a_batch_have_names(batch: Any, names: list[str]) -> None:
    assert [name for name, _ in named(batch)] == names


def test_a_batch_is_described_by_names_shapes_kinds_and_devices() -> None:
    batch = torch.ones(2, 3), torch.ones(2, dtype=torch.int64, device="meta")
    assert describe(batch) == "x (2, 3) float32 on cpu, y (2,) int64 on meta"


# --------------------------------------------------------------------------------------------------------------- place


def test_place_leaves_what_is_at_its_place_as_it_is() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    before = [id(value) for state in optimizer.state.values() for value in state.values()]
    parameters = [id(parameter) for parameter in model.parameters()]
    place(model, optimizer, CPU)
    assert [id(value) for state in optimizer.state.values() for value in state.values()] == before
    assert [id(parameter) for parameter in model.parameters()] == parameters


def test_place_takes_an_optimizer_whose_state_is_not_all_tensors() -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.weight] = {"momentum_buffer": None, "count": 3, "step": torch.tensor(1.0)}
    place(model, optimizer, CPU)
    assert optimizer.state[model.weight]["count"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_model_optimizer_state_and_batches_follow_to_the_gpu_and_predictions_come_back() -> None:
    trainer = tiny_trainer()
    optimizer = torch.optim.Adam(trainer.model.parameters())
    on_cpu = Trainer(trainer.model, trainer.loss, optimizer, device="cpu")
    on_cpu.fit(tiny_data())
    on_gpu = Trainer(trainer.model, trainer.loss, optimizer, device="cuda")
    on_gpu.fit(tiny_data(), tiny_data(), epochs=2, batch_size=2)
    assert {parameter.device.type for parameter in trainer.model.parameters()} == {"cuda"}
    states = list(optimizer.state.values())
    assert {state["exp_avg"].device.type for state in states} == {"cuda"}
    assert {state["step"].device.type for state in states} == {"cpu"}
    assert on_gpu.predict(tiny_data()[0]).device.type == "cpu"


def test_a_counter_and_a_defaultdict_stay_what_they_are_and_a_set_is_another_one() -> None:
    numbers = {1, 2}
    tree = {"milestones": Counter({3: 1}), "found": defaultdict(list, {"a": [torch.ones(1)]}), "set": numbers}
    made = apply(torch.Tensor.double, tree)
    assert made["milestones"] == Counter({3: 1})
    assert type(made["milestones"]) is Counter
    assert made["found"]["a"][0].dtype == torch.float64
    assert made["found"]["b"] == []
    assert made["set"] == numbers
    assert made["set"] is not numbers
