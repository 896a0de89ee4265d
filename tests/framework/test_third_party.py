"""Packages of others: found, listed, inactive until asked for, ordered, removed; a broken one stops nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import PluginError, run
from framework.cli import main
from framework.discovery import available
from framework.testing import tiny_trainer

SHOUT = '''
"""A plugin of somebody else."""

class Shout:
    """Shouts the loss of each epoch.

    Args:
        word: what to shout
    """

    def __init__(self, word="HEY", name="shout"):
        self.word = word
        self.name = name

    def on_epoch_end(self, epoch, metrics):
        print(self.word, epoch, f"{metrics['train_loss']:.6f}")


def shouting(word: str = "HEY") -> int:
    """Shouts a word.

    Args:
        word: what to shout
    """
    print(word * 2)
    return 0
'''

# distribution: (module, its source, entry points)
PACKAGES = {
    "framework-shout": (
        "framework_shout", SHOUT,
        "[project.entry-points.framework]\nshout = 'framework_shout:Shout'\nshout_module = 'framework_shout'\n"
        "[project.entry-points.'framework.commands']\nshouting = 'framework_shout:shouting'\n",
    ),
    "framework-broken": (
        "framework_broken", "raise RuntimeError('no license\\nfound')\n",
        "[project.entry-points.framework]\nbroken = 'framework_broken:Broken'\n"
        "[project.entry-points.'framework.sets']\ndefault = 'framework_broken:DEFAULT'\n"
        "[project.entry-points.'framework.commands']\nbreaking = 'framework_broken:breaking'\n",
    ),
    "framework-odd": (
        "framework_odd",
        "import sys\n"
        "def __getattr__(name):\n    if name == 'Gone': sys.exit('not for you')\n    raise AttributeError(name)\n"
        "class Misspelt:\n    def on_epoch_ended(self): pass\n"
        "class Demanding:\n    def __init__(self, size): pass\n    def on_fit_start(self): pass\n",
        "[project.entry-points.framework]\ngone = 'framework_odd:Gone'\nmissing = 'framework_odd:Missing'\n"
        "misspelt = 'framework_odd:Misspelt'\ndemanding = 'framework_odd:Demanding'\n",
    ),
    "framework-twin": (
        "framework_twin", SHOUT.replace("HEY", "TWIN"),
        "[project.entry-points.framework]\nshout = 'framework_twin:Shout'\nconsole = 'framework_twin:Shout'\n",
    ),
}  # fmt: skip

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "1.2"

[tool.setuptools]
py-modules = ["{module}"]

"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each package built as a wheel from its own pyproject.toml, and unpacked into a folder of its own."""
    sources = tmp_path_factory.mktemp("sources")
    folders = []
    for name, (module, source, points) in PACKAGES.items():
        folder = sources / name
        folder.mkdir()
        (folder / "pyproject.toml").write_text(PROJECT.format(name=name, module=module) + points)
        (folder / f"{module}.py").write_text(source)
        folders.append(str(folder))
    built = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index",
               "--no-build-isolation", "--no-deps", "--wheel-dir", str(built), *folders]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = {}
    for name in PACKAGES:
        installed[name] = tmp_path_factory.mktemp(name)
        (wheel,) = built.glob(f"{name.replace('-', '_')}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(installed[name])
    return installed


@pytest.fixture
def install(wheels, monkeypatch, tmp_path) -> Callable[..., None]:
    """Puts packages on the path, as an installation does."""
    monkeypatch.chdir(tmp_path)

    def put(*names: str) -> None:
        for name in names:
            monkeypatch.syspath_prepend(str(wheels[f"framework-{name}"]))

    return put


@pytest.fixture
def go(capsys) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


QUICK = ("-p", "no:plot", "-p", "no:progress", "--epochs", "2")


def test_an_installed_package_makes_its_plugins_available(install, go) -> None:
    assert "shout" not in available()
    install("shout")
    assert "framework_shout" not in sys.modules
    assert available()["shout"].value == "framework_shout:Shout"
    assert "framework_shout" not in sys.modules
    code, out, _ = go("plugins")
    assert code == 0
    lines = out.splitlines()
    index = next(index for index, line in enumerate(lines) if line.split()[0] == "shout")
    assert lines[index].split() == ["shout", "framework-shout", "1.2", "available", "Shouts", "the", "loss", "of",
                                    "each", "epoch."]  # fmt: skip
    assert lines[index + 1].split() == ["on_epoch_end"]


def test_an_installed_package_is_never_active_by_itself(install, go) -> None:
    install("shout")
    code, out, _ = go("softmax", *QUICK)
    assert code == 0
    assert "HEY" not in out
    assert "shout" not in out
    assert "framework_shout" not in sys.modules


def test_a_plugin_of_a_package_is_activated_by_its_name(install, go) -> None:
    install("shout")
    code, out, _ = go("softmax", *QUICK, "-p", "shout")
    assert code == 0
    assert "HEY 0 1.098612" in out
    assert "HEY 1 " in out
    code, out, _ = go("plugins", "softmax", "-p", "shout")
    last = out.splitlines()[-1].split()
    assert last == ["7", "shout", "-p", "framework-shout", "1.2", "on_epoch_end"]


def test_a_plugin_of_a_package_is_listed_in_a_recipe_ordered_and_removed_again(install, go, tmp_path) -> None:
    install("shout")
    (tmp_path / "lab.py").write_text(
        "import framework_recipes.softmax as lab\nfrom framework_shout import Shout\n"
        "def recipe(epochs: int = 2):\n    made = lab.recipe(epochs=epochs)\n"
        "    made.plugins = ['shout', 'history', Shout('LOUD', name='loud'), 'accuracy']\n    return made\n"
    )
    code, out, _ = go("plugins", "lab.py")
    assert [line.split()[1] for line in out.splitlines()[1:5]] == ["shout", "history", "loud", "accuracy"]
    code, out, _ = go("lab.py", *QUICK)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if " 0 1.098612" in line][:2] == ["HEY", "LOUD"]
    code, out, _ = go("lab.py", *QUICK, "-p", "no:shout")
    assert code == 0
    assert "HEY" not in out
    assert "LOUD 0 1.098612" in out


def test_what_ran_is_kept_with_its_version(install, go, tmp_path) -> None:
    import json

    install("shout")
    go("softmax", *QUICK, "-p", "shout", "--run-dir", "here")
    plugins = json.loads((tmp_path / "here/run.json").read_text())["plugins"]
    assert {"name": "shout", "listed": "-p", "distribution": "framework-shout 1.2"} in plugins


def test_a_misspelt_name_finds_the_plugin_of_a_package(install, go) -> None:
    install("shout")
    code, _, err = go("softmax", "-p", "shuot")
    assert (code, err) == (2, "error: there is no plugin 'shuot'. Did you mean 'shout'?\n")


def test_hooks_names_the_plugin_of_a_package(install, go) -> None:
    install("shout", "broken", "odd")
    code, out, _ = go("hooks")
    assert code == 0
    (users,) = [line for line in out.split("\non_epoch_end(")[1].splitlines() if "implemented by" in line][:1]
    assert "shout" in users.replace(",", "").split()


def test_a_package_may_bring_a_verb(install, go) -> None:
    install("shout")
    assert go("shouting", "--word", "ho") == (0, "hoho\n", "")
    _, out, _ = go("--help")
    assert "shouting    Shouts a word." in out
    _, _, err = go("shoutin")
    assert "Did you mean 'shouting'?" in err


def test_a_broken_package_is_listed_as_broken_and_stops_nothing_else(install, go) -> None:
    install("broken", "odd", "shout")
    code, out, err = go("plugins")
    assert (code, err) == (0, "")
    broken = {line.split()[0]: line for line in out.splitlines() if "broken: " in line}
    assert set(broken) == {"broken", "gone", "missing", "misspelt", "demanding", "shout_module"}
    assert "framework-broken 1.2" in broken["broken"]
    assert "RuntimeError: no license found" in broken["broken"]  # in one line
    assert "SystemExit: not for you" in broken["gone"]
    assert "AttributeError" in broken["missing"]
    assert "on_epoch_ended is not a hook. Did you mean 'on_epoch_end'?" in broken["misspelt"]
    assert "TypeError" in broken["demanding"]
    assert "module implements no hook" in broken["shout_module"]
    assert "shout " in out
    assert "accuracy " in out
    assert go("--help")[0] == 0
    code, out, _ = go("softmax", *QUICK, "-p", "shout")
    assert code == 0
    assert "HEY 0" in out


def test_a_broken_plugin_that_is_asked_for_is_named_with_its_package(install, go) -> None:
    install("broken")
    code, _, err = go("softmax", *QUICK, "-p", "broken")
    assert code == 2
    assert err.startswith("error: plugin 'broken' of framework-broken 1.2 cannot be loaded: RuntimeError: no license")
    with pytest.raises(PluginError, match="framework-broken"):
        tiny_trainer(plugins=["broken"])


def test_a_broken_verb_is_named_when_it_is_asked_for(install, go) -> None:
    install("broken")
    code, _, err = go("breaking")
    assert code == 2
    assert "breaking" in err
    assert "framework-broken 1.2" in err
    assert "RuntimeError: no license" in err


def test_no_other_package_can_make_itself_a_default(install, go) -> None:
    install("broken")
    assert go("softmax", *QUICK)[0] == 0


def test_a_name_that_two_packages_offer_is_refused_only_where_it_is_asked_for(install, go) -> None:
    install("shout", "twin")
    code, out, _ = go("plugins")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("shout ")]
    assert "broken: plugin 'shout' is offered twice" in line
    code, _, err = go("softmax", *QUICK, "-p", "shout")
    assert code == 2
    for part in ("plugin 'shout' is offered twice", "framework-shout 1.2 (framework_shout:Shout)",
                 "framework-twin 1.2 (framework_twin:Shout)", "module:Class"):  # fmt: skip
        assert part in err
    code, out, _ = go("softmax", *QUICK, "-p", "framework_twin:Shout")
    assert code == 0
    assert "TWIN 0" in out


def test_a_package_cannot_take_the_place_of_a_default(install, go) -> None:
    install("twin")
    code, out, _ = go("softmax", *QUICK)
    assert code == 0
    assert "TWIN" not in out
    assert "train_loss" in out  # the table is there


def test_a_package_can_be_used_from_python(install, capsys) -> None:
    install("shout")
    run("softmax", epochs=1, plugins=["shout", "no:plot", "no:progress"])
    assert "HEY 0 1.098612" in capsys.readouterr().out


def test_all_of_it_holds_in_a_process_of_its_own(wheels, tmp_path) -> None:
    path = os.pathsep.join(str(wheels[f"framework-{name}"]) for name in ("shout", "broken"))
    script = (
        "import sys\nfrom framework.cli import main\n"
        "assert main(['plugins']) == 0\n"
        "sys.exit(main(['softmax', '--epochs', '1', '-p', 'no:plot', '-p', 'shout']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "broken: " in done.stdout
    assert "HEY 0 1.098612" in done.stdout
