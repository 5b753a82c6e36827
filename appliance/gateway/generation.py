"""The routes that generate text: one request body in, one object or one stream out, in the words of a surface.

Trusts: ``pipeline.Answer`` to yield ``Started`` first and ``End`` last; a surface to write only whole events.
Promises: the status line is sent only after the runner accepted the request; a failure after that is an error event.
Not here: the fields of requests and chunks (``surfaces``).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Protocol

from appliance.core.meter import held_bytes
from appliance.core.refusals import Reason, Refused
from appliance.core.values import AnswerEvent, End, Generation, Started, Usage, Value
from appliance.gateway.answering import BodyLimits, answer_headers, cancelled_when_left, fingerprint, posted_body
from appliance.gateway.asgi import Receive, Scope, Send, send_response
from appliance.gateway.pipeline import Answer, Exchange, Pipeline

PING_SECONDS: Final = 15.0
MAX_WHOLE_BYTES: Final = 64 * 2**20
"""Gathered of one answer that is sent in one piece: 160,000 tokens of text, or 15,000 with 20 alternatives each."""


class Head(Value, frozen=True, kw_only=True):
    """What every object of an answer repeats. ``created`` is in Unix seconds."""

    request_id: str
    created: int
    fingerprint: str
    request: Generation


class StreamWriter(Protocol):
    """Writes one stream; what it returns goes out as it is, and nothing goes out for nothing."""

    content_type: bytes
    ping: bytes

    def begin(self) -> bytes: ...
    def events(self, events: Sequence[AnswerEvent]) -> bytes: ...
    def finish(self, end: End, usage: Usage) -> bytes: ...
    def broken(self, refusal: Refused) -> bytes: ...


class WholeWriter(Protocol):
    """Gathers one answer."""

    def add(self, events: Sequence[AnswerEvent]) -> None: ...
    def body(self, end: End, usage: Usage) -> bytes: ...


class Surface(Protocol):
    """The words of one route."""

    def decode(self, body: bytes) -> Generation:
        """Raises ``Refused(JSON_INVALID | FIELD_UNKNOWN | FIELD_INVALID)``."""
        ...

    def stream(self, head: Head) -> StreamWriter: ...
    def whole(self, head: Head) -> WholeWriter: ...


class GenerationRoute:
    """A ``POST`` that generates."""

    def __init__(self, pipeline: Pipeline, limits: BodyLimits, surface: Surface) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._surface = surface

    async def __call__(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        request = self._surface.decode(await posted_body(scope, receive, self._limits))
        async with self._pipeline.answer(exchange, request) as answer:
            with cancelled_when_left(scope, answer):
                # A runner that refuses does so here, before the status line.
                first = await answer.events(patient=not request.stream)
                head = Head(
                    request_id=exchange.request_id,
                    created=int(time.time()),
                    fingerprint=fingerprint(answer),
                    request=request,
                )
                if request.stream:
                    await _stream(exchange, self._surface.stream(head), answer, first, send)
                else:
                    await _whole(exchange, self._surface.whole(head), answer, first, send)


async def _whole(
    exchange: Exchange, writer: WholeWriter, answer: Answer, events: list[AnswerEvent], send: Send
) -> None:
    headers = _headers(exchange, events)
    n_bytes = 0
    while True:
        n_bytes += sum(map(held_bytes, events))
        if n_bytes <= MAX_WHOLE_BYTES:
            writer.add(events)
        else:
            answer.cancel()  # and on, to what it has cost
        if answer.meter.end is not None:
            break
        events = await answer.events(patient=True)
    answer.require_whole()
    if n_bytes > MAX_WHOLE_BYTES:
        raise Refused(Reason.ANSWER_TOO_LARGE)
    body = writer.body(answer.meter.end, answer.meter.usage())
    await send_response(send, 200, body, content_type=b"application/json", headers=headers)


async def _stream(
    exchange: Exchange, writer: StreamWriter, answer: Answer, events: list[AnswerEvent], send: Send
) -> None:
    headers = {
        **_headers(exchange, events),
        b"content-type": writer.content_type,
        b"x-accel-buffering": b"no",
    }
    await send({"type": "http.response.start", "status": 200, "headers": list(headers.items())})
    body = _StreamBody(send, writer.ping)
    await body.write(writer.begin())  # with it the head leaves, also where it is empty
    pinger = asyncio.create_task(body.ping_when_silent())
    try:
        while True:
            if data := writer.events(events):
                await body.write(data)
            if answer.meter.end is not None:
                break
            events = await answer.events()
        answer.require_whole()
    except Refused as refusal:  # goes no further: the answer has begun, and knows its outcome
        await body.write(writer.broken(refusal), last=True)
        return
    finally:
        pinger.cancel()
    await body.write(writer.finish(answer.meter.end, answer.meter.usage()), last=True)


def _headers(exchange: Exchange, first: Sequence[AnswerEvent]) -> dict[bytes, bytes]:
    """With what its runner says of the wait for a slot. One that failed at once says nothing."""
    headers = answer_headers(exchange)
    if isinstance(started := first[0], Started):
        headers[b"x-paddock-queue-position"] = str(started.queue_position).encode()
        headers[b"x-paddock-queue-ms"] = str(started.queued_ms).encode()
    return headers


class _StreamBody:
    """The body of one stream, with a line of no meaning to keep proxies from closing it while nothing happens.

    One sleeper watches the whole stream: a time limit on each event would be a sixth of what an event costs.
    """

    def __init__(self, send: Send, ping: bytes) -> None:
        self._send = send
        self._ping = ping
        self._written_at = time.monotonic()

    async def write(self, data: bytes, *, last: bool = False) -> None:
        self._written_at = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def ping_when_silent(self) -> None:
        """Until cancelled."""
        while True:
            silent_seconds = time.monotonic() - self._written_at
            if silent_seconds < PING_SECONDS:
                await asyncio.sleep(PING_SECONDS - silent_seconds)
            else:
                await self.write(self._ping)
