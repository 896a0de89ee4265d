from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from framework_plugins.sweep import Space, space_of

from framework import UsageError, run
from framework.cli import main

RECIPE = """
import torch
from torch import nn
from framework import Recipe

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
Y = X.sum(1, keepdim=True)


class Failing(nn.Linear):
    def __init__(self):
        super().__init__(3, 1)

    def forward(self, x):
        raise ValueError("no way\\nfor it")


def recipe(lr: float = 0.1, hidden: int = 4, widths: tuple[int, ...] = (3,), flag: bool = False, kind: str = "sgd",
           epochs: int = 2, val: bool = True) -> Recipe:
    if lr == 7:
        raise KeyboardInterrupt
    if lr == 6:
        return Recipe(model=(model := Failing()), loss=nn.functional.mse_loss, train=(X, Y), epochs=1,
                      optimizer=torch.optim.SGD(model.parameters(), lr=lr))
    model = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    train, held = (X[:16], Y[:16]), (X[16:], Y[16:])
    return Recipe(model=model, loss=nn.functional.mse_loss, optimizer=optimizer, train=train,
                  val=held if val else None, epochs=epochs, batch_size=4)


def on_epoch_start(trainer, epoch):
    if trainer.optimizer.param_groups[0]["lr"] == 8 and epoch == 1:
        raise KeyboardInterrupt
"""

QUICK = ("-p", "no:plot", "-p", "no:best_checkpoint", "-p", "no:history")  # what takes time is not asked about here


@pytest.fixture
def sweep(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    folder = tmp_path / "한글 폴더"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("mine.py").write_text(RECIPE, encoding="utf-8")

    def told(*words: str) -> tuple[int, str]:
        status = main(["sweep", "mine.py", "--device", "cpu", *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return told


def trials_in(folder: str) -> list[dict[str, Any]]:
    return json.loads(Path(folder, "sweep.json").read_text("utf-8"))["trials"]


def texts(path: str) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", Path(path).read_text("utf-8"))


@pytest.fixture
def spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Space]:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RECIPE, encoding="utf-8")
    return lambda word: space_of("mine.py", word)


# ------------------------------------------------------------------------------------------------------- grid


def test_every_trial_of_a_grid_is_an_ordinary_run_with_its_knobs(sweep: Callable[..., Any]) -> None:
    assert sweep("lr=0.1,0.01", "hidden=4,8", "epochs=3", "--seed", "5", "--run-dir", "s")[0] == 0
    names = ["lr=0.1,hidden=4", "lr=0.1,hidden=8", "lr=0.01,hidden=4", "lr=0.01,hidden=8"]
    assert [trial["name"] for trial in trials_in("s")] == names
    for trial in trials_in("s"):
        alone = run("mine.py", seed=5, device="cpu", lr=float(trial["knobs"]["lr"]), epochs=3,
                    hidden=int(trial["knobs"]["hidden"]), run_dir=Path("alone") / trial["name"])  # fmt: skip
        info = json.loads(Path("s", trial["name"], "run.json").read_text("utf-8"))
        assert (info["seed"], info["stop_reason"]) == (5, "completed")
        rows = Path("s", trial["name"], "metrics.jsonl").read_text("utf-8")
        assert rows == Path("alone", trial["name"], "metrics.jsonl").read_text("utf-8")
        assert trial["value"] == min(row["val_loss"] for row in alone.history)


def test_the_table_has_the_best_first_and_its_command_trains_it_again(sweep: Callable[..., Any]) -> None:
    _, said = sweep("lr=0.1,0.001,0.01", "flag=true", "--seed", "3", "--run-dir", "s")
    lines = said.splitlines()
    assert [line.split("  ")[0].split()[0] for line in lines[:3]] == ["1", "2", "3"]
    assert re.fullmatch(r"1         lr=0.1  val_loss [\d.]+ in epoch 1", lines[0])
    assert lines[4].split() == ["lr", "val_loss", "epoch", "seconds", "run"]
    assert [line.split()[0] for line in lines[5:8]] == ["0.1", "0.01", "0.001"]
    assert said.endswith("next      python -m framework mine.py --lr 0.1 --flag --seed 3\n")
    assert f"saved     s\ndrawn     {Path('s', 'sweep.svg')}\n" in said


def test_the_runs_of_a_sweep_can_be_compared(sweep: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    sweep("lr=0.1,0.01", "--run-dir", "s")
    assert main(["compare", str(Path("s", "lr=0.1")), str(Path("s", "lr=0.01"))]) == 0
    assert main(["evaluate", str(Path("s", "lr=0.1"))]) == 0


def test_by_default_it_is_kept_beside_the_runs_of_the_recipe(sweep: Callable[..., Any]) -> None:
    for number in (1, 2):
        assert f"saved     {Path('runs/mine', f'sweep-00{number}')}\n" in sweep("lr=0.1")[1]
    assert [trial["name"] for trial in trials_in("runs/mine/sweep-002")] == ["001"]


def test_a_name_that_cannot_be_that_of_a_directory_is_a_number(sweep: Callable[..., Any]) -> None:
    sweep("widths=3,3 5", "kind=a/b,c", "--run-dir", "s")
    assert [(t["name"], *t["knobs"].values()) for t in trials_in("s")] == [
        ("001", "3", "a/b"), ("widths=3,kind=c", "3", "c"), ("003", "3 5", "a/b"), ("004", "3 5", "c"),
    ]  # fmt: skip
    assert json.loads(Path("s/004/run.json").read_text("utf-8"))["knobs"]["widths"] == [3, 5]


def test_what_is_monitored_is_the_training_loss_without_validation_and_larger_accuracies_are_better(
    sweep: Callable[..., Any],
) -> None:
    assert "train_loss" in sweep("lr=0.1,0.01", "val=false", "--run-dir", "s")[1]
    status, said = sweep("lr=0.1,0.01", "--monitor", "val_r2", "-p", "regression", "--run-dir", "r")
    assert status == 0
    values = [trial["value"] for trial in trials_in("r")]
    (best,) = re.findall(r"^ *(\S+) +\S+ +\d+ +[\d.]+  lr=", said, re.M)[:1]
    assert float(best) == [0.1, 0.01][values.index(max(values))]


# -------------------------------------------------------------------------------------- a trial that goes wrong


def test_a_trial_that_fails_is_a_row_and_not_the_end(sweep: Callable[..., Any]) -> None:
    status, said = sweep("lr=1e30,0.1", "hidden=4,0", "--run-dir", "s")
    assert status == 0
    assert re.search(r"^1         lr=1e30  hidden=4  failed: train_loss became (inf|nan) at step", said, re.M)
    assert re.search(r"^ *1e30 +4 +failed ", said, re.M)
    assert [trial["value"] is None for trial in trials_in("s")] == [True, True, False, True]
    assert said.endswith("--lr 0.1 --hidden 4\n")


def test_a_trial_whose_model_raises_is_a_row_and_not_the_end(sweep: Callable[..., Any]) -> None:
    status, said = sweep("lr=6,0.1", "--run-dir", "s", *QUICK)
    assert status == 0, said
    assert "lr=6  failed: ValueError: no way\n" in said
    assert [trial["value"] is None for trial in trials_in("s")] == [True, False]


def test_a_trial_whose_figure_is_never_a_number_or_that_ends_before_an_epoch_does_is_a_row(
    sweep: Callable[..., Any],
) -> None:
    """It was told as a metric that is not there, and as an IndexError."""
    Path("nans.py").write_text(
        "def on_split_end(split, metrics):\n    metrics[f'{split}_odd'] = float('nan')\n"
        "def metric_names(split): return [f'{split}_odd']\n",
        encoding="utf-8",
    )
    status, said = sweep("epochs=1", "-p", "nans.py", "--monitor", "val_odd", *QUICK)
    assert (status, "failed: val_odd was never a number" in said) == (1, True), said
    Path("ends.py").write_text("def on_batch_end(trainer): trainer.stop('enough')\n", encoding="utf-8")
    status, said = sweep("epochs=1", "-p", "ends.py", *QUICK)
    assert (status, "failed: stopped before an epoch was over" in said) == (1, True), said


def test_a_sweep_that_goes_on_with_another_setting_keeps_the_runs_that_were_there(sweep: Callable[..., Any]) -> None:
    """Trials are named after what varies; the second lr=0.1 took the directory of the first."""
    for epochs in (1, 2):
        status, said = sweep("lr=0.1,0.2", f"epochs={epochs}", "--run-dir", "s", "-p", "no:plot")
        assert status == 0, said
    done = {trial["name"]: trial["knobs"]["epochs"] for trial in trials_in("s")}
    assert done == {"lr=0.1": "1", "lr=0.2": "1", "003": "2", "004": "2"}
    for name, epochs in done.items():
        assert len(Path("s", name, "metrics.jsonl").read_text("utf-8").splitlines()) == int(epochs)
    header = next(line for line in said.splitlines() if line.endswith("run"))
    assert header.split() == ["lr", "epochs", "val_loss", "epoch", "seconds", "run"]


def test_directories_above_are_values_and_no_range(spaces: Callable[[str], Space]) -> None:
    assert spaces("kind=../a,../b").values == ("../a", "../b")


def test_a_sweep_of_which_every_trial_fails_is_an_error(sweep: Callable[..., Any]) -> None:
    status, said = sweep("lr=1e30,1e31", "--run-dir", "s")
    assert status == 1
    assert "error: every trial failed, the first one with: train_loss became" in said


def test_an_interrupted_sweep_goes_on_with_the_trials_that_are_missing(sweep: Callable[..., Any]) -> None:
    status, said = sweep("lr=0.1,7,0.01", "--run-dir", "s")
    assert status == 130
    assert "next      the same command with --run-dir s goes on with what is missing" in said
    assert [trial["name"] for trial in trials_in("s")] == ["lr=0.1"]
    first = Path("s/lr=0.1/metrics.jsonl").stat().st_mtime_ns
    Path("s/lr=0.01").mkdir()
    Path("s/lr=0.01/run.json").write_text("cut off", encoding="utf-8")
    status, said = sweep("lr=0.1,0.01,0.2", "--run-dir", "s")
    assert status == 0
    assert [line.endswith("(was there)") for line in said.splitlines()[:3]] == [True, False, False]
    assert Path("s/lr=0.1/metrics.jsonl").stat().st_mtime_ns == first
    sweep("lr=0.1,0.01,0.2", "--run-dir", "whole")
    whole, parts = ([{**trial, "seconds": 0} for trial in trials_in(folder)] for folder in ("whole", "s"))
    assert parts == whole


def test_a_sweep_that_was_interrupted_in_its_first_trial_begins_again(sweep: Callable[..., Any]) -> None:
    assert sweep("lr=8,0.1", "--run-dir", "s")[0] == 130
    assert trials_in("s") == []
    assert sweep("lr=8,0.1", "--run-dir", "s")[0] == 130  # over what was cut off
    assert sweep("lr=0.1", "kind=a,b", "--monitor", "val_los", *QUICK, "--run-dir", "s")[0] == 2
    assert sweep("lr=0.1", "kind=a,b", *QUICK, "--run-dir", "s")[0] == 0
    assert [trial["name"] for trial in trials_in("s")] == ["kind=a", "kind=b"]
    Path("s/sweep.json").write_text("[]", encoding="utf-8")
    status, said = sweep("lr=0.1", "kind=a,b", "--run-dir", "s")
    assert status == 2
    assert "sweep.json is damaged" in said


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_what_is_drawn_is_the_same_each_time_and_goes_on_the_same(sweep: Callable[..., Any], method: str) -> None:
    words = ("lr=1e-4..1e-1", "hidden=2..9", "kind=a,b", "--method", method, "--seed", "4", *QUICK)
    sweep(*words, "--trials", "6", "--run-dir", "whole")
    sweep(*words, "--trials", "3", "--run-dir", "s")
    assert len(trials_in("s")) == 3
    assert sweep(*words, "--trials", "6", "--run-dir", "s")[0] == 0
    drawn = [[trial["knobs"] for trial in trials_in(folder)] for folder in ("whole", "s")]
    assert drawn[0] == drawn[1]
    assert len({str(knobs) for knobs in drawn[0]}) == 6


def test_optuna_hears_which_trials_were_good(sweep: Callable[..., Any]) -> None:
    words = ("lr=1e-6..1e-1", "epochs=1", "--trials", "20", *QUICK)
    for method in ("random", "optuna"):
        assert sweep(*words, "--method", method, "--run-dir", method)[0] == 0
    high = [sum(float(t["knobs"]["lr"]) > 1e-2 for t in trials_in(method)) for method in ("random", "optuna")]
    assert high[1] > high[0]


def test_without_optuna_it_says_what_to_install(sweep: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, said = sweep("lr=0.1,0.2", "--method", "optuna")
    assert status == 2
    assert 'pip install "framework-trainer[optuna]"' in said


# ----------------------------------------------------------------------------------------------------- spaces


def test_what_words_let_a_knob_be(spaces: Callable[[str], Space]) -> None:
    assert spaces("lr=0.1,0.2,0.1") == Space("lr", ("0.1", "0.2"))
    assert spaces("lr=1e-4..1e-1") == Space("lr", (), 1e-4, 1e-1, log=True)
    assert spaces("lr=0.1..0.9") == Space("lr", (), 0.1, 0.9)
    assert spaces("lr=0.1..0.9:log") == Space("lr", (), 0.1, 0.9, log=True)
    assert spaces("hidden=1..200:linear") == Space("hidden", (), 1, 200, whole=True)
    assert spaces("lr=-1..1") == Space("lr", (), -1, 1)


def test_numbers_are_drawn_from_the_whole_range_and_read_as_they_are_written() -> None:
    generator = random.Random(0)
    of_log = [float(Space("lr", (), 1e-4, 1.0, log=True).draw(generator)) for _ in range(400)]
    assert 1e-4 <= min(of_log) < 2e-4
    assert 0.5 < max(of_log) <= 1
    assert 150 < sum(value < 1e-2 for value in of_log) < 250  # half of the decades, half of the draws
    assert all(value == float(f"{value:.4g}") for value in of_log)
    whole = [Space("hidden", (), 1, 4, whole=True).draw(generator) for _ in range(400)]
    assert all(70 < whole.count(word) < 130 for word in ("1", "2", "3", "4"))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lr", "'lr' sets no knob"), ("lrr=1", "no knob 'lrr'. Did you mean 'lr'?"), ("hidden=a,b", "hidden"),
        ("lr=0.1,", "lr"), ("lr=1..1", "the range is empty"), ("lr=2..1", "lower number to a higher one"),
        ("lr=-1..100:log", "logarithms are of positive numbers"), ("kind=a..b", "kind is of type str; list values"),
        ("lr=a..b", "lr"), ("lr=nan..1", "the range is empty"), ("lr=1..inf", "the range is empty"),
    ],
)  # fmt: skip
def test_a_wrong_space_is_told(spaces: Callable[[str], Space], word: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        spaces(word)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name at least one knob with its values, such as lr=0.1,0.01"),
        (("lr=0.1", "lr=0.2"), "the knob 'lr' is given twice"),
        (("lr=0.1..1",), "a grid needs values, and lr has a range"),
        (("lr=0.1", "--trials", "3"), "a grid has a trial for every combination"),
        (("lr=0.1..1", "--method", "random", "--trials", "-1"), "there must be at least one"),
        (("lr=0.1", "--method", "gird"), "--method"), (("lr=0.1", "-p", "csw"), "Did you mean 'csv'?"),
        (("lr=0.1", "--monitor", "val_los"), "no metric 'val_los' to compare trials by. There is: "),
    ],
)  # fmt: skip
def test_mistakes_end_with_status_2(sweep: Callable[..., Any], words: tuple[str, ...], said: str) -> None:
    status, told = sweep(*words)
    assert status == 2
    assert said in told


@pytest.mark.parametrize(
    ("recipe", "word", "said"),
    [
        ("xor", "lr=0.1", "the recipe xor has the variants one layer, two layers"),
        ("tensor_manipulation", "lr=1", "no knob 'lr'"),
    ],
)
def test_recipes_that_cannot_be_swept_are_refused(
    recipe: str, word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", recipe, word]) == 2
    assert said in capsys.readouterr().err


def test_a_directory_of_something_else_is_refused(sweep: Callable[..., Any]) -> None:
    sweep("lr=0.1", "--run-dir", "s")
    assert "holds a sweep with seed 0; give another --run-dir" in sweep("lr=0.1", "--seed", "1", "--run-dir", "s")[1]
    status, said = sweep("lr=0.1", "--run-dir", ".")
    assert status == 2
    assert "holds something else than a sweep" in said
    assert Path("mine.py").is_file()


# ---------------------------------------------------------------------------------------------------- picture


@pytest.mark.parametrize(
    ("words", "panels", "told"),
    [
        (("lr=1e-3,1e-1",), 1, ["lr", "val_loss"]), (("lr=1e-3,1e-1", "kind=a,b"), 2, ["lr", "kind", "a", "b"]),
        (("lr=1e-3,1e-1", "hidden=2,3", "flag=true,false"), 3, ["lr", "hidden", "flag", "true"]),
    ],
    ids=["one knob", "two", "three"],
)  # fmt: skip
def test_the_picture_shows_each_knob_and_the_best(
    sweep: Callable[..., Any], words: tuple[str, ...], panels: int, told: list[str]
) -> None:
    sweep(*words, *QUICK, "--run-dir", "s")
    said = texts("s/sweep.svg")
    assert {*told} <= {*said}
    assert sum(text.startswith("best: ") for text in said) == (panels if panels != 2 else 1)
    svg = Path("s/sweep.svg").read_text("utf-8")
    assert len(re.findall(r'<g id="axes_\d+">', svg)) == panels
