"""Request rates: a moving window that holds under parallel requests, forgets nobody early and fails closed."""

import asyncio

import pytest
from limits.errors import StorageError

from appliance.core.refusals import Fault, Reason, Refused
from appliance.limits.rates import RequestRates
from appliance.limits.store import LoopMemory


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


async def passed(rates, count, principal_key="alice"):
    results = await asyncio.gather(*(rates.admit(principal_key) for _ in range(count)), return_exceptions=True)
    refused = [result for result in results if result is not None]
    assert all(isinstance(result, Refused) and result.reason is Reason.RATE_LIMITED for result in refused)
    return count - len(refused)


def test_no_more_requests_pass_than_the_rate(clock):
    rates = RequestRates(requests_per_minute=5, now_seconds=clock)
    assert asyncio.run(passed(rates, 100)) == 5


def test_the_window_moves_and_cannot_be_straddled(clock):
    rates = RequestRates(requests_per_minute=4, now_seconds=clock)

    async def scenario():
        assert await passed(rates, 2) == 2
        clock.seconds += 50
        assert await passed(rates, 9) == 2
        clock.seconds += 9
        assert await passed(rates, 9) == 0
        clock.seconds += 1
        assert await passed(rates, 9) == 2
        clock.seconds += 50
        assert await passed(rates, 9) == 2

    asyncio.run(scenario())


def test_a_refusal_says_when_to_come_back_and_is_not_counted(clock):
    rates = RequestRates(requests_per_minute=1, now_seconds=clock)

    async def scenario():
        await rates.admit("alice")
        clock.seconds += 12.5
        for _ in range(3):
            with pytest.raises(Refused) as refused:
                await rates.admit("alice")
            assert refused.value.retry_after_seconds == 48
            assert refused.value.detail == "more than 1 per 1 minute"
        clock.seconds += 48
        await rates.admit("alice")

    asyncio.run(scenario())


def test_one_principal_does_not_use_up_the_rate_of_another(clock):
    rates = RequestRates(requests_per_minute=3, now_seconds=clock)

    async def scenario():
        assert await passed(rates, 9, "alice") == 3
        assert await passed(rates, 9, "bob") == 3

    asyncio.run(scenario())


def test_memory_follows_those_who_ask(clock):
    store = LoopMemory(clock)
    rates = RequestRates(requests_per_minute=3, now_seconds=clock, store=store)

    async def scenario():
        for number in range(200):
            await rates.admit(f"visitor-{number}")
        clock.seconds += 61
        await rates.admit("alice")
        clock.seconds += 1
        await rates.admit("alice")

    asyncio.run(scenario())
    assert len(store._windows) == 1


def test_a_store_that_is_down_lets_nothing_pass(clock):
    class Down(LoopMemory):
        async def acquire_entry(self, key, limit, expiry, amount=1):
            raise StorageError(ConnectionRefusedError("refused"))

    rates = RequestRates(requests_per_minute=3, now_seconds=clock, store=Down(clock))
    with pytest.raises(Fault, match="the store of request rates failed"):
        asyncio.run(rates.admit("alice"))


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_of_nothing_is_a_fault_at_start(rate):
    with pytest.raises(Fault, match="at least one"):
        RequestRates(requests_per_minute=rate)


def test_a_principal_without_a_key_is_a_fault(clock):
    with pytest.raises(Fault, match="needs a principal"):
        asyncio.run(RequestRates(requests_per_minute=1, now_seconds=clock).admit(""))
