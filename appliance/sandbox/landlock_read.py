"""Landlock with a list of what may still be read: for processes that keep some use of the file system.

Trusts: nothing.
Promises: afterwards files open for reading below the given paths, and for nothing else; no port can be listened on.
Not here: connecting (the caller's whole purpose); runners, which get ``layers.landlock`` and no exception.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from struct import pack, unpack_from
from typing import Final

from appliance.sandbox import libc
from appliance.sandbox.layers import ruleset_attributes
from appliance.sandbox.syscalls import X86_64

_ADD_RULE: Final = 445  # the same number on every architecture: it came after the tables were unified
_RULE_PATH_BENEATH: Final = 1
_VERSION: Final = 1
_READ_FILE: Final = 1 << 2
_READ_DIRECTORY: Final = 1 << 3
_BIND_TCP: Final = 1


def landlock_read_only(paths: Iterable[str]) -> None:
    """Restricts this thread and its children to come (landlock(7)). A path that does not exist is left out."""
    abi = libc.syscall(X86_64["landlock_create_ruleset"], None, 0, _VERSION)
    attributes = _may_connect(ruleset_attributes(abi))
    ruleset = libc.syscall(X86_64["landlock_create_ruleset"], attributes, len(attributes), 0)
    try:
        for path in paths:
            with suppress(FileNotFoundError):
                _allow_reading(ruleset, path)
        libc.syscall(X86_64["landlock_restrict_self"], ruleset, 0)
    finally:
        os.close(ruleset)


def _may_connect(attributes: bytes) -> bytes:
    """The second word lists what is handled of TCP: to bind, and not to connect."""
    if len(attributes) < 16:
        return attributes
    (network,) = unpack_from("<Q", attributes, 8)
    return attributes[:8] + pack("<Q", network & _BIND_TCP) + attributes[16:]


def _allow_reading(ruleset: int, path: str) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        directory = os.path.isdir(f"/proc/self/fd/{fd}")  # noqa: PTH112 - by descriptor
        rights = _READ_FILE | (_READ_DIRECTORY if directory else 0)
        rule = pack("<Qi", rights, fd)  # struct landlock_path_beneath_attr is packed
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
