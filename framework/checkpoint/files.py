"""Every operation on the disk that a checkpoint needs goes through here, so that tests can make each of them fail.

What a file holds is safe from a power failure once the file is fsynced; its name, a rename and a removal once the
directory is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread

from framework.errors import CheckpointError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LARGE = 2**20  # bytes of a file from which a second thread pays off
PIECE = 2**26  # bytes of one write; some systems refuse 2 GB
PATIENCE = 2.0  # seconds; a virus scanner of Windows holds a new file for a moment
LEFTOVER = re.compile(r"\.(tmp|trash)-[0-9a-f]{8}")
UNABLE = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.ENOLCK, errno.EACCES}
SAFE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class System:
    """The operating system. Python itself repeats a call that a signal has interrupted, except close."""

    write, close = staticmethod(os.write), staticmethod(os.close)
    mkdir, rename, replace = staticmethod(os.mkdir), staticmethod(os.rename), staticmethod(os.replace)
    unlink, rmdir, listdir = staticmethod(os.unlink), staticmethod(os.rmdir), staticmethod(os.listdir)
    lstat, monotonic, sleep = staticmethod(os.lstat), staticmethod(time.monotonic), staticmethod(time.sleep)

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, 0o666)  # less the umask

    def read(self, descriptor: int) -> bytes:
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall()

    def fsync(self, descriptor: int) -> None:
        if sys.platform == "darwin":  # where fsync ends at the drive's own memory
            try:
                return fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            except OSError as error:
                if error.errno not in UNABLE:
                    raise
        os.fsync(descriptor)

    def free(self, path: Path) -> int:
        """Bytes that may still be written; some network file systems do not tell."""
        usage = shutil.disk_usage(path)
        return usage.free if usage.total else sys.maxsize

    def lock(self, descriptor: int) -> bool:
        """Whether nobody else holds the lock of this file, and this process does now."""
        try:
            if sys.platform == "win32":
                os.lseek(descriptor, 2**30, os.SEEK_SET)  # nobody else can read what is locked: beyond the text
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                os.lseek(descriptor, 0, os.SEEK_SET)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True


system = System()


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = system.open(path, flags)
    try:
        yield descriptor
    finally:
        with contextlib.suppress(InterruptedError):  # it is closed all the same
            system.close(descriptor)


def write_file(path: Path, buffers: Sequence[bytes | memoryview]) -> tuple[int, str]:
    """Write a file that must not be there yet, and fsync it; its size in bytes and its SHA-256 in hex.

    The SHA-256 is that of the memory: what a second look at the disk gives can be compared with it.
    """
    size = sum(len(buffer) for buffer in buffers)
    if size < LARGE:
        buffers = [b"".join(buffers)]
    digest = hashlib.sha256()
    # beside the writing; a daemon, so that neither an error nor a second Ctrl-C waits for it
    hashing = Thread(target=lambda: [*map(digest.update, buffers)], daemon=True)
    (hashing.run if size < LARGE else hashing.start)()
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE) as descriptor:
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                rest = rest[system.write(descriptor, rest[:PIECE]) :]
        system.fsync(descriptor)
    if size >= LARGE:
        hashing.join()
    return size, digest.hexdigest()


def put(path: Path, text: str) -> None:
    """Write a file in place of the one that may be there: always one of them, whole. The name is not fsynced."""
    beside = path.with_name(temporary())
    try:
        write_file(beside, [text.encode("utf-8", "backslashreplace")])  # a path may be no Unicode
        _patiently(system.replace, beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(beside)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a file in place of the one that may be there, durably."""
    put(path, text)
    sync_directory(path.parent)


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. It is never mapped: where a mapped file is cut off, the process is killed.

    Raises:
        CheckpointError: it is something else, or has more than `limit` bytes
        OSError: it cannot be read
    """
    found = system.lstat(path)  # before it is opened, which may wait, or do something, at a pipe or a device
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError("it is no regular file")
    if found.st_size > limit:
        raise CheckpointError(f"it has {found.st_size} bytes, more than {limit}")
    with _opened(path, os.O_RDONLY | SAFE) as descriptor:
        return system.read(descriptor)


def exists(path: Path) -> bool:
    """Whether there is anything of this name, be it a link to nowhere."""
    with contextlib.suppress(FileNotFoundError):
        return bool(system.lstat(path))
    return False


def is_directory(path: Path) -> bool:
    """Whether there is a directory of this name, not a link to one."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISDIR(system.lstat(path).st_mode)
    return False


def make_directory(path: Path) -> None:
    """Make a directory, and those above it; it may be there already."""
    try:
        system.mkdir(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        if path == path.parent:  # a drive that is not there
            raise
        make_directory(path.parent)
        system.mkdir(path)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the platform can."""
    try:
        if sys.platform != "win32":  # NTFS keeps a journal of names, and a directory cannot be opened
            with _opened(path, os.O_RDONLY) as descriptor:
                system.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def rename(source: Path, target: Path) -> None:
    """Rename to a name that is not there yet."""
    if exists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        _patiently(system.rename, source, target)
    except OSError:  # a network file system may have done it, lost the answer, and asked again
        if exists(source) or not exists(target):
            raise


def _patiently(call: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    until = system.monotonic() + PATIENCE
    while True:
        try:
            return call(source, target)
        except PermissionError:
            if system.monotonic() >= until:
                raise
            system.sleep(0.05)


def temporary(kind: str = "tmp") -> str:
    """A new name for what is not finished ("tmp") or not wanted any more ("trash")."""
    return f".{kind}-{secrets.token_hex(4)}"


def remove(path: Path) -> None:
    """Remove a file, or a directory of files."""
    if not is_directory(path):
        return system.unlink(path)
    for name in sorted(system.listdir(path)):  # MANIFEST.json is the first: the rest cannot look complete
        system.unlink(path / name)
    system.rmdir(path)


def discard(path: Path) -> None:
    """Remove what nobody needs; where that fails it is a warning."""
    try:
        remove(path)
    except OSError as error:
        warnings.warn(f"cannot remove {path}: {error.strerror or error}", stacklevel=4)


def sweep(directory: Path) -> None:
    """Remove what a process that was killed has left behind; nothing of another name."""
    for name in system.listdir(directory):
        if LEFTOVER.fullmatch(name):
            discard(directory / name)
