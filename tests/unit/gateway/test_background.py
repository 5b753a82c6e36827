"""What runs beside the server must not die unnoticed."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from appliance.core.refusals import Fault
from appliance.gateway.serve import _background

LIMIT_SECONDS = 5.0
Work = Callable[[], Coroutine[None, None, None]]


async def _forever() -> None:
    await asyncio.Event().wait()


async def _return() -> None:
    await asyncio.sleep(0)


async def _fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("a defect")


def serve_beside(*works: Work) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            if len(works) == 1:
                async with _background(works[0]()):
                    await _forever()
            async with _background(works[0]()), _background(works[1]()):
                await _forever()

    asyncio.run(main())


@pytest.mark.parametrize("works", [(_fail,), (_fail, _forever), (_forever, _fail)])
def test_work_that_fails_does_not_leave_a_gateway_that_looks_alive(works: tuple[Work, ...]) -> None:
    with pytest.raises(ValueError, match="a defect"):
        serve_beside(*works)


@pytest.mark.parametrize("works", [(_return,), (_return, _forever), (_forever, _return)])
def test_work_that_just_returns_does_not_either(works: tuple[Work, ...]) -> None:
    with pytest.raises(Fault, match="ended by itself"):
        serve_beside(*works)


def test_work_is_cancelled_when_the_body_is_done_and_the_body_is_not() -> None:
    cancelled: list[bool] = []

    async def work() -> None:
        try:
            await _forever()
        finally:
            cancelled.append(True)

    async def main() -> str:
        async with _background(work()):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        return "went on"

    assert asyncio.run(main()) == "went on"
    assert cancelled == [True]


def test_cancelling_the_body_from_outside_is_still_a_cancellation() -> None:
    async def main() -> None:
        async def body() -> None:
            async with _background(_forever()):
                await _forever()

        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
