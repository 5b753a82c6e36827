"""Token budgets in memory: parallel requests, forgotten ones and repeated settlements never overshoot."""

import asyncio

import pytest

from appliance.core.quota import Budget
from appliance.core.refusals import Fault, Reason, Refused
from appliance.limits.budget import MemoryTokenBudget


class Clock:
    def __init__(self):
        self.seconds = 6_000

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def budget(clock):
    return MemoryTokenBudget(Budget(limit_tokens=100, window_seconds=60, hold_seconds=30), now_seconds=clock)


async def outcomes(attempts):
    results = await asyncio.gather(*attempts, return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(no, Refused) and no.reason is Reason.BUDGET_EXHAUSTED for no in refused)
    return len(results) - len(refused), len(refused)


def test_a_hundred_parallel_requests_cannot_share_the_last_token(budget):
    async def scenario():
        await budget.reserve("first", "alice", 99)
        assert await outcomes(budget.reserve(f"r{number}", "alice", 1) for number in range(100)) == (1, 99)
        assert budget.remaining("alice") == 0

    asyncio.run(scenario())


def test_a_hundred_parallel_requests_that_come_and_go_never_overshoot(budget):
    spent_tokens = 0

    async def one_request(number):
        nonlocal spent_tokens
        reservation = await budget.reserve(f"r{number}", "alice", 20)
        await asyncio.sleep(0)
        assert budget.remaining("alice") >= 0
        spent_tokens += 7
        await budget.settle(reservation, 7)

    async def scenario():
        # 5 * 20 fit, then 3 * 20 beside 35 spent, then 2 * 20 beside 56.
        for expected in (5, 3, 2):
            assert await outcomes(one_request(number) for number in range(100)) == (expected, 100 - expected)

    asyncio.run(scenario())
    assert spent_tokens == 70
    assert budget.remaining("alice") == 30


def test_a_settlement_gives_back_once(budget):
    async def scenario():
        reservation = await budget.reserve("r1", "alice", 80)
        assert await budget.settle(reservation, 30) == 50
        assert await budget.settle(reservation, 30) == 0
        assert await budget.settle(reservation, 0) == 0
        assert budget.remaining("alice") == 70

    asyncio.run(scenario())


def test_one_principal_does_not_spend_the_budget_of_another(budget):
    async def scenario():
        await budget.reserve("r1", "alice", 100)
        await budget.reserve("r1", "bob", 100)
        with pytest.raises(Refused) as refused:
            await budget.reserve("r2", "alice", 1)
        assert refused.value.reason is Reason.BUDGET_EXHAUSTED
        assert refused.value.retry_after_seconds == 60

    asyncio.run(scenario())


def test_a_request_beyond_the_whole_budget_is_refused_for_good(budget):
    with pytest.raises(Refused) as refused:
        asyncio.run(budget.reserve("r1", "alice", 101))
    assert refused.value.reason is Reason.BUDGET_TOO_SMALL
    assert budget.remaining("alice") == 100


def test_a_request_that_nobody_settles_is_charged_and_cannot_be_settled_later(budget, clock):
    async def scenario():
        reservation = await budget.reserve("lost", "alice", 80)
        clock.seconds += 30
        assert budget.remaining("alice") == 20
        assert await budget.settle(reservation, 1) == 0
        assert budget.remaining("alice") == 20
        clock.seconds += 30
        assert budget.remaining("alice") == 100

    asyncio.run(scenario())


def test_accounts_of_those_who_have_gone_do_not_stay_in_memory(budget, clock):
    async def scenario():
        for number in range(50):
            await budget.reserve("r", f"visitor-{number}", 10)
        clock.seconds += 600
        await budget.reserve("r", "alice", 10)
        assert set(budget._accounts) == {"alice"}

    asyncio.run(scenario())


def test_accounts_with_an_open_reservation_stay(clock):
    budget = MemoryTokenBudget(Budget(limit_tokens=100, window_seconds=60, hold_seconds=600), now_seconds=clock)

    async def scenario():
        reservation = await budget.reserve("long", "bob", 80)
        clock.seconds += 120
        await budget.reserve("r", "alice", 10)
        assert budget.remaining("bob") == 20
        assert await budget.settle(reservation, 50) == 30
        assert budget.remaining("bob") == 50

    asyncio.run(scenario())


@pytest.mark.parametrize("field", ["limit_tokens", "window_seconds", "hold_seconds"])
def test_a_budget_of_nothing_is_a_fault_at_start(field, clock):
    rule = {"limit_tokens": 1, "window_seconds": 1, "hold_seconds": 1, field: 0}
    with pytest.raises(Fault, match="at least one"):
        MemoryTokenBudget(Budget(**rule), now_seconds=clock)
