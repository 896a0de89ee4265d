"""A few steps of a fit under torch's profiler: which steps, the table, the trace, and nothing else is changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import framework_plugins.profile as module
import pytest
import torch
from framework_plugins.profile import Profile
from framework_plugins.throughput import Throughput
from torch import nn

from framework import Trainer, UsageError
from framework.testing import tiny_data, tiny_trainer

HEADER = re.compile(
    r"profile   (\d+) steps?, \d+\.\d\d ms each: data (\d+) %, forward (\d+) %, backward (\d+) %, optimizer (\d+) %, "
    r"Python (\d+) %"
)


class Watched:
    """The steps in whose batches the profiler of a plugin listens."""

    def __init__(self, plugin: Any) -> None:
        self.plugin, self.steps = plugin, list[int]()

    def on_batch_start(self, trainer: Trainer, split: str) -> None:
        if self.plugin.profiling and split == "train":
            self.steps.append(trainer.step + 1)


def fitted(plugin: Any, run_dir: Path | None = None, **options: Any) -> list[int]:
    watched = Watched(plugin)
    tiny_trainer([watched, plugin], run_dir=run_dir).fit(tiny_data(), **{"epochs": 10, "batch_size": 2, **options})
    return watched.steps


def test_it_watches_the_steps_that_it_is_asked_for_after_one_to_warm_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert fitted(Profile(wait=4, active=3)) == [5, 6, 7, 8]
    lines = capsys.readouterr().out.splitlines()
    assert (found := HEADER.fullmatch(lines[0]))
    assert found[1] == "3"
    assert 98 <= sum(map(int, found.groups()[1:])) <= 102  # rounded one by one


def test_without_a_wait_it_begins_with_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert fitted(Profile(wait=0, active=1)) == [1, 2]
    assert capsys.readouterr().out.startswith("profile   1 step, ")


def test_the_table_has_the_operators_of_a_hand_written_step(capsys: pytest.CaptureFixture[str]) -> None:
    fitted(Profile(active=2, rows=100), batch_size=None)
    calls = {line.split()[0]: int(line.split()[-4]) for line in capsys.readouterr().out.splitlines()[2:]}
    model = nn.Linear(3, 1)
    with torch.profiler.profile() as profiler:
        for _ in range(2):
            nn.functional.mse_loss(model(tiny_data()[0]), tiny_data()[1]).backward()
    by_hand = {average.key: average.count for average in profiler.key_averages()}
    for name in ("aten::addmm", "aten::mse_loss", "aten::mse_loss_backward", "aten::mm"):
        assert calls[name] == by_hand[name]
    assert calls["Optimizer.step#SGD.step"] == 2


def test_the_operators_that_took_longest_come_first_and_no_more_than_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fitted(Profile(rows=4))
    table = capsys.readouterr().out.splitlines()[2:]
    times = [float(line.split()[-3]) for line in table]
    assert len(times) == 4
    assert times == sorted(times, reverse=True)


def test_a_phase_is_told_by_the_outermost_range() -> None:
    def event(name: str, time: float, parent: Any = None) -> SimpleNamespace:
        return SimpleNamespace(name=name, cpu_time_total=time, cpu_parent=parent)

    step = event("ProfilerStep#7", 100.0)
    data = event("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 40.0, step)
    backward = event("autograd::engine::evaluate_function: AddmmBackward0", 20.0)  # on a GPU in a thread of its own
    events = [
        step, data, event("aten::stack", 30.0, data), event("aten::linear", 10.0, step), backward,
        event("aten::mm", 15.0, backward), event("Optimizer.zero_grad#SGD.zero_grad", 2.0, step),
        event("Optimizer.step#SGD.step", 3.0, step),
    ]  # fmt: skip
    shares = {name: round(share, 9) for name, share in module._phases(events, 100.0).items()}
    assert shares == {"data": 0.4, "forward": 0.1, "backward": 0.2, "optimizer": 0.05, "Python": 0.25}


def test_the_trace_has_every_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "실험 하나"
    fitted(Profile(active=2), run_dir)
    trace = json.loads((run_dir / "trace.json").read_text(encoding="utf-8"))
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("aten::addmm") == 2
    assert names.count("Optimizer.step#SGD.step") == 2
    assert f"profile   {run_dir / 'trace.json'} has each call" in capsys.readouterr().out


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fitted(Profile())
    assert list(tmp_path.iterdir()) == []


def test_a_fit_that_ends_earlier_tells_of_the_steps_that_there_were(capsys: pytest.CaptureFixture[str]) -> None:
    fitted(Profile(wait=3, active=50), epochs=2)  # six batches: the fourth to warm up
    assert capsys.readouterr().out.startswith("profile   2 steps, ")


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_fit_that_ends_before_says_so(capsys: pytest.CaptureFixture[str], epochs: int) -> None:
    fitted(Profile(wait=5), epochs=epochs)
    assert capsys.readouterr().out == (
        "profile   nothing: the fit ended before step 7 of it, the first to be watched\n"
    )


def test_a_resumed_fit_is_profiled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 14:
                trainer.save()
                trainer.stop("to be resumed")

    first, second = Profile(wait=1, active=2), Profile(wait=1, active=2)
    tiny_trainer([Stops(), first], run_dir=tmp_path).fit(tiny_data(), epochs=10, batch_size=2)
    (tmp_path / "trace.json").unlink()
    capsys.readouterr()
    assert fitted(second, resume=tmp_path) == [16, 17, 18]
    assert capsys.readouterr().out.startswith("profile   2 steps, ")
    assert (tmp_path / "trace.json").is_file()


@pytest.mark.parametrize("batch", [6, 7], ids=["while it warms up", "while it listens"])
def test_no_profiler_listens_after_an_error(fails: Any, capsys: pytest.CaptureFixture[str], batch: int) -> None:
    plugin = Profile(wait=5)
    trainer = tiny_trainer([fails(epoch=0, batch=batch), plugin])
    with pytest.raises(RuntimeError, match="the disk fell off"):
        trainer.fit(tiny_data(9), batch_size=1)
    assert capsys.readouterr().out == ""
    assert not plugin.profiling
    with torch.profiler.profile() as profiler:
        torch.ones(3).sum()
    assert profiler.events()


def test_it_waits_for_the_profilers_of_other_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    """Throughput looks into the third batch; the second of the two profiles begins when the first has ended."""
    first, second = Profile(wait=2, active=1, name="first"), Profile(wait=2, active=1, name="second")
    watched = [Watched(first), Watched(second)]
    plugins = [first, second, Throughput()]

    class Both:
        def on_batch_start(self, trainer: Trainer, split: str) -> None:
            for one in watched:
                one.on_batch_start(trainer, split)

    tiny_trainer([Both(), *plugins]).fit(tiny_data(), epochs=4, batch_size=2)
    assert watched[0].steps == [3, 4]
    assert watched[1].steps == [5, 6]
    said = capsys.readouterr().out
    assert len(HEADER.findall(said)) == 2
    assert "throughput " in said


def test_two_traces_have_two_names(tmp_path: Path) -> None:
    plugins = [Profile(active=1), Profile(wait=9, active=1, name="later")]
    tiny_trainer(plugins, run_dir=tmp_path).fit(tiny_data(), epochs=10, batch_size=2)
    assert {path.name for path in tmp_path.glob("*.json")} == {"trace.json", "later.json"}


@pytest.mark.parametrize(
    ("setting", "least"), [({"wait": -1}, 0), ({"active": 0}, 1), ({"rows": 0}, 1), ({"rows": 2.0}, 1)], ids=str
)
def test_settings_are_whole_numbers(setting: dict[str, Any], least: int) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(UsageError, match=rf"{name} must be a whole number from {least} up, got {value}"):
        Profile(**setting)


def test_it_changes_no_bit_of_training(trained: Callable[..., Any], tmp_path: Path) -> None:
    assert trained([Profile()], tmp_path) == trained([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_kernels_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(512, 512)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Profile()], device="cuda")
    trainer.fit((torch.randn(512, 512), torch.randn(512, 512)), epochs=9, batch_size=128)
    assert HEADER.match(capsys.readouterr().out)
