"""new: what is written runs as it is, installs as it is, and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.cli import main
from framework.recipe import Recipe

ROOT = Path(__file__).parents[2]
QUICK = ("-p", "no:plot", "-p", "no:progress")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "새 폴더"
    folder.mkdir()
    monkeypatch.chdir(folder)


def python(*words: str, path: Path | None = None) -> str:
    """What a Python of its own prints, which must end well; with a folder on its path."""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path or "")}
    done = subprocess.run([sys.executable, *words], capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def clean(*paths: str) -> None:
    """That ruff, which knows nothing of this project there, finds nothing in them."""
    rules = ("--isolated", "--line-length", "120")
    python("-m", "ruff", "check", *rules, "--select", "E,F,W,I,B,UP,PIE,RUF,SIM,C4,PT", *paths)
    python("-m", "ruff", "format", *rules, "--check", *paths)


def test_a_new_recipe_runs_at_once_and_says_what_to_try(capsys) -> None:
    assert main(["new", "recipe", "mine"]) == 0
    assert capsys.readouterr().out == "written   mine.py\nnext      python -m framework mine.py\n"
    assert main(["mine.py", *QUICK]) == 0
    out = capsys.readouterr().out
    assert out.startswith("recipe    mine    My lab: what it shows, in a line.\n")
    assert "\nmiddle    0.9" in out  # its own hook was called
    assert float(out.split("val_accuracy ")[-1].split()[0]) > 0.9
    assert "next      python -m framework mine.py --hidden 2\n" in out
    for proposed in (["--hidden", "2"], ["--lr", "0.001"]):
        assert main(["mine.py", *proposed, "--epochs", "1", *QUICK]) == 0


def test_the_knobs_of_a_new_recipe_have_their_help(capsys) -> None:
    main(["new", "recipe", "mine"])
    with pytest.raises(SystemExit):
        main(["mine.py", "--help"])
    out = capsys.readouterr().out
    for knob in ("--lr", "--epochs", "--batch-size", "--hidden"):
        assert knob in out
    assert "nodes of the hidden layer" in out


def test_a_new_recipe_is_clean_and_whole(capsys) -> None:
    main(["new", "recipe", "mine", "--to", "labs/first week"])
    file = Path("labs/first week/mine.py")
    assert capsys.readouterr().out == f'written   {file}\nnext      python -m framework "{file}"\n'
    assert [entry.name for entry in file.parent.iterdir()] == ["mine.py"]
    clean(str(file))
    space: dict[str, object] = {"__name__": "mine"}
    exec(compile(file.read_text(encoding="utf-8"), "mine.py", "exec"), space)
    assert isinstance(space["recipe"](), Recipe)  # type: ignore[operator]


def test_a_new_plugin_is_a_package_that_installs_is_found_by_name_and_passes_its_tests(capsys) -> None:
    assert main(["new", "plugin", "my_plugin"]) == 0
    assert capsys.readouterr().out == (
        f"written   my_plugin{os.sep}\nnext      pip install -e my_plugin\n"
        "          python -m framework softmax -p my_plugin\n          python -m pytest my_plugin\n"
    )
    clean("my_plugin")
    installed = Path("installed").absolute()
    python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
           "--no-build-isolation", "--target", str(installed), "./my_plugin")  # fmt: skip
    assert (installed / "my_plugin" / "py.typed").is_file()
    out = python("-m", "framework", "softmax", "--epochs", "3", *QUICK, "-p", "my_plugin", path=installed)
    assert "largest_loss" in out
    assert "my_plugin          my-plugin 0.1.0            available  Adds `largest_loss`" in python(
        "-m", "framework", "plugins", path=installed
    )
    said = python("-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "my_plugin", path=installed)
    assert "9 passed" in said


def test_a_new_plugin_is_never_half_written(monkeypatch, capsys) -> None:
    written: list[Path] = []
    write = Path.write_text

    def full(self: Path, *arguments: object, **options: object) -> int:
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    assert main(["new", "plugin", "my_plugin"]) == 1  # nobody's mistake
    assert "my_plugin cannot be written: No space left on device" in capsys.readouterr().err
    assert len(written) == 3
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe", "my-lab"], "'my-lab' cannot be the name of a recipe: letters, digits and _, with a letter first, "
                               "such as my_lab"),
        (["recipe", "class"], "such as my_class"),
        (["recipe", "3d"], "such as my_3d"),
        (["recipe", "../mine"], "such as mine"),
        (["recipe", ""], "such as my_recipe"),
        (["plugin", "MyPlugin"], "small letters from a to z, digits and _, with a letter first, such as myplugin"),
        (["plugin", "_mine"], "such as mine"),
        (["plugin", "내것"], "such as my_plugin"),
        (["recipe", "softmax"], "softmax is the name of a recipe that came with the framework; choose another, such as "
                                "my_softmax"),
        (["plugin", "accuracy"], "accuracy is the name of a plugin of framework-trainer; choose another"),
        (["recipe", "json"], "json is the name of a Python module that is there already"),
        (["plugin", "torch"], "torch is the name of a Python module that is there already"),
        (["model", "mine"], "model"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_used_is_refused_with_one_that_can(words, said, capsys) -> None:
    assert main(["new", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert not list(Path().iterdir())


def test_what_is_there_already_is_left_as_it_is(capsys) -> None:
    Path("mine.py").write_text("x = 1\n")
    Path("other").mkdir()
    assert main(["new", "recipe", "mine"]) == 2
    assert "mine.py is there already; nothing was written" in capsys.readouterr().err
    assert main(["new", "plugin", "other"]) == 2
    assert "other is there already; nothing was written" in capsys.readouterr().err
    assert Path("mine.py").read_text() == "x = 1\n"
    assert not list(Path("other").iterdir())
    assert main(["new", "recipe", "second", "--to", "mine.py"]) == 2
    assert "second.py cannot be written: " in capsys.readouterr().err


def test_a_recipe_may_have_a_name_in_hangul(capsys) -> None:
    assert main(["new", "recipe", "첫실습"]) == 0
    assert main(["첫실습.py", "--epochs", "1", *QUICK]) == 0
