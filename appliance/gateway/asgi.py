"""The few ASGI pieces that every gateway module needs.

Trusts: the ASGI server's framing of the body.
Promises: a body is read within its size and time limits or refused.
Not here: what the bytes mean (``surfaces``).
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

from appliance.core.refusals import Reason, Refused
from appliance.core.values import UNIX_PEER, Peer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

PIECE_BYTES: Final = 256 * 1024
_LENGTH: Final = re.compile("[0-9]{1,15}")
REFUSED_ON_WIRE: Final = "paddock.refused-on-wire"
"""In a scope: the ``Refused`` with which ``wire`` ended the connection while the request was under way."""

ARRIVAL: Final = "paddock.arrival"
"""In a scope: ``listeners.Arrival``, how the request's connection came."""
CLIENT_CERTIFICATE: Final = "paddock.client-certificate-sha256"
"""In a scope: the SHA-256 (32 bytes) of the certificate with which the client authenticated itself, here or, after
``origin.settle``, at a trusted proxy; None without one."""

DEPARTURE: Final = "paddock.departure"
"""In a scope: ``Departure``. ``receive`` would tell the same, to a task for each request that waits for it."""
BODY_IS_HERE: Final = "paddock.body-is-here"
"""In a scope: true where the whole body came with the head, as most do, so that ``receive`` gives it at once."""


class Departure:
    """Whether the client of one request has left while it was answered, which one listener at a time is told."""

    def __init__(self) -> None:
        self._has_happened = False
        self._tell: Callable[[], None] | None = None

    def happen(self) -> None:
        self._has_happened = True
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    @contextmanager
    def told(self, tell: Callable[[], None]) -> Iterator[None]:
        """``tell`` is called once within the block, at once if the client has left already."""
        self._tell = tell
        if self._has_happened:
            self.happen()
        try:
            yield
        finally:
            self._tell = None


def header(scope: Scope, name: bytes) -> str | None:
    """The one value of a header; the guard has refused a request where a header that matters occurs twice."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def peer_of(scope: Scope) -> Peer:
    """Who asks: the address that the gateway's own socket saw, or what a trusted proxy says of it (``origin``)."""
    client = scope.get("client")
    if not client:
        return UNIX_PEER
    return Peer(address=client[0], port=client[1] or 0)


async def read_body(
    scope: Scope, receive: Receive, *, max_bytes: int, timeout_seconds: float, media_type: str = "application/json"
) -> bytes:
    """The whole body. Raises ``Refused`` for another media type, one byte too many, or a slow or absent sender."""
    sent = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if sent != media_type:
        raise Refused(Reason.MEDIA_TYPE_UNSUPPORTED, f"content-type {sent[:80]!r}")
    declared = header(scope, b"content-length")
    if declared is not None and (not _LENGTH.fullmatch(declared) or int(declared) > max_bytes):
        raise Refused(Reason.BODY_TOO_LARGE, "by its Content-Length")
    if scope.get(BODY_IS_HERE):
        return await _received(receive, max_bytes)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _received(receive, max_bytes)
    except TimeoutError:
        raise Refused(Reason.BODY_TIMEOUT, "the body did not arrive in time") from None


async def _received(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(Reason.BODY_TIMEOUT, "the client left before its body was complete")
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise Refused(Reason.BODY_TOO_LARGE, "by counting")
        if not message.get("more_body", False):
            return bytes(body)


async def send_response(
    send: Send, status: int, body: bytes, *, content_type: bytes, headers: Mapping[bytes, bytes]
) -> None:
    """A whole response. A long one goes in pieces, each as the peer takes the one before: the time that ``wire`` gives
    a reader is for a buffer, not for an answer."""
    fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    for start in range(0, max(1, len(body)), PIECE_BYTES):
        end = start + PIECE_BYTES
        await send({"type": "http.response.body", "body": body[start:end], "more_body": end < len(body)})
