"""fs-verity: a stored file that nobody can change, and of which the kernel checks each block when it is read.

``enable`` has the kernel build a Merkle tree of SHA-256 over a file's blocks of 4 KiB; from then on nobody can open it
for writing. ``measure`` asks, in constant time, for the SHA-256 of the tree's root together with the file's size and
the parameters. A block that was changed below the file system is an error when it is read (``EIO``), and SIGBUS where
the file is mapped: the reader ends, and never sees it. Linux, Documentation/filesystems/fsverity.rst.

Trusts: the kernel and its own file systems; not one in user space, which could answer what it likes (FUSE passes these
    questions on since Linux 6.10). Nothing about the file.
Promises: two files with one measurement have the same bytes, whoever stored them; a refusal says what is missing.
Not here: which bytes are the right ones (``core.manifest``).
"""

import errno
import fcntl
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from appliance.core.manifest import Observed, Statement
from appliance.core.refusals import Refused
from appliance.models.descriptor import Wholes, observe_signed
from appliance.models.files import not_verified
from appliance.sandbox.procfs import mounts

FILE_SYSTEMS: Final = frozenset({"btrfs", "ext4", "f2fs"})

_ENABLE: Final = 0x4080_6685  # _IOW('f', 133, struct fsverity_enable_arg)
_MEASURE: Final = 0xC004_6686  # _IOWR('f', 134, struct fsverity_digest)
_SHA256: Final = 1
_BLOCK_BYTES: Final = 4096
_ENABLE_ARGUMENT: Final = struct.pack("=IIIIQIIQ88x", 1, _SHA256, _BLOCK_BYTES, 0, 0, 0, 0, 0)  # no salt, no signature
_DIGEST: Final = struct.Struct("=HH32s")
_UNSUPPORTED: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOPKG, errno.EINVAL})


class Receipts:
    """Which bytes have which measurement, learnt by hashing a file that could no longer change.

    That is arithmetic and never becomes stale, wherever a file with that measurement lies. It is kept in the memory of
    one process, for a bounded number of models: a record on disk would have to be as hard to forge as a signature.
    """

    MAX: Final = 256

    def __init__(self) -> None:
        self._known: dict[bytes, Observed] = {}

    def observe(self, fd: int, statements: Iterable[Statement], wholes: Wholes) -> Observed:
        """As ``observe_signed``, of a file with fs-verity; in constant time if its measurement is known.

        Raises ``Refused`` if the file has none, and ``OSError``: ``EIO`` if a block is not what it was.
        """
        statements = tuple(statements)
        measured = measure(fd)
        known = self._known.get(measured)
        if known is not None and all(statement.form in known.hashes for statement in statements):
            return known
        observed = observe_signed(fd, statements, wholes)
        if measured in self._known or len(self._known) < self.MAX:
            self._known[measured] = observed
        return observed


def check_supported(directory: int) -> None:
    """Raises ``Refused`` where no file of this directory could have fs-verity, or ``OSError``."""
    try:
        measure(directory)
    except Refused as refused:
        if not refused.detail.startswith("verity-missing"):
            raise


def is_enabled(fd: int) -> bool:
    """Whether this file has it. Raises ``OSError``."""
    try:
        measure(fd)
    except Refused:
        return False
    return True


def enable(fd: int) -> None:
    """``fd`` is read-only, of a complete file that its owner may write and nobody has open for writing.

    Takes as long as hashing the file. Raises ``Refused`` where it is not supported, or ``OSError``: ``ETXTBSY`` while
    somebody may still write.
    """
    _check_file_system(fd)
    try:
        fcntl.ioctl(fd, _ENABLE, _ENABLE_ARGUMENT)
    except OSError as error:
        raise _judged(error) from None


def measure(fd: int) -> bytes:
    """The file's measurement, 32 bytes.

    Raises ``Refused(MODEL_NOT_VERIFIED)``: ``verity-missing`` if the file has none, ``seal-mode-unsupported``.
    """
    _check_file_system(fd)
    answer = bytearray(_DIGEST.pack(0, 32, b""))
    try:
        fcntl.ioctl(fd, _MEASURE, answer)
    except OSError as error:
        raise _judged(error) from None
    algorithm, size, digest = _DIGEST.unpack(answer)
    if (algorithm, size) != (_SHA256, 32):
        raise not_verified("verity-missing", "the file was measured with another hash than SHA-256")
    return bytes(digest)


def _judged(error: OSError) -> Exception:
    if error.errno in {errno.ENODATA, errno.EOVERFLOW}:  # none, or a longer one than SHA-256
        return not_verified("verity-missing", "the file was stored without fs-verity: import the model again")
    if error.errno in _UNSUPPORTED:
        need = "a kernel with CONFIG_FS_VERITY and a file system that has it switched on (for ext4: tune2fs -O verity)"
        return not_verified("seal-mode-unsupported", f"fs-verity needs {need}; this one says: {error.strerror}")
    return error


def _check_file_system(fd: int) -> None:
    kind = _file_system_of(fd)
    if kind not in FILE_SYSTEMS:
        named = ", ".join(sorted(FILE_SYSTEMS))
        raise not_verified("seal-mode-unsupported", f"fs-verity needs one of {named}, and the store is on {kind}")


def _file_system_of(fd: int) -> str:
    """By the descriptor's own mount (proc_pid_fdinfo(5), proc_pid_mountinfo(5)); a path could be mounted over."""
    described = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
    number = described[described.index("mnt_id:") + 1]
    kinds = {mount.number: mount.kind for mount in mounts(Path("/proc/self/mountinfo").read_text())}
    return kinds.get(number, "an unknown file system")
