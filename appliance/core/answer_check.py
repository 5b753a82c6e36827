"""The events of an answer, as a runner that is not trusted sends them -> what is wrong with them.

Everything that a runner can say is bounded by what was asked and paid for: tokens, the bytes in which they can have
come, choices, calls of tools that were offered, probabilities that were asked for. What passes is well-formed; whether
it is true of the model, nobody but the runner knows.
"""

import re
from typing import Final

from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.meter import delta_bytes, least_tokens
from appliance.core.values import (
    Admission,
    AnswerEvent,
    Conversation,
    Delta,
    End,
    FinishReason,
    Generation,
    SampledToken,
    Started,
    TokenLogprob,
    ToolCallDelta,
)

DELTAS_WITHOUT_TOKEN: Final = 4
"""Each delta has a token of its own, but for what was held back until the end of a choice or around a call."""
ROUNDING: Final = 1e-3
"""A probability of one may come out a little above it."""
_BROKEN: Final[frozenset[FinishReason]] = frozenset({"cancelled", "error"})
_CALL_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class AnswerCheck:
    """Follows one answer. After the first fault its state means nothing."""

    def __init__(self, paid: Admission, request: Generation) -> None:
        talk = request.prompt if isinstance(request.prompt, Conversation) else None
        self._paid = paid
        self._most_tokens = paid.worst_case_tokens
        self._choices = request.choices
        self._alternatives = request.sampling.logprobs
        self._may_reason = talk is not None
        self._callable = talk.callable_tools if talk is not None else frozenset()
        self._calls: dict[int, list[str]] = {}  # the ids of each choice's calls
        self._prompt_tokens = 0
        self._told_tokens = 0
        self._told_logprobs = 0
        self._told_bytes = 0
        self._deltas_left = paid.max_completion_tokens + DELTAS_WITHOUT_TOKEN * request.choices
        self._most_bytes = paid.max_completion_tokens * MAX_TOKEN_BYTES + paid.echo_bytes
        self.started = False

    def feed(self, event: AnswerEvent) -> str:
        """Empty, or what is wrong with it. ``Started`` comes first and once; a runner that failed at once may leave it
        out."""
        match event:
            case Delta():
                return self._delta(event) if self.started else "events out of order"
            case Started():
                if self.started:
                    return "events out of order"
                self.started = True
                self._prompt_tokens = event.prompt_tokens
                if self._paid.echo_bytes:
                    self._deltas_left += self._choices * event.prompt_tokens
                return self._cost(0)
            case End():
                return self._end(event)
            case _:
                return "an answer of another kind"

    def _delta(self, event: Delta) -> str:
        self._told_tokens += event.tokens
        self._told_bytes += delta_bytes(event)
        self._deltas_left -= 1
        if event.choice >= self._choices:
            return "a choice that was not asked for"
        if not (event.text or event.reasoning or event.tool_calls or event.logprobs):
            return "a delta with nothing in it"
        if event.reasoning and not self._may_reason:
            return "reasoning in the continuation of a text"
        wrong = self._wrong_call(event) if event.tool_calls else ""
        if not wrong and event.logprobs:
            wrong = self._wrong_logprob(event.logprobs)
        if wrong:
            return wrong
        if self._deltas_left < 0:
            return "more deltas than tokens"
        return self._cost(self._told_tokens)

    def _wrong_call(self, event: Delta) -> str:
        ids = self._calls.setdefault(event.choice, [])
        for call in event.tool_calls:
            wrong = self._wrong_first_piece(call, ids) if call.index == len(ids) else _wrong_later_piece(call, ids)
            if wrong:
                return wrong
        return ""

    def _wrong_first_piece(self, call: ToolCallDelta, ids: list[str]) -> str:
        if call.name not in self._callable:
            return "a call of a tool that was not offered"
        if not _CALL_ID.fullmatch(call.id) or call.id in ids:
            return "a call without an id of its own"
        ids.append(call.id)
        self._deltas_left += DELTAS_WITHOUT_TOKEN
        return ""

    def _wrong_logprob(self, logprobs: tuple[SampledToken, ...]) -> str:
        self._told_logprobs += len(logprobs)
        if self._alternatives is None:
            return "probabilities that were not asked for"
        if self._told_logprobs > self._told_tokens:
            return "more probabilities than tokens"
        for token in logprobs:
            if len(token.alternatives) > self._alternatives:
                return "more alternatives than were asked for"
            if not (_is_sound(token.chosen) and all(map(_is_sound, token.alternatives))):
                return "a probability that is none"
        return ""

    def _end(self, event: End) -> str:
        if self.started and event.prompt_tokens != self._prompt_tokens:
            return "another prompt than it started with"
        self._prompt_tokens = event.prompt_tokens
        if event.cached_tokens > event.prompt_tokens:
            return "more of the prompt from the cache than there is"
        own_bytes = max(0, self._told_bytes - self._paid.echo_bytes)
        if event.completion_tokens < max(self._told_tokens, least_tokens(own_bytes)):
            return "fewer tokens than its text must have"
        return self._wrong_reason(event) or self._cost(event.completion_tokens)

    def _wrong_reason(self, event: End) -> str:
        reasons = event.choice_reasons
        broken = event.reason in _BROKEN
        if len(reasons) != self._choices and (reasons or (self._choices > 1 and not broken)):
            return "another number of reasons than of choices"
        if reasons and not broken and event.reason != reasons[0]:
            return "another reason than its first choice has"
        if not broken and not _BROKEN.isdisjoint(reasons):
            return "a choice that broke in an answer that did not"
        if any(self._is_call_of_nothing(reason, choice) for choice, reason in enumerate(reasons or (event.reason,))):
            return "it ended in a call that it did not make"
        return ""

    def _is_call_of_nothing(self, reason: FinishReason, choice: int) -> bool:
        return reason == "tool-calls" and not self._calls.get(choice)

    def _cost(self, completion_tokens: int) -> str:
        """The prompt is at least one token; everything else at most what was paid for, in tokens and in bytes."""
        paid = self._paid
        if self._prompt_tokens < 1:
            return "a prompt for nothing"
        if (
            self._prompt_tokens > paid.max_prompt_tokens
            or completion_tokens > paid.max_completion_tokens
            or self._prompt_tokens + completion_tokens > self._most_tokens
            or self._told_bytes > self._most_bytes
        ):
            return "more than was paid for"
        return ""


def _wrong_later_piece(call: ToolCallDelta, ids: list[str]) -> str:
    if call.index > len(ids):
        return "a call out of order"
    if call.id or call.name:
        return "a call that is named twice"
    return "" if call.arguments else "a piece of a call with nothing in it"


def _is_sound(token: TokenLogprob) -> bool:
    """NaN compares as false."""
    return token.logprob <= ROUNDING and len(token.piece) <= MAX_TOKEN_BYTES
