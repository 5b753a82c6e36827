"""Every question to the warden gets an answer, whatever goes wrong, and nobody leaves anything in it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.memory import LoadOptions
from appliance.core.records import ModelRef, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import RunnerFacts
from appliance.ipc.connection import channel_pair, connect, listen
from appliance.ipc.messages import (
    NO_PLACE,
    AskLease,
    AskStatus,
    Complain,
    Failed,
    FailedModel,
    FromWarden,
    InUse,
    Leased,
    ListModels,
    MakeRoom,
    MemoryBudget,
    ModelList,
    Release,
    RunnerUse,
    WardenStatus,
)
from appliance.warden import main as warden_main
from appliance.warden.pool import NoPlace
from tests.support.made_values import model, runner_facts
from tests.support.scenario import run, turns, until
from tests.support.scripted_peer import ScriptedPeer

DEMO = model("demo")
REF = reference(DEMO)
OPTIONS = LoadOptions(context_tokens=1, slots=1, keep_alive_seconds=7)


class FakePool:
    """``warden.pool.Pool`` as far as the process uses it. ``outcome`` is what a lease comes to."""

    def __init__(self) -> None:
        self.outcome: Any = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.words: list[tuple[Any, ...]] = []
        self.asked: list[tuple[object, tuple[str, ...]]] = []
        self.gone: list[object] = []
        self.ends: BaseException | None = None

    async def run(self) -> None:
        if self.ends is not None:
            raise self.ends
        await asyncio.Event().wait()

    def servable(self) -> tuple[Any, ...]:
        return self.models()

    def models(self) -> tuple[Any, ...]:
        return (DEMO,)

    def pending(self) -> tuple[str, ...]:
        return ("large",)

    def failed(self) -> tuple[FailedModel, ...]:
        return ()

    async def loaded(self) -> tuple[Any, ...]:
        if isinstance(self.outcome, ZeroDivisionError):
            raise self.outcome
        return ()

    def planned(self) -> tuple[Any, ...]:
        return ()

    def memory(self) -> MemoryBudget:
        return MemoryBudget(budget_bytes=2, planned_bytes=1)

    async def lease(
        self, wanted: ModelRef, *, idle: tuple[str, ...], holder: object
    ) -> tuple[RunnerFacts, LoadOptions, socket.socket]:
        assert wanted == REF
        self.asked.append((holder, idle))
        await self.gate.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome  # type: ignore[no-any-return]

    def complain(self, runner_id: str, detail: str) -> None:
        self.words.append(("complain", runner_id, detail))

    def release(self, runner_id: str, *, idle: bool) -> None:
        self.words.append(("release", runner_id, idle))

    def in_use(self, holder: object, runners: tuple[RunnerUse, ...]) -> None:
        self.words.append(("in use", holder, *runners))

    def left(self, holder: object) -> None:
        self.gone.append(holder)

    async def stop(self) -> None:
        self.words.append(("stop",))


class FakeNotary:
    async def run(self) -> None:
        await asyncio.Event().wait()

    async def connected(self) -> None:
        """It is always there."""

    async def drained(self) -> None:
        """Nothing is ever undelivered."""


class FakeStarter:
    """It is always there, until it is lost."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    async def run(self) -> None:
        await self.lost.wait()
        raise Fault("the starter has ended")


class Process:
    def __init__(self, path: Path, *, gateway: bool = True) -> None:
        self.pool = FakePool()
        self.starter = FakeStarter()
        self.stop = asyncio.Event()
        self.path = path
        self.listening = listen(path, mode=0o600)
        me = frozenset({os.getuid()})
        self.task = asyncio.create_task(
            warden_main.serve(
                self.pool,  # type: ignore[arg-type]
                notary=FakeNotary(),  # type: ignore[arg-type]
                starter=self.starter,
                listening=self.listening,
                gateway_uids=me if gateway else frozenset(),
                operator_uids=me,
                stop=self.stop,
            )
        )

    async def peer(self) -> ScriptedPeer:
        return ScriptedPeer(await connect(self.path, None), FromWarden)


@contextlib.asynccontextmanager
async def process(directory: Path, **options: Any) -> AsyncIterator[tuple[Process, ScriptedPeer]]:
    one = Process(directory / "warden.sock", **options)
    peer = await one.peer()
    try:
        yield one, peer
    finally:
        peer.leave()
        one.stop.set()
        await one.task
        one.listening.close()


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Refused(Reason.MODEL_NOT_VERIFIED, "d"), "model-not-verified"),
        (Refused(Reason.AUDIT_UNAVAILABLE, "d"), "audit-unavailable"),
        (NoPlace("d"), NO_PLACE),
        (Fault("d"), "fault"),
        (KeyError("a mistake of ours"), "fault"),
        (OSError(24, "Too many open files"), "fault"),
        ((runner_facts(DEMO), OPTIONS, None), "fault"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_lease_that_fails_in_whatever_way_is_answered(tmp_path: Path, outcome: Any, reason: str) -> None:
    async def scenario() -> None:
        async with process(tmp_path) as (one, peer):
            one.pool.outcome = outcome
            peer.say(AskLease(call=7, model=REF))
            failed = await peer.hear(Failed)
            assert (failed.call, failed.reason) == (7, reason)
            assert not peer.gone.is_set()

    run(scenario)


def test_answer_too_large_for_a_frame_is_an_answer_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process(tmp_path) as (one, peer):
            one.pool.models = lambda: (DEMO,) * 10_000  # type: ignore[method-assign]
            peer.say(ListModels(call=1))
            assert (await peer.hear(Failed)).reason == "fault"
            one.pool.outcome = ZeroDivisionError()
            peer.say(AskStatus(call=2))
            assert (await peer.hear(Failed)).call == 2

    run(scenario)


def test_lease_carries_its_channel(tmp_path: Path) -> None:
    async def scenario() -> None:
        ours, theirs = channel_pair()
        async with process(tmp_path) as (one, peer):
            one.pool.outcome = runner_facts(DEMO), OPTIONS, ours
            peer.say(AskLease(call=1, model=REF))
            leased = await peer.hear(Leased)
            assert (leased.runner, leased.keep_alive_seconds) == (runner_facts(DEMO), 7)
            with socket.socket(fileno=peer.fds.pop()) as copy:
                copy.send(b"x")
            assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b"x"
        ours.close()
        theirs.close()

    run(scenario)


def test_slow_lease_does_not_hold_up_the_list(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process(tmp_path) as (one, peer):
            one.pool.gate.clear()
            one.pool.outcome = Fault("d")
            peer.say(AskLease(call=1, model=REF))
            peer.say(ListModels(call=2))
            assert await peer.hear() == ModelList(call=2, models=(DEMO,), pending=("large",))
            one.pool.gate.set()
            assert (await peer.hear(Failed)).call == 1

    run(scenario)


def test_complaint_and_release_reach_the_pool_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process(tmp_path) as (one, peer):
            peer.say(Complain(runner_id="r-1", detail="silent"))
            peer.say(Release(runner_id="r-2"))
            peer.say(Release(runner_id="r-3", idle=True))
            await until(lambda: len(one.pool.words) == 3)
            assert one.pool.words == [
                ("complain", "r-1", "silent"),
                ("release", "r-2", False),
                ("release", "r-3", True),
            ]

    run(scenario)


def test_asker_is_told_whom_to_give_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process(tmp_path) as (one, peer):
            one.pool.outcome = NoPlace("d", ("r-1", "r-2"))
            peer.say(AskLease(call=7, model=REF, idle=("r-1", "r-2", "r-3")))
            assert await peer.hear() == MakeRoom(call=7, release=("r-1", "r-2"))
            assert [idle for _holder, idle in one.pool.asked] == [("r-1", "r-2", "r-3")]

    run(scenario)


def test_uses_and_the_end_of_a_connection_are_told_of_the_same_holder(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process(tmp_path) as (one, peer):
            use = RunnerUse(runner_id="r-1", idle_seconds=None)
            one.pool.outcome = Fault("d")
            peer.say(AskLease(call=7, model=REF))
            await peer.hear(Failed)
            peer.say(InUse(runners=(use,)))
            await until(lambda: bool(one.pool.words))
            [(holder, _idle)] = one.pool.asked
            assert one.pool.words == [("in use", holder, use)]
            peer.leave()
            await until(lambda: one.pool.gone == [holder])

    run(scenario)


def test_runner_for_somebody_who_left_during_the_load_is_nobodys(tmp_path: Path) -> None:
    async def scenario() -> None:
        ours, theirs = channel_pair()
        async with process(tmp_path) as (one, _peer):
            one.pool.gate.clear()
            one.pool.outcome = runner_facts(DEMO), OPTIONS, ours
            leaver = await one.peer()
            leaver.say(AskLease(call=1, model=REF))
            await until(lambda: len(one.pool.asked) == 1)
            leaver.leave()
            await until(lambda: len(one.pool.gone) == 1)
            one.pool.gate.set()
            await until(lambda: len(one.pool.gone) == 2)
            [(holder, _idle)] = one.pool.asked
            assert one.pool.gone == [holder, holder]
        ours.close()
        theirs.close()

    run(scenario)


@pytest.mark.parametrize(
    "word",
    [
        ListModels(call=1),
        AskLease(call=1, model=REF),
        Complain(runner_id="r", detail=""),
        Release(runner_id="r"),
        InUse(runners=()),
    ],
)
def test_operator_may_ask_for_the_status_only(tmp_path: Path, word: Any) -> None:
    async def scenario() -> None:
        async with process(tmp_path, gateway=False) as (one, peer):
            peer.say(AskStatus(call=1))
            assert (await peer.hear(WardenStatus)).models == (DEMO,)
            peer.say(word)
            await peer.gone.wait()
            assert one.pool.words == []

    run(scenario)


def test_descriptors_that_nobody_asked_for_are_not_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with process(tmp_path) as (one, peer):
            peer.say(ListModels(call=1))
            await peer.hear(ModelList)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                stranger = await one.peer()
                reader, writer = os.pipe()
                stranger.say(ListModels(call=1), [reader])
                os.close(reader)
                await stranger.gone.wait()
                with pytest.raises(BrokenPipeError):
                    os.write(writer, b"x")
                os.close(writer)
            await turns()
            assert len(os.listdir("/proc/self/fd")) == before

    run(scenario)


def test_warden_that_can_look_no_more_ends_so_that_another_is_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Process(tmp_path / "warden.sock")
        one.pool.ends = RuntimeError("a mistake of ours")
        with pytest.raises(RuntimeError):
            await one.task
        one.listening.close()
        assert one.pool.words == [("stop",)]

    run(scenario)


def test_warden_without_its_starter_ends_so_that_another_is_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        one = Process(tmp_path / "warden.sock")
        one.starter.lost.set()
        with pytest.raises(Fault, match="starter"):
            await one.task
        one.listening.close()
        assert one.pool.words == [("stop",)]

    run(scenario)
