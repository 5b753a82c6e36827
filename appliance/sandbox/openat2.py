"""openat2(2): open a file below a directory, and nowhere else.

Trusts: the kernel (5.6 or later) to enforce the ``RESOLVE_`` flags.
Promises: the descriptor lies beneath ``dir_fd`` at every moment of the walk; no symbolic link was followed.
Not here: what kind of file it is, and who owns it (the caller's ``fstat``).
"""

import ctypes
import errno
import os
from typing import Final

_SYS_OPENAT2: Final = 437  # the same number on every architecture: it came after the tables were unified
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_ATTEMPTS: Final = 16

_LIBC = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(dir_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """A descriptor of ``path`` below ``dir_fd``, close-on-exec. ``mode`` is for ``O_CREAT`` only.

    Raises ``OSError``: ``ELOOP`` for a symbolic link anywhere in the path, ``EXDEV`` for a path that leaves the
    directory, ``ENOSYS`` on a kernel without openat2 (there is no weaker fallback), else as open(2). Raises
    ``ValueError`` for a NUL in the path, which C would take for its end.
    """
    if "\0" in path:
        raise ValueError("a path has no NUL")
    how = _OpenHow(
        flags=flags | os.O_CLOEXEC, mode=mode, resolve=_RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    )
    error = 0
    for _ in range(_ATTEMPTS):
        fd: int = _LIBC.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        # EAGAIN: somebody renamed a directory during the walk, and the kernel could not vouch for the result.
        if error not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(error, os.strerror(error), path)
