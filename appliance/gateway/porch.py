"""What comes before HTTP: a PROXY header, TLS, or both, in this order.

A connection that has not got through yet is one of the crowd: it counts against its peer, can be ended to make room,
and ends by itself after ``head_seconds``, whatever arrives.

Trusts: the listener's settings; OpenSSL.
Promises: nothing of a PROXY header is read unless a trusted peer connected, and none is taken for HTTP or TLS; what
    does not get through is closed without an answer, counted, and told in one line of the log.
Not here: HTTP (``wire``).
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from appliance.core.proxy_protocol import HEAD_BYTES, announced, length_after
from appliance.core.refusals import Reason, Refused
from appliance.gateway.listeners import Arrival, Listener, brought, direct
from appliance.gateway.wire import Crowd, Wire, is_local, peer_name

ACCEPT_PAUSE_SECONDS: Final = 1.0
_NOT_LISTENING: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}
"""accept(2): no waiting helps."""
SHUTDOWN_SECONDS: Final = 2.0
"""For the peer's part in the end of TLS."""

log = logging.getLogger(__name__)


Arrive = Callable[[asyncio.BaseTransport], Arrival]


class Porch:
    """One listener whose connections do not begin with HTTP. ``close`` and ``wait_closed`` as ``asyncio.Server``."""

    def __init__(
        self,
        listener: Listener,
        crowd: Crowd,
        make_wire: Callable[[Arrive], Wire],
        went_deaf: Callable[[BaseException], None],
    ) -> None:
        """``went_deaf`` is told what ended the accepting, should it ever end by itself."""
        self._listener = listener
        self._crowd = crowd
        self._make_wire = make_wire
        self._guests: set[asyncio.Task[None]] = set()
        self._went_deaf = went_deaf
        self._accepting = asyncio.create_task(self._accept())
        self._accepting.add_done_callback(self._ended)

    def close(self) -> None:
        self._accepting.cancel()
        for guest in self._guests:
            guest.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self._guests, return_exceptions=True)
        self._listener.sock.close()

    def _ended(self, accepting: asyncio.Task[None]) -> None:
        if not accepting.cancelled() and (error := accepting.exception()):
            self._went_deaf(error)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _address = await loop.sock_accept(self._listener.sock)
            except ConnectionError:  # it left while it waited
                continue
            except OSError as error:  # descriptors or memory are short: who waits stays in the backlog
                if error.errno in _NOT_LISTENING:
                    raise
                log.warning("cannot accept: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            task = asyncio.create_task(self._welcome(sock))
            self._guests.add(task)
            task.add_done_callback(self._guests.discard)

    async def _welcome(self, sock: socket.socket) -> None:
        try:
            await self._let_in(sock)
        except Refused as refusal:
            self._crowd.refuse(refusal)
        except TimeoutError:
            self._crowd.refuse(_refused("not through in time"))
        except ssl.SSLError as error:
            self._crowd.refuse(_refused(f"TLS: {error.reason}"))
        except OSError as error:
            self._crowd.refuse(_refused(f"left: {error.strerror or type(error).__name__}"))

    async def _let_in(self, sock: socket.socket) -> None:
        with contextlib.ExitStack() as held:
            held.callback(sock.close)
            arrival = direct(self._listener, sock)
            guest = _Guest(self._crowd, arrival, asyncio.current_task())
            held.callback(guest.leave)
            async with asyncio.timeout(self._crowd.limits.head_seconds):
                if self._listener.proxy_protocol:
                    arrival = await self._brought(sock, arrival)
                held.pop_all()  # from here on the connection closes the one, and ``_start_http`` the other
                await self._start_http(sock, guest, arrival)

    async def _brought(self, sock: socket.socket, arrival: Arrival) -> Arrival:
        if not arrival.is_believed:
            raise _refused(f"{arrival.peer.address} is no trusted proxy")
        head = await _exactly(sock, HEAD_BYTES)
        rest = await _exactly(sock, length_after(head))
        return brought(self._listener, sock, announced(head, rest))

    async def _start_http(self, sock: socket.socket, guest: "_Guest", arrival: Arrival) -> None:
        """Returns when TLS, if any, has been agreed on."""

        def arrive(_transport: asyncio.BaseTransport) -> Arrival:
            guest.leave()  # its place is the connection's now
            return arrival

        loop, seconds = asyncio.get_running_loop(), self._crowd.limits.head_seconds
        try:
            if self._listener.tls is None:
                await loop.connect_accepted_socket(lambda: self._make_wire(arrive), sock)
            else:
                await loop.connect_accepted_socket(
                    lambda: self._make_wire(arrive),
                    sock,
                    ssl=self._listener.tls.context,
                    ssl_handshake_timeout=seconds,
                    ssl_shutdown_timeout=SHUTDOWN_SECONDS,
                )
        finally:
            guest.leave()


class _Guest:
    """``wire.Guest``, until ``leave``."""

    def __init__(self, crowd: Crowd, arrival: Arrival, task: asyncio.Task[None] | None) -> None:
        """Raises ``Refused(OVERLOADED)``."""
        self.peer = peer_name(arrival.peer.address)
        self.brings_others = arrival.is_believed or is_local(self.peer)
        self._crowd = crowd
        self._task = task
        self._is_here = True
        if not crowd.enter(self):
            self.leave()
            raise Refused(Reason.OVERLOADED, f"{self.peer} before HTTP")
        crowd.idle(self)

    def leave(self) -> None:
        if self._is_here:
            self._is_here = False
            self._crowd.leave(self)

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()


async def _exactly(sock: socket.socket, n_bytes: int) -> bytes:
    """Not a byte more: what follows is for TLS or HTTP to read."""
    received = b""
    while len(received) < n_bytes:
        piece = await asyncio.get_running_loop().sock_recv(sock, n_bytes - len(received))
        if not piece:
            raise _refused("left within a PROXY header")
        received += piece
    return received


def _refused(detail: str) -> Refused:
    return Refused(Reason.CONNECTION_REFUSED, detail)
