"""What the answers of OpenAI's surface share.

Trusts: ``pipeline.Answer`` for the order of events and ``core.answer_check`` for their bounds.
Promises: no object has a number that JSON cannot carry.
Not here: the objects of one route (``chat_answer``, ``completions``).
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

import msgspec
from msgspec import Struct

from appliance.core import sse
from appliance.core.refusals import Refused
from appliance.core.values import AnswerEvent, Delta, End, FinishReason, TokenLogprob, Usage
from appliance.gateway.problems import openai_error

CONTENT_TYPE: Final = b"text/event-stream; charset=utf-8"
ENCODER: Final = msgspec.json.Encoder()
NEVER: Final = -9999.0
"""How OpenAI writes the logarithm of nothing."""

_FINISH: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "length": "length",
    "tool-calls": "tool_calls",
    "cancelled": "stop",
    "error": "stop",
}


class PromptDetails(Struct):
    cached_tokens: int


class UsageObject(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


def usage_object(usage: Usage) -> UsageObject:
    return UsageObject(
        usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, PromptDetails(usage.cached_tokens)
    )


def finish_reasons(end: End, choices: int) -> list[str]:
    """One for each choice; a request that broke off has one reason for all."""
    return [_FINISH[reason] for reason in end.choice_reasons or (end.reason,) * choices]


def deltas(events: Sequence[AnswerEvent]) -> Iterable[Delta]:
    """The pieces of an answer among some events; text that has come in several pieces at once is one."""
    pieces = [event for event in events if isinstance(event, Delta)]
    if len(pieces) < 2:
        return pieces
    return [_joined(list(run)) for _kind, run in groupby(pieces, _kind_of)]


def is_plain(piece: Delta) -> bool:
    """Whether there is nothing but text in it."""
    return not (piece.reasoning or piece.tool_calls or piece.logprobs)


def _kind_of(piece: Delta) -> tuple[int, int]:
    """Pieces of text alone are of one kind for each choice, any other is of its own."""
    return (piece.choice, 0) if is_plain(piece) else (piece.choice, id(piece))


def _joined(run: list[Delta]) -> Delta:
    if len(run) == 1:
        return run[0]
    return Delta(
        text="".join(piece.text for piece in run),
        choice=run[0].choice,
        tokens=sum(piece.tokens for piece in run),
    )


def logprob_of(token: TokenLogprob) -> float:
    return max(token.logprob, NEVER)


def text_of(token: TokenLogprob) -> str:
    """A token may be a part of a character."""
    return token.piece.decode(errors="replace")


def error_event(refusal: Refused) -> bytes:
    return sse.event(ENCODER.encode(openai_error(refusal)))
