"""Runs one coroutine of a test with a time limit, and lets the event loop settle without a sleep."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

SCENARIO_SECONDS: Final = 10.0


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs it to its end. What it leaves behind as tasks that failed unseen fails the test too."""
    unseen: list[str] = []

    async def limited() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unseen.append(repr(context)))
        async with asyncio.timeout(SCENARIO_SECONDS):
            await scenario()

    asyncio.run(limited())
    assert unseen == []


async def until(condition: Callable[[], bool]) -> None:
    """Gives way to others until the condition holds; ``run`` sets the time limit."""
    while not condition():
        await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Lets everything run that is ready: for asserting that something does *not* happen."""
    for _ in range(count):
        await asyncio.sleep(0)
