"""The gateway's client and the warden's pool, over their socket: who is loaded, and who makes room."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.core import memory
from appliance.core.memory import LoadOptions
from appliance.core.records import ModelLoaded, RunnerEnded
from appliance.core.refusals import Reason, Refused
from appliance.gateway import warden_client
from appliance.gateway.runner_link import RunnerLink
from appliance.gateway.warden_client import WardenClient
from appliance.ipc.connection import listen
from appliance.ipc.messages import Reset, ResetDone, RunnerEnd
from appliance.warden import main as warden_main
from appliance.warden import pool as pool_module
from appliance.warden.loading import PoolSettings
from appliance.warden.memory import copied_types
from appliance.warden.pool import Pool
from tests.fakes.audit import FakeAuditLog
from tests.fakes.launcher import FakeLauncher, FakeRunner
from tests.fakes.steps import Steps
from tests.fakes.store import FakeStore
from tests.support.made_values import admission, model
from tests.support.scenario import run, until

MODELS = A, B, C = model("a"), model("b"), model("c")
OPTIONS = LoadOptions(context_tokens=1024, slots=2, keep_alive_seconds=-1)
NEED = memory.plan(A.facts, context_tokens=1024, slots=2, threads=1, kv_type="f16", copied_types=copied_types()).total


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden_client, "REFRESH_SECONDS", 0.005)
    monkeypatch.setattr(warden_client, "RECONNECT_SECONDS", 0.005)
    monkeypatch.setattr(warden_client, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(pool_module, "RESCAN_SECONDS", 0.005)


class Neighbour:
    """The notary, and the starter: always there."""

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def connected(self) -> None:
        """At once."""

    async def drained(self) -> None:
        """At once."""


class Both:
    """Runners that load at once, and do what they are asked when the test says so."""

    def __init__(self, directory: Path, changes: dict[str, Any]) -> None:
        settings = {
            "options": OPTIONS,
            "threads": 1,
            "max_loaded": 8,
            "memory_bytes": 2 * NEED,
            "load_timeout_seconds": 5.0,
        }
        self.audit = FakeAuditLog(Steps())
        self.launcher = FakeLauncher()
        self.pool = Pool(FakeStore(*MODELS), self.launcher, self.audit, PoolSettings(**(settings | changes)))
        self.client = self.make_client(directory)
        self.stop = asyncio.Event()
        self.runners: dict[str, FakeRunner] = {}
        self.path = directory / "warden.sock"
        self._serving: list[asyncio.Task[None]] = []

    def make_client(self, directory: Path) -> WardenClient:
        return WardenClient(directory / "warden.sock", load_timeout_seconds=5.0, silence_seconds=60.0, queue_seconds=60)

    async def serve_runners(self) -> None:
        while True:
            runner = await self.launcher.launched.get()
            self._serving.append(asyncio.create_task(self._serve(runner)))

    async def _serve(self, runner: FakeRunner) -> None:
        await runner.become_ready()
        self.runners[runner.runner_id] = runner
        while True:
            message = await runner.peer.hear()
            if isinstance(message, Reset):
                runner.peer.say(ResetDone(nonce=message.nonce))

    def answer(self, link: RunnerLink, request_id: str) -> None:
        """The end of what ``link.answer`` asked."""
        end = RunnerEnd(request_id=request_id, reason="stop", prompt_tokens=1, completion_tokens=0)
        self.runners[link.facts.runner_id].peer.say(end)

    async def names(self) -> set[str]:
        return {loaded.model.name for loaded in await self.pool.loaded()}

    def loads(self) -> list[str]:
        return [record.model.name for record in self.audit.of(ModelLoaded) if isinstance(record, ModelLoaded)]


@contextlib.asynccontextmanager
async def both(directory: Path, **changes: Any) -> AsyncIterator[Both]:
    one = Both(directory, changes)
    with listen(one.path, mode=0o600) as listening:
        me = frozenset({os.getuid()})
        warden = asyncio.create_task(
            warden_main.serve(
                one.pool,
                notary=Neighbour(),  # type: ignore[arg-type]
                starter=Neighbour(),
                listening=listening,
                gateway_uids=me,
                operator_uids=me,
                stop=one.stop,
            )
        )
        tasks = [asyncio.create_task(one.serve_runners()), asyncio.create_task(one.client.run())]
        try:
            await until(lambda: len(one.client._catalogue or ()) == len(MODELS))
            yield one
        finally:
            for task in (*tasks, *one._serving):
                task.cancel()
            await asyncio.wait(tasks)
            one.stop.set()
            await warden
            for runner in one.runners.values():
                runner.peer.leave()


def test_models_take_turns_where_there_is_memory_for_two_and_none_is_unloaded_in_vain(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as one:
            for wanted, loaded in (
                (A, {"a"}),
                (B, {"a", "b"}),
                (A, {"a", "b"}),
                (C, {"a", "c"}),  # b was used longer ago
                (A, {"a", "c"}),
                (B, {"a", "b"}),
            ):
                await one.client.lease(wanted)
                await until_names(one, loaded)
            assert one.loads() == ["a", "b", "c", "b"]
            assert one.pool.memory().planned_bytes == 2 * NEED
            ended = [record.detail for record in one.audit.of(RunnerEnded) if isinstance(record, RunnerEnded)]
            assert ended == ["released to make room"] * 2

    run(scenario)


def test_places_are_as_scarce_as_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path, max_loaded=2, memory_bytes=2**46) as one:
            for wanted in MODELS:
                await one.client.lease(wanted)
            await until_names(one, {"b", "c"})

    run(scenario)


async def until_names(one: Both, names: set[str]) -> None:
    for _ in range(1000):
        if await one.names() == names:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{await one.names()} are loaded, not {names}")


def test_busy_runner_is_left_alone_and_its_place_is_had_when_it_has_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path, memory_bytes=NEED) as one:
            link = await one.client.lease(A)
            answer = link.answer("r-1", admission(), "p")
            with pytest.raises(Refused) as caught:
                await one.client.lease(B)
            assert caught.value.reason is Reason.RUNNER_UNAVAILABLE
            assert caught.value.retry_after_seconds == warden_client.RETRY_AFTER_SECONDS
            assert not link.broken
            one.answer(link, "r-1")
            await answer.events()
            await one.client.lease(B)
            await until_names(one, {"b"})
            assert link.broken

    run(scenario)


def test_runner_that_was_just_loaded_is_not_given_up_before_it_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two callers could load their models in turn for ever, and neither would get a word."""
    monkeypatch.setattr(warden_client, "IDLE_SECONDS", 30.0)

    async def scenario() -> None:
        async with both(tmp_path, memory_bytes=NEED) as one:
            link = await one.client.lease(A)
            for _ in range(3):
                with pytest.raises(Refused):
                    await one.client.lease(B)
            assert not link.broken
            assert one.loads() == ["a"]

    run(scenario)


def test_crowd_that_asks_for_three_models_loads_two_and_hangs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden_client, "IDLE_SECONDS", 30.0)

    async def scenario() -> None:
        async with both(tmp_path) as one:
            leasing = [one.client.lease(MODELS[number % 3]) for number in range(100)]
            outcomes = await asyncio.gather(*leasing, return_exceptions=True)
            given = {outcome.facts.runner_id for outcome in outcomes if isinstance(outcome, RunnerLink)}
            refused = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
            assert len(given) == len(one.loads()) == 2
            assert len(refused) in {33, 34}
            assert {each.reason for each in refused} == {Reason.RUNNER_UNAVAILABLE}
            assert one.pool.memory().planned_bytes == 2 * NEED

    run(scenario)


def test_idle_runner_ends_when_it_was_kept_for_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden_client, "LEAST_KEPT_SECONDS", 0.01)
    named = {"a": msgspec.structs.replace(OPTIONS, keep_alive_seconds=0)}

    async def scenario() -> None:
        async with both(tmp_path, named=named) as one:
            await one.client.lease(A)
            await one.client.lease(B)
            await until_names(one, {"b"})
            [record] = one.audit.of(RunnerEnded)
            assert isinstance(record, RunnerEnded)
            assert record.detail == "idle for longer than it is kept"
            assert one.pool.memory().planned_bytes == NEED
            await one.client.lease(A)

    run(scenario)


def test_runner_of_a_gateway_that_was_replaced_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knew it any more, and it kept its place for ever."""
    monkeypatch.setattr(pool_module, "UNHELD_SECONDS", 0.05)

    async def scenario() -> None:
        async with both(tmp_path, memory_bytes=NEED) as one:
            await one.client.lease(A)
            assert one.client._connection is not None
            one.client._links.clear()  # as if it were another
            one.client._connection.close()
            await until(lambda: one.client._connection is not None and not one.client._connection.closed)
            while True:
                with contextlib.suppress(Refused):
                    await one.client.lease(B)
                    break
                await asyncio.sleep(0.01)
            await until_names(one, {"b"})

    run(scenario)
