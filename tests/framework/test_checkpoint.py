"""Checkpoints: what is written is what is read, nothing is lost by a failure, nothing in them is ever executed."""

from __future__ import annotations

import ast
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from framework import CheckpointError, Snapshot, Trainer
from framework.checkpoint import copy, files, find, read, restore_model, take, write
from framework.testing import Recorder, tiny_data, tiny_trainer

ROOT = Path(__file__).parents[2]


def plain(tree: Any) -> Any:
    """The same tree with tensors that differ in nothing but their numbers, shape and kind."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().resolve_conj().resolve_neg().contiguous().clone()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return type(tree)(plain(value) for value in tree) if isinstance(tree, (list, tuple)) else tree


def snapshot_of(model: nn.Module, step: int = 1, **plugins: Any) -> Snapshot:
    return Snapshot(epoch=1, step=step, model=copy(model.state_dict()), optimizer={}, plugins=plugins)


def trained(
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam, model: nn.Module | None = None
) -> Trainer:
    model = model or nn.Linear(3, 1)
    trainer = Trainer(model, F.mse_loss, optimizer(model.parameters()), device="cpu")
    trainer.fit(tiny_data(6), epochs=2, batch_size=3)
    return trainer


def leftovers(run_dir: Path) -> list[str]:
    return [path.name for path in run_dir.rglob("*") if path.name.startswith(".")]


# -------------------------------------------------------------------------------------------------- whatever is kept

KINDS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def tensor(kind: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return made.abs().to(kind) if kind == torch.uint8 else made.to(kind)


tensors = st.builds(
    tensor, st.sampled_from(KINDS), st.lists(st.integers(0, 3), max_size=3).map(tuple), st.integers(0, 9)
)
words = st.text(max_size=5) | st.sampled_from(["$tensor", "$map", "$float", "$tuple", "a.b", "a", "b", "0", ""])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | words | tensors
hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=3,
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(words, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(tree=trees)
@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_every_tree_comes_back_from_the_disk_as_it_was(
    oracle: Any, tmp_path_factory: pytest.TempPathFactory, tree: Any
) -> None:
    folder = tmp_path_factory.mktemp("run")
    snapshot = Snapshot(epoch=2, step=3, model={"w": torch.ones(2)}, optimizer={"tree": tree}, plugins={"p": [tree]})
    back = read(write(snapshot, folder, ["last"]))
    shutil.rmtree(folder)
    oracle.assert_same([snapshot.optimizer, snapshot.plugins], [back.optimizer, back.plugins])
    assert (back.epoch, back.step) == (2, 3)


def test_a_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(CheckpointError, match="contains itself, or is nested too deep"):
        write(snapshot_of(nn.Linear(1, 1), mine=endless), tmp_path, ["last"])
    assert leftovers(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ write and read

OPTIMIZERS = [
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax,
    torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.Rprop, torch.optim.ASGD,
    torch.optim.Adafactor, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.Adam(p, amsgrad=True), lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
]  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_state_of_each_optimizer_comes_back(oracle: Any, tmp_path: Path, optimizer: Any) -> None:
    trainer = trained(optimizer, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)))
    snapshot = trainer.snapshot()
    back = read(write(snapshot, tmp_path, ["last"]))
    oracle.assert_same(plain(snapshot.optimizer), back.optimizer)
    oracle.assert_same(plain(dict(sorted(snapshot.model.items()))), dict(sorted(back.model.items())))
    trainer.optimizer.load_state_dict(back.optimizer)
    oracle.assert_same(plain(snapshot.optimizer), plain(trainer.optimizer.state_dict()))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_number_comes_back(oracle: Any, tmp_path: Path, kind: torch.dtype) -> None:
    model = {"w": tensor(kind, (2, 3), 0), "scalar": tensor(kind, (), 1), "none": tensor(kind, (0, 3), 2)}
    back = read(write(Snapshot(0, 0, model, {}), tmp_path, ["last"]))
    oracle.assert_same(dict(sorted(model.items())), dict(sorted(back.model.items())))


def test_views_come_back_as_the_numbers_that_they_show(oracle: Any, tmp_path: Path) -> None:
    base = torch.tensor([[1 + 2j, 3 - 4j], [5 + 6j, 7j]], dtype=torch.complex64)
    model = {
        "conj": base.conj(),
        "neg": base.conj().imag,
        "transposed": base.t(),
        "strided": torch.arange(10.0)[::3],
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "part": torch.arange(10_000.0)[5:7],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    path = write(Snapshot(0, 0, model, {}), tmp_path, ["last"])
    back = read(path)
    assert back.model["conj"].tolist() == base.conj().tolist()
    assert back.model["neg"].tolist() == [[-2.0, 4.0], [-6.0, -7.0]]
    oracle.assert_same(plain(dict(sorted(model.items()))), dict(sorted(back.model.items())))
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.values())
    assert (path / "model.safetensors").stat().st_size < held + 2_000  # of the part, not the ten thousand around it


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_tied_weights_come_back_tied(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    back = read(write(snapshot_of(model), tmp_path, ["last"]))
    assert sorted(back.model) == ["first.bias", "first.weight", "second.bias", "second.weight"]
    restore_model(back, other)
    assert other.second.weight is other.first.weight
    assert torch.equal(other.first.weight, model.first.weight)


def test_a_tensor_that_is_held_twice_comes_back_twice(tmp_path: Path) -> None:
    shared = torch.arange(3.0)
    back = read(write(Snapshot(0, 0, {}, {"a": shared, "b": [shared, shared[1:]]}), tmp_path, ["last"]))
    assert [back.optimizer["a"].tolist(), back.optimizer["b"][1].tolist()] == [[0.0, 1.0, 2.0], [1.0, 2.0]]


class WithExtra(nn.Linear):
    """A module with a state of its own beside its tensors, as torch allows."""

    def __init__(self, extra: Any) -> None:
        super().__init__(2, 1)
        self.extra = extra

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_the_extra_state_of_a_module_comes_back(tmp_path: Path) -> None:
    back = read(write(snapshot_of(nn.Sequential(WithExtra({"seen": 3, "t": (1, None)}))), tmp_path, ["last"]))
    other = nn.Sequential(WithExtra(None))
    restore_model(back, other)
    assert other[0].extra == {"seen": 3, "t": (1, None)}


def test_an_extra_state_that_cannot_be_held_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"0\._extra_state is of type object"):
        write(snapshot_of(nn.Sequential(WithExtra(object()))), tmp_path, ["last"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.ones(2, device="meta"), "meta"),
    ],
)
def test_a_kind_of_tensor_that_cannot_be_held_is_named_with_its_path(tmp_path: Path, make: Any, said: str) -> None:
    for snapshot, name in (
        (Snapshot(0, 0, {"good": torch.ones(1), "layer.bad": make()}, {}), r"layer\.bad"),
        (Snapshot(0, 0, {}, {}, {"ema": {"good": torch.ones(1), "bad": make()}}), r"plugins\.ema\.bad"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name} .*{said}.* a checkpoint cannot hold"):
            write(snapshot, tmp_path, ["last"])
    assert list(tmp_path.iterdir()) == []


def test_a_copy_shares_nothing_with_the_original() -> None:
    base = {"a": [torch.ones(2, requires_grad=True)], "b": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    copied = copy(base)
    assert copied["a"][0].data_ptr() != base["a"][0].data_ptr()
    assert not copied["a"][0].requires_grad
    assert copied["b"].stride() == base["b"].stride()


# --------------------------------------------------------------------------------------------------- labels and places


@pytest.mark.parametrize("label", ["last", "best", "epoch_3", "_mine", "a1", "ema_2_b"])
def test_every_label_that_a_trainer_takes_keeps_its_checkpoint(tmp_path: Path, label: str) -> None:
    trainer = tiny_trainer(run_dir=tmp_path)
    trainer.save(label)
    trainer.fit(tiny_data(), epochs=3)
    trainer.save("another")
    assert read(find(tmp_path, label)).step == 0


def test_another_state_at_the_same_step_never_overwrites(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        model = nn.Linear(1, 1)
        nn.init.constant_(model.weight, float(number))
        paths.append(write(snapshot_of(model, step=7), tmp_path, [f"label_{number}"]))
    assert [path.name for path in paths] == ["step-000000000007", "step-000000000007-r1", "step-000000000007-r2"]
    for number in range(3):
        assert read(find(tmp_path, f"label_{number}")).model["weight"].item() == number


def test_find_takes_the_first_label_that_points_at_a_checkpoint(tmp_path: Path) -> None:
    assert find(tmp_path, "last", "best") is None
    write(snapshot_of(nn.Linear(1, 1), step=1), tmp_path, ["best"])
    assert find(tmp_path, "last", "best") == tmp_path / "checkpoints" / "step-000000000001"
    write(snapshot_of(nn.Linear(1, 1), step=2), tmp_path, ["last"])
    assert find(tmp_path, "last", "best") == tmp_path / "checkpoints" / "step-000000000002"
    shutil.rmtree(tmp_path / "checkpoints" / "step-000000000002")
    assert find(tmp_path, "last", "best") == tmp_path / "checkpoints" / "step-000000000001"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '"step-000000000001"', "{}", '{"name": null}', '{"name": ["step-000000000001"]}',
     '{"name": "../../outside"}', '{"name": "step-000000000001/../../.."}', '{"name": "/etc"}', '{"name": ""}',
     '{"name": "step-1"}', '{"name": "step-000000000001\\n"}', "\udcff"],
)  # fmt: skip
def test_a_damaged_label_points_nowhere(tmp_path: Path, text: str) -> None:
    write(snapshot_of(nn.Linear(1, 1), step=1), tmp_path, ["best"])
    write(snapshot_of(nn.Linear(1, 1), step=2), tmp_path, ["mine"])
    for label in ("LAST", "BEST"):
        (tmp_path / "checkpoints" / label).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert find(tmp_path, "best") is None
    assert find(tmp_path, "best", "last") == find(tmp_path, "mine")  # the newest


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_a_file_where_a_directory_is_needed_is_told_with_its_path(tmp_path: Path, place: str) -> None:
    run_dir = tmp_path / "run"
    if place:
        run_dir.mkdir()
    (run_dir / place if place else run_dir).write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint into .*run.*checkpoints"):
        write(snapshot_of(nn.Linear(1, 1)), run_dir, ["last"])


def test_a_full_disk_during_a_fit_ends_it_and_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, source: Any, target: Any) -> None:
        raise OSError(28, "No space left on device")

    def save(trainer: Trainer) -> None:
        if trainer.epoch == 3:
            monkeypatch.setattr(files.System, "rename", full)
        trainer.save()

    recorder = Recorder(["on_checkpoint", "on_exception", "on_teardown"])
    trainer = tiny_trainer([SimpleNamespace(name="saver", on_epoch_end=save), recorder], run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer.fit(tiny_data(), epochs=5)
    assert recorder.names == ["on_checkpoint", "on_checkpoint", "on_exception", "on_teardown"]
    assert (trainer.epoch, read(find(tmp_path, "last")).epoch, len(trainer.history)) == (3, 2, 3)


# ---------------------------------------------------------------------------------------------------- nothing is run


def test_names_in_a_checkpoint_are_never_imported(tmp_path: Path) -> None:
    for name in ("class", "function", "__reduce__", "_target_", "class_path", "$import"):
        tree = {name: "os.system", "args": ["exit 1"]}
        assert read(write(snapshot_of(nn.Linear(1, 1), p=tree), tmp_path, ["last"])).plugins == {"p": tree}


SOURCES = [
    path
    for folder in ("framework", "plugins", "recipes")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.parent.name != "eject"
]  # which evaluates what a recipe's own source says, and that was named to be run


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_evaluates_anything(path: Path) -> None:
    forbidden_modules = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "copyreg"}
    forbidden_calls = {"torch.load", "torch.save", "torch.jit.load", "numpy.load", "np.load", "eval", "builtins.eval"}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & forbidden_modules
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in forbidden_modules
            assert not {f"{node.module}.{alias.name}" for alias in node.names} & forbidden_calls
        elif isinstance(node, ast.Attribute | ast.Name):
            assert ast.unparse(node) not in forbidden_calls


# ------------------------------------------------------------------------------------------------------- restore_model


def test_a_model_of_the_same_shape_gets_the_weights_and_buffers(oracle: Any, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    trainer = trained(model=make())
    other = make()
    restore_model(read(write(trainer.snapshot(), tmp_path, ["last"])), other)
    oracle.assert_same(dict(trainer.model.state_dict()), dict(other.state_dict()))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Linear(4, 1), [r"weight: checkpoint \(1, 3\), model \(1, 4\)"]),
        (nn.Linear(3, 2), [r"weight: checkpoint \(1, 3\), model \(2, 3\)", r"bias: checkpoint \(1,\), model \(2,\)"]),
        (nn.Linear(3, 1, bias=False), ["bias is not in the model"]),
        (nn.Sequential(nn.Linear(3, 1)), [r"0\.weight is missing in the checkpoint", "weight is not in the model"]),
    ],
)
def test_another_model_is_told_with_the_differences_and_left_as_it_was(model: nn.Module, said: list[str]) -> None:
    before = copy(model.state_dict())
    with pytest.raises(CheckpointError, match="the checkpoint is of another model: ") as caught:
        restore_model(snapshot_of(nn.Linear(3, 1)), model)
    for part in said:
        assert caught.match(part)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_of_many_differences_the_first_five_are_told() -> None:
    other = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(CheckpointError) as caught:
        restore_model(snapshot_of(nn.Linear(3, 1)), other)
    assert str(caught.value).count(";") == 4


def test_a_scalar_is_not_taken_for_a_vector_of_one() -> None:
    class One(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(shape))

    with pytest.raises(CheckpointError, match=r"scale: checkpoint \(1,\), model \(\)"):
        restore_model(snapshot_of(One((1,))), One(()))


# ---------------------------------------------------------------------------------------------- one over an earlier one


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().mean().backward()
    optimizer.step()


def lr_changes(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.5


def memory_is_swapped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.double()


def state_is_loaded(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def a_layer_comes(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.add_module("more", nn.Linear(2, 2))
    optimizer.add_param_group({"params": model.more.parameters(), "lr": 0.1})


def a_hook_comes(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})


def nothing(model: nn.Module, optimizer: torch.optim.Optimizer) -> None: ...


@pytest.mark.parametrize(
    "change", [nothing, lr_changes, memory_is_swapped, state_is_loaded, a_layer_comes, a_hook_comes]
)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adagrad"])
def test_a_snapshot_over_an_earlier_one_is_the_one_that_would_be_taken_anew(
    oracle: Any, kind: str, change: Any
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    stepped(model, optimizer)
    snapshot = take(1, 1, model, optimizer, {"mine": {"count": 1}})
    stepped(model, optimizer)
    change(model, optimizer)
    anew = take(2, 2, model, optimizer, {"mine": {"count": 2}})
    over = take(2, 2, model, optimizer, {"mine": {"count": 2}}, over=snapshot)

    for name in ("epoch", "step", "model", "optimizer", "plugins"):
        oracle.assert_same(plain(getattr(anew, name)), plain(getattr(over, name)), name)


def test_a_snapshot_over_an_earlier_one_takes_its_memory() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    stepped(model, optimizer)
    first = take(1, 1, model, optimizer, {})
    places = {name: tensor.data_ptr() for name, tensor in first.model.items()}
    second = take(2, 2, model, optimizer, {}, over=first)

    assert {name: tensor.data_ptr() for name, tensor in second.model.items()} == places


class OwnState(nn.Linear):
    def state_dict(self) -> Any:  # type: ignore[override]
        return {"mine": self.weight.detach() * 2}


class Hooked(nn.Linear):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            destination[f"{prefix}weight"] = destination[f"{prefix}weight"] * 2


@pytest.mark.parametrize("kind", [OwnState, Hooked])
def test_a_model_with_a_state_dict_of_its_own_is_asked_each_time(oracle: Any, kind: Any) -> None:
    model = kind(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshot = take(1, 1, model, optimizer, {})
    stepped(model, optimizer)

    oracle.assert_same(dict(model.state_dict()), dict(take(2, 2, model, optimizer, {}, over=snapshot).model))


def test_an_optimizer_that_keeps_something_for_all_parameters_is_asked_each_time() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stepped(model, optimizer)
    optimizer.state["count"] = 5  # type: ignore[index]
    snapshot = take(1, 1, model, optimizer, {})
    optimizer.state["count"] = 6  # type: ignore[index]

    assert take(2, 2, model, optimizer, {}, over=snapshot).optimizer["state"]["count"] == 6


def test_parameters_that_move_between_groups_are_seen() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1)
    snapshot = take(1, 1, model, optimizer, {})
    optimizer.param_groups[0]["params"].append(optimizer.param_groups[1]["params"].pop())
    groups = take(2, 2, model, optimizer, {}, over=snapshot).optimizer["param_groups"]

    assert [group["params"] for group in groups] == [[0, 1], []]


def test_a_pickled_snapshot_holds_the_copies_alone() -> None:
    model = nn.Linear(100, 100)
    snapshot = take(1, 1, model, torch.optim.SGD(model.parameters(), lr=0.1), {})
    back = pickle.loads(pickle.dumps(snapshot))

    assert snapshot.live is not None
    assert back.live is None
    assert torch.equal(back.model["weight"], model.weight)
