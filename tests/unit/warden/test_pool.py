"""No lease without a verified model and a runner that is ready, and no start, refusal or end without its record."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.core.records import ModelLoaded, ModelRefused, RunnerEnded
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest, RunnerFacts
from appliance.ipc.messages import LoadFailed, RunnerStarted
from appliance.warden import pool as pool_module
from appliance.warden.pool import Pool, PoolSettings
from tests.fakes.audit import FakeAuditLog
from tests.fakes.launcher import FakeLauncher, FakeRunner
from tests.fakes.steps import Steps
from tests.fakes.store import FakeStore
from tests.support.made_values import model
from tests.support.scenario import run, turns, until

A, B = model("a"), model("b")


class Warden:
    def __init__(self, **changes: Any) -> None:
        self.store = FakeStore(A, B)
        self.launcher = FakeLauncher()
        self.audit = FakeAuditLog(Steps())
        settings: dict[str, Any] = {
            "context_tokens": 1024,
            "slots": 2,
            "threads": 0,
            "max_loaded": 2,
            "load_timeout_seconds": 5.0,
        }
        self.pool = Pool(self.store, self.launcher, self.audit, PoolSettings(**(settings | changes)))

    def lease(self, digest: Digest = A.digest) -> "asyncio.Task[tuple[RunnerFacts, socket.socket]]":
        return asyncio.create_task(self.pool.lease(digest))

    async def leased(self, digest: Digest = A.digest) -> tuple[FakeRunner, RunnerFacts]:
        """A runner that was started for this lease."""
        leasing = self.lease(digest)
        runner = await self.launcher.next_ready()
        facts, channel = await leasing
        assert channel is runner.channel
        return runner, facts

    async def refusal(self, leasing: "asyncio.Task[Any]") -> Refused:
        with pytest.raises(Refused) as caught:
            await leasing
        return caught.value

    def events(self) -> list[str]:
        return [str(record.__struct_config__.tag) for record in self.audit.records]

    def assert_no_descriptor_is_open(self) -> None:
        for fd in self.store.opened:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)


@contextlib.asynccontextmanager
async def warden(**changes: Any) -> AsyncIterator[Warden]:
    one = Warden(**changes)
    await one.pool.models()
    try:
        yield one
    finally:
        await one.pool.stop()


# --- the catalogue --------------------------------------------------------------------------------------------------


def test_only_models_that_verify_are_listed_and_each_refusal_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "RESCAN_SECONDS", 0.0)

    async def scenario() -> None:
        one = Warden()
        one.store.fail["b"] = Refused(Reason.MODEL_NOT_VERIFIED, "the signature is wrong")
        for _ in range(3):
            assert await one.pool.models() == (A,)
        assert one.store.verified == ["a", "b"]
        [record] = one.audit.of(ModelRefused)
        assert isinstance(record, ModelRefused)
        assert (record.name, record.digest, record.reason) == ("b", None, "model-not-verified")

    run(scenario)


def test_first_question_is_answered_by_a_scan_also_just_after_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    class JustBooted:
        @staticmethod
        def monotonic() -> float:
            return 0.5

    monkeypatch.setattr(pool_module, "time", JustBooted)

    async def scenario() -> None:
        assert await Warden().pool.models() == (A, B)

    run(scenario)


def test_store_that_cannot_be_read_lists_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        one = Warden()
        one.store.fail = {"a": Fault("the disk"), "b": Fault("the disk")}
        assert await one.pool.models() == ()
        assert [getattr(record, "reason", "") for record in one.audit.records] == ["fault", "fault"]

    run(scenario)


def test_removed_model_is_gone_and_a_new_one_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "RESCAN_SECONDS", 0.0)

    async def scenario() -> None:
        async with warden() as one:
            del one.store.models["a"]
            one.store.models["c"] = model("c")
            assert [each.name for each in await one.pool.models()] == ["b", "c"]
            assert (await one.refusal(one.lease(A.digest))).reason is Reason.MODEL_NOT_VERIFIED
            assert one.launcher.count == 0

    run(scenario)


# --- starting -------------------------------------------------------------------------------------------------------


def test_parallel_leases_start_one_runner() -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = [one.lease() for _ in range(20)]
            await one.launcher.next_ready()
            assert len({facts.runner_id for facts, _channel in await asyncio.gather(*leasing)}) == 1
            assert one.launcher.count == 1
            assert one.events() == ["model-loaded"]

    run(scenario)


def test_runner_gets_the_verified_bytes_from_their_start() -> None:
    async def scenario() -> None:
        async with warden(context_tokens=10_000) as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            load, data = await runner.load()
            assert data == b"a"
            assert (load.runner_id, load.context_tokens, load.slots) == (runner.runner_id, A.facts.context_tokens, 2)
            assert 1 <= load.threads <= pool_module.MAX_DEFAULT_THREADS
            leasing.cancel()

    run(scenario)


def test_lease_names_what_the_record_names() -> None:
    async def scenario() -> None:
        async with warden() as one:
            runner, facts = await one.leased()
            assert (facts.runner_id, facts.model_digest) == (runner.runner_id, A.digest)
            assert (facts.seal_mode, facts.layers, facts.context_tokens) == ("sealed-memfd", ("landlock",), 128)
            [loaded] = one.audit.of(ModelLoaded)
            assert isinstance(loaded, ModelLoaded)
            assert loaded.runner == facts
            assert (loaded.model.digest, loaded.model.bundle_digest) == (A.digest, A.bundle_digest)
            one.assert_no_descriptor_is_open()

    run(scenario)


def test_two_models_have_two_runners() -> None:
    async def scenario() -> None:
        async with warden() as one:
            (first, _), (second, _) = await one.leased(A.digest), await one.leased(B.digest)
            assert first.runner_id != second.runner_id
            assert (await one.pool.lease(A.digest))[0].runner_id == first.runner_id

    run(scenario)


def test_unknown_digest_starts_nothing() -> None:
    async def scenario() -> None:
        async with warden() as one:
            refused = await one.refusal(one.lease(Digest.of(b"unknown")))
            assert refused.reason is Reason.MODEL_NOT_VERIFIED
            assert one.launcher.count == 0

    run(scenario)


def test_lease_before_any_scan_starts_nothing() -> None:
    async def scenario() -> None:
        one = Warden()
        assert (await one.refusal(one.lease())).reason is Reason.MODEL_NOT_VERIFIED

    run(scenario)


def test_model_that_no_longer_verifies_is_not_started() -> None:
    """It was fine when it was listed; what is hashed again at the start is what counts."""

    async def scenario() -> None:
        async with warden() as one:
            one.store.fail["a"] = Refused(Reason.MODEL_NOT_VERIFIED, "one byte was changed")
            assert (await one.refusal(one.lease())).reason is Reason.MODEL_NOT_VERIFIED
            [record] = one.audit.of(ModelRefused)
            assert isinstance(record, ModelRefused)
            assert (record.digest, record.detail) == (A.digest, "one byte was changed")
            assert one.launcher.count == 0

    run(scenario)


def test_model_that_was_replaced_is_not_started_under_the_old_digest_but_under_its_own() -> None:
    async def scenario() -> None:
        async with warden() as one:
            new = model("a", digest=Digest.of(b"new bytes"))
            one.store.models["a"] = new
            assert (await one.refusal(one.lease(A.digest))).reason is Reason.MODEL_NOT_VERIFIED
            assert one.events() == ["model-refused"]
            assert one.launcher.count == 0
            one.assert_no_descriptor_is_open()
            assert new in await one.pool.models()
            _runner, facts = await one.leased(new.digest)
            assert facts.model_digest == new.digest

    run(scenario)


# --- a start that fails ---------------------------------------------------------------------------------------------


async def _says_no(runner: FakeRunner) -> None:
    await runner.load()
    runner.peer.say(LoadFailed(reason="gguf-invalid", detail="no magic"))


async def _dies(runner: FakeRunner) -> None:
    await runner.load()
    runner.end(-31)


async def _says_something_else(runner: FakeRunner) -> None:
    await runner.load()
    runner.peer.say(RunnerStarted(request_id="r", prompt_tokens=1))


async def _says_nonsense(runner: FakeRunner) -> None:
    await runner.load()
    await asyncio.get_running_loop().sock_sendall(runner.peer.sock, b"\xc1")


async def _closes_its_channel(runner: FakeRunner) -> None:
    await runner.load()
    runner.peer.leave()


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (_says_no, "gguf-invalid: no magic"),
        (_dies, "exit status -31"),
        (_says_something_else, "RunnerStarted"),
        (_says_nonsense, "not a valid frame"),
        (_closes_its_channel, "the peer closed"),
    ],
)
def test_start_that_fails_is_recorded_and_leaves_nothing(behaviour: Any, why: str) -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await behaviour(runner)
            refused = await one.refusal(leasing)
            assert refused.reason is Reason.RUNNER_UNAVAILABLE
            [record] = one.audit.of(ModelRefused)
            assert isinstance(record, ModelRefused)
            assert why in record.detail
            assert (record.reason, record.digest) == ("runner-unavailable", A.digest)
            assert runner.kills == 1
            assert runner.channel.fileno() == -1
            one.assert_no_descriptor_is_open()
            await one.leased()  # and the next lease tries again

    run(scenario)


def test_runner_that_does_not_become_ready_in_time_is_killed() -> None:
    async def scenario() -> None:
        async with warden(load_timeout_seconds=0.05) as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            refused = await one.refusal(leasing)
            assert (refused.reason, "no answer in time" in refused.detail) == (Reason.RUNNER_UNAVAILABLE, True)
            assert runner.kills == 1
            assert one.events() == ["model-refused"]
            one.assert_no_descriptor_is_open()

    run(scenario)


def test_descriptor_from_a_runner_is_closed_and_the_runner_killed() -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await runner.load()
            reader, writer = os.pipe()
            runner.peer.say(RunnerStarted(request_id="r", prompt_tokens=1), [reader])
            os.close(reader)
            assert "a descriptor" in (await one.refusal(leasing)).detail
            with pytest.raises(BrokenPipeError):
                os.write(writer, b"x")
            os.close(writer)
            assert runner.kills == 1

    run(scenario)


def test_launcher_that_fails_is_a_refusal() -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.launcher.fault = Fault("no more processes")
            assert (await one.refusal(one.lease())).reason is Reason.RUNNER_UNAVAILABLE
            one.assert_no_descriptor_is_open()
            one.launcher.fault = None
            await one.leased()

    run(scenario)


def test_cancelled_lease_leaves_no_process_behind() -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await runner.load()
            leasing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leasing
            assert runner.kills == 1
            assert runner.channel.fileno() == -1
            one.assert_no_descriptor_is_open()
            await one.leased()

    run(scenario)


def test_failure_for_one_lease_is_not_the_answer_to_another() -> None:
    async def scenario() -> None:
        async with warden() as one:
            first, second = one.lease(), one.lease()
            runner = await one.launcher.launched.get()
            await runner.load()
            runner.end(1)
            assert (await one.refusal(first)).reason is Reason.RUNNER_UNAVAILABLE
            await one.launcher.next_ready()
            await second
            assert one.launcher.count == 2

    run(scenario)


# --- how many -------------------------------------------------------------------------------------------------------


def test_no_more_models_are_loaded_than_allowed() -> None:
    async def scenario() -> None:
        async with warden(max_loaded=1) as one:
            runner, _facts = await one.leased(A.digest)
            assert (await one.refusal(one.lease(B.digest))).reason is Reason.RUNNER_UNAVAILABLE
            await one.pool.lease(A.digest)
            runner.end(0)
            await until(lambda: "runner-ended" in one.events())
            await one.leased(B.digest)

    run(scenario)


def test_models_that_are_being_loaded_count_too() -> None:
    async def scenario() -> None:
        async with warden(max_loaded=1) as one:
            first = one.lease(A.digest)
            runner = await one.launcher.launched.get()
            assert (await one.refusal(one.lease(B.digest))).reason is Reason.RUNNER_UNAVAILABLE
            assert one.launcher.count == 1
            await runner.become_ready()
            await first

    run(scenario)


def test_failed_start_gives_its_place_back() -> None:
    async def scenario() -> None:
        async with warden(max_loaded=1) as one:
            for _ in range(3):
                leasing = one.lease(A.digest)
                (await one.launcher.launched.get()).end(1)
                await one.refusal(leasing)
            await one.leased(B.digest)

    run(scenario)


# --- the end --------------------------------------------------------------------------------------------------------


def test_dead_runner_is_recorded_and_the_next_lease_starts_another() -> None:
    async def scenario() -> None:
        async with warden() as one:
            runner, facts = await one.leased()
            runner.end(-9)
            await until(lambda: "runner-ended" in one.events())
            [record] = one.audit.of(RunnerEnded)
            assert isinstance(record, RunnerEnded)
            assert (record.runner_id, record.exit_status, record.model_digest) == (facts.runner_id, -9, A.digest)
            assert runner.channel.fileno() == -1
            _other, other_facts = await one.leased()
            assert other_facts.runner_id != facts.runner_id
            assert one.events() == ["model-loaded", "runner-ended", "model-loaded"]

    run(scenario)


def test_complaint_ends_that_runner_and_no_other() -> None:
    async def scenario() -> None:
        async with warden() as one:
            (first, facts), (second, _) = await one.leased(A.digest), await one.leased(B.digest)
            one.pool.complain("unknown", "x")
            assert (first.kills, second.kills) == (0, 0)
            one.pool.complain(facts.runner_id, "spoke of a request that it was not given")
            assert (first.kills, second.kills) == (1, 0)
            await until(lambda: "runner-ended" in one.events())

    run(scenario)


def test_runner_under_complaint_is_leased_to_nobody_while_it_dies() -> None:
    """A hostile runner may take its time to die; the next request must not be given to it."""

    async def scenario() -> None:
        async with warden() as one:
            runner, facts = await one.leased()
            runner.lives_on = True
            one.pool.complain(facts.runner_id, "silent")
            leasing = one.lease()
            await turns()
            assert not leasing.done()
            assert one.launcher.count == 1
            runner.end(-9)
            other = await one.launcher.next_ready()
            assert (await leasing)[0].runner_id == other.runner_id
            assert one.events() == ["model-loaded", "runner-ended", "model-loaded"]

    run(scenario)


def test_stop_ends_all_runners_and_waits_for_their_records() -> None:
    async def scenario() -> None:
        one = Warden()
        await one.pool.models()
        await one.leased(A.digest)
        await one.leased(B.digest)
        await one.pool.stop()
        assert one.events() == ["model-loaded", "model-loaded", "runner-ended", "runner-ended"]
        await one.pool.stop()

    run(scenario)
