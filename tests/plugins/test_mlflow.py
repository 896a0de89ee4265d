"""The figures of each epoch in MLflow, read back from a database with MLflow's own client."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from framework_plugins.mlflow import Mlflow
from mlflow import MlflowClient

from framework import CheckpointError, Trainer, UsageError, run
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


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database takes MLflow a second."""
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    tiny_trainer([Mlflow(f"sqlite:///{file.as_posix()}", "another")]).fit(tiny_data())
    return file


@pytest.fixture
def store(made_once: Path, tmp_path: Path) -> str:
    folder = tmp_path / "실험 기록"
    folder.mkdir()
    return f"sqlite:///{shutil.copy(made_once, folder / 'mlflow.db').as_posix()}"


def runs(store: str, experiment: str = "framework") -> list[Any]:
    """The runs of an experiment in the order in which they began."""
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    return sorted(client.search_runs([found.experiment_id]), key=lambda run: run.info.start_time) if found else []


def curves(store: str) -> dict[str, list[tuple[int, float]]]:
    (only,) = runs(store)
    client = MlflowClient(store)
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(only.info.run_id, name)]
        for name in only.data.metrics
    }


def as_logged(history: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(row["epoch"], row[name]) for row in history] for name in history[0] if name != "epoch"}


def fit(run_dir: Path | None, *plugins: Any, **options: Any) -> Any:
    trainer = tiny_trainer(plugins, run_dir=run_dir)
    return trainer.fit(tiny_data(), tiny_data(seed=1), **{"epochs": 3, "batch_size": 2, "shuffle": False, **options})


def test_every_figure_of_each_epoch_is_a_metric_over_the_epochs(tmp_path: Path, store: str) -> None:
    """Lightning #4998, #3228, #2110, #12851: curves cannot be drawn by epoch, and one step stands for two epochs."""
    result = fit(tmp_path / "softmax" / "001", Mlflow(store))
    assert curves(store) == as_logged(result.history)
    (told,) = runs(store)
    assert (told.info.run_name, told.info.status) == ("softmax/001", "FINISHED")


def test_what_mlflow_takes_in_no_name_becomes_a_line(store: str) -> None:
    class Named:
        def on_epoch_start(self) -> None:
            pass

        def on_split_end(self, split: str, metrics: Any) -> None:
            metrics[f"{split}_C++ (고양이)_f1"] = 0.5

    fit(None, Mlflow(store), Named(), epochs=1)
    assert curves(store)["val_C__ _고양이__f1"] == [(0, 0.5)]


def test_the_settings_of_the_fit_are_parameters(tmp_path: Path, store: str) -> None:
    fit(None, Mlflow(store, experiment="digits"), accumulate=2)
    assert runs(store, "digits")[0].data.params == {
        "model": "Linear", "parameters": "4", "optimizer": "SGD", "lr": "0.1", "batch_size": "2", "accumulate": "2",
        "epochs": "3", "device": "cpu",
    }  # fmt: skip


def test_a_recipe_adds_its_knobs_and_the_seed(tmp_path: Path, store: str) -> None:
    (tmp_path / "mine.py").write_text(RECIPE, encoding="utf-8")
    run(tmp_path / "mine.py", seed=5, run_dir=tmp_path / "run", plugins=[Mlflow(store)], lr=0.25)
    told = runs(store)[0].data.params
    assert {name: told[name] for name in ("recipe", "seed", "lr", "hidden")} == {
        "recipe": "mine", "seed": "5", "lr": "0.25", "hidden": "7",
    }  # fmt: skip


def test_a_fit_that_failed_ends_as_failed_and_the_next_one_is_another_run(store: str, fails: Any) -> None:
    failing = fails(epoch=2)
    trainer = tiny_trainer([Mlflow(store), failing])
    with pytest.raises(RuntimeError, match="the disk fell off"):
        trainer.fit(tiny_data(), epochs=3)
    assert [told.info.status for told in runs(store)] == ["FAILED"]
    assert [epoch for epoch, _ in curves(store)["train_loss"]] == [0, 1]
    failing.armed = False
    trainer.fit(tiny_data(), epochs=3)
    assert [told.info.status for told in runs(store)] == ["FAILED", "FINISHED"]


@pytest.mark.parametrize("step", [2, 3, 7])
def test_stopped_and_resumed_it_is_one_run_with_the_rows_of_one_that_was_left_alone(
    tmp_path: Path, store: str, step: int
) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer, split: str) -> None:
            if split == "train" and trainer.step == step:
                trainer.save()
                trainer.stop("to be resumed")

    class Looks:
        def on_epoch_end(self) -> None:
            assert runs(store)[0].info.status == "RUNNING"

    alone = fit(None).history
    fit(tmp_path, Mlflow(store), Stops())
    fit(tmp_path, Mlflow(store), Looks(), resume=tmp_path)
    assert curves(store) == as_logged(alone)
    assert runs(store)[0].info.status == "FINISHED"


def test_rows_after_the_checkpoint_that_is_resumed_are_not_logged_twice(tmp_path: Path, store: str, fails: Any) -> None:
    class SavesOnce:
        def on_epoch_end(self, trainer: Trainer, epoch: int) -> None:
            if epoch == 0:
                trainer.save()

    with pytest.raises(RuntimeError):  # epochs 1 and 2 are logged, and no checkpoint knows of them
        fit(tmp_path, Mlflow(store), SavesOnce(), fails(epoch=3), epochs=5)
    assert len(curves(store)["train_loss"]) == 3
    longer = fit(tmp_path, Mlflow(store), epochs=6, resume=tmp_path)
    assert curves(store) == as_logged(longer.history)


def test_one_that_comes_with_the_resume_begins_a_run(tmp_path: Path, store: str) -> None:
    class Stops:
        def on_epoch_end(self, trainer: Trainer) -> None:
            trainer.save()
            trainer.stop("to be resumed")

    fit(tmp_path, Stops())
    with pytest.warns(UserWarning, match="no state of plugin"):
        fit(tmp_path, Mlflow(store), resume=tmp_path)
    assert [epoch for epoch, _ in curves(store)["train_loss"]] == [1, 2]


def test_one_that_came_with_a_resume_can_be_resumed_before_its_first_row(tmp_path: Path, store: str) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step in (1, 2):
                trainer.save()
                trainer.stop("to be resumed")

    fit(tmp_path, Stops())
    with pytest.warns(UserWarning, match="no state of plugin"):
        fit(tmp_path, Mlflow(store), Stops(), resume=tmp_path)
    fit(tmp_path, Mlflow(store), resume=tmp_path)
    assert [epoch for epoch, _ in curves(store)["train_loss"]] == [0, 1, 2]


def test_a_resume_that_is_refused_leaves_no_run_open(tmp_path: Path, store: str) -> None:
    class Stops:
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.step == 2:
                trainer.save()
                trainer.stop("to be resumed")

    class Refuses:
        def on_fit_start(self) -> None:
            pass

        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            if resumed:
                raise ValueError("not this one")

    resumed: list[bool] = []
    fit(tmp_path, Mlflow(store), Refuses(), Stops())
    resumed.append(True)
    with pytest.raises(CheckpointError, match="not this one"):
        fit(tmp_path, Mlflow(store), Refuses(), resume=tmp_path)
    assert [told.info.status for told in runs(store)] == ["FAILED"]


def test_two_instances_log_into_two_experiments(store: str) -> None:
    fit(None, Mlflow(store), Mlflow(store, experiment="copy", name="second"))
    assert [len(runs(store, name)) for name in ("framework", "copy")] == [1, 1]


def test_a_folder_is_refused_before_the_first_step_as_mlflow_refuses_it(tmp_path: Path) -> None:
    trainer = tiny_trainer([Mlflow(str(tmp_path / "mlruns"))])
    with pytest.raises(UsageError, match=r"mlflow: MLflow cannot keep runs in .*mlruns: .*sqlite:///mlflow\.db"):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_a_missing_package_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    trainer = tiny_trainer([Mlflow()])
    with pytest.raises(UsageError, match=r'needs the package mlflow-skinny: pip install "framework-trainer\[mlflow\]"'):
        trainer.fit(tiny_data())
    assert trainer.step == 0


def test_importing_the_plugin_imports_no_mlflow() -> None:
    code = "import sys, framework_plugins.mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_changes_no_bit_of_training(trained: Callable[..., Any], store: str) -> None:
    assert trained([Mlflow(store)]) == trained([])
