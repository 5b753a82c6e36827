"""The few system calls by which the notary changes a disk, in one place so that a test can fail each in turn.

Trusts: the file system to keep what it has synced, and to rename atomically.
Promises: ``replace`` leaves the old file or the new one, whole and synced, whatever fails and whenever; every failure
    is an ``OSError``.
Not here: what is written, and what follows from a failure (``notary.wal``, ``notary.publish``).
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

PRIVATE_DIRECTORY: Final = 0o700
PRIVATE_FILE: Final = 0o600
PUBLIC_FILE: Final = 0o644


class Files:
    """The real thing. Each method is one system call, or a loop over one."""

    def open(self, path: Path, flags: int, mode: int = PRIVATE_FILE) -> int:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        """All of ``data``, or ``OSError``: what part of it landed is then unknown."""
        view = memoryview(data)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written

    def datasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=PRIVATE_DIRECTORY)

    def remove_directory(self, path: Path) -> None:
        path.rmdir()


def make_directories(files: Files, path: Path) -> None:
    """``path`` and its missing parents, each synced into its own parent."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with suppress(FileExistsError):
            files.make_directory(directory)
        sync_directory(files, directory.parent)


def sync_directory(files: Files, path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = files.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.sync(fd)
    finally:
        files.close(fd)


def write_synced(files: Files, path: Path, data: bytes, mode: int = PRIVATE_FILE) -> int:
    """A file with exactly these bytes, on disk; returns its open descriptor. A leftover is overwritten."""
    fd = files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)
    try:
        files.write_at(fd, data, 0)
        files.sync(fd)
    except OSError:
        files.close(fd)
        with suppress(OSError):  # it takes room on a full disk; the name is reused if it stays
            files.unlink(path)
        raise
    return fd


def replace(files: Files, path: Path, data: bytes, mode: int = PRIVATE_FILE, *, sync_name: bool = True) -> None:
    """Puts ``data`` at ``path`` atomically. With ``sync_name`` false the caller syncs the directory itself, once for
    many files. ``mode`` is applied as given, whatever the umask."""
    temporary = path.with_name(path.name + ".tmp")
    fd = write_synced(files, temporary, data, mode)
    try:
        os.fchmod(fd, mode)
    finally:
        files.close(fd)
    files.rename(temporary, path)
    if sync_name:
        sync_directory(files, path.parent)
