"""The figures of each epoch at Weights & Biases, offline: read from the file that `wandb sync` would send."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from framework_plugins.wandb import Wandb
from wandb.proto.wandb_internal_pb2 import Record

from framework import Trainer, UsageError, run
from framework.testing import tiny_data, tiny_trainer

RECIPE = '''
"""A recipe with knobs."""
from framework import Recipe
from framework.testing import tiny_data, tiny_trainer

def recipe(lr: float = 0.125, hidden: int = 7) -> Recipe:
    """
    Args:
        lr: the rate
        hidden: a number
    """
    tiny = tiny_trainer(lr=lr)
    return Recipe(model=tiny.model, loss=tiny.loss, optimizer=tiny.optimizer, train=tiny_data(), epochs=1)
'''


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()  # it reads the environment once a process


def records(file: Path) -> list[Record]:
    """The file is a log of LevelDB behind seven bytes: blocks of 32 KiB, whose pieces make up the records."""
    data, at, held, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)  # a checksum; whole, first, middle, last
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(held))
            held = b""
    return found


def files(directory: Path) -> list[Path]:
    """The file of each fit, complete: the process of wandb that writes them has ended."""
    wandb.teardown()
    return sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def rows(file: Path) -> list[dict[str, Any]]:
    """The rows as they were logged, without what wandb adds."""
    found = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            found.append({key: json.loads(value) for key, value in items.items() if not key.startswith("_")})
    return found


def steps_of(file: Path) -> list[int]:
    """The Step of W&B of each row."""
    return [r.history.step.num for r in records(file) if r.WhichOneof("record_type") == "history"]


def config(file: Path) -> dict[str, Any]:
    updates = [record.run.config.update for record in records(file) if record.WhichOneof("record_type") == "run"]
    return {item.key: json.loads(item.value_json) for item in updates[0] if item.key != "_wandb"}


def run_of(file: Path) -> Any:
    return next(record.run for record in records(file) if record.WhichOneof("record_type") == "run")


def exit_code(file: Path) -> int:
    return next(int(r.exit.exit_code) for r in records(file) if r.WhichOneof("record_type") == "exit")


def fit(run_dir: Path | None, *plugins: Any, **options: Any) -> Any:
    trainer = tiny_trainer(plugins, run_dir=run_dir)
    return trainer.fit(tiny_data(), tiny_data(seed=1), **{"epochs": 3, "batch_size": 2, "shuffle": False, **options})


def test_every_row_is_sent_over_the_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning #4998, #3228, #2110, #12851: curves cannot be drawn by epoch, and one step stands for two epochs."""
    run_dir = tmp_path / "실험" / "001"
    result = fit(run_dir, Wandb("digits", tags=["baseline"]))
    (file,) = files(run_dir)
    assert rows(file) == result.history
    assert steps_of(file) == [0, 1, 2]
    told = run_of(file)
    assert (told.project, told.display_name, list(told.tags)) == ("digits", "실험/001", ["baseline"])
    assert exit_code(file) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("wandb     ")
    assert captured.err == ""


def test_the_settings_of_the_fit_are_its_config(tmp_path: Path) -> None:
    fit(tmp_path, Wandb(), accumulate=2)
    assert config(files(tmp_path)[0]) == {
        "model": "Linear", "parameters": 4, "optimizer": "SGD", "lr": 0.1, "batch_size": 2, "accumulate": 2,
        "epochs": 3, "device": "cpu",
    }  # fmt: skip


def test_a_recipe_adds_its_knobs_and_the_seed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RECIPE, encoding="utf-8")
    run(tmp_path / "mine.py", seed=5, run_dir=tmp_path / "run", plugins=[Wandb()], lr=0.25)
    told = config(files(tmp_path / "run")[0])
    assert {name: told[name] for name in ("recipe", "seed", "lr", "hidden")} == {
        "recipe": "mine", "seed": 5, "lr": 0.25, "hidden": 7,
    }  # fmt: skip


def test_a_fit_that_failed_ends_as_failed(tmp_path: Path, fails: Any) -> None:
    plugin, failing = Wandb(), fails(epoch=2)
    trainer = tiny_trainer([plugin, failing], run_dir=tmp_path)
    with pytest.raises(RuntimeError, match="the disk fell off"):
        trainer.fit(tiny_data(), epochs=3)
    (first,) = files(tmp_path)
    assert exit_code(first) == 1
    assert [row["epoch"] for row in rows(first)] == [0, 1]
    failing.armed = False
    trainer.fit(tiny_data(), epochs=3)
    second = files(tmp_path)[1]
    assert exit_code(second) == 0
    assert run_of(first).run_id != run_of(second).run_id


@pytest.mark.parametrize("step", [2, 3, 7])
def test_stopped_and_resumed_it_is_one_run_with_the_rows_of_one_that_was_left_alone(tmp_path: Path, step: int) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if split == "train" and trainer.step == step:
                trainer.save()
                trainer.stop("to be resumed")

    alone = fit(None).history
    fit(tmp_path, Wandb(), Stops())
    fit(tmp_path, Wandb(), resume=tmp_path)
    sent = [row for file in files(tmp_path) for row in rows(file)]
    # a stop after the last batch saves first and then ends the epoch, which is sent again: the same row of the same run
    assert [row for number, row in enumerate(sent) if row not in sent[:number]] == alone
    assert len(sent) == len(alone) + (step == 3)
    assert [steps_of(file) for file in files(tmp_path)] == [[row["epoch"] for row in rows(f)] for f in files(tmp_path)]
    assert len({run_of(file).run_id for file in files(tmp_path)}) == 1
    assert len(files(tmp_path)) == 2


def test_a_resumed_fit_asks_for_the_run_that_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stops:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.save()
            trainer.stop("to be resumed")

    asked, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: asked.append(options) or init(**options))
    fit(tmp_path, Wandb(), Stops())
    fit(tmp_path, Wandb(), resume=tmp_path)
    assert [(options.get("id"), options.get("resume")) for options in asked] == [
        (None, None),
        (run_of(files(tmp_path)[0]).run_id, "allow"),
    ]


def test_one_that_comes_with_the_resume_begins_a_run(tmp_path: Path) -> None:
    class Stops:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.save()
            trainer.stop("to be resumed")

    fit(tmp_path, Stops())
    with pytest.warns(UserWarning, match="no state of plugin"):
        fit(tmp_path, Wandb(), resume=tmp_path)
    assert [row["epoch"] for file in files(tmp_path) for row in rows(file)] == [1, 2]


def test_without_a_run_directory_it_sends_all_the_same(tmp_path: Path) -> None:
    result = fit(None, Wandb())
    assert rows(files(tmp_path)[0]) == result.history


def test_two_of_them_are_two_runs(tmp_path: Path) -> None:
    result = fit(tmp_path, Wandb("digits"), Wandb("copy", name="second"))
    assert sorted(run_of(file).project for file in files(tmp_path)) == ["copy", "digits"]
    assert [rows(file) for file in files(tmp_path)] == [result.history] * 2


def test_a_run_that_is_open_already_is_left_alone(tmp_path: Path) -> None:
    mine = wandb.init(project="mine", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off"))
    fit(tmp_path / "fit", Wandb())
    mine.log({"figure": 1})
    mine.finish()
    (file,) = files(tmp_path)
    assert rows(file) == [{"figure": 1}]
    assert len(files(tmp_path / "fit")) == 1


def test_a_sweep_of_wandb_gets_the_figures_in_the_run_that_it_opened(tmp_path: Path) -> None:
    wandb.init(project="mine", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off"))
    result = fit(tmp_path / "fit", Wandb(reinit="return_previous"))
    assert wandb.run is None  # ended with the fit
    assert rows(files(tmp_path)[0]) == result.history
    assert files(tmp_path / "fit") == []


def test_a_hook_may_log_into_its_run_as_well(tmp_path: Path) -> None:
    class Logs:
        def on_epoch_end(self) -> None:
            wandb.log({"mine": 3}, commit=False)

    fit(tmp_path, Wandb(), Logs(), epochs=1)
    assert rows(files(tmp_path)[0])[0]["mine"] == 3


def test_where_nobody_is_logged_in_it_says_so_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoKey:
        Settings = wandb.Settings
        errors = wandb.errors
        run = None

        @staticmethod
        def init(**options: Any) -> Any:
            raise wandb.errors.UsageError("api_key not configured (no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", NoKey)
    trainer = tiny_trainer([Wandb()])
    with pytest.raises(UsageError, match=r"wandb: api_key not configured \(no-tty\) \(wandb login; or mode='offline'"):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_a_missing_package_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    trainer = tiny_trainer([Wandb()])
    with pytest.raises(UsageError, match=r'wandb needs the package wandb: pip install "framework-trainer\[wandb\]"'):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_importing_the_plugin_imports_no_wandb() -> None:
    code = "import sys, framework_plugins.wandb; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_changes_no_bit_of_training(trained: Callable[..., Any], tmp_path: Path) -> None:
    assert trained([Wandb()], tmp_path) == trained([])
