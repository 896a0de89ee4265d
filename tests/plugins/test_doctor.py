"""doctor: what it says of this machine, and of machines on which something is wrong; it never fails itself."""

from __future__ import annotations

import importlib.metadata
import io
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from framework.cli import main

WORDS = ["versions", "devices", "text", "disk", "data", "packages", "compiler", "workers", "plugins"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "병원 folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("FRAMEWORK_DATA", raising=False)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, list[str]]]:
    """What it says, by its first words; it must say something of everything, in ASCII, and end as is said."""

    def run(ends: int = 0) -> dict[str, list[str]]:
        code = main(["doctor"])
        out, err = capsys.readouterr()
        assert (code, err) == (ends, ""), out
        assert out.isascii()
        found: dict[str, list[str]] = {}
        for line in out.splitlines():
            word = line[:10].strip() or word  # type: ignore[has-type]  # noqa: F821
            found.setdefault(word, []).append(line[10:])
        assert [*found][: len(WORDS)] == WORDS
        assert ("broken" in found) == bool(ends)
        assert not list(Path().iterdir())
        return found

    return run


def test_it_tells_what_there_is_and_what_will_work(doctor) -> None:
    said = doctor()
    assert f"torch {torch.__version__} and torchvision" in said["versions"][-1]
    assert said["devices"][-1].startswith("auto is ")
    assert f"recipes train on {said['devices'][-1].removeprefix('auto is ')}" in said["works"]
    assert said["disk"][-1].startswith("writing, fsync and renaming work")
    assert "runs and checkpoints are kept in runs/ of this folder" in said["works"]
    assert said["plugins"][-1].endswith(" verbs, none broken")


def test_a_check_that_fails_is_told_and_stops_no_other(doctor, monkeypatch) -> None:
    def fails(*given: object) -> None:
        raise PermissionError("not in this sandbox\nsecond line")

    monkeypatch.setattr(psutil, "virtual_memory", fails)
    said = doctor(ends=1)
    assert said["devices"] == ["cannot be looked at: PermissionError: not in this sandbox"]
    assert said["broken"] == ["devices: PermissionError: not in this sandbox"]


def test_what_is_not_needed_is_not_called_broken_when_it_fails(doctor, monkeypatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr("sysconfig.get_path", lambda name: 1 / 0)
    assert doctor()["compiler"] == ["cannot be looked at: ZeroDivisionError: division by zero"]


def test_a_folder_that_cannot_be_written_is_broken(doctor, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = doctor(ends=1)
    assert said["broken"][0].endswith("No space left on device; go to another folder, or name one with --run-dir")


def test_versions_that_do_not_go_together_are_broken(doctor, monkeypatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.0.1" if name == "torch" else version(name))
    broken = doctor(ends=1)["broken"]
    assert any(
        line.startswith("framework-trainer needs torch>=2.11, and there is 2.0.1: pip install") for line in broken
    )
    assert any(line.startswith("torchvision needs torch") for line in broken)


def test_plugins_of_another_version_are_broken(doctor, monkeypatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.0.9" if name == "framework-trainer" else version(name)
    )
    assert any("and plugins of 0.0.9: pip install -e . again" in line for line in doctor(ends=1)["broken"])


def test_a_missing_extra_is_named_with_what_it_is_for(doctor, monkeypatch) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "onnxscript":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    said = doctor()
    assert 'export --format onnx: needs onnxscript: pip install "framework-trainer[onnx]"' in said["packages"]
    assert not any(line.startswith("export --format onnx") for line in said["works"])


def test_every_extra_for_users_is_looked_at(doctor) -> None:
    from framework_plugins.doctor import USES

    extras = importlib.metadata.metadata("framework-trainer").get_all("Provides-Extra") or []
    assert {*extras} - {"test", "docs", "bench"} == {*USES}


def test_a_broken_plugin_of_ours_is_broken_and_one_of_others_is_only_told(doctor, tmp_path, monkeypatch) -> None:
    info = tmp_path / "theirs" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[framework]\nlost = nowhere:Lost\n")
    monkeypatch.syspath_prepend(str(info.parent))
    said = doctor()
    assert "lost of theirs cannot be loaded: ModuleNotFoundError: No module named 'nowhere'" in said["plugins"]
    load = importlib.metadata.EntryPoint.load

    def cracked(point: importlib.metadata.EntryPoint) -> object:
        if point.name in ("accuracy", "history"):
            raise SystemExit("no license")
        return load(point)

    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", cracked)
    said = doctor(ends=1)
    assert said["broken"] == ["accuracy, history of framework-trainer cannot be loaded: SystemExit: no license"]
    assert said["plugins"][-1].endswith(", 3 broken")


@pytest.mark.parametrize(
    ("encoding", "printable"), [("utf-8", True), ("cp949", True), ("cp1252", False), ("ascii", False)]
)
def test_a_console_tells_whether_it_can_print_hangul(encoding, printable, monkeypatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert main(["doctor"]) == 0
    sys.stdout.flush()
    text = written.getvalue().decode("ascii")
    shown = "Hangul can be printed" if printable else r"Hangul is printed as \ud55c\uae00: set PYTHONIOENCODING=utf-8"
    assert f"console {encoding}, file names" in text
    assert shown in text


def test_the_data_sets_are_looked_for_where_recipes_look(doctor, tmp_path, monkeypatch) -> None:
    said = doctor()
    assert said["data"][0] == "data (FRAMEWORK_DATA is not set): no such folder"
    assert "recipes have their data, but for those of MNIST (python -m framework data fetch mnist)" in said["works"]
    raw = tmp_path / "sets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").touch()
    monkeypatch.setenv("FRAMEWORK_DATA", str(tmp_path / "sets"))
    said = doctor()
    shown = str(tmp_path / "sets").encode("ascii", "backslashreplace").decode()
    assert said["data"] == [f"{shown} (FRAMEWORK_DATA): MNIST", "MNIST is there"]
    assert "every recipe has its data" in said["works"]


def test_without_a_compiler_it_says_what_to_install(doctor, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    said = doctor()
    assert said["compiler"][0].startswith("-p compile: no C++ compiler on the path; install ")
    assert not any("compile" in line for line in said["works"])


def test_little_shared_memory_is_told(doctor, monkeypatch) -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("only Linux has /dev/shm")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**30, 0, 2**26))
    assert doctor()["workers"][-1] == "/dev/shm has only 64 MiB, through which batches go: docker run --shm-size=2g"


def test_where_torch_cannot_be_imported_that_is_what_it_says(tmp_path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object')\n")
    done = subprocess.run(
        [sys.executable, "-m", "framework", "doctor"], capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "broken"), "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert "broken    versions: ImportError: libcudart.so.13: cannot open shared object" in done.stdout
    assert "Traceback" not in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "][: len(WORDS)] == WORDS
