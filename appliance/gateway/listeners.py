"""Where connections come in, and whose word about clients is taken there.

Trusts: the operator who names the places; the kernel's word on who stands behind a Unix socket (``SO_PEERCRED``).
Promises: a listener is a listening stream socket of IPv4, IPv6 or Unix; a socket file is never open to more than its
    mode says, and takes nobody else's place.
Not here: what is done with a connection (``porch``, ``wire``).
"""

import errno
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from appliance.core.forwarded import Trust
from appliance.core.proxy_protocol import unmapped
from appliance.core.refusals import Fault, Misconfigured, Reason, Refused
from appliance.core.values import UNIX_PEER, Peer, Value
from appliance.gateway.tls import TlsFolder
from appliance.ipc.connection import peer_uid

BACKLOG: Final = 256
"""asyncio accepts as many at a time, each with a descriptor, before ``wire`` sees the first of them."""


@dataclass(frozen=True)
class Listener:
    """A listening socket and what holds for its connections. ``uids``: who may connect to a Unix socket; None is
    whoever its mode lets."""

    sock: socket.socket
    trust: Trust = field(default_factory=Trust)
    proxy_protocol: bool = False
    tls: TlsFolder | None = None
    uids: frozenset[int] | None = None

    def admits(self, connection: socket.socket) -> bool:
        """Whether the process behind a connection may be there."""
        if self.uids is None or connection.family != socket.AF_UNIX:
            return True
        return peer_uid(connection) in self.uids

    def __str__(self) -> str:
        address = self.sock.getsockname()
        place = f"{address[0]} port {address[1]}" if isinstance(address, tuple) else str(address)
        return place + " with TLS" * (self.tls is not None) + " behind PROXY headers" * self.proxy_protocol


class Arrival(Value, frozen=True, kw_only=True):
    """How a connection came. ``peer`` is who connected, to us or to the proxy that says so in front of it;
    ``is_believed``: it is a trusted proxy, whose headers say who asks."""

    peer: Peer
    trust: Trust = Trust()
    is_believed: bool = False


def direct(listener: Listener, connection: socket.socket) -> Arrival:
    """A connection without a word in front of it. Raises ``Refused(CONNECTION_REFUSED)`` for one that may not be, or is
    not any more."""
    if not listener.admits(connection):
        raise Refused(Reason.CONNECTION_REFUSED, f"uid {peer_uid(connection)} at {listener}")
    peer = _socket_peer(connection)
    return Arrival(peer=peer, trust=listener.trust, is_believed=listener.trust.covers(peer))


def brought(listener: Listener, connection: socket.socket, announced: Peer | None) -> Arrival:
    """A connection from a proxy that said in front of it for whom it is. Headers in it are the client's own, unless it
    is another trusted proxy; where nobody is named they may be anybody's."""
    if announced is None or announced.is_unix:
        return Arrival(peer=announced or _socket_peer(connection), trust=listener.trust)
    return Arrival(peer=announced, trust=listener.trust, is_believed=listener.trust.covers(announced))


def _socket_peer(connection: socket.socket) -> Peer:
    """By the kernel's word. Raises ``Refused(CONNECTION_REFUSED)`` for a connection that has ended."""
    try:
        address = connection.getpeername()
    except OSError as error:
        raise Refused(Reason.CONNECTION_REFUSED, f"left: {error.strerror}") from error
    if not isinstance(address, tuple):
        return UNIX_PEER
    return Peer(address=str(unmapped(ipaddress.ip_address(address[0]))), port=int(address[1]))


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ``Fault`` when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Accepted sockets inherit the protocol number, and asyncio sets TCP_NODELAY only where it says TCP: without it each
    # answer of two writes waits for the peer's delayed acknowledgement, 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Fault(f"cannot listen on {host} port {port}: {error.strerror}") from error
    sock.setblocking(False)
    return sock


def listen_unix(path: Path, *, mode: int, gid: int | None = None) -> socket.socket:
    """A listening Unix socket with exactly these permission bits.

    A socket file that nobody listens at is what an earlier process left, and is replaced: a gateway behind its fence
    can remove nothing. Raises ``Fault`` when somebody listens there, and ``Misconfigured`` for any other file.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)  # the file never exists with wider permissions than in the end
    try:
        _remove_left_over(path)
        sock.bind(str(path))
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
        path.chmod(mode)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Fault(f"cannot listen at {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(previous)
    sock.setblocking(False)
    return sock


def _remove_left_over(path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise Misconfigured(f"cannot listen at {path}: it is a file of another kind")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(str(path))
    if code != errno.ECONNREFUSED:
        raise Fault(f"cannot listen at {path}: somebody else does")
    with suppress(FileNotFoundError):
        path.unlink()


def inherited_listener(descriptor: int, *, any_user: bool) -> socket.socket:
    """What a service manager passed, looked at before it is believed. With ``any_user`` a Unix socket must not be
    open to everybody by its mode. Raises ``Misconfigured``."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise Misconfigured(f"inherited descriptor {descriptor}: {error.strerror}") from error
    try:
        _check_inherited(sock, any_user)
    except (OSError, Misconfigured) as error:
        sock.close()
        raise Misconfigured(f"inherited descriptor {descriptor}: {error}") from error
    sock.setblocking(False)
    return sock


def _check_inherited(sock: socket.socket, any_user: bool) -> None:
    if sock.family not in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}:
        raise Misconfigured("a socket of another family")
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise Misconfigured("not a listening stream socket")
    if sock.family == socket.AF_UNIX and any_user:
        path = sock.getsockname()
        if not isinstance(path, str) or not path:
            raise Misconfigured("a Unix socket without a file, so without a mode")
        if stat.S_IMODE(os.stat(path).st_mode) & 0o002:  # noqa: PTH116
            raise Misconfigured(f"{path} is open to everybody")
