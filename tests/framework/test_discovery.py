"""Finding plugins: by name, file, module:Class; which class of a file is one; what fails to load is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import PluginError
from framework.discovery import available, check, find, name_of
from framework.testing import tiny_trainer

BUILT_IN = {
    "accuracy", "best_checkpoint", "console", "early_stopping", "gpu_memory", "history", "plot", "progress", "summary",
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
        ("zzz", "there is no plugin 'zzz'. There is: accuracy, best_checkpoint,"),
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
