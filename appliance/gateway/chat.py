"""The chat route: one request body in, one JSON object or one event stream out.

When the client leaves, generation is cancelled and the runner's last word, with the exact cost, is still awaited.

Trusts: ``pipeline.Answer`` to yield ``Started`` first and ``End`` last.
Promises: the status line is sent only after the runner accepted the request; a failure after that is an error event.
Not here: the fields of requests and chunks (``surfaces.openai``).
"""

import asyncio
import time
from typing import Final

import msgspec

from appliance.core import sse
from appliance.core.refusals import Reason, Refused
from appliance.core.values import AnswerEvent, ChatRequest, Delta, Value
from appliance.gateway.asgi import Receive, Scope, Send, read_body, send_response
from appliance.gateway.pipeline import Answer, Exchange, Pipeline
from appliance.gateway.problems import SECURE_HEADERS, openai_error
from appliance.gateway.surfaces import openai

PING_SECONDS: Final = 15.0


class BodyLimits(Value, frozen=True, kw_only=True):
    """What a request body may be: its size, and how long it may take to arrive."""

    max_bytes: int
    timeout_seconds: float


class ChatRoute:
    """``POST /v1/chat/completions``."""

    def __init__(self, pipeline: Pipeline, limits: BodyLimits) -> None:
        self._pipeline = pipeline
        self._limits = limits

    async def __call__(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise Refused(Reason.METHOD_NOT_ALLOWED, param="POST")
        body = await read_body(
            scope, receive, max_bytes=self._limits.max_bytes, timeout_seconds=self._limits.timeout_seconds
        )
        request = openai.decode_request(body)
        async with self._pipeline.answer(exchange, request) as answer:
            watcher = asyncio.create_task(_cancel_when_gone(receive, answer))
            try:
                first = await answer.events()  # a runner that refuses does so here, before the status line
                if request.stream:
                    await _stream(exchange, request, answer, first, send)
                else:
                    await _whole(exchange, request, answer, first, send)
            finally:
                watcher.cancel()


async def _cancel_when_gone(receive: Receive, answer: Answer) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.cancel()


def _headers(exchange: Exchange) -> dict[bytes, bytes]:
    return {**SECURE_HEADERS, b"x-request-id": exchange.request_id.encode()}


def _text(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def _whole(
    exchange: Exchange, request: ChatRequest, answer: Answer, events: list[AnswerEvent], send: Send
) -> None:
    pieces = [_text(events)]
    while answer.meter.end is None:
        pieces.append(_text(await answer.events()))
    answer.require_whole()
    body = openai.completion(
        request_id=exchange.request_id,
        model=request.model,
        created=int(time.time()),
        fingerprint=fingerprint(answer),
        text="".join(pieces),
        reason=answer.meter.end.reason,
        usage=answer.meter.usage(),
    )
    await send_response(send, 200, body, content_type=b"application/json", headers=_headers(exchange))


async def _stream(
    exchange: Exchange, request: ChatRequest, answer: Answer, events: list[AnswerEvent], send: Send
) -> None:
    writer = openai.ChunkWriter(
        request_id=exchange.request_id,
        model=request.model,
        created=int(time.time()),
        fingerprint=fingerprint(answer),
    )
    headers = {
        **_headers(exchange),
        b"content-type": b"text/event-stream; charset=utf-8",
        b"x-accel-buffering": b"no",
    }
    await send({"type": "http.response.start", "status": 200, "headers": list(headers.items())})
    body = _StreamBody(send)
    await body.write(sse.event(writer.role()))
    pinger = asyncio.create_task(body.ping_when_silent())
    try:
        while True:
            if text := _text(events):
                await body.write(sse.event(writer.text(text)))
            if answer.meter.end is not None:
                break
            events = await answer.events()
        answer.require_whole()
    except Refused as refusal:  # goes no further: the answer has begun, and knows its outcome
        await body.write(sse.event(msgspec.json.encode(openai_error(refusal))), last=True)
        return
    finally:
        pinger.cancel()
    last = sse.event(writer.finish(answer.meter.end.reason))
    if request.include_usage:
        last += sse.event(writer.usage(answer.meter.usage()))
    await body.write(last + sse.DONE, last=True)


class _StreamBody:
    """The body of one event stream, with a comment line to keep proxies from closing it while nothing happens.

    One sleeper watches the whole stream: a time limit on each event would be a sixth of what an event costs.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
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
                await self.write(sse.PING)


def fingerprint(answer: Answer) -> str:
    """OpenAI's ``system_fingerprint``: here the verified model's digest, shortened."""
    return f"sha256-{answer.admission.model.digest.hex[:16]}"
