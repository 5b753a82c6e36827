"""Frames that wait for a peer that reads slowly.

Text that is not yet sent grows the same frame in place of making another, so however slowly the peer reads, a request
has at most its start, its text and its end in here, and no request waits for another's reader.

Trusts: the caller sends no delta after a request's end.
Promises: frames leave in the order in which they came, per request; ``flush`` never blocks.
Not here: when to flush, and when to stop reading (``channel``).
"""

import socket
from collections import deque
from typing import Final

from appliance.ipc import frames
from appliance.ipc.messages import FromRunner, RunnerDelta

_MAX_DELTA_CHARACTERS: Final = 16 * 1024  # at most 64 KiB of UTF-8: a datagram that every socket buffer takes


class _Growing:
    """A delta that is still in the box."""

    __slots__ = ("request_id", "size", "texts", "tokens")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.texts: list[str] = []
        self.size = 0
        self.tokens = 0

    def message(self) -> RunnerDelta:
        return RunnerDelta(request_id=self.request_id, text="".join(self.texts), tokens=self.tokens)


class Outbox:
    def __init__(self) -> None:
        self._queue: deque[FromRunner | _Growing] = deque()
        self._growing: dict[str, _Growing] = {}
        self._unsent: bytes = b""

    def __len__(self) -> int:
        return len(self._queue) + bool(self._unsent)

    def clear(self) -> None:
        """Forgets everything that is not sent."""
        self._queue.clear()
        self._growing.clear()
        self._unsent = b""

    def put(self, message: FromRunner) -> None:
        self._queue.append(message)

    def put_delta(self, request_id: str, text: str, tokens: int) -> None:
        delta = self._growing.get(request_id)
        if delta is None or delta.size + len(text) > _MAX_DELTA_CHARACTERS:
            delta = self._growing[request_id] = _Growing(request_id)
            self._queue.append(delta)
        delta.texts.append(text)
        delta.size += len(text)
        delta.tokens += tokens

    def flush(self, channel: socket.socket) -> bool:
        """Sends until empty (True) or until the peer's queue is full (False). Raises ``OSError`` when it is gone."""
        while self._unsent or self._queue:
            if not self._unsent:
                self._unsent = self._next_frame()
            try:
                channel.send(self._unsent, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            self._unsent = b""
        return True

    def _next_frame(self) -> bytes:
        message = self._queue.popleft()
        if isinstance(message, _Growing):
            if self._growing.get(message.request_id) is message:
                del self._growing[message.request_id]
            return frames.encode(message.message())
        return frames.encode(message)
