"""The routes that generate nothing: one request body in, one object out, in the words of a surface.

Trusts: ``pipeline.Answer`` to yield ``Started`` first and ``End`` last, and everything in between whole.
Promises: an answer is written only when it is complete; until then every failure has a status of its own.
Not here: the fields of requests and answers (``surfaces``).
"""

import asyncio
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from appliance.core.values import AnswerEvent, Asked, Usage
from appliance.gateway.answering import BodyLimits, answer_headers, cancelled_when_left, posted_body
from appliance.gateway.asgi import Receive, Scope, Send, send_response
from appliance.gateway.pipeline import Exchange, Pipeline

AskedT = TypeVar("AskedT")


class Surface(Protocol[AskedT]):
    """The words of one route. What ``decode`` gives carries what ``asked`` takes out of it and ``body`` needs, which
    runs in a thread of its own."""

    def decode(self, body: bytes) -> AskedT:
        """Raises ``Refused(JSON_INVALID | FIELD_UNKNOWN | FIELD_INVALID)``."""
        ...

    def asked(self, wire: AskedT) -> Asked: ...
    def body(self, wire: AskedT, events: Sequence[AnswerEvent], usage: Usage) -> bytes: ...


class ComputationRoute(Generic[AskedT]):
    """A ``POST`` that computes."""

    def __init__(self, pipeline: Pipeline, limits: BodyLimits, surface: Surface[AskedT]) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._surface = surface

    async def __call__(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        wire = self._surface.decode(await posted_body(scope, receive, self._limits))
        asked = self._surface.asked(wire)
        events: list[AnswerEvent] = []
        async with self._pipeline.answer(exchange, asked) as answer:
            with cancelled_when_left(scope, answer):
                while answer.meter.end is None:
                    events += await answer.events(patient=True)
                answer.require_whole()
                if answer.meter.end.reason == "cancelled":
                    return  # the caller has left
                # Beside the loop: to write the vectors of 2,048 inputs takes a second in which others' answers go on.
                body = await asyncio.to_thread(self._surface.body, wire, events, answer.meter.usage())
                await send_response(send, 200, body, content_type=b"application/json", headers=answer_headers(exchange))
