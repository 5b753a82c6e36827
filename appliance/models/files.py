"""Files of the store by descriptor: reading one safely, and putting one where a crash cannot leave half of it.

Trusts: the directory descriptors it is given.
Promises: ``open_file`` gives a regular file with one name, owned by us or root, that nobody may write; an ``Incoming``
    file gets its name whole and durable, or not at all, and while its process lives ``claim`` finds it taken.
Not here: whether the bytes are the right ones (``models.descriptor``, ``core.manifest``).
"""

import errno
import fcntl
import os
import re
import secrets
import stat
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Final

from appliance.core.refusals import Fault, Reason, Refused
from appliance.sandbox.openat2 import open_beneath

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not hold us up: it is refused after fstat
TEMPORARY_PREFIX: Final = ".incoming-"
TEMPORARY: Final = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{16}")
PARTIALS_DIRECTORY: Final = "incoming"
PARTIAL_SUFFIX: Final = ".part"
_WRITABLE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def not_verified(code: str, detail: str) -> Refused:
    return Refused(Reason.MODEL_NOT_VERIFIED, f"{code}: {detail}")


def open_directory(parent: int, name: str) -> int:
    """A descriptor of a directory, made if missing. Raises ``Fault`` if others may write in it, or ``OSError``."""
    with suppress(FileExistsError):  # also on a read-only mount, where it may be missing only once
        os.mkdir(name, mode=0o700, dir_fd=parent)
        os.fsync(parent)
    fd = open_beneath(parent, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        check_directory(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_directory(fd: int) -> None:
    status = os.fstat(fd)
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Fault("a directory of the model store belongs to, or is writable by, somebody else")


def open_file(directory: int, name: str) -> int:
    """A descriptor of a regular file that nobody may write. Raises ``Refused`` or ``OSError``."""
    try:
        fd = open_beneath(directory, name, _READ)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EXDEV, errno.ENXIO}:
            raise not_verified("file-unsafe", f"{name} is a link or not a file") from None
        raise
    try:
        _check_file(os.fstat(fd), name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_file(status: os.stat_result, name: str) -> None:
    check_plain(status, name)
    if status.st_mode & _WRITABLE:
        raise not_verified("file-unsafe", f"{name} is writable")


def check_plain(status: os.stat_result, name: str) -> None:
    """Raises ``Refused`` unless this is a regular file with one name, of ours or root's."""
    if not stat.S_ISREG(status.st_mode):
        raise not_verified("file-unsafe", f"{name} is not a regular file")
    if status.st_nlink != 1:
        raise not_verified("file-unsafe", f"{name} has {status.st_nlink} names")
    if status.st_uid not in {0, os.geteuid()}:
        raise not_verified("file-unsafe", f"{name} belongs to another user")


def claim(fd: int) -> bool:
    """Locks a file that is being made, or that somebody else may be making: False if somebody else has it.

    The lock ends with the last descriptor. Whoever gets it looks afterwards whether the file still has its name.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_being_written(directory: int, name: str) -> bool:
    """Whether this is a temporary file whose process has claimed it, or one that is gone by now."""
    if not TEMPORARY.fullmatch(name):
        return False
    try:
        fd = open_beneath(directory, name, _READ)
    except FileNotFoundError:
        return True
    except OSError:  # a link, a socket, or a file of somebody else's
        return False
    try:
        return not claim(fd)
    finally:
        os.close(fd)


def read_file(directory: int, name: str, at_most_bytes: int) -> bytes:
    """A small file, whole. One that is longer gives ``at_most_bytes`` and one more, which no check will accept."""
    fd = open_file(directory, name)
    try:
        pieces = []
        left = at_most_bytes + 1
        while left and (piece := os.read(fd, left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def file_stamp(directory: int, name: str) -> tuple[int, ...]:
    """Which file this is and when it was last touched; empty if there is none. Raises ``OSError``."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def unlink_if_present(directory: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _claimed(directory: int, name: str) -> int | None:
    """A descriptor that holds the claim to a file just made; None when a collection was there between.

    One of its own, for reading: the claim stays while the other is closed or opened anew.
    """
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        if claim(fd) and os.fstat(fd).st_nlink > 0:
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


class Incoming(AbstractContextManager["Incoming"]):
    """A file on its way into a directory: without a name where the file system can, else under a temporary one.

    A nameless file vanishes with the process; a named one is deleted on the way out, or by the next collection.
    """

    def __init__(self, directory: int, *, named: bool = False) -> None:
        self._directory = directory
        self._temporary: str | None = None
        self._claim: int | None = None
        self.fd = self._open_named() if named else self._open_nameless()

    def _open_nameless(self) -> int:
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o400, dir_fd=self._directory)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                raise
            return self._open_named()

    def _open_named(self) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            name = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
            fd = os.open(name, flags, 0o400, dir_fd=self._directory)
            try:
                self._claim = _claimed(self._directory, name)
            except BaseException:
                os.close(fd)
                raise
            if self._claim is not None:
                self._temporary = name
                return fd
            os.close(fd)

    def stop_writing(self) -> None:
        """From now on ``fd`` is read-only and nobody can write but who opens the file anew: what fs-verity demands."""
        os.fchmod(self.fd, 0o600)
        reading = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(self.fd)
        self.fd = reading

    def make_durable(self) -> None:
        """Nobody can write it under its final name, and its bytes survive a crash."""
        os.fchmod(self.fd, 0o444)
        os.fsync(self.fd)

    def link(self, name: str) -> None:
        """Gives the file its name, which must be free. Raises ``OSError``."""
        if self._temporary is not None:
            self.rename(name)
            return
        # linkat by descriptor needs a privilege; by this magic link it needs none.
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._directory, follow_symlinks=True)

    def rename(self, name: str) -> None:
        """Atomically replaces whatever has that name."""
        if self._temporary is None:
            raise RuntimeError("only a named file can be renamed")
        os.rename(self._temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.close(self.fd)
        finally:
            if self._temporary is not None:
                with suppress(OSError):  # it is not visible, and the next collection takes it
                    os.unlink(self._temporary, dir_fd=self._directory)
            if self._claim is not None:
                os.close(self._claim)
