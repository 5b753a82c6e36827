"""What a runner, the one expected to be compromised, may not do to the gateway."""

import asyncio
import contextlib
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.answer_check import DELTAS_WITHOUT_TOKEN
from appliance.core.gguf import MAX_TOKEN_BYTES
from appliance.core.meter import held_bytes
from appliance.core.refusals import Reason, Refused
from appliance.core.values import (
    Delta,
    End,
    Ids,
    JsonObject,
    Rows,
    SampledToken,
    Sampling,
    Started,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    Written,
)
from appliance.gateway import runner_link
from appliance.gateway.runner_link import LinkAnswer, RunnerLink
from appliance.ipc.connection import channel_pair
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, encode
from appliance.ipc.messages import (
    Cancel,
    FromRunner,
    Ready,
    Reset,
    ResetDone,
    RunnerDelta,
    RunnerEnd,
    RunnerRefused,
    RunnerStarted,
    Submit,
    ToRunner,
)
from tests.support.made_values import admission, chat_request, model, runner_facts, talk
from tests.support.scenario import run, turns, until
from tests.support.scripted_peer import ScriptedPeer

ADMISSION = admission(max_prompt_tokens=100, max_completion_tokens=10)
FACTS = runner_facts(model())


class Pair:
    """A link and the runner at its other end."""

    def __init__(self) -> None:
        ours, theirs = channel_pair()
        self.broken: list[str] = []
        self.link = RunnerLink(ours, FACTS, lambda _link, why: self.broken.append(why), queue_seconds=7)
        self.runner = ScriptedPeer(theirs, ToRunner)

    async def answer(self, request_id: str = "r-1") -> LinkAnswer:
        answer = self.link.answer(request_id, ADMISSION, "partition")
        submit = await self.runner.hear(Submit)
        assert submit.request_id == request_id
        return answer

    async def assert_given_up(self, *why: str) -> None:
        """The one consequence of every fault: reported once, used no more, and the other end hears it."""
        await until(lambda: bool(self.broken))
        await self.runner.gone.wait()
        assert len(self.broken) == 1
        assert any(word in self.broken[0] for word in why), self.broken
        assert self.link.broken
        with pytest.raises(Refused) as caught:
            self.link.answer("later", ADMISSION, "p")
        assert caught.value.reason is Reason.RUNNER_LOST


@contextlib.asynccontextmanager
async def pair(*, reset: bool = True) -> AsyncIterator[Pair]:
    one = Pair()
    if reset:
        resetting = asyncio.create_task(one.link.reset())
        one.runner.say(ResetDone(nonce=(await one.runner.hear(Reset)).nonce))
        await resetting
    try:
        yield one
    finally:
        one.link.give_up("the test is over")
        one.runner.leave()


def started(request_id: str = "r-1", prompt_tokens: int = 5) -> RunnerStarted:
    return RunnerStarted(request_id=request_id, prompt_tokens=prompt_tokens)


CALL = ToolCallDelta(index=0, id="c-1", name="f")
TOKEN = SampledToken(chosen=TokenLogprob(piece=b"a", logprob=-1.0))
_LONGEST = TokenLogprob(piece=b"a" * MAX_TOKEN_BYTES, logprob=-1.0)
LONG_TOKEN = SampledToken(chosen=_LONGEST, alternatives=(_LONGEST,) * 20)


def delta(request_id: str = "r-1", text: str = "a", tokens: int = 1, **parts: Any) -> RunnerDelta:
    return RunnerDelta(request_id=request_id, text=text, tokens=tokens, **parts)


def end(request_id: str = "r-1", completion_tokens: int = 1, **changes: Any) -> RunnerEnd:
    fields: dict[str, Any] = {"reason": "stop", "prompt_tokens": 5}
    return RunnerEnd(request_id=request_id, completion_tokens=completion_tokens, **(fields | changes))


def refused(request_id: str = "r-1") -> RunnerRefused:
    return RunnerRefused(request_id=request_id, reason="overloaded", detail="")


async def all_events(answer: LinkAnswer) -> list[Any]:
    events: list[Any] = []
    while not events or not isinstance(events[-1], End):
        events += await answer.events()
    return events


async def loss(answer: LinkAnswer) -> Refused:
    """What an answer ends with when its runner is lost. Events that came before are given out first."""
    with pytest.raises(Refused) as caught:
        while True:
            await answer.events()
    return caught.value


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(runner_link, "time", one)
    return one


# --- the ordinary ---------------------------------------------------------------------------------------------------


def test_submission_says_what_was_admitted_and_nothing_of_the_caller() -> None:
    async def scenario() -> None:
        async with pair() as one:
            one.link.answer("r-1", ADMISSION, "key")
            submit = await one.runner.hear(Submit)
            assert submit == Submit(
                request_id="r-1",
                prompt=ADMISSION.request.prompt,
                sampling=ADMISSION.request.sampling,
                max_prompt_tokens=100,
                max_completion_tokens=10,
                cache_partition="key",
                principal="key",
                queue_ms=7000,
                patient=True,
            )

    run(scenario)


def test_answers_do_not_mix() -> None:
    async def scenario() -> None:
        async with pair() as one:
            first, second = await one.answer("r-1"), await one.answer("r-2")
            for message in (
                started("r-2"),
                started("r-1"),
                delta("r-1", "one"),
                delta("r-2", "two"),
                end("r-2"),
                delta("r-1", " more"),
                end("r-1", 2),
            ):
                one.runner.say(message)
            texts = [
                "".join(event.text for event in await all_events(each) if isinstance(event, Delta))
                for each in (first, second)
            ]
            assert texts == ["one more", "two"]
            assert one.broken == []

    run(scenario)


def test_end_may_come_without_a_start() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(end(reason="error", detail="x", completion_tokens=0))
            assert [type(event) for event in await all_events(answer)] == [RunnerEnd]

    run(scenario)


def test_submission_carries_everything_that_was_asked() -> None:
    async def scenario() -> None:
        async with pair() as one:
            asked = chat_request(
                prompt=talk(tools=(Tool(name="f"),), tool_choice="required", forced_tool="f"),
                sampling=msgspec.structs.replace(Sampling(), logit_bias=((1, -1.0),), logprobs=3, mirostat=2),
                constraint=JsonObject(),
                choices=2,
                echo=True,
            )
            one.link.answer("r-1", admission(request=asked, max_completion_tokens=10), "key")
            submit = await one.runner.hear(Submit)
            assert (submit.prompt, submit.sampling, submit.constraint) == (
                asked.prompt,
                asked.sampling,
                asked.constraint,
            )
            assert (submit.choices, submit.echo, submit.weight) == (2, True, 1)

    run(scenario)


def test_events_come_through_with_all_their_parts() -> None:
    async def scenario() -> None:
        async with pair() as one:
            asked = chat_request(
                prompt=talk(tools=(Tool(name="f"),)),
                sampling=msgspec.structs.replace(Sampling(), logprobs=0),
                choices=2,
            )
            answer = one.link.answer("r-1", admission(request=asked, max_completion_tokens=20), "key")
            call = ToolCallDelta(index=0, id="c-1", name="f", arguments="{}")
            token = SampledToken(chosen=TokenLogprob(piece=b"\xc3", logprob=-1.0))
            said = [
                started(),
                delta(text="t", reasoning="r", tool_calls=(call,), logprobs=(token,), choice=1, tokens=2),
                end(completion_tokens=2, cached_tokens=4, choice_reasons=("stop", "tool-calls")),
            ]
            for message in said:
                one.runner.say(message)
            assert await all_events(answer) == said

    run(scenario)


@pytest.mark.parametrize(
    ("said", "seconds", "told"),
    [("overloaded", 7, 7), ("overloaded", 0, None), ("field-invalid", 7, None), ("prompt-too-long", 7, None)],
)
def test_only_waiting_for_a_place_helps(said: Any, seconds: int, told: int | None) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            refused = RunnerRefused(
                request_id="r-1", reason=said, retry_after_seconds=seconds, ahead=3 if seconds else None, detail="d"
            )
            one.runner.say(refused)
            refusal = await loss(answer)
            assert refusal.retry_after_seconds == told
            assert refusal.ahead == (3 if told else None)

    run(scenario)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("prompt-too-long", Reason.PROMPT_TOO_LONG),
        ("overloaded", Reason.OVERLOADED),
        ("field-invalid", Reason.FIELD_INVALID),
    ],
)
def test_runner_may_refuse_to_start(said: Any, reason: Reason) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(RunnerRefused(request_id="r-1", reason=said, detail="d"))
            assert (await loss(answer)).reason is reason
            assert one.broken == []
            await one.answer("r-2")

    run(scenario)


def test_answer_that_nobody_reads_is_stopped_and_the_rest_of_it_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_link, "MAX_UNREAD_BYTES", 20 * held_bytes(delta()))

    async def scenario() -> None:
        async with pair() as one:
            unread = one.link.answer("r-1", admission(max_completion_tokens=1000), "key")
            other = one.link.answer("r-2", admission(max_completion_tokens=1000), "key")
            for request_id in ("r-1", "r-2"):
                assert (await one.runner.hear(Submit)).request_id == request_id
                one.runner.say(started(request_id))
            for _ in range(100):
                one.runner.say(delta("r-1"))
                one.runner.say(delta("r-2"))
                while not any(isinstance(event, Delta) for event in await other.events()):
                    pass
            assert (await one.runner.hear(Cancel)).request_id == "r-1"
            one.runner.say(delta("r-1"))
            one.runner.say(end("r-1", completion_tokens=101, reason="cancelled"))
            one.runner.say(end("r-2", completion_tokens=100))
            assert isinstance((await all_events(other))[-1], RunnerEnd)
            begun, *deltas, last = await all_events(unread)
            assert isinstance(begun, RunnerStarted) and isinstance(last, RunnerEnd)
            assert len(deltas) == 20
            assert last.completion_tokens == 101, "its cost is known exactly"
            assert (unread.cut, other.cut) == (True, False)
            assert one.broken == []

    run(scenario)


@pytest.mark.parametrize(
    "parts",
    [
        {"text": " word"},
        {"text": "\U0001f600" * 2000},
        {"text": "\U0001f600", "reasoning": "why"},
        {"text": "a", "logprobs": (TOKEN,)},
        {"text": "a", "logprobs": (msgspec.structs.replace(TOKEN, alternatives=(TOKEN.chosen,) * 20),) * 8},
        {"text": "a", "logprobs": (LONG_TOKEN,) * 8},
        {"text": "", "tool_calls": (ToolCallDelta(index=0, arguments='{"a'),)},
        {"text": "", "tool_calls": (ToolCallDelta(index=0, id="i" * 64, name="\U0001f600" * 64),)},
    ],
    ids=["text", "wide", "reasoning", "drawn", "alternatives", "long pieces", "call", "named call"],
)
def test_no_event_takes_more_memory_than_is_reckoned(parts: dict[str, Any]) -> None:
    decoder: FrameDecoder[FromRunner] = FrameDecoder(FromRunner)
    data = encode(delta(**parts))
    tracemalloc.start()
    try:
        kept = [decoder.decode(data) for _ in range(200)]
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken <= sum(held_bytes(event) for event in kept if isinstance(event, Delta))


@pytest.mark.parametrize(
    "event",
    [Rows(width=1024, data=bytes(4096)), Ids(data=bytes(4096)), Written(text="\U0001f600" * 1024)],
    ids=lambda event: type(event).__name__,
)
def test_computation_is_reckoned_with_what_it_brings(event: Rows | Ids | Written) -> None:
    assert held_bytes(event) >= 4096


def test_reader_that_reads_now_and_then_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_link, "MAX_UNREAD_BYTES", 20 * held_bytes(delta()))

    async def scenario() -> None:
        async with pair() as one:
            answer = one.link.answer("r-1", admission(max_completion_tokens=1000), "key")
            one.runner.say(started())
            read: list[Any] = []
            for _ in range(10):
                for _ in range(15):
                    one.runner.say(delta())
                await turns()
                read += await answer.events()
            one.runner.say(end(completion_tokens=150))
            read += await all_events(answer)
            assert len(read) == 152
            assert not answer.cut

    run(scenario)


def test_patient_reader_is_woken_for_the_end_and_loses_nothing() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            reader = asyncio.create_task(answer.events(patient=True))
            for message in (started(), delta(text="a"), delta(text="b")):
                one.runner.say(message)
            await until(lambda: answer.first_delta_at is not None)
            await turns()
            assert not reader.done()
            one.runner.say(end(completion_tokens=2))
            assert [type(event) for event in await reader] == [RunnerStarted, RunnerDelta, RunnerDelta, RunnerEnd]

    run(scenario)


def test_patient_reader_is_woken_before_what_waits_takes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_link, "PATIENT_BYTES", 3 * held_bytes(delta()))

    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(started())
            for _ in range(4):
                one.runner.say(delta())
            assert len(await answer.events(patient=True)) == 5
            assert not answer.cut

    run(scenario)


def test_patient_reader_hears_what_there_is_and_then_of_the_loss() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            reader = asyncio.create_task(answer.events(patient=True))
            one.runner.say(started())
            await until(lambda: answer.started)
            one.runner.leave()
            assert [type(event) for event in await reader] == [RunnerStarted]
            assert (await loss(answer)).reason is Reason.RUNNER_LOST

    run(scenario)


def test_events_survive_a_reader_that_was_interrupted() -> None:
    """A ping interrupts the reader; what comes in the same turn of the loop must not be lost."""

    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await answer.events()
            reader = asyncio.create_task(answer.events())
            await turns(2)
            answer.put(Started(prompt_tokens=1))
            reader.cancel()  # after the events came, before the reader ran
            with contextlib.suppress(asyncio.CancelledError):
                assert await reader == []
            assert await answer.events() == [Started(prompt_tokens=1)]

    run(scenario)


# --- the protocol ---------------------------------------------------------------------------------------------------

FAULTS: list[tuple[str, list[Any], str]] = [
    ("delta before the start", [delta()], "out of order"),
    ("two starts", [started(), started()], "out of order"),
    ("start after text", [started(), delta(), started()], "out of order"),
    ("two ends", [started(), end(), end()], "not given"),
    ("text after the end", [started(), end(), delta()], "not given"),
    ("start of a foreign request", [started("r-9")], "not given"),
    ("text of a foreign request", [delta("r-9")], "not given"),
    ("end of a foreign request", [end("r-9")], "not given"),
    ("refusal of a foreign request", [refused("r-9")], "not given"),
    ("refusal after the start", [started(), refused()], "had started"),
    ("refusal after the end", [started(), end(), refused()], "not given"),
    ("hostile request id", [started("../../x\n" * 50)], "not a valid frame"),
    ("second reset", [ResetDone(nonce="x")], "unexpected ResetDone"),
    (
        "a word for the warden",
        [Ready(context_tokens=1, slots=1)],
        "unexpected Ready",
    ),
    ("another choice", [started(), delta(choice=1)], "not asked for"),
    ("a choice beyond all", [started(), delta(choice=16)], "not a valid frame"),
    ("a call without tools", [started(), delta(tool_calls=(CALL,))], "not offered"),
    ("probabilities unasked", [started(), delta(logprobs=(TOKEN,))], "not asked for"),
    ("reasons of choices that are not", [started(), end(choice_reasons=("stop", "stop"))], "number of reasons"),
    ("more from the cache than there is", [started(), end(cached_tokens=6)], "from the cache"),
    ("free reasoning", [started(), delta(reasoning="x" * 300, tokens=0), end(completion_tokens=1)], "fewer tokens"),
    ("prompt for nothing", [started(prompt_tokens=0)], "a prompt for nothing"),
    ("end of a prompt for nothing", [end(prompt_tokens=0, completion_tokens=0)], "a prompt for nothing"),
    ("end of another prompt", [started(prompt_tokens=90), end(prompt_tokens=5)], "another prompt"),
    ("empty delta", [started(), delta(text="", tokens=0)], "nothing in it"),
    ("empty delta with tokens", [started(), delta(text="", tokens=1)], "nothing in it"),
    ("a word per letter", [started(), *[delta(text="a", tokens=0)] * 15], "more deltas than tokens"),
    ("free text", [started(), delta(text="x" * 300, tokens=0), end(completion_tokens=1)], "fewer tokens"),
    ("text that costs less than was told", [started(), delta(tokens=3), end(completion_tokens=2)], "fewer tokens"),
    ("wide text", [started(), *[delta(text="\U0001f600" * 200, tokens=0)] * 4], "more than was paid for"),
    ("an end as if it had been told to", [started(), delta(), end(reason="cancelled")], "was not told to"),
    ("an end as if at once", [end(reason="cancelled", completion_tokens=0)], "was not told to"),
    ("detail that breaks lines", [end(reason="error", detail="x\ny")], "not a valid frame"),
    ("longer prompt than admitted", [started(prompt_tokens=101)], "more than was paid for"),
    ("one delta of too many tokens", [started(), delta(tokens=11)], "more than was paid for"),
    ("deltas of too many tokens", [started(), *[delta(tokens=1)] * 11], "more than was paid for"),
    ("an end of too many tokens", [started(), end(completion_tokens=11)], "more than was paid for"),
    ("an end with a longer prompt", [end(prompt_tokens=101)], "more than was paid for"),
    (
        "text without tokens, without end",
        [started(), *[delta(text="x" * 1000, tokens=0)] * (10 * MAX_TOKEN_BYTES // 1000 + 1)],
        "more than was paid for",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "why"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_runner_that_breaks_the_protocol_is_given_up(messages: list[Any], why: str) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer, bystander = await one.answer("r-1"), await one.answer("r-2")
            for message in messages:
                one.runner.say(message)
            await one.assert_given_up(why)
            assert (await loss(bystander)).reason is Reason.RUNNER_LOST
            if not any(isinstance(message, RunnerEnd) for message in messages[:-1]):
                assert (await loss(answer)).reason is Reason.RUNNER_LOST

    run(scenario)


def test_sum_of_prompt_and_answer_is_not_above_the_worst_case() -> None:
    """Each is within its own bound, and together they would not fit the context that was paid for."""

    async def scenario() -> None:
        async with pair() as one:
            small = admission(context_tokens=105, max_prompt_tokens=100, max_completion_tokens=10)
            assert small.worst_case_tokens == 105
            answer = one.link.answer("r-1", small, "p")
            one.runner.say(started(prompt_tokens=100))
            one.runner.say(delta(text="x", tokens=5))
            one.runner.say(delta(text="x", tokens=1))
            await one.assert_given_up("more than was paid for")
            assert (await loss(answer)).reason is Reason.RUNNER_LOST

    run(scenario)


def test_flood_of_words_does_not_fill_the_gateway() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(started())
            said = 0
            with contextlib.suppress(ConnectionError):
                while not one.link.broken and said < 100_000:
                    one.runner.say(delta(text="a", tokens=0))
                    said += 1
                    await asyncio.sleep(0)
            await one.assert_given_up("more deltas than tokens")
            assert len(await answer.events()) <= 1 + 10 + DELTAS_WITHOUT_TOKEN

    run(scenario)


def test_characters_that_stand_for_broken_bytes_are_not_a_fault() -> None:
    """An honest runner writes U+FFFD, three bytes, for each byte that is no character."""

    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(started())
            one.runner.say(delta(text="\ufffd" * MAX_TOKEN_BYTES, tokens=1))
            one.runner.say(end(completion_tokens=1))
            await all_events(answer)
            assert one.broken == []

    run(scenario)


def test_text_that_was_held_back_until_the_end_is_no_fault() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(started())
            for _ in range(10):
                one.runner.say(delta(text="a", tokens=1))
            one.runner.say(delta(text="held", tokens=0))
            one.runner.say(end(completion_tokens=10))
            assert len(await all_events(answer)) == 13
            assert one.broken == []

    run(scenario)


def test_idle_link_is_told_from_one_that_owes_an_answer(clock: Clock) -> None:
    async def scenario() -> None:
        async with pair() as one:
            clock.now += 100
            assert one.link.idle_seconds == 100
            one.link.leased()
            assert one.link.idle_seconds == 0
            await one.answer()
            clock.now += 100
            assert one.link.idle_seconds == 0
            one.runner.say(started())
            one.runner.say(end(completion_tokens=0))
            await until(lambda: not one.link._answers)
            clock.now += 7
            assert one.link.idle_seconds == 7
            one.link.retire()
            await one.runner.gone.wait()
            assert one.broken == []

    run(scenario)


def test_answer_of_exactly_what_was_paid_for_is_no_fault() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            text = "x" * (10 * MAX_TOKEN_BYTES)
            for message in (
                started(prompt_tokens=100),
                delta(text=text, tokens=10),
                end(prompt_tokens=100, completion_tokens=10),
            ):
                one.runner.say(message)
            assert len(await all_events(answer)) == 3
            assert one.broken == []

    run(scenario)


_WORDS = st.lists(
    st.sampled_from(
        [
            started(),
            started(prompt_tokens=100),
            delta(),
            delta(text="x" * 3000, tokens=0),
            delta(reasoning="why", tokens=2),
            delta(choice=1),
            delta(tool_calls=(CALL,)),
            delta(text="", tool_calls=(ToolCallDelta(index=0, arguments="{}"),)),
            delta(logprobs=(TOKEN,)),
            delta(text="", logprobs=(TOKEN, TOKEN), tokens=2),
            end(completion_tokens=4),
            end(completion_tokens=10, choice_reasons=("stop", "length")),
            end(reason="tool-calls", completion_tokens=10, choice_reasons=("tool-calls", "stop"), cached_tokens=5),
            end(reason="error", detail="x", completion_tokens=0),
            refused(),
            delta("r-2", choice=1),
        ]
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(_WORDS)
def test_whatever_a_runner_says_is_bounded_or_its_last_word(words: list[Any]) -> None:
    """Each message is well-formed, so that only their order and sum can be wrong."""

    async def scenario() -> None:
        async with pair() as one:
            request = chat_request(
                prompt=talk(tools=(Tool(name="f"),)),
                sampling=msgspec.structs.replace(Sampling(), logprobs=0),
                choices=2,
            )
            paid = admission(request=request, max_prompt_tokens=99, max_completion_tokens=20)
            answers = [one.link.answer(f"r-{number}", paid, "key") for number in (1, 2)]
            with contextlib.suppress(ConnectionError):
                for word in words:
                    one.runner.say(word)
            one.runner.leave()
            for answer in answers:
                heard: list[Any] = []
                with pytest.raises(Refused) as caught:
                    while not (heard and isinstance(heard[-1], End)):
                        heard += await answer.events()
                    raise Refused(Reason.RUNNER_LOST)  # a whole answer is as good an ending
                assert caught.value.reason in {Reason.RUNNER_LOST, Reason.OVERLOADED}
                pieces = [event for event in heard if isinstance(event, Delta)]
                assert sum(piece.tokens for piece in pieces) <= 20
                assert all(isinstance(event, Delta | End) for event in heard[1:])
                assert sum(len(piece.logprobs) for piece in pieces) <= sum(piece.tokens for piece in pieces)
            await until(lambda: len(one.broken) == 1)

    run(scenario)


@pytest.mark.parametrize(
    "junk",
    [
        b"\xc1",
        b"junk",
        b"\x80",
        encode(Reset(nonce="x")),
        encode(started())[:-1],
        b"\x91" * 50_000,
        b"\x00" * (MAX_FRAME_BYTES + 1),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_frame_that_is_none_of_the_runners_ends_the_channel(junk: bytes) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            await asyncio.get_running_loop().sock_sendall(one.runner.sock, junk)
            await one.assert_given_up("not a valid frame", "cut short")
            assert (await loss(answer)).reason is Reason.RUNNER_LOST

    run(scenario)


@pytest.mark.parametrize("message", [started(), ResetDone(nonce="x")], ids=lambda message: type(message).__name__)
def test_descriptor_from_a_runner_is_closed_and_the_runner_given_up(message: Any) -> None:
    """Each would stay open in the gateway until it has no more: a leak that the runner steers."""

    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            reader, writer = os.pipe()
            one.runner.say(message, [reader])
            os.close(reader)
            await one.assert_given_up("a descriptor")
            assert (await loss(answer)).reason is Reason.RUNNER_LOST
            with pytest.raises(BrokenPipeError):
                os.write(writer, b"x")  # nobody holds the other end any more
            os.close(writer)

    run(scenario)


def test_events_before_the_break_are_given_out_first() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(started())
            one.runner.say(delta(text="last"))
            one.runner.leave()
            await until(lambda: bool(one.broken))
            assert [type(event) for event in await answer.events()] == [RunnerStarted, RunnerDelta]
            assert (await loss(answer)).reason is Reason.RUNNER_LOST
            assert (await loss(answer)).reason is Reason.RUNNER_LOST  # and every time it is asked

    run(scenario)


def test_killed_runner_ends_every_answer() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answers = [await one.answer(f"r-{number}") for number in range(5)]
            waiting = [asyncio.create_task(loss(answer)) for answer in answers]
            one.runner.leave()
            assert {refused.reason for refused in await asyncio.gather(*waiting)} == {Reason.RUNNER_LOST}
            await one.assert_given_up("the peer closed")

    run(scenario)


# --- silence --------------------------------------------------------------------------------------------------------


def test_silent_runner_is_given_up_only_while_it_owes_an_answer(clock: Clock) -> None:
    async def scenario() -> None:
        async with pair() as one:
            clock.now += 1000
            one.link.check_silence(60)
            assert one.broken == []
            answer = await one.answer()  # the silence before does not count
            clock.now += 60
            one.link.check_silence(60)
            assert one.broken == []
            clock.now += 1
            one.link.check_silence(60)
            await one.assert_given_up("silent")
            assert (await loss(answer)).reason is Reason.RUNNER_LOST

    run(scenario)


def test_any_word_ends_the_silence(clock: Clock) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            clock.now += 50
            one.runner.say(started())
            await answer.events()
            clock.now += 50
            one.link.check_silence(60)
            assert one.broken == []

    run(scenario)


def test_runner_that_goes_on_after_a_cancel_is_given_up(clock: Clock) -> None:
    """It would hold its reader, and a slot, for ever: words alone are no sign of health."""

    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(started())
            await answer.events()
            answer.cancel()
            clock.now += 40
            answer.cancel()  # the first one counts
            for _ in range(2):
                clock.now += 10
                one.runner.say(delta(tokens=0))
                await answer.events()
                one.link.check_silence(60)
            assert one.broken == []
            clock.now += 1
            one.link.check_silence(60)
            await one.assert_given_up("did not stop")

    run(scenario)


def test_runner_that_stopped_when_told_is_kept(clock: Clock) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            answer.cancel()
            assert (await one.runner.hear(Cancel)).request_id == "r-1"
            one.runner.say(started())
            one.runner.say(end(reason="cancelled"))
            assert (await all_events(answer))[-1].reason == "cancelled"
            clock.now += 1000
            one.link.check_silence(60)
            assert one.broken == []

    run(scenario)


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_cancel_after_the_end_or_the_break_says_nothing() -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(end())
            await all_events(answer)
            answer.cancel()
            other = await one.answer("r-2")
            one.runner.leave()
            await until(lambda: bool(one.broken))
            other.cancel()
            assert one.runner.heard.empty()

    run(scenario)


def test_prompt_larger_than_a_frame_costs_only_its_own_request() -> None:
    async def scenario() -> None:
        async with pair() as one:
            huge = admission(request=chat_request("x" * MAX_FRAME_BYTES))
            with pytest.raises(Refused) as caught:
                one.link.answer("r-1", huge, "p")
            assert caught.value.reason is Reason.BODY_TOO_LARGE
            assert one.broken == []
            await one.answer("r-1")  # the id is free again

    run(scenario)


# --- the reset ------------------------------------------------------------------------------------------------------


def test_what_was_said_to_a_former_gateway_reaches_nobody() -> None:
    async def scenario() -> None:
        async with pair(reset=False) as one:
            for stale in (
                started("r-1"),
                delta("r-1", "of another tenant"),
                end("r-1"),
                ResetDone(nonce="stale"),
                delta("r-7"),
            ):
                one.runner.say(stale)
            resetting = asyncio.create_task(one.link.reset())
            reset = await one.runner.hear(Reset)
            one.runner.say(delta("r-1", "of another tenant"))
            await turns()
            assert not resetting.done()
            one.runner.say(ResetDone(nonce=reset.nonce))
            await resetting
            answer = await one.answer("r-1")
            one.runner.say(started())
            one.runner.say(end(completion_tokens=0))
            assert [type(event) for event in await all_events(answer)] == [RunnerStarted, RunnerEnd]
            assert one.broken == []

    run(scenario)


def test_every_link_has_a_nonce_of_its_own() -> None:
    async def scenario() -> None:
        nonces = set()
        for _ in range(3):
            async with pair(reset=False) as one:
                resetting = asyncio.create_task(one.link.reset())
                nonces.add((await one.runner.hear(Reset)).nonce)
                resetting.cancel()
                await asyncio.wait([resetting])
        assert len(nonces) == 3

    run(scenario)


async def _says_nothing(_one: Pair) -> None:
    """And the reset's time runs out."""


async def _leaves(one: Pair) -> None:
    one.runner.leave()


@pytest.mark.parametrize("behaviour", [_says_nothing, _leaves])
def test_runner_that_does_not_answer_the_reset_is_unavailable(
    behaviour: Callable[[Pair], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_link, "RESET_SECONDS", 0.05)

    async def scenario() -> None:
        async with pair(reset=False) as one:
            resetting = asyncio.create_task(one.link.reset())
            await one.runner.hear(Reset)
            await behaviour(one)
            with pytest.raises(Refused) as caught:
                await resetting
            assert caught.value.reason is Reason.RUNNER_UNAVAILABLE
            await one.assert_given_up("no answer to the reset", "the peer closed")

    run(scenario)


def test_abandoned_reset_closes_the_channel() -> None:
    """A link that nobody holds would go on reading, and take the words meant for the next link of this runner."""

    async def scenario() -> None:
        async with pair(reset=False) as one:
            resetting = asyncio.create_task(one.link.reset())
            await one.runner.hear(Reset)
            resetting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await resetting
            await one.assert_given_up("abandoned")

    run(scenario)


def test_link_takes_its_socket_with_it() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link = RunnerLink(ours, FACTS, lambda _link, _why: None, queue_seconds=7)
        link.give_up("x")
        link.give_up("y")
        assert ours.fileno() == -1
        theirs.close()

    run(scenario)
