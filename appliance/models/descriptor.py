"""Reading a model through one open descriptor: its digest, and a copy that nobody can change.

Trusts: the kernel's seals on a memory file. Nothing about the bytes or where they came from.
Promises: ``observe`` reads the descriptor it was given, from its start, and never a path.
Not here: whether the digest is one that was signed (``core.manifest``); who may write the file (``models.store``).
"""

import fcntl
import os
from collections.abc import Iterator
from hashlib import sha256
from typing import Final

from appliance.core.manifest import MAX_RESOURCES, Observed, SignatureRefused
from appliance.core.values import Digest
from appliance.models.files import write_all

CHUNK_BYTES = 1024 * 1024
_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3: not executable, and sealed so
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Hashing:
    """SHA-256 of bytes as they pass: of all of them and, when ``shard_bytes`` is set, of each shard."""

    def __init__(self, shard_bytes: int | None) -> None:
        self._whole = sha256()
        self._shard = sha256()
        self._shard_bytes = shard_bytes
        self._left_in_shard = shard_bytes or 0
        self._shard_digests: list[Digest] = []
        self._size_bytes = 0

    def update(self, piece: memoryview) -> None:
        self._whole.update(piece)
        self._size_bytes += len(piece)
        while self._shard_bytes is not None and piece:
            part, piece = piece[: self._left_in_shard], piece[self._left_in_shard :]
            self._shard.update(part)
            self._left_in_shard -= len(part)
            if self._left_in_shard == 0:
                self._end_shard()

    def _end_shard(self) -> None:
        if len(self._shard_digests) >= MAX_RESOURCES:
            raise SignatureRefused("digest-mismatch", "the file has more shards than a statement can list")
        self._shard_digests.append(Digest(hex=self._shard.hexdigest()))
        self._shard = sha256()
        self._left_in_shard = self._shard_bytes or 0

    def observed(self) -> Observed:
        """Ends the last shard, if it is not empty. Call once."""
        if self._left_in_shard not in {0, self._shard_bytes}:
            self._end_shard()
        return Observed(
            digest=Digest(hex=self._whole.hexdigest()),
            size_bytes=self._size_bytes,
            shard_digests=tuple(self._shard_digests),
        )


def observe(fd: int, shard_bytes: int | None = None) -> Observed:
    """Hashes all bytes of a descriptor. Raises ``OSError`` if it cannot be read to its end."""
    hashing = Hashing(shard_bytes)
    for piece in _pieces_at_offset(fd):
        hashing.update(piece)
    return hashing.observed()


def copy_and_observe(source_fd: int, target_fd: int, shard_bytes: int | None = None) -> Observed:
    """Copies from where ``source_fd`` stands to its end (it may be a pipe) and hashes the bytes that were written.

    Raises ``OSError``, for example when the disk is full; the target then holds a part.
    """
    hashing = Hashing(shard_bytes)
    buffer = bytearray(CHUNK_BYTES)
    with memoryview(buffer) as view:
        while n_read := os.readv(source_fd, [buffer]):
            hashing.update(view[:n_read])
            write_all(target_fd, view[:n_read])
    return hashing.observed()


def sealed_copy(fd: int) -> int:
    """A new memory file with the same bytes, on which no write, truncation or writable mapping is possible any more.

    The caller hashes the copy, after this, and closes it. Raises ``OSError``: ``ENOMEM`` when memory is short.
    """
    memory = _memory_file()
    try:
        for piece in _pieces_at_offset(fd):
            write_all(memory, piece)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memory)
        raise
    return memory


def _memory_file() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("model", flags | _MFD_NOEXEC_SEAL)
    except OSError:  # a kernel that does not know the flag; a real shortage fails again below
        return os.memfd_create("model", flags)


def _pieces_at_offset(fd: int) -> Iterator[memoryview]:
    """All bytes from the start. Each piece is valid until the next: one buffer serves them all."""
    buffer = bytearray(CHUNK_BYTES)
    position = 0
    with memoryview(buffer) as view:
        while n_read := os.preadv(fd, [buffer], position):
            yield view[:n_read]
            position += n_read
