"""One ``SOCK_SEQPACKET`` socket between two Paddock processes, in asyncio: frames, descriptors, peer credentials.

Trusts: the kernel's word on the peer's uid (``SO_PEERCRED``).
Promises: the callbacks see decoded messages only; a malformed frame, a descriptor where none belongs or a peer that
    stops reading ends the connection, and ``on_closed`` is called exactly once with the reason. No descriptor leaks.
Not here: what a peer may ask (each server's own rules); the runner's side of its channel (``runner.channel``).
"""

import array
import asyncio
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from appliance.ipc.frames import MAX_FRAME_BYTES, MAX_TOGETHER, TOGETHER_BYTES, FrameDecoder, FrameError, encode, join

log = logging.getLogger(__name__)

MessageT = TypeVar("MessageT")

SOCKET_BUFFER_BYTES: Final = 1024 * 1024
"""Asked for; the kernel grants up to twice ``wmem_max``, which by default holds one frame of the largest size."""

MAX_FDS: Final = 1
MAX_QUEUED_FRAMES: Final = 4096
MAX_QUEUED_BYTES: Final = 16 * 1024 * 1024
"""A peer that lets this many frames or bytes pile up is not reading; the connection ends rather than hold them all."""

_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_CUT_SHORT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # arithmetic on the enumeration costs 1 us a frame
_MESSAGES_PER_WAKEUP: Final = 64


def prepare(sock: socket.socket) -> None:
    """Non-blocking, with buffers that hold the largest frame."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, for a channel that nobody else can reach."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    prepare(left)
    prepare(right)
    return left, right


def peer_uid(sock: socket.socket) -> int:
    """The uid of the process that connected, by the kernel's word."""
    return peer_pid_and_uid(sock)[1]


def peer_pid_and_uid(sock: socket.socket) -> tuple[int, int]:
    """The process that connected, by the kernel's word; pid 0 where this process's pid namespace does not show it."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", credentials)
    return int(pid), int(uid)


class Connection(Generic[MessageT]):
    """A connected socket. All methods belong to the event loop's thread.

    ``on_message(message, fds)`` owns the descriptors that it is given; there are none unless ``accepts_fds``.
    ``on_closed(why)`` is called once.
    """

    def __init__(
        self,
        sock: socket.socket,
        decoder: FrameDecoder[MessageT],
        *,
        on_message: Callable[[MessageT, list[int]], None],
        on_closed: Callable[[str], None] = lambda _why: None,
        accepts_fds: bool = False,
    ) -> None:
        prepare(sock)
        self._sock = sock
        self._decoder = decoder
        self._on_message = on_message
        self._on_closed = on_closed
        self._accepts_fds = accepts_fds
        # Asking for a whole frame's worth of new memory each time would cost more than all the rest of receiving.
        self._incoming = memoryview(bytearray(MAX_FRAME_BYTES + 1))
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._release: asyncio.TimerHandle | None = None
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._outgoing_bytes = 0
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Sends now, or queues while the peer's buffer is full. The caller keeps its descriptors (they are duplicated).

        Raises ``ConnectionError`` when the connection is closed, ``FrameError`` when the message is too large.
        """
        if self._closed:
            raise ConnectionError("the connection is closed")
        data = encode(message)
        if not self._held:
            self._put(data, fds)
        elif fds:  # they are the descriptors of this message alone
            self._send_held()
            self._put(data, fds)
        else:
            self._hold(data)
            self._send_held()

    def send_soon(self, message: msgspec.Struct, *, within_seconds: float = 0.0) -> None:
        """Sends in one frame with what else is sent by then, in order. Raises as ``send``."""
        if self._closed:
            raise ConnectionError("the connection is closed")
        self._hold(encode(message))
        if self._release is None:
            self._release = self._loop.call_later(within_seconds, self._released)

    def _hold(self, data: bytes) -> None:
        full = len(self._held) == MAX_TOGETHER or self._held_bytes + len(data) + TOGETHER_BYTES > MAX_FRAME_BYTES
        if full and self._held:
            self._send_held()
        self._held.append(data)
        self._held_bytes += len(data)

    def _send_held(self) -> None:
        held = join(self._held)
        self._forget_held()
        self._put(held)

    def _forget_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        if self._release is not None:
            self._release.cancel()
            self._release = None

    def _released(self) -> None:
        with suppress(ConnectionError):  # close() has told the owner
            self._send_held()

    def _put(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if self._outgoing or not self._send_now(data, fds):
            if len(self._outgoing) >= MAX_QUEUED_FRAMES or self._outgoing_bytes + len(data) > MAX_QUEUED_BYTES:
                self.close("the peer does not read")
                raise ConnectionError("the peer does not read")
            if not self._outgoing:
                self._loop.add_writer(self._sock.fileno(), self._writable)
            self._outgoing.append((data, tuple(os.dup(fd) for fd in fds)))
            self._outgoing_bytes += len(data)

    def close(self, why: str = "closed by this side") -> None:
        """Ends the connection. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _data, fds in self._outgoing:
            _close_all(fds)
        self._outgoing.clear()
        self._forget_held()
        self._on_closed(why)

    def detach(self) -> socket.socket:
        """Gives the socket back, open, and takes no more part in it. ``on_closed`` is not called."""
        self._closed = True
        self._forget_held()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        return self._sock

    def _send_now(self, data: bytes, fds: Sequence[int]) -> bool:
        """True when the kernel took the frame, False when its buffer is full. Closes and raises on any other error."""
        try:
            if fds:
                socket.send_fds(self._sock, [data], list(fds))
            else:
                self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.close(f"send failed: {error.strerror}")
            raise ConnectionError("the peer is gone") from error
        return True

    def _writable(self) -> None:
        while self._outgoing:
            data, fds = self._outgoing[0]
            try:
                if not self._send_now(data, fds):
                    return
            except ConnectionError:
                return  # close() has told the owner
            self._outgoing.popleft()
            self._outgoing_bytes -= len(data)
            _close_all(fds)
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        left = _MESSAGES_PER_WAKEUP  # then let others run
        while left > 0 and (received := self._receive_one()):
            left -= received

    def _receive_one(self) -> int:
        """One frame; returns the number of its messages, 0 when no more are to be read."""
        if self._closed:
            return 0
        try:
            n_bytes, ancillary, flags, _address = self._sock.recvmsg_into(
                (self._incoming,), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self.close(f"receive failed: {error.strerror}")
            return 0
        fds = _descriptors(ancillary) if ancillary else []
        if not n_bytes:
            _close_all(fds)
            self.close("the peer closed")
            return 0
        try:
            if flags & _CUT_SHORT:
                raise FrameError("a frame or its descriptors were cut short")
            if fds and not self._accepts_fds:
                raise FrameError("a descriptor where none belongs")
            messages = self._decoder.decode_all(self._incoming[:n_bytes])
            if fds and len(messages) > 1:
                raise FrameError("a descriptor of several messages")
        except FrameError as error:
            _close_all(fds)
            self.close(str(error))
            return 0
        for message in messages:
            if not self._closed:
                self._on_message(message, fds)
        return len(messages)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


class CallFailed(Exception):
    """The peer went away before it answered."""


class Caller(Generic[MessageT]):
    """Pairs answers with questions on one connection, by their ``call`` numbers."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[tuple[MessageT, list[int]]]] = {}
        self._next = 0

    def next_call(self) -> int:
        self._next += 1
        return self._next

    async def ask(self, connection: Connection[Any], question: Any, *, timeout_seconds: float) -> MessageT:
        """Sends a question and returns its answer, which may not carry descriptors.

        Raises ``CallFailed`` when the peer goes away, ``TimeoutError`` when it does not answer in time.
        """
        answer, fds = await self.ask_with_fds(connection, question, timeout_seconds=timeout_seconds)
        _close_all(fds)
        return answer

    async def ask_with_fds(
        self, connection: Connection[Any], question: Any, *, timeout_seconds: float
    ) -> tuple[MessageT, list[int]]:
        """As ``ask``; the caller owns the descriptors that came with the answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[MessageT, list[int]]] = loop.create_future()
        self._waiting[question.call] = future
        timer = loop.call_later(timeout_seconds, _give_up, future)
        try:
            try:
                connection.send(question)
            except ConnectionError as error:
                raise CallFailed(str(error)) from error
            return await future
        except BaseException:
            _close_unclaimed(future)
            raise
        finally:
            timer.cancel()
            self._waiting.pop(question.call, None)

    def answered(self, answer: Any, fds: list[int]) -> None:
        """To be called with every answer; one that nobody waits for any more is dropped."""
        future = self._waiting.get(answer.call)
        if future is None or future.done():
            _close_all(fds)
            return
        future.set_result((answer, fds))

    def disconnected(self, why: str) -> None:
        """To be called when the connection closed: everyone who waits is told."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(CallFailed(why))


def _give_up(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def _close_unclaimed(future: "asyncio.Future[tuple[Any, list[int]]]") -> None:
    """The answer may have come in the same turn in which its caller was cancelled: then nobody else has its
    descriptors."""
    if future.done() and not future.cancelled() and future.exception() is None:
        _close_all(future.result()[1])


# --- listening and connecting ---------------------------------------------------------------------------------------


def listen(path: Path, *, mode: int) -> socket.socket:
    """A listening socket at ``path`` (a leftover socket file is replaced), with exactly these permission bits."""
    with suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    previous = os.umask(0o777 & ~mode)  # so that the file never exists with wider permissions
    try:
        sock.bind(str(path))
    finally:
        os.umask(previous)
    path.chmod(mode)
    sock.listen(64)
    sock.setblocking(False)
    return sock


async def accept_forever(
    listening: socket.socket,
    *,
    allowed_uids: frozenset[int],
    welcome: Callable[[socket.socket], None],
) -> None:
    """Accepts peers whose uid is allowed and hands each to ``welcome``; closes the others at once."""
    loop = asyncio.get_running_loop()
    while True:
        sock, _address = await loop.sock_accept(listening)
        if peer_uid(sock) in allowed_uids:
            welcome(sock)
        else:
            sock.close()


def own_or_root() -> frozenset[int]:
    """Who may stand behind a path in an appliance of one user, or one whose sockets an init system makes."""
    return frozenset({0, os.getuid()})


async def connect(path: Path, server_uids: frozenset[int] | None) -> socket.socket:
    """A socket connected to ``path``; None where whoever owns the path is believed.

    Raises ``OSError`` when nobody listens there, and ``PermissionError`` when none of ``server_uids`` does.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    prepare(sock)
    try:
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        if server_uids is not None and (uid := peer_uid(sock)) not in server_uids:
            log.error("the socket %s is a stranger's, uid %d", path, uid)
            raise PermissionError(f"the socket {path} is a stranger's")
    except OSError:
        sock.close()
        raise
    return sock
