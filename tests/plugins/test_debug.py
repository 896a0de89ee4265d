from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from framework import PluginError, Trainer, hookimpl
from framework.cli import main
from framework.discovery import available
from framework.hooks import HOOKS
from framework.testing import tiny_data, tiny_trainer

OWN = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """What a test leaves switched is switched back. NumPy's generator stands where seeding it puts it."""
    np.random.seed(1)
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False


def named(name: str, **members: Any) -> Any:
    return type("Plugin", (), {"name": name, **members})()


def wrap(function: Callable[..., Any]) -> Any:
    return hookimpl(wrapper=True)(function)


def before(do: Callable[[Any], Any]) -> Any:
    """A wrap that does it before its yield."""

    def within(self: Any, trainer: Trainer) -> Any:
        do(trainer)
        return (yield)

    return wrap(within)


def after(do: Callable[[Any], Any]) -> Any:
    """A wrap that does it after its yield."""

    def within(self: Any, trainer: Trainer) -> Any:
        answer = yield
        do(trainer)
        return answer

    return wrap(within)


def plain(do: Callable[[Any], Any]) -> Any:
    def tell(self: Any, trainer: Trainer) -> Any:
        do(trainer)
        return NotImplemented

    return tell


class Saves:
    def on_epoch_end(self, trainer: Trainer) -> None:
        if trainer.run_dir is not None:
            trainer.save()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))


def trainer_with(*plugins: Any, **options: Any) -> Trainer:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return Trainer(network, nn.functional.mse_loss, optimizer, plugins=plugins, device="cpu", **options)


def fit(trainer: Trainer) -> Any:
    return trainer.fit(tiny_data(8), tiny_data(4), epochs=1, batch_size=4)


def found(*plugins: Any, fits: int = 1, **options: Any) -> str:
    """What debug, listed last as `-p debug` lists it, says of these plugins."""
    trainer = trainer_with(*plugins, "debug", **options)
    for _ in range(fits - 1):
        fit(trainer)
    with pytest.raises(PluginError) as caught:
        fit(trainer)
    return str(caught.value)


def eval_mode(trainer: Any) -> None:
    trainer.model.eval() if trainer.model.training else trainer.model.train()


def grad_mode(trainer: Any) -> None:
    torch.set_grad_enabled(not torch.is_grad_enabled())


CHANGES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "gradients": (grad_mode, "left gradients ", "`with torch.no_grad():` puts back what it changes"),
    "the mode": (eval_mode, "left the model in ", "put the mode back, or choose it in on_split_start"),
    "a layer's mode": (
        lambda trainer: trainer.model[1].train(not trainer.model[1].training), "left layer 1 in ",
        "put the mode back, or choose it in on_split_start",
    ),
    "torch": (lambda _: torch.rand(1), "drew from torch's random generator ", "draw from one of its own"),
    "torch's seed": (lambda _: torch.manual_seed(7), "drew from torch's random generator ", "draw from one of its own"),
    "python": (lambda _: random.random(), "drew from Python's random generator ", "draw from one of its own"),
    "numpy's seed": (lambda _: np.random.seed(7), "drew from NumPy's random generator ", "draw from one of its own"),
    "numpy": (lambda _: np.random.rand(), "drew from NumPy's random generator ", "draw from one of its own"),
    "numpy's normal": (lambda _: np.random.randn(), "drew from NumPy's random generator ", "draw from one of its own"),
    "dtype": (
        lambda _: torch.set_default_dtype(torch.float64),
        "changed the default dtype from torch.float32 to torch.float64 ", "put it back",
    ),
    "deterministic": (
        lambda _: torch.use_deterministic_algorithms(True),
        "changed torch.use_deterministic_algorithms from False to True ", "put it back",
    ),
    "cudnn.deterministic": (
        lambda _: setattr(torch.backends.cudnn, "deterministic", True),
        "changed torch.backends.cudnn.deterministic from False to True ", "put it back",
    ),
    "cudnn.benchmark": (
        lambda _: setattr(torch.backends.cudnn, "benchmark", True),
        "changed torch.backends.cudnn.benchmark from False to True ", "put it back",
    ),
}  # fmt: skip
DRAWS = ("torch", "torch's seed", "python", "numpy", "numpy's seed", "numpy's normal")
MODES = ("the mode", "a layer's mode")
SETTINGS = ("dtype", "deterministic", "cudnn.deterministic", "cudnn.benchmark")


def is_a_right(change: str, hook: str) -> bool:
    """Whether a plugin may do that in this hook."""
    if change in DRAWS:
        return HOOKS[hook].kind != "tell" or hook == "on_teardown"  # where one that it had set is put back
    if change in MODES:
        return hook in ("on_split_start", "on_teardown", "prepare_model")
    return change in SETTINGS and hook in ("on_teardown", "prepare_model")


@pytest.mark.parametrize("form", [plain, before, after])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in ("prepare_model", "on_exception")])
def test_the_plugin_and_the_hook_that_leave_something_changed_are_named(hook, change, form, tmp_path) -> None:
    do, done, right = CHANGES[change]
    form = plain if HOOKS[hook].isolated else form  # those cannot be wrapped
    plugins = [named("bystander", **{hook: plain(lambda _: None)}), named("culprit", **{hook: form(do)}), Saves()]
    if HOOKS[hook].make:
        plugins = plugins[1:]
    run_dir = tmp_path if hook == "on_checkpoint" else None
    if is_a_right(change, hook):
        fit(trainer_with(*plugins, "debug", run_dir=run_dir))
        return
    said = found(*plugins, run_dir=run_dir)
    assert said.startswith(f"plugin 'culprit', hook {hook} {done}")
    assert f"(epoch {1 if hook in ('on_epoch_end', 'on_checkpoint', 'on_fit_end', 'on_teardown') else 0}, step " in said
    assert f"): {right}" in said


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_an_error_is_told_as_a_note_of_it(change) -> None:
    do, done, _ = CHANGES[change]
    culprit = named("culprit", on_exception=plain(do), on_fit_end=lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        fit(trainer_with(culprit, "debug"))
    assert (
        f"plugin 'culprit', hook on_exception then raised PluginError: plugin 'culprit', hook on_exception {done}"
        in ("\n".join(caught.value.__notes__))
    )


@pytest.mark.parametrize("form", [before, after])
def test_prepare_model_is_looked_at_from_the_second_fit_on(form) -> None:
    """In the first one debug is only just being asked."""
    fits: list[int] = []

    def do(trainer: Any) -> None:
        fits.append(1)
        torch.set_grad_enabled(len(fits) < 2)

    assert found(named("culprit", prepare_model=form(do)), fits=2).startswith(
        "plugin 'culprit', hook prepare_model left gradients disabled (epoch 0, step 0): "
    )


@pytest.mark.parametrize("argument", ["batch", "output", "loss"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_tensor_that_is_changed_in_place_is_named(argument, split) -> None:
    def add(value: Any) -> None:
        (value[1] if argument == "batch" else value).add_(1.0)

    space: dict[str, Any] = {"add": add}
    exec(f"def on_batch_end(self, {argument}): add({argument})", space)
    said = found(named("culprit", on_batch_end=hookimpl(split=split)(space["on_batch_end"])))
    assert said.startswith(f"plugin 'culprit', hook on_batch_end changed the {argument} in place (epoch 0, step ")
    assert said.endswith("): change a clone; the loop and other plugins use this one")


CHANGED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "one bit": (lambda: torch.zeros(3), lambda t: t[1:2].copy_(torch.tensor([-0.0]))),
    "from nan": (lambda: torch.full((3,), torch.nan), lambda t: t[0].zero_()),
    "shape": (lambda: torch.zeros(4, 2), lambda t: t.unsqueeze_(0)),
    "through numpy": (lambda: torch.zeros(3), lambda t: t.numpy().fill(1)),
    "past autograd": (lambda: torch.zeros(3), lambda t: t.data.fill_(1)),
    "with gradients": (lambda: torch.zeros(3, requires_grad=True), lambda t: t.data.fill_(1)),
    "int64": (lambda: torch.zeros(3, dtype=torch.int64), lambda t: t.add_(1)),
    "bool": (lambda: torch.zeros(3, dtype=torch.bool), lambda t: t.logical_not_()),
    "bfloat16": (lambda: torch.zeros(3, dtype=torch.bfloat16), lambda t: t.add_(1)),
    "conjugate": (lambda: torch.zeros(3, dtype=torch.complex64).conj(), lambda t: t.add_(1j)),
    "negative": (lambda: torch.zeros(3, dtype=torch.complex64).conj().imag, lambda t: t.add_(1)),
    "sparse": (lambda: torch.eye(3).to_sparse(), lambda t: t.mul_(2)),
    "not contiguous": (lambda: torch.zeros(3, 2).t(), lambda t: t[1, 1].add_(1)),
    "0-dim": (lambda: torch.zeros(()), lambda t: t.add_(1)),
}


@pytest.mark.parametrize("nest", [lambda t: t, lambda t: [t], lambda t: {"a": (t, 3)}, lambda t: (None, [{"b": t}])])
@pytest.mark.parametrize("case", CHANGED)
def test_a_change_of_any_tensor_in_a_batch_of_any_shape_is_seen(case, nest) -> None:
    make, change = CHANGED[case]
    value, does = make(), [torch.clone]
    trainer = tiny_trainer([named("culprit", on_batch_start=lambda self, batch: does[-1](value)), "debug"])
    fit(trainer)
    on_batch_start = trainer.plugins.frozen("train").on_batch_start

    on_batch_start(trainer, "train", nest(value))
    does.append(change)
    with pytest.raises(PluginError, match="hook on_batch_start changed the batch in place"):
        on_batch_start(trainer, "train", nest(value))


class Careful:
    """Does everything that could be a fault, and none of it is."""

    name = "careful"

    @torch.no_grad()
    def on_batch_end(self, trainer: Trainer, batch: Any, output: Any) -> None:
        torch.rand(1, generator=OWN), random.Random(0).random(), np.random.default_rng(0).random()
        batch[0].clone().add_(1.0)
        with torch.inference_mode(), torch.random.fork_rng():
            torch.rand(1)

    @wrap
    def on_epoch_start(self, trainer: Trainer) -> Iterator[None]:
        state, mode = torch.get_rng_state(), torch.get_default_dtype()
        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        with torch.no_grad():
            yield
        torch.set_default_dtype(mode)
        torch.set_rng_state(state)

    def on_split_start(self, trainer: Trainer) -> None:
        trainer.model[1].eval()

    @wrap
    def forward(self) -> Any:
        torch.rand(1)
        with torch.autocast("cpu", enabled=False):
            return (yield)

    def on_epoch_end(self, trainer: Trainer) -> None:
        trainer.evaluate(tiny_data())
        trainer.predict(tiny_data()[0])
        trainer.model.state_dict()

    @wrap
    def prepare_model(self, trainer: Trainer) -> Any:
        torch.backends.cudnn.benchmark = True
        torch.rand(1)
        return (yield)

    def on_teardown(self) -> None:
        torch.backends.cudnn.benchmark = False


def test_what_is_a_plugins_right_is_let_pass_in_every_fit() -> None:
    trainer = trainer_with(Careful(), named("other", on_epoch_start=lambda self: None), "debug")
    for _ in range(3):
        fit(trainer)
    trainer.evaluate(tiny_data())
    trainer.predict(tiny_data()[0])


def test_it_looks_in_evaluate_and_predict_after_a_fit() -> None:
    trainer = trainer_with(named("culprit", forward=before(eval_mode)), "debug")
    with pytest.raises(PluginError):
        fit(trainer)
    for call in (lambda: trainer.evaluate(tiny_data()), lambda: trainer.predict(tiny_data()[0])):
        with pytest.raises(PluginError, match="plugin 'culprit', hook forward left the model in train mode"):
            call()


def test_an_error_of_a_plugin_is_still_its_own() -> None:
    def fails(self: Any) -> None:
        raise ZeroDivisionError

    trainer = trainer_with(named("outer", on_batch_end=before(lambda _: None)), named("b", on_batch_end=fails), "debug")
    with pytest.raises(ZeroDivisionError) as caught:
        fit(trainer)
    assert caught.value.__notes__ == ["plugin 'b', hook on_batch_end, epoch 0, step 1"]


def test_a_second_fit_is_looked_at_once_and_one_instance_serves_two_trainers() -> None:
    looks: list[str] = []
    count = named("count", on_fit_end=lambda self: looks.append("called"))
    trainers = [trainer_with(count, "debug"), trainer_with(count)]
    trainers[1] = trainer_with(count, trainers[0].plugins["debug"])
    for trainer in (*trainers, *trainers):
        fit(trainer)
    for trainer in trainers:
        (function,) = [impl.function for impl in trainer.plugins.impls if impl.listed.name == "count"]
        assert not hasattr(function.__wrapped__, "__wrapped__")
    bad = named("culprit", on_fit_end=lambda self: random.random())
    with pytest.raises(PluginError, match="'culprit'"):
        fit(trainer_with(bad, trainers[0].plugins["debug"]))


def test_debug_is_not_told_of_by_on_plugin_error_disable() -> None:
    """It raises to end the fit, also where the culprit only looks."""
    said = found(named("culprit", on_epoch_end=lambda self: random.random()), on_plugin_error="disable")
    assert said.startswith("plugin 'culprit', hook on_epoch_end drew from Python's random generator (epoch 1, step 2)")


RECIPES = {  # with the plugins that each brings along, and the defaults
    "logistic_regression": {"accuracy", "decision_boundary"},
    "digits": {"accuracy", "confusion_matrix", "top_losses", "best_checkpoint"},
    "batch_norm": {"accuracy"},
}
DEFAULT = {"progress", "console", "history", "plot", "best_checkpoint"}
BY_HAND = [
    "gpu_memory", "summary", "diagram", "early_stopping", "csv", "f1_score", "gradient_statistics", "profile",
    "tensorboard", "throughput", "top_checkpoints",
]  # fmt: skip


def test_every_built_in_plugin_that_needs_nothing_is_looked_at() -> None:
    theirs = {name for name, point in available().items() if point.module.startswith("framework_plugins.")}
    not_for_these = {"debug", "watchdog", "regression", "distributed"}  # itself, a thread, of numbers, of processes
    acting = {"average_weights", "clip_gradients", "closure", "compile", "mixed_precision", "schedule"}
    given = {"freeze", "limits", "torchmetrics", "validation"}  # arguments
    services = {"mlflow", "wandb"}  # each a second and more; their own tests compare the bits
    assert theirs - not_for_these - acting - given - services <= DEFAULT.union(BY_HAND, *RECIPES.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_built_in_plugin_leaves_anything_changed(recipe, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = [argument for name in [*BY_HAND, "debug"] for argument in ("-p", name)]
    assert main([recipe, "--epochs", "2", *chosen, "--run-dir", "run"]) == 0, capsys.readouterr().err


def test_debug_changes_no_bit_of_the_training(trained) -> None:
    plugins = ["history", "best_checkpoint", "console"]
    assert trained([*plugins, "debug"]) == trained(plugins) == trained([])


def test_a_fault_ends_a_run_of_the_command_line_with_a_line_that_names_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import torch\ndef on_epoch_end(): torch.rand(1)\n")
    assert main(["softmax", "--epochs", "2", "-p", "mine.py", "-p", "debug", "-p", "no:plot"]) != 0
    assert (
        "error: plugin 'mine', hook on_epoch_end drew from torch's random generator (epoch 1" in capsys.readouterr().err
    )
