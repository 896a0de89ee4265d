"""The process is killed at any operation on the disk: what was saved is there, and the next save works."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from framework.checkpoint import files, lock

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}  # of a process that prints paths

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def forked(child: Callable[[], Any], system: Any) -> int:
    """How a child process ends that does this on that disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons, about threads
        pid = os.fork()
    if pid == 0:
        files.system = system
        code = 1
        try:
            child()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def saves_of(disk: ModuleType) -> list[Any]:
    """Saves with each thing that a save can do: labels that move, a step again, what is old removed, an inexact one."""
    return [
        disk.Save(1, 10, ("last", "best")), disk.Save(2, 20, ("last",)), disk.Save(3, 20, ("best", "last")),
        disk.Save(4, 40, ("last", "epoch_4")), disk.Save(5, 50, ("last",), exact=False), disk.Save(6, 60, ("best",)),
    ]  # fmt: skip


def points_of(disk: ModuleType, save: Callable[[], Any], base: Any) -> list[tuple[int, bool]]:
    """Where a save can be killed: before each operation, in the middle of each write, and after the last."""
    with disk.on(disk.counting(base)) as counted:
        save()
    writes = [at for at, (name, *_) in enumerate(counted.seen, 1) if name == "write"]
    return [(at, False) for at in range(1, len(counted.seen) + 2)] + [(at, True) for at in writes]


def test_a_kill_at_any_operation_on_a_disk_in_memory_loses_nothing(disk: ModuleType) -> None:
    points, seen = 0, set()
    saves, base = saves_of(disk), disk.Memory()
    for done, save in enumerate(saves):
        before, after = disk.expected(saves[:done]), disk.expected(saves[: done + 1])
        for at, torn in points_of(disk, save, base.copied()):
            state = base.copied()
            with disk.on(disk.killing(at, torn, disk.die, state)), contextlib.suppress(disk.Killed):
                save()
            points += 1
            if (tree := state.tree()) not in seen:  # what only reads leaves the disk as it was
                seen.add(tree)
                assert disk.wrong(state, before, after) is None
                assert disk.save_again(state) is None
        with disk.on(base):
            save()

    print(f"killed at {points} points, {len(seen)} different disks, nothing lost")
    assert points > 600
    assert len(seen) > 200


@FORK
def test_a_process_that_is_killed_at_any_operation_loses_nothing(disk: ModuleType, tmp_path: Path) -> None:
    """On the disk of this machine: a forked process ends in the middle of a save, before and inside each change."""
    points = 0
    saves, base, run_dir = saves_of(disk), tmp_path / "base", tmp_path / "run"
    base.mkdir()
    for done, save in enumerate(saves):
        before, after = disk.expected(saves[:done]), disk.expected(saves[: done + 1])
        shutil.copytree(base, tmp_path / "counted")
        with disk.on(disk.counting(disk.Hasty())) as counted:
            save(tmp_path / "counted")
        shutil.rmtree(tmp_path / "counted")
        at_each = [(at, name) for at, (name, *_) in enumerate(counted.seen, 1) if name not in disk.READING]
        end = len(counted.seen) + 1
        places = [(at, False) for at, _ in (*at_each, (end, ""))] + [(at, True) for at, n in at_each if n == "write"]
        for at, torn in places:
            shutil.copytree(base, run_dir)
            system = disk.killing(at, torn, functools.partial(os._exit, 9), disk.Hasty())
            assert forked(functools.partial(save, run_dir), system) == (9 if at < end else 0)
            with disk.on(disk.Hasty()):
                assert disk.wrong(None, before, after, run_dir) is None
                assert disk.save_again(None, run_dir) is None
            shutil.rmtree(run_dir)
            points += 1
        save(base)

    print(f"{points} processes killed, nothing lost")
    assert points > 250


@FORK
def test_a_killed_process_leaves_the_lock_to_the_next(disk: ModuleType, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def child() -> None:
        with lock(run_dir, "run"):
            files.write_whole(run_dir / "run.json", "{}")

    for at in itertools.count(1):
        code = forked(child, disk.killing(at, False, functools.partial(os._exit, 9)))
        with lock(run_dir, "run"):
            assert {path.name for path in run_dir.iterdir()} <= {"run.lock", "run.json"}
        if code == 0:
            break
    assert at > 12


@FORK
def test_a_kill_while_a_large_file_is_hashed_beside_is_a_kill(disk: ModuleType, tmp_path: Path) -> None:
    size = files.LARGE + 7
    system = disk.killing(2, True, functools.partial(os._exit, 9))

    assert forked(lambda: files.write_file(tmp_path / "file", [bytes(size)]), system) == 9
    assert 0 < (tmp_path / "file").stat().st_size < size


# ------------------------------------------------------------------------------------------ is that every operation?


SCRIPT = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
import disk
saves = [disk.Save(1, 10, ("last", "best")), disk.Save(2, 20), disk.Save(3, 30), disk.Save(4, 40, ("best", "last"))]
system = disk.counting()
with disk.on(system):
    for save in saves:
        save(pathlib.Path(sys.argv[1]))
opened = None
for name, what, *_ in system.seen:
    opened = what if name == "open" else opened
    print("rename" if name == "replace" else name, opened if name in ("write", "fsync") else what)
"""
CHANGES = {  # what the operating system calls what changes a disk, and what it is for us; anything else we never do
    "open": "open", "openat": "open", "creat": "creat", "write": "write", "writev": "writev", "pwrite64": "pwrite64",
    "fsync": "fsync", "fdatasync": "fdatasync", "mkdir": "mkdir", "mkdirat": "mkdir", "rename": "rename",
    "renameat": "rename", "renameat2": "rename", "unlink": "unlink", "unlinkat": "unlink", "rmdir": "rmdir",
    "link": "link", "linkat": "link", "symlink": "link", "symlinkat": "link", "truncate": "truncate",
    "ftruncate": "truncate", "fallocate": "fallocate", "chmod": "chmod", "fchmod": "chmod", "sendfile": "sendfile",
}  # fmt: skip


def unescaped(found: re.Match[str]) -> str:
    """Letters beyond ASCII, of which strace writes the bytes in octal, and may cut one in two."""
    return bytes(int(octal, 8) for octal in found[0].split("\\")[1:]).decode("utf-8", "replace")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_operating_system_sees_every_operation_that_the_tests_do_and_no_other(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "run", tmp_path / "log"
    command = ["strace", "-f", "-y", "-qq", "-e", f"trace={','.join(CHANGES)}", "-e", "signal=none", "-o", str(log)]
    command += [sys.executable, "-c", SCRIPT, str(run_dir), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT)
    if done.returncode != 0 and re.search("PTRACE|ptrace", done.stderr):
        pytest.skip("strace is not permitted here")
    assert done.returncode == 0, done.stderr
    seen = []
    for escaped in log.read_text("utf-8", "replace").splitlines():
        line = re.sub(r"(?:\\[0-7]{3})+", unescaped, escaped)
        call, _, rest = line.split(maxsplit=1)[1].partition("(")
        if "O_DIRECTORY" in rest:  # it is only listed
            continue
        if found := re.search(f'[<"]({re.escape(str(run_dir))}[^>"]*)', rest):
            seen.append((CHANGES[call], found[1]))
    ours = [tuple(line.split(" ", 1)) for line in done.stdout.splitlines()]

    assert len(seen) > 150
    assert seen == [(name, path) for name, path in ours if name in CHANGES.values() and path.startswith(str(run_dir))]
