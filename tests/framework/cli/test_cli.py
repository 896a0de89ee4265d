"""The command line as a whole: every mistake ends in one clear message, whatever is mistaken."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import framework
from framework.cli import main

# ---------------------------------------------------------------------------------------- mistakes in what is typed


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--lr", "abc"], ["--lr", "'abc'", "float"]),
        (["--lr=abc"], ["--lr", "'abc'"]),
        (["--lr"], ["--lr"]),
        (["--lr", ""], ["--lr", "''"]),
        (["--lrr", "1"], ["--lrr", "Did you mean --lr?"]),
        (["--epo", "3"], ["--epo", "Did you mean --epochs?"]),
        (["--epoch", "3"], ["--epoch", "Did you mean --epochs?"]),
        (["--epochs", "1.5"], ["--epochs", "'1.5'", "int"]),
        (["--epochs", "1e3"], ["--epochs", "'1e3'", "int"]),
        (["--seed", "x"], ["--seed", "'x'", "int"]),
        (["--devise", "cpu"], ["--devise", "Did you mean --device?"]),
        (["--run_dirr", "x"], ["--run_dirr", "Did you mean --run-dir?"]),
        (["extra"], ["extra"]),
        (["--config", "nosuch.json"], ["--config nosuch.json: No such file"]),
        (["--device", "cdua"], ["'cdua' is not a device. Did you mean 'cuda'?", "This machine has:"]),
        (["--device", ""], ["'' is not a device", "This machine has:"]),
        (["--device", "cuda:99"], ["there is no device 'cuda:99' here.", "This machine has:"]),
        (["--device", "meta"], ["there is no device 'meta' here."]),
        (["-p", "nosuch"], ["there is no plugin 'nosuch'. There is: accuracy, "]),
        (["-p", "acuracy"], ["there is no plugin 'acuracy'. Did you mean 'accuracy'?"]),
        (["-p", "no:plott"], ["no:plott: no such plugin is active. Did you mean 'plot'?"]),
        (["-p", "no:accuracy"], ["no:accuracy: no such plugin is active."]),
        (["-p", "nosuch.py"], ["there is no plugin file 'nosuch.py'"]),
        (["-p", "nosuch:Class"], ["'nosuch:Class'", "No module named 'nosuch'"]),
        (["-p"], ["-p"]),
        (["--epochs", "0"], ["epochs must be a whole number from 1 up, got 0"]),
        (["--epochs", "-3"], ["epochs must be a whole number from 1 up, got -3"]),
    ],
    ids=" ".join,
)
def test_what_is_mistyped_is_named_and_nothing_is_left_behind(lab, refused, tmp_path, arguments, parts) -> None:
    said = refused(lab(), *arguments)
    for part in parts:
        assert part in said
    assert not list(tmp_path.glob("runs/lab/*"))


def test_cuda_is_not_replaced_by_something_else_where_there_is_none(lab, refused) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so cuda is no mistake here")
    assert "there is no device 'cuda' here. This machine has: " in refused(lab(), "--device", "cuda")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nosuchverb"], "'nosuchverb' is neither a verb nor a recipe. There is: "),
        (["evaluat", "x"], "'evaluat' is neither a verb nor a recipe. Did you mean 'evaluate'?"),
        (["softmx"], "'softmx' is neither a verb nor a recipe. Did you mean 'softmax'?"),
        (["--seed", "3"], "the recipe comes first: python -m framework RECIPE --seed ..."),
        (["lba.py"], "there is no recipe 'lba.py'. Did you mean 'lab.py'?"),
        (["nosuchfolder/lab.py"], "there is no recipe 'nosuchfolder/lab.py'."),
        (["."], "there is no recipe '.'."),
        (["notes.txt"], "notes.txt is not a Python file"),
        (["evaluate"], "Missing"),
        (["evaluate", "nosuch"], "nosuch is not a run directory: it has no run.json"),
        (["evaluate", "lab.py"], "lab.py is not a run directory: it has no run.json"),
        (["predict", "nosuch", "[1]"], "nosuch is not a run directory: it has no run.json"),
        (["resume", "nosuch"], "nosuch is not a run directory: it has no run.json"),
        (["resume", "lab.py"], "lab.py is not a run directory: it has no run.json"),
        (["resume"], "Missing"),
        (["resum", "x"], "'resum' is neither a verb nor a recipe. Did you mean 'resume'?"),
        (["resume", "x", "--trust"], "Did you mean --trust-run?"),
        (["plot"], "name at least one run directory"),
        (["plot", "nosuch"], "nosuch is not a run directory"),
        (["compare"], "name at least two run directories"),
        (["compare", "nosuch", "nosuch2"], "nosuch is not a run directory"),
        (["summary", "nosuch.py"], "there is no recipe 'nosuch.py'."),
        (["summary"], "Missing"),
        (["plugins", "nosuch.py"], "there is no recipe 'nosuch.py'."),
        (["recipes", "--copi", "x"], "Did you mean --copy?"),
        (["recipes", "extra"], "extra"),
        (["hooks", "--nosuch"], "--nosuch"),
        (["recipes", "--copy", "notes.txt"], "cannot copy the recipes into notes.txt: "),
        (["recipes", "--copy", "notes.txt/deep"], "cannot copy the recipes into "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistaken_verb_recipe_or_run_is_named(lab, refused, tmp_path, arguments, expected) -> None:
    lab()
    (tmp_path / "notes.txt").write_text("no recipe\n")
    assert expected in refused(*arguments)


# ------------------------------------------------------------------------------------------- mistakes in the recipe


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("def recipe(:\n    pass\n", ["lab.py, line 15: invalid syntax: def recipe(:"]),
        ("x = 1\n", ["lab.py has no function recipe(); it must define one that returns a Recipe"]),
        ("recipe = 3\n", ["lab.py has no function recipe()"]),
        ("import nosuchmodule\n", ["lab.py, line 15 (import nosuchmodule)", "No module named 'nosuchmodule'"]),
        ("def recipe(): return 3\n", ["must return a Recipe, a dict of them, or None; it returned int 3"]),
        ("def recipe(): return list(range(99))\n", ["it returned a list"]),
        ("def recipe(): return {}\n", ["recipe() returned an empty dict"]),
        ("def recipe(): return {'a': 3}\n", ["it returned int 3"]),
        ("def recipe(): return {'a': lambda: 3}\n", ["it returned int 3"]),
        ("def recipe(): return {'a/b': made()}\n", ["the label 'a/b' must be a text that can name a directory"]),
        ("def recipe(): return {3: made()}\n", ["the label 3 must be a text that can name a directory"]),
        ("def recipe(): return {'..': made()}\n", ["the label '..' must be a text that can name a directory"]),
        ("def recipe(): return {}['lr']\n", ["lab, line 15 (def recipe(): return {}['lr'])", "KeyError: 'lr'"]),
        ("def recipe(lr): return made()\n", ["the knob 'lr' of recipe() needs a default"]),
        ("def recipe(**knobs): return made()\n", ["recipe() takes **knobs; knobs are named arguments"]),
        ("def recipe(*knobs): return made()\n", ["recipe() takes *knobs"]),
        ("def recipe(lr=0.1, /): return made()\n", ["recipe() takes lr=0.1"]),
        ("def recipe(lr: 'flaot' = 0.1): return made()\n", ["types of the knobs", "'flaot' is not defined"]),
        ("def recipe(): return Recipe(model=3)\n", ["line 15", "TypeError", "missing 3 required"]),
        ("def recipe(): return made(batchsize=3)\n", ["line 14", "batchsize"]),
        ("def recipe(): return made(epochs=1.5)\n", ["epochs must be a whole number from 1 up, got 1.5"]),
        ("def recipe(): return made(batch_size=0)\n", ["batch_size must be a whole number from 1 up, got 0"]),
        ("def recipe(): return made(plugins=['acuracy'])\n", ["Did you mean 'accuracy'?"]),
        ("def recipe(): return made()\ndef on_epoch_ended(): pass\n", ["on_epoch_ended is not a hook. Did you mean"]),
        ("def recipe(): return made()\ndef on_epoch_end(metric): pass\n", ["no argument 'metric'. Did you mean"]),
        ("@hookimpl(tryfirst=True)\ndef on_fit_end(): pass\n", ["hookimpl has no tryfirst"]),
        ("class P:\n    on_fit_end = print\ndef recipe(): return made(plugins=[P()])\n", ["p.on_fit_end"]),
        ("class P:\n    def on_fit_end(self): pass\ndef recipe(): return made(plugins=[P])\n", ["P is a class"]),
    ],
)
def test_a_mistaken_recipe_is_told_in_its_own_names(lab, refused, tmp_path, source, parts) -> None:
    said = refused(lab(source))
    for part in parts:
        assert part in said
    assert not list(tmp_path.glob("runs/lab/*"))


def test_a_syntax_error_in_a_file_that_the_recipe_imports_is_told_of_that_file(lab, refused) -> None:
    lab("def f(:\n", "my_broken_helper.py", head="")
    said = refused(lab("import my_broken_helper\n"))
    assert "my_broken_helper.py, line 1: invalid syntax: def f(:" in said


@pytest.mark.parametrize("knob", ["seed", "device", "plugin", "plugins", "run_dir", "config", "deterministic", "quiet",
                                  "verbose", "version", "help", "recipe", "resume"])  # fmt: skip
def test_a_knob_with_a_name_that_the_command_line_owns_is_refused_with_the_list(lab, refused, knob) -> None:
    said = refused(lab(f"def recipe({knob}=1): return made()\n"))
    assert f"the knob {knob!r} of recipe() has a name that the command line owns; those are config, " in said


# --------------------------------------------------------------------------------------------- mistakes in the data


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("made(torch.zeros(0, 3))", ["train: the data set is empty"]),
        ("made(batch_size=10, drop_last=True)", ["drop_last=True leaves no batch: 6 samples", "batch_size=10"]),
        ("made(y=torch.zeros(5, 1))", ["x and y must have the same number of samples; there are: x 6, y 5"]),
        (
            "made(y=torch.tensor([0, 1, 2, 3, 0, 1]), model=nn.Linear(3, 3), loss=nn.CrossEntropyLoss())",
            ["label 3 in row 3 of this batch", "the model gives 3 classes (0..2)", "count from 0"],
        ),
        (
            "made(y=torch.tensor([0, 1, 2, -1, 0, 1]), model=nn.Linear(3, 3), loss=nn.CrossEntropyLoss())",
            ["label -1 in row 3 of this batch"],
        ),
        (
            "made(y=torch.zeros(6), model=nn.Linear(3, 3), loss=nn.CrossEntropyLoss())",
            ["class numbers", "float32", "y.long()"],
        ),
        (
            "made(y=torch.zeros(6), model=nn.Linear(3, 3), loss=nn.functional.cross_entropy)",
            ["class numbers", "float32", "y.long()"],
        ),
        ("made(y=torch.zeros(6))", ["shape (6, 1)", "shape (6,)", "(6, 6)", "y.reshape(-1, 1)"]),
        ("made(y=torch.zeros(6), loss=nn.functional.mse_loss)", ["shape (6, 1)", "shape (6,)", "(6, 6)"]),
        ("made(y=torch.zeros(6), loss=nn.L1Loss())", ["shape (6, 1)", "shape (6,)", "(6, 6)"]),
        ("made(y=torch.zeros(6), loss=lambda o, y: ((o - y) ** 2).mean())", ["shape (6, 1)", "shape (6,)", "(6, 6)"]),
        ("made(y=torch.zeros(6), loss=lambda o, y: (y - o).abs().mean())", ["shape (6, 1)", "shape (6,)", "(6, 6)"]),
        (
            "made(y=torch.zeros(6), loss=lambda o, y: torch.sub(o, y).pow(2).mean())",
            ["shape (6, 1)", "shape (6,)", "(6, 6)"],
        ),
        (
            "made(torch.zeros(6, 3, device='meta'), torch.zeros(6, 1, device='meta'))",
            ["the model (parameter 'weight') is on cpu", "x is on meta"],
        ),
        ("made(torch.zeros(6, 4), torch.zeros(6, 1))", ["Linear(3, 1)", "(6, 4)"]),
        ("made(torch.zeros(6, 3).long(), torch.zeros(6, 1))", ["x is int64", "x.float()"]),
        ("made(loss=lambda o, y: (o - y).abs())", ["the loss must be one number", "(6, 1)"]),
        ("made(loss=lambda o, y: 3.0)", ["the loss must be one number", "float"]),
        ("made(loss=nn.MSELoss)", ["loss"]),
        ("made(on_nonfinite='ignore')", ["on_nonfinite must be 'stop' or 'continue', got 'ignore'"]),
    ],
)  # fmt: skip
def test_mistaken_data_is_told_in_its_own_shapes_and_values(lab, refused, tmp_path, source, parts) -> None:
    said = refused(lab(f"def recipe(): return {source}\n"))
    for part in parts:
        assert part in said
    assert not list(tmp_path.glob("runs/lab/*"))


def test_a_validation_set_with_a_mistake_is_told_as_such(lab, refused) -> None:
    said = refused(lab("def recipe(): return made(val=(torch.zeros(0, 3), torch.zeros(0, 1)))\n"))
    assert "val: the data set is empty" in said


def test_nan_in_the_data_is_a_failed_training_that_names_the_row(lab, refused, info) -> None:
    source = (
        "def recipe():\n    x = torch.randn(6, 3)\n    x[4, 1] = float('nan')\n    return made(x, torch.zeros(6, 1))\n"
    )
    said = refused(lab(source), code=1)
    for part in ("train_loss became nan at step 0", "learning rate 0.1", "x holds nan in row 4 of this batch"):
        assert part in said
    assert info()["stop_reason"].startswith("NonFiniteError: train_loss became nan at step 0")


def test_a_loss_that_grows_beyond_all_numbers_stops_the_run_and_keeps_it(lab, refused, info, rows) -> None:
    said = refused(lab(), "--lr", "1e38", code=1)
    for part in ("train_loss became inf at step 1", "epoch 0, batch 1", "learning rate 1e+38", "try a smaller"):
        assert part in said
    assert info()["stop_reason"].startswith("NonFiniteError: train_loss became inf")
    assert info()["knobs"] == {"lr": 1e38, "epochs": 3}
    assert rows() == []


def test_the_softmax_lab_with_a_huge_learning_rate_names_step_and_rate(refused, tmp_path) -> None:
    said = refused("softmax", "--lr", "1e38", code=1)
    for part in ("train_loss became ", "at step 1", "epoch 1, batch 0", "learning rate 1e+38"):
        assert part in said


def test_an_error_in_the_users_own_model_shows_where_it_is(lab, go, info) -> None:
    """The traceback is the message here, and what was at work is below it."""
    source = "class M(nn.Linear):\n    def forward(self, x): raise KeyError('boom')\n"
    source += "def recipe(): return made(model=M(3, 1))\n"
    outcome = go(lab(source))
    assert outcome.code == 1
    assert "KeyError: 'boom'" in outcome.err
    assert "lab.py" in outcome.err
    assert "epoch 0, step 0, batch: x (6, 3) float32 on cpu" in outcome.err
    assert info()["stop_reason"] == "KeyError: 'boom'"


def test_an_error_in_a_plugin_names_it(lab, go) -> None:
    outcome = go(lab("def on_epoch_end(epoch):\n    1 / (epoch - 1)\ndef recipe(): return made(epochs=3)\n"))
    assert outcome.code == 1
    assert "ZeroDivisionError" in outcome.err
    assert "plugin 'lab', hook on_epoch_end, epoch 2, step 2" in outcome.err


def test_a_monitor_that_does_not_exist_is_told_before_the_first_epoch(lab, go) -> None:
    source = (
        "from framework_plugins.early_stopping import EarlyStopping\n"
        "def recipe(): return made(val=made().train, plugins=[EarlyStopping(monitor='val_los')])\n"
    )
    outcome = go(lab(source))
    assert outcome.code == 2
    assert "no metric 'val_los' to monitor. Did you mean 'val_loss'?" in outcome.err
    assert "plugin 'early_stopping'" in outcome.err
    assert "train_loss " not in outcome.out


# ---------------------------------------------------------------------------------------------------- -q -v --help


def test_quiet_prints_nothing_at_all(lab, go, tmp_path) -> None:
    outcome = go(lab("print('on import')\ndef recipe(): print('in recipe'); return made(epochs=2)\n"), "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert (tmp_path / "runs/lab/001/curves.svg").is_file()


def test_quiet_still_tells_an_error(lab, refused) -> None:
    assert "the data set is empty" in refused(lab("def recipe(): return made(torch.zeros(0, 3))\n"), "-q")


@pytest.mark.parametrize("option", ["-v", "--verbose"])
def test_verbose_shows_the_traceback_of_a_mistake(lab, go, option) -> None:
    outcome = go(lab("def recipe(): return made(torch.zeros(0, 3))\n"), option)
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert "DataError: train: the data set is empty" in outcome.err


def test_verbose_is_understood_by_every_verb(go) -> None:
    outcome = go("evaluate", "nosuch", "-v")
    assert outcome.code == 2
    assert "RunDirError: nosuch is not a run directory" in outcome.err


@pytest.mark.parametrize("options", [[], ["-v"]], ids=["plain", "verbose"])
def test_a_warning_is_a_line_and_its_place_is_told_with_verbose(lab, options) -> None:
    source = "def recipe(): return made(y=torch.zeros(6).long(), model=nn.Sequential(nn.Linear(3, 2), nn.Softmax(1)), "
    path = lab(source + "loss=nn.CrossEntropyLoss())\n")
    command = [sys.executable, "-m", "framework", path, *options, "-p", "no:plot", "-p", "no:progress"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0
    told = "the loss gets probabilities (rows sum to 1), and takes scores: leave out softmax, use CrossEntropyLoss"
    if options:
        assert re.search(rf"\.py:\d+: UserWarning: {re.escape(told)}\n", done.stderr)
    else:
        assert done.stderr == f"warning: {told}\n"


@pytest.mark.parametrize("arguments", [["--version"], ["lab.py", "--version"]])
def test_the_version_is_told(go, lab, arguments) -> None:
    lab()
    outcome = go(*arguments)
    assert (outcome.code, outcome.out) == (0, f"framework {framework.__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_verb_with_a_line(go, arguments) -> None:
    outcome = go(*arguments)
    assert outcome.code == 0
    assert outcome.out.isascii()
    for verb in ("plugins", "hooks", "recipes", "evaluate", "predict", "plot", "compare", "summary", "resume"):
        (line,) = [line for line in outcome.out.splitlines() if line.split()[:1] == [verb]]
        assert len(line.split()) > 3


@pytest.mark.parametrize(
    "verb", ["plugins", "hooks", "recipes", "evaluate", "predict", "plot", "compare", "summary", "resume"]
)  # fmt: skip
def test_every_verb_has_help(go, verb) -> None:
    outcome = go(verb, "--help")
    assert outcome.code == 0
    assert f"python -m framework {verb}" in outcome.out


def test_a_recipe_tells_its_knobs_with_their_help_and_defaults(go, lab) -> None:
    outcome = go(lab(), "--help")
    assert outcome.code == 0
    for part in ("A small lab.", "--lr", "learning rate", "0.1", "--epochs", "passes over the data", "--seed",
                 "--device", "--plugin", "-p", "--run-dir", "--config", "--deterministic", "--quiet"):  # fmt: skip
        assert part in outcome.out


def test_the_arguments_are_those_of_the_process_by_default(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["framework", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("framework ")


def test_a_reader_that_has_read_enough_ends_the_run_quietly(lab, go, monkeypatch) -> None:
    """`python -m framework lab.py | head -1`"""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        code = main([lab(), "-p", "no:plot"])
        monkeypatch.undo()
    assert code == 1
