"""No runner, whatever it says, gets more past the check than was asked and paid for."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.answer_check import DELTAS_WITHOUT_TOKEN, AnswerCheck
from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.meter import Meter, delta_bytes
from appliance.core.values import (
    Admission,
    AnswerEvent,
    Delta,
    End,
    Generation,
    Message,
    SampledToken,
    Sampling,
    Started,
    TextPrompt,
    TokenLogprob,
    Tool,
    ToolCallDelta,
)
from tests.support.made_values import admission, chat_request, talk

TOOLS = (Tool(name="f"), Tool(name="g"))
STARTED = Started(prompt_tokens=5)


def paid(*, echo_bytes: int = 0, most: int = 10, **changes: Any) -> Admission:
    request = chat_request(**changes)
    return admission(
        request=request,
        max_prompt_tokens=100,
        max_completion_tokens=most * request.choices,
        echo_bytes=echo_bytes,
    )


def tooled(**changes: Any) -> Admission:
    return paid(prompt=talk(tools=TOOLS, **changes))


def probable(alternatives: int) -> Admission:
    return paid(sampling=msgspec.structs.replace(Sampling(), logprobs=alternatives))


def call(index: int = 0, id: str = "c-1", name: str = "f", arguments: str = "") -> ToolCallDelta:  # noqa: A002
    return ToolCallDelta(index=index, id=id, name=name, arguments=arguments)


def calls(*pieces: ToolCallDelta, choice: int = 0) -> Delta:
    return Delta(tool_calls=pieces, choice=choice, tokens=1)


def token(alternatives: int = 0, logprob: float = -1.0, piece: bytes = b"x") -> SampledToken:
    one = TokenLogprob(piece=piece, logprob=logprob)
    return SampledToken(chosen=one, alternatives=(one,) * alternatives)


def told(*tokens: SampledToken, paid_tokens: int = 1) -> Delta:
    return Delta(text="x", logprobs=tokens, tokens=paid_tokens)


def end(reason: Any = "stop", completion_tokens: int = 9, **changes: Any) -> End:
    return msgspec.structs.replace(End(reason=reason, prompt_tokens=5, completion_tokens=completion_tokens), **changes)


def check_of(admitted: Admission) -> AnswerCheck:
    assert isinstance(admitted.request, Generation)
    return AnswerCheck(admitted, admitted.request)


def verdict(admitted: Admission, *events: AnswerEvent) -> str:
    """The first thing that is wrong, after the start."""
    check = check_of(admitted)
    for event in (STARTED, *events):
        if wrong := check.feed(event):
            return wrong
    return ""


TEXT = Delta(text="x", tokens=1)

SOUND: dict[str, tuple[Admission, tuple[AnswerEvent, ...]]] = {
    "reasoning, then text": (paid(), (Delta(reasoning="why", tokens=1), TEXT, end())),
    "two calls in turns": (
        tooled(),
        (
            calls(call(), call(1, "c-2", "g")),
            calls(call(0, "", "", "{")),
            calls(call(1, "", "", "}")),
            end("tool-calls"),
        ),
    ),
    "a call without arguments": (tooled(), (calls(call()), end("tool-calls"))),
    "the same id in two choices": (
        paid(choices=2, prompt=talk(tools=TOOLS)),
        (calls(call()), calls(call(), choice=1), end("tool-calls", choice_reasons=("tool-calls", "tool-calls"))),
    ),
    "a forced tool": (tooled(tool_choice="required", forced_tool="g"), (calls(call(name="g")), end("tool-calls"))),
    "text after all": (tooled(), (TEXT, end())),
    "probabilities": (probable(2), (told(token(2), token(0), paid_tokens=2), end())),
    "probabilities of tokens told before": (probable(0), (TEXT, Delta(logprobs=(token(),), tokens=0), end())),
    "certain beyond rounding": (probable(0), (told(token(logprob=1e-6)), end())),
    "impossible": (probable(1), (told(token(1, logprob=float("-inf"))), end())),
    "choices": (paid(choices=3), (TEXT, Delta(text="y", choice=2, tokens=1), end(choice_reasons=("stop",) * 3))),
    "choices that differ": (paid(choices=2), (end("length", choice_reasons=("length", "stop")),)),
    "choices that broke off without a word": (paid(choices=3), (end("cancelled"),)),
    "choices that broke off": (paid(choices=2), (end("error", choice_reasons=("stop", "error")),)),
    "one choice with its reason": (paid(), (end(choice_reasons=("stop",)),)),
    "all from the cache": (paid(), (end(cached_tokens=5),)),
    "an echo": (paid(echo_bytes=500, echo=True), (Delta(text="x" * 500, tokens=0), TEXT, end(completion_tokens=1))),
    "as many echoes as choices": (
        paid(echo_bytes=1000, echo=True, choices=2),
        (
            *[Delta(text="x" * 100, choice=index % 2, tokens=0) for index in range(10)],
            end(choice_reasons=("stop",) * 2),
        ),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_honest_answer_passes(name: str) -> None:
    admitted, events = SOUND[name]
    assert verdict(admitted, *events) == ""


LIES: dict[str, tuple[Admission, tuple[AnswerEvent, ...], str]] = {
    "a choice too many": (paid(choices=2), (Delta(text="x", choice=2, tokens=1),), "not asked for"),
    "a second choice of one": (paid(), (Delta(text="x", choice=1, tokens=1),), "not asked for"),
    "reasoning in a continuation": (
        paid(prompt=TextPrompt(text="x")),
        (Delta(reasoning="x", tokens=1),),
        "reasoning in the continuation",
    ),
    "a call in a continuation": (paid(prompt=TextPrompt(text="x")), (calls(call()),), "not offered"),
    "a call without tools": (paid(), (calls(call()),), "not offered"),
    "a call of another tool": (tooled(), (calls(call(name="h")),), "not offered"),
    "a call of no name": (tooled(), (calls(call(name="")),), "not offered"),
    "a call although none may be": (tooled(tool_choice="none"), (calls(call()),), "not offered"),
    "a call of another than the forced": (
        tooled(tool_choice="required", forced_tool="g"),
        (calls(call(name="f")),),
        "not offered",
    ),
    "a call without an id": (tooled(), (calls(call(id="")),), "an id of its own"),
    "two calls of one id": (tooled(), (calls(call(), call(1)),), "an id of its own"),
    "an id that breaks a line": (tooled(), (calls(call(id="c\n1")),), "an id of its own"),
    "an id that ends in a line": (tooled(), (calls(call(id="c1\n")),), "an id of its own"),
    "an id without end": (tooled(), (calls(call(id="c" * 65)),), "an id of its own"),
    "a call out of order": (tooled(), (calls(call(1)),), "out of order"),
    "a call of another choice": (
        paid(choices=2, prompt=talk(tools=TOOLS)),
        (calls(call()), calls(call(0, "", "", "x"), choice=1)),
        "not offered",
    ),
    "a call that is renamed": (tooled(), (calls(call()), calls(call(0, "", "g", "x"))), "named twice"),
    "a call with another id": (tooled(), (calls(call()), calls(call(0, "c-2", "", "x"))), "named twice"),
    "an empty piece of a call": (tooled(), (calls(call()), calls(call(0, "", "", ""))), "nothing in it"),
    "calls without end": (
        tooled(),
        (calls(call()), *[Delta(tool_calls=(call(0, "", "", "x"),), tokens=0)] * 30),
        "more deltas than tokens",
    ),
    "arguments that cost nothing": (
        tooled(),
        (calls(call()), Delta(tool_calls=(call(0, "", "", "x" * 1000),), tokens=0), end("tool-calls", 1)),
        "fewer tokens",
    ),
    "arguments that nobody paid for": (
        tooled(),
        (calls(call(arguments="x" * (11 * MAX_TOKEN_BYTES))),),
        "more than was paid for",
    ),
    "reasoning that cost nothing": (paid(), (Delta(reasoning="x" * 1000, tokens=1), end(completion_tokens=1)), "fewer"),
    "reasoning that nobody paid for": (
        paid(),
        (Delta(reasoning="x" * (6 * MAX_TOKEN_BYTES), text="x" * (6 * MAX_TOKEN_BYTES), tokens=1),),
        "more than was paid for",
    ),
    "probabilities unasked": (paid(), (told(token()),), "not asked for"),
    "more probabilities than tokens": (probable(0), (told(token(), token()),), "more probabilities"),
    "probabilities again and again": (
        probable(0),
        (told(token()), Delta(logprobs=(token(),), tokens=0)),
        "more probabilities",
    ),
    "more alternatives than asked": (probable(2), (told(token(3)),), "more alternatives"),
    "alternatives unasked": (probable(0), (told(token(1)),), "more alternatives"),
    "a probability above one": (probable(0), (told(token(logprob=0.5)),), "that is none"),
    "no number": (probable(0), (told(token(logprob=float("nan"))),), "that is none"),
    "no number among the alternatives": (
        probable(1),
        (
            told(
                SampledToken(
                    chosen=TokenLogprob(piece=b"x", logprob=-1.0),
                    alternatives=(TokenLogprob(piece=b"x", logprob=float("inf")),),
                )
            ),
        ),
        "that is none",
    ),
    "a token without end": (probable(0), (told(token(piece=b"x" * (MAX_TOKEN_BYTES + 1))),), "that is none"),
    "nothing at all": (paid(), (Delta(tokens=1),), "nothing in it"),
    "too few reasons": (paid(choices=3), (end(choice_reasons=("stop",) * 2),), "number of reasons"),
    "no reasons": (paid(choices=2), (end(),), "number of reasons"),
    "too many reasons": (paid(), (end(choice_reasons=("stop",) * 2),), "number of reasons"),
    "too few reasons to break off": (paid(choices=3), (end("error", choice_reasons=("stop",)),), "number of reasons"),
    "another reason than the first": (paid(choices=2), (end(choice_reasons=("length", "stop")),), "another reason"),
    "a choice that broke unheard": (
        paid(choices=2),
        (end(choice_reasons=("stop", "error")),),
        "a choice that broke",
    ),
    "an end in no call": (tooled(), (TEXT, end("tool-calls")), "did not make"),
    "an end in another choice's call": (
        paid(choices=2, prompt=talk(tools=TOOLS)),
        (calls(call()), end("tool-calls", choice_reasons=("tool-calls", "tool-calls"))),
        "did not make",
    ),
    "more from the cache than there is": (paid(), (end(cached_tokens=6),), "from the cache"),
    "an echo unasked": (paid(), (Delta(text="x" * 500, tokens=0), end(completion_tokens=1)), "fewer tokens"),
    "more than an echo": (
        paid(echo_bytes=500, echo=True),
        (Delta(text="x" * (501 + MAX_TOKEN_BYTES), tokens=0), end(completion_tokens=1)),
        "fewer tokens",
    ),
    "an echo letter by letter": (
        paid(echo_bytes=500, echo=True),
        (Delta(text="x", tokens=0),) * (10 + DELTAS_WITHOUT_TOKEN + 5 + 1),
        "more deltas than tokens",
    ),
    "choices that share more than was paid for": (
        paid(choices=2),
        (Delta(text="x", tokens=15), Delta(text="x", choice=1, tokens=6)),
        "more than was paid for",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lie_is_found_out(name: str) -> None:
    admitted, events, wrong = LIES[name]
    assert wrong in verdict(admitted, *events)
    assert wrong == "more deltas than tokens" or verdict(admitted, *events[:-1]) == ""


# --- whatever it says -----------------------------------------------------------------------------------------------

_TEXT = st.sampled_from(["", "a", "\ufffd", "é" * 200, "x" * 3000])
_CALL = st.builds(
    ToolCallDelta,
    index=st.integers(0, 3),
    id=st.sampled_from(["", "c-1", "c-2", "\n"]),
    name=st.sampled_from(["", "f", "g", "h"]),
    arguments=_TEXT,
)
_LOGPROB = st.builds(
    TokenLogprob,
    piece=st.sampled_from([b"", b"x", b"x" * 300]),
    logprob=st.sampled_from([-1.0, 0.0, 5.0, float("nan"), float("-inf")]),
)
_TOKEN = st.builds(SampledToken, chosen=_LOGPROB, alternatives=st.lists(_LOGPROB, max_size=3).map(tuple))
_COUNT = st.integers(0, 30)
_DELTA = st.builds(
    Delta,
    text=_TEXT,
    reasoning=_TEXT,
    tool_calls=st.lists(_CALL, max_size=2).map(tuple),
    logprobs=st.lists(_TOKEN, max_size=2).map(tuple),
    choice=st.integers(0, 3),
    tokens=_COUNT,
)
_REASON = st.sampled_from(["stop", "length", "tool-calls", "cancelled", "error"])
_END = st.builds(
    End,
    reason=_REASON,
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    cached_tokens=_COUNT,
    choice_reasons=st.lists(_REASON, max_size=3).map(tuple),
)
_EVENTS = st.lists(st.builds(Started, prompt_tokens=_COUNT) | _DELTA | _END, max_size=12)
_ADMISSIONS = st.builds(
    lambda choices, tools, logprobs, echo: paid(
        choices=choices,
        prompt=talk(Message(role="user", content="x"), tools=TOOLS if tools else ()),
        sampling=msgspec.structs.replace(Sampling(), logprobs=logprobs),
        echo_bytes=echo,
    ),
    st.integers(1, 3),
    st.booleans(),
    st.none() | st.integers(0, 2),
    st.sampled_from([0, 500]),
)


@settings(max_examples=400, deadline=None)
@given(_ADMISSIONS, st.booleans(), _EVENTS)
def test_what_passes_is_within_what_was_asked_and_paid_for(
    admitted: Admission, begins: bool, events: list[AnswerEvent]
) -> None:
    check, meter = check_of(admitted), Meter(admitted.echo_bytes)
    passed: list[AnswerEvent] = []
    for event in [STARTED, *events] if begins else events:
        if check.feed(event) or isinstance(event, End):
            break
        meter.feed(event)
        passed.append(event)
    pieces = [event for event in passed if isinstance(event, Delta)]
    request = admitted.request
    assert isinstance(request, Generation)
    assert meter.usage().completion_tokens <= admitted.max_completion_tokens
    assert meter.usage().prompt_tokens <= admitted.max_prompt_tokens
    assert sum(map(delta_bytes, pieces)) <= admitted.max_completion_tokens * MAX_TOKEN_BYTES + admitted.echo_bytes
    assert all(piece.choice < request.choices for piece in pieces)
    told_tokens = [token for piece in pieces for token in piece.logprobs]
    assert len(told_tokens) <= meter.usage().completion_tokens
    asked = request.sampling.logprobs
    assert all(asked is not None and len(token.alternatives) <= asked for token in told_tokens)
    named = [(piece.choice, one) for piece in pieces for one in piece.tool_calls if one.name]
    assert all(one.name in {"f", "g"} for _choice, one in named)
    assert len({(choice, one.id) for choice, one in named}) == len(named)
    assert len(pieces) <= admitted.max_completion_tokens + DELTAS_WITHOUT_TOKEN * (3 + len(named)) + 3 * 100
