"""A run in a console: Ctrl-C, consoles of every encoding."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from framework.cli import main
from framework.cli.train import Signals
from framework.testing import tiny_data, tiny_trainer

RUN = "runs/lab/001"

INTERRUPTED = """
import signal

def on_batch_end(trainer):
    if trainer.step == 5:
        for _ in range(TIMES):
            signal.raise_signal(signal.SIGINT)

def recipe(): return made(epochs=10**6)
"""


@pytest.fixture(autouse=True)
def _the_handler_is_put_back():
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with SIG_IGN
    yield
    found = signal.signal(signal.SIGINT, inherited)
    assert found is signal.default_int_handler


def test_one_interrupt_ends_the_run_after_the_step_with_a_checkpoint(lab, go, info, rows, tmp_path) -> None:
    outcome = go(lab(INTERRUPTED.replace("TIMES", "1")), "-p", "no:plot")
    assert outcome.code == 130
    assert "stopping after this step and saving; press Ctrl-C again to quit at once" in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.line("stopped").startswith("Ctrl-C")
    assert outcome.line("saved").startswith("runs")
    found = info()
    assert (found["stop_reason"], found["steps"], found["epochs"]) == ("Ctrl-C", 5, 5)
    assert len(rows()) == 5
    assert (tmp_path / RUN / "checkpoints/LAST").read_text().count("step-000000000005") == 1
    assert go("evaluate", RUN, "--checkpoint", "last").code == 0


def test_two_interrupts_end_the_run_at_once(lab, go, info, rows, tmp_path) -> None:
    outcome = go(lab(INTERRUPTED.replace("TIMES", "2")), "-p", "no:plot")
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    assert info()["stop_reason"].startswith("KeyboardInterrupt")
    assert len(rows()) == 4  # the fifth epoch was not over
    assert (tmp_path / RUN / "checkpoints/LAST").is_file()


def test_an_interrupt_before_the_training_ends_the_program(lab, go, tmp_path) -> None:
    source = "import signal\ndef recipe():\n    signal.raise_signal(signal.SIGINT)\n    return made()\n"
    outcome = go(lab(source))
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_an_interrupt_in_one_variant_leaves_out_the_next(lab, go, info, tmp_path) -> None:
    source = INTERRUPTED.replace("TIMES", "1").replace("return made(epochs=10**6)", "return {'a': long, 'b': long}")
    outcome = go(lab(source + "def long(): return made(epochs=10**6)\n"), "-p", "no:plot")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert info(f"{RUN}/a")["stop_reason"] == "Ctrl-C"
    assert (tmp_path / RUN / "a/checkpoints/LAST").is_file()
    assert not (tmp_path / RUN / "b/metrics.jsonl").exists() or not (tmp_path / RUN / "b/metrics.jsonl").read_text()
    assert info()["stop_reason"] != "completed"


def test_an_interrupt_prints_nothing_with_quiet(lab, go) -> None:
    outcome = go(lab(INTERRUPTED.replace("TIMES", "1")), "-p", "no:plot", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


def test_the_plugin_for_interrupts_changes_nothing_about_a_fit() -> None:
    plain = tiny_trainer().fit(tiny_data(), epochs=3, batch_size=2)
    assert tiny_trainer(plugins=[Signals()]).fit(tiny_data(), epochs=3, batch_size=2).epochs == plain.epochs


LONG = """
def on_batch_end(trainer):
    if STUCK and trainer.step == 40:
        print("stuck", flush=True)
        while True: pass

def recipe(): return made(epochs=10**9)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGINT cannot be sent to one process there")
@pytest.mark.parametrize("stuck", [False, True])
def test_a_process_that_is_interrupted_saves_and_ends_with_130(lab, info, tmp_path, stuck) -> None:
    """One signal in the middle of a run; two where the step in hand never ends."""
    command = [sys.executable, "-m", "framework", lab(LONG.replace("STUCK", str(stuck))), "-p", "no:plot"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        until = "stuck" if stuck else "epoch"
        assert any(line.split()[:1] == [until] for line in process.stdout)  # the head of the table comes unasked
        process.send_signal(signal.SIGINT)
        if stuck:
            assert any("press Ctrl-C again" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert (tmp_path / RUN / "checkpoints/LAST").is_file()
    assert info()["stop_reason"].startswith("KeyboardInterrupt" if stuck else "Ctrl-C")


# --------------------------------------------------------------------------------------------------------- consoles


TITLE = "실습 6: 소프트맥스 🎓."


@pytest.fixture
def korean(lab, tmp_path):
    """A recipe with a Korean title in a folder with a Korean name."""
    name = lab(name="실습 폴더/소프트맥스.py")
    source = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(f'"""{TITLE}\n\nNext: --lr 0.5\n"""\n{source}', encoding="utf-8")
    return name


@pytest.mark.parametrize("encoding", ["ascii", "cp949", "cp1252", "utf-8", "utf-16"])
def test_no_console_encoding_ends_a_run(korean, monkeypatch, encoding) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = main([korean, "--run-dir", "결과 폴더/첫 번째", "-p", "no:plot"])
    wrong = main([korean, "--run-dir", "결과 폴더/첫 번째"])
    with pytest.raises(SystemExit) as helped:
        main([korean, "--help"])
    monkeypatch.undo()
    told = out.buffer.getvalue().decode(encoding)
    assert (code, wrong, helped.value.code) == (0, 2, 0)
    assert TITLE.encode(encoding, "backslashreplace").decode(encoding) in told
    assert "첫 번째".encode(encoding, "backslashreplace").decode(encoding) in told
    assert "--lr" in told
    assert "holds a finished run" in err.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    "console",
    [
        {"PYTHONIOENCODING": "cp949"},
        # no encoding at all: neither for the console nor for the names of files
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["cp949", "ascii"],
)
def test_a_process_in_such_a_console_runs_to_its_end(korean, tmp_path, console) -> None:
    if "LC_ALL" in console and not __file__.isascii():
        pytest.skip("in such a console Python itself finds no module in a folder with Hangul")
    (tmp_path / korean).rename(tmp_path / "실습 폴더/lab.py")
    korean = "실습 폴더/lab.py"
    done = subprocess.run(
        [sys.executable, "-m", "framework", korean, "--run-dir", "결과 폴더"], cwd=tmp_path, capture_output=True,
        env={**os.environ, **console},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    encoding = console["PYTHONIOENCODING"]
    assert TITLE.encode(encoding, "backslashreplace") in done.stdout
    for file in ("run.json", "metrics.jsonl", "recipe.py", "curves.svg"):
        assert (tmp_path / "결과 폴더" / file).read_text(encoding="utf-8")


def test_a_data_set_of_a_recipe_reaches_worker_processes_that_are_spawned(lab, fine) -> None:
    """As on Windows and macOS: the worker imports the recipe by its name to unpickle the data set."""
    source = (
        "import my_rows_of_a_lab\n"
        "class Rows(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return torch.full((3,), float(i)), my_rows_of_a_lab.target(i)\n"
        "def recipe():\n    made_here = made(epochs=1)\n    made_here.train = torch.utils.data.DataLoader(\n"
        "        Rows(), batch_size=2, num_workers=1, multiprocessing_context='spawn')\n    return made_here\n"
    )
    lab("import torch\ndef target(i): return torch.zeros(1)\n", "labs/my_rows_of_a_lab.py", head="")
    assert (
        fine(lab(source, "labs/lab.py")).line("data")
        == "4 samples in 2 batches of 2, by torch's DataLoader: num_workers=1"
    )


def test_what_is_imported_is_left_out_of_garbage_collection_and_what_a_recipe_makes_is_not(tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(
        "import gc\ndef recipe():\n    print('enabled', gc.isenabled(), 'kept', gc.get_freeze_count() > 10000)\n",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "framework", "lab.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("enabled True kept True\n")
