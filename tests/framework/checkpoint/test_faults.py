"""The disk fails at any operation: the save comes through or says so, and what was saved is there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from framework import CheckpointError

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}  # of a process that prints paths

KINDS = [
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE, errno.EINTR, "short",
]  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: errno.errorcode.get(kind, kind))


def saves_of(disk: ModuleType) -> list[Any]:
    return [
        disk.Save(1, 10, ("last", "best")), disk.Save(2, 20, ("last",)), disk.Save(3, 20, ("best", "last")),
        disk.Save(4, 40, ("last", "epoch_4")),
    ]  # fmt: skip


def attempt(save: Callable[[], Any]) -> str | None:
    """What a save that did not come through told; its warnings are let be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            save()
        except CheckpointError as error:
            return str(error)
    return None


@each_kind
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_each_error_at_each_operation_is_told_or_survived(disk: ModuleType, kind: Any, sticky: bool) -> None:
    """Nothing is left open; nothing unfinished is left where it can be removed; the next save works and cleans up."""
    points = failed = 0
    seen = set()
    saves, base = saves_of(disk), disk.Memory()
    for done, save in enumerate(saves):
        before, after = disk.expected(saves[:done]), disk.expected(saves[: done + 1])
        with disk.on(disk.counting(base.copied())) as counted:
            save()
        for at in range(1, len(counted.seen) + 1):
            state = base.copied()
            with disk.on(disk.failing(at, kind, state, sticky)) as system:
                told = attempt(save)
            points += 1
            assert state.opened == {}
            if told is not None:
                failed += 1
                assert told.startswith(
                    f"cannot write a checkpoint into {disk.RUN / 'checkpoints'}: {os.strerror(kind)}"
                )
            if not sticky and system.seen[at - 1][0] not in ("unlink", "rmdir"):
                assert "'.tmp'" not in str(state.tree())
            if (key := (told is None, state.tree())) not in seen:
                seen.add(key)
                assert disk.wrong(state, before if told else after, after) is None
                assert disk.save_again(state) is None
        with disk.on(base):
            save()

    print(f"{points} errors, {failed} saves that told so, nothing lost")
    assert points > 350
    assert failed == 0 if kind == "short" else failed > 20


def fsyncs_that_fail(disk: ModuleType, state: Any, fails: Callable[[int, Any], bool], code: int = errno.EIO) -> Any:
    """A disk whose fsync fails where `fails(its number, what it is of)`; it keeps what was fsynced in `synced`."""

    def fault(number: int, name: str, call: Callable[..., Any]) -> Any:
        if name == "fsync":
            system.synced.append(state.opened[system.seen[-1][1]])
            if fails(len(system.synced), system.synced[-1]):
                raise OSError(code, os.strerror(code))
        return call()

    system = disk.Numbered(fault, state)
    system.synced = []
    return system


@pytest.mark.parametrize("number", range(1, 8))
def test_after_an_fsync_that_failed_everything_is_written_anew_once(disk: ModuleType, number: int) -> None:
    """The system may take the lost pages for written, so that a second fsync of the same file would say nothing."""
    state = disk.Memory()
    with disk.on(state):
        disk.Save(1, 10)()
    system = fsyncs_that_fail(disk, state, lambda count, file: count == number)
    with disk.on(system):
        disk.Save(2, 20)()
        assert disk.newest() == 2
        assert "'.tmp'" not in str(state.tree())
    files_synced = [file for file in system.synced if file in state.data]

    assert len(system.synced) == number + 10  # six files, their directory, the name; the label and its name
    assert len(files_synced) == len({*files_synced})


def test_where_that_fails_too_it_is_told(disk: ModuleType) -> None:
    state = disk.Memory()
    with disk.on(state):
        disk.Save(1, 10)()
    system = fsyncs_that_fail(disk, state, lambda count, file: True)
    with (
        disk.on(system),
        pytest.raises(CheckpointError, match=r"Input/output error; the last one is step-000000000010$"),
    ):
        disk.Save(2, 20)()

    assert len(system.synced) == 2
    with disk.on(state):
        assert disk.newest() == 1
        assert "'.tmp'" not in str(state.tree())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_where_there_is_no_space_nothing_is_written_again(disk: ModuleType, code: int) -> None:
    state = disk.Memory()
    system = fsyncs_that_fail(disk, state, lambda count, file: file in state.data, code)
    with disk.on(system), pytest.raises(CheckpointError, match=os.strerror(code)):
        disk.Save(1, 10)()

    assert len([file for file in system.synced if file in state.data]) == 1


def test_a_name_that_may_not_be_durable_is_told(disk: ModuleType) -> None:
    """The checkpoint has its name, and may lose it in a power failure."""
    state = disk.Memory()
    with disk.on(state):
        disk.Save(1, 10)()
    system = fsyncs_that_fail(disk, state, lambda count, file: count == 8)
    with disk.on(system), pytest.raises(CheckpointError, match="Input/output error"):
        disk.Save(2, 20)()
    with disk.on(state):
        assert (disk.newest(), disk.labelled("last")) == (1, 1)
        assert disk.save_again(state) is None


# --------------------------------------------------------------------------------------------- the disk of this machine


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written_is_told(disk: ModuleType, tmp_path: Path) -> None:
    disk.Save(1, 10)(tmp_path)
    for folder in (tmp_path / "checkpoints", tmp_path):
        folder.chmod(0o555)
        with pytest.raises(
            CheckpointError, match=r"cannot write a checkpoint into .*: Permission denied; the last one"
        ):
            disk.Save(2, 20)(tmp_path)
        folder.chmod(0o755)
        assert disk.newest(tmp_path) == 1


LIMITED = """
import pathlib, resource, sys
sys.path.insert(0, sys.argv[2])
import disk, torch
from framework import CheckpointError
from framework.checkpoint import store
run = pathlib.Path(sys.argv[1])
disk.Save(1, 10)(run)
held = disk.snapshot(2)
held.model["big"] = torch.zeros(50_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.write(held, run, ["last"])
except CheckpointError as error:
    print(error)
print(disk.newest(run), [path.name for path in run.rglob(".*")])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of POSIX")
def test_a_file_that_may_not_become_so_large_is_told(tmp_path: Path) -> None:
    """The only failure here that the operating system makes by itself: a write comes back short, the next one fails."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT)

    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"cannot write a checkpoint into {tmp_path / 'checkpoints'}: File too large; the last one is step-000000000010",
        "1 []",
    ]


FULL = """
import pathlib, subprocess, sys
sys.path.insert(0, sys.argv[2])
import disk
from framework import CheckpointError
from framework.checkpoint import files
for kilobytes in range(4, 200, 8):
    for told in (True, False):  # whether the file system tells how much space there is
        run = pathlib.Path(sys.argv[1], f"{kilobytes} {told}")
        run.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", run], check=True)
        files.System.free = (lambda self, path, free=files.shutil.disk_usage: free(path).free if told else 10**12)
        try:
            for number in range(1, 50):
                disk.Save(number, number, ("last", f"epoch_{number}"))(run)
        except CheckpointError as error:
            print(number, disk.newest(run) or 0, [path.name for path in run.rglob(".*")], error)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_disk_that_runs_full_is_told(tmp_path: Path) -> None:
    """Disks of all sizes, each filled until it is full."""
    command = ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("unshare is not permitted here")
    lines = [line.split(" ", 3) for line in done.stdout.splitlines()]

    assert done.stderr == ""
    assert len(lines) == 50
    assert {*[int(saved) for saved, *_ in lines]} > {1, 2, 3, 4}
    for saved, found, left, told in lines:
        assert int(found) in (int(saved) - 1, 1)  # the first one is found without its label
        assert left == "[]"
        assert "No space left on device" in told or "not enough space for a checkpoint" in told
