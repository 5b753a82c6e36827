"""What a runner is told of vectors, scores and tokens, and what it may say of them."""

from struct import pack
from typing import Any

import pytest

from appliance.core.admit import admit
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Admission,
    Asked,
    Detokenisation,
    TextPrompt,
    Tokenisation,
    Vectors,
)
from appliance.gateway.runner_link import LinkAnswer
from appliance.ipc.messages import (
    Detokenise,
    Detokenised,
    Embed,
    Embedded,
    RunnerDelta,
    RunnerEnd,
    RunnerRefused,
    RunnerStarted,
    Tokenise,
    Tokens,
)
from tests.support.made_values import ALICE, LIMITS, model
from tests.support.scenario import run
from tests.unit.gateway.test_runner_link import Pair, all_events, loss, pair

PROMPT = TextPrompt(text="hello")
EMBED = Vectors(model="demo", kind="embed", inputs=(PROMPT, PROMPT), truncate=True, dimensions=2)
RERANK = Vectors(model="demo", kind="rerank", inputs=(PROMPT,), query="q")
TOKENISE = Tokenisation(model="demo", text="hello", add_special=True)
DETOKENISE = Detokenisation(model="demo", ids=(0, 0))
START = RunnerStarted(request_id="r-1", prompt_tokens=2)
END = RunnerEnd(request_id="r-1", reason="stop", prompt_tokens=2, completion_tokens=0)
PAIR_OF_ROWS = Embedded(request_id="r-1", width=2, data=pack("<4f", 1, 0, 0, 1))


def _admitted(request: Asked) -> Admission:
    return admit(request, ALICE, [model(pools=isinstance(request, Vectors))], LIMITS)


def _paid(request: Asked) -> int:
    return _admitted(request).max_prompt_tokens


async def _ask(one: Pair, request: Asked, kind: type) -> tuple[LinkAnswer, Any]:
    answer = one.link.answer("r-1", _admitted(request), "alice")
    return answer, await one.runner.hear(kind)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            EMBED,
            Embed(
                request_id="r-1",
                kind="embed",
                inputs=(PROMPT, PROMPT),
                truncate=True,
                dimensions=2,
                max_prompt_tokens=_paid(EMBED),
                principal="alice",
            ),
        ),
        (
            RERANK,
            Embed(
                request_id="r-1",
                kind="rerank",
                inputs=(PROMPT,),
                query="q",
                max_prompt_tokens=_paid(RERANK),
                principal="alice",
            ),
        ),
        (
            TOKENISE,
            Tokenise(
                request_id="r-1", text="hello", add_special=True, max_prompt_tokens=_paid(TOKENISE), principal="alice"
            ),
        ),
        (DETOKENISE, Detokenise(request_id="r-1", ids=(0, 0), principal="alice")),
    ],
)
def test_a_runner_is_told_what_was_admitted(request_: Asked, message: Any) -> None:
    async def scenario() -> None:
        async with pair() as one:
            _answer, heard = await _ask(one, request_, type(message))
            assert heard == message

    run(scenario)


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        (EMBED, Embed, PAIR_OF_ROWS),
        (TOKENISE, Tokenise, Tokens(request_id="r-1", data=bytes(8))),
        (DETOKENISE, Detokenise, Detokenised(request_id="r-1", text="hi")),
    ],
)
def test_what_it_says_reaches_its_request(request_: Asked, kind: type, said: Any) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer, _heard = await _ask(one, request_, kind)
            for message in (START, said, END):
                one.runner.say(message)
            assert await all_events(answer) == [START, said, END]

    run(scenario)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([Embedded(request_id="r-2", width=2, data=bytes(8))], "a request that it was not given"),
        ([PAIR_OF_ROWS], "events out of order"),
        ([START, PAIR_OF_ROWS, PAIR_OF_ROWS], "another number of vectors"),
        ([START, Embedded(request_id="r-1", width=1, data=bytes(8))], "another size than was asked for"),
        ([START, Embedded(request_id="r-1", width=2, data=pack("<2f", 0, float("nan")))], "a vector that is none"),
        ([START, RunnerDelta(request_id="r-1", text="a", tokens=1)], "another kind"),
        ([START, Tokens(request_id="r-1", data=bytes(8))], "another kind"),
        ([START, END], "before it was whole"),
    ],
)
def test_a_runner_that_says_what_was_not_asked_is_given_up(messages: list[Any], why: str) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer, _heard = await _ask(one, EMBED, Embed)
            for message in messages:
                one.runner.say(message)
            assert (await loss(answer)).reason is Reason.RUNNER_LOST
            await one.assert_given_up(why)

    run(scenario)


def test_a_model_that_is_not_for_it_is_a_refusal_of_the_field_model() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer, _heard = await _ask(one, EMBED, Embed)
            one.runner.say(RunnerRefused(request_id="r-1", reason="not-offered", detail="no"))
            with pytest.raises(Refused) as caught:
                await answer.events()
            assert (caught.value.reason, caught.value.param) == (Reason.OPERATION_UNSUPPORTED, "model")
            assert not one.link.broken

    run(scenario)
