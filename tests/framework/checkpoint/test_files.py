"""Operations on files: whole or not at all, durable, and what each platform does differently."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework import CheckpointError
from framework.checkpoint import files

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX alone has it")


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Puts functions in place of operations; gives the list of the operations that were called."""

    def patch(**instead: Callable[..., Any]) -> list[Any]:
        system, seen = files.System(), []
        for name in ("open", "read", "write", "fsync", "close", "rename", "replace", "unlink", "mkdir", "lstat"):

            def called(*arguments: Any, name: str = name, call: Any) -> Any:
                seen.append((name, *arguments))
                return call(*arguments)

            call = instead.get(name, getattr(system, name))
            setattr(system, name, partial(called, call=call))
        system.now = 0.0
        system.monotonic = lambda: system.now
        system.sleep = lambda seconds: setattr(system, "now", system.now + seconds)
        monkeypatch.setattr(files, "system", system)
        return seen

    return patch


def raises(code: int) -> Callable[..., Any]:
    def fail(*arguments: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def counts(seen: list[Any], name: str) -> int:
    return sum(called[0] == name for called in seen)


# ----------------------------------------------------------------------------------------------------------- a new file


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=5), small=st.booleans(), piece=st.integers(1, 50), data=st.data()
)
@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_a_file_holds_its_pieces_however_little_is_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], small: bool, piece: int, data: st.DataObject
) -> None:
    path, whole = tmp_path_factory.mktemp("a") / "file", b"".join(pieces)
    system = files.System()
    system.write = lambda descriptor, rest: os.write(descriptor, rest[: data.draw(st.integers(1, len(rest)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "system", system)
        patch.setattr(files, "LARGE", 2**20 if small else 0)
        patch.setattr(files, "PIECE", piece)
        told = files.write_file(path, [memoryview(part) for part in pieces])

    assert path.read_bytes() == whole
    assert told == (len(whole), hashlib.sha256(whole).hexdigest())


def test_a_large_file_is_written_in_pieces_and_hashed_beside(tmp_path: Path, patched: Any) -> None:
    data = os.urandom(files.LARGE) * 3
    seen = patched()
    told = files.write_file(tmp_path / "file", [data[:100], memoryview(data)[100:]])

    assert told == (len(data), hashlib.sha256(data).hexdigest())
    assert (tmp_path / "file").read_bytes() == data
    assert [name for name, *_ in seen] == ["open", "write", "write", "fsync", "close"]


def test_the_hash_of_a_large_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = threading.Event()

    class Waiting(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            waited.set()
            super().join(timeout)

    class Slow:
        def __init__(self) -> None:
            self.digest = hashlib.sha256()

        def update(self, data: bytes) -> None:
            waited.wait()
            self.digest.update(data)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    monkeypatch.setattr(files, "Thread", Waiting)
    monkeypatch.setattr(files, "hashlib", SimpleNamespace(sha256=Slow))
    data = bytes(files.LARGE)
    told = files.write_file(tmp_path / "file", [data])
    waited.set()

    assert told == (len(data), hashlib.sha256(data).hexdigest())


def test_a_file_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        files.write_file(tmp_path / "file", [b"new"])

    assert (tmp_path / "file").read_text() == "mine"


@POSIX
def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    for target in ("target", "nowhere"):
        (tmp_path / target).with_name("link").symlink_to(tmp_path / target)
        with pytest.raises(OSError, match=r"File exists|symbolic links"):
            files.write_file(tmp_path / "link", [b"new"])
        with pytest.raises(CheckpointError, match="no regular file"):
            files.read_file(tmp_path / "link", 100)
        (tmp_path / "link").unlink()

    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "target").read_text() == "mine"


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files.write_file(tmp_path / "file", [b"x"])
        files.put(tmp_path / "label", "x")
        files.make_directory(tmp_path / "a" / "b")
    finally:
        os.umask(before)

    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "label")] == [0o666 & ~umask] * 2
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o777 & ~umask] * 2


def test_an_interrupted_close_has_closed(tmp_path: Path, patched: Any) -> None:
    def interrupted(descriptor: int) -> None:
        os.close(descriptor)
        raise InterruptedError(errno.EINTR, "Interrupted system call")

    seen = patched(close=interrupted)
    files.write_file(tmp_path / "file", [b"x"])

    assert counts(seen, "close") == 1
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("operation", ["write", "fsync", "close"])
def test_a_failure_of_any_operation_is_raised_and_the_file_is_closed(
    tmp_path: Path, patched: Any, operation: str
) -> None:
    opened: list[int] = []

    def closed(descriptor: int) -> None:
        opened.append(descriptor)
        os.close(descriptor)
        if operation == "close":
            raise OSError(errno.EIO, "Input/output error")

    patched(**{"close": closed} if operation == "close" else {operation: raises(errno.EIO), "close": closed})
    with pytest.raises(OSError, match="Input/output error"):
        files.write_file(tmp_path / "file", [b"x"])

    assert len(opened) == 1


# ---------------------------------------------------------------------------------------------- in place of another one


def test_a_file_is_put_in_place_of_another_and_its_name_is_durable(tmp_path: Path, patched: Any) -> None:
    (tmp_path / "file").write_text("old")
    seen = patched()
    files.write_whole(tmp_path / "file", "new\udcff")

    assert (tmp_path / "file").read_bytes() == b"new\\udcff"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    names = [name for name, *_ in seen]
    assert names == ["open", "write", "fsync", "close", "replace", "open", "fsync", "close"]
    assert seen[5][1] == tmp_path


@pytest.mark.parametrize("operation", ["open", "write", "fsync", "close", "replace"])
def test_what_cannot_be_put_leaves_the_old_one_and_nothing_else(tmp_path: Path, patched: Any, operation: str) -> None:
    (tmp_path / "file").write_text("old")

    def closed(descriptor: int) -> None:
        os.close(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    patched(**{operation: closed if operation == "close" else raises(errno.EIO)})
    with pytest.raises(OSError, match="Input/output error"):
        files.write_whole(tmp_path / "file", "new")

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


# ----------------------------------------------------------------------------------------------------------------- read


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    assert files.read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(CheckpointError, match="it has 5 bytes, more than 4"):
        files.read_file(tmp_path / "file", 4)


def test_a_file_that_is_too_large_is_not_even_opened(tmp_path: Path, patched: Any) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)
    seen = patched()
    with pytest.raises(CheckpointError, match="more than 1000"):
        files.read_file(tmp_path / "file", 1000)

    assert [name for name, *_ in seen] == ["lstat"]


@POSIX
@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "link to a file", "link to nowhere", "device"])
def test_what_is_no_file_is_not_even_opened(tmp_path: Path, patched: Any, kind: str, monkeypatch: Any) -> None:
    path = tmp_path / "x"
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as held:
        {
            "directory": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "socket": lambda: held.bind("x"),
            "link to a file": lambda: path.symlink_to(__file__),
            "link to nowhere": lambda: path.symlink_to("nowhere"),
            "device": lambda: None,
        }[kind]()
        seen = patched()
        with pytest.raises(CheckpointError, match="it is no regular file"):
            files.read_file(Path(os.devnull) if kind == "device" else path, 1000)

    assert [name for name, *_ in seen] == ["lstat"]


# ---------------------------------------------------------------------------------------------------------- directories


def test_directories_are_made_with_those_above_them(tmp_path: Path) -> None:
    for _ in range(2):
        files.make_directory(tmp_path / "a" / "b" / "c")

    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_drive_that_is_not_there_is_told(tmp_path: Path, patched: Any) -> None:
    patched(mkdir=raises(errno.ENOENT))
    with pytest.raises(FileNotFoundError):
        files.make_directory(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    "code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.ENOTTY], ids=errno.errorcode.get
)
@pytest.mark.parametrize("operation", ["open", "fsync"])
def test_a_directory_that_cannot_be_fsynced_at_all_is_let_be(
    tmp_path: Path, patched: Any, code: int, operation: str
) -> None:
    seen = patched(**{operation: raises(code)})
    files.sync_directory(tmp_path)

    assert counts(seen, operation) == 1


@POSIX
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", ["open", "fsync"])
def test_a_directory_whose_fsync_fails_is_told(tmp_path: Path, patched: Any, code: int, operation: str) -> None:
    patched(**{operation: raises(code)})
    with pytest.raises(OSError, match=os.strerror(code)):
        files.sync_directory(tmp_path)


def test_on_windows_a_directory_is_not_opened(tmp_path: Path, patched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = patched()
    monkeypatch.setattr(files.sys, "platform", "win32")
    files.sync_directory(tmp_path)

    assert seen == []


@POSIX
@pytest.mark.parametrize(
    ("told", "calls"), [(None, ["full"]), (errno.ENOTSUP, ["full", "fsync"]), (errno.EIO, ["full"])]
)
def test_on_macos_the_drive_itself_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: int | None, calls: list[str]
) -> None:
    """And where a file system cannot, fsync does; after an error of the drive there is no second try."""
    seen = []

    def fcntl(descriptor: int, what: int) -> int:
        seen.append("full")
        if told:
            raise OSError(told, os.strerror(told))
        return 0

    monkeypatch.setattr(files.sys, "platform", "darwin")
    monkeypatch.setattr(files, "fcntl", SimpleNamespace(fcntl=fcntl, F_FULLFSYNC=51), raising=False)
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append("fsync"))
    if told == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            files.System().fsync(3)
    else:
        files.System().fsync(3)

    assert seen == calls


# --------------------------------------------------------------------------------------------------------------- rename


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "link to nowhere"])
def test_a_rename_never_takes_the_place_of_anything(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    if kind == "file":
        target.write_text("mine")
    elif kind == "link to nowhere":
        target.symlink_to("nowhere")
    else:
        target.mkdir()
        if kind == "directory":
            (target / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        files.rename(source, target)

    assert source.is_dir()


@pytest.mark.parametrize("name", ["rename", "replace"])
@pytest.mark.parametrize("times", [1, 5, 39])
def test_a_virus_scanner_that_holds_a_file_for_a_moment_is_waited_for(
    tmp_path: Path, patched: Any, name: str, times: int
) -> None:
    held = times

    def rename(source: Path, target: Path) -> None:
        nonlocal held
        held -= 1
        if held >= 0:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        getattr(os, name)(source, target)

    seen = patched(**{name: rename})
    if name == "rename":
        (tmp_path / "a").mkdir()
        files.rename(tmp_path / "a", tmp_path / "b")
    else:
        files.put(tmp_path / "b", "x")

    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert counts(seen, name) == times + 1


def test_after_two_seconds_it_is_an_error(tmp_path: Path, patched: Any) -> None:
    seen = patched(rename=raises(errno.EACCES))
    (tmp_path / "a").mkdir()
    with pytest.raises(PermissionError):
        files.rename(tmp_path / "a", tmp_path / "b")

    assert 1.9 < files.system.now < 2.2
    assert counts(seen, "rename") > 10
    assert (tmp_path / "a").is_dir()


def test_a_rename_whose_answer_was_lost_has_been_done(tmp_path: Path, patched: Any) -> None:
    """A network file system asks again, and is told that the source is not there."""

    def rename(source: Path, target: Path) -> None:
        os.rename(source, target)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    patched(rename=rename)
    (tmp_path / "a").mkdir()
    files.rename(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "b").is_dir()


def test_a_rename_that_failed_is_told(tmp_path: Path, patched: Any) -> None:
    patched(rename=raises(errno.EIO))
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="Input/output error"):
        files.rename(tmp_path / "a", tmp_path / "b")
    with pytest.raises(OSError, match="Input/output error"):
        files.rename(tmp_path / "nowhere", tmp_path / "b")


# --------------------------------------------------------------------------------------------------------------- remove

OURS = st.builds(
    "{}{}".format, st.sampled_from([".tmp-", ".trash-"]), st.text("0123456789abcdef", min_size=8, max_size=8)
)
OTHERS = st.sampled_from([
    ".DS_Store", "._x", "desktop.ini", ".tmp", ".tmp-", ".tmp-probe", ".tmp-0123456", ".tmp-0123456789",
    ".tmp-0123456G", ".trash-", ".trash", "tmp-01234567", ".tmp-01234567~", "step-000000000001", "LAST", "notes.txt",
    "-rf", " ",
]) | st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)  # fmt: skip


@POSIX
@given(ours=st.sets(OURS, max_size=4), others=st.sets(OTHERS, max_size=6), folders=st.booleans())
@settings(max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_a_sweep_takes_leftovers_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, ours: set[str], others: set[str], folders: bool
) -> None:
    folder = tmp_path_factory.mktemp("run")
    others = {name for name in others if name not in (".", "..") and not files.LEFTOVER.fullmatch(name)}
    for name in ours | others:
        if folders:
            (folder / name).mkdir()
            (folder / name / "file").write_text("x")
        else:
            (folder / name).write_text("x")
    files.sweep(folder)

    assert {path.name for path in folder.iterdir()} == others
    assert all((folder / name / "file").exists() for name in others if folders)


def test_of_a_directory_the_manifest_goes_first(tmp_path: Path, patched: Any) -> None:
    (tmp_path / ".trash-01234567").mkdir()
    for name in ("model.safetensors", "MANIFEST.json", "state.json", "zzz"):
        (tmp_path / ".trash-01234567" / name).write_text("x")
    seen = patched()
    files.sweep(tmp_path)

    assert next(path for name, path, *_ in seen if name == "unlink").name == "MANIFEST.json"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_is_a_warning(tmp_path: Path, patched: Any) -> None:
    (tmp_path / ".tmp-01234567").write_text("x")
    patched(unlink=raises(errno.EBUSY))
    with pytest.warns(UserWarning, match=r"cannot remove .*\.tmp-01234567: .*busy"):
        files.sweep(tmp_path)


def test_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    (tmp_path / ".tmp-01234567").symlink_to(tmp_path / "mine", target_is_directory=True)
    files.sweep(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "file").exists()


@pytest.mark.parametrize(("total", "free"), [(100, 7), (0, 0)])
def test_a_file_system_that_does_not_tell_its_space_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int
) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(total=total, free=free))

    assert files.System().free(tmp_path) == (7 if total else sys.maxsize)


@pytest.mark.parametrize("free", [True, False])
def test_on_windows_a_byte_beyond_the_text_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    """There nobody else can read what is locked, and the text shall be read; it is written at the beginning."""
    locked = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        locked.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))
        if not free:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setattr(files, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2), raising=False)
    descriptor = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    try:
        assert files.System().lock(descriptor) is free
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0 or not free
    finally:
        os.close(descriptor)
    assert locked == [(2**30, 2, 1)]


def test_the_calls_of_the_operating_system_are_made_nowhere_else() -> None:
    """Or a test that makes each operation fail would miss one."""
    folder = Path(files.__file__).parent
    for path in folder.glob("*.py"):
        source = path.read_text("utf-8")
        if path.name != "files.py":
            for word in (
                ".write_bytes",
                ".write_text",
                ".read_bytes",
                ".read_text",
                "open(",
                ".unlink(",
                "shutil",
                ".mkdir(",
            ):
                held = source.replace("files.system.open(", "").replace("files.system.mkdir(", "")
                assert word not in held, f"{path.name} has {word}"
