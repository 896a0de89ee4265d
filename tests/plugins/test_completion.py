"""completion: what can stand at the cursor, read from the sources; and the script of bash, driven as Tab drives it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from framework_plugins.completion import CORE, OPTIONS, SCRIPTS, candidates

from framework.cli import VERBS, main, verbs

LAB = '''"""A lab."""
import a_module_that_is_not_there

def recipe(lr: float = 0.1, batch_size: int = 2, shuffle: bool = True, *, mode: Literal['fast', 'slow'] = "fast"):
    raise AssertionError("completion runs no recipe")
'''

bash = pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "완성 folder"
    (folder / "my labs").mkdir(parents=True)
    monkeypatch.chdir(folder)
    Path("lab.py").write_text(LAB, encoding="utf-8")
    Path("my labs/첫실습.py").write_text(LAB, encoding="utf-8")
    Path("notes.txt").touch()
    Path(".hidden.py").touch()


def test_the_first_word_is_a_verb_a_recipe_or_a_file_of_one() -> None:
    found = candidates([], "")
    assert {*VERBS, *verbs(), "softmax", "digits", "lab.py", "my labs/"} <= {*found}
    assert not {"notes.txt", ".hidden.py", "__init__"} & {*found}
    assert found == sorted(found)
    assert candidates([], "soft") == ["softmax"]
    assert candidates([], "my labs/") == ["my labs/첫실습.py"]
    assert candidates([], ".h") == [".hidden.py"]
    assert candidates([], "nowhere/at/all") == []


def test_the_verbs_of_the_core_are_those_that_it_has() -> None:
    assert {verb: f"framework.cli.{module}:{verb}" for verb, module in VERBS.items()} == CORE


def test_the_options_of_a_recipe_are_its_knobs_and_those_of_the_command_line(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["softmax", "--help"])
    told = {*re.findall(r"--[a-z][\w-]+", capsys.readouterr().out)}
    assert told == {*candidates(["softmax"], "--")}
    assert {*OPTIONS} <= told


def test_the_knobs_of_a_file_are_read_without_running_it() -> None:
    assert candidates(["lab.py"], "--s") == ["--seed", "--shuffle"]
    assert candidates(["lab.py"], "--no") == ["--no-shuffle"]
    assert candidates(["my labs/첫실습.py", "--lr", "0.5"], "--b") == ["--batch-size"]
    assert candidates(["lab.py", "--mode"], "") == ["fast", "slow"]


def test_a_file_that_is_just_being_written_offers_what_every_recipe_has() -> None:
    Path("lab.py").write_text("def recipe(lr: float = ", encoding="utf-8")
    assert candidates(["lab.py"], "--") == sorted(OPTIONS)
    assert candidates(["gone.py"], "--") == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("before", "current", "expected"),
    [
        (["softmax", "-p"], "acc", ["accuracy"]), (["softmax", "--plugin"], "la", ["lab.py"]),
        (["softmax", "--device"], "c", ["cpu", "cuda"]), (["softmax", "--config"], "no", ["notes.txt"]),
        (["new"], "", ["plugin", "recipe"]), (["completion"], "z", ["zsh"]), (["data", "fetch"], "", ["mnist"]),
        (["export", "run", "--format"], "", ["export", "onnx"]), (["export"], "--f", ["--format"]),
        (["export"], "--no", []), (["summary"], "soft", ["softmax"]), (["summary"], "la", ["lab.py"]),
        (["plugins"], "soft", ["softmax"]), (["resume"], "my", ["my labs/"]), (["compare", "one"], "my", ["my labs/"]),
        (["hooks"], "", []), (["nosuch"], "--lr", []), (["data"], "--t", ["--to"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else given,
)  # fmt: skip
def test_what_can_stand_where(before, current, expected) -> None:
    assert candidates(before, current) == expected


def test_a_package_whose_verb_is_broken_has_nothing_to_offer(tmp_path, monkeypatch) -> None:
    info = tmp_path / "theirs" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[framework.commands]\nlost = nowhere.at.all:lost\n")
    monkeypatch.syspath_prepend(str(info.parent))
    assert candidates([], "los") == ["lost"]
    assert candidates(["lost"], "--") == ["--help", "--verbose"]


def test_tab_waits_neither_for_torch_nor_for_the_parser_of_the_command_line() -> None:
    script = (
        "import sys\nfrom framework_plugins.completion import candidates\n"
        "for words in [], ['softmax'], ['export'], ['lr-find']:\n    assert candidates(words, '')\n"
        "    candidates(words, '--')\n"
        "assert not {'torch', 'tyro', 'numpy'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_names_the_python_that_wrote_it_and_where_it_belongs(shell, capsys) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.startswith(f"# Completion of python -m framework for {shell}; for each session, put this into ")
    assert sys.executable in out
    assert "$python" not in out
    program = shutil.which({"powershell": "pwsh"}.get(shell, shell))
    if program and shell != "powershell":
        checked = subprocess.run([program, "-n"], input=out, capture_output=True, encoding="utf-8")
        assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_is_refused_with_those_that_there_are(capsys) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err


def tab(*words: str) -> list[str]:
    """What bash offers when Tab is pressed behind the words."""
    line = " ".join(shlex.quote(word) for word in words)
    script = (
        'eval "$("$0" -m framework completion bash)"\n'
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n_framework_complete\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script, sys.executable], capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@bash
@pytest.mark.parametrize("program", [["framework"], [sys.executable, "-m", "framework"]], ids=["script", "module"])
def test_bash_completes_both_ways_to_call_the_program(program) -> None:
    assert tab(*program, "soft") == ["softmax"]
    assert tab(*program, "softmax", "--bias") == ["--bias-per-class"]
    assert tab(*program, "my labs/") == ["my labs/첫실습.py"]
    assert tab(*program, "my labs/첫실습.py", "--shuf") == ["--shuffle"]
    assert tab(*program, "new", "") == ["plugin", "recipe"]


@bash
def test_bash_leaves_other_uses_of_python_alone() -> None:
    assert tab("python", "so") == [""]
    assert tab("python", "-m", "fram") == [""]
    assert tab("python", "-m", "pytest", "so") == [""]
