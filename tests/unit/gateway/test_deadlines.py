"""No deadline is forgotten, comes early, or is kept by one that came before it."""

import asyncio
from collections.abc import Callable
from typing import Any

from appliance.gateway.deadlines import Deadlines
from tests.support.scenario import run, until

SHORT = 0.02


def noting(seen: list[Any], name: str) -> Callable[[], None]:
    return lambda: seen.append((name, asyncio.get_running_loop().time()))


def test_deadline_comes_once_and_not_before_its_time() -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        deadlines, begun = Deadlines(SHORT), asyncio.get_running_loop().time()
        for name in ("a", "b", "c"):
            deadlines.begin(noting(seen, name))
        await until(lambda: len(seen) == 3)
        assert [name for name, _at in seen] == ["a", "b", "c"]
        assert all(at - begun >= SHORT for _name, at in seen)
        await asyncio.sleep(2 * SHORT)
        assert len(seen) == 3

    run(scenario)


def test_what_was_ended_does_not_come_and_what_began_after_it_does() -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        deadlines, ended = Deadlines(SHORT), noting(seen, "ended")
        deadlines.begin(ended)
        deadlines.begin(noting(seen, "left"))
        deadlines.end(ended)
        deadlines.end(noting(seen, "never began"))
        await until(lambda: bool(seen))
        deadlines.begin(noting(seen, "later"))
        await until(lambda: len(seen) == 2)
        assert [name for name, _at in seen] == ["left", "later"]

    run(scenario)


def test_one_that_begins_anew_has_all_its_time_again() -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        deadlines, again = Deadlines(SHORT), noting(seen, "again")
        deadlines.begin(again)
        deadlines.begin(noting(seen, "first"))
        await asyncio.sleep(SHORT / 2)
        begun = asyncio.get_running_loop().time()
        deadlines.begin(again)
        await until(lambda: len(seen) == 2)
        assert [name for name, _at in seen] == ["first", "again"]
        assert seen[1][1] - begun >= SHORT

    run(scenario)


def test_error_in_one_keeps_no_other_from_its_own() -> None:
    async def scenario() -> None:
        seen: list[Any] = []
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))

        def fail() -> None:
            raise ValueError("mine")

        deadlines = Deadlines(SHORT)
        deadlines.begin(fail)
        deadlines.begin(noting(seen, "other"))
        await until(lambda: bool(seen))
        assert [str(error) for error in told] == ["mine"]

    run(scenario)
