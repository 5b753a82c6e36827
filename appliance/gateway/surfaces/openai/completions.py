"""``POST /v1/completions``, the older route: a text or token ids are continued as they stand.

Trusts: nothing in the body; ``core.answer_check`` for the bounds of an answer.
Promises: what ``CompletionSurface.decode`` returns has every value in range; a stream ends each choice with its reason,
    then usage, if asked, and ``[DONE]``.
Not here: whether the caller may have the answer (``pipeline``); when anything is sent (``generation``).
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Raw

from appliance.core import sse
from appliance.core.refusals import Refused
from appliance.core.values import (
    AnswerEvent,
    Delta,
    End,
    Generation,
    SampledToken,
    TextPrompt,
    TokenId,
    TokenLogprob,
    TokenPrompt,
    Usage,
)
from appliance.gateway.generation import Head
from appliance.gateway.surfaces.decoding import BodyDecoder, Text
from appliance.gateway.surfaces.openai import fields
from appliance.gateway.surfaces.openai.fields import CommonFields, invalid
from appliance.gateway.surfaces.openai.parts import (
    CONTENT_TYPE,
    ENCODER,
    deltas,
    error_event,
    finish_reasons,
    logprob_of,
    text_of,
    usage_object,
)

_MAX_ITEMS: Final = 131_072
"""As many token ids as the largest body has room for."""


# --- the request ----------------------------------------------------------------------------------------------------


class CompletionFields(CommonFields, frozen=True, kw_only=True):
    prompt: Text | Annotated[tuple[Text | TokenId, ...], Meta(min_length=1)]
    # honoured
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    # accepted in the one form that we keep
    best_of: Literal[1] | None = None
    suffix: None = None


_DECODER: Final = BodyDecoder(CompletionFields, max_items=_MAX_ITEMS)


class CompletionSurface:
    """``generation.Surface``."""

    wire = CompletionFields

    def decode(self, body: bytes) -> Generation:
        wire = _DECODER.decode(body)
        if wire.echo and wire.logprobs is not None:
            raise invalid("probabilities of the prompt are not told", "echo")
        return Generation(
            model=wire.model,
            prompt=_prompt(wire.prompt),
            max_tokens=wire.max_tokens,
            sampling=fields.sampling(wire, logprobs=wire.logprobs),
            constraint=fields.grammar(wire),
            choices=wire.n or 1,
            echo=bool(wire.echo),
            stream=bool(wire.stream),
            include_usage=fields.includes_usage(wire),
        )

    def stream(self, head: Head) -> "TextWriter":
        return TextWriter(head)

    def whole(self, head: Head) -> "TextCompletion":
        return TextCompletion(head)


def _prompt(asked: str | tuple[str | int, ...]) -> TextPrompt | TokenPrompt:
    """One prompt: as text, as a list of one text, or as token ids."""
    if isinstance(asked, str):
        return TextPrompt(text=asked)
    if len(asked) == 1 and isinstance(asked[0], str):
        return TextPrompt(text=asked[0])
    ids = tuple(item for item in asked if isinstance(item, int))
    if len(ids) < len(asked):
        raise invalid("more than one prompt", "prompt")
    return TokenPrompt(ids=ids)


# --- the answer -----------------------------------------------------------------------------------------------------


class _Logprobs:
    """OpenAI's older form, of one choice: four lists of equal length. Offsets are in characters of the text.

    Alternatives are kept encoded: of a long answer they are a million objects, were they kept as such.
    """

    def __init__(self) -> None:
        self._offset = 0
        self.told: dict[str, list[Any]] = _four_lists()

    def take(self, tokens: Sequence[SampledToken]) -> dict[str, list[Any]]:
        """Those of some tokens alone."""
        self.add(tokens)
        told, self.told = self.told, _four_lists()
        return told

    def add(self, tokens: Sequence[SampledToken]) -> None:
        for token in tokens:
            text = text_of(token.chosen)
            self.told["tokens"].append(text)
            self.told["token_logprobs"].append(logprob_of(token.chosen))
            self.told["top_logprobs"].append(Raw(ENCODER.encode(_by_text((*token.alternatives, token.chosen)))))
            self.told["text_offset"].append(self._offset)
            self._offset += len(text)


def _four_lists() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _by_text(tokens: Sequence[TokenLogprob]) -> dict[str, float]:
    """With the one that was drawn, be it among the likeliest or not. Of tokens that look alike, being parts of
    characters, the likeliest counts."""
    told: dict[str, float] = {}
    for token in tokens:
        told.setdefault(text_of(token), logprob_of(token))
    return told


class _Objects:
    """What every object of one answer repeats."""

    def __init__(self, head: Head) -> None:
        self._common = {
            "id": f"cmpl-{head.request_id}",
            "object": "text_completion",
            "created": head.created,
            "model": head.request.model,
            "system_fingerprint": head.fingerprint,
        }

    def encoded(self, choices: list[dict[str, Any]], usage: Usage | None) -> bytes:
        whole = {**self._common, "choices": choices}
        return ENCODER.encode(whole if usage is None else {**whole, "usage": usage_object(usage)})


def _choice(index: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class TextWriter:
    """``generation.StreamWriter``."""

    content_type = CONTENT_TYPE
    ping = sse.PING

    def __init__(self, head: Head) -> None:
        self._request = head.request
        self._objects = _Objects(head)
        self._logprobs = [_Logprobs() for _ in range(head.request.choices)]

    def begin(self) -> bytes:
        return b""

    def events(self, events: Sequence[AnswerEvent]) -> bytes:
        return b"".join([self._event(self._piece(piece)) for piece in deltas(events)])

    def finish(self, end: End, usage: Usage) -> bytes:
        reasons = finish_reasons(end, self._request.choices)
        last = b"".join([self._event(_choice(index, "", reason)) for index, reason in enumerate(reasons)])
        if self._request.include_usage:
            last += sse.event(self._objects.encoded([], usage))
        return last + sse.DONE

    def broken(self, refusal: Refused) -> bytes:
        return error_event(refusal)

    def _piece(self, piece: Delta) -> dict[str, Any]:
        logprobs = self._logprobs[piece.choice].take(piece.logprobs) if piece.logprobs else None
        return _choice(piece.choice, piece.text, logprobs=logprobs)

    def _event(self, choice: dict[str, Any]) -> bytes:
        return sse.event(self._objects.encoded([choice], None))


class TextCompletion:
    """``generation.WholeWriter``."""

    def __init__(self, head: Head) -> None:
        self._request = head.request
        self._objects = _Objects(head)
        self._texts: list[list[str]] = [[] for _ in range(head.request.choices)]
        self._logprobs = [_Logprobs() for _ in range(head.request.choices)]

    def add(self, events: Sequence[AnswerEvent]) -> None:
        for event in events:
            if isinstance(event, Delta):
                self._texts[event.choice].append(event.text)
                self._logprobs[event.choice].add(event.logprobs)

    def body(self, end: End, usage: Usage) -> bytes:
        asked = self._request.sampling.logprobs is not None
        choices = [
            _choice(index, "".join(self._texts[index]), reason, self._logprobs[index].told if asked else None)
            for index, reason in enumerate(finish_reasons(end, self._request.choices))
        ]
        return self._objects.encoded(choices, usage)
