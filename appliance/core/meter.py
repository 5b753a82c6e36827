"""Answer events, as they pass, -> what was spent."""

from typing import Final

from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.values import AnswerEvent, Delta, End, Ids, Rows, Started, ToolCallDelta, Usage, Written

_REPLACEMENT = "\ufffd"


def text_bytes(text: str) -> int:
    """At most as many bytes as the tokens of this text hold: each U+FFFD may stand for a single broken byte."""
    if text.isascii():
        return len(text)
    return len(text.encode()) - (len(_REPLACEMENT.encode()) - 1) * text.count(_REPLACEMENT)


def delta_bytes(delta: Delta) -> int:
    """Of everything in it that the model wrote. A call's id is not of its making."""
    n_bytes = text_bytes(delta.text) if delta.text else 0
    if delta.reasoning:
        n_bytes += text_bytes(delta.reasoning)
    return n_bytes + sum(map(_call_bytes, delta.tool_calls)) if delta.tool_calls else n_bytes


def _call_bytes(call: ToolCallDelta) -> int:
    return text_bytes(call.name) + text_bytes(call.arguments)


_EVENT_BYTES: Final = 384
_ENTRY_BYTES: Final = 128
_CHARACTER_BYTES: Final = 4
_PIECE_BYTES: Final = 10
"""Of each byte of a told token, once it is written as JSON: six as text and four as a number."""


def held_bytes(event: AnswerEvent) -> int:
    """About what an event takes in memory at most, as it came or written as JSON. Every part is an object of its own: a
    token with 20 alternatives takes far more than it writes."""
    match event:
        case Delta():
            return _held_delta_bytes(event)
        case Rows() | Ids():
            return _EVENT_BYTES + len(event.data)
        case Written():
            return _EVENT_BYTES + _CHARACTER_BYTES * len(event.text)
        case _:
            return _EVENT_BYTES


def _held_delta_bytes(event: Delta) -> int:
    n_bytes = _EVENT_BYTES + _CHARACTER_BYTES * (len(event.text) + len(event.reasoning))
    for token in event.logprobs:
        n_bytes += _ENTRY_BYTES * (2 + len(token.alternatives))  # itself, and the one that was drawn
        n_bytes += _PIECE_BYTES * (len(token.chosen.piece) + sum([len(one.piece) for one in token.alternatives]))
    for call in event.tool_calls:
        n_bytes += _ENTRY_BYTES + _CHARACTER_BYTES * (len(call.id) + len(call.name) + len(call.arguments))
    return n_bytes


def least_tokens(n_bytes: int) -> int:
    """The fewest tokens in which so many bytes of text can have come."""
    return -(-n_bytes // MAX_TOKEN_BYTES)


class Meter:
    """Counts one answer. After a broken answer the count is what was seen: at least what the caller received, and never
    less than its text must have cost, whatever the runner says. ``echo_bytes`` of the text may be the prompt's."""

    def __init__(self, echo_bytes: int = 0) -> None:
        self._echo_bytes = echo_bytes
        self._prompt_tokens = 0
        self._told_tokens = 0
        self._text_bytes = 0
        self.end: End | None = None

    def feed(self, event: AnswerEvent) -> None:
        match event:
            case Started():
                self._prompt_tokens = event.prompt_tokens
            case Delta():
                self._told_tokens += event.tokens
                self._text_bytes += delta_bytes(event)
            case Rows() | Ids() | Written():
                pass  # computed from what was asked, and paid for with it
            case End():
                self.end = event
                self._prompt_tokens = max(self._prompt_tokens, event.prompt_tokens)
                self._told_tokens = max(self._told_tokens, event.completion_tokens)

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=max(self._told_tokens, least_tokens(max(0, self._text_bytes - self._echo_bytes))),
            cached_tokens=self.end.cached_tokens if self.end is not None else 0,
        )
