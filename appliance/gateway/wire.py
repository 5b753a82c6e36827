"""uvicorn's HTTP/1.1 protocol with bounds: every state of a connection ends by itself and holds little memory.

By itself uvicorn waits for ever for headers that do not end and keeps all of them, waits for ever for a reader that
does not read, forgets an answer when its client sends another request and leaves, and lets idle connections shut out
everybody else.

====================================  =============================================
a connection                          ends
====================================  =============================================
without whole request headers         after ``head_seconds``, whatever arrives
idle after an answer                  after ``keep_alive_seconds``, whatever arrives
whose request is being answered       after ``request_seconds``
whose peer does not read              after ``stalled_seconds`` with a full buffer
====================================  =============================================

Trusts: httptools' parser; the operator's limits.
Promises: a request reaches the application only with an origin-form target (RFC 9112 section 3.2.1) and bounded
    headers, one at a time; when a connection ends, its request hears of it; connections that ask nothing never keep
    others out.
Not here: what headers may say (``guard``); sizes and times of bodies (``asgi.read_body``).
"""

import asyncio
import ipaddress
import ssl
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from typing import Any, Final, NoReturn, Protocol, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Value
from appliance.gateway.asgi import (
    ARRIVAL,
    BODY_IS_HERE,
    CLIENT_CERTIFICATE,
    DEPARTURE,
    REFUSED_ON_WIRE,
    Departure,
    Scope,
)
from appliance.gateway.deadlines import Deadlines
from appliance.gateway.guard import MAX_HEADERS, MAX_TARGET_BYTES
from appliance.gateway.listeners import Arrival
from appliance.gateway.problems import SECURE_HEADERS, problem
from appliance.gateway.sending import AnswerWriter
from appliance.gateway.tally import LINES

MAX_FRAMING_BYTES: Final = 24 * 1024
"""What a peer may send without a byte of a body: more than the guard allows for headers, so that it can say so."""
WRITE_BUFFER_BYTES: Final = 64 * 1024
LINGER_SECONDS: Final = 1.0
"""A sender that is cut off at once may never read why (RFC 9112 section 9.6)."""


class WireLimits(Value, frozen=True, kw_only=True):
    """Times in seconds, and numbers of connections.

    ``request_seconds`` has to cover the longest honest request. A full write buffer drains to a quarter within
    ``stalled_seconds``, or its peer does not read. One peer is an IPv4 address or an IPv6 /64; a trusted proxy, and a
    peer on this machine, which may be one, brings everybody, so it is held to the total only, which leaves descriptors
    free under the usual limit of 1024.
    """

    request_seconds: float
    head_seconds: float = 10.0
    keep_alive_seconds: float = 30.0
    stalled_seconds: float = 30.0
    connections: int = 640
    connections_per_peer: int = 256


class Guest(Protocol):
    """One connection, as far as others are concerned. ``peer``: the name under which it is counted."""

    peer: str
    brings_others: bool

    def abort(self) -> None: ...


class Crowd:
    """Who is connected. Room is made by ending whoever has asked nothing for longest. ``refusals`` counts what is
    refused here and before, per reason code."""

    def __init__(self, limits: WireLimits, refusals: Counter[str]) -> None:
        self.limits = limits
        self.refusals = refusals
        self.head_deadlines: Final = Deadlines(limits.head_seconds)
        self.request_deadlines: Final = Deadlines(limits.request_seconds)
        self.idle_deadlines: Final = Deadlines(limits.keep_alive_seconds)
        self.linger_deadlines: Final = Deadlines(LINGER_SECONDS)
        self._of_peer: Counter[str] = Counter()
        self._idle: dict[Guest, None] = {}

    def enter(self, guest: Guest) -> bool:
        """Counts one connection in. False when there is no room, and nobody idle whose room could be had."""
        self._of_peer[guest.peer] += 1
        if self._of_peer[guest.peer] > self.limits.connections_per_peer and not guest.brings_others:
            return self._end_one(guest.peer)
        if self._of_peer.total() > self.limits.connections:
            return self._end_one(None)
        return True

    def leave(self, guest: Guest) -> None:
        self._idle.pop(guest, None)
        self._of_peer[guest.peer] -= 1
        if not self._of_peer[guest.peer]:
            del self._of_peer[guest.peer]

    def idle(self, guest: Guest) -> None:
        self._idle[guest] = None

    def busy(self, guest: Guest) -> None:
        self._idle.pop(guest, None)

    def refuse(self, refusal: Refused) -> None:
        """Counts one connection that ends without an answer, since it has not asked in a language that we share."""
        self.refusals[refusal.reason.code] += 1
        LINES.tell(refusal.reason, refusal.detail)

    def _end_one(self, peer: str | None) -> bool:
        longest = next((guest for guest in self._idle if peer in {None, guest.peer}), None)
        if longest is None:
            return False
        del self._idle[longest]
        longest.abort()
        return True


class Wire(HttpToolsProtocol):
    """One connection. uvicorn calls it, and the parser calls the ``on_`` methods while it is fed.

    ``arrive`` says how the connection came, once it is there, or raises ``Refused``.
    """

    def __init__(self, crowd: Crowd, arrive: Callable[[asyncio.BaseTransport], Arrival], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.peer = ""
        self.brings_others = False
        self._arrive = arrive
        self._arrival: Arrival | None = None
        self._certificate: bytes | None = None
        self._crowd = crowd
        self._limits = crowd.limits
        self._deadlines: Deadlines | None = None
        self._departure = Departure()
        self._stalled: asyncio.TimerHandle | None = None
        self._framing_bytes = 0
        self._in_body = False
        self._is_first_data = False
        self._deaf = False
        self._verdict = Reason.REQUEST_MALFORMED

    # --- what the transport says ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)  # of TLS it would be eight times as much
        try:
            self._arrival = self._arrive(transport)
        except Refused as refusal:
            self._deaf = True
            self._crowd.refuse(refusal)
            transport.abort()
            return
        self._certificate = _certificate_sha256(transport)
        peer = self._arrival.peer
        self.client = (peer.address, peer.port)
        self.peer = peer_name(peer.address)
        self.brings_others = self._arrival.is_believed or is_local(self.peer)
        if self._crowd.enter(self):
            self._await_headers(self._crowd.head_deadlines)
        else:
            self._count_and_tell(Reason.OVERLOADED)
            self._end_by(self._crowd.head_deadlines)
            transport.close()

    def abort(self) -> None:
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadlines is not None:
            self._deadlines.end(self.abort)
        if self._stalled is not None:
            self._stalled.cancel()
        if self._arrival is not None:
            self._crowd.leave(self)
        super().connection_lost(exc)
        self._departure.happen()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._framing_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # the request is answered; nothing is switched to, so no more is read
            self._hear_no_more()
        except httptools.HttpParserError:
            if not self._deaf:
                self._refuse(self._verdict)
        else:
            if self._framing_bytes > MAX_FRAMING_BYTES:
                self._refuse(Reason.HEADERS_TOO_LARGE)
        self._is_first_data = False

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    # --- what the parser says ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # uvicorn would tell only the last of several requests that their client has left.
            self._hear_no_more()
            self._stop(Reason.REQUEST_MALFORMED)
        super().on_message_begin()
        scope = cast("dict[str, Any]", self.scope)
        scope[ARRIVAL], scope[CLIENT_CERTIFICATE] = self._arrival, self._certificate
        scope[DEPARTURE] = self._departure = Departure()
        self._in_body = False

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._stop(Reason.URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer (RFC 9112 section 7.1.2) would become a header that the guard never saw
            self._stop(Reason.HEADER_INVALID)
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._stop(Reason.HEADERS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        if not self.url.startswith(b"/") or b"#" in self.url:  # uvicorn would route by the rest of it
            self._stop(Reason.PATH_INVALID)
        self._framing_bytes = 0
        self._in_body = self._is_first_data = True
        self._crowd.busy(self)
        self._end_by(self._crowd.request_deadlines)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._framing_bytes = 0
        super().on_message_complete()
        self.flow.resume_reading()  # nothing of this request is to come; whether its client leaves is
        if self._is_first_data:  # so the application has not begun
            cast("dict[str, Any]", self.scope)[BODY_IS_HERE] = True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.send = AnswerWriter(cycle)  # type: ignore[assignment,method-assign]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Instead of uvicorn's, which sets a timer of its own for an idle connection."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
        self._await_headers(self._crowd.idle_deadlines)

    # --- what happens then ------------------------------------------------------------------------------------------

    def _await_headers(self, deadlines: Deadlines) -> None:
        self._crowd.idle(self)
        self._end_by(deadlines)

    def _end_by(self, deadlines: Deadlines) -> None:
        """The one deadline of the state that begins now. Aborts, because closing would wait for the peer to read."""
        if self._deadlines is not None:
            self._deadlines.end(self.abort)
        self._deadlines = deadlines
        deadlines.begin(self.abort)

    def _stop(self, verdict: Reason) -> NoReturn:
        """Makes the parser stop; ``data_received`` goes on from there."""
        self._verdict = verdict
        raise Refused(verdict)

    def _hear_no_more(self) -> None:
        """The request in hand is still answered, then the connection ends. Reading goes on, to notice a departure."""
        self._deaf = True
        self.cycle.keep_alive = False

    def _refuse(self, reason: Reason) -> None:
        """Ends the connection with an answer, unless another has begun: then the rest is missing."""
        self._deaf = True
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            # The gate, which knows whose request it is, accounts for it.
            cast("Scope", cycle.scope)[REFUSED_ON_WIRE] = Refused(reason)
            cycle.disconnected = True
            cycle.message_event.set()
            self._departure.happen()
            if cycle.response_started:
                self.transport.abort()
                return
            self._tell(reason)
        else:
            self._count_and_tell(reason)
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:  # TLS ends both ways at once
                self.transport.close()
            self._end_by(self._crowd.linger_deadlines)

    def _count_and_tell(self, reason: Reason) -> None:
        self._crowd.refusals[reason.code] += 1
        LINES.tell(reason)
        self._tell(reason)

    def _tell(self, reason: Reason) -> None:
        if not self.transport.is_closing():
            self.transport.write(_answer(reason))


def _answer(reason: Reason) -> bytes:
    """A whole HTTP/1.1 response."""
    body = msgspec.json.encode(problem(Refused(reason)))
    fields = {
        **SECURE_HEADERS,
        b"content-type": b"application/problem+json",
        b"content-length": str(len(body)).encode(),
        b"connection": b"close",
    }
    head = f"HTTP/1.1 {reason.status} {HTTPStatus(reason.status).phrase}\r\n".encode()
    return head + b"".join(b"%s: %s\r\n" % field for field in fields.items()) + b"\r\n" + body


def _certificate_sha256(transport: asyncio.BaseTransport) -> bytes | None:
    """Of the certificate that OpenSSL has verified, where the peer has one."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate = tls and tls.getpeercert(binary_form=True)
    return sha256(certificate).digest() if certificate else None


def peer_name(address: str) -> str:
    """The name under which a peer's connections are counted."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    if parsed.is_loopback:
        return str(parsed)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))  # a customer is given a whole /64 at least


def is_local(peer: str) -> bool:
    return peer in {"unix", "::1"} or peer.startswith("127.")
