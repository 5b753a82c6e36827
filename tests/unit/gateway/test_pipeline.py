"""Nothing is answered before it is allowed, paid for and recorded, and nothing stays open, whatever goes wrong."""

import asyncio
from typing import Any

import msgspec
import pytest

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import AnswerEvent, Asked, Obligations, Reservation, TextPrompt
from appliance.gateway.pipeline import Exchange
from tests.fakes.models import STARTED, delta, end
from tests.fakes.policy import ALLOWED, DENIED
from tests.fakes.world import NOW, World
from tests.support import made_values
from tests.support.made_values import ALICE, chat_request
from tests.support.scenario import run, turns, until

ORDER = ["catalogue", "policy", "reserve", "lease", "record opened", "submit", "events"]
AFTER = ["settle", "record closed"]


async def answered(world: World, exchange: Exchange | None = None, request: Asked | None = None) -> list[AnswerEvent]:
    """Reads an answer to its end, as a surface does."""
    read: list[AnswerEvent] = []
    async with world.pipeline.answer(exchange or world.exchange(), request or chat_request()) as answer:
        while answer.meter.end is None:
            read += await answer.events()
        answer.require_whole()
    return read


async def refusal(world: World, exchange: Exchange | None = None, request: Asked | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        await answered(world, exchange, request)
    return caught.value


def assert_nothing_is_left(world: World, *, opened: bool, spent: int = 0) -> None:
    """The one sentence that every ending must make true."""
    assert world.budget.left == world.whole - spent
    assert world.budget.held == {}
    assert len(world.audit.closed) == len(world.audit.opened) == int(opened)
    assert [request_id for request_id, _spent in world.budget.settled] == world.budget.reserved
    if opened:
        assert world.steps.seen.index("record opened") < world.steps.seen.index("record closed")
        assert world.budget.settled == [("r-1", spent)]


# --- the order ------------------------------------------------------------------------------------------------------


def test_stages_come_in_their_order() -> None:
    async def scenario() -> None:
        world = World()
        assert await answered(world) == [STARTED, delta("Hel"), delta("lo"), end()]
        assert world.steps.seen == [*ORDER, "events", "events", "events", *AFTER]
        assert_nothing_is_left(world, opened=True, spent=11)

    run(scenario)


def test_records_tell_what_was_decided_paid_and_answered() -> None:
    async def scenario() -> None:
        world = World()
        await answered(world)
        [opened], [closed] = world.audit.opened, world.audit.closed
        assert (opened.request_id, opened.actor.subject, opened.model.name) == ("r-1", "alice", "demo")
        assert opened.actor.token_sha256 == ALICE.token_sha256
        assert opened.decision.allow
        assert opened.policy_input == world.policy.inputs[0]
        assert opened.policy_input["time"]["unix_seconds"] == NOW
        assert opened.runner.model_digest == opened.model.digest
        assert (closed.outcome, closed.prompt_tokens, closed.completion_tokens) == ("completed", 9, 2)
        assert closed.returned_tokens == opened.reserved_tokens - 11
        assert closed.first_token_ms is not None

    run(scenario)


def test_cache_partition_is_the_principals_and_never_the_callers() -> None:
    async def scenario() -> None:
        world = World()
        await answered(world)
        [(request_id, admission, partition)] = world.models.submitted
        assert (request_id, partition) == ("r-1", ALICE.key)
        assert admission.request == chat_request()

    run(scenario)


# --- each stage fails -----------------------------------------------------------------------------------------------

FAILURES = [
    ("catalogue", Fault("the warden has not answered yet"), Reason.RUNNER_UNAVAILABLE),
    ("policy", Fault("out of fuel"), Reason.POLICY_UNAVAILABLE),
    ("reserve", Refused(Reason.BUDGET_EXHAUSTED, retry_after_seconds=9), Reason.BUDGET_EXHAUSTED),
    ("reserve", Refused(Reason.BUDGET_TOO_SMALL), Reason.BUDGET_TOO_SMALL),
    ("reserve", Fault("the store is down"), Fault),
    ("lease", Refused(Reason.MODEL_NOT_VERIFIED), Reason.MODEL_NOT_VERIFIED),
    ("lease", Refused(Reason.RUNNER_UNAVAILABLE), Reason.RUNNER_UNAVAILABLE),
    ("lease", Fault("the warden is away"), Fault),
    ("lease", RuntimeError("a mistake of ours"), RuntimeError),
    ("record opened", Refused(Reason.AUDIT_UNAVAILABLE), Reason.AUDIT_UNAVAILABLE),
]


@pytest.mark.parametrize(("stage", "failure", "seen"), FAILURES, ids=lambda value: str(value)[:40])
def test_failed_stage_ends_the_request_there_with_the_budget_whole(stage: str, failure: Exception, seen: Any) -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail[stage] = failure
        with pytest.raises(Exception) as caught:
            await answered(world)
        if isinstance(seen, Reason):
            assert isinstance(caught.value, Refused)
            assert caught.value.reason is seen
        else:
            assert isinstance(caught.value, seen)
        reached = ORDER[: ORDER.index(stage) + 1]
        assert world.steps.seen == [*reached, *(["settle"] if ORDER.index(stage) > ORDER.index("reserve") else [])]
        assert world.audit.records == []
        assert_nothing_is_left(world, opened=False)

    run(scenario)


@pytest.mark.parametrize("raw_answer", [None, {}, True, "allow", ALLOWED | {"allow": "true"}, ALLOWED | {"more": 1}])
def test_nothing_is_reserved_or_leased_without_a_plain_yes(raw_answer: Any) -> None:
    async def scenario() -> None:
        world = World()
        world.policy.raw_answer = raw_answer
        exchange = world.exchange()
        refused = await refusal(world, exchange)
        assert (refused.reason, refused.retry_after_seconds) == (Reason.POLICY_UNAVAILABLE, 1)
        assert world.steps.seen == ["catalogue", "policy"]
        assert exchange.decision is not None
        assert not exchange.decision.allow
        assert_nothing_is_left(world, opened=False)

    run(scenario)


def test_denial_tells_nobody_that_a_model_exists_who_may_not_see_it() -> None:
    async def scenario() -> None:
        world = World()
        world.policy.raw_answer = DENIED
        exchange = world.exchange()
        denied = await refusal(world, exchange)
        absent = await refusal(world, request=chat_request(model="absent"))
        assert (denied.reason, denied.param) == (absent.reason, absent.param) == (Reason.MODEL_NOT_FOUND, "model")
        assert [asked["action"]["operation"] for asked in world.policy.inputs] == ["chat", "list"]
        assert exchange.policy_input == world.policy.inputs[0]
        assert_nothing_is_left(world, opened=False)

    run(scenario)


def test_no_refusal_of_what_was_asked_tells_that_a_hidden_model_exists() -> None:
    async def scenario() -> None:
        world = World()
        long = chat_request(prompt=TextPrompt(text="x" * 1_000_000))
        assert (await refusal(world, request=long)).reason is Reason.PROMPT_TOO_LONG
        assert world.policy.inputs[0]["action"]["operation"] == "list"
        world.policy.raw_answer = DENIED
        exchange = world.exchange()
        refused = await refusal(world, exchange, request=long)
        assert (refused.reason, refused.detail) == (Reason.MODEL_NOT_FOUND, "hidden by policy: no-group-permits-model")
        assert exchange.decision is not None
        assert_nothing_is_left(world, opened=False)

    run(scenario)


def test_denial_of_a_model_that_one_may_see_is_a_denial() -> None:
    async def scenario() -> None:
        world = World()

        def answered(policy_input: dict[str, Any]) -> Any:
            return ALLOWED if policy_input["action"]["operation"] == "list" else DENIED

        world.policy.answer_to = answered
        assert (await refusal(world)).reason is Reason.POLICY_DENIED
        assert_nothing_is_left(world, opened=False)

    run(scenario)


@pytest.mark.parametrize("name", ["secret", "absent"])
def test_model_outside_the_token_is_absent(name: str) -> None:
    async def scenario() -> None:
        world = World()
        refused = await refusal(world, request=chat_request(model=name))
        assert (refused.reason, refused.param) == (Reason.MODEL_NOT_FOUND, "model")
        assert world.steps.seen == ["catalogue"]

    run(scenario)


def test_obligation_caps_what_is_reserved_and_what_the_runner_may_say() -> None:
    async def scenario() -> None:
        world = World()
        world.policy.raw_answer = ALLOWED | {"obligations": {"max_tokens": 5}}
        await answered(world, request=chat_request(max_tokens=1000))
        [(_id, admission, _partition)] = world.models.submitted
        assert admission.max_completion_tokens == 5
        assert world.audit.opened[0].reserved_tokens == admission.max_prompt_tokens + 5
        assert world.audit.opened[0].decision.obligations == Obligations(max_tokens=5)

    run(scenario)


def test_model_that_is_sealed_worse_than_policy_demands_says_nothing() -> None:
    async def scenario() -> None:
        world = World()
        world.policy.raw_answer = ALLOWED | {"obligations": {"minimum_seal": "sealed-memfd"}}
        await answered(world)
        weak = World()
        weak.policy.raw_answer = world.policy.raw_answer
        weak.models.seal_mode = "verity"
        refused = await refusal(weak)
        assert refused.reason is Reason.POLICY_DENIED
        assert "policy demands sealed-memfd" in refused.detail
        assert_nothing_is_left(weak, opened=False)

    run(scenario)


def test_choices_that_policy_leaves_no_token_are_denied_before_anything_is_reserved() -> None:
    async def scenario() -> None:
        world = World()
        world.policy.raw_answer = ALLOWED | {"obligations": {"max_tokens": 3}}
        assert (await refusal(world, request=chat_request(choices=4))).reason is Reason.POLICY_DENIED
        assert world.steps.seen == ["catalogue", "policy"]
        assert_nothing_is_left(world, opened=False)

    run(scenario)


def test_echoed_prompt_is_paid_for_once() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED, delta("x" * 500, tokens=0), end("length", 1)]]
        await answered(world, request=chat_request(prompt=TextPrompt(text="x" * 500), echo=True))
        assert world.budget.settled == [("r-1", 10)]

    run(scenario)


# --- the list of models ---------------------------------------------------------------------------------------------


def test_only_models_of_token_and_policy_are_visible() -> None:
    async def scenario() -> None:
        world = World()
        assert [model.name for model in await world.pipeline.visible_models(world.exchange())] == ["demo"]
        assert [asked["model"]["name"] for asked in world.policy.inputs] == ["demo"]
        assert world.policy.inputs[0]["action"]["operation"] == "list"
        world.policy.raw_answer = DENIED
        assert await world.pipeline.visible_models(world.exchange()) == []
        for raw_answer, fault in ((None, None), (ALLOWED, Fault("down"))):
            world.policy.raw_answer = raw_answer
            if fault is not None:
                world.steps.fail["policy"] = fault
            with pytest.raises(Refused) as caught:
                await world.pipeline.visible_models(world.exchange())
            assert caught.value.reason is Reason.POLICY_UNAVAILABLE

    run(scenario)


def test_forbidden_model_looks_absent_and_its_record_says_who_denied_it() -> None:
    async def scenario() -> None:
        world = World()
        assert (await world.pipeline.visible_model(world.exchange(), "demo")).name == "demo"
        world.policy.raw_answer = DENIED
        told = []
        for name in ("demo", "absent", "secret"):
            exchange = world.exchange()
            with pytest.raises(Refused) as caught:
                await world.pipeline.visible_model(exchange, name)
            told.append((caught.value.reason, caught.value.param))
            await world.pipeline.record_refusal(exchange, caught.value)
        assert told == [(Reason.MODEL_NOT_FOUND, "model")] * 3
        forbidden, absent, unnamed = world.audit.refused
        assert forbidden.decision is not None
        assert not forbidden.decision.allow
        assert forbidden.policy_input == world.policy.inputs[-1]
        assert "no-group-permits-model" in forbidden.detail
        assert (absent.decision, unnamed.decision) == (None, None)
        assert [record.model_name for record in world.audit.refused] == ["demo", "absent", "secret"]

    run(scenario)


# --- the answer breaks ----------------------------------------------------------------------------------------------

LOST = Refused(Reason.RUNNER_LOST, "the peer closed")
PROMPT_BOUND = made_values.admission().max_prompt_tokens
ENDINGS: list[tuple[str, list[Any], Reason | None, str, int]] = [
    ("whole", [[STARTED], [delta("a"), end("stop", 1)]], None, "completed", 10),
    ("all at once", [[STARTED, delta("a"), end("length", 1)]], None, "truncated", 10),
    ("tokens without text", [[STARTED], [end("length", 30)]], None, "truncated", 39),
    ("lost before it began", [LOST], Reason.RUNNER_LOST, "runner-lost", PROMPT_BOUND),
    ("lost in the middle", [[STARTED], [delta("a", 5)], LOST], Reason.RUNNER_LOST, "runner-lost", 14),
    ("error", [[STARTED], [end("error", 3, "NaN")]], Reason.RUNNER_ERROR, "runner-error", 12),
    ("refused by the runner", [Refused(Reason.PROMPT_TOO_LONG)], Reason.PROMPT_TOO_LONG, "refused", 0),
    ("overloaded", [Refused(Reason.OVERLOADED)], Reason.OVERLOADED, "refused", 0),
    ("cancelled by the runner", [[STARTED], [end("cancelled", 3)]], None, "cancelled", 12),
]


@pytest.mark.parametrize(
    ("script", "reason", "outcome", "spent"), [row[1:] for row in ENDINGS], ids=[row[0] for row in ENDINGS]
)
def test_every_ending_is_charged_and_closed_once(
    script: list[Any], reason: Reason | None, outcome: str, spent: int
) -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = script
        if reason is None:
            await answered(world)
        else:
            assert (await refusal(world)).reason is reason
        assert world.audit.closed[0].outcome == outcome
        assert_nothing_is_left(world, opened=True, spent=spent)
        assert world.models.answers[0].cancels == int(isinstance(script[-1], Refused))

    run(scenario)


def test_record_says_what_settling_gave_back() -> None:
    async def scenario() -> None:
        world = World()

        async def expired(reservation: Reservation, spent_tokens: int) -> int:
            await settle(reservation, reservation.tokens)
            return 0

        settle, world.budget.settle = world.budget.settle, expired  # type: ignore[method-assign]
        await answered(world)
        assert world.audit.closed[0].returned_tokens == 0

    run(scenario)


def test_settling_that_fails_still_closes_the_record() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail["settle"] = Fault("the store is down")
        with pytest.raises(Fault):
            await answered(world)
        [closed], [opened] = world.audit.closed, world.audit.opened
        assert (closed.outcome, closed.returned_tokens) == ("completed", opened.reserved_tokens - 11)

    run(scenario)


def test_runner_that_breaks_at_the_submission_is_closed_too() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail["submit"] = Refused(Reason.RUNNER_LOST, "the connection is closed")
        assert (await refusal(world)).reason is Reason.RUNNER_LOST
        assert world.audit.closed[0].outcome == "runner-lost"
        assert_nothing_is_left(world, opened=True)

    run(scenario)


def test_runner_that_claims_more_than_was_reserved_is_not_believed() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], [end("stop", 10**9)]]
        await answered(world)
        reserved = world.audit.opened[0].reserved_tokens
        assert world.budget.left == world.whole - reserved
        assert world.audit.closed[0].returned_tokens == 0

    run(scenario)


def test_surface_that_fails_is_closed_as_our_error() -> None:
    async def scenario() -> None:
        world = World()
        with pytest.raises(ZeroDivisionError):
            async with world.pipeline.answer(world.exchange(), chat_request()) as answer:
                await answer.events()
                raise ZeroDivisionError
        assert world.audit.closed[0].outcome == "gateway-error"
        assert world.models.answers[0].cancels == 1
        assert_nothing_is_left(world, opened=True, spent=9)

    run(scenario)


def test_surface_that_stops_reading_cancels_the_runner() -> None:
    async def scenario() -> None:
        world = World()
        async with world.pipeline.answer(world.exchange(), chat_request()) as answer:
            await answer.events()
        assert world.audit.closed[0].outcome == "cancelled"
        assert world.models.answers[0].cancels == 1
        assert_nothing_is_left(world, opened=True, spent=9)

    run(scenario)


def test_client_that_left_is_charged_for_the_runners_last_word() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], None]
        async with world.pipeline.answer(world.exchange(), chat_request()) as answer:
            await answer.events()
            answer.cancel()
            answer.cancel()
            while answer.meter.end is None:
                await answer.events()
            answer.require_whole()  # the caller left by itself: no refusal
        assert world.audit.closed[0].outcome == "cancelled"
        assert_nothing_is_left(world, opened=True, spent=11)

    run(scenario)


def test_answer_that_takes_too_long_is_stopped_and_refused() -> None:
    async def scenario() -> None:
        world = World(request_timeout_seconds=0.01)
        world.models.script = [[STARTED], None]
        assert (await refusal(world)).reason is Reason.REQUEST_TIMEOUT
        assert world.audit.closed[0].outcome == "cancelled"
        assert "request-timeout" in world.audit.closed[0].detail
        assert_nothing_is_left(world, opened=True, spent=11)

    run(scenario)


def test_time_limit_has_no_effect_after_the_end() -> None:
    async def scenario() -> None:
        world = World(request_timeout_seconds=0.0)
        world.models.script = [[STARTED, end()]]
        async with world.pipeline.answer(world.exchange(), chat_request()) as answer:
            await answer.events()
            await turns()
            answer.require_whole()
        assert world.models.answers[0].cancels <= 1
        assert_nothing_is_left(world, opened=True, spent=11)

    run(scenario)


def test_time_limit_of_an_answer_that_is_over_touches_nothing() -> None:
    async def scenario() -> None:
        world = World(request_timeout_seconds=0.01)
        async with world.pipeline.answer(world.exchange(), chat_request()):
            pass
        await asyncio.sleep(0.03)  # past the limit: there is no event to wait for
        assert world.models.answers[0].cancels == 1

    run(scenario)


def test_answer_whose_token_is_revoked_is_stopped_and_no_other() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], None]
        revoked: set[str] = set()
        mine = world.exchange(has_ended=lambda: "mine" in revoked)
        other = world.exchange(request_id="r-2", has_ended=lambda: False)
        reading = [asyncio.create_task(refusal(world, mine)), asyncio.create_task(answered(world, other))]
        await until(lambda: world.steps.seen.count("events") == 4)
        world.pipeline.end_revoked()
        assert [answer.cancels for answer in world.models.answers] == [0, 0]
        revoked.add("mine")
        for _ in range(3):
            world.pipeline.end_revoked()
        refused = await reading[0]
        assert refused.reason is Reason.TOKEN_INVALID  # type: ignore[union-attr]
        assert [answer.cancels for answer in world.models.answers] == [1, 0]
        assert [(closed.request_id, closed.outcome) for closed in world.audit.closed] == [("r-1", "cancelled")]
        assert "token-invalid" in world.audit.closed[0].detail
        reading[1].cancel()
        await asyncio.wait(reading)
        world.pipeline.end_revoked()
        assert len(world.models.answers) == len(world.audit.closed) == 2

    run(scenario)


def test_detail_of_a_runner_is_cut_before_it_is_recorded() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [[STARTED], [end("error", 0, "x" * 2000)]]
        await refusal(world)
        assert len(world.audit.closed[0].detail) == 500

    run(scenario)


# --- cancellation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [*ORDER[:-2], "events", "settle"])
def test_cancelled_task_leaves_nothing_behind(step: str) -> None:
    async def scenario() -> None:
        world = World()
        world.steps.hold = step
        task = asyncio.create_task(answered(world))
        await world.steps.held.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        opened = step in {"events", "settle"}
        assert_nothing_is_left(world, opened=opened, spent={"settle": 11, "events": PROMPT_BOUND}.get(step, 0))
        if step == "events":
            assert (world.audit.closed[0].outcome, world.models.answers[0].cancels) == ("cancelled", 1)

    run(scenario)


def test_task_cancelled_at_any_turn_of_the_loop_leaves_nothing_behind() -> None:
    """The same, without knowing where the steps are: cancel after one turn, after two, and so on to the end."""

    async def scenario() -> None:
        for number in range(200):
            world = World()
            task = asyncio.create_task(answered(world))
            await turns(number)
            finished = task.done()
            task.cancel()
            await asyncio.wait([task])
            assert world.budget.held == {}
            assert len(world.audit.closed) == len(world.audit.opened)
            assert [request_id for request_id, _spent in world.budget.settled] == world.budget.reserved
            if finished:
                return
        pytest.fail("the answer never came to its end")

    run(scenario)


def test_two_cancellations_settle_once() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.hold = "events"
        task = asyncio.create_task(answered(world))
        await world.steps.held.wait()
        world.steps.hold = "settle"
        world.steps.held.clear()
        task.cancel()
        await world.steps.held.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_nothing_is_left(world, opened=True, spent=PROMPT_BOUND)

    run(scenario)


def test_parallel_requests_never_hold_more_than_the_budget() -> None:
    async def scenario() -> None:
        world = World()
        world.budget.left = world.whole = 1000
        least = []
        world.steps.watch = lambda _name: least.append(world.budget.left)

        async def one(number: int) -> str:
            try:
                await answered(world, world.exchange(request_id=f"r-{number}"))
            except Refused as refused:
                return refused.reason.code
            return "answered"

        outcomes = await asyncio.gather(*(one(number) for number in range(50)))
        assert set(outcomes) == {"answered", "budget-exhausted"}
        assert min(least) >= 0
        assert world.budget.left == world.whole - 11 * outcomes.count("answered")
        assert len(world.audit.closed) == len(world.audit.opened) == outcomes.count("answered")

    run(scenario)


# --- the record of a refusal ----------------------------------------------------------------------------------------


def test_refusal_is_recorded_with_what_was_known() -> None:
    async def scenario() -> None:
        world = World()
        world.policy.raw_answer = DENIED
        exchange = world.exchange()
        refused = await refusal(world, exchange)
        assert await world.pipeline.record_refusal(exchange, refused) is refused
        [record] = world.audit.refused
        assert (record.reason, record.model_name) == ("model-not-found", "demo")
        assert record.detail == "hidden by policy: no-group-permits-model"
        assert record.decision is not None
        assert record.policy_input == world.policy.inputs[0]

    run(scenario)


def test_refusal_after_the_opening_gets_no_second_record() -> None:
    async def scenario() -> None:
        world = World()
        world.models.script = [LOST]
        exchange = world.exchange()
        refused = await refusal(world, exchange)
        assert await world.pipeline.record_refusal(exchange, refused) is refused
        assert world.audit.refused == []

    run(scenario)


def test_refusal_that_cannot_be_recorded_becomes_audit_unavailable() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.fail["record refused"] = Refused(Reason.AUDIT_UNAVAILABLE, "the disk is full")
        told = await world.pipeline.record_refusal(world.exchange(), Refused(Reason.POLICY_DENIED))
        assert told.reason is Reason.AUDIT_UNAVAILABLE

    run(scenario)


def test_long_texts_of_a_caller_do_not_steer_the_size_of_the_record() -> None:
    async def scenario() -> None:
        world = World()
        exchange = world.exchange(model_name="m" * 5000)
        await world.pipeline.record_refusal(exchange, Refused(Reason.FIELD_INVALID, "d" * 5000))
        [record] = world.audit.refused
        assert (len(record.model_name or ""), len(record.detail)) == (128, 500)
        assert len(msgspec.json.encode(record, enc_hook=str)) < 2000

    run(scenario)


def test_no_event_before_the_record_is_durable() -> None:
    async def scenario() -> None:
        world = World()
        world.steps.hold = "record opened"
        task = asyncio.create_task(answered(world))
        await world.steps.held.wait()
        await turns()
        assert "submit" not in world.steps.seen
        assert world.models.submitted == []
        world.steps.go.set()
        await until(task.done)
        assert_nothing_is_left(world, opened=True, spent=11)

    run(scenario)
