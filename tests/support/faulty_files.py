"""Files that fail, that die, and that lose what was not synced."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.notary.files import Files


@contextmanager
def fast_directory() -> Iterator[Path]:
    """In memory where the machine offers it: these tests sync thousands of times."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="paddock-faults-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)


class WatchedFiles(Files):
    """Calls ``before(step, name)`` ahead of every system call."""

    def __init__(self, before: Callable[[int, str], None]) -> None:
        self._before = before
        self.steps = 0

    def _step(self, name: str) -> None:
        self.steps += 1
        self._before(self.steps, name)

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._step("open")
        return super().open(path, flags, mode)

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        self._step("write_at")
        super().write_at(fd, data, offset)

    def datasync(self, fd: int) -> None:
        self._step("datasync")
        super().datasync(fd)

    def sync(self, fd: int) -> None:
        self._step("sync")
        super().sync(fd)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._step("truncate")
        super().truncate(fd, size_bytes)

    def rename(self, old: Path, new: Path) -> None:
        self._step("rename")
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._step("unlink")
        super().unlink(path)

    def make_directory(self, path: Path) -> None:
        self._step("make_directory")
        super().make_directory(path)

    def remove_directory(self, path: Path) -> None:
        self._step("remove_directory")
        super().remove_directory(path)


class FailingFiles(WatchedFiles):
    """Fails calls ``first`` up to ``first + count``; a write that fails has written half."""

    def __init__(self, first: int, count: int, error: int = errno.EIO) -> None:
        super().__init__(self._fail)
        self._range = range(first, first + count)
        self._error = error
        self.failed: list[str] = []

    def _fail(self, step: int, name: str) -> None:
        if step in self._range:
            self.failed.append(name)
            raise OSError(self._error, os.strerror(self._error))

    def write_at(self, fd: int, data: bytes, offset: int) -> None:
        try:
            super().write_at(fd, data, offset)
        except OSError:
            os.pwrite(fd, data[: len(data) // 2], offset)
            raise


class PowerLossFiles(WatchedFiles):
    """Knows what a loss of power would leave: synced contents under synced names.

    A file is known by a number of its own, for inode numbers are used again. ``materialise`` writes the worst case:
    a name without synced content is an empty file; with ``torn``, half of what was not synced is there as well.
    """

    def __init__(self, root: Path, before: Callable[[int, str], None]) -> None:
        super().__init__(before)
        self._root = root
        self._next = 0
        self._names: dict[Path, int] = {}
        self._by_fd: dict[int, tuple[Path, int]] = {}
        self._contents: dict[int, bytes] = {}
        self._durable_names: dict[Path, dict[Path, int]] = {}

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        if path not in self._names:
            self._next += 1
            self._names[path] = self._next
        self._by_fd[fd] = (path, self._names[path])
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        self._by_fd.pop(fd, None)

    def _synced(self, fd: int) -> None:
        path, number = self._by_fd[fd]
        if path.is_dir():
            self._durable_names[path] = {name: n for name, n in self._names.items() if name.parent == path}
        else:
            self._contents[number] = os.pread(fd, os.fstat(fd).st_size, 0)

    def datasync(self, fd: int) -> None:
        super().datasync(fd)
        self._synced(fd)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._synced(fd)

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self._names[new] = self._names.pop(old)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._names.pop(path, None)

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self._next += 1
        self._names[path] = self._next

    def remove_directory(self, path: Path) -> None:
        super().remove_directory(path)
        self._names.pop(path, None)

    def materialise(self, target: Path, *, torn: bool) -> None:
        self._materialise(self._root, target, torn=torn)

    def _materialise(self, source: Path, target: Path, *, torn: bool) -> None:
        target.mkdir(mode=0o700)
        for path, number in self._durable_names.get(source, {}).items():
            here = target / path.name
            if path in self._durable_names or path.is_dir():
                self._materialise(path, here, torn=torn)
                continue
            data = self._contents.get(number, b"")
            if torn and self._names.get(path) == number and path.exists():
                now = path.read_bytes()
                if now.startswith(data):
                    data += now[len(data) : len(data) + (len(now) - len(data)) // 2]
            here.write_bytes(data)
