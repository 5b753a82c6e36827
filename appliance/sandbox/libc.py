"""The two doors to the kernel that Python does not have: a raw system call, and prctl.

Trusts: nothing.
Promises: a failed call is an ``OSError`` with its errno; the result is otherwise the kernel's.
Not here: which calls to make (``layers``, ``seccomp``, ``probe``).
"""

import ctypes
import os
from typing import Final

from appliance.sandbox.syscalls import X86_64

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def syscall(number: int, *arguments: Argument) -> int:
    """One system call. Integers are passed as 64 bits, bytes and buffers as the address of their first byte."""
    ctypes.set_errno(0)
    result = int(_LIBC.syscall(ctypes.c_long(number), *(_as_word(argument) for argument in arguments)))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _as_word(argument: Argument) -> object:
    # ctypes passes a Python int as a C int: the kernel would see whatever the upper half of the register held.
    return ctypes.c_uint64(argument & 0xFFFFFFFFFFFFFFFF) if isinstance(argument, int) else argument


def prctl(option: int, argument: int = 0) -> int:
    """prctl(2) with one argument and zeros for the rest, which newer options insist on."""
    return syscall(X86_64["prctl"], option, argument, 0, 0, 0)
