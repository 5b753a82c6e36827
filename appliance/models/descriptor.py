"""Reading a model through one open descriptor: its digest, and a copy that nobody can change.

Trusts: the kernel's seals on a memory file. Nothing about the bytes or where they came from.
Promises: ``observe`` reads the descriptor it was given, from its start, and never a path.
Not here: whether the digest is one that was signed (``core.manifest``); who may write the file (``models.store``).
"""

import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from importlib import import_module
from typing import Final, Protocol

from appliance.core.manifest import (
    MAX_RESOURCES,
    WHOLE,
    Form,
    HashType,
    Observed,
    SignatureRefused,
    Statement,
)
from appliance.core.values import Digest
from appliance.models.files import write_all

CHUNK_BYTES = 1024 * 1024
COPY_BYTES: Final = 16 * 1024 * 1024
_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3: not executable, and sealed so
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Hash(Protocol):
    """What ``hashlib`` gives."""

    def update(self, data: memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


class Wholes:
    """Which whole has which shards: arithmetic, learnt by hashing the same bytes both ways, that never becomes stale.

    It lets a model that was signed in shards be verified from its shards alone, in parallel: bytes with these shards
    have that SHA-256. Kept in memory, of one process, for a bounded number of models.
    """

    MAX: Final = 256

    def __init__(self) -> None:
        self._known: dict[tuple[Form, tuple[str, ...]], Digest] = {}

    def learn(self, form: Form, hashes: tuple[str, ...], whole: Digest) -> None:
        if len(self._known) < self.MAX:
            self._known[form, hashes] = whole

    def find(self, form: Form, hashes: tuple[str, ...]) -> Digest | None:
        return self._known.get((form, hashes))


def new_hash(hash_type: HashType) -> "Hash":
    """Raises ``SignatureRefused("hash-unavailable")`` for BLAKE3 where the optional package is not installed."""
    if hash_type == "sha256":
        return sha256()
    if hash_type == "blake2b":
        return blake2b()
    try:
        blake3 = import_module("blake3").blake3
    except ImportError:
        detail = "the model was signed with BLAKE3, for which the optional package is not installed (extra 'blake3')"
        raise SignatureRefused("hash-unavailable", detail) from None
    made: Hash = blake3()
    return made


class Hashing:
    """One form's hashes of bytes as they pass."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._left_in_shard = form.shard_bytes or 0
        self._hash = new_hash(form.hash_type)
        self._hashes: list[str] = []

    def update(self, piece: memoryview) -> None:
        if self._form.shard_bytes is None:
            self._hash.update(piece)
            return
        while piece:
            part, piece = piece[: self._left_in_shard], piece[self._left_in_shard :]
            self._hash.update(part)
            self._left_in_shard -= len(part)
            if self._left_in_shard == 0:
                self._end_shard(self._form.shard_bytes)

    def _end_shard(self, shard_bytes: int) -> None:
        if len(self._hashes) >= MAX_RESOURCES:
            raise SignatureRefused("digest-mismatch", "the file has more shards than a statement can list")
        self._hashes.append(self._hash.hexdigest())
        self._hash = new_hash(self._form.hash_type)
        self._left_in_shard = shard_bytes

    def hashes(self) -> tuple[str, ...]:
        """Ends the last shard, if it is not empty. Call once."""
        if self._form.shard_bytes is None:
            return (self._hash.hexdigest(),)
        if self._left_in_shard != self._form.shard_bytes:
            self._end_shard(self._form.shard_bytes)
        return tuple(self._hashes)


class _Pass:
    """All forms' hashes of the same bytes, each byte seen once."""

    def __init__(self, forms: Iterable[Form]) -> None:
        self._hashings = {form: Hashing(form) for form in (WHOLE, *forms)}
        self._size_bytes = 0

    def update(self, piece: memoryview) -> None:
        self._size_bytes += len(piece)
        for hashing in self._hashings.values():
            hashing.update(piece)

    def observed(self) -> Observed:
        hashes = {form: hashing.hashes() for form, hashing in self._hashings.items()}
        return Observed(digest=Digest(hex=hashes[WHOLE][0]), size_bytes=self._size_bytes, hashes=hashes)


def observe(fd: int, forms: Iterable[Form] = ()) -> Observed:
    """Hashes all bytes of a descriptor in one pass. Raises ``OSError`` if it cannot be read to its end."""
    one_pass = _Pass(forms)
    for piece in _pieces_at_offset(fd):
        one_pass.update(piece)
    return one_pass.observed()


def observe_signed(fd: int, statements: Iterable[Statement], wholes: Wholes) -> Observed:
    """As ``observe``, for the forms of some statements; in parallel where that tells the same.

    One statement in shards, one of whose files is known as a whole: only the shards are hashed, on all cores. In either
    case each byte is read once, so that all that is said is said of the same bytes.
    """
    statements = tuple(statements)
    forms = {statement.form for statement in statements}
    if len(forms) == 1 and (found := _by_shards(fd, statements[0], wholes)):
        return found
    observed = observe(fd, forms)
    for form, hashes in observed.hashes.items():
        if form.shard_bytes is not None:
            wholes.learn(form, hashes, observed.digest)
    return observed


def _by_shards(fd: int, statement: Statement, wholes: Wholes) -> Observed | None:
    """None where the whole is not known, or the shards are not those that are."""
    form, size_bytes = statement.form, os.fstat(fd).st_size
    if form.shard_bytes is None or not any(
        size == size_bytes and wholes.find(form, hashes) for size, hashes in statement.listings()
    ):
        return None
    hashes = hash_shards(fd, form.hash_type, form.shard_bytes, size_bytes)
    whole = wholes.find(form, hashes)
    if whole is None:
        return None
    return Observed(digest=whole, size_bytes=size_bytes, hashes={WHOLE: (whole.hex,), form: hashes})


def hash_shards(
    fd: int, hash_type: HashType, shard_bytes: int, size_bytes: int, *, threads: int | None = None
) -> tuple[str, ...]:
    """The hashes of all shards, on all cores: hashing releases the interpreter's lock. Raises ``OSError``."""

    def hash_one(start: int) -> str:
        hashing = new_hash(hash_type)
        for piece in _pieces_at_offset(fd, start, min(start + shard_bytes, size_bytes)):
            hashing.update(piece)
        return hashing.hexdigest()

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        return tuple(pool.map(hash_one, range(0, size_bytes, shard_bytes)))


def copy_and_observe(source_fd: int, target_fd: int, forms: Iterable[Form] = ()) -> Observed:
    """Copies from where ``source_fd`` stands to its end (it may be a pipe) and hashes the bytes that were written.

    Raises ``OSError``, for example when the disk is full; the target then holds a part.
    """
    one_pass = _Pass(forms)
    buffer = bytearray(CHUNK_BYTES)
    with memoryview(buffer) as view:
        while n_read := os.readv(source_fd, [buffer]):
            one_pass.update(view[:n_read])
            write_all(target_fd, view[:n_read])
    return one_pass.observed()


def sealed_copy(fd: int) -> int:
    """A new memory file with the same bytes, on which no write, truncation or writable mapping is possible any more.

    The caller hashes the copy, after this, and closes it. Raises ``OSError``: ``ENOMEM`` when memory is short.
    """
    memory = _memory_file()
    try:
        position = 0
        while n_copied := os.sendfile(memory, fd, position, COPY_BYTES):
            position += n_copied
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


def _pieces_at_offset(fd: int, start: int = 0, end: int | None = None) -> Iterator[memoryview]:
    """All bytes from ``start`` up to ``end``. Each piece is valid until the next: they may share one buffer."""
    if _is_sealed(fd):
        yield from _mapped_pieces(fd, start, os.fstat(fd).st_size if end is None else end)
        return
    buffer = bytearray(CHUNK_BYTES)
    position = start
    with memoryview(buffer) as view:
        while n_wanted := CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - position):
            n_read = os.preadv(fd, [view[:n_wanted]], position)
            if not n_read:
                return
            yield view[:n_read]
            position += n_read


def _is_sealed(fd: int) -> bool:
    """Whether the bytes and their number can never change: only then is a mapping safe from SIGBUS."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # not a memory file
        return False


def _mapped_pieces(fd: int, start: int, end: int) -> Iterator[memoryview]:
    """The mapping ends with the last piece that anybody still holds."""
    if end > start:
        view = memoryview(mmap.mmap(fd, end, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED))
        for position in range(start, end, CHUNK_BYTES):
            yield view[position : min(position + CHUNK_BYTES, end)]
