"""compile: the same bits with a backend that only traces, own names in checkpoints, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from framework_plugins.compile import Compile
from framework_plugins.freeze import Freeze
from framework_plugins.mixed_precision import MixedPrecision
from torch import nn

from framework import Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer

X = torch.randn(14, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(14) % 3


def fitted(plugins: Any, run_dir: Path | None = None, **options: Any) -> tuple[Trainer, Any]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, plugins, "cpu", run_dir)
    return trainer, trainer.fit((X, Y), (X[:5], Y[:5]), **{"epochs": 3, "batch_size": 3, **options})


def counting(calls: list[int]) -> Any:
    """A backend that runs what it is given, and notes each graph."""

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(len(inputs))
        return graph.forward

    return backend


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_with_a_backend_that_only_traces_the_bits_are_the_same(oracle: Any, backend: str) -> None:
    alone, compiled = fitted([]), fitted([Compile(backend=backend)])
    oracle.assert_same(alone[1].history, compiled[1].history)
    states = (oracle.state(trainer.model, trainer.optimizer) for trainer, _ in (alone, compiled))
    oracle.assert_same(*states)
    oracle.assert_same(alone[0].predict(X), compiled[0].predict(X))
    oracle.assert_same(alone[0].evaluate((X, Y)), compiled[0].evaluate((X, Y)))


def test_it_is_what_the_backend_made_that_runs() -> None:
    calls: list[int] = []
    trainer, _ = fitted([Compile(backend=counting(calls))])
    assert len(calls) > 1
    assert isinstance(trainer.prepared, nn.Module)
    assert trainer.prepared is not trainer.model


def test_a_checkpoint_has_the_names_of_the_model_and_is_resumed_without_it(oracle: Any, tmp_path: Path) -> None:
    class StopAt:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 8:
                trainer.save()
                trainer.stop("to be resumed")

    alone, whole = fitted([Compile(backend="aot_eager")])
    assert next(iter(alone.model.state_dict())) == "0.weight"
    for name, plugins in (("with", [Compile(backend="aot_eager")]), ("without", [])):
        fitted([Compile(backend="aot_eager"), StopAt()], tmp_path / name)
        resumed, result = fitted(plugins, tmp_path / name, resume=tmp_path / name)
        oracle.assert_same(whole.history, result.history)
        oracle.assert_same(oracle.state(alone.model, alone.optimizer), oracle.state(resumed.model, resumed.optimizer))


def test_frozen_modules_keep_their_mode_through_a_resume(oracle: Any, tmp_path: Path) -> None:
    class StopAt:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 8:
                trainer.save()
                trainer.stop("to be resumed")

    def plugins() -> list[Any]:
        return [Compile(backend="eager"), Freeze(["1"])]

    alone, whole = fitted([Freeze(["1"])])
    fitted([*plugins(), StopAt()], tmp_path)
    resumed, result = fitted(plugins(), tmp_path, resume=tmp_path)
    oracle.assert_same(whole.history, result.history)
    oracle.assert_same(dict(alone.model.state_dict()), dict(resumed.model.state_dict()))


def test_each_of_many_fits_of_one_process_runs_what_the_backend_made() -> None:
    """Torch keeps eight kernels of one function; all models of nn.Sequential share it, as the trials of a sweep do."""
    counts = []
    for _ in range(4):
        calls: list[int] = []
        fitted([Compile(backend=counting(calls))])
        counts.append(len(calls))
    assert counts == [counts[0]] * 4
    assert counts[0] > 1


def test_it_goes_with_mixed_precision(oracle: Any) -> None:
    plain, compiled = (fitted([*more, MixedPrecision("bf16")])[1] for more in ([], [Compile(backend="eager")]))
    oracle.assert_same(plain.history, compiled.history)


def test_one_instance_can_run_two_fits(oracle: Any) -> None:
    plugin = Compile(backend="eager")
    oracle.assert_same(fitted([plugin])[1].history, fitted([plugin])[1].history)


def test_inductor_learns_what_is_learnt_without_it() -> None:
    """The one test that calls a C++ compiler; some machines have none, and are told so."""
    data = tiny_data(8)
    plain, compiled = tiny_trainer(), tiny_trainer([Compile()])
    try:
        history = compiled.fit(data, epochs=5).history
    except UsageError as error:
        pytest.skip(str(error))
    losses = [row["train_loss"] for row in history]
    assert losses == pytest.approx([row["train_loss"] for row in plain.fit(data, epochs=5).history], rel=1e-5)


def broken(graph: Any, inputs: Any) -> Any:
    raise OSError("no C++ compiler is here")


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (Compile(backend="inducter"), r"the backend 'inducter' does not work here: .*Backends: .*inductor"),
        (Compile(backend=broken), "does not work here: .*no C.. compiler is here"),
        (Compile(mode="fastest"), "Unrecognized mode=fastest, should be one of: default, .*reduce-overhead"),
    ],
    ids=["unknown backend", "no compiler", "unknown mode"],
)
def test_what_cannot_compile_is_refused_before_the_first_step(plugin: Compile, said: str) -> None:
    trainer = tiny_trainer([plugin])
    with pytest.raises(UsageError, match=said):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_a_model_that_the_user_has_compiled_is_refused() -> None:
    model: Any = torch.compile(nn.Linear(3, 1), backend="eager")
    trainer = Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters()), [Compile(backend="eager")], "cpu")
    with pytest.raises(UsageError, match="compile: the model is compiled already: give the Trainer the model itself"):
        trainer.fit(tiny_data())


def test_a_model_is_compiled_once() -> None:
    trainer = tiny_trainer([Compile(backend="eager"), Compile(backend="eager", name="again")])
    with pytest.raises(UsageError, match="a model is compiled once: list one of compile and again"):
        trainer.fit(tiny_data())
    with pytest.raises(UsageError, match="fast='math' compiles the model already: leave out it or the plugin compile"):
        tiny_trainer([Compile(backend="eager")]).fit(tiny_data(), fast="math")
