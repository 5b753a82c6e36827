"""The file that a download fills, and that a later one goes on with: ``<store>/incoming/<hex>.part``.

Its bytes are a stranger's until the import has hashed them against a signature; the store looks for models elsewhere.

Trusts: the owner of the store's directory.
Promises: a private regular file, named by a ``Digest`` alone, that one transfer at a time has.
Not here: the bytes (``download``, ``models.store``).
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.models.files import (
    PARTIAL_SUFFIX,
    PARTIALS_DIRECTORY,
    check_directory,
    check_plain,
    claim,
    open_directory,
    unlink_if_present,
)
from appliance.sandbox.openat2 import open_beneath


class Partial(AbstractContextManager["Partial"]):
    """``fd`` is open for reading and writing, at its start. Raises ``Fault`` when it cannot be had."""

    def __init__(self, store: Path, digest: Digest) -> None:
        self._name = f"{digest.hex}{PARTIAL_SUFFIX}"
        root = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            check_directory(root)
            self._directory = open_directory(root, PARTIALS_DIRECTORY)
        finally:
            os.close(root)
        try:
            self.fd = _open_locked(self._directory, self._name)
        except BaseException:
            os.close(self._directory)
            raise

    def require_room(self, size_bytes: int) -> None:
        """Raises ``Fault`` unless the rest of the model, and then the store's own copy, have a place on the disk."""
        status = os.fstatvfs(self.fd)
        free_bytes = status.f_bavail * status.f_frsize
        needed_bytes = 2 * size_bytes - min(size_bytes, os.fstat(self.fd).st_size)
        if needed_bytes > free_bytes:
            raise Fault(f"no-space: the model needs {needed_bytes} bytes and the store's disk has {free_bytes}")

    def remove(self) -> None:
        unlink_if_present(self._directory, self._name)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        os.close(self._directory)


def _open_locked(directory: int, name: str) -> int:
    """A collection may take an old one away between our opening and our claim: then there is a new one to be had."""
    while True:
        fd = open_beneath(directory, name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if not claim(fd):
                raise Fault("busy: another transfer of this model is running")
            status = os.fstat(fd)
            if status.st_nlink > 0:
                check_plain(status, name)
                return fd
        except BaseException as error:
            os.close(fd)
            if isinstance(error, Refused):
                raise Fault("a partial download is not a file of ours") from None
            raise
        os.close(fd)
