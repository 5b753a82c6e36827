"""Who waits for a slot learns where, and of the others no more than how many come before."""

from collections.abc import Iterator

import pytest

from appliance.ipc.messages import AskFigures, Figures
from appliance.runner.engine.slots import MOST_WAITING_OF_ONE
from tests.support.chain_model import chain_model, long_script
from tests.support.runner_client import RunnerClient, bare_runner


@pytest.fixture
def held() -> Iterator[RunnerClient]:
    """A runner whose one slot is taken by "holder", of principal a."""
    with bare_runner(chain_model(long_script(4000)), context_tokens=8192, slots=1) as runner:
        runner.submit("holder", principal="a")
        runner.wait_for_first_delta("holder")
        yield runner


def queue(runner: RunnerClient, *requests: tuple[str, str]) -> None:
    """(request id, principal), each after the one before has joined the queue."""
    for waiting, (request_id, principal) in enumerate(requests, 1):
        runner.submit(request_id, principal=principal, max_completion_tokens=3)
        told = -1
        while told < waiting:
            assert not runner.answers["holder"].done
            runner.send(AskFigures(call=waiting))
            while not isinstance(message := runner.receive(), Figures):
                pass
            told = message.figures.waiting


def positions(runner: RunnerClient, *request_ids: str) -> list[int]:
    answers = runner.wait_for(*request_ids)
    return [answer.started.queue_position for answer in answers if answer.started is not None]


def test_position_counts_those_whose_turn_comes_before(held: RunnerClient) -> None:
    """The newcomer c comes between b's two; a has had the slot, so its next comes after them all."""
    queue(held, ("b-1", "b"), ("b-2", "b"), ("c-1", "c"), ("a-2", "a"))
    held.cancel("holder")
    asked = ("holder", "b-1", "b-2", "c-1", "a-2")
    assert positions(held, *asked) == [0, 1, 2, 2, 4]
    waits = [answer.started.queued_ms for answer in held.wait_for(*asked) if answer.started is not None]
    assert min(waits[1:]) > 0


def test_nobody_waits_where_a_slot_is_free() -> None:
    with bare_runner(chain_model(), slots=2) as runner:
        for number in range(3):
            started = runner.ask(f"{number}").started
            assert started is not None
            assert started.queue_position == 0


def test_who_has_waited_too_long_is_told_how_many_are_still_before(held: RunnerClient) -> None:
    queue(held, ("b-1", "b"), ("b-2", "b"))
    held.submit("late", principal="c", queue_ms=1)
    [late] = held.wait_for("late")
    assert late.refused is not None
    assert (late.refused.reason, late.refused.ahead) == ("overloaded", 1), "not b's second, which comes after"
    assert late.refused.retry_after_seconds >= 1


def test_share_that_is_full_tells_nothing_of_the_others(held: RunnerClient) -> None:
    queue(held, ("other-1", "other"), ("other-2", "other"))
    for number in range(MOST_WAITING_OF_ONE + 2):
        held.submit(f"r-{number}", principal="b", max_completion_tokens=1)
    [refused] = held.wait_for(f"r-{MOST_WAITING_OF_ONE + 1}")
    assert refused.refused is not None
    assert refused.refused.ahead == MOST_WAITING_OF_ONE + 1, "its own"
    assert refused.refused.retry_after_seconds >= 1
