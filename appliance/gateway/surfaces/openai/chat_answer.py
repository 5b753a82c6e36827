"""Answers of ``/v1/chat/completions``: events -> chunks, or one object.

Trusts: ``pipeline.Answer`` for the order of events and ``core.answer_check`` for their bounds.
Promises: each choice has its role first and once, then chunks of which none is empty and none mixes reasoning with
    text, then an empty one with its reason; then usage, if asked, and ``[DONE]``.
Not here: when anything is sent (``generation``).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from appliance.core import sse
from appliance.core.refusals import Refused
from appliance.core.values import AnswerEvent, Delta, End, SampledToken, TokenLogprob, ToolCallDelta, Usage
from appliance.gateway.generation import Head
from appliance.gateway.surfaces.openai.parts import (
    CONTENT_TYPE,
    ENCODER,
    UsageObject,
    deltas,
    error_event,
    finish_reasons,
    is_plain,
    logprob_of,
    text_of,
    usage_object,
)


class _FunctionPiece(Struct, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class _CallPiece(Struct, omit_defaults=True):
    index: int
    function: _FunctionPiece
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class _Delta(Struct, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[_CallPiece] | UnsetType = UNSET


class _Told(Struct):
    token: str
    logprob: float
    bytes: list[int]


class _Drawn(_Told):
    top_logprobs: list[_Told]


class _Logprobs(Struct):
    """``content`` is of ``_Drawn``, encoded: of a long answer they are a million objects, were they kept as such."""

    content: list[Raw]
    refusal: None = None


class _Choice(Struct):
    delta: _Delta
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(Struct, omit_defaults=True):
    id: str
    created: int
    model: str
    choices: Sequence[_Choice]
    object: str
    system_fingerprint: str
    usage: UsageObject | UnsetType = UNSET


class ChunkWriter:
    """``generation.StreamWriter``."""

    content_type = CONTENT_TYPE
    ping = sse.PING

    def __init__(self, head: Head) -> None:
        self._head = head
        self._id = f"chatcmpl-{head.request_id}"
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def begin(self) -> bytes:
        return self._chunks(
            _Choice(_Delta(role="assistant", content=""), index) for index in range(self._head.request.choices)
        )

    def events(self, events: Sequence[AnswerEvent]) -> bytes:
        return b"".join([self._piece(piece) for piece in deltas(events)])

    def finish(self, end: End, usage: Usage) -> bytes:
        reasons = finish_reasons(end, self._head.request.choices)
        last = self._chunks(_Choice(_Delta(), index, reason) for index, reason in enumerate(reasons))
        if self._head.request.include_usage:
            last += self._event([], usage_object(usage))
        return last + sse.DONE

    def broken(self, refusal: Refused) -> bytes:
        return error_event(refusal)

    def _piece(self, piece: Delta) -> bytes:
        if piece.text and is_plain(piece):  # as nearly all are
            before, after = self._around_text(piece.choice)
            return before + ENCODER.encode(piece.text) + after
        return self._chunks(_choices(piece))

    def _around_text(self, choice: int) -> tuple[bytes, bytes]:
        """What stands before and after the text in each chunk of one choice."""
        around = self._around.get(choice)
        if around is None:
            name, nothing = b'"content":', b'""'
            before, _, after = self._event([_Choice(_Delta(content=""), choice)], UNSET).partition(name + nothing)
            around = self._around[choice] = before + name, after
        return around

    def _chunks(self, choices: Iterable[_Choice]) -> bytes:
        return b"".join([self._event([choice], UNSET) for choice in choices])

    def _event(self, choices: Sequence[_Choice], usage: UsageObject | UnsetType) -> bytes:
        chunk = _Chunk(
            id=self._id,
            created=self._head.created,
            model=self._head.request.model,
            choices=choices,
            object="chat.completion.chunk",
            system_fingerprint=self._head.fingerprint,
            usage=usage,
        )
        return sse.event(ENCODER.encode(chunk))


def _choices(piece: Delta) -> list[_Choice]:
    """One chunk for each kind of content; the probabilities go with the first."""
    parts = []
    if piece.reasoning:
        parts.append(_Delta(reasoning_content=piece.reasoning))
    if piece.text:
        parts.append(_Delta(content=piece.text))
    if piece.tool_calls:
        parts.append(_Delta(tool_calls=[_call_piece(call) for call in piece.tool_calls]))
    choices = [_Choice(part, piece.choice) for part in parts or [_Delta()]]
    if piece.logprobs:
        choices[0].logprobs = _Logprobs([_logprob(token) for token in piece.logprobs])
    return choices


def _call_piece(call: ToolCallDelta) -> _CallPiece:
    if not call.id:
        return _CallPiece(call.index, _FunctionPiece(arguments=call.arguments))
    return _CallPiece(call.index, _FunctionPiece(call.name, call.arguments), call.id, "function")


def _logprob(token: SampledToken) -> Raw:
    alternatives = [_Told(*_parts(one)) for one in token.alternatives]
    return Raw(ENCODER.encode(_Drawn(*_parts(token.chosen), alternatives)))


def _parts(token: TokenLogprob) -> tuple[str, float, list[int]]:
    return text_of(token), logprob_of(token), list(token.piece)


class _Gathered:
    """One choice, as far as it has come."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[tuple[ToolCallDelta, list[str]]] = []
        self.logprobs: list[Raw] = []

    def add(self, piece: Delta) -> None:
        self.texts.append(piece.text)
        self.reasoning.append(piece.reasoning)
        self.logprobs.extend(map(_logprob, piece.logprobs))
        for call in piece.tool_calls:
            if call.id:
                self.calls.append((call, []))
            self.calls[call.index][1].append(call.arguments)

    def message(self) -> dict[str, Any]:
        """``content`` is null where there are calls and no text."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self.texts) or (None if self.calls else ""),
            "refusal": None,
        }
        if reasoning := "".join(self.reasoning):
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(arguments)}}
                for call, arguments in self.calls
            ]
        return message

    def choice(self, index: int, reason: str, *, logprobs: bool) -> dict[str, Any]:
        return {
            "index": index,
            "message": self.message(),
            "logprobs": _Logprobs(self.logprobs) if logprobs else None,
            "finish_reason": reason,
        }


class Completion:
    """``generation.WholeWriter``."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._choices = [_Gathered() for _ in range(head.request.choices)]

    def add(self, events: Sequence[AnswerEvent]) -> None:
        for event in events:
            if isinstance(event, Delta):
                self._choices[event.choice].add(event)

    def body(self, end: End, usage: Usage) -> bytes:
        head = self._head
        reasons = finish_reasons(end, head.request.choices)
        asked = head.request.sampling.logprobs is not None
        return ENCODER.encode(
            {
                "id": f"chatcmpl-{head.request_id}",
                "object": "chat.completion",
                "created": head.created,
                "model": head.request.model,
                "system_fingerprint": head.fingerprint,
                "choices": [
                    one.choice(index, reason, logprobs=asked)
                    for index, (one, reason) in enumerate(zip(self._choices, reasons, strict=True))
                ],
                "usage": usage_object(usage),
            }
        )
