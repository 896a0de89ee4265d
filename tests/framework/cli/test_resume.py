"""`resume`: a run goes on as if nothing had happened, and runs no code that its directory names."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from framework import checkpoint, run
from framework.checkpoint import find

RUN = "runs/lab/001"
QUICK = ("-p", "no:plot", "-p", "no:progress")

STOPPING = """
def on_batch_end(trainer, split):
    import os, signal
    if split == "train" and trainer.step == int(os.environ.get("STOP_AT", "0")):
        signal.raise_signal(signal.SIGTERM)

def noisy(epochs=4, **settings):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    return made(torch.randn(8, 3), model=model, epochs=epochs, batch_size=2, val=made().train, **settings)

def recipe(epochs: int = 4): return noisy(epochs)
"""


@pytest.fixture
def stopped(lab, go, monkeypatch) -> Callable[..., Any]:
    """Runs a recipe that SIGTERM stops after a step, in the middle of an epoch."""

    def stop(source: str = STOPPING, *arguments: str, at: int = 6) -> Any:
        monkeypatch.setenv("STOP_AT", str(at))
        outcome = go(lab(source), *QUICK, *arguments)
        monkeypatch.delenv("STOP_AT")
        assert outcome.code == 143, outcome.err
        return outcome

    return stop


def end(path: str) -> dict[str, bytes]:
    """Every bit of the end of a run."""
    last = find(Path(path), "last")
    assert last is not None
    files = [file for file in last.iterdir() if file.name != "MANIFEST.json"]
    return {file.name: file.read_bytes() for file in (*files, Path(path, "metrics.jsonl"))}


def change(path: str, **entries: Any) -> None:
    """Change run.json; an entry of Ellipsis is removed."""
    file = Path(path, "run.json")
    info = {**json.loads(file.read_text("utf-8")), **entries}
    file.write_text(json.dumps({name: value for name, value in info.items() if value is not ...}), "utf-8")


# ---------------------------------------------------------------------------------------------------------- going on


def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(lab, fine, go, stopped, info) -> None:
    fine(lab(STOPPING), "--run-dir", "whole")
    stopped()
    outcome = go("resume", RUN)
    assert outcome.code == 0
    step = Path(RUN, "checkpoints/step-000000000006")
    assert outcome.line("resumed") == f"from step 6 (epoch 1, {step})"
    assert end(RUN) == end("whole")
    found, whole = info(), info("whole")
    assert (found["stop_reason"], found["epochs"], found["steps"]) == ("completed", 4, 16)
    assert {**found["best"], "path": 0} == {**whole["best"], "path": 0}


def test_it_may_be_stopped_and_resumed_again_and_again(lab, fine, go, stopped, monkeypatch, info) -> None:
    fine(lab(STOPPING), "--run-dir", "whole")
    stopped(at=3)
    for step in (4, 9, 15):
        monkeypatch.setenv("STOP_AT", str(step))
        assert go("resume", RUN).code == 143
    monkeypatch.delenv("STOP_AT")
    outcome = go("resume", RUN)
    assert outcome.code == 0
    assert end(RUN) == end("whole")
    assert [session["step"] for session in info()["resumed"]] == [3, 4, 9, 15]


def test_a_run_that_is_stopped_again_before_its_first_step_goes_on(lab, fine, go, stopped, monkeypatch) -> None:
    source = (
        "import os, signal\ndef state_dict(): return {}\n"
        "def load_state_dict(state):\n    if 'EARLY' in os.environ: signal.raise_signal(signal.SIGTERM)\n" + STOPPING
    )
    fine(lab(source), "--run-dir", "whole")
    stopped(source)
    monkeypatch.setenv("EARLY", "")
    assert [go("resume", RUN).code for _ in range(2)] == [143, 143]
    monkeypatch.delenv("EARLY")
    assert go("resume", RUN).code == 0
    assert end(RUN) == end("whole")


def test_a_run_that_failed_goes_on(lab, go, fine) -> None:
    source = "import os\ndef on_epoch_end(epoch):\n    if epoch == 2 and not os.path.exists('mended'): raise KeyError\n"
    assert go(lab(source + STOPPING), *QUICK).code == 1
    Path("mended").touch()
    outcome = go("resume", RUN)
    assert outcome.code == 0
    fine("lab.py", "--run-dir", "whole")
    assert end(RUN) == end("whole")


def test_run_json_keeps_what_it_said_and_tells_the_sessions(stopped, go, info) -> None:
    stopped(STOPPING, "--seed", "3", "--epochs", "5")
    before = info()
    go("resume", RUN)
    after = info()
    same = ("recipe", "file", "sha256", "knobs", "seed", "device", "deterministic", "given", "command", "torch")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    (session,) = after["resumed"]
    assert (session["step"], session["versions"]["torch"]) == (6, torch.__version__)
    assert "torch" in session["versions"]
    assert isinstance(session["command"], list)


def test_while_it_goes_on_run_json_has_no_stop_reason(lab, go, stopped) -> None:
    """As it is left by kill -9."""
    stopped(
        "import json\ndef on_epoch_start(trainer):\n"
        "    info = json.loads((trainer.run_dir / 'run.json').read_text())\n"
        "    print('SAYS', info['stop_reason'], 'seconds' in info)\n" + STOPPING
    )
    assert set(re.findall("SAYS .*", go("resume", RUN).out)) == {"SAYS None False"}


def test_the_test_set_is_evaluated_at_the_end(stopped, go, info) -> None:
    stopped(STOPPING.replace("noisy(epochs)", "noisy(epochs, test=made().train)"))
    assert info()["test"] is None
    assert go("resume", RUN).line("test").startswith("test_loss ")
    assert list(info()["test"]) == ["test_loss"]


def test_a_run_that_lacks_only_its_end_is_ended(lab, fine, go, info) -> None:
    """Killed between its last checkpoint and the last line of run.json."""
    fine(lab(STOPPING), "--run-dir", "whole")
    before = end("whole")
    change("whole", stop_reason=None, seconds=..., epochs=..., steps=..., best=..., test=...)
    outcome = go("resume", "whole")
    assert outcome.code == 0
    assert info("whole")["stop_reason"] == "completed"
    assert end("whole") == before


def test_knobs_come_back_as_what_they_were(lab, go, stopped) -> None:
    knobs = (
        "epochs: int = 4, betas: tuple[float, float] = (0.9, 0.99), names: list[str] = ['a'], rate: float | None = None"
    )
    source = STOPPING.replace("epochs: int = 4): ", f"{knobs}): print('KNOBS', betas, names, rate); ")
    stopped(source, "--betas", "0.5", "0.25", "--names", "x y", "z")
    assert go("resume", RUN).line("KNOBS") == "(0.5, 0.25) ['x y', 'z'] None"


def test_the_run_goes_on_deterministically_if_it_was(stopped, go) -> None:
    hook = "def on_fit_end(): print('ASKED', torch.are_deterministic_algorithms_enabled())\n"
    stopped(hook + STOPPING, "--deterministic")
    assert go("resume", RUN).line("ASKED") == "True"


def test_the_device_is_that_of_the_run_unless_another_is_named(stopped, go, refused, info) -> None:
    stopped()
    change(RUN, device="cuda:99")
    assert "there is no device 'cuda:99' here" in refused("resume", RUN)
    assert go("resume", RUN, "--device", "cpu").code == 0
    assert info()["device"] == "cpu"


def test_quiet_prints_nothing(stopped, go) -> None:
    stopped()
    outcome = go("resume", RUN, "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_it_goes_on_from_another_directory_and_after_a_move(lab, fine, stopped, go, tmp_path, monkeypatch) -> None:
    fine(lab(STOPPING), "--run-dir", "whole")
    stopped()
    shutil.move(tmp_path / RUN, tmp_path / "moved here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert go("resume", tmp_path / "moved here").code == 0
    assert end(str(tmp_path / "moved here")) == end(str(tmp_path / "whole"))


def test_what_may_change_the_last_bits_is_told(stopped, go, monkeypatch) -> None:
    stopped()
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    said = go("resume", RUN).out
    assert re.search(r"\n {10}exact data order; the last bits may differ: torch 2\.\S+ -> 9\.9\.9\n", said)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(lab, fine, stopped, go) -> None:
    source = STOPPING.replace("noisy(epochs)", "noisy(epochs, plugins=[BestCheckpoint(every_seconds=0)])")
    source = "from framework_plugins.best_checkpoint import BestCheckpoint\n" + source
    fine(lab(source), "--run-dir", "whole")
    stopped(source)
    last = find(Path(RUN), "last")
    assert last is not None
    file = last / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    outcome = go("resume", RUN)
    assert outcome.code == 0
    assert outcome.line("resumed").startswith("from step 4 (epoch 1, ")
    assert "\n          checkpoint step-000000000006 is damaged: model.safetensors: its sha256 differs" in outcome.out
    assert end(RUN) == end("whole")


def test_a_checkpoint_that_was_never_finished_is_told(stopped, go) -> None:
    stopped()
    Path(RUN, "checkpoints/.tmp-0123abcd").mkdir()
    assert "\n          .tmp-0123abcd was never finished\n" in go("resume", RUN).out


# ------------------------------------------------------------------------------------------------------- what cannot


def test_a_finished_run_is_refused(lab, fine, refused) -> None:
    fine(lab())
    before = {file: file.read_bytes() for file in Path(RUN).rglob("*") if file.is_file()}
    assert f"{RUN} is finished: completed" in refused("resume", RUN)
    assert {file: file.read_bytes() for file in Path(RUN).rglob("*") if file.is_file()} == before


def test_a_run_that_a_plugin_stopped_is_finished(lab, fine, refused) -> None:
    fine(lab("def on_epoch_end(trainer): trainer.stop('good enough')\ndef recipe(): return made()\n"))
    assert f"{RUN} is finished: good enough" in refused("resume", RUN)


@pytest.mark.parametrize("text", ["{", "[]", "", '{"stop_reason": 3}', '{"given": 3, "stop_reason": null}'])
def test_a_damaged_run_json_is_named(stopped, refused, text) -> None:
    stopped()
    Path(RUN, "run.json").write_text(text)
    assert f"{Path(RUN, 'run.json')} " in refused("resume", RUN)


@pytest.mark.parametrize("name", ["recipe", "file", "sha256", "knobs", "seed", "device"])
def test_a_run_json_that_lacks_something_is_damaged(stopped, refused, name) -> None:
    stopped()
    change(RUN, **{name: ...})
    assert f"{Path(RUN, 'run.json')} is damaged" in refused("resume", RUN)
    assert f"{Path(RUN, 'run.json')} is damaged" in refused("evaluate", RUN)


def test_a_run_without_a_checkpoint_tells_how_to_start_it_again(lab, go, fine, refused, info, rows) -> None:
    fine(lab(), "--lr", "0.2", "--seed", "3", "-p", "no:best_checkpoint", "-p", "summary", "--run-dir", "my run")
    before = rows("my run")
    change("my run", stop_reason=None, seconds=...)
    said = refused("resume", "my run")
    assert "my run has no checkpoint yet; start it again: python -m framework " in said
    command = shlex.split(said.partition("again: ")[2])
    assert go(*command[3:]).code == 0
    assert info("my run")["stop_reason"] == "completed"
    assert (info("my run")["knobs"]["lr"], info("my run")["seed"], rows("my run")) == (0.2, 3, before)


def test_a_run_that_failed_without_a_checkpoint_is_started_again_elsewhere(lab, go, fine, refused) -> None:
    assert go(lab("def on_batch_start(): raise KeyError\ndef recipe(): return made()\n"), *QUICK).code == 1
    said = refused("resume", RUN)
    assert "--run-dir" not in said
    lab()
    assert go(*shlex.split(said.partition("again: ")[2])[3:]).code == 0


def test_a_run_in_which_nothing_sound_is_left_tells_why(stopped, refused) -> None:
    stopped()
    for file in Path(RUN).rglob("MANIFEST.json"):
        file.write_text("{}")
    said = refused("resume", RUN, code=1)
    assert f"{RUN} has no checkpoint; checkpoint step-000000000006 " in said


def test_a_run_that_is_going_on_elsewhere_is_left_to_it(stopped, refused, tmp_path) -> None:
    stopped()
    before = (tmp_path / RUN / "run.json").read_bytes()
    with checkpoint.lock(tmp_path / RUN, by="run"):
        assert f"{RUN} is in use by pid " in refused("resume", RUN)
    assert (tmp_path / RUN / "run.json").read_bytes() == before


def test_a_run_that_another_process_finishes_meanwhile_is_refused(stopped, refused, lab, monkeypatch) -> None:
    stopped()
    real = checkpoint.lock

    def lock(path: Path, by: str) -> Any:
        change(RUN, stop_reason="completed")
        return real(path, by=by)

    monkeypatch.setattr(checkpoint, "lock", lock)
    assert f"{RUN} is finished" in refused("resume", RUN)


def test_a_recipe_that_trains_nothing_is_started_again(lab, go, refused) -> None:
    source = "def recipe(run_dir):\n    (run_dir / 'a.txt').touch()\n    raise KeyboardInterrupt\n"
    assert go(lab(source)).code == 130
    assert "has no checkpoint yet" in refused("resume", RUN)


# ------------------------------------------------------------------------------------------------------- the recipe


def test_a_recipe_that_has_changed_is_shown_and_has_to_be_named(lab, stopped, go, refused, info) -> None:
    stopped()
    lab(STOPPING.replace("nn.Dropout(0.3)", "nn.Dropout(0.4)"), "lab.py")
    said = refused("resume", RUN, lines=22)
    assert f"{Path('lab.py').resolve()} has changed since {RUN} ran; name the one to use with --recipe FILE" in said
    assert re.search(r"\n-.*Dropout\(0\.3\).*\n\+.*Dropout\(0\.4\)", said)
    assert go("resume", RUN, "--recipe", "lab.py").code == 0
    assert info()["sha256"] == hashlib.sha256(Path("lab.py").read_bytes()).hexdigest()
    assert Path(RUN, "recipe.py").read_bytes() == Path("lab.py").read_bytes()


def test_a_recipe_that_was_named_is_the_one_of_the_next_time(lab, stopped, go, monkeypatch) -> None:
    stopped(at=3)
    lab(STOPPING + "print('CHANGED')\n", "other.py")
    monkeypatch.setenv("STOP_AT", "6")
    assert "CHANGED" in go("resume", RUN, "--recipe", "other.py").out
    monkeypatch.delenv("STOP_AT")
    outcome = go("resume", RUN)
    assert outcome.code == 0
    assert "CHANGED" in outcome.out
    assert outcome.line("recipe").startswith("lab ")


def test_the_copy_is_run_only_when_it_is_trusted(lab, fine, stopped, go, refused, info) -> None:
    fine(lab(STOPPING), "--run-dir", "whole")
    stopped()
    before = info()
    lab("raise AssertionError")
    assert "--trust-run to run the copy" in refused("resume", RUN, lines=22)
    outcome = go("resume", RUN, "--trust-run")
    assert outcome.code == 0
    assert f"recipe    the copy {Path(RUN, 'recipe.py')} (--trust-run)" in outcome.out
    assert end(RUN) == end("whole")
    assert (info()["file"], info()["sha256"]) == (before["file"], before["sha256"])


def test_a_recipe_inside_the_run_directory_is_never_run_by_itself(lab, stopped, refused) -> None:
    stopped(STOPPING.replace("noisy(epochs)", "{'a': noisy}"))
    copy = Path(RUN, "recipe.py").resolve()
    copy.write_text("raise AssertionError")
    change(RUN, file=str(copy), sha256=hashlib.sha256(copy.read_bytes()).hexdigest())
    assert "is gone" in refused("resume", RUN)


def test_a_recipe_with_other_knobs_or_of_another_model_is_refused(lab, stopped, refused, info) -> None:
    stopped()
    lab("def recipe(): return made()\n", "other.py")
    assert "the recipe other has no knob 'epochs'. It has none." in refused("resume", RUN, "--recipe", "other.py")
    lab("def recipe(epochs=1): return made()\n", "other.py")
    said = refused("resume", RUN, "--recipe", "other.py", code=1)
    assert "cannot resume from " in said
    assert "(1, 3)" in said or "is missing in the checkpoint" in said
    lab("def recipe(epochs=1): return None\n", "other.py")
    assert f"other.py does not build what ran in {RUN}" in refused("resume", RUN, "--recipe", "other.py")
    lab("def recipe(epochs=1): return {'a': made()}\n", "other.py")
    assert f"other.py does not build what ran in {RUN}" in refused("resume", RUN, "--recipe", "other.py")


def test_an_installed_recipe_goes_on_by_its_name(go, monkeypatch, tmp_path, lab, fine, info) -> None:
    lab("import signal\ndef on_epoch_end(trainer, epoch):\n    if epoch == 2: signal.raise_signal(signal.SIGTERM)\n",
        "ends.py", head="")  # fmt: skip
    assert go("minibatch", "--epochs", "5", *QUICK, "-p", "ends.py").code == 143
    change("runs/minibatch/001", file=str(tmp_path / "another/venv/minibatch.py"))
    assert go("resume", "runs/minibatch/001", "-p", "no:ends.py").code == 0
    fine("minibatch", "--epochs", "5")
    assert end("runs/minibatch/001") == end("runs/minibatch/002")


def test_a_run_of_a_function_needs_its_recipe_to_be_named(lab, go, refused, tmp_path) -> None:
    def stops(trainer: Any) -> None:
        raise KeyError("boom")

    from framework import build

    class Ends:
        def on_epoch_end(self, epoch: int) -> None:
            if epoch == 1:
                raise KeyError("boom")

    lab()
    with pytest.raises(KeyError):
        run(lambda: build("lab.py"), plugins=[Ends(), "no:plot", "no:progress"], run_dir="here")
    assert f"here ran with {__name__}:" in refused("resume", "here")
    spec = json.loads(Path("here/run.json").read_text())["given"][0]
    assert spec.endswith("Ends")
    assert "the recipe of here is gone (None)" in refused("resume", "here", "-p", f"no:{spec}")


# -------------------------------------------------------------------------------------------------------- the plugins


SIDE = "class Side:\n    def on_fit_start(self): print('SIDE')\n"


def test_names_of_installed_plugins_come_back(stopped, go, info) -> None:
    stopped(STOPPING, "-p", "summary", "-p", "no:history")
    outcome = go("resume", RUN)
    assert outcome.code == 0
    assert outcome.line("plugins") == "lab, console, best_checkpoint, summary"
    assert info()["given"] == ["no:plot", "no:progress", "summary", "no:history"]


def test_code_has_to_be_named_again(lab, stopped, go, refused, info) -> None:
    lab(SIDE, "side.py", head="")
    stopped(STOPPING, "-p", "side.py", "-p", "summary")
    said = refused("resume", RUN, "-p", "no:history")
    assert f"{RUN} ran with side.py, and a run directory names no code to run" in said
    assert "SIDE" not in said
    command = shlex.split(said.partition("yourself: ")[2])
    assert command == ["python", "-m", "framework", "resume", RUN, "-p", "no:history", "-p", "side.py"]
    outcome = go(*command[3:])
    assert outcome.code == 0
    assert "SIDE" in outcome.out
    assert outcome.line("plugins") == "lab, console, best_checkpoint, side, summary"
    assert info()["given"] == ["no:plot", "no:progress", "side.py", "summary", "no:history"]


def test_the_command_that_goes_on_is_told_with_the_code_that_it_needs(lab, stopped, go) -> None:
    lab(SIDE, "side.py", head="")
    outcome = stopped(STOPPING, "-p", "side.py", "-p", "summary")
    command = shlex.split(outcome.line("next"))
    assert command == ["python", "-m", "framework", "resume", RUN, "-p", "side.py"]
    assert go(*command[3:]).code == 0


def test_code_that_has_gone_can_be_left_out(lab, stopped, go, info) -> None:
    lab(SIDE, "side.py", head="")
    stopped(STOPPING, "-p", "side.py")
    Path("side.py").unlink()
    outcome = go("resume", RUN, "-p", "no:side.py")
    assert outcome.code == 0
    assert "SIDE" not in outcome.out
    assert info()["given"] == ["no:plot", "no:progress"]


def test_a_plugin_can_be_taken_away(stopped, go) -> None:
    stopped()
    outcome = go("resume", RUN, "-p", "no:console")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["recipe", "seed", "resumed", "saved"]


def test_a_name_that_is_not_installed_is_told_with_those_that_are(stopped, refused) -> None:
    stopped()
    change(RUN, given=["os.system"])
    assert "there is no plugin 'os.system'. There is: accuracy, " in refused("resume", RUN)


@pytest.mark.parametrize("spec", ["os:system", "evil.py", "a/b.py", "no:x:y"])
def test_no_spec_in_run_json_is_imported(stopped, refused, spec) -> None:
    stopped()
    Path("evil.py").write_text("raise AssertionError")
    change(RUN, given=[spec])
    assert "names no code to run" in refused("resume", RUN)


# ----------------------------------------------------------------------------------------------------------- variants


VARIANTS = STOPPING.replace("return noisy(epochs)", "return {'a': noisy, 'b c': lambda: noisy(lr=0.01), 'd': noisy}")
VARIANTS = VARIANTS.replace(
    'split == "train"', 'split == "train" and trainer.run_dir.name == os.environ.get("STOP_IN")'
)


@pytest.mark.parametrize("label", ["a", "b c", "d"])
def test_variants_go_on_where_they_were(lab, fine, stopped, go, info, monkeypatch, label) -> None:
    fine(lab(VARIANTS), "--run-dir", "whole")
    monkeypatch.setenv("STOP_IN", label)
    stopped(VARIANTS)
    before = {file: file.read_bytes() for file in Path(RUN, "a").rglob("*") if file.is_file()}
    assert info()["stop_reason"] == "SIGTERM"
    outcome = go("resume", RUN)
    assert outcome.code == 0
    heads = [line.removeprefix("variant").strip() for line in outcome.out.splitlines() if line.startswith("variant")]
    assert heads == ["a", "b c", "d"][["a", "b c", "d"].index(label) :]
    assert (info()["variants"], info()["stop_reason"]) == (["a", "b c", "d"], "completed")
    for each in ("a", "b c", "d"):
        assert end(f"{RUN}/{each}") == end(f"whole/{each}")
    if label != "a":
        assert {file: file.read_bytes() for file in Path(RUN, "a").rglob("*") if file.is_file()} == before
    assert "\nrun " in outcome.out  # the comparison


def test_variants_of_which_one_failed_at_once_go_on_with_it(lab, go, fine, info) -> None:
    source = "import os\ndef b():\n    if not os.path.exists('mended'): raise KeyError('boom')\n    return made()\n"
    hook = "def on_batch_start(trainer):\n    if trainer.run_dir.name == 'c' and not os.path.exists('mended'): 1 / 0\n"
    for labels in ("{'a': made, 'b': b}", "{'a': made, 'c': made}"):
        Path("mended").unlink(missing_ok=True)
        shutil.rmtree("here", ignore_errors=True)
        assert go(lab(source + hook + f"def recipe(): return {labels}\n"), *QUICK, "--run-dir", "here").code in (1, 2)
        Path("mended").touch()
        assert go("resume", "here").code == 0
        assert info("here")["stop_reason"] == "completed"
        assert len(info("here")["variants"]) == 2


def test_one_of_several_variants_is_not_resumed_by_itself(stopped, refused, monkeypatch) -> None:
    monkeypatch.setenv("STOP_IN", "a")
    stopped(VARIANTS)
    assert f"{RUN}/a is one of several variants; go on with all: python -m framework resume {RUN}" in refused(
        "resume", f"{RUN}/a"
    )
