"""Finding plugins: by name, file, module:Class; which class of a file is one; what fails to load is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import PluginError
from framework.cli import main
from framework.discovery import available, check, find, name_of
from framework.testing import tiny_data, tiny_trainer

BUILT_IN = {
    "accuracy", "best_checkpoint", "console", "debug", "early_stopping", "gpu_memory", "history", "plot", "progress",
    "summary",
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a Python file; its path."""

    def write(name: str, source: str) -> str:
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        return str(path)

    return write


def test_the_built_in_plugins_are_available_under_their_file_names() -> None:
    points = available()
    assert set(points) >= BUILT_IN
    for name in BUILT_IN:
        assert points[name].module == f"framework_plugins.{name}"
        (listed,) = find(name)
        assert listed.name == name
        assert name_of(listed.plugin) == name


def test_looking_for_a_plugin_does_not_import_it(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "framework_plugins.gpu_memory", raising=False)
    check("gpu_memory")
    assert "framework_plugins.gpu_memory" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("acuracy", "there is no plugin 'acuracy'. Did you mean 'accuracy'?"),
        ("Accuracy", "there is no plugin 'Accuracy'. Did you mean 'accuracy'?"),
        ("early-stopping", "there is no plugin 'early-stopping'. Did you mean 'early_stopping'?"),
        ("zzz", "there is no plugin 'zzz'. There is: accuracy, average_weights, best_checkpoint,"),
        ("", "there is no plugin ''. There is: accuracy,"),
        ("nosuch.py", "there is no plugin file 'nosuch.py'"),
    ],
)
def test_a_plugin_that_does_not_exist_is_refused_before_anything_is_loaded(spec, expected) -> None:
    for look in (check, find):
        with pytest.raises(PluginError) as caught:
            look(spec)
        assert str(caught.value).startswith(expected)


def test_a_class_of_a_module_is_named_by_module_and_class() -> None:
    (listed,) = find("framework_plugins.accuracy:Accuracy", "-p")
    assert (listed.name, listed.listed, listed.distribution) == ("accuracy", "-p", "framework_plugins.accuracy")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nosuchmodule:Class", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("framework_plugins.accuracy:Acuracy", "framework_plugins.accuracy has no 'Acuracy'. Did you mean 'Accuracy'?"),
        ("framework_plugins.accuracy:", "framework_plugins.accuracy has no ''."),
        ("framework_plugins.nosuch:X", "No module named 'framework_plugins.nosuch'"),
        (":Class", "plugin ':Class' cannot be loaded: ValueError"),
    ],
)
def test_a_class_that_does_not_exist_is_named(spec, expected) -> None:
    with pytest.raises(PluginError) as caught:
        find(spec)
    assert str(caught.value).startswith(f"plugin {spec!r}")
    assert expected in str(caught.value)


def test_what_is_no_plugin_is_found_when_it_is_registered() -> None:
    with pytest.raises(PluginError, match="JSONDecoder implements no hook"):
        tiny_trainer(plugins=["json:JSONDecoder"])


def test_a_file_gives_its_classes_with_hooks(file) -> None:
    path = file(
        "mine.py", "class One:\n    def on_fit_start(self): pass\nclass TwoFold:\n    def forward(self): pass\n"
    )
    assert [(p.name, p.distribution) for p in find(path, "-p")] == [("one", path), ("two_fold", path)]


def test_a_file_with_functions_is_a_plugin_itself(file) -> None:
    path = file("mine.py", "def on_fit_start(): pass\nclass One:\n    def on_fit_end(self): pass\n")
    assert [listed.name for listed in find(path)] == ["mine", "one"]


def test_helpers_in_a_file_are_no_plugins(file) -> None:
    """A model has a forward as well; a base class is only for those that derive from it."""
    path = file(
        "mine.py",
        "import torch\nfrom framework_plugins.accuracy import Accuracy\n"
        "class Model(torch.nn.Module):\n    def __init__(self, size): ...\n    def forward(self, x): return x\n"
        "class Data(torch.utils.data.Dataset):\n    def __init__(self, size): ...\n"
        "class Base:\n    def on_fit_start(self): pass\n"
        "class _Private:\n    def on_fit_start(self): pass\n"
        "class Settings:\n    on_disk = True\n    def __init__(self, size): ...\n"
        "class Mine(Base):\n    def on_fit_end(self): pass\n",
    )
    assert [listed.name for listed in find(path)] == ["mine"]


def test_a_module_of_torch_with_hooks_is_a_plugin(file) -> None:
    path = file("mine.py", "import torch\nclass Average(torch.nn.Module):\n    def on_fit_end(self): pass\n")
    assert [listed.name for listed in find(path)] == ["average"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class One:\n    def on_epoch_ended(self): pass\n", "one.on_epoch_ended is not a hook."),
        ("def on_epoch_ended(): pass\n", "mine.on_epoch_ended is not a hook."),
        (
            "class Good:\n    def on_fit_end(self): pass\nclass One:\n    def on_epoch_ended(self): pass\n",
            "one.on_epoch_ended is not a hook.",
        ),
        (
            "class Good:\n    def on_fit_end(self): pass\ndef on_epoch_ended(): pass\n",
            "mine.on_epoch_ended is not a hook.",
        ),
    ],
)
def test_a_file_whose_only_hook_is_misspelt_is_not_passed_over(file, source, expected) -> None:
    with pytest.raises(PluginError) as caught:
        tiny_trainer(plugins=[file("mine.py", source)])
    assert expected in str(caught.value)
    assert "Did you mean 'on_epoch_end'?" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n", "defines no hook and no class with one"),
        ("import nosuchmodule\n", "cannot be loaded: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def on_fit_start(:\n", "cannot be loaded: SyntaxError"),
        ("raise SystemExit('not here')\n", "cannot be loaded: SystemExit: not here"),
        ("class One:\n    def __init__(self, size): ...\n    def on_fit_end(self): ...\n", "TypeError"),
        (
            "from framework import hookimpl\n@hookimpl(tryfirst=True)\ndef on_fit_end(): ...\n",
            "hookimpl has no tryfirst",
        ),
        ("from framework import UsageError\nraise UsageError('patience must be 1 or more')\n", "patience must be 1"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(file, source, expected) -> None:
    path = file("mine.py", source)
    with pytest.raises(PluginError) as caught:
        find(path)
    assert path in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_with_a_taken_name_is_refused_with_a_better_one(file) -> None:
    with pytest.raises(PluginError, match=r"rename it, such as my_random\.py"):
        find(file("random.py", "def on_fit_start(): pass\n"))


# -------------------------------------------------------------------------------------------- installed packages


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts the files of an installed package that offers the plugin `theirs` on the path."""

    def put(source: str, value: str = "their_module:Theirs", metadata: str = "Name: theirs\nVersion: 2.0\n") -> None:
        info = tmp_path / "theirs-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}")
        (info / "entry_points.txt").write_text(f"[framework]\ntheirs = {value}\n")
        (tmp_path / "their_module.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))

    return put


SOUND = "class Theirs:\n    def on_fit_end(self): print('theirs was here')\n"
BROKEN = {
    "an exception": ("raise RuntimeError('no license')\n", "RuntimeError: no license"),
    "sys.exit()": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "what is no Exception": ("class Skipped(BaseException): pass\nraise Skipped('not here')\n", "Skipped: not here"),
    "a module that is not there": ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    "a mistake": ("class Theirs\n", "SyntaxError: expected ':'"),
    "endless recursion": ("def deeper(): deeper()\ndeeper()\n", "RecursionError: maximum recursion depth"),
    "another name": ("class Their: pass\n", "AttributeError: module 'their_module' has no attribute 'Theirs'"),
    "an argument": ("class Theirs:\n    def __init__(self, size): pass\n", "TypeError: Theirs.__init__() missing 1"),
    "a failing __init__": ("class Theirs:\n    def __init__(self): 1 / 0\n", "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_named_where_it_is_asked_for_and_hinders_nobody_else(offer, source, reason, capsys) -> None:
    offer(source)
    assert [listed.name for listed in find("accuracy")] == ["accuracy"]
    tiny_trainer(plugins=["accuracy"])
    with pytest.raises(PluginError) as caught:
        tiny_trainer(plugins=["theirs"])
    assert str(caught.value).startswith(f"plugin 'theirs' of theirs 2.0 cannot be loaded: {reason}")
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("theirs ")]
    assert f"broken: plugin 'theirs' of theirs 2.0 cannot be loaded: {reason}" in line
    assert [line for line in lines if line.startswith("accuracy ") and "broken" not in line]


@pytest.mark.parametrize("value", ["not a module!", "their_module:", "", ":Theirs", "their_module:Theirs:Theirs"])
def test_an_entry_point_that_is_none_is_named(offer, value) -> None:
    offer(SOUND, value)
    assert "theirs" in available()
    with pytest.raises(PluginError, match=r"^plugin 'theirs' of theirs 2\.0"):
        tiny_trainer(plugins=["theirs"])


def test_ctrl_c_during_an_import_is_no_fault_of_the_plugin(offer) -> None:
    offer("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        find("theirs")


def test_a_package_without_a_name_is_an_unknown_distribution(offer) -> None:
    offer("1 / 0\n", metadata="")
    with pytest.raises(PluginError, match=r"^plugin 'theirs' of an unknown distribution cannot be loaded"):
        find("theirs")


def test_an_installed_plugin_is_not_imported_before_it_is_asked_for(offer, capsys) -> None:
    """So it does not matter to others how long its import takes, or whether it ends."""
    offer(SOUND)
    check("theirs")
    assert available()["theirs"].value == "their_module:Theirs"
    tiny_trainer(plugins=["early_stopping", "history"]).fit(tiny_data(), epochs=1)
    assert "their_module" not in sys.modules
    assert capsys.readouterr().out == ""
    tiny_trainer(plugins=["theirs"]).fit(tiny_data(), epochs=1)
    assert "their_module" in sys.modules
    assert capsys.readouterr().out == "theirs was here\n"


def test_an_installed_plugin_is_not_active_in_a_run(offer, capsys, monkeypatch, tmp_path) -> None:
    offer(SOUND)
    monkeypatch.chdir(tmp_path)
    quick = ["softmax", "--epochs", "1", "-p", "no:plot", "-p", "no:progress"]
    assert main(quick) == 0
    assert "theirs" not in capsys.readouterr().out
    assert "their_module" not in sys.modules
    assert main([*quick, "-p", "theirs"]) == 0
    assert "theirs was here" in capsys.readouterr().out
