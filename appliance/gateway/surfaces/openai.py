"""The OpenAI chat surface: request bytes -> ``Generation``; answer events -> chunks or one object.

Every field of a request is honoured, refused, or ignored on purpose (``_Request``); an unknown one is refused.

Trusts: nothing in the body.
Promises: what ``decode_request`` returns has every value in range.
Not here: whether the caller may have the answer (``pipeline``).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from appliance.core import sse
from appliance.core.refusals import Reason, Refused
from appliance.core.strict_json import JsonInvalid, check
from appliance.core.values import (
    AnswerEvent,
    Conversation,
    Delta,
    End,
    FinishReason,
    Generation,
    Message,
    Role,
    Sampling,
    Usage,
    Value,
    VerifiedModel,
)
from appliance.gateway.generation import Head
from appliance.gateway.problems import openai_error

# --- the request ----------------------------------------------------------------------------------------------------

_Text = Annotated[str, Meta(max_length=262_144)]
_MaxTokens = Annotated[int, Meta(ge=1, le=1_048_576)]


class _TextPart(Value, frozen=True, kw_only=True, tag="text"):
    text: _Text


class _Message(Value, frozen=True, kw_only=True):
    """Text only: tools, images and audio are refused as unknown fields or types."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Text | Annotated[tuple[_TextPart, ...], Meta(min_length=1, max_length=256)]
    name: Annotated[str, Meta(max_length=64)] | None = None  # ignored


class _StreamOptions(Value, frozen=True, kw_only=True):
    include_usage: bool = False
    include_obfuscation: bool = False  # ignored


class _Request(Value, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=128)]
    messages: Annotated[tuple[_Message, ...], Meta(min_length=1, max_length=1024)]
    # honoured
    max_tokens: _MaxTokens | None = None
    max_completion_tokens: _MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    stop: (
        Annotated[str, Meta(min_length=1, max_length=256)]
        | Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=8)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # accepted in the one form that we keep
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: "_TextFormat | None" = None
    # ignored: they name things that Paddock decides or records by itself
    user: Annotated[str, Meta(max_length=256)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=256)] | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


class _TextFormat(Value, frozen=True, kw_only=True):
    type: Literal["text"]


_DECODER = msgspec.json.Decoder(_Request)
_KNOWN_FIELDS = frozenset(_Request.__struct_fields__)


def decode_request(body: bytes) -> Generation:
    """Raises ``Refused(JSON_INVALID | FIELD_UNKNOWN | FIELD_INVALID)``."""
    try:
        document = check(body)
    except JsonInvalid as error:
        raise Refused(Reason.JSON_INVALID, str(error)) from error
    if isinstance(document, dict) and (unknown := document.keys() - _KNOWN_FIELDS):
        raise Refused(Reason.FIELD_UNKNOWN, f"{sorted(unknown)[:8]!r}"[:200])
    try:
        wire = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(Reason.FIELD_INVALID, str(error)[:200], param=_field_at_fault(error)) from error
    return Generation(
        model=wire.model,
        prompt=Conversation(
            messages=tuple(Message(role=_role(message), content=_content(message)) for message in wire.messages)
        ),
        max_tokens=wire.max_completion_tokens or wire.max_tokens,
        sampling=_sampling(wire),
        stream=bool(wire.stream),
        include_usage=wire.stream_options is not None and wire.stream_options.include_usage,
    )


def _field_at_fault(error: Exception) -> str | None:
    """msgspec names the place as ``$.field``; only one of our own field names is ever repeated to the caller."""
    place = str(error).rpartition("`$.")[2].partition("`")[0]
    name = place.partition(".")[0].partition("[")[0]
    return name if name in _KNOWN_FIELDS else None


def _role(message: _Message) -> Role:
    return "system" if message.role == "developer" else message.role


def _content(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)


def _sampling(wire: _Request) -> Sampling:
    defaults = Sampling()
    stop = (wire.stop,) if isinstance(wire.stop, str) else wire.stop or ()
    return Sampling(
        temperature=defaults.temperature if wire.temperature is None else wire.temperature,
        top_p=defaults.top_p if wire.top_p is None else wire.top_p,
        presence_penalty=wire.presence_penalty or 0.0,
        frequency_penalty=wire.frequency_penalty or 0.0,
        seed=wire.seed,
        stop=stop,
    )


# --- the answer -----------------------------------------------------------------------------------------------------

_FINISH: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "tool-calls": "tool_calls",
    "cancelled": "stop",
    "error": "stop",
}


class _Delta(Struct, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class _Choice(Struct):
    delta: _Delta
    index: int = 0
    finish_reason: str | None = None
    logprobs: None = None


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Chunk(Struct, omit_defaults=True):
    id: str
    created: int
    model: str
    choices: Sequence[_Choice]
    object: str
    system_fingerprint: str
    usage: _Usage | UnsetType = UNSET


_ENCODER = msgspec.json.Encoder()


class ChatSurface:
    """``POST /v1/chat/completions``."""

    def decode(self, body: bytes) -> Generation:
        return decode_request(body)

    def stream(self, head: Head) -> "ChunkWriter":
        return ChunkWriter(head)

    def whole(self, head: Head) -> "Completion":
        return Completion(head)


def _text(events: Sequence[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


class ChunkWriter:
    """Makes the chunks of one stream: the role once and first, then text, then an empty finish chunk, then usage."""

    content_type = b"text/event-stream; charset=utf-8"
    ping = sse.PING

    def __init__(self, head: Head) -> None:
        self._head = head
        self._id = f"chatcmpl-{head.request_id}"

    def begin(self) -> bytes:
        return self._chunk(_Choice(_Delta(role="assistant", content="")))

    def events(self, events: Sequence[AnswerEvent]) -> bytes:
        text = _text(events)
        return self._chunk(_Choice(_Delta(content=text))) if text else b""

    def finish(self, end: End, usage: Usage) -> bytes:
        last = self._chunk(_Choice(_Delta(), finish_reason=_FINISH[end.reason]))
        if self._head.request.include_usage:
            last += sse.event(_ENCODER.encode(self._make([], _usage(usage))))
        return last + sse.DONE

    def broken(self, refusal: Refused) -> bytes:
        return sse.event(_ENCODER.encode(openai_error(refusal)))

    def _chunk(self, choice: _Choice) -> bytes:
        return sse.event(_ENCODER.encode(self._make([choice], UNSET)))

    def _make(self, choices: Sequence[_Choice], usage: _Usage | UnsetType) -> _Chunk:
        return _Chunk(
            id=self._id,
            created=self._head.created,
            model=self._head.request.model,
            choices=choices,
            object="chat.completion.chunk",
            system_fingerprint=self._head.fingerprint,
            usage=usage,
        )


def _usage(usage: Usage) -> _Usage:
    return _Usage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


class Completion:
    """The whole answer as one object."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._texts: list[str] = []

    def add(self, events: Sequence[AnswerEvent]) -> None:
        self._texts.append(_text(events))

    def body(self, end: End, usage: Usage) -> bytes:
        return _ENCODER.encode(
            {
                "id": f"chatcmpl-{self._head.request_id}",
                "object": "chat.completion",
                "created": self._head.created,
                "model": self._head.request.model,
                "system_fingerprint": self._head.fingerprint,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "".join(self._texts), "refusal": None},
                        "logprobs": None,
                        "finish_reason": _FINISH[end.reason],
                    }
                ],
                "usage": _usage(usage),
            }
        )


def model_object(model: VerifiedModel) -> dict[str, Any]:
    """One entry of the model list. ``created`` is a constant: when a model was made is not something we verify."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": model.signer.name,
        "paddock": {
            "digest": str(model.digest),
            "signer": str(model.signer.fingerprint),
            "context_length": model.facts.context_tokens,
        },
    }
