"""Signals: what each does to a run, what is left on the disk and of the handlers that were there before."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from framework import run
from framework.checkpoint import find, read
from framework.cli import main
from framework.cli.signals import Signals
from framework.testing import tiny_data, tiny_trainer

RUN = "runs/lab/001"
QUICK = ("-p", "no:plot", "-p", "no:progress")
NAMES = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
STOPS = [name for name in NAMES if name in STATUS]
REASON = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
needs_usr1 = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")

SIGNALLED = """
import signal

def on_batch_end(trainer, split):
    if trainer.step == 5 and split == "train":
        for name in NAMES:
            signal.raise_signal(getattr(signal, name))

def recipe(epochs: int = 9): return made(epochs=epochs)
"""


def signalled(*names: str) -> str:
    """A recipe that gets these signals in its fifth step, of nine."""
    return SIGNALLED.replace("NAMES", repr(names))


def handlers() -> list[Any]:
    return [signal.getsignal(getattr(signal, name)) for name in NAMES]


@pytest.fixture(autouse=True)
def _the_handlers_are_put_back() -> Iterator[None]:
    """A job in the background starts with SIGINT ignored; here every signal is as in a console."""
    plain = {name: signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL for name in NAMES}
    inherited = {name: signal.signal(getattr(signal, name), handler) for name, handler in plain.items()}
    yield
    found = {name: signal.signal(getattr(signal, name), handler) for name, handler in inherited.items()}
    assert found == plain


# ------------------------------------------------------------------------------------------------------- one signal


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(lab, go, info, rows, name) -> None:
    outcome = go(lab(signalled(name)), *QUICK)
    assert outcome.code == STATUS[name]
    assert "stopping after this step and saving; press Ctrl-C again to quit at once" in outcome.err
    assert "saved step 5; it is safe to kill this process now" in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.line("stopped").startswith(REASON[name])
    assert outcome.line("next") == f"python -m framework resume {Path(RUN)}"
    found = info()
    assert (found["stop_reason"], found["steps"], found["epochs"]) == (REASON[name], 5, 5)
    assert len(rows()) == 5
    last = find(Path(RUN), "last")
    assert last is not None
    assert last.name == "step-000000000005"
    assert read(last).exact


@needs_usr1
@pytest.mark.parametrize("background", [False, True])
def test_sigusr1_saves_and_goes_on(lab, go, info, background) -> None:
    source = signalled("SIGUSR1").replace("epochs=epochs", f"epochs=epochs, async_save={background}")
    source += "def on_checkpoint(path): print('CHECKPOINT', path.name)\n"
    outcome = go(lab(source), *QUICK)
    assert outcome.code == 0
    assert outcome.err == "saving after this step\nsaved step 5\n"  # once, and nothing of the last one
    assert [line for line in outcome.out.splitlines() if "CHECKPOINT" in line] == [
        f"CHECKPOINT step-00000000000{step}" for step in (5, 9)
    ]
    assert (info()["stop_reason"], info()["steps"]) == ("completed", 9)


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_saves_without_a_plugin_that_does(lab, go, name) -> None:
    outcome = go(lab(signalled(name)), *QUICK, "-p", "no:best_checkpoint")
    assert outcome.code == STATUS[name]
    assert "saved step 5; it is safe to kill" in outcome.err
    assert read(Path(RUN, "checkpoints/step-000000000005")).exact


def test_a_run_that_was_stopped_does_not_evaluate_its_test_set_yet(lab, go, info) -> None:
    outcome = go(lab(signalled("SIGINT").replace("epochs=epochs", "epochs=epochs, test=made().train")), *QUICK)
    assert "test" not in [line.split()[0] for line in outcome.out.splitlines() if line]
    assert info()["test"] is None


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_prints_nothing_with_quiet(lab, go, name) -> None:
    outcome = go(lab(signalled(name)), "-p", "no:plot", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (STATUS[name], "", "")


def test_a_signal_during_the_last_step_of_an_epoch_completes_the_epoch(lab, go, rows) -> None:
    source = signalled("SIGINT").replace("epochs=epochs", "epochs=epochs, batch_size=3, val=made().train")
    assert go(lab(source.replace("step == 5", "step == 6")), *QUICK).code == 130
    assert [row["step"] for row in rows()] == [2, 4, 6]


@pytest.mark.parametrize(
    ("names", "code"),
    [(("SIGTERM", "SIGTERM"), 143), (("SIGTERM", "SIGHUP"), 143), (("SIGINT", "SIGTERM"), 130),
     (("SIGTERM", "SIGUSR1"), 143), (("SIGUSR1", "SIGTERM"), 143), (("SIGUSR1", "SIGINT"), 130)],
)  # fmt: skip
@needs_usr1
def test_another_signal_while_it_stops_changes_nothing(lab, go, info, names, code) -> None:
    outcome = go(lab(signalled(*names)), *QUICK)
    assert outcome.code == code
    assert outcome.err.count("stopping after this step") == 1
    assert (info()["steps"], info()["stop_reason"]) == (5, "Ctrl-C" if code == 130 else "SIGTERM")


# ------------------------------------------------------------------------------------- before, between and after fits


def test_an_interrupt_before_the_training_ends_the_program(lab, go, tmp_path) -> None:
    source = "import signal\ndef recipe():\n    signal.raise_signal(signal.SIGINT)\n    return made()\n"
    outcome = go(lab(source))
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_in_one_variant_leaves_out_the_next(lab, go, info, tmp_path, name) -> None:
    source = signalled(name).replace("return made(epochs=epochs)", "return {'a': made_long, 'b': made_long}")
    outcome = go(lab(source + "def made_long(): return made(epochs=9)\n"), *QUICK)
    assert outcome.code == STATUS[name]
    assert outcome.line("next") == f"python -m framework resume {Path(RUN)}"
    assert info(f"{RUN}/a")["stop_reason"] == REASON[name]
    assert find(Path(RUN, "a"), "last") is not None
    assert not (tmp_path / RUN / "b").exists()
    assert (info()["stop_reason"], info()["variants"]) == (REASON[name], ["a"])


@pytest.mark.parametrize("name", STOPS)
def test_a_signal_after_the_last_step_of_a_variant_is_not_lost(lab, go, info, tmp_path, name) -> None:
    source = f"import signal\ndef on_fit_end(): signal.raise_signal(signal.{name})\n"
    outcome = go(lab(source + "def recipe(): return {'a': made, 'b': made}\n"), *QUICK)
    assert outcome.code == STATUS[name]
    assert (info(f"{RUN}/a")["stop_reason"], info()["stop_reason"]) == ("completed", REASON[name])
    assert not (tmp_path / RUN / "b").exists()


def test_a_signal_after_the_last_step_of_all_leaves_a_finished_run(lab, go, info, tmp_path) -> None:
    source = "import signal\ndef on_fit_end(): signal.raise_signal(signal.SIGTERM)\n"
    outcome = go(lab(source + "def recipe(): return {'a': made}\n"), *QUICK)
    assert (outcome.code, info()["stop_reason"], info(f"{RUN}/a")["stop_reason"]) == (143, "completed", "completed")
    assert "next" not in outcome.out


def test_an_interrupt_while_a_variant_is_built_ends_the_program_and_the_run_can_go_on(lab, go, info) -> None:
    source = "import signal\ndef raising():\n    signal.raise_signal(signal.SIGINT)\n    return made()\n"
    outcome = go(lab(source + "def recipe(): return {'a': made, 'b': raising}\n"), *QUICK)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert (info()["variants"], info()["stop_reason"]) == (["a"], "b: KeyboardInterrupt")


# ----------------------------------------------------------------------------------------------------------- handlers


ASKS = """
import signal

def told():
    return [getattr(signal.getsignal(getattr(signal, name)), "__name__", "default") for name in NAMES]

def on_batch_end(trainer): print("HANDLERS", *told())
def recipe(): return made(epochs=1)
"""


def test_the_handlers_are_there_while_a_fit_runs(lab, fine) -> None:
    assert set(fine(lab(ASKS.replace("NAMES", repr(NAMES)))).line("HANDLERS").split()) == {"_on_signal"}


def test_run_from_python_installs_none(lab, capsys) -> None:
    run(lab(ASKS.replace("NAMES", repr(NAMES))), plugins=["no:plot", "no:progress", "no:console"])
    assert "HANDLERS default_int_handler" + " default" * (len(NAMES) - 1) in capsys.readouterr().out


def test_a_command_line_in_a_thread_installs_none(lab, capsys) -> None:
    codes: list[int] = []
    arguments = [lab(ASKS.replace("NAMES", repr(NAMES))), *QUICK]
    thread = threading.Thread(target=lambda: codes.append(main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert "HANDLERS default_int_handler" + " default" * (len(NAMES) - 1) in capsys.readouterr().out


def test_importing_installs_none() -> None:
    before = handlers()
    for name in ("signals", "train", "resume"):
        importlib.reload(importlib.import_module(f"framework.cli.{name}"))
    assert handlers() == before


@pytest.mark.parametrize("body", ["pass", "raise KeyError('boom')", "trainer.stop('enough')"])
def test_the_handlers_are_put_back_however_the_fit_ends(lab, go, body) -> None:
    go(lab(f"def on_batch_end(trainer):\n    {body}\ndef recipe(): return made()\n"), *QUICK)
    # the fixture of this file looks whether they are


def test_a_fit_that_never_started_puts_back_what_it_installed(lab, refused) -> None:
    refused(lab("def recipe(): return made(torch.zeros(0, 3))\n"), *QUICK)


@pytest.mark.parametrize("name", NAMES)
def test_a_handler_of_the_user_is_still_called_and_put_back(lab, go, info, name) -> None:
    calls: list[tuple[int, Any]] = []

    def own(number: int, frame: Any) -> None:
        calls.append((number, frame))

    number = getattr(signal, name)
    before = signal.signal(number, own)
    try:
        outcome = go(lab(signalled(name)), *QUICK)
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)
    assert outcome.code == STATUS.get(name, 0)
    assert [called for called, _ in calls] == [number]
    assert calls[0][1] is not None
    assert find(Path(RUN), "last") is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_that_the_process_was_told_to_ignore_stays_ignored(lab, go, info, name) -> None:
    """As under nohup, or behind a shell's &."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        outcome = go(lab(signalled(name)), *QUICK)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert (outcome.code, outcome.err) == (0, "")
    assert info()["stop_reason"] == "completed"


def test_a_handler_that_was_not_installed_by_python_is_left_alone(lab, go, monkeypatch) -> None:
    installed: list[int] = []
    real = signal.getsignal
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else real(number))
        patch.setattr(signal, "signal", lambda number, handler: installed.append(number))
        assert go(lab(), *QUICK).code == 0
    assert signal.SIGINT in installed
    assert signal.SIGTERM not in installed


def test_the_plugin_for_signals_changes_nothing_about_a_fit(oracle) -> None:
    plain, with_it = tiny_trainer(), tiny_trainer(plugins=[Signals()])
    for trainer in (plain, with_it):
        torch.manual_seed(0)
        trainer.fit(tiny_data(), epochs=3, batch_size=2)
    oracle.assert_same(plain.model.state_dict(), with_it.model.state_dict())


def test_what_was_trained_is_not_kept_alive_for_the_next_variant() -> None:
    signals = Signals()
    trainer = tiny_trainer(plugins=[signals])
    trainer.fit(tiny_data(), epochs=1, batch_size=2)
    assert not [value for value in vars(signals).values() if value is trainer]


# ---------------------------------------------------------------------------------------- a line from a signal handler


class Busy:
    """A stderr in whose middle a signal comes: a buffered stream refuses a write inside of a write."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def write(self, text: str) -> int:
        raise RuntimeError("reentrant call")

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("open_", [True, False])
def test_a_handler_writes_past_the_stream_that_it_may_interrupt(monkeypatch, open_) -> None:
    from framework.cli import signals

    reading, writing = os.pipe()
    if not open_:
        os.close(writing)
    monkeypatch.setattr(sys, "stderr", Busy(writing))
    signals._say("told\n")  # nobody there to read it is no error
    monkeypatch.undo()
    if open_:
        os.close(writing)
    assert os.read(reading, 99) == (b"told\n" if open_ else b"")
    os.close(reading)


# ------------------------------------------------------------------------------------------------------ real processes


NURSERY = """
import json, os, sys, traceback
import torch
import framework.cli.train, framework.cli.resume
from framework.cli import main

torch.set_num_threads(1)  # the threads of OpenMP do not live on in a forked process
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(asked["folder"])
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
            exec(asked["first"])
            status = main(asked["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    """A process that has imported torch and forks a child for each command line, which takes 30 ms and not 3 s."""
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    yield process
    process.communicate()


@pytest.fixture
def forked(nursery, tmp_path) -> Callable[..., tuple[int, str]]:
    """Runs a command line in a process of its own; how it ended, and what it printed on stdout and stderr."""

    def run_it(*arguments: str, first: str = "") -> tuple[int, str]:
        asked = {"arguments": arguments, "folder": str(tmp_path), "first": first}
        nursery.stdin.write(json.dumps(asked) + "\n")
        nursery.stdin.flush()
        status = int(nursery.stdout.readline())
        return status, (tmp_path / "out").read_text() + (tmp_path / "err").read_text()

    return run_it


@needs_fork
def test_two_interrupts_end_the_process_at_once_and_leave_the_older_checkpoint(lab, forked, info, rows) -> None:
    source = """
import signal
from framework_plugins.best_checkpoint import BestCheckpoint
def on_batch_end(trainer):
    if trainer.step == TWICE:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        print("never")
def on_exception(): print("never")
def on_teardown(trainer): print("never" if TWICE == 5 else "", trainer.step)
def recipe(): return made(epochs=9, plugins=[BestCheckpoint(every_seconds=0)])
"""
    status, said = forked(lab(source.replace("TWICE", "5")), *QUICK)
    assert status == 130
    assert "interrupted" in said
    assert "never" not in said
    assert "Traceback" not in said
    assert info()["stop_reason"] is None
    last = find(Path(RUN), "last")
    assert last is not None
    assert last.name == "step-000000000004"
    read(last)
    lab(source.replace("TWICE", "0"))
    status, said = forked("resume", RUN, "--recipe", "lab.py", *QUICK)
    assert status == 0, said
    assert [row["epoch"] for row in rows()] == list(range(9))


@needs_fork
def test_a_second_interrupt_ends_a_step_that_never_ends(lab, forked, info) -> None:
    source = """
import os, signal
def on_batch_end(trainer):
    if trainer.step == 5:
        signal.raise_signal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while True: pass
def recipe(): return made(epochs=9)
"""
    status, said = forked(lab(source), *QUICK)
    assert (status, said.count("stopping after this step")) == (130, 1)


@needs_fork
def test_a_second_interrupt_while_it_saves_leaves_the_older_checkpoint(lab, forked) -> None:
    source = """
import signal
from framework.checkpoint import files
from framework_plugins.best_checkpoint import BestCheckpoint
rename = files.system.rename
def interrupted(source, target):
    if "step-000000000005" in str(target):
        signal.raise_signal(signal.SIGINT)
    rename(source, target)
files.system.rename = interrupted
def on_batch_end(trainer):
    if trainer.step == 5:
        signal.raise_signal(signal.SIGINT)
def recipe(): return made(epochs=9, plugins=[BestCheckpoint(every_seconds=0)])
"""
    status, said = forked(lab(source), *QUICK)
    assert status == 130
    assert "saved step 5" not in said
    last = find(Path(RUN), "last")
    assert last is not None
    assert last.name == "step-000000000004"
    read(last)


@needs_fork
def test_a_crash_in_c_code_leaves_the_stacks_of_all_threads(lab, forked, tmp_path) -> None:
    source = (
        "import os, signal\n"
        "def on_batch_end(trainer):\n    if trainer.step == 5: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "def recipe(): return made(epochs=9)\n"
    )
    status, _ = forked(lab(source), *QUICK)
    assert status == -signal.SIGSEGV
    told = (tmp_path / RUN / "faulthandler.log").read_text()
    assert "Segmentation fault" in told
    assert 'lab.py", line' in told
    assert "in on_batch_end" in told


@needs_fork
@pytest.mark.parametrize("source", ["def recipe(): return made()\n", signalled("SIGTERM")])
def test_the_file_for_stacks_goes_with_a_run_that_needs_none(lab, forked, tmp_path, source) -> None:
    source += (
        "from pathlib import Path\nimport faulthandler\n"
        "def on_fit_end(trainer): print('HERE', (trainer.run_dir / 'faulthandler.log').exists(), "
        "faulthandler.is_enabled())\n"
    )
    status, said = forked(lab(source), *QUICK, first="import faulthandler; assert not faulthandler.is_enabled()")
    assert status in (0, 143)
    assert "HERE True True" in said
    assert not (tmp_path / RUN / "faulthandler.log").exists()


@needs_fork
def test_stacks_of_an_earlier_crash_are_kept(lab, forked, tmp_path) -> None:
    assert forked(lab(signalled("SIGTERM")), *QUICK)[0] == 143
    (tmp_path / RUN / "faulthandler.log").write_text("an earlier one\n")
    assert forked("resume", RUN)[0] == 0
    assert (tmp_path / RUN / "faulthandler.log").read_text() == "an earlier one\n"


def test_a_faulthandler_of_the_user_is_left_alone(lab, fine, tmp_path) -> None:
    if not faulthandler.is_enabled():
        pytest.skip("pytest runs without its own")
    source = "def on_batch_end(trainer): assert not (trainer.run_dir / 'faulthandler.log').exists()\n"
    fine(lab(source + "def recipe(): return made()\n"))
    assert faulthandler.is_enabled()


@needs_fork
def test_a_worker_that_was_forked_leaves_signals_to_the_process_that_it_works_for(lab, forked, info) -> None:
    source = """
import os, signal
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index):
        for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
            os.kill(os.getpid(), getattr(signal, name))
        return torch.zeros(3), torch.zeros(1)
def recipe():
    one = made(epochs=2, batch_size=2, num_workers=1)
    one.train = Rows()
    return one
"""
    status, said = forked(lab(source), *QUICK)
    assert status == 0, said
    assert "after this step" not in said
    assert info()["stop_reason"] == "completed"


@needs_fork
@pytest.mark.parametrize(
    ("name", "start"),
    [(name, "fork") for name in NAMES] + [("SIGINT", "forkserver"), ("SIGTERM", "forkserver")],
)  # others end the processes that Python itself has for forkserver
def test_a_signal_to_a_group_of_processes_leaves_the_workers_in_it_alone(
    lab, forked, info, tmp_path, name, start
) -> None:
    """As terminals and schedulers send them; torch ends a run of which a worker gets SIGTERM."""
    source = f"""
import subprocess
from torch.utils.data import DataLoader, Dataset
class Rows(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index): return torch.full((3,), index / 40), torch.zeros(1)
def started(worker): open(f"started {{worker}}", "w").close()
def on_batch_end(trainer):
    if trainer.step == 5: subprocess.run(["sh", "-c", "kill -{name[3:]} 0"])  # by another one than their parent
def recipe():
    one = made(epochs=2)
    workers = dict(num_workers=2, worker_init_fn=started, multiprocessing_context="{start}")
    one.train = DataLoader(Rows(), batch_size=2, **workers)
    return one
"""
    # SIGUSR1 would end the shell that sends it
    status, said = forked(lab(source.replace('"kill', '"trap : USR1; kill')), *QUICK, first="import os; os.setsid()")
    assert status == STATUS.get(name, 0), said
    assert {path.name for path in tmp_path.glob("started *")} == {"started 0", "started 1"}
    assert "saved step 5" in said
    assert "Traceback" not in said
    assert (info()["steps"], info()["stop_reason"]) == ((5, REASON[name]) if name in STOPS else (40, "completed"))
    assert read(Path(RUN, "checkpoints/step-000000000005")).exact or name not in STOPS


@needs_fork
def test_a_worker_that_hangs_in_c_code_is_ended_with_the_run(lab) -> None:
    """torch and multiprocessing end it by SIGTERM, of which Python would hear nothing there."""
    source = """
import ctypes
from torch.utils.data import DataLoader, Dataset
class Rows(Dataset):
    def __len__(self): return 40
    def __getitem__(self, index):
        if index == 20:
            c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            c.pthread_mutex_lock(mutex), c.pthread_mutex_lock(mutex)
        return torch.full((3,), index / 40), torch.zeros(1)
def recipe():
    one = made()
    one.train = DataLoader(Rows(), batch_size=2, num_workers=1, timeout=1)
    return one
"""
    command = [sys.executable, "-m", "framework", lab(source), *QUICK]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=120)
    assert done.returncode == 1
    assert "DataLoader timed out" in done.stderr


@pytest.mark.parametrize("by_a_plugin", [False, True])
def test_the_loaders_of_the_user_are_put_back(by_a_plugin) -> None:
    def mine(worker: int) -> None:
        pass

    class Sets:
        def on_fit_end(self, trainer: Any) -> None:
            trainer.loaders["train"].worker_init_fn = None

    loader = DataLoader(TensorDataset(*tiny_data()), batch_size=2, num_workers=1, worker_init_fn=mine)
    tiny_trainer(plugins=[Sets(), Signals()] if by_a_plugin else [Signals()]).fit(loader, epochs=1)
    assert loader.worker_init_fn is (None if by_a_plugin else mine)


@needs_fork
def test_a_process_that_was_forked_ends_by_sigterm(lab, forked) -> None:
    source = """
import os, signal
def on_batch_end(trainer):
    if trainer.step == 1:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        print("ENDED", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
def recipe(): return made()
"""
    status, said = forked(lab(source), *QUICK)
    assert status == 0
    assert f"ENDED {-signal.SIGTERM}" in said


@needs_fork
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_run_whose_terminal_goes_is_saved(lab, forked, info) -> None:
    """What is printed after that would be an error, and end the run before its save."""
    hang_up = """
import builtins, fcntl, os, pty, termios
os.setsid()
master, terminal = pty.openpty()
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
sys.stdout, sys.stderr = (open(os.dup2(terminal, number), "w", closefd=False) for number in (1, 2))
os.close(terminal)
builtins.hang_up = lambda: os.close(master)
"""
    source = """
def on_batch_end(trainer):
    if trainer.step == 5: hang_up()  # the kernel sends SIGHUP, and the terminal takes no more
def recipe(): return made(epochs=9)
"""
    status, _ = forked(lab(source), *QUICK, first=hang_up)
    assert status == 129
    found = info()
    assert (found["stop_reason"], found["steps"]) == ("SIGHUP", 5)
    assert find(Path(RUN), "last") is not None


@needs_fork
def test_sixty_runs_signalled_at_random_instants_end_as_the_run_left_alone() -> None:
    """A share of what benchmarks/signals.py does at length."""
    command = [sys.executable, str(Path(__file__).parents[3] / "benchmarks" / "signals.py"), "--cases", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 runs" in done.stdout
    assert ", 0 went wrong" in done.stdout
    assert int(done.stdout.split(", ")[1].split()[0]) > 60, f"hardly any signal was sent: {done.stdout}"
