"""What the transfer process gives up before it hears from a stranger.

It keeps the network and the descriptors it was given. It loses the file system, but for reading what name resolution
and TLS need; all privileges; core files; and the means to write more bytes than its job has.

Trusts: ``sandbox.layers``.
Promises: after ``confine`` no file can be opened for writing, nor any of the store, the keys or the configuration.
Not here: system call filters. The process needs sockets, and what it parses is Python, not C++.
"""

import encodings.idna  # noqa: F401 - the resolver imports it on first use, when the library can no longer be read
import resource
from typing import Final

from appliance.sandbox import layers
from appliance.sandbox.landlock_read import landlock_read_only

READABLE: Final = (
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/pki",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
)

_MEMORY_BYTES: Final = 1024**3


def confine(*, allow_degraded: frozenset[str], max_file_bytes: int) -> None:
    """Irreversible. Raises ``layers.LayerMissing`` for a layer that the host lacks and the operator did not name."""
    stack = layers.Stack(allow_degraded)
    stack.apply(layers.NO_NEW_PRIVS, layers.no_new_privs)
    stack.apply(layers.RLIMITS, lambda: _rlimits(max_file_bytes))
    stack.apply(layers.NO_CAPABILITIES, layers.no_capabilities)
    stack.apply(layers.MDWE, layers.memory_deny_write_execute)
    stack.apply(layers.LANDLOCK, lambda: landlock_read_only(READABLE))
    stack.apply(layers.NON_DUMPABLE, layers.non_dumpable)
    layers.die_with_parent()
    stack.require()


def _rlimits(max_file_bytes: int) -> None:
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, max_file_bytes),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_NOFILE, 64),
    ):
        try:
            resource.setrlimit(limit, (value, value))
        except ValueError as error:
            raise OSError(str(error)) from None
