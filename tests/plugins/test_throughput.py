"""How fast a fit is, and what holds it up: with a clock that stands still until a fit moves it.

A real operator takes some microseconds, so where the clock moves by seconds nothing was computed, and where it moves by
nanoseconds everything was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import framework_plugins.throughput as module
import pytest
import torch
from framework_plugins.throughput import Throughput
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from framework import Trainer, UsageError, hookimpl
from framework.testing import tiny_data, tiny_trainer

NANO = 1e-9


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


class Data(Dataset[tuple[Tensor, Tensor]]):
    """Samples each of which takes so many seconds."""

    def __init__(self, now: SimpleNamespace, seconds: float, samples: int = 12) -> None:
        self.now, self.seconds, self.samples = now, seconds, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.now.seconds += self.seconds
        return torch.ones(3), torch.ones(1)


class Model(nn.Module):
    """A linear model whose forward pass takes so many seconds."""

    def __init__(self, now: SimpleNamespace, seconds: float) -> None:
        super().__init__()
        self.linear, self.now, self.seconds = nn.Linear(3, 1), now, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.now.seconds += self.seconds
        return self.linear(x)  # type: ignore[no-any-return]


def fitted(now: SimpleNamespace, data: float, model: float, *plugins: Any, **options: Any) -> Any:
    """The result of twelve samples, two to a batch, where a sample and a forward pass take that long."""
    made = Model(now, model)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    trainer = Trainer(made, nn.functional.mse_loss, optimizer, plugins or [Throughput()], device="cpu")
    return trainer.fit(Data(now, data), **{"epochs": 3, "batch_size": 2, "shuffle": False, **options})


def verdict(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().out.strip()
    assert line.isascii()
    shares = [int(share) for share in re.findall(r"(\d+) %", line)]
    assert sum(shares) == 100 * bool(shares)
    return str(line)


def test_it_tells_that_a_fit_waits_for_its_data(now: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    result = fitted(now, data=4.0, model=2.0)
    assert [row["samples_per_second"] for row in result.history] == [0.2] * 3
    assert verdict(capsys) == (
        "throughput 0.2 samples/s; waiting for data 80 %, computing 0 %, Python 20 %: the data is what holds it up; "
        "try num_workers=2, or cache=True if each sample is always the same"
    )


def test_it_tells_that_a_fit_waits_for_python(now: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(now, data=0.5, model=9.0)
    assert verdict(capsys) == (
        "throughput 0.2 samples/s; waiting for data 10 %, computing 0 %, Python 90 %: Python is what holds it up; "
        "try a larger batch_size, so that each call has more to compute"
    )


def test_it_tells_that_a_fit_computes(now: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(now, data=NANO, model=18 * NANO)
    assert "waiting for data 10 %, computing 90 %, Python 0 %: computing is what holds it up; " in verdict(capsys)


def test_where_nothing_takes_half_of_the_time_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert module._shares(4.0, 6.0, 3.0, "cpu") == {"waiting for data": 40, "computing": 30, "Python": 30}
    trainer = tiny_trainer()
    trainer.fit(tiny_data())
    assert module._verdict(4.0, 6.0, 3.0, trainer).endswith("Python 30 %: none of the three alone holds it up")


@pytest.mark.parametrize(
    ("waiting", "inside", "computing", "expected"),
    [
        (5.0, 1.0, 6.0, [0, 100, 0]),  # the data is fetched while the device is at work
        (10.0, 1.0, 2.2, [73, 20, 7]),  # it idles until the next batch is there
        (0.0, 10.0, 2.0, [0, 20, 80]),  # it idles between the calls of one step
        (0.5, 9.5, 9.9, [0, 99, 1]),  # the program waits for it
    ],
)
def test_a_gpu_that_is_at_work_is_not_waited_for_by_anyone_else(
    waiting: float, inside: float, computing: float, expected: list[int]
) -> None:
    assert list(module._shares(waiting, inside, computing, "cuda").values()) == expected


def test_computing_is_the_time_of_operators_beyond_that_of_calling_them() -> None:
    def event(name: str, on_cpu: float, on_device: float = 0.0, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, self_cpu_time_total=on_cpu, self_device_time_total=on_device, is_user_annotation=annotation
        )

    of_cpu = [event("aten::mm", 105.0), event("aten::t", 2.0), event("Optimizer.step#SGD.step", 300.0)]
    assert module._seconds(of_cpu) == pytest.approx(100e-6)
    of_gpu = [event("ampere_sgemm", 0.0, 70.0), event("Memcpy HtoD", 0.0, 10.0), event("mine", 0.0, 99.0, True)]
    assert module._seconds(of_gpu) == pytest.approx(80e-6)


def test_what_is_asked_for_before_a_batch_of_a_window_is_all_waiting(
    now: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(now, 4.0, 2.0, accumulate=3)
    assert "waiting for data 80 %, computing 0 %, Python 20 %" in verdict(capsys)


def test_validation_is_not_part_of_it(now: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(now, 4.0, 2.0, val=Data(now, 100.0))
    assert "throughput 0.2 samples/s; waiting for data 80 %" in verdict(capsys)


def test_writing_a_checkpoint_is_no_waiting_for_data(
    now: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Saves:
        def on_batch_end(self, trainer: Trainer) -> None:
            trainer.save()

        def on_checkpoint(self) -> None:
            now.seconds += 100.0

    made = Model(now, 2.0)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
    plugins = [Saves(), Throughput()]
    Trainer(made, nn.functional.mse_loss, optimizer, plugins, device="cpu", run_dir=tmp_path).fit(
        Data(now, 4.0), epochs=2, batch_size=2, shuffle=False
    )
    assert "throughput 0.2 samples/s; waiting for data 80 %" in verdict(capsys)


def test_what_a_plugin_does_in_a_step_is_python(now: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    class Thinks:
        def on_batch_end(self) -> None:
            now.seconds += 10.0

    fitted(now, 4.0, 2.0, Thinks(), Throughput())
    assert "waiting for data 40 %, computing 0 %, Python 60 %" in verdict(capsys)


def test_what_the_first_step_sets_up_is_no_share_of_the_others(
    now: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    class Compiles:
        def on_batch_end(self, trainer: Trainer) -> None:
            now.seconds += 1000.0 * (trainer.step == 1)

    result = fitted(now, 4.0, 2.0, Compiles(), Throughput())
    assert [row["samples_per_second"] for row in result.history] == [12 / 1060, 0.2, 0.2]
    assert "waiting for data 80 %, computing 0 %, Python 20 %" in verdict(capsys)


def test_a_fit_of_two_batches_is_too_short_for_a_verdict(
    now: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted(now, 4.0, 2.0, epochs=1, batch_size=6)
    assert verdict(capsys) == "throughput 0.231 samples/s; too few batches to tell what holds it up"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("workers", "advice"),
    [
        (0, "; try num_workers=2, or cache=True if each sample is always the same"),
        (3, "; try num_workers=6, or cache="),
    ],
)
def test_the_advice_goes_beyond_the_workers_that_there_are(now: SimpleNamespace, workers: int, advice: str) -> None:
    trainer = tiny_trainer()
    trainer.loaders["train"] = DataLoader(Data(now, 1.0), num_workers=workers)
    assert advice in module._verdict(9.0, 1.0, 0.0, trainer)


def test_no_workers_are_advised_where_they_would_do_nothing(now: SimpleNamespace) -> None:
    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield tiny_data()

    class Loads:
        def make_loader(self) -> Batches:
            return Batches()

    for plugins, options in (([], {"batch_size": 2}), ([Loads()], {}), ([], {})):
        trainer = tiny_trainer(plugins)
        trainer.fit(tiny_data(), **options)  # type: ignore[arg-type]
        assert module._verdict(9.0, 1.0, 0.0, trainer).endswith(": the data is what holds it up")


def test_no_larger_batch_is_advised_where_all_is_in_one() -> None:
    trainer = tiny_trainer()
    trainer.fit(tiny_data(), batch_size=None)
    assert module._verdict(0.0, 1.0, 0.0, trainer).endswith("Python 100 %: Python is what holds it up")


def test_stopped_and_resumed_it_tells_of_the_whole(
    now: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 8:  # the second batch of the second epoch
                trainer.save()
                trainer.stop("to be resumed")

    def fit(run_dir: Path, *plugins: Any, resume: Path | None = None) -> list[dict[str, Any]]:
        torch.manual_seed(0)
        made = Model(now, 2.0)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.01)
        trainer = Trainer(made, nn.functional.mse_loss, optimizer, [*plugins, Throughput()], "cpu", run_dir)
        return trainer.fit(Data(now, 4.0), epochs=3, batch_size=2, resume=resume).history

    alone = fit(tmp_path / "alone")
    whole = verdict(capsys)
    fit(tmp_path / "stopped", Stops())
    verdict(capsys)
    now.seconds += 1e6  # it lay for a while
    assert fit(tmp_path / "stopped", resume=tmp_path / "stopped") == alone
    assert verdict(capsys) == whole


def test_a_second_fit_counts_anew(now: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = Throughput()
    for seconds in (4.0, 400.0):
        fitted(now, seconds, 2.0, plugin)
        assert f"throughput {2 / (2 * seconds + 2):.3g} samples/s" in verdict(capsys)


def test_samples_of_all_processes_are_added(now: SimpleNamespace) -> None:
    """Trainer.sum adds over processes; here a trainer that stands for two with as many samples."""

    class Two(Trainer):
        def sum(self, value: Tensor) -> Tensor:
            return super().sum(value) * 2

    made = Model(now, 2.0)
    trainer = Two(made, nn.functional.mse_loss, torch.optim.SGD(made.parameters()), [Throughput()], device="cpu")
    assert trainer.fit(Data(now, 4.0), epochs=1, batch_size=2).history[0]["samples_per_second"] == 0.4


def test_rows_that_are_padding_do_not_count(now: SimpleNamespace) -> None:
    class Pads:
        def on_batch_start(self, trainer: Trainer) -> None:
            trainer.samples = 1

    assert fitted(now, 4.0, 2.0, Pads(), Throughput()).history[0]["samples_per_second"] == 0.1


def test_operators_are_looked_into_for_eight_batches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    class Looks:
        def on_batch_end(self, trainer: Trainer) -> None:
            looked.extend([trainer.step] * plugin.profiling)

    plugin = Throughput()
    tiny_trainer([Looks(), plugin]).fit(tiny_data(), epochs=500)
    assert tuple(looked) == module.LOOKED_INTO
    assert len(plugin.state_dict()["computing"]) == 8


def test_no_profiler_listens_after_an_error_inside_of_a_batch_that_is_looked_into() -> None:
    class Fails:
        @hookimpl(split="train")
        def compute_loss(self, trainer: Trainer, output: Tensor) -> Any:
            if trainer.step == 2:
                raise RuntimeError("the third batch")
            return output.mean()

    plugin = Throughput()
    with pytest.raises(RuntimeError, match="the third batch"):
        tiny_trainer([Fails(), plugin]).fit(tiny_data(), epochs=9)
    assert not plugin.profiling
    with torch.profiler.profile() as profiler:
        torch.ones(3).sum()
    assert profiler.events()


def test_two_of_them_are_an_error() -> None:
    trainer = tiny_trainer([Throughput(), Throughput(name="second")])
    with pytest.raises(UsageError, match="the metric 'samples_per_second' is there already"):
        trainer.fit(tiny_data(), epochs=2)


def test_it_changes_no_bit_of_training(trained: Callable[..., Any]) -> None:
    assert trained([Throughput()]) == trained([])


def test_batches_come_from_memory_all_the_same() -> None:
    trainer = tiny_trainer([Throughput()])
    trainer.fit(tiny_data(), epochs=3, batch_size=2)
    assert trainer.engine.told()["train"] == "from memory"


def test_the_hooks_of_each_batch_compute_nothing(operations: Any) -> None:
    counting = operations()
    tiny_trainer([counting, Throughput()]).fit(tiny_data(), epochs=2)  # before the first batch that is looked into
    assert not counting.counts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_large_products_are_what_holds_it_up(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    trainer = Trainer(model, nn.functional.mse_loss, optimizer, [Throughput()], device="cuda")
    trainer.fit((torch.randn(8192, 4096), torch.randn(8192, 4096)), epochs=5, batch_size=2048)
    assert "cuda" in verdict(capsys).rpartition(":")[2]
