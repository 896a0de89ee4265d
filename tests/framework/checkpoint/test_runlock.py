"""One process at a time writes into a run directory, and it is free at once when that process is gone."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework import RunDirError
from framework.checkpoint import files, lock, runlock

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
MINE = f"in use by pid {os.getpid()} on host {re.escape(socket.gethostname())} since \\d{{4}}-\\d\\d-\\d\\dT"


def forked(child: Callable[[], int]) -> int:
    """The process id of a child that does this and ends with its result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer Pythons, about threads
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = child()
        finally:
            os._exit(code)
    return pid


def result(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def taken(run_dir: Path) -> int:
    try:
        lock(run_dir, "fit")
    except RunDirError:
        return 1
    return 0


def test_the_directory_is_made_and_the_lock_tells_who_holds_it(tmp_path: Path) -> None:
    with lock(tmp_path / "runs" / "one", "run"):
        text = (tmp_path / "runs" / "one" / "run.lock").read_text("ascii")

    assert re.fullmatch(rf"pid {os.getpid()} on host \S+ since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d *\n", text)


@pytest.mark.parametrize("by", ["run", "fit"])
def test_a_second_one_of_the_same_process_is_told_who_holds_it(tmp_path: Path, by: str) -> None:
    with lock(tmp_path, by), pytest.raises(RunDirError, match=re.escape(f"{tmp_path} is ") + MINE):
        lock(tmp_path, by)
    lock(tmp_path, by).close()


def test_a_fit_is_inside_a_run_and_the_outer_one_keeps_the_lock(tmp_path: Path) -> None:
    with lock(tmp_path, "run"):
        for _ in range(2):
            with lock(tmp_path, "fit"), pytest.raises(RunDirError, match="in use"):
                lock(tmp_path, "fit")
        with pytest.raises(RunDirError, match="in use"):
            lock(tmp_path, "run")
    with lock(tmp_path, "run"):
        pass


def test_closing_twice_frees_nothing_of_anybody_else(tmp_path: Path) -> None:
    first = lock(tmp_path, "fit")
    first.close()
    with lock(tmp_path, "fit"):
        first.close()
        with pytest.raises(RunDirError, match="in use"):
            lock(tmp_path, "fit")


def test_another_name_of_the_directory_is_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    with lock(Path("run"), "fit"):
        for other in (tmp_path / "run", Path("run") / ".." / "run"):
            with pytest.raises(RunDirError, match="in use"):
                lock(other, "fit")


def test_two_directories_are_two_locks(tmp_path: Path) -> None:
    with lock(tmp_path / "a", "fit"), lock(tmp_path / "b", "fit"):
        pass


@FORK
def test_another_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    ready, go = os.pipe(), os.pipe()

    def holder() -> int:
        os.close(go[1])  # so that it ends with the test, however that ends
        with lock(tmp_path, "run"):
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        return 0

    pid = forked(holder)
    os.read(ready[0], 1)
    with pytest.raises(RunDirError, match=rf"in use by pid {pid} on host "):
        lock(tmp_path, "run")
    os.write(go[1], b"x")
    assert result(pid) == 0
    lock(tmp_path, "run").close()
    for end in (*ready, *go):
        os.close(end)


@FORK
@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "with a worker that lives on"])
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path, with_child: bool) -> None:
    """Also where a forked worker, as of a DataLoader, has inherited the handle and goes on living."""
    ready, alive = os.pipe(), os.pipe()

    def worker() -> int:
        os.close(alive[1])
        os.read(alive[0], 1)  # until the test closes its end
        return 0

    def holder() -> int:
        lock(tmp_path, "run")
        if with_child:
            forked(worker)
        os.close(alive[1])
        os.write(ready[1], b"x")
        os.read(alive[0], 1)
        return 0

    pid = forked(holder)
    os.read(ready[0], 1)
    assert taken(tmp_path) == 1
    os.kill(pid, signal.SIGKILL)
    assert result(pid) == -signal.SIGKILL
    lock(tmp_path, "run").close()
    for end in (*ready, *alive):
        os.close(end)


@FORK
def test_a_forked_child_holds_nothing_and_frees_nothing(tmp_path: Path) -> None:
    def child() -> int:
        refused = taken(tmp_path)
        held.close()
        return refused + 2 * taken(tmp_path)

    with lock(tmp_path, "run") as held:
        assert result(forked(child)) == 3
        assert result(forked(lambda: taken(tmp_path))) == 1


@FORK
def test_of_a_hundred_that_start_together_exactly_one_wins(tmp_path: Path) -> None:
    start, done = os.pipe(), os.pipe()

    def contender() -> int:
        os.close(start[1])
        os.read(start[0], 1)
        refused = taken(tmp_path)
        os.close(done[1])
        os.read(done[0], 1)  # nobody leaves before all have tried
        return refused

    def attempted() -> Iterator[int]:
        for _ in range(100):
            yield forked(contender)

    pids = [*attempted()]
    os.close(start[1])
    os.close(start[0])
    # each winner and loser holds its copy of the write end until it has tried
    os.close(done[1])
    codes = [result(pid) for pid in pids]
    os.close(done[0])

    assert sorted(codes) == [0] + [1] * 99


def test_what_a_killed_process_left_in_the_run_directory_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123abcd").write_text("half of run.json")
    (tmp_path / "notes.txt").write_text("mine")
    with lock(tmp_path, "run"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "run.lock"]


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"\x1b[2J", b" " * 201, b"x" * 2000], ids=repr)
def test_a_lock_without_a_readable_text_is_still_a_lock(tmp_path: Path, text: bytes) -> None:
    with lock(tmp_path, "run"):
        (tmp_path / "run.lock").write_bytes(text)
        with pytest.raises(RunDirError, match=r"is in use by another process$"):
            lock(tmp_path, "run")


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunDirError, match=r"cannot write into the run directory .*run: Not a directory"):
        lock(tmp_path / "run", "run")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(RunDirError, match=r"cannot write into the run directory .*: Permission denied"):
        lock(tmp_path, "run")
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("link", ["somewhere", "nowhere"])
def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path, link: str) -> None:
    (tmp_path / "somewhere").write_text("mine")
    (tmp_path / "run.lock").symlink_to(tmp_path / link)
    with pytest.raises(RunDirError, match="cannot write into the run directory"):
        lock(tmp_path, "run")
    assert (tmp_path / "somewhere").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


class Refusing(files.System):
    """A system whose locks fail with this errno; it counts what is open."""

    def __init__(self, code: int) -> None:
        self.code, self.open_now = code, 0

    def open(self, path: Path, flags: int) -> int:
        self.open_now += 1
        return super().open(path, flags)

    def close(self, descriptor: int) -> None:
        self.open_now -= 1
        os.close(descriptor)

    def lock(self, descriptor: int) -> bool:
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: Any, code: int) -> None:
    monkeypatch.setattr(files, "system", Refusing(code))
    with pytest.warns(UserWarning, match="this file system has no locks; use it by one run at a time"):
        held = lock(tmp_path, "run")
    held.close()
    assert files.system.open_now == 0  # type: ignore[attr-defined]


def test_a_lock_that_fails_is_told_and_the_file_is_closed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "system", Refusing(errno.EIO))
    with pytest.raises(RunDirError, match=r"cannot write into the run directory .*: Input/output error"):
        lock(tmp_path, "run")
    assert files.system.open_now == 0  # type: ignore[attr-defined]
    assert runlock._held == {}


@FORK
def test_a_refused_process_keeps_nothing_open(tmp_path: Path, monkeypatch: Any) -> None:
    class Taken(Refusing):
        def lock(self, descriptor: int) -> bool:
            return False

    monkeypatch.setattr(files, "system", Taken(0))
    with pytest.raises(RunDirError, match="in use"):
        lock(tmp_path, "run")
    assert files.system.open_now == 0  # type: ignore[attr-defined]


def test_the_handle_is_not_inherited_by_another_program(tmp_path: Path) -> None:
    """A program that the run has started may outlive it."""
    with lock(tmp_path, "run"):
        assert not os.get_inheritable(runlock._held[os.path.realpath(tmp_path)][0])
