"""What a runner may not say where nothing is generated."""

from struct import pack
from typing import Any

import msgspec
import pytest

from appliance.core.admit import admit
from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.input_check import InputCheck
from appliance.core.values import (
    AnswerEvent,
    Delta,
    Detokenisation,
    End,
    Ids,
    Rows,
    Started,
    TextPrompt,
    Tokenisation,
    Vectors,
    Written,
)
from tests.support.made_values import ALICE, LIMITS, model

VOCABULARY = 50
EMBED = Vectors(model="demo", kind="embed", inputs=(TextPrompt(text="hello"), TextPrompt(text="world")))
SHORT = msgspec.structs.replace(EMBED, dimensions=3)
RERANK = msgspec.structs.replace(EMBED, kind="rerank", query="q")
TOKENISE = Tokenisation(model="demo", text="hello")
DETOKENISE = Detokenisation(model="demo", ids=(1, 2))
START = Started(prompt_tokens=4)


def rows(*numbers: float, width: int = 2) -> Rows:
    return Rows(width=width, data=pack(f"<{len(numbers)}f", *numbers))


def ids(*numbers: int) -> Ids:
    return Ids(data=pack(f"<{len(numbers)}i", *numbers))


def end(reason: Any = "stop", prompt_tokens: int = 4, **changes: Any) -> End:
    return End(
        reason=reason, prompt_tokens=prompt_tokens, completion_tokens=changes.pop("completion_tokens", 0), **changes
    )


def check(request: Vectors | Tokenisation | Detokenisation) -> InputCheck:
    made = model(pools=isinstance(request, Vectors))
    made = msgspec.structs.replace(made, facts=msgspec.structs.replace(made.facts, vocabulary_tokens=VOCABULARY))
    return InputCheck(admit(request, ALICE, [made], LIMITS), request)


def wrong(request: Any, *events: AnswerEvent) -> str:
    """What is wrong with the last event; nothing may be with those before it."""
    one = check(request)
    for event in events[:-1]:
        assert one.feed(event) == ""
    return one.feed(events[-1])


@pytest.mark.parametrize(
    ("request_", "events"),
    [
        (EMBED, [START, rows(1, 2), rows(3, 4), end()]),
        (EMBED, [START, rows(1, 2, 3, 4), end()]),
        (SHORT, [START, rows(1, 2, 3, 4, 5, 6, width=3), end()]),
        (RERANK, [START, rows(-1, 9, width=1), end()]),
        (EMBED, [START, rows(1, 2), end("cancelled")]),
        (EMBED, [end("error")]),
        (TOKENISE, [START, ids(1, 2), ids(0, VOCABULARY - 1), end()]),
        (Tokenisation(model="demo", text=""), [Started(prompt_tokens=1), end(prompt_tokens=1)]),
        (DETOKENISE, [Started(prompt_tokens=2), Written(text="a"), Written(text="\ufffd"), end(prompt_tokens=2)]),
        (Detokenisation(model="demo", ids=()), [Started(prompt_tokens=1), end(prompt_tokens=1)]),
    ],
)
def test_an_answer_of_what_was_asked_is_no_fault(request_: Any, events: list[AnswerEvent]) -> None:
    assert wrong(request_, *events) == ""


@pytest.mark.parametrize(
    ("request_", "events", "why"),
    [
        (EMBED, [rows(1, 2)], "events out of order"),
        (EMBED, [START, START], "events out of order"),
        (EMBED, [Started(prompt_tokens=0)], "a prompt for nothing"),
        (EMBED, [Started(prompt_tokens=1000)], "more than was paid for"),
        (EMBED, [START, rows(1, 2), rows(1, 2, 3, width=3)], "vectors of another size than before"),
        (EMBED, [START, rows(*range(65), width=65)], "vectors of more numbers than the model has"),
        (SHORT, [START, rows(1, 2)], "vectors of another size than was asked for"),
        (RERANK, [START, rows(1, 2)], "vectors of another size than was asked for"),
        (EMBED, [START, rows(1, 2, 3)], "another number of vectors than of inputs"),
        (EMBED, [START, Rows(width=2, data=b"\0" * 4)], "another number of vectors than of inputs"),
        (EMBED, [START, Rows(width=2, data=b"")], "another number of vectors than of inputs"),
        (EMBED, [START, rows(1, 2, 3, 4, 5, 6)], "another number of vectors than of inputs"),
        (EMBED, [START, rows(float("nan"), 2)], "a vector that is none"),
        (EMBED, [START, rows(float("inf"), float("-inf"))], "a vector that is none"),
        (EMBED, [START, rows(1, 2), end()], "it ended before it was whole"),
        (EMBED, [Started(prompt_tokens=1), rows(1, 2, 3, 4), end(prompt_tokens=1)], "it ended before it was whole"),
        (EMBED, [START, rows(1, 2, 3, 4), end("length")], "it ended before it was whole"),
        (EMBED, [end()], "it ended before it was whole"),
        (EMBED, [START, rows(1, 2, 3, 4), end(prompt_tokens=5)], "another prompt than it started with"),
        (EMBED, [START, end(completion_tokens=1)], "tokens where nothing was to be generated"),
        (EMBED, [START, end(cached_tokens=1)], "tokens where nothing was to be generated"),
        (EMBED, [START, Delta(text="a", tokens=1)], "an answer of another kind"),
        (EMBED, [START, ids(1)], "an answer of another kind"),
        (TOKENISE, [START, rows(1, 2)], "an answer of another kind"),
        (TOKENISE, [START, ids(1, 2, 3, 4, 5)], "another number of tokens than it counted"),
        (TOKENISE, [START, Ids(data=b"\0\0\0")], "another number of tokens than it counted"),
        (TOKENISE, [START, ids(1, 2, 3), end()], "it ended before it was whole"),
        (TOKENISE, [START, ids(1, VOCABULARY)], "a token outside the vocabulary"),
        (TOKENISE, [START, ids(-1)], "a token outside the vocabulary"),
        (DETOKENISE, [Started(prompt_tokens=3)], "more than was paid for"),
        (DETOKENISE, [Started(prompt_tokens=1), end(prompt_tokens=1)], "it ended before it was whole"),
        (
            DETOKENISE,
            [Started(prompt_tokens=2), Written(text="a" * (2 * MAX_TOKEN_BYTES + 1))],
            "more text than its tokens can stand for",
        ),
        (DETOKENISE, [Started(prompt_tokens=2), *[Written(text="a")] * 3], "more pieces than tokens"),
        (DETOKENISE, [Started(prompt_tokens=2), Written(text="")], "more text than its tokens can stand for"),
    ],
)
def test_what_was_not_asked_or_paid_for_is_a_fault(request_: Any, events: list[AnswerEvent], why: str) -> None:
    assert wrong(request_, *events) == why
