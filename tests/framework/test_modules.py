"""Files as modules: importable again by their name, so that a worker process can unpickle what they define."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import UsageError
from framework.modules import installed, installed_file, load_file


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Python file; its path."""

    def write(name: str, source: str = "x = 1\n") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
        return path

    return write


def test_a_file_is_the_module_of_its_name_with_its_folder_first_on_the_path(file) -> None:
    path = file("lab_a.py", "import helper_of_lab_a\nx = helper_of_lab_a.y\n")
    file("helper_of_lab_a.py", "y = 7\n")
    module = load_file(path)
    assert module.x == 7
    assert sys.modules["lab_a"] is module
    assert sys.path[0] == str(path.parent)


def test_the_folder_stands_on_the_path_once(file) -> None:
    path = file("lab_a.py")
    for _ in range(3):
        load_file(path)
    assert sys.path.count(str(path.parent)) == 1


def test_a_class_of_a_file_can_be_pickled(file) -> None:
    module = load_file(file("lab_a.py", "class Data:\n    x = 3\n"))
    assert type(pickle.loads(pickle.dumps(module.Data()))) is module.Data


def test_a_dataclass_with_postponed_annotations_works(file) -> None:
    """dataclasses looks its module up in sys.modules while the file is run."""
    source = (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Data:\n    x: dataclasses.InitVar[int] = 3\n"
    )
    module = load_file(file("lab_a.py", source))
    assert isinstance(module.Data(), module.Data)


def test_loading_again_runs_the_file_again(file) -> None:
    """Also where the time and the size of the file are the same, by which Python tells that a .pyc is current."""
    path = file("lab_a.py", "x = 1\n")
    first = load_file(path)
    stat = path.stat()
    path.write_text("x = 2\n", encoding="utf-8")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_file(path).x == 2
    assert first.x == 1


def test_two_files_of_one_name_in_two_folders_can_follow_each_other(file) -> None:
    one, two = file("one/lab_a.py", "x = 1\n"), file("two/lab_a.py", "x = 2\n")
    assert [load_file(path).x for path in (one, two, one)] == [1, 2, 1]


def test_a_file_that_raises_leaves_nothing_half_made(file) -> None:
    path = file("lab_a.py", "raise KeyError('x')\n")
    with pytest.raises(KeyError):
        load_file(path)
    assert "lab_a" not in sys.modules


def test_a_file_that_raises_leaves_the_earlier_one_in_place(file) -> None:
    good = load_file(file("lab_a.py"))
    with pytest.raises(SyntaxError):
        load_file(file("lab_a.py", "def (:\n"))
    assert sys.modules["lab_a"] is good


@pytest.mark.parametrize(
    ("name", "better"),
    [("my-lab.py", "my_lab.py"), ("01_lab.py", "lab_01_lab.py"), ("lab 1.py", "lab_1.py"), ("lab.v2.py", "lab_v2.py")],
)
def test_a_name_that_cannot_be_imported_is_refused_with_a_better_one(file, name, better) -> None:
    with pytest.raises(UsageError) as caught:
        load_file(file(name))
    assert f"{name}: the name of the file must be a Python identifier, such as {better}" in str(caught.value)


def test_a_name_in_another_script_is_a_name(file) -> None:
    assert load_file(file("소프트맥스.py", "x = 5\n")).x == 5


@pytest.mark.parametrize("name", ["random", "statistics", "framework", "pytest", "antigravity"])
def test_the_name_of_another_module_is_refused_and_that_module_stays(file, name) -> None:
    before = sys.modules.get(name)
    with pytest.raises(UsageError) as caught:
        load_file(file(f"{name}.py", "raise AssertionError\n"))
    assert str(caught.value) == f"{name}.py has the name of the module {name!r}; rename it, such as my_{name}.py"
    assert sys.modules.get(name) is before


@pytest.mark.parametrize("name", ["lab.txt", "lab", "lab.ipynb", "lab.pyc"])
def test_what_is_no_python_file_is_refused(file, name) -> None:
    with pytest.raises(UsageError, match="is not a Python file"):
        load_file(file(name))


def test_a_relative_path_is_made_whole(file, monkeypatch, tmp_path) -> None:
    file("labs/lab_a.py")
    monkeypatch.chdir(tmp_path)
    module = load_file(Path("labs/lab_a.py"))
    assert module.__file__ == str(tmp_path / "labs" / "lab_a.py")
    assert sys.path[0] == str(tmp_path / "labs")


def test_the_installed_recipes_are_known_without_being_imported(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "framework_recipes.softmax", raising=False)
    names = installed()
    assert "softmax" in names
    assert names == sorted(names)
    assert installed_file("softmax").name == "softmax.py"
    assert "framework_recipes.softmax" not in sys.modules
