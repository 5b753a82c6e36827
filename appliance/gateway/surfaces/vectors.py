"""Vectors as OpenAI's clients ask for them, and scores as rerankers' clients do (Jina's and Cohere's field names).

Every field of a request is honoured, refused, or ignored on purpose; an unknown one is refused. ``truncate`` is ours,
by Ollama's name: without it an input that is too long is refused.

Trusts: nothing in the body.
Promises: what ``decode`` returns has every value in range; vectors and scores stand at their inputs' places.
Not here: whether the caller may have the answer (``pipeline``); what a runner may say (``core.input_check``).
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from struct import iter_unpack
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw

from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    MAX_VECTOR_WIDTH,
    AnswerEvent,
    Asked,
    Rows,
    TextPrompt,
    TokenId,
    TokenPrompt,
    Usage,
    Value,
    Vectors,
)
from appliance.gateway.surfaces.decoding import BodyDecoder, ModelName, Text
from appliance.ipc.messages import MAX_EMBED_INPUTS

_MAX_IDS: Final = 131_072
_FLOAT_BYTES: Final = 4

_Ids = Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=_MAX_IDS)]
_ENCODER = msgspec.json.Encoder()


class _Embeddings(Value, frozen=True, kw_only=True):
    model: ModelName
    # a text, texts, the tokens of a text, or of texts: told apart by what is in the list
    input: Text | Annotated[tuple[Text | _Ids | TokenId, ...], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_VECTOR_WIDTH)] | None = None
    truncate: bool = False
    user: Annotated[str, Meta(max_length=256)] | None = None  # ignored


class EmbeddingsSurface:
    """``POST /v1/embeddings``."""

    wire = _Embeddings

    _decoder = BodyDecoder(_Embeddings, max_items=_MAX_IDS)

    def decode(self, body: bytes) -> _Embeddings:
        wire = self._decoder.decode(body)
        _inputs(wire.input)
        return wire

    def asked(self, wire: _Embeddings) -> Asked:
        return Vectors(
            model=wire.model,
            kind="embed",
            inputs=_inputs(wire.input),
            truncate=wire.truncate,
            dimensions=wire.dimensions or 0,
        )

    def body(self, wire: _Embeddings, events: Sequence[AnswerEvent], usage: Usage) -> bytes:
        written = _as_base64 if wire.encoding_format == "base64" else _as_numbers
        data = [
            {"object": "embedding", "index": index, "embedding": written(row)}
            for index, row in enumerate(_rows(events))
        ]
        return _ENCODER.encode({"object": "list", "data": data, "model": wire.model, "usage": _usage(usage)})


def _inputs(given: Any) -> tuple[TextPrompt | TokenPrompt, ...]:
    """Raises ``Refused(FIELD_INVALID)`` for a list of more than one kind, or of too many."""
    if isinstance(given, str):
        return (TextPrompt(text=given),)
    kinds = {type(each) for each in given}
    if kinds == {int}:
        return (TokenPrompt(ids=given),)
    if len(given) <= MAX_EMBED_INPUTS and kinds == {str}:
        return tuple(TextPrompt(text=each) for each in given)
    if len(given) <= MAX_EMBED_INPUTS and kinds == {tuple}:
        return tuple(TokenPrompt(ids=each) for each in given)
    raise Refused(Reason.FIELD_INVALID, "a list of one kind, not too long", param="input")


class _Document(Value, frozen=True, kw_only=True):
    text: Text


class _Rerank(Value, frozen=True, kw_only=True):
    model: ModelName
    query: Annotated[str, Meta(min_length=1, max_length=262_144)]
    documents: Annotated[tuple[Text | _Document, ...], Meta(min_length=1, max_length=MAX_EMBED_INPUTS)]
    top_n: Annotated[int, Meta(ge=1, le=MAX_EMBED_INPUTS)] | None = None
    return_documents: bool = False
    truncate: bool = False


class RerankSurface:
    """``POST /v1/rerank`` and ``POST /rerank``."""

    wire = _Rerank

    _decoder = BodyDecoder(_Rerank)

    def decode(self, body: bytes) -> _Rerank:
        return self._decoder.decode(body)

    def asked(self, wire: _Rerank) -> Asked:
        inputs = tuple(TextPrompt(text=_document(each)) for each in wire.documents)
        return Vectors(model=wire.model, kind="rerank", inputs=inputs, query=wire.query, truncate=wire.truncate)

    def body(self, wire: _Rerank, events: Sequence[AnswerEvent], usage: Usage) -> bytes:
        scores = [_floats(row)[0] for row in _rows(events)]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: wire.top_n]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in best]
        if wire.return_documents:
            for result in results:
                result["document"] = {"text": _document(wire.documents[result["index"]])}
        return _ENCODER.encode({"object": "list", "model": wire.model, "results": results, "usage": _usage(usage)})


def _document(given: str | _Document) -> str:
    return given if isinstance(given, str) else given.text


def _rows(events: Sequence[AnswerEvent]) -> Iterator[bytes]:
    for event in events:
        if isinstance(event, Rows):
            size = _FLOAT_BYTES * event.width
            for start in range(0, len(event.data), size):
                yield event.data[start : start + size]


def _floats(row: bytes) -> list[float]:
    return [number for (number,) in iter_unpack("<f", row)]


def _as_base64(row: bytes) -> str:
    return b64encode(row).decode()


def _as_numbers(row: bytes) -> Raw:
    """Encoded row by row: all rows together are larger as objects, and other threads wait as long as they take."""
    return Raw(_ENCODER.encode(_floats(row)))


def _usage(usage: Usage) -> dict[str, int]:
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}
