"""Running a recipe: which plugins are active in which order, what the run directory keeps, several variants."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import framework
from framework import RunDirError, checkpoint, hookimpl, run

DEFAULT = ["progress", "console", "history", "best_checkpoint", "plot"]
QUICK = ["no:plot", "no:progress", "no:console"]


def active(info) -> list[str]:
    """The plugins of the run, without the one by which the command line hears of Ctrl-C."""
    return [plugin["name"] for plugin in info["plugins"]]


# ------------------------------------------------------------------------------------------------- which plugins run


@pytest.fixture
def order(lab, fine, info, tmp_path):
    """The active plugins of a run of a recipe with this list of plugins, and these options."""

    def run(listed: str = "[]", *options: str, module: str = "") -> list[str]:
        lab(f"{module}\ndef recipe(): return made(plugins={listed})\n")
        fine("lab.py", "--run-dir", f"run{len(list(tmp_path.glob('run*')))}", *options)
        return active(info(f"run{len(list(tmp_path.glob('run*'))) - 1}"))

    return run


PICKED = ["console", "history", "best_checkpoint"]  # the defaults without what `fine` takes away


def test_the_defaults_are_active_without_being_listed(order, lab, go, info) -> None:
    assert order() == PICKED
    go(lab())
    assert active(info()) == DEFAULT


def test_the_order_is_module_then_list_then_defaults_then_the_command_line(order, tmp_path) -> None:
    (tmp_path / "mine.py").write_text("def on_fit_start(): pass\nclass Own:\n    def on_fit_start(self): pass\n")
    (tmp_path / "others.py").write_text("class Other:\n    def on_fit_start(self): pass\n")
    names = order(
        "['summary', 'early_stopping']", "-p", "gpu_memory", "-p", "mine.py", "-p", "others:Other", "-p", "no:summary",
        module="def on_fit_start(): pass",
    )  # fmt: skip
    assert names == ["lab", "early_stopping", *PICKED, "gpu_memory", "mine", "own", "other"]


def test_a_recipe_without_hooks_is_no_plugin(order) -> None:
    assert order(module="def forward(x): return x\ndef helper(): pass") == PICKED


def test_a_default_that_the_recipe_lists_is_not_added_twice_and_keeps_the_recipes_place(order) -> None:
    assert order("['history', 'summary']") == ["history", "summary", "console", "best_checkpoint"]


def test_an_instance_of_a_default_takes_its_place(order, tmp_path) -> None:
    module = "from framework_plugins.best_checkpoint import BestCheckpoint"
    listed = "[BestCheckpoint(monitor='train_loss', every_seconds=0)]"
    assert order(listed, module=module) == ["best_checkpoint", "console", "history"]
    assert order(listed[:-2] + ", name='mine')]", module=module) == ["mine", *PICKED]


def test_what_is_active_already_is_not_added_again(order) -> None:
    assert order("['summary']", "-p", "summary", "-p", "console") == ["summary", *PICKED]


@pytest.mark.parametrize(
    ("listed", "options", "gone"),
    [
        ("[]", ["-p", "no:history"], "history"),
        ("['summary']", ["-p", "no:summary"], "summary"),
        ("[]", ["-p", "summary", "-p", "no:summary"], "summary"),
        ("[]", ["-p", "no:summary", "-p", "summary"], "summary"),
        ("[]", ["-p", "no:best_checkpoint", "-p", "no:best_checkpoint"], "best_checkpoint"),
    ],
)
def test_no_removes_a_plugin_wherever_it_was_listed(order, listed, options, gone) -> None:
    names = order(listed, *options)
    assert gone not in names
    assert names == [name for name in PICKED if name != gone]


def test_the_recipe_module_and_a_file_can_be_removed_by_their_names(order, tmp_path) -> None:
    (tmp_path / "mine.py").write_text("def on_fit_start(): pass\n")
    assert order("[]", "-p", "no:lab", module="def on_fit_start(): raise AssertionError") == PICKED
    assert order("[]", "-p", "mine.py", "-p", "no:mine") == PICKED


def test_every_default_can_be_removed(lab, go, info, tmp_path) -> None:
    outcome = go(lab(), *(part for name in DEFAULT for part in ("-p", f"no:{name}")))
    assert outcome.code == 0
    assert active(info()) == []
    assert sorted(entry.name for entry in (tmp_path / "runs/lab/001").iterdir()) == [
        "recipe.py",
        "run.json",
        "run.lock",
    ]


def test_a_plugin_listed_twice_is_refused(lab, refused) -> None:
    said = refused(lab("def recipe(): return made(plugins=['summary', 'summary'])\n"))
    assert "2 plugins are called 'summary'; give one of them another name" in said


def test_from_python_instances_can_be_added_and_names_removed(lab, info) -> None:
    class Mine:
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def on_epoch_end(self, epoch: int) -> None:
            self.epochs.append(epoch)

    mine = Mine()
    run(lab(), plugins=[mine, *QUICK])
    assert mine.epochs == [0, 1, 2]
    assert active(info()) == ["history", "best_checkpoint", "mine"]


def test_the_first_listed_wraps_outermost_over_all_places(lab, capsys) -> None:
    wrap = (
        "    @hookimpl(wrapper=True)\n    def on_epoch_end(self):\n"
        "        print(self.name, 'in')\n        yield\n        print(self.name, 'out')\n"
    )
    source = (
        f"class Wrap:\n    def __init__(self, name): self.name = name\n{wrap}"
        "@hookimpl(wrapper=True)\ndef on_epoch_end():\n    print('module in')\n    yield\n    print('module out')\n"
        "def recipe(): return made(epochs=1, plugins=[Wrap('one'), Wrap('two')])\n"
    )

    class Last:
        @hookimpl(wrapper=True)
        def on_epoch_end(self):
            print("last in")
            yield
            print("last out")

    run(lab(source), plugins=[Last(), *QUICK])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith((" in", " out"))]
    assert lines == ["module in", "one in", "two in", "last in", "last out", "two out", "one out", "module out"]


# ------------------------------------------------------------------------------------------------ what a run leaves


def test_stdout_tells_the_run(lab, go) -> None:
    outcome = go(lab(), "--seed", "3", "-p", "no:plot")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.isascii()
    assert outcome.line("recipe") == "lab    A small lab."
    assert outcome.line("data") == "6 samples in 3 batches of 2, from memory"
    assert outcome.line("model") == "Linear, 4 parameters in 1 layer (0 hidden)"
    assert outcome.line("device") in ("cpu", "cuda:0", "mps")
    assert outcome.line("seed") == "3"
    assert outcome.line("plugins").startswith("progress, console, history, best_checkpoint")
    assert outcome.line("epoch").split()[0] == "train_loss"
    assert outcome.line("stopped").startswith("after 3 epochs")
    assert outcome.line("result").startswith("train_loss ")
    assert outcome.line("saved") == f"{Path('runs/lab/001')}{os.sep}"
    assert outcome.line("next") == "python -m framework lab.py --lr 0.5"
    words = [line.split()[0] for line in outcome.out.splitlines() if line.strip()]
    told = ["recipe", "data", "model", "device", "seed", "plugins", "epoch", "stopped", "result", "saved", "next"]
    assert sorted(set(told), key=words.index)[-5:] == told[-5:]


def test_the_table_of_a_long_run_has_about_twenty_lines(lab, fine) -> None:
    outcome = fine(lab(), "--epochs", "997")
    table = [line for line in outcome.out.splitlines() if line.split()[:1] and line.split()[0].isdigit()]
    assert 10 <= len(table) <= 22
    assert table[0].split()[0] == "0"
    assert table[-1].split()[0] == "996"


def test_the_first_command_gives_the_figures_of_the_notes(fine, rows, tmp_path) -> None:
    """The promise of the README, as far as it can be tested in this process."""
    fine("softmax")
    found = rows("runs/softmax/001")
    assert [row["epoch"] for row in found] == list(range(1001))
    assert f"{found[0]['train_loss']:.6f}" == "1.098612"
    assert f"{found[1000]['train_loss']:.6f}" == "0.399962"


def test_run_json_tells_what_ran(lab, go, info, tmp_path) -> None:
    go(lab(), "--lr", "0.2", "--seed", "4", "--device", "cpu")
    found = info()
    assert found["recipe"] == "lab"
    assert found["file"] == str(tmp_path / "lab.py")
    assert found["sha256"] == hashlib.sha256((tmp_path / "lab.py").read_bytes()).hexdigest()
    assert found["knobs"] == {"lr": 0.2, "epochs": 3}
    assert (found["seed"], found["device"], found["deterministic"]) == (4, "cpu", False)
    assert found["plugins"][0] == {
        "name": "progress", "listed": "default", "distribution": f"framework-trainer {framework.__version__}",
    }  # fmt: skip
    assert found["framework"] == framework.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert "git_commit" in found
    assert isinstance(found["command"], list)
    assert found["stop_reason"] == "completed"
    assert (found["epochs"], found["steps"]) == (3, 9)
    assert found["best"]["monitor"] == "train_loss"
    assert found["best"]["epoch"] in (0, 1, 2)
    assert (tmp_path / found["best"]["path"]).is_dir()


def test_the_run_directory_holds_what_the_contract_says(lab, go, tmp_path) -> None:
    go(lab())
    path = tmp_path / "runs/lab/001"
    assert {entry.name for entry in path.iterdir()} == {
        "run.json", "recipe.py", "metrics.jsonl", "checkpoints", "curves.svg", "run.lock",
    }  # fmt: skip
    assert (path / "recipe.py").read_bytes() == (tmp_path / "lab.py").read_bytes()
    assert {entry.name for entry in (path / "checkpoints").iterdir()} >= {"LAST", "BEST"}
    assert (path / "curves.svg").read_text(encoding="utf-8").startswith("<?xml")
    for file in path.rglob("*"):
        assert file.suffix not in (".pt", ".pth", ".pkl", ".pickle")
        assert not file.name.startswith(".tmp")


def test_each_row_is_on_the_disk_as_soon_as_its_epoch_is_over(lab, fine) -> None:
    source = (
        "seen = []\n"
        "def on_epoch_start(trainer, epoch):\n"
        "    seen.append(len((trainer.run_dir / 'metrics.jsonl').read_text().splitlines()))\n"
        "def on_fit_end(): print('seen', seen)\n"
        "def recipe(): return made(epochs=4)\n"
    )
    assert fine(lab(source)).line("seen") == "[0, 1, 2, 3]"


def test_the_rows_are_the_history_of_the_result(lab, rows) -> None:
    result = run(lab(), plugins=QUICK)
    assert rows() == result.history


def test_runs_are_numbered_and_none_is_overwritten(lab, fine, tmp_path) -> None:
    for _ in range(3):
        fine(lab())
    (tmp_path / "runs/lab/017").mkdir()
    (tmp_path / "runs/lab/notes").mkdir()
    fine(lab())
    names = sorted(entry.name for entry in (tmp_path / "runs/lab").iterdir())
    assert names == ["001", "002", "003", "017", "018", "notes"]


def test_a_test_set_is_evaluated_once_after_training(lab, fine, info) -> None:
    outcome = fine(lab("def recipe(): return made(test=made().train, plugins=[])\n"))
    assert outcome.line("test").startswith("test_loss ")
    assert list(info()["test"]) == ["test_loss"]


def test_deterministic_is_asked_for_by_name(lab, fine, info) -> None:
    hook = "def on_fit_end():\n    print('ASKED', torch.are_deterministic_algorithms_enabled())\n"
    assert fine(lab(hook + "def recipe(): return made()\n"), "--deterministic").line("ASKED") == "True"
    assert info()["deterministic"] is True
    assert not torch.are_deterministic_algorithms_enabled()  # for that run alone


def test_one_seed_is_one_history(lab, fine, rows) -> None:
    for seed in ("5", "5", "6"):
        fine(lab(), "--seed", seed)
    assert rows("runs/lab/001") == rows("runs/lab/002") != rows("runs/lab/003")


# ------------------------------------------------------------------------------------------------------- --run-dir


def test_a_run_is_kept_where_it_is_asked_for(lab, fine, info, tmp_path) -> None:
    outcome = fine(lab(), "--run-dir", "deep/er/here")
    assert outcome.line("saved") == f"{Path('deep/er/here')}{os.sep}"
    assert info("deep/er/here")["stop_reason"] == "completed"
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_is_never_overwritten(lab, fine, refused, tmp_path) -> None:
    fine(lab(), "--run-dir", "here")
    before = {file: file.read_bytes() for file in (tmp_path / "here").rglob("*") if file.is_file()}
    said = refused(lab(), "--run-dir", "here")
    assert "here holds a finished run" in said
    assert "name another directory" in said
    assert {file: file.read_bytes() for file in (tmp_path / "here").rglob("*") if file.is_file()} == before


def test_a_finished_run_without_rows_and_checkpoint_is_not_overwritten_either(lab, fine, refused) -> None:
    fine(lab(), "--run-dir", "here", "-p", "no:history", "-p", "no:best_checkpoint")
    assert "here holds a finished run" in refused(lab(), "--run-dir", "here")


def unfinished(path: Path) -> None:
    """As a run looks that was killed."""
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**info, "stop_reason": None}))


def test_an_unfinished_run_with_a_checkpoint_is_left_to_resume(lab, fine, refused, tmp_path) -> None:
    fine(lab(), "--run-dir", "here")
    unfinished(tmp_path / "here")
    said = refused(lab(), "--run-dir", "here")
    assert "here holds an unfinished run with a checkpoint" in said
    assert "python -m framework resume here" in said


def test_an_unfinished_run_without_a_checkpoint_starts_over(lab, fine, rows, info, tmp_path) -> None:
    fine(lab(), "--run-dir", "here", "-p", "no:best_checkpoint")
    unfinished(tmp_path / "here")
    with (tmp_path / "here/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 12, "train_l')
    fine(lab(), "--run-dir", "here", "--epochs", "2")
    assert len(rows("here")) == 2
    assert info("here")["stop_reason"] == "completed"


def test_a_run_that_starts_over_leaves_no_rows_of_before(lab, fine, tmp_path) -> None:
    fine(lab(), "--run-dir", "here", "-p", "no:best_checkpoint")
    unfinished(tmp_path / "here")
    fine(lab(), "--run-dir", "here", "-p", "no:history")
    assert not (tmp_path / "here/metrics.jsonl").exists()


def test_a_directory_that_a_run_is_using_is_left_to_it(lab, fine, refused, tmp_path) -> None:
    fine(lab(), "--run-dir", "here", "-p", "no:best_checkpoint")
    unfinished(tmp_path / "here")
    before = (tmp_path / "here/metrics.jsonl").read_bytes()
    with checkpoint.lock(tmp_path / "here", by="run"):
        assert f"here is in use by pid {os.getpid()} on host " in refused(lab(), "--run-dir", "here")
    assert (tmp_path / "here/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("mistake", ["def recipe(): return made(torch.zeros(0, 3))\n",
                                     "def recipe(): return made(y=torch.zeros(6))\n",
                                     "def recipe(): return made()\ndef on_epoch_ended(): pass\n"])  # fmt: skip
def test_a_mistake_does_not_use_up_the_directory(lab, fine, refused, info, mistake) -> None:
    refused(lab(mistake), "--run-dir", "here")
    fine(lab(), "--run-dir", "here")
    assert info("here")["stop_reason"] == "completed"


def test_a_mistake_late_in_a_run_loses_nothing(lab, refused, info, tmp_path) -> None:
    """A plugin that answers wrongly in epoch 2 is the user's mistake too; two epochs have been trained by then."""
    source = (
        "class Forgets:\n    def backward(self, trainer, loss):\n"
        "        loss.backward()\n        return True if trainer.step < 2 else None\n"
        "def recipe(): return made(epochs=5, plugins=[Forgets()])\n"
    )
    for options in ([], ["-p", "no:history"]):
        assert "hook backward returned None" in refused(lab(source), *options)
    for number in ("001", "002"):
        assert info(f"runs/lab/{number}")["stop_reason"].startswith("PluginError: plugin 'forgets'")
        assert (tmp_path / f"runs/lab/{number}/checkpoints/LAST").is_file()


def test_an_empty_directory_may_be_named(lab, fine, tmp_path) -> None:
    (tmp_path / "here").mkdir()
    fine(lab(), "--run-dir", "here")
    assert (tmp_path / "here" / "run.json").is_file()


def test_a_directory_that_holds_something_else_is_left_alone(lab, refused, tmp_path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/thesis.txt").write_text("x")
    said = refused(lab(), "--run-dir", "here")
    assert "here is not empty and holds no run (thesis.txt); name another directory" in said
    assert [entry.name for entry in (tmp_path / "here").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("path", ["lab.py", "lab.py/deep", "lab.py/deep/er"])
def test_a_directory_that_cannot_be_made_is_named_with_the_reason(lab, refused, path) -> None:
    assert f"cannot write into the run directory {Path(path)}: " in refused(lab(), "--run-dir", path)


def test_runs_that_cannot_be_made_is_named(lab, refused, tmp_path) -> None:
    (tmp_path / "runs").write_text("in the way")
    assert f"cannot write into the run directory {Path('runs/lab')}: " in refused(lab())


def test_a_directory_that_is_read_only_is_named_with_the_reason(lab, refused, tmp_path) -> None:
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("root may write everywhere; the next test has a directory that nobody can write into")
    (tmp_path / "here").mkdir(mode=0o500)
    assert "cannot write into the run directory here: Permission denied" in refused(lab(), "--run-dir", "here")


def test_a_directory_that_nobody_can_write_into_is_named_with_the_reason(lab, refused) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs /proc, where no directory can be made")
    assert "cannot write into the run directory /proc/self/here: " in refused(lab(), "--run-dir", "/proc/self/here")


def test_a_damaged_run_json_is_named(lab, refused, tmp_path) -> None:
    (tmp_path / "here").mkdir()
    for text in ("{", "[]", ""):
        (tmp_path / "here/run.json").write_text(text)
        assert str(Path("here/run.json")) in refused(lab(), "--run-dir", "here")


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from framework.cli import main
import framework.cli.running
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
for options in (["--epochs", "400"], ["-p", "no:history", "--run-dir", "b"]):
    print("exit", main(["lab.py", "-p", "no:plot", *options]), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
print("exit", main(["lab.py", "-p", "no:plot", "--run-dir", "c"]), flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_ends_the_run_with_a_message_that_says_so(lab, tmp_path) -> None:
    """Files cannot grow beyond a size here, which the program sees as it sees a full disk: a write that fails."""
    source = (
        "class Large(nn.Module):\n    def __init__(self):\n        super().__init__(); self.l = nn.Linear(3, 1)\n"
        "        self.register_buffer('big', torch.zeros(2000))\n    def forward(self, x): return self.l(x)\n"
        "def recipe(epochs: int = 3): return made(model=Large(), epochs=epochs)\n"
    )
    lab(source)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "4000"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.stdout.count("exit ") == 3
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert "metrics.jsonl: File too large" in errors[0]  # the rows
    assert "cannot write a checkpoint into " in errors[1]
    assert "File too large" in errors[1]
    assert "cannot write into the run directory c: File too large" in errors[2]  # run.json itself
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 1", "exit 1", "exit 1"]
    rows = (tmp_path / "runs/lab/001/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows[:-1]] == list(range(len(rows) - 1))
    assert len(rows) > 20
    assert not list((tmp_path / "b").rglob(".tmp-*"))


# -------------------------------------------------------------------------------------------------------- variants


VARIANTS = """
def one(lr, **settings):
    def build():
        print("draw", torch.rand(()).item())
        return made(lr=lr, epochs=3, **settings)
    return build

def recipe(lr: float = 0.1):
    torch.rand(11)
    return {"small": one(lr), "large step": one(3 * lr)}
"""


def test_variants_run_one_after_another_and_are_compared(lab, fine, info, rows, tmp_path) -> None:
    outcome = fine(lab(VARIANTS))
    draws = [line for line in outcome.out.splitlines() if line.startswith("draw ")]
    assert len(draws) == 2
    assert draws[0] == draws[1]
    heads = [line for line in outcome.out.splitlines() if line.startswith("variant")]
    assert [head.removeprefix("variant").strip() for head in heads] == ["small", "large step"]
    assert info()["variants"] == ["small", "large step"]
    assert info()["stop_reason"] == "completed"
    for label in ("small", "large step"):
        assert info(f"runs/lab/001/{label}")["label"] == label
        assert info(f"runs/lab/001/{label}")["stop_reason"] == "completed"
        assert len(rows(f"runs/lab/001/{label}")) == 3
        assert (tmp_path / "runs/lab/001" / label / "recipe.py").is_file()
    first, second = rows("runs/lab/001/small"), rows("runs/lab/001/large step")
    assert first[0]["train_loss"] == second[0]["train_loss"]  # the same model on the same data
    assert first[2]["train_loss"] != second[2]["train_loss"]
    assert outcome.line("saved") == f"{Path('runs/lab/001')}{os.sep}"
    table = outcome.out[outcome.out.index("\nrun ") :]
    for label in ("small", "large step"):
        (row,) = [line for line in table.splitlines() if line.startswith(label)]
        assert f"{rows(f'runs/lab/001/{label}')[-1]['train_loss']:.6g}" in row
    assert (tmp_path / "runs/lab/001/compare.svg").is_file()


def test_variants_give_a_dict_of_results(lab) -> None:
    results = run(lab(VARIANTS), plugins=QUICK, run_dir="here")
    assert list(results) == ["small", "large step"]
    assert results["small"].run_dir == Path("here/small")
    assert len(results["large step"].history) == 3


def test_variants_without_rows_are_run_and_only_not_compared(lab, fine) -> None:
    outcome = fine(lab(VARIANTS), "-p", "no:history")
    assert "metrics.jsonl" in outcome.line("compare")


def test_variants_keep_a_copy_of_the_recipe_beside_them(lab, fine, tmp_path) -> None:
    fine(lab(VARIANTS), "-p", "no:history")
    assert (tmp_path / "runs/lab/001/recipe.py").read_bytes() == (tmp_path / "lab.py").read_bytes()


def test_a_mistake_in_the_first_variant_leaves_nothing_behind(lab, refused, tmp_path) -> None:
    source = VARIANTS.replace("one(lr)", "one(lr, batch_size=-1)")
    assert "batch_size must be a whole number from 1 up, got -1" in refused(lab(source))
    assert list((tmp_path / "runs/lab").iterdir()) == []


def test_a_mistake_in_a_later_variant_keeps_the_earlier_ones(lab, refused, info, rows) -> None:
    source = VARIANTS.replace("one(3 * lr)", "lambda: {}['x']")
    assert "KeyError: 'x'" in refused(lab(source), "-p", "no:plot")
    assert info("runs/lab/001/small")["stop_reason"] == "completed"
    assert len(rows("runs/lab/001/small")) == 3
    assert info()["stop_reason"].startswith("large step: RecipeError")


def test_several_variants_cannot_overwrite_a_run(lab, fine, refused) -> None:
    fine(lab(VARIANTS), "--run-dir", "here")
    assert "here holds a finished run" in refused(lab(VARIANTS), "--run-dir", "here")


def test_the_error_that_ended_a_run_is_not_replaced_by_one_about_its_directory(lab) -> None:
    source = (
        "import shutil\n"
        "def on_epoch_end(trainer):\n    shutil.rmtree(trainer.run_dir)\n    raise KeyError('the real one')\n"
        "def recipe(): return made()\n"
    )
    with pytest.raises(KeyError, match="the real one"):
        run(lab(source), plugins=[*QUICK, "no:history", "no:best_checkpoint"])


def test_a_directory_that_vanishes_is_told(lab) -> None:
    source = "import shutil\ndef on_fit_end(trainer): shutil.rmtree(trainer.run_dir)\ndef recipe(): return made()\n"
    with pytest.raises(RunDirError, match="cannot write into the run directory"):
        run(lab(source), plugins=[*QUICK, "no:history", "no:best_checkpoint"])


# ------------------------------------------------------------------------------------------- what trains nothing


DRAWS = """
from pathlib import Path
from framework import picture

def recipe(run_dir: Path, lr: float = 0.1):
    print("here", run_dir.name, lr, torch.zeros(1).device)
    with picture(run_dir / "drawn.svg", 2, 2) as figure:
        figure.subplots()
"""


def test_a_recipe_that_asks_for_the_directory_draws_into_it(lab, go, info, tmp_path) -> None:
    outcome = go(lab(DRAWS), "--lr", "0.2", "--seed", "3")
    assert outcome.code == 0
    assert outcome.line("recipe") == "lab    A small lab."
    assert outcome.line("here") == "001 0.2 cpu"
    assert outcome.line("saved") == f"{Path('runs/lab/001')}{os.sep}"
    assert outcome.line("pictures") == "drawn.svg"
    assert outcome.line("next") == "python -m framework lab.py --lr 0.5"
    assert {entry.name for entry in (tmp_path / "runs/lab/001").iterdir()} == {
        "run.json", "recipe.py", "drawn.svg", "run.lock",
    }  # fmt: skip
    found = info()
    assert (found["knobs"], found["seed"], found["stop_reason"]) == ({"lr": 0.2}, 3, "completed")


def test_the_directory_is_no_knob(lab, go, refused) -> None:
    path = lab(DRAWS)
    assert "run_dir" not in go(path, "--help").out.replace("--run-dir", "")
    assert "the knob 'run_dir' of recipe() has a name that the command line owns" in refused(
        lab("def recipe(run_dir: str = ''): pass\n", name="other.py")
    )


def test_it_can_be_told_where(lab, go, refused) -> None:
    assert go(lab(DRAWS), "--run-dir", "here").line("saved") == f"here{os.sep}"
    assert "here holds a finished run" in refused(lab(DRAWS), "--run-dir", "here")


def test_it_takes_no_plugins(lab, go, refused) -> None:
    assert "the recipe lab trains nothing: leave out -p summary" in refused(lab(DRAWS), "-p", "summary")
    assert "leave out -p no:plott" in refused(lab(DRAWS), "-p", "no:plott")
    assert go(lab(DRAWS), "-p", "no:plot").code == 0  # as a script says for every recipe


def test_it_runs_on_the_cpu_and_says_so(lab, go, info) -> None:
    assert go(lab(DRAWS), "--device", "cpu").line("here") == "001 0.1 cpu"
    assert info()["device"] == "cpu"
    if torch.cuda.is_available():
        go(lab(DRAWS))
        assert info("runs/lab/002")["device"] == "cpu"
        assert "leave out --device cuda" in go(lab(DRAWS), "--device", "cuda").err


def test_what_it_has_written_is_not_lost_by_its_error(lab, go, info, tmp_path) -> None:
    source = "def recipe(run_dir):\n    (run_dir / 'table.csv').write_text('1')\n    raise OSError(12, 'no memory')\n"
    outcome = go(lab(source))
    assert outcome.code != 0
    assert "no memory" in outcome.err
    assert (tmp_path / "runs/lab/001/table.csv").is_file()
    assert "no memory" in info()["stop_reason"]


@pytest.mark.parametrize("body", ["return made()", "return 3", "raise KeyError('x')"])
def test_its_mistake_leaves_nothing_behind(lab, refused, tmp_path, body) -> None:
    said = refused(lab(f"def recipe(run_dir):\n    {body}\n"))
    assert "lab" in said
    assert list((tmp_path / "runs/lab").iterdir()) == []
    refused(lab(f"def recipe(run_dir):\n    {body}\n"), "--run-dir", "here")
    assert refused(lab(f"def recipe(run_dir):\n    {body}\n"), "--run-dir", "here")  # it may be named again


def test_building_it_is_not_running_it(lab, capsys) -> None:
    assert framework.build(lab("def recipe(run_dir): raise AssertionError\n")) is None
    assert run(lab(DRAWS), run_dir="here") is None
    assert "saved     here" in capsys.readouterr().out


def test_the_pictures_of_variants_are_told_with_their_labels(lab, go) -> None:
    told = go(lab(VARIANTS)).line("pictures")
    assert told.startswith("compare.svg, ")
    assert "large step/curves.svg" in told
    assert "small/curves.svg" in told


# ------------------------------------------------------------------------------------------- Ctrl-C, determinism


def test_ctrl_c_after_the_last_step_of_a_variant_begins_no_other(lab, go, info, tmp_path) -> None:
    """The variant in hand is complete; the fit of the next is not begun."""
    source = (
        "import os, signal\n"
        "def on_fit_end(trainer):\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "def recipe(): return {'a': made, 'b': made}\n"
    )
    outcome = go(lab(source), "-p", "no:plot")
    assert outcome.code == 130
    assert info("runs/lab/001/a")["stop_reason"] == "completed"
    assert info()["variants"] == ["a"]
    assert info()["stop_reason"] == "Ctrl-C"
    assert not (tmp_path / "runs/lab/001/b").exists()


def test_the_variants_that_ran_can_be_read_when_a_later_one_failed(lab, go, info) -> None:
    source = "def recipe(): return {'a': made, 'b': made, 'c': lambda: {}['x'], 'd': made}\n"
    assert go(lab(source), "-p", "no:plot").code == 2
    assert info()["variants"] == ["a", "b"]
    assert list(framework.read_runs(Path("runs/lab/001"))) == ["a", "b"]


def test_what_torch_was_told_about_determinism_is_left_as_it_was(lab) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for deterministic in (False, True):
            run(lab("def recipe(): return made(epochs=1)\n"), deterministic=deterministic, plugins=QUICK)
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_suggested_commands_can_be_typed_where_a_folder_has_a_space(lab, go) -> None:
    outcome = go(lab(name="my labs/lab.py"), "--epochs", "1", "-p", "no:plot")
    assert shlex.split(outcome.line("next")) == ["python", "-m", "framework", "my labs/lab.py", "--lr", "0.5"]
