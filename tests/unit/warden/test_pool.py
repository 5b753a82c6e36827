"""No lease without a verified model and a runner that is ready, and no start, refusal or end without its record."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from appliance.core import memory
from appliance.core.codec import canonical_json
from appliance.core.memory import LoadOptions
from appliance.core.records import ModelLoaded, ModelRef, ModelRefused, RunnerEnded, RunnerNotStarted, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import CacheShape, Digest, RunnerFacts, Signer, VerifiedModel
from appliance.ipc.messages import (
    Fenced,
    LoadFailed,
    MemoryBudget,
    Ready,
    ResetDone,
    RunnerStarted,
    RunnerUse,
    TakenMemory,
)
from appliance.sandbox.layers import LAYERS
from appliance.warden import catalogue as catalogue_module
from appliance.warden import pool as pool_module
from appliance.warden.loading import MAX_DEFAULT_THREADS, PoolSettings
from appliance.warden.memory import copied_types
from appliance.warden.pool import NoPlace, Pool
from tests.fakes.audit import FakeAuditLog
from tests.fakes.launcher import FENCED, FakeLauncher, FakeRunner
from tests.fakes.steps import Steps
from tests.fakes.store import FakeStore
from tests.support.made_values import model
from tests.support.scenario import run, turns, until


def _fenced(**changes: Any) -> Fenced:
    return msgspec.structs.replace(FENCED, **changes)


A, B = model("a"), model("b")
REF_A, REF_B = reference(A), reference(B)


class Clock:
    """The time of back-offs and of rescans."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(catalogue_module, "time", one)
    return one


class Warden:
    def __init__(self, **changes: Any) -> None:
        self.store = FakeStore(A, B)
        self.launcher = FakeLauncher()
        self.steps = Steps()
        self.audit = FakeAuditLog(self.steps)
        options: dict[str, Any] = {"context_tokens": 1024, "slots": 2}
        settings: dict[str, Any] = {"threads": 0, "max_loaded": 2, "memory_bytes": 2**46, "load_timeout_seconds": 5.0}
        for name in LoadOptions.__struct_fields__:
            if name in changes:
                options[name] = changes.pop(name)
        settings["options"] = LoadOptions(**options)
        self.pool = Pool(self.store, self.launcher, self.audit, PoolSettings(**(settings | changes)))

    async def scan(self) -> None:
        await self.pool.rescan()
        await self.pool.settled()

    def lease(
        self, wanted: ModelRef = REF_A, **more: Any
    ) -> "asyncio.Task[tuple[RunnerFacts, LoadOptions, socket.socket]]":
        return asyncio.create_task(self.pool.lease(wanted, **more))

    async def leased(self, wanted: ModelRef = REF_A, **more: Any) -> tuple[FakeRunner, RunnerFacts]:
        """A runner that was started for this lease."""
        leasing = self.lease(wanted, **more)
        runner = await self.launcher.next_ready()
        facts, _options, channel = await leasing
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
    await one.scan()
    try:
        yield one
    finally:
        await one.pool.stop()


# --- the catalogue --------------------------------------------------------------------------------------------------


def test_only_models_that_verify_are_listed_and_each_refusal_is_recorded_once() -> None:
    async def scenario() -> None:
        one = Warden()
        one.store.fail["b"] = Refused(Reason.MODEL_NOT_VERIFIED, "the signature is wrong")
        for _ in range(3):
            await one.scan()
            assert one.pool.models() == (A,)
        assert one.store.verified == ["a", "b"]
        [record] = one.audit.of(ModelRefused)
        assert isinstance(record, ModelRefused)
        assert (record.name, record.digest, record.reason) == ("b", None, "model-not-verified")

    run(scenario)


def test_list_is_answered_while_a_model_is_being_hashed() -> None:
    async def scenario() -> None:
        one = Warden()
        one.store.let_verify.clear()
        await one.pool.rescan()
        assert (one.pool.models(), one.pool.pending()) == ((), ("a", "b"))
        one.store.let_verify.set()
        await one.pool.settled()
        assert (one.pool.models(), one.pool.pending()) == ((A, B), ())

    run(scenario)


def test_loaded_model_is_condemned_also_while_another_is_being_hashed() -> None:
    async def scenario() -> None:
        async with warden() as one:
            runner, _facts = await one.leased()
            one.store.let_verify.clear()
            one.store.models["new"] = model("new")
            await one.pool.rescan()
            one.store.distrusted["a"] = Refused(Reason.MODEL_NOT_VERIFIED, "signer-unknown")
            await one.pool.rescan()
            assert (runner.kills, one.pool.pending()) == (1, ("new",))
            one.store.let_verify.set()
            await one.pool.settled()

    run(scenario)


def test_store_that_cannot_be_read_lists_nothing() -> None:
    async def scenario() -> None:
        one = Warden()
        one.store.fail = {"a": Fault("the disk"), "b": Fault("the disk")}
        await one.scan()
        assert one.pool.models() == ()
        assert [getattr(record, "reason", "") for record in one.audit.records] == ["fault", "fault"]

    run(scenario)


def test_model_is_verified_again_when_the_disk_has_recovered(clock: Clock) -> None:
    async def scenario() -> None:
        one = Warden()
        one.store.fail = {"a": Fault("the disk")}
        await one.scan()
        one.store.fail = {}
        await one.scan()
        assert one.pool.models() == (B,)  # not before its back-off is over
        clock.now += 10
        await one.scan()
        assert one.pool.models() == (A, B)

    run(scenario)


def test_recovery_of_a_model_is_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        one = Warden()
        one.store.fail = {"a": Fault("the disk")}
        with caplog.at_level("INFO"):
            await one.scan()
            assert caplog.messages == ["model a refused: the disk", "model b is verified"]
            one.store.fail = {}
            clock.now += 10
            for _ in range(3):
                await one.scan()
            assert caplog.messages[2:] == ["model a is verified"]

    run(scenario)


def test_verification_that_fails_in_an_unforeseen_way_does_not_stop_the_others() -> None:
    async def scenario() -> None:
        one = Warden()
        one.store.fail["a"] = ZeroDivisionError()
        await one.scan()
        assert one.pool.models() == (B,)
        [record] = one.audit.of(ModelRefused)
        assert isinstance(record, ModelRefused)
        assert (record.name, record.reason) == ("a", "fault")

    run(scenario)


def test_removed_model_is_gone_and_a_new_one_is_verified() -> None:
    async def scenario() -> None:
        async with warden() as one:
            del one.store.models["a"]
            one.store.models["c"] = model("c")
            await one.scan()
            assert [each.name for each in one.pool.models()] == ["b", "c"]
            assert (await one.refusal(one.lease())).reason is Reason.MODEL_NOT_VERIFIED
            assert one.launcher.count == 0

    run(scenario)


# --- what a loaded model may become ---------------------------------------------------------------------------------


def _distrust(one: Warden) -> None:
    one.store.distrusted["a"] = Refused(Reason.MODEL_NOT_VERIFIED, "signer-unknown")


def _lose_the_keys(one: Warden) -> None:
    one.store.distrusted["a"] = Fault("the trusted keys could not be read")


def _remove(one: Warden) -> None:
    del one.store.models["a"]


def _replace(one: Warden) -> None:
    one.store.models["a"] = model("a", digest=Digest.of(b"new bytes"))


def _sign_again(one: Warden) -> None:
    other = Signer(name="other", fingerprint=Digest.of(b"other key"))
    one.store.models["a"] = msgspec.structs.replace(A, signer=other, bundle_digest=Digest.of(b"other bundle"))


@pytest.mark.parametrize("change", [_distrust, _lose_the_keys, _remove, _replace, _sign_again])
def test_runner_does_not_outlive_the_trust_in_its_model(change: Any) -> None:
    async def scenario() -> None:
        async with warden() as one:
            (runner, facts), (other, _) = await one.leased(REF_A), await one.leased(REF_B)
            change(one)
            await one.pool.rescan()
            assert (runner.kills, other.kills) == (1, 0)
            await until(lambda: "runner-ended" in one.events())
            [record] = one.audit.of(RunnerEnded)
            assert isinstance(record, RunnerEnded)
            assert (record.runner_id, "its model was removed" in record.detail) == (facts.runner_id, True)
            assert (await one.refusal(one.lease(REF_A))).reason is Reason.MODEL_NOT_VERIFIED
            await one.pool.settled()
            assert A not in one.pool.models()
            assert one.launcher.count == 2

    run(scenario)


def test_touched_file_neither_ends_a_runner_nor_hashes_it_again() -> None:
    """Whoever adds a trusted key changes what every model rests on; what is loaded was hashed already."""

    async def scenario() -> None:
        async with warden() as one:
            runner, _facts = await one.leased()
            one.store.touch("a")
            await one.scan()
            assert (runner.kills, one.store.verified, one.pool.models()) == (0, ["a", "b"], (A, B))

    run(scenario)


def test_store_that_cannot_be_listed_ends_nothing() -> None:
    def names() -> list[str]:
        raise Fault("the disk")

    async def scenario() -> None:
        async with warden() as one:
            runner, _facts = await one.leased()
            one.store.names = names  # type: ignore[method-assign]
            await one.scan()
            assert (runner.kills, one.pool.models()) == (0, (A, B))

    run(scenario)


# --- starting -------------------------------------------------------------------------------------------------------


def test_parallel_leases_start_one_runner() -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = [one.lease() for _ in range(20)]
            await one.launcher.next_ready()
            assert len({facts.runner_id for facts, *_rest in await asyncio.gather(*leasing)}) == 1
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
            assert 1 <= load.threads <= MAX_DEFAULT_THREADS
            leasing.cancel()

    run(scenario)


@pytest.mark.parametrize(("setting", "least", "most"), [(None, 2**30, 2**46), (2**29, 2**29, 2**29)])
def test_no_runner_is_without_a_memory_limit(setting: int | None, least: int, most: int) -> None:
    async def scenario() -> None:
        async with warden(runner_memory_bytes=setting) as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            load, _data = await runner.load()
            assert least <= load.memory_bytes <= most
            leasing.cancel()

    run(scenario)


def test_lease_names_what_the_record_names() -> None:
    async def scenario() -> None:
        async with warden() as one:
            runner, facts = await one.leased()
            assert (facts.runner_id, facts.model_digest) == (runner.runner_id, A.digest)
            assert (facts.seal_mode, set(facts.layers), facts.context_tokens) == ("sealed-memfd", set(LAYERS), 128)
            [loaded] = one.audit.of(ModelLoaded)
            assert isinstance(loaded, ModelLoaded)
            assert loaded.runner == facts
            assert (loaded.model.digest, loaded.model.bundle_digest) == (A.digest, A.bundle_digest)
            one.assert_no_descriptor_is_open()

    run(scenario)


def test_two_models_have_two_runners() -> None:
    async def scenario() -> None:
        async with warden() as one:
            (first, _), (second, _) = await one.leased(REF_A), await one.leased(REF_B)
            assert first.runner_id != second.runner_id
            assert (await one.pool.lease(REF_A))[0].runner_id == first.runner_id

    run(scenario)


def test_two_names_for_the_same_bytes_have_two_runners() -> None:
    """The record of an answer names a model, its signer and its bundle: those with which its runner was loaded."""
    twin = model("twin", digest=A.digest)

    async def scenario() -> None:
        async with warden() as one:
            one.store.models["twin"] = twin
            (first, _), (second, _) = await one.leased(REF_A), await one.leased(reference(twin))
            assert first.runner_id != second.runner_id
            names = [record.model.name for record in one.audit.of(ModelLoaded) if isinstance(record, ModelLoaded)]
            assert names == ["a", "twin"]

    run(scenario)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "absent"},
        {"digest": Digest.of(b"unknown")},
        {"bundle_digest": Digest.of(b"unknown")},
        {"signer": Signer(name="somebody", fingerprint=Digest.of(b"unknown"))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_model_than_the_one_in_the_store_starts_nothing(change: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with warden() as one:
            refused = await one.refusal(one.lease(msgspec.structs.replace(REF_A, **change)))
            assert refused.reason is Reason.MODEL_NOT_VERIFIED
            assert (one.launcher.count, one.store.hashed, one.audit.records) == (0, [], [])

    run(scenario)


def test_lease_before_any_scan_is_verified_all_the_same() -> None:
    async def scenario() -> None:
        one = Warden()
        await one.leased()
        assert one.store.hashed == ["a"]
        assert one.pool.models() == (A,)
        await one.pool.stop()

    run(scenario)


def test_nothing_is_kept_of_models_that_were_asked_for() -> None:
    async def scenario() -> None:
        async with warden() as one:
            for number in range(100):
                unknown = msgspec.structs.replace(REF_A, name=f"m{number}", digest=Digest.of(str(number).encode()))
                await one.refusal(one.lease(unknown))
            assert one.pool._turns == {}
            assert one.pool._catalogue._failures == {}

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
            assert (await one.refusal(one.lease(REF_A))).reason is Reason.MODEL_NOT_VERIFIED
            assert (one.launcher.count, one.store.hashed) == (0, [])
            _runner, facts = await one.leased(reference(new))
            assert facts.model_digest == new.digest

    run(scenario)


def test_model_that_is_replaced_while_it_is_opened_is_not_started() -> None:
    async def scenario() -> None:
        async with warden() as one:
            new = model("a", digest=Digest.of(b"new bytes"))
            one.store.let_open.clear()
            leasing = one.lease(REF_A)
            assert await asyncio.to_thread(one.store.opening.wait, 10)
            one.store.models["a"] = new
            one.store.let_open.set()
            assert (await one.refusal(leasing)).reason is Reason.MODEL_NOT_VERIFIED
            assert one.launcher.count == 0
            one.assert_no_descriptor_is_open()
            assert new in one.pool.models()

    run(scenario)


# --- what is not leased before it is on record ----------------------------------------------------------------------


def test_runner_is_not_leased_before_its_record_is_durable() -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.steps.hold = "record model-loaded"
            leasing = one.lease()
            await one.launcher.next_ready()
            await turns()
            assert not leasing.done()
            assert await one.pool.loaded() == ()
            one.steps.go.set()
            await leasing
            assert one.events() == ["model-loaded"]

    run(scenario)


def test_runner_that_cannot_be_recorded_is_killed_and_not_leased() -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.steps.fail["record model-loaded"] = Refused(Reason.AUDIT_UNAVAILABLE, "the disk is full")
            leasing = one.lease()
            runner = await one.launcher.next_ready()
            assert (await one.refusal(leasing)).reason is Reason.AUDIT_UNAVAILABLE
            assert runner.kills == 1
            await until(lambda: "runner-ended" in one.events())
            assert runner.channel.fileno() == -1
            one.steps.fail.clear()
            await one.leased()  # it is no fault of the model's

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
def test_start_that_fails_is_recorded_and_leaves_nothing(behaviour: Any, why: str, clock: Clock) -> None:
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
            clock.now += 2
            await one.leased()  # and a later lease tries again

    run(scenario)


def test_failing_model_is_not_hashed_for_every_request(clock: Clock) -> None:
    """Each request would cost the whole model's bytes, and a record."""

    async def scenario() -> None:
        async with warden() as one:
            one.store.fail["a"] = Refused(Reason.MODEL_NOT_VERIFIED, "one byte was changed")
            for _ in range(50):
                refused = await one.refusal(one.lease())
                assert (refused.reason, refused.detail) == (Reason.MODEL_NOT_VERIFIED, "one byte was changed")
            assert (one.store.hashed, one.events()) == (["a"], ["model-refused"])
            attempts = []
            for _ in range(200):
                clock.now += 1
                await one.refusal(one.lease())
                attempts.append(len(one.store.hashed))
            assert 6 <= attempts[-1] <= 9  # 1, 2, 4 ... 60 s

    run(scenario)


def test_failure_is_forgotten_when_the_model_changes(clock: Clock) -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.store.fail["a"] = Refused(Reason.MODEL_NOT_VERIFIED, "one byte was changed")
            await one.refusal(one.lease())
            del one.store.fail["a"]
            one.store.touch("a")  # the file was restored
            await one.leased()

    run(scenario)


def test_runner_that_cannot_load_is_not_started_for_every_request(clock: Clock) -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = one.lease()
            await _says_no(await one.launcher.launched.get())
            await one.refusal(leasing)
            for _ in range(10):
                assert "gguf-invalid" in (await one.refusal(one.lease())).detail
            assert (one.launcher.count, one.events()) == (1, ["model-refused"])

    run(scenario)


# --- the fence ------------------------------------------------------------------------------------------------------

FENCES: list[tuple[str, Fenced, str]] = [
    ("a layer that nobody knows", _fenced(layers=(*FENCED.layers, "everything-on")), "accounts for"),
    ("a layer left out", _fenced(layers=FENCED.layers[1:]), "accounts for"),
    ("a layer twice", _fenced(layers=(*FENCED.layers[1:], FENCED.layers[1])), "accounts for"),
    ("a layer both on and missing", _fenced(degraded=("mdwe",)), "accounts for"),
    ("nothing", _fenced(layers=()), "accounts for"),
    ("filters that it has not installed yet", _fenced(layers=LAYERS), "accounts for"),
    (
        "a layer that must not be missing",
        _fenced(layers=tuple(layer for layer in FENCED.layers if layer != "landlock"), degraded=("landlock",)),
        "lacks landlock",
    ),
    ("filters of another release", _fenced(filter_digest=Digest.of(b"a lie")), "its filters are"),
]


@pytest.mark.parametrize(("fenced", "why"), [row[1:] for row in FENCES], ids=[row[0] for row in FENCES])
def test_runner_that_is_not_fenced_in_gets_no_model(fenced: Fenced, why: str) -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.launcher.fenced = fenced
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            assert why in (await one.refusal(leasing)).detail
            assert runner.kills == 1
            await runner.peer.gone.wait()
            assert (runner.peer.heard.empty(), runner.peer.fds) == (True, [])
            one.assert_no_descriptor_is_open()

    run(scenario)


def test_layer_may_be_missing_where_it_is_named() -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.launcher.allow_degraded = frozenset({"landlock", "mdwe"})
            remaining = tuple(layer for layer in FENCED.layers if layer != "landlock")
            one.launcher.fenced = _fenced(layers=remaining, degraded=("landlock",))
            _runner, facts = await one.leased()
            assert (facts.degraded, set(facts.layers)) == (("landlock",), set(LAYERS) - {"landlock"})

    run(scenario)


def test_model_waits_for_the_fence() -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.launcher.fenced = None
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await turns()
            assert runner.peer.heard.empty()
            runner.peer.say(FENCED)
            await runner.become_ready()
            await leasing

    run(scenario)


async def _claims_more_slots(runner: FakeRunner) -> None:
    load, _data = await runner.load()
    runner.peer.say(Ready(context_tokens=128, slots=load.slots + 1))


async def _claims_a_larger_context(runner: FakeRunner) -> None:
    load, _data = await runner.load()
    runner.peer.say(Ready(context_tokens=load.context_tokens + 1, slots=load.slots))


async def _speaks_before_it_is_fenced(runner: FakeRunner) -> None:
    runner.peer.say(Ready(context_tokens=128, slots=2))


async def _talks_and_talks(runner: FakeRunner) -> None:
    await runner.load()
    for _ in range(1000):
        if runner.peer.gone.is_set():
            break
        with contextlib.suppress(ConnectionError):
            runner.peer.say(ResetDone(nonce="x"))


async def _looks_wrong(runner: FakeRunner) -> None:
    runner.looks_wrong = True
    await runner.become_ready()


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (_claims_more_slots, "3 slots"),
        (_claims_a_larger_context, "1025 tokens"),
        (_speaks_before_it_is_fenced, "Ready"),
        (_talks_and_talks, "ResetDone"),
        (_looks_wrong, "1 filters, not 2"),
    ],
)
def test_runner_that_is_not_what_was_asked_for_is_not_leased(behaviour: Any, why: str) -> None:
    async def scenario() -> None:
        async with warden() as one:
            if behaviour is _speaks_before_it_is_fenced:
                one.launcher.fenced = None
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await behaviour(runner)
            refused = await one.refusal(leasing)
            assert (refused.reason, why in refused.detail) == (Reason.RUNNER_UNAVAILABLE, True), refused.detail
            assert runner.kills == 1
            assert runner.channel.fileno() == -1
            assert await one.pool.loaded() == ()

    run(scenario)


def test_process_is_looked_at_with_the_layers_it_named() -> None:
    async def scenario() -> None:
        async with warden() as one:
            runner, _facts = await one.leased()
            assert runner.inspected == [frozenset(FENCED.layers)]

    run(scenario)


def test_no_record_can_be_grown_by_a_runner() -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await runner.load()
            runner.peer.say(LoadFailed(reason="x" * 48, detail="\U0001f600" * 2000))
            await one.refusal(leasing)
            assert len(canonical_json(one.audit.records[-1])) < 4096

    run(scenario)


@pytest.mark.parametrize("detail", ["a\nb", "a\x1b[2J", "\u2028", "\u202e", "x" * 2001])
def test_runners_words_do_not_break_a_line(detail: str) -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await runner.load()
            runner.peer.say(LoadFailed(reason="no", detail=detail))
            refused = await one.refusal(leasing)
            assert "not a valid frame" in refused.detail
            assert refused.detail.isprintable()

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


def test_runner_that_cannot_be_looked_at_in_time_is_killed() -> None:
    async def scenario() -> None:
        async with warden(load_timeout_seconds=0.05) as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            runner.inspect = lambda _named: asyncio.Event().wait()  # type: ignore[assignment,method-assign,return-value]
            await runner.become_ready()
            assert "no answer in time" in (await one.refusal(leasing)).detail
            assert runner.kills == 1

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


def test_launcher_that_fails_is_a_refusal(clock: Clock) -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.launcher.fault = Fault("no more processes")
            assert (await one.refusal(one.lease())).reason is Reason.RUNNER_UNAVAILABLE
            one.assert_no_descriptor_is_open()
            one.launcher.fault = None
            clock.now += 60
            await one.leased()

    run(scenario)


def test_launcher_that_fails_does_not_cost_a_hash_for_each_who_asks(clock: Clock) -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.launcher.fault = Fault("no more processes")
            for _ in range(20):
                refused = await one.refusal(one.lease())
                assert (refused.reason, refused.detail) == (Reason.RUNNER_UNAVAILABLE, "no more processes")
            assert one.store.hashed == ["a"]
            [record] = one.audit.records
            assert record == RunnerNotStarted(model=REF_A, reason="host-fault", detail="no more processes")

    run(scenario)


def test_model_that_verifies_and_does_not_load_is_tried_less_and_less_often(clock: Clock) -> None:
    async def scenario() -> None:
        async with warden() as one:
            one.launcher.fault = Fault("no more processes")
            for _second in range(60):
                await one.refusal(one.lease())
                clock.now += 1
            assert [(failed.name, failed.detail) for failed in one.pool.failed()] == [("a", "no more processes")]
            assert len(one.store.hashed) == 6  # after 0, 1, 3, 7, 15 and 31 seconds
            one.launcher.fault = None
            clock.now += 60
            runner, _facts = await one.leased()
            assert one.pool.failed() == ()
            runner.end(0)
            await until(lambda: "runner-ended" in one.events())
            one.launcher.fault = Fault("no more processes")
            await one.refusal(one.lease())
            clock.now += 1  # it has loaded meanwhile, so this is its first failure again
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


def test_leases_that_wait_for_a_start_that_fails_do_not_each_try_again(clock: Clock) -> None:
    async def scenario() -> None:
        async with warden() as one:
            leasing = [one.lease() for _ in range(5)]
            runner = await one.launcher.launched.get()
            await runner.load()
            runner.end(1)
            for each in leasing:
                assert (await one.refusal(each)).reason is Reason.RUNNER_UNAVAILABLE
            assert one.launcher.count == 1

    run(scenario)


# --- how many -------------------------------------------------------------------------------------------------------


def test_no_more_models_are_loaded_than_allowed() -> None:
    async def scenario() -> None:
        async with warden(max_loaded=1) as one:
            runner, _facts = await one.leased(REF_A)
            assert (await one.refusal(one.lease(REF_B))).reason is Reason.RUNNER_UNAVAILABLE
            await one.pool.lease(REF_A)
            runner.end(0)
            await until(lambda: "runner-ended" in one.events())
            await one.leased(REF_B)

    run(scenario)


def test_models_that_are_being_loaded_count_too() -> None:
    async def scenario() -> None:
        async with warden(max_loaded=1) as one:
            first = one.lease(REF_A)
            runner = await one.launcher.launched.get()
            assert (await one.refusal(one.lease(REF_B))).reason is Reason.RUNNER_UNAVAILABLE
            assert one.launcher.count == 1
            await runner.become_ready()
            await first

    run(scenario)


def test_failed_start_gives_its_place_back(clock: Clock) -> None:
    async def scenario() -> None:
        async with warden(max_loaded=1) as one:
            for _ in range(3):
                clock.now += 60
                leasing = one.lease(REF_A)
                (await one.launcher.launched.get()).end(1)
                await one.refusal(leasing)
            await one.leased(REF_B)

    run(scenario)


def test_released_runner_makes_room() -> None:
    async def scenario() -> None:
        async with warden(max_loaded=1) as one:
            runner, facts = await one.leased(REF_A)
            assert isinstance(await one.refusal(one.lease(REF_B)), NoPlace)
            runner.lives_on = True
            one.pool.release(facts.runner_id)
            leasing = one.lease(REF_B)
            await turns()
            assert one.launcher.count == 1  # its memory is not free yet
            runner.end(-9)
            await one.launcher.next_ready()
            await leasing
            [record] = one.audit.of(RunnerEnded)
            assert isinstance(record, RunnerEnded)
            assert record.detail == "released to make room"

    run(scenario)


def test_runner_that_does_not_end_is_waited_for_a_while_and_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that systemd started can: nobody here could do more than close its channel."""
    monkeypatch.setattr(pool_module, "ENDING_SECONDS", 0.05)

    async def scenario() -> None:
        async with warden(max_loaded=2, load_timeout_seconds=0.05) as one:
            leasing = one.lease(REF_A)
            stuck = await one.launcher.launched.get()
            stuck.lives_on = True
            assert (await one.refusal(leasing)).reason is Reason.RUNNER_UNAVAILABLE
            one.pool._settings = msgspec.structs.replace(one.pool._settings, load_timeout_seconds=5.0)
            runner, facts = await one.leased(REF_B)
            runner.lives_on = True
            one.pool.complain(facts.runner_id, "silent")
            assert isinstance(await one.refusal(one.lease(REF_B)), NoPlace)
            stuck.end(None)
            await turns()
            _other, other_facts = await one.leased(REF_B)
            assert other_facts.runner_id != facts.runner_id
            runner.end(None)
            await until(lambda: "runner-ended" in one.events())
            [record] = one.audit.of(RunnerEnded)
            assert isinstance(record, RunnerEnded)
            assert (record.exit_status, record.detail) == (None, "complaint: silent")

    run(scenario)


def test_stop_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "ENDING_SECONDS", 0.05)

    async def scenario() -> None:
        async with warden() as one:
            runner, _facts = await one.leased()
            runner.lives_on = True
            before = time.monotonic()
            await one.pool.stop()
            assert time.monotonic() - before < 2
            runner.end(0)

    run(scenario)


# --- memory ---------------------------------------------------------------------------------------------------------

C = model("c")
REF_C = reference(C)
LOAD = LoadOptions(context_tokens=1024, slots=2)


class PoolClock:
    """The time of idleness; that of the event loop goes on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def pool_clock(monkeypatch: pytest.MonkeyPatch) -> PoolClock:
    one = PoolClock()
    monkeypatch.setattr(pool_module, "time", one)
    return one


def need(wanted: VerifiedModel = A, options: LoadOptions = LOAD) -> int:
    """What one of these models takes: all three are alike."""
    planned = memory.plan(
        wanted.facts,
        context_tokens=options.context_tokens,
        slots=options.slots,
        threads=1,
        kv_type=options.kv_type,
        copied_types=copied_types(),
    )
    return planned.total


@contextlib.asynccontextmanager
async def crowded(*, room_for: int = 2, **changes: Any) -> AsyncIterator[Warden]:
    """Three models, and memory for ``room_for``."""
    settings = {"threads": 1, "max_loaded": 8, "memory_bytes": room_for * need()} | changes
    one = Warden(**settings)
    one.store.models["c"] = C
    await one.scan()
    try:
        yield one
    finally:
        await one.pool.stop()


def no_place(refused: Refused) -> NoPlace:
    assert isinstance(refused, NoPlace), refused
    return refused


def test_model_that_can_never_fit_starts_nothing_and_says_why(clock: Clock) -> None:
    async def scenario() -> None:
        async with crowded(memory_bytes=need() - 1) as one:
            for _ in range(10):
                refused = await one.refusal(one.lease())
                assert (refused.reason, "it needs" in refused.detail) == (Reason.RUNNER_UNAVAILABLE, True)
                assert not isinstance(refused, NoPlace)
            assert (one.launcher.count, one.store.hashed, one.store.opened) == (0, [], [])
            [record] = one.audit.records
            assert isinstance(record, RunnerNotStarted)
            assert (record.model, record.reason) == (REF_A, "memory-short")
            assert [failed.name for failed in one.pool.failed()] == ["a"]
            assert all("it needs" in planned.unfit for planned in one.pool.planned())
            assert one.pool.memory() == MemoryBudget(budget_bytes=need() - 1, planned_bytes=0)

    run(scenario)


def test_lying_header_is_refused_by_arithmetic(clock: Clock) -> None:
    lie = CacheShape(values_per_token=2**36, heads=2**10, row_values=2**26, state_bytes=2**40, quantisable=True)

    liar = msgspec.structs.replace(A, facts=msgspec.structs.replace(A.facts, cache=lie))

    async def scenario() -> None:
        async with crowded() as one:  # of the same bytes as the honest one, which was read before
            one.store.models["a"] = liar
            refused = await one.refusal(one.lease())
            assert (refused.reason, "something else" in refused.detail) == (Reason.MODEL_NOT_VERIFIED, True)
            assert one.launcher.count == 0
            assert one.pool.memory().planned_bytes == 0
            assert "it needs" in (await one.refusal(one.lease())).detail
            assert one.launcher.count == 0
            assert len(canonical_json(one.audit.records[-1])) < 4096
            await one.leased(REF_B)

    run(scenario)


def test_plans_of_all_that_live_fit_the_budget() -> None:
    async def scenario() -> None:
        async with crowded(room_for=2) as one:
            await one.leased(REF_A)
            await one.leased(REF_B)
            assert one.pool.memory() == MemoryBudget(budget_bytes=2 * need(), planned_bytes=2 * need())
            assert no_place(await one.refusal(one.lease(REF_C))).release == ()
            assert one.launcher.count == 2

    run(scenario)


def test_hundred_leases_for_three_models_load_no_more_than_fit() -> None:
    async def scenario() -> None:
        async with crowded(room_for=2) as one:
            leasing = [one.lease((REF_A, REF_B, REF_C)[number % 3]) for number in range(100)]
            for _ in range(2):
                await one.launcher.next_ready()
            outcomes = await asyncio.gather(*leasing, return_exceptions=True)
            given = {outcome[0].runner_id for outcome in outcomes if not isinstance(outcome, BaseException)}
            refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            assert (len(given), one.launcher.count) == (2, 2)
            assert len(refused) in {33, 34}
            assert {type(each) for each in refused} == {NoPlace}
            assert one.pool.memory().planned_bytes == 2 * need()

    run(scenario)


@pytest.mark.parametrize("status", [-9, 1, None])
def test_runner_that_dies_frees_its_memory(status: int | None) -> None:
    async def scenario() -> None:
        async with crowded(room_for=1) as one:
            runner, _facts = await one.leased(REF_A)
            runner.end(status)
            await until(lambda: one.pool.memory().planned_bytes == 0)
            await one.leased(REF_B)

    run(scenario)


def test_runner_that_does_not_end_keeps_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "ENDING_SECONDS", 0.05)

    async def scenario() -> None:
        async with crowded(room_for=1) as one:
            runner, facts = await one.leased(REF_A)
            runner.lives_on = True
            one.pool.release(facts.runner_id)
            no_place(await one.refusal(one.lease(REF_B)))
            assert one.pool.memory().planned_bytes == need()
            runner.end(-9)
            await one.leased(REF_B)

    run(scenario)


def test_runner_that_does_not_end_keeps_nobody_from_making_room(
    monkeypatch: pytest.MonkeyPatch, pool_clock: PoolClock
) -> None:
    """One process that hangs in the kernel would freeze what is loaded for as long as it does."""
    monkeypatch.setattr(pool_module, "ENDING_SECONDS", 0.05)
    gateway = object()

    async def scenario() -> None:
        async with crowded(room_for=2) as one:
            hung, facts = await one.leased(REF_A)
            _, idle = await one.leased(REF_B, holder=gateway)
            hung.lives_on = True
            one.pool.release(facts.runner_id)
            refused = no_place(await one.refusal(one.lease(REF_C, idle=(idle.runner_id,), holder=gateway)))
            assert refused.release == (idle.runner_id,)
            one.pool.left(gateway)
            pool_clock.now += pool_module.UNHELD_SECONDS
            no_place(await one.refusal(one.lease(REF_C)))  # that one ends now, so the next has its place
            await one.leased(REF_C)
            hung.end(-9)

    run(scenario)


def test_failed_and_cancelled_starts_free_their_memory(clock: Clock) -> None:
    async def scenario() -> None:
        async with crowded(room_for=1) as one:
            leasing = one.lease(REF_A)
            (await one.launcher.launched.get()).end(1)
            await one.refusal(leasing)
            one.launcher.fault = Fault("no more processes")
            await one.refusal(one.lease(REF_B))
            one.launcher.fault = None
            leasing = one.lease(REF_C)
            await (await one.launcher.launched.get()).load()
            leasing.cancel()
            await asyncio.wait({leasing})
            await until(lambda: one.pool.memory().planned_bytes == 0)
            clock.now += 60
            await one.leased(REF_A)

    run(scenario)


def test_holder_is_told_whom_to_give_up_longest_idle_first_and_none_in_vain() -> None:
    gateway = object()

    async def scenario() -> None:
        async with crowded(room_for=2) as one:
            _, first = await one.leased(REF_A, holder=gateway)
            second_runner, second = await one.leased(REF_B, holder=gateway)
            idle = (second.runner_id, first.runner_id)
            refused = no_place(await one.refusal(one.lease(REF_C, idle=idle, holder=gateway)))
            assert refused.release == (second.runner_id,)
            assert second_runner.kills == 0  # it is the holder's to say
            one.pool.release(second.runner_id)
            await one.leased(REF_C, idle=(first.runner_id,), holder=gateway)
            assert one.launcher.count == 3

    run(scenario)


def test_nobody_gives_up_what_somebody_else_holds() -> None:
    gateway, other = object(), object()

    async def scenario() -> None:
        async with crowded(room_for=1) as one:
            _, facts = await one.leased(REF_A, holder=gateway)
            refused = no_place(await one.refusal(one.lease(REF_B, idle=(facts.runner_id, "x"), holder=other)))
            assert refused.release == ()

    run(scenario)


def test_runner_that_nobody_holds_makes_room_and_one_that_was_just_left_does_not(pool_clock: PoolClock) -> None:
    gateway, next_gateway = object(), object()

    async def scenario() -> None:
        async with crowded(room_for=1) as one:
            runner, facts = await one.leased(REF_A, holder=gateway)
            one.pool.left(gateway)
            no_place(await one.refusal(one.lease(REF_B, holder=next_gateway)))
            one.pool.in_use(next_gateway, (RunnerUse(runner_id=facts.runner_id, idle_seconds=100),))
            pool_clock.now += pool_module.UNHELD_SECONDS
            no_place(await one.refusal(one.lease(REF_B, holder=next_gateway)))  # it came back for it
            one.pool.left(next_gateway)
            pool_clock.now += pool_module.UNHELD_SECONDS
            await one.leased(REF_B, holder=object())
            assert runner.kills >= 1

    run(scenario)


def test_runner_that_nobody_holds_ends_when_it_was_kept_for_long_enough(pool_clock: PoolClock) -> None:
    gateway = object()

    async def scenario() -> None:
        async with crowded(
            named={"b": msgspec.structs.replace(LOAD, keep_alive_seconds=-1)}, keep_alive_seconds=300
        ) as one:
            kept, _ = await one.leased(REF_B)
            ended, _ = await one.leased(REF_A, holder=gateway)
            pool_clock.now += 10_000
            one.pool.end_idle()
            assert ended.kills == 0  # its gateway is there, and knows better
            one.pool.left(gateway)
            pool_clock.now += 299
            one.pool.end_idle()
            assert ended.kills == 0
            pool_clock.now += 1
            one.pool.end_idle()
            assert (ended.kills, kept.kills) == (1, 0)
            await until(lambda: "runner-ended" in one.events())
            [record] = one.audit.of(RunnerEnded)
            assert isinstance(record, RunnerEnded)
            assert record.detail == "idle for longer than it is kept"

    run(scenario)


def test_runner_that_its_gateway_never_took_ends_too(pool_clock: PoolClock) -> None:
    """It had given up waiting for the load, and would never have given the runner back."""
    gateway = object()

    async def scenario() -> None:
        async with crowded(keep_alive_seconds=60) as one:
            runner, _ = await one.leased(REF_A, holder=gateway)
            one.pool.in_use(gateway, ())
            pool_clock.now += 59
            one.pool.end_idle()
            one.pool.in_use(gateway, ())
            assert runner.kills == 0
            pool_clock.now += 1
            one.pool.end_idle()
            assert runner.kills == 1

    run(scenario)


def test_each_model_is_loaded_as_its_settings_say() -> None:
    own = LoadOptions(context_tokens=512, slots=3, kv_type="q4_0", keep_alive_seconds=7)

    async def scenario() -> None:
        async with crowded(named={"b": own}, kv_type="q8_0") as one:
            for wanted, options in ((REF_A, msgspec.structs.replace(LOAD, kv_type="q8_0")), (REF_B, own)):
                leasing = one.lease(wanted)
                runner = await one.launcher.launched.get()
                load = await runner.become_ready()
                _facts, given, _channel = await leasing
                assert given == options
                assert (load.context_tokens, load.slots, load.kv_type) == (
                    options.context_tokens,
                    options.slots,
                    options.kv_type,
                )

    run(scenario)


def test_settings_for_a_model_that_is_not_there_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with crowded(named={"a": LOAD, "typo\n": LOAD}) as one:
            await one.scan()

    run(scenario)
    assert [message for message in caplog.messages if "not in the store" in message] == [
        "the settings name a model that is not in the store: typo?"
    ]


def test_status_tells_what_each_takes_and_when_it_ends(pool_clock: PoolClock) -> None:
    gateway = object()

    async def scenario() -> None:
        async with crowded(keep_alive_seconds=300) as one:
            _, facts = await one.leased(REF_A, holder=gateway)
            for idle_seconds, ends in ((None, None), (10, 290), (301, 0)):
                one.pool.in_use(gateway, (RunnerUse(runner_id=facts.runner_id, idle_seconds=idle_seconds),))
                [told] = await one.pool.loaded()
                assert (told.idle_seconds, told.ends_in_seconds) == (idle_seconds, ends)
            assert told.plan is not None
            assert (told.plan.total, told.options) == (need(), msgspec.structs.replace(LOAD, keep_alive_seconds=300))
            assert told.taken == TakenMemory(private_bytes=2**20, mapped_bytes=2**21)
            assert [planned.name for planned in one.pool.planned()] == ["b", "c"]

    run(scenario)


def test_status_does_not_wait_for_a_runner_that_nobody_can_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "MEASURE_SECONDS", 0.01)

    async def scenario() -> None:
        async with crowded() as one:
            runner, _facts = await one.leased()
            runner.taken = lambda: asyncio.Event().wait()  # type: ignore[assignment,method-assign,return-value]
            assert [told.taken for told in await one.pool.loaded()] == [None]

    run(scenario)


@pytest.mark.parametrize("change", [_distrust, _remove, _replace])
def test_model_that_is_refused_while_it_loads_is_not_leased(change: Any) -> None:
    """A look that comes while there is no runner yet finds none to end, and the next finds nothing that has changed."""

    async def scenario() -> None:
        async with warden() as one:
            leasing = one.lease()
            runner = await one.launcher.launched.get()
            await runner.load()
            change(one)
            await one.pool.rescan()
            runner.peer.say(Ready(context_tokens=128, slots=2))
            assert (await one.refusal(leasing)).reason is Reason.MODEL_NOT_VERIFIED
            assert runner.kills == 1
            await until(lambda: "runner-ended" in one.events())
            assert await one.pool.loaded() == ()
            assert one.pool.memory().planned_bytes == 0

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
            (first, facts), (second, _) = await one.leased(REF_A), await one.leased(REF_B)
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
        await one.scan()
        await one.leased(REF_A)
        await one.leased(REF_B)
        await one.pool.stop()
        assert one.events() == ["model-loaded", "model-loaded", "runner-ended", "runner-ended"]
        await one.pool.stop()

    run(scenario)
