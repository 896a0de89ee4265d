"""The watchdog: what it says of a fit that stands still, when it says it, and that a fit pays nothing for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from framework_plugins.watchdog import Watchdog
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from framework import Trainer, UsageError, hookimpl
from framework.cli import main
from framework.testing import tiny_data, tiny_trainer


class Rows(Dataset[Any]):
    """Six samples; in that of row 4 it calls `hangs`."""

    def __init__(self, hangs: Callable[[], Any] = lambda: None) -> None:
        self.hangs = hangs

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> Any:
        if row == 4:
            self.hangs()
        return torch.ones(3), torch.ones(1)


@pytest.fixture
def dog() -> Iterator[Watchdog]:
    """One that looks only when a test does: its own thread waits for minutes first."""
    made = Watchdog(seconds=6000)
    yield made
    made.on_teardown()


def stands(dog: Watchdog, seconds: float = 6000.0) -> Callable[..., None]:
    """Nothing moves for so long: two looks from one place."""

    def still(*_: Any) -> None:
        for now in (0.0, seconds):
            dog.look(now)

    return still


def line(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("watchdog: "))


# -------------------------------------------------------------------------------------------------------- where it is


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_data_set_that_hangs_is_told_with_its_method_and_place(
    dog: Watchdog, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    tiny_trainer([dog]).fit(Rows(stands(dog)), batch_size=batch_size)
    said = line(capsys.readouterr().err)
    assert said.startswith("watchdog: no batch for 6000 s: the data set is at Rows.__getitem__ (")
    assert said.endswith(f"{Path(__file__).name}:{Rows.__getitem__.__code__.co_firstlineno + 2})")


def test_a_stream_that_hangs_is_told(dog: Watchdog, capsys: pytest.CaptureFixture[str]) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(this) -> Iterator[Any]:
            stands(dog)()
            yield torch.ones(3), torch.ones(1)

    tiny_trainer([dog]).fit(Stream(), batch_size=1)
    assert "no batch for 6000 s: the data set is at Stream.__iter__ (" in line(capsys.readouterr().err)


@pytest.mark.parametrize("hook", ["on_epoch_start", "on_batch_end", "on_epoch_end", "on_fit_end"])
@pytest.mark.parametrize("wrapper", [False, True])
def test_a_plugin_that_hangs_is_told_with_its_hook(
    dog: Watchdog, capsys: pytest.CaptureFixture[str], hook: str, wrapper: bool
) -> None:
    def helper() -> None:
        stands(dog)()

    def tell(self: Any) -> None:
        helper()

    def wrap(self: Any) -> Iterator[None]:
        helper()
        return (yield)

    function: Any = hookimpl(wrapper=True)(wrap) if wrapper else tell
    function.__code__ = function.__code__.replace(co_name=hook)
    slow = type("Slow", (), {hook: function, "name": "slow"})()
    tiny_trainer([dog, slow]).fit(tiny_data())
    assert line(capsys.readouterr().err).startswith(f"watchdog: plugin 'slow' has been in {hook} for 6000 s, at ")


def test_a_hook_of_a_module_is_told_but_not_its_other_functions(
    dog: Watchdog, capsys: pytest.CaptureFixture[str]
) -> None:
    module: Any = ModuleType("lab")
    exec(
        "def on_epoch_end():\n    still()\n\ndef loss(output, y):\n    still()\n    return output.mean()", vars(module)
    )
    module.still = stands(dog)
    tiny_trainer([dog, module]).fit(tiny_data())
    assert line(capsys.readouterr().err).startswith("watchdog: plugin 'lab' has been in on_epoch_end for 6000 s, at ")
    module.on_epoch_end.__code__ = (lambda: None).__code__
    trainer = tiny_trainer([dog, module])
    trainer.loss = module.loss
    trainer.fit(tiny_data())
    assert line(capsys.readouterr().err).startswith("watchdog: no step for 6000 s: it is in ")


def test_a_data_set_that_a_plugin_asks_is_told_as_the_plugin(dog: Watchdog, capsys: pytest.CaptureFixture[str]) -> None:
    class Asks:
        def on_epoch_end(self) -> None:
            Rows(stands(dog))[4]

    tiny_trainer([dog, Asks()]).fit(tiny_data())
    assert line(capsys.readouterr().err).startswith("watchdog: plugin 'asks' has been in on_epoch_end for 6000 s")


def test_a_model_that_hangs_is_told_with_its_place(dog: Watchdog, capsys: pytest.CaptureFixture[str]) -> None:
    class Net(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            stands(dog)()
            return super().forward(x)

    model = Net(3, 1)
    Trainer(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), [dog], "cpu").fit(tiny_data())
    assert line(capsys.readouterr().err).startswith("watchdog: no step for 6000 s: it is in ")


def test_a_loader_that_waits_for_its_workers_is_told(dog: Watchdog, capsys: pytest.CaptureFixture[str]) -> None:
    class Waits(DataLoader[Any]):
        def __iter__(self) -> Any:
            space: dict[str, Any] = {"__name__": "torch.utils.data.dataloader", "still": stands(dog)}
            exec("def wait():\n    still()", space)
            space["wait"]()
            return super().__iter__()

    tiny_trainer([dog]).fit(Waits(Rows(), batch_size=2))
    said = line(capsys.readouterr().err)
    assert said == (
        "watchdog: no batch for 6000 s: the DataLoader waits for its workers; num_workers=0 shows what they do"
    )


# ------------------------------------------------------------------------------------------------------- when it tells


def test_it_tells_once_a_stall_and_again_of_the_next_one(dog: Watchdog, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow:
        def on_epoch_end(self) -> None:
            for now in (0.0, 3000.0, 5999.0):
                dog.look(now)
            assert capsys.readouterr().err == ""
            for now in (6000.0, 9000.0, 60000.0):
                dog.look(now)
            told.append(capsys.readouterr().err.count("watchdog: plugin 'slow' has been in on_epoch_end"))

    told: list[int] = []
    tiny_trainer([dog, Slow()]).fit(tiny_data(), epochs=3)
    assert told == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "hooks"),
    [
        ({"batch_size": 1}, ["on_batch_start"]),
        ({"epochs": 9}, ["on_batch_start"]),
        ({"batch_size": 1, "accumulate": 9}, ["on_batch_start", "on_batch_end"]),
        ({"val": DataLoader(torch.utils.data.TensorDataset(*tiny_data(9)), batch_size=1)}, ["on_batch_start"]),
    ],
)
def test_a_fit_that_moves_is_not_told_however_slow_it_is(
    dog: Watchdog, capsys: pytest.CaptureFixture[str], options: dict[str, Any], hooks: list[str]
) -> None:
    clock = count(0, 6001)
    slow = SimpleNamespace(name="slow", **dict.fromkeys(hooks, lambda: dog.look(next(clock))))
    tiny_trainer([dog, slow]).fit(tiny_data(), **options)
    assert capsys.readouterr().err == ""


def test_the_time_without_progress_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    dog = Watchdog(seconds=7000)
    tiny_trainer([dog]).fit(Rows(stands(dog, 6999)), batch_size=2)
    assert capsys.readouterr().err == ""
    tiny_trainer([dog]).fit(Rows(stands(dog, 7000)), batch_size=2)
    assert "no batch for 7000 s" in capsys.readouterr().err
    assert Watchdog().seconds == 60
    for wrong in (0, -1, float("nan")):
        with pytest.raises(UsageError, match="watchdog: seconds must be more than 0, got "):
            Watchdog(seconds=wrong)


# ----------------------------------------------------------------------------------------------------------- the stacks


def test_the_stacks_of_all_threads_go_into_the_run_directory(
    dog: Watchdog, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait, name="another thread")
    other.start()
    try:
        tiny_trainer([dog], run_dir=tmp_path).fit(Rows(stands(dog)), batch_size=2, epochs=2)
    finally:
        done.set()
    said = capsys.readouterr().err
    log = (tmp_path / "watchdog.log").read_text(encoding="utf-8")
    assert len(said.splitlines()) == log.count("watchdog: no batch") == 2
    assert said.splitlines()[0] in log
    for part in ("thread MainThread:", "thread another thread:", "in __getitem__", "self.hangs()"):
        assert part in log


def test_without_a_run_directory_they_go_to_stderr(dog: Watchdog, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_trainer([dog]).fit(Rows(stands(dog)), batch_size=2)
    said = capsys.readouterr().err
    assert "thread MainThread:" in said
    assert "self.hangs()" in said


def test_a_disk_that_cannot_be_written_does_not_end_the_watch(
    dog: Watchdog, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "watchdog.log").mkdir()
    tiny_trainer([dog], run_dir=tmp_path).fit(Rows(stands(dog)), batch_size=2)
    said = capsys.readouterr().err
    assert "self.hangs()" in said
    assert "watchdog: cannot write watchdog.log: " in said


# ------------------------------------------------------------------------------------------------------- as a plugin


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "watchdog"]


def test_its_thread_sees_a_fit_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    told, written = threading.Event(), list[str]()

    def write(text: str) -> int:
        written.append(text)
        if "no batch for" in text:
            told.set()
        return len(text)

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=write, flush=lambda: None))
    tiny_trainer([Watchdog(seconds=0.01)]).fit(Rows(lambda: told.wait(60)), batch_size=2, shuffle=False)
    assert told.is_set()
    assert "the data set is at Rows.__getitem__ (" in line("".join(written))


def test_its_thread_ends_with_the_fit(dog: Watchdog) -> None:
    class Counts:
        def on_epoch_start(self) -> None:
            assert len(threads()) == 1
            assert threads()[0].daemon

    tiny_trainer([dog, Counts()]).fit(tiny_data())
    for thread in threads():
        thread.join(60)
    assert threads() == []
    with pytest.raises(UsageError):
        tiny_trainer([dog]).fit("nothing")  # it is told of the end, and was never told of the start


def test_a_step_of_training_does_not_know_of_it(dog: Watchdog) -> None:
    hooks = tiny_trainer([dog]).plugins.frozen("train")
    assert hooks.on_batch_start is hooks.on_batch_end is hooks.on_gradients is None
    assert hooks.forward is hooks.backward is hooks.optimizer_step is None


def test_it_changes_no_bit(dog: Watchdog, trained: Callable[..., Any]) -> None:
    assert trained([dog]) == trained([])


def test_it_is_there_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["softmax", "--epochs", "2", "-q", "-p", "watchdog", "-p", "no:plot", "--run-dir", "run"]) == 0
    assert not (tmp_path / "run" / "watchdog.log").exists()
