"""The plugin top_checkpoints: the several best epochs, each with a checkpoint of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from framework_plugins.top_checkpoints import TopCheckpoints
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import CheckpointError, Trainer, UsageError
from framework.checkpoint import find, read
from framework.testing import tiny_data, tiny_trainer


def kept(run_dir: Path, name: str = "top_checkpoints") -> list[tuple[int, float]]:
    """Epoch and figure of what is kept, from the best on; each checkpoint is that of its epoch."""
    listed = json.loads((run_dir / f"{name}.json").read_text(encoding="utf-8"))
    for entry in listed:
        path = find(run_dir, entry["label"])
        assert path is not None
        assert read(path).epoch == entry["epoch"] + 1
    return [(entry["epoch"], entry["value"]) for entry in listed]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_epochs_are_kept_from_the_best_on(tmp_path: Path, scripted: Any, mode: str) -> None:
    values = [5.0, 3.0, 4.0, float("nan"), 1.0, 3.0, 9.0, 2.0]
    plugin = TopCheckpoints("score_loss", mode=mode)
    tiny_trainer([scripted(values), plugin], run_dir=tmp_path).fit(tiny_data(), epochs=len(values))

    wanted = {"min": [(4, 1.0), (7, 2.0), (1, 3.0)], "max": [(6, 9.0), (0, 5.0), (2, 4.0)]}[mode]
    assert kept(tmp_path) == wanted
    assert [(entry["epoch"], entry["value"]) for entry in plugin.kept] == wanted


@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=1, max_size=8), keep=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_of_equal_figures_the_earlier_epoch_stays(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], keep: int
) -> None:
    class Script:
        def metric_names(self, split: str) -> list[str]:
            return ["score_loss"]

        def on_split_end(self, trainer: Any, metrics: Any) -> None:
            metrics["score_loss"] = values[trainer.epoch]

    run_dir = tmp_path_factory.mktemp("run")
    plugins = [Script(), TopCheckpoints("score_loss", keep=keep)]
    tiny_trainer(plugins, run_dir=run_dir).fit(tiny_data(), epochs=len(values))
    assert kept(run_dir) == sorted(enumerate(values), key=lambda pair: pair[1])[:keep]
    assert len([*run_dir.glob("checkpoints/step-*")]) <= keep + 2  # and those that a fit could go on from


def test_two_of_them_follow_two_figures(tmp_path: Path, scripted: Any) -> None:
    values = [1.0, 3.0, 2.0]
    plugins = [TopCheckpoints("score_loss", keep=1), TopCheckpoints("score_loss", 1, "max", name="top_score")]
    tiny_trainer([scripted(values), *plugins], run_dir=tmp_path).fit(tiny_data(), epochs=3)
    assert kept(tmp_path) == [(0, 1.0)]
    assert kept(tmp_path, "top_score") == [(1, 3.0)]
    assert json.loads((tmp_path / "top_score.json").read_text(encoding="utf-8"))[0]["label"] == "top_score_1"


def test_it_tells_at_the_end_what_it_has(tmp_path: Path, scripted: Any, capsys: Any) -> None:
    tiny_trainer([scripted([2.0, 1.0]), TopCheckpoints("score_loss")], run_dir=tmp_path).fit(tiny_data(), epochs=2)
    assert "top 3     score_loss 1 in epoch 1 (top_2), 2 in epoch 0 (top_1)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopCheckpoints(keep=0), "keep must be a whole number from 1 up, got 0"),
        (lambda: TopCheckpoints(name="Top"), "name='Top' begins the labels of checkpoints"),
        (lambda: tiny_trainer([TopCheckpoints()]).fit(tiny_data()), "give the Trainer a run_dir"),
    ],
    ids=["keep", "name", "run_dir"],
)
def test_what_cannot_be_is_told_before_the_first_step(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_a_figure_that_is_not_there_is_told_with_a_suggestion(tmp_path: Path) -> None:
    trainer = tiny_trainer([TopCheckpoints("train_los")], run_dir=tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'train_loss'"):
        trainer.fit(tiny_data())


class StopsAndSaves:
    def on_epoch_end(self, trainer: Trainer) -> None:
        trainer.save()
        trainer.stop("to be resumed")


def test_a_resumed_fit_that_follows_another_figure_is_refused(tmp_path: Path) -> None:
    tiny_trainer([TopCheckpoints(), StopsAndSaves()], run_dir=tmp_path).fit(tiny_data(), epochs=1)
    other = tiny_trainer([TopCheckpoints(mode="max")], run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="the figure was train_loss min, and now it is train_loss max"):
        other.fit(tiny_data(), epochs=3, resume=tmp_path)


def test_a_resumed_fit_that_is_to_keep_fewer_is_refused(tmp_path: Path) -> None:
    tiny_trainer([TopCheckpoints(), StopsAndSaves()], run_dir=tmp_path).fit(tiny_data(), epochs=1)
    tiny_trainer([TopCheckpoints(), StopsAndSaves()], run_dir=tmp_path).fit(tiny_data(), epochs=3, resume=tmp_path)
    with pytest.raises(CheckpointError, match="2 epochs are kept already, more than keep=1 now"):
        tiny_trainer([TopCheckpoints(keep=1)], run_dir=tmp_path).fit(tiny_data(), epochs=3, resume=tmp_path)


def test_it_changes_no_bit(trained: Callable[..., Any], tmp_path: Path) -> None:
    assert trained([TopCheckpoints()], tmp_path) == trained([])
