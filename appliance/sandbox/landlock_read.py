"""Landlock with a list of what may still be read or written: for processes that keep some use of the file system.

A rule holds for the directory that stands at the path now. One that is put in its place later is another directory, of
which nothing may be read; a file that is put into it by rename may.

Trusts: nothing.
Promises: afterwards files open for reading below the given paths, for changes below those given as writable, and for
    nothing else; no port can be listened on.
Not here: runners, which get ``layers.landlock`` and no exception.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from struct import pack, unpack_from
from typing import Final

from appliance.sandbox import libc
from appliance.sandbox.layers import landlock_abi, ruleset_attributes
from appliance.sandbox.syscalls import X86_64

_ADD_RULE: Final = 445  # the same number on every architecture: it came after the tables were unified
_RULE_PATH_BENEATH: Final = 1
_RULE_NET_PORT: Final = 2
_BIND_TCP: Final = 1
_CONNECT_TCP: Final = 2

_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIRECTORY: Final = 1 << 3
_REMOVE_DIRECTORY: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE_DIRECTORY: Final = 1 << 7
_MAKE_REGULAR: Final = 1 << 8
_TRUNCATE: Final = 1 << 14

_READING: Final = _READ_FILE | _READ_DIRECTORY
_CHANGING: Final = (
    _READING | _WRITE_FILE | _REMOVE_DIRECTORY | _REMOVE_FILE | _MAKE_DIRECTORY | _MAKE_REGULAR | _TRUNCATE
)
_OF_A_FILE: Final = _READ_FILE | _WRITE_FILE | _TRUNCATE
"""A rule for what is no directory may name no other of our rights (EINVAL)."""


def landlock_read_only(paths: Iterable[str]) -> None:
    """Restricts this thread and its children to come (landlock(7)); connecting, the caller's whole purpose, stays
    possible. A path that does not exist is left out."""
    _restrict([(path, _READING) for path in paths], _may_connect)


def landlock_files(*, readable: Iterable[str], writable: Iterable[str], connect_ports: Iterable[int] = ()) -> None:
    """Restricts this thread and its children to come, without TCP but for connecting to ``connect_ports``, and with
    every scope that the kernel knows. Before ABI 4 it cannot tell ports, and says nothing about any.

    A path that does not exist or cannot be reached is left out, which only makes less possible. Writing includes
    making and removing plain files and directories, not links, devices, sockets or moves between directories.
    """
    rules = [*((path, _READING) for path in readable), *((path, _CHANGING) for path in writable)]
    _restrict(rules, connect_ports=connect_ports)


def _restrict(
    rules: list[tuple[str, int]], narrow: Callable[[bytes], bytes] = bytes, connect_ports: Iterable[int] = ()
) -> None:
    attributes = narrow(ruleset_attributes(landlock_abi()))
    (handled,) = unpack_from("<Q", attributes)
    ruleset = libc.syscall(X86_64["landlock_create_ruleset"], attributes, len(attributes), 0)
    try:
        for path, rights in rules:
            with suppress(FileNotFoundError, PermissionError):
                _allow(ruleset, path, rights & handled)
        for port in connect_ports if len(attributes) >= 16 else ():
            libc.syscall(_ADD_RULE, ruleset, _RULE_NET_PORT, pack("<QQ", _CONNECT_TCP, port), 0)
        libc.syscall(X86_64["landlock_restrict_self"], ruleset, 0)
    finally:
        os.close(ruleset)


def _may_connect(attributes: bytes) -> bytes:
    """The second word lists what is handled of TCP: to bind, and not to connect."""
    if len(attributes) < 16:
        return attributes
    (network,) = unpack_from("<Q", attributes, 8)
    return attributes[:8] + pack("<Q", network & _BIND_TCP) + attributes[16:]


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        directory = os.path.isdir(f"/proc/self/fd/{fd}")  # noqa: PTH112 - by descriptor
        rule = pack("<Qi", rights if directory else rights & _OF_A_FILE, fd)  # the kernel's struct is packed
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(fd)
