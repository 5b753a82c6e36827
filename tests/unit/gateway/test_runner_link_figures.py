"""What a runner may not do to the gateway with its own figures."""

import asyncio
import math
from typing import Any

import msgspec
import pytest

from appliance.core.values import EngineFigures
from appliance.ipc.frames import encode
from appliance.ipc.messages import AskFigures, Figures, Reset, ResetDone
from tests.support.scenario import run, turns, until
from tests.unit.gateway.test_runner_link import Clock, Pair, clock, delta, pair, started

__all__ = ["clock"]  # a fixture

FIELDS = tuple(field.name for field in msgspec.structs.fields(EngineFigures))
LONG = 60.0


def told(**changes: Any) -> EngineFigures:
    return EngineFigures(**(dict.fromkeys(FIELDS, 0) | changes))


def asking(one: Pair, limit_seconds: float = LONG) -> "asyncio.Task[EngineFigures | None]":
    return asyncio.create_task(one.link.figures(limit_seconds))


def test_runner_is_asked_and_its_answer_given() -> None:
    async def scenario() -> None:
        async with pair() as one:
            for round_ in range(3):
                question = asking(one)
                asked = await one.runner.hear(AskFigures)
                one.runner.say(Figures(call=asked.call, figures=told(slots=round_)))
                assert await question == told(slots=round_)
            assert not one.broken

    run(scenario)


def test_two_who_ask_at_once_make_one_question() -> None:
    async def scenario() -> None:
        async with pair() as one:
            questions = [asking(one) for _ in range(10)]
            asked = await one.runner.hear(AskFigures)
            await turns()
            assert one.runner.heard.empty()
            one.runner.say(Figures(call=asked.call, figures=told(slots=4)))
            assert await asyncio.gather(*questions) == [told(slots=4)] * 10

    run(scenario)


def test_runner_that_does_not_answer_is_asked_once_and_nobody_waits_for_it() -> None:
    async def scenario() -> None:
        async with pair() as one:
            for _ in range(5):
                assert await one.link.figures(0.005) is None
            asked = await one.runner.hear(AskFigures)
            assert one.runner.heard.empty()
            late = asking(one)
            await turns()
            assert one.runner.heard.empty()
            one.runner.say(Figures(call=asked.call, figures=told(waiting=7)))
            assert await late == told(waiting=7)
            assert not one.broken

    run(scenario)


def test_one_who_leaves_takes_the_answer_from_nobody() -> None:
    async def scenario() -> None:
        async with pair() as one:
            first, second = asking(one), asking(one)
            asked = await one.runner.hear(AskFigures)
            first.cancel()
            await turns()
            one.runner.say(Figures(call=asked.call, figures=told()))
            assert await second == told()

    run(scenario)


def test_answer_that_comes_twice_is_the_runners_last() -> None:
    async def scenario() -> None:
        async with pair() as one:
            question = asking(one)
            asked = await one.runner.hear(AskFigures)
            for _ in range(2):
                one.runner.say(Figures(call=asked.call, figures=told()))
            assert await question == told()
            await one.assert_given_up("nobody asked for")
            assert await one.link.figures(LONG) is None

    run(scenario)


@pytest.mark.parametrize("call", [0, 1, 3, 2**31 - 1])
def test_answer_to_another_question_is_the_runners_last(call: int) -> None:
    async def scenario() -> None:
        async with pair() as one:
            question = asking(one)
            asked = await one.runner.hear(AskFigures)
            one.runner.say(Figures(call=asked.call, figures=told()))
            await question
            question = asking(one)
            assert (await one.runner.hear(AskFigures)).call == 2
            one.runner.say(Figures(call=call, figures=told()))
            assert await question is None
            await one.assert_given_up("nobody asked for")

    run(scenario)


def test_figures_that_nobody_asked_for_are_the_runners_last_word() -> None:
    async def scenario() -> None:
        async with pair() as one:
            one.runner.say(Figures(call=0, figures=told()))
            await one.assert_given_up("nobody asked for")

    run(scenario)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("number", [-1, 2**53 + 2, 2**63, math.nan, math.inf, -math.inf, 1e300, "1", None])
def test_number_outside_its_bounds_is_the_runners_last_word(name: str, number: Any) -> None:
    async def scenario() -> None:
        async with pair() as one:
            question = asking(one)
            asked = await one.runner.hear(AskFigures)
            one.runner.sock.send(encode(Figures(call=asked.call, figures=told(**{name: number}))))
            assert await question is None
            await one.assert_given_up("not a valid frame")

    run(scenario)


def test_lost_runner_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        for lose in ("retire", "give_up", "leave"):
            async with pair() as one:
                question = asking(one)
                await one.runner.hear(AskFigures)
                match lose:
                    case "retire":
                        one.link.retire()
                    case "give_up":
                        one.link.give_up("why")
                    case "leave":
                        one.runner.leave()
                assert await question is None
                assert await one.link.figures(LONG) is None

    run(scenario)


def test_figures_told_to_a_former_gateway_reach_nobody() -> None:
    async def scenario() -> None:
        async with pair(reset=False) as one:
            resetting = asyncio.create_task(one.link.reset())
            reset = await one.runner.hear(Reset)
            one.runner.say(Figures(call=3, figures=told()))
            one.runner.say(ResetDone(nonce=reset.nonce))
            await resetting
            assert not one.broken

    run(scenario)


def test_being_asked_keeps_no_idle_runner(clock: Clock) -> None:
    async def scenario() -> None:
        async with pair() as one:
            clock.now += 100
            question = asking(one)
            asked = await one.runner.hear(AskFigures)
            clock.now += 100
            assert not one.link.busy
            one.runner.say(Figures(call=asked.call, figures=told()))
            await question
            assert one.link.idle_seconds == 200

    run(scenario)


def test_figures_do_not_excuse_a_runner_that_owes_answers(clock: Clock) -> None:
    async def scenario() -> None:
        async with pair() as one:
            answer = await one.answer()
            one.runner.say(started())
            one.runner.say(delta())
            heard = len(await answer.events())
            while heard < 2:
                heard += len(await answer.events())
            clock.now += 61
            question = asking(one)
            asked = await one.runner.hear(AskFigures)
            one.runner.say(Figures(call=asked.call, figures=told()))
            await question
            one.link.check_silence(60.0)
            await until(lambda: one.link.broken)
            await one.assert_given_up("silent")

    run(scenario)
