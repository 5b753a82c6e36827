"""An answer from ASGI messages to bytes: its head and the first of its body leave in one piece.

uvicorn writes the head by itself: one more system call, one more segment, and a peer that is woken twice.

Trusts: the application to write names of headers in lower case.
Promises: as uvicorn's own ``send``: no header ends its line early, a body is as long as its head says, nothing is
    written once the client has left, and whoever writes waits for a client that does not read.
Not here: when a connection ends (``wire``).
"""

import re
from itertools import chain
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from appliance.gateway.asgi import Message

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_WITHOUT_BODY: Final = (204, 304)


class AnswerWriter:
    """``send`` of one request. The head of an answer waits for the first part of its body, which may be empty."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._head = b""
        self._is_chunked = False
        self._missing_bytes = 0

    async def __call__(self, message: Message) -> None:
        """Raises ``RuntimeError`` for a message out of order, or one that would break the framing."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        expected = "http.response.body" if cycle.response_started else "http.response.start"
        if cycle.response_complete or message["type"] != expected:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        if cycle.response_started:
            self._write(message.get("body", b""), more=message.get("more_body", False))
        else:
            self._begin(message["status"], [*cycle.default_headers, *message.get("headers", ())])

    def _begin(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        cycle = self._cycle
        if _CONTROL.search(b"".join(chain.from_iterable(fields))):
            raise RuntimeError("a control character in a header")
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        told = dict(fields)
        if b"close" in told.get(b"connection", b""):
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            fields.append((b"connection", b"close"))
        if b"content-length" in told:
            self._missing_bytes = int(told[b"content-length"])
        elif self._has_body(status):
            self._is_chunked = True
            fields.append((b"transfer-encoding", b"chunked"))
        self._head = b"".join([STATUS_LINE[status], *[b"%b: %b\r\n" % field for field in fields], b"\r\n"])

    def _has_body(self, status: int) -> bool:
        return self._method != "HEAD" and status not in _WITHOUT_BODY

    @property
    def _method(self) -> str:
        scope: Any = self._cycle.scope
        method: str = scope["method"]
        return method

    def _write(self, body: bytes, *, more: bool) -> None:
        cycle = self._cycle
        if self._method == "HEAD":
            body, self._missing_bytes = b"", 0
        elif self._is_chunked:
            body = b"%b%b" % (b"%x\r\n%b\r\n" % (len(body), body) if body else b"", b"" if more else b"0\r\n\r\n")
        else:
            self._missing_bytes -= len(body)
        if self._missing_bytes < 0 or (self._missing_bytes and not more):
            raise RuntimeError("a body of another length than its head says")
        if self._head or body:
            cycle.transport.write(self._head + body)
            self._head = b""
        if not more:
            cycle.response_complete = True
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()
