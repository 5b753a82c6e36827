"""What the gateway does while the warden is away, slow or wrong: it fails closed, and gives no lease twice."""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.core.records import reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest, EngineFigures, RunnerReport
from appliance.gateway import warden_client
from appliance.gateway.warden_client import WardenClient
from appliance.ipc.connection import channel_pair
from appliance.ipc.messages import (
    NO_PLACE,
    AskFigures,
    AskLease,
    Complain,
    Failed,
    Figures,
    InUse,
    Leased,
    ListModels,
    MakeRoom,
    ModelList,
    Release,
    Reset,
    ResetDone,
    RunnerDelta,
    RunnerEnd,
    RunnerUse,
    ToRunner,
    ToWarden,
)
from appliance.warden import pages
from tests.support.made_values import admission, model, runner_facts
from tests.support.scenario import run, turns, until
from tests.support.scripted_peer import ScriptedPeer, ScriptedServer

DEMO = model("demo")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden_client, "REFRESH_SECONDS", 0.005)
    monkeypatch.setattr(warden_client, "RECONNECT_SECONDS", 0.005)


class Warden:
    """The test's side of the warden's socket: lists ``models`` when asked, and lets the test answer the rest."""

    def __init__(self, path: Path) -> None:
        self.server = ScriptedServer(path, ToWarden)
        self.models: tuple[Any, ...] = (DEMO,)
        self.pending: tuple[str, ...] = ()
        self.lists = True
        self.questions: asyncio.Queue[Any] = asyncio.Queue()
        self.uses: list[tuple[RunnerUse, ...]] = []
        self.keep_alive_seconds = -1
        self.peer: ScriptedPeer | None = None
        self.runners: list[ScriptedPeer] = []

    async def serve(self) -> None:
        while True:
            self.peer = await self.server.accept()
            while not self.peer.gone.is_set():
                message = await self._hear(self.peer)
                if isinstance(message, ListModels):
                    with contextlib.suppress(ConnectionError):
                        if self.lists:
                            self.peer.say(self.page(message))
                elif isinstance(message, InUse):
                    self.uses.append(message.runners)
                elif message is not None:
                    self.questions.put_nowait(message)

    def page(self, question: ListModels) -> ModelList:
        return pages.model_list(question, self.models, self.pending)

    @staticmethod
    async def _hear(peer: ScriptedPeer) -> Any:
        hearing = asyncio.create_task(peer.hear())
        gone = asyncio.create_task(peer.gone.wait())
        await asyncio.wait({hearing, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not hearing.done():
            hearing.cancel()
            return None
        return hearing.result()

    async def lease_out(self, ask: Any = None, facts: Any = None) -> ScriptedPeer:
        """Answers the next ``AskLease`` with a channel to a new runner, and that runner's reset."""
        ask = ask or await self.questions.get()
        assert isinstance(ask, AskLease)
        runner = await self.hand_over(ask, facts or runner_facts(DEMO, f"runner-{len(self.runners)}"))
        runner.say(ResetDone(nonce=(await runner.hear(Reset)).nonce))
        return runner

    async def hand_over(self, ask: AskLease, facts: Any) -> ScriptedPeer:
        ours, theirs = channel_pair()
        assert self.peer is not None
        keep = self.keep_alive_seconds
        self.peer.say(Leased(call=ask.call, runner=facts, keep_alive_seconds=keep), [ours.fileno()])
        ours.close()
        runner = ScriptedPeer(theirs, ToRunner)
        self.runners.append(runner)
        return runner


@contextlib.asynccontextmanager
async def both(path: Path, *, silence_seconds: float = 60.0) -> AsyncIterator[tuple[WardenClient, Warden]]:
    warden = Warden(path / "warden.sock")
    client = WardenClient(
        path / "warden.sock", load_timeout_seconds=5.0, silence_seconds=silence_seconds, queue_seconds=7
    )
    tasks = [asyncio.create_task(warden.serve()), asyncio.create_task(client.run())]
    try:
        await until(lambda: client._catalogue is not None)
        yield client, warden
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        warden.server.stop()
        for runner in warden.runners:
            runner.leave()


def test_strangers_socket_is_not_the_warden(tmp_path: Path) -> None:
    async def scenario() -> None:
        warden = Warden(tmp_path / "warden.sock")
        strangers = frozenset({os.getuid() + 1})
        client = WardenClient(
            tmp_path / "warden.sock",
            load_timeout_seconds=1.0,
            silence_seconds=60.0,
            queue_seconds=7,
            server_uids=strangers,
        )
        running = asyncio.create_task(client.run())
        peer = await warden.server.accept()
        await peer.gone.wait()
        assert peer.heard.empty()
        with pytest.raises(Fault):
            await client.lease(DEMO)
        running.cancel()
        await asyncio.wait([running])
        warden.server.stop()

    run(scenario)


def test_nothing_is_known_before_the_warden_has_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = WardenClient(tmp_path / "absent.sock", load_timeout_seconds=1.0, silence_seconds=60.0, queue_seconds=7)
        with pytest.raises(Fault):
            await client.catalogue()
        with pytest.raises(Fault):
            await client.lease(DEMO)

    run(scenario)


def test_catalogue_follows_the_warden_and_survives_its_absence(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            assert await client.catalogue() == (DEMO,)
            warden.models = (DEMO, model("new"))
            await until(lambda: len(client._catalogue or ()) == 2)
            warden.server.stop()
            assert len(await client.catalogue()) == 2
            await until(lambda: client._connection is None)
            with pytest.raises(Fault):
                await client.lease(DEMO)
            warden.models = ()
            warden.server.start()
            await until(lambda: client._catalogue == ())

    run(scenario)


def test_catalogue_of_many_pages_is_whole(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            warden.models = tuple(model(f"m{number:04}") for number in range(3000))
            await until(lambda: len(client._catalogue or ()) == 3000)
            assert await client.catalogue() == warden.models
            kept, warden.models = warden.models, warden.models[:1]
            warden.pending = tuple(one.name for one in kept[1:])  # all but the first are hashed again
            await until(lambda: client._catalogue == kept)
            warden.pending = ()
            await until(lambda: client._catalogue == kept[:1])

    run(scenario)


@pytest.mark.parametrize("models", [(), (DEMO,)])
def test_list_that_does_not_go_on_is_not_followed_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: tuple[Any, ...]
) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            first = warden.peer
            assert first is not None
            endless = functools.partial(ModelList, models=models, more=True)
            monkeypatch.setattr(warden, "page", lambda question: endless(call=question.call))
            await asyncio.wait_for(first.gone.wait(), 5)
            assert await client.catalogue() == (DEMO,)

    run(scenario)


def test_parallel_requests_share_one_lease(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = [asyncio.create_task(client.lease(DEMO)) for _ in range(20)]
            await warden.lease_out()
            links = await asyncio.gather(*leasing)
            assert len(set(map(id, links))) == 1
            assert warden.questions.empty()
            assert await client.lease(DEMO) is links[0]

    run(scenario)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("model-not-verified", Reason.MODEL_NOT_VERIFIED),
        ("audit-unavailable", Reason.AUDIT_UNAVAILABLE),
        ("runner-unavailable", Reason.RUNNER_UNAVAILABLE),
        ("fault", Reason.RUNNER_UNAVAILABLE),
        ("anything else", Reason.RUNNER_UNAVAILABLE),
    ],
)
def test_wardens_no_is_a_refusal_and_is_not_remembered(tmp_path: Path, said: str, reason: Reason) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            ask = await warden.questions.get()
            assert warden.peer is not None
            warden.peer.say(Failed(call=ask.call, reason=said, detail="d"))
            with pytest.raises(Refused) as caught:
                await leasing
            assert caught.value.reason is reason
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            assert not (await leasing).broken

    run(scenario)


def test_lease_of_another_model_is_not_taken(tmp_path: Path) -> None:
    """An answer is bound to the digest that was admitted; the descriptor that came with the wrong one is closed."""

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            wrong = runner_facts(model("other", digest=Digest.of(b"other")))
            runner = await warden.hand_over(await warden.questions.get(), wrong)
            with pytest.raises(Fault):
                await leasing
            await runner.gone.wait()

    run(scenario)


def test_lease_without_its_descriptor_is_not_taken(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            ask = await warden.questions.get()
            assert warden.peer is not None
            warden.peer.say(Leased(call=ask.call, runner=runner_facts(DEMO)))
            with pytest.raises(Fault):
                await leasing

    run(scenario)


def test_refusal_with_a_descriptor_leaks_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            ask = await warden.questions.get()
            assert warden.peer is not None
            reader, writer = os.pipe()
            warden.peer.say(Failed(call=ask.call, reason="fault", detail=""), [reader])
            os.close(reader)
            with pytest.raises(Fault):
                await leasing
            with pytest.raises(BrokenPipeError):
                os.write(writer, b"x")
            os.close(writer)

    run(scenario)


def test_warden_that_leaves_while_loading_is_a_fault_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.questions.get()
            warden.server.stop()
            with pytest.raises(Fault):
                await leasing

    run(scenario)


def test_lost_runner_is_complained_about_and_leased_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            runner = await warden.lease_out()
            link = await leasing
            answer = link.answer("r-1", admission(), "p")
            runner.say(RunnerDelta(request_id="foreign", text="", tokens=0))
            complaint = await warden.questions.get()
            assert isinstance(complaint, Complain)
            assert (complaint.runner_id, "not given" in complaint.detail) == ("runner-0", True)
            with pytest.raises(Refused) as caught:
                await answer.events()
            assert caught.value.reason is Reason.RUNNER_LOST
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            assert (await leasing).facts.runner_id == "runner-1"

    run(scenario)


def test_runner_that_dies_before_its_reset_is_unavailable_and_the_next_lease_asks_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            (await warden.hand_over(await warden.questions.get(), runner_facts(DEMO))).leave()
            with pytest.raises(Refused) as caught:
                await leasing
            assert caught.value.reason is Reason.RUNNER_UNAVAILABLE
            assert isinstance(await warden.questions.get(), Complain)
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            await leasing

    run(scenario)


def test_live_runner_serves_on_while_the_warden_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            link = await leasing
            warden.server.stop()
            await until(lambda: client._connection is None)
            assert await client.lease(DEMO) is link
            link.answer("r-1", admission(), "p")

    run(scenario)


def test_silent_runner_is_given_up_also_while_the_warden_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path, silence_seconds=0.05) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            link = await leasing
            warden.server.stop()
            answer = link.answer("r-1", admission(), "p")
            with pytest.raises(Refused) as caught:
                await answer.events()
            assert (caught.value.reason, "silent" in caught.value.detail) == (Reason.RUNNER_LOST, True)

    run(scenario)


@pytest.mark.parametrize("junk", [b"\xc1", b"junk"])
def test_malformed_word_of_the_warden_ends_the_connection_and_a_new_one_is_made(tmp_path: Path, junk: bytes) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            first = warden.peer
            assert first is not None
            await asyncio.get_running_loop().sock_sendall(first.sock, junk)
            await until(lambda: warden.peer is not first)
            warden.models = ()
            await until(lambda: client._catalogue == ())

    run(scenario)


def test_cancelled_lease_blocks_nobody_and_leaks_no_socket(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            runner = await warden.hand_over(await warden.questions.get(), runner_facts(DEMO))
            await runner.hear(Reset)
            leasing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leasing
            await runner.gone.wait()  # the gateway's end is closed
            assert isinstance(await warden.questions.get(), Complain)
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            await leasing

    run(scenario)


def test_client_that_stops_leaves_no_socket_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (_client, warden):
            peer = warden.peer
        assert peer is not None
        await peer.gone.wait()

    run(scenario)


# --- complaints -----------------------------------------------------------------------------------------------------


async def complaints(warden: Warden) -> list[Complain]:
    heard = []
    while not warden.questions.empty():
        message = warden.questions.get_nowait()
        assert isinstance(message, Complain)
        heard.append(message)
    return heard


def test_complaint_is_not_lost_while_the_warden_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            runner = await warden.lease_out()
            link = await leasing
            warden.server.stop()
            await until(lambda: client._connection is None)
            runner.say(RunnerDelta(request_id="foreign", text="x", tokens=0))
            await until(lambda: link.broken)
            warden.server.start()
            complaint = await warden.questions.get()
            assert isinstance(complaint, Complain)
            assert (complaint.runner_id, "not given" in complaint.detail) == ("runner-0", True)
            await until(lambda: client._complaints == {})

    run(scenario)


def test_complaint_is_repeated_until_the_warden_has_certainly_heard_it(tmp_path: Path) -> None:
    """A warden that dies with it unread in its socket has not heard it."""

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            runner = await warden.lease_out()
            await leasing
            warden.lists = False  # it reads, and never answers again
            await turns()
            runner.leave()
            await until(lambda: client._links == {})
            await until(lambda: not warden.questions.empty())
            assert len(await complaints(warden)) >= 1
            warden.server.stop()
            warden.lists = True
            warden.server.start()
            assert isinstance(await warden.questions.get(), Complain)
            await until(lambda: client._complaints == {})

    run(scenario)


def test_no_runner_is_leased_anew_before_the_complaint_about_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            runner = await warden.lease_out()
            await leasing
            warden.server.stop()
            await until(lambda: client._connection is None)
            runner.leave()
            await until(lambda: client._links == {})
            warden.lists = False
            warden.server.start()
            await until(lambda: client._connection is not None)
            leasing = asyncio.create_task(client.lease(DEMO))
            words = [await warden.questions.get()]
            while not isinstance(words[-1], AskLease):
                words.append(await warden.questions.get())
            assert isinstance(words[0], Complain)
            leasing.cancel()

    run(scenario)


# --- the catalogue of a warden that has just started ----------------------------------------------------------------


def test_known_model_stays_while_a_new_warden_hashes_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            warden.models, warden.pending = (model("new"),), ("demo",)
            await until(lambda: len(client._catalogue or ()) == 2)
            warden.pending = ()
            await until(lambda: client._catalogue == (model("new"),))

    run(scenario)


def test_removed_model_does_not_stay_because_another_is_being_hashed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            warden.models, warden.pending = (), ("large",)
            await until(lambda: client._catalogue == ())

    run(scenario)


# --- places ---------------------------------------------------------------------------------------------------------


def test_idle_runner_makes_room_and_a_busy_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden_client, "IDLE_SECONDS", 0.001)
    other = model("other")

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            runner = await warden.lease_out()
            link = await leasing
            answer = link.answer("r-1", admission(), "p")
            await runner.hear()
            leasing = asyncio.create_task(client.lease(other))
            ask = await warden.questions.get()
            assert ask.idle == ()
            assert warden.peer is not None
            warden.peer.say(Failed(call=ask.call, reason=NO_PLACE, detail="d"))
            with pytest.raises(Refused) as caught:
                await leasing
            assert caught.value.reason is Reason.RUNNER_UNAVAILABLE
            assert caught.value.retry_after_seconds == warden_client.RETRY_AFTER_SECONDS
            assert not link.broken

            runner.say(RunnerEnd(request_id="r-1", reason="stop", prompt_tokens=1, completion_tokens=0))
            await answer.events()
            await asyncio.sleep(0.002)
            leasing = asyncio.create_task(client.lease(other))
            ask = await warden.questions.get()
            assert ask.idle == ("runner-0",)
            warden.peer.say(MakeRoom(call=ask.call, release=("runner-0",)))
            assert await warden.questions.get() == Release(runner_id="runner-0")
            await runner.gone.wait()
            await warden.lease_out(facts=runner_facts(other, "runner-1"))
            assert (await leasing).facts.runner_id == "runner-1"
            assert client._complaints == {}

    run(scenario)


def test_runner_that_became_busy_is_not_given_up_though_the_warden_asks_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden_client, "IDLE_SECONDS", 0.001)

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            link = await leasing
            await asyncio.sleep(0.002)
            leasing = asyncio.create_task(client.lease(model("other")))
            ask = await warden.questions.get()
            assert ask.idle == ("runner-0",)
            link.answer("r-1", admission(), "p")
            for _ in range(warden_client.TURNS_TO_MAKE_ROOM):
                assert warden.peer is not None
                warden.peer.say(MakeRoom(call=ask.call, release=("runner-0", "unknown")))
                ask = await warden.questions.get()
                assert isinstance(ask, AskLease)
                assert ask.idle == ()
            warden.peer.say(MakeRoom(call=ask.call, release=("runner-0",)))
            with pytest.raises(Refused) as caught:
                await leasing
            assert caught.value.retry_after_seconds == warden_client.RETRY_AFTER_SECONDS
            assert not link.broken

    run(scenario)


def test_longest_idle_is_offered_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warden_client, "IDLE_SECONDS", 0.0)
    others = tuple(model(f"other-{number}") for number in range(3))

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            for number, each in enumerate(others):
                leasing = asyncio.create_task(client.lease(each))
                await warden.lease_out(facts=runner_facts(each, f"runner-{number}"))
                await leasing
            await client.lease(others[0])  # used again
            asyncio.create_task(client.lease(DEMO)).add_done_callback(lambda task: task.exception())
            assert (await warden.questions.get()).idle == ("runner-1", "runner-2", "runner-0")
            warden.server.stop()

    run(scenario)


def test_idle_runner_is_given_back_when_it_was_kept_for_long_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warden_client, "LEAST_KEPT_SECONDS", 0.01)

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            for keep, name in ((-1, "for-ever"), (3600, "an-hour"), (0, "not-at-all")):
                warden.keep_alive_seconds = keep
                leasing = asyncio.create_task(client.lease(model(name)))
                runner = await warden.lease_out(facts=runner_facts(model(name), name))
                link = await leasing
            link.answer("r-1", admission(), "p")
            await asyncio.sleep(0.05)
            assert warden.questions.empty()  # it is busy
            runner.say(RunnerEnd(request_id="r-1", reason="stop", prompt_tokens=1, completion_tokens=0))
            assert await warden.questions.get() == Release(runner_id="not-at-all", idle=True)
            await runner.gone.wait()
            assert {link.facts.runner_id for link in client._links.values()} == {"for-ever", "an-hour"}
            assert (client._complaints, warden.questions.empty()) == ({}, True)

    run(scenario)


def test_warden_is_told_which_runners_are_busy_also_after_a_new_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            link = await leasing
            await until(lambda: warden.uses[-1:] == [(RunnerUse(runner_id="runner-0", idle_seconds=0),)])
            link.answer("r-1", admission(), "p")
            busy = [(RunnerUse(runner_id="runner-0", idle_seconds=None),)]
            await until(lambda: warden.uses[-1:] == busy)
            warden.server.stop()
            await until(lambda: client._connection is None)
            warden.uses.clear()
            warden.server.start()
            await until(lambda: warden.uses[:1] == busy)

    run(scenario)


def test_runner_that_was_just_leased_does_not_make_room(tmp_path: Path) -> None:
    """Its caller has not asked yet: the record comes first."""

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            leasing = asyncio.create_task(client.lease(DEMO))
            await warden.lease_out()
            link = await leasing
            leasing = asyncio.create_task(client.lease(model("other")))
            ask = await warden.questions.get()
            assert warden.peer is not None
            warden.peer.say(Failed(call=ask.call, reason=NO_PLACE, detail="d"))
            with pytest.raises(Refused):
                await leasing
            assert not link.broken
            assert warden.questions.empty()

    run(scenario)


def test_same_bytes_under_another_name_or_signer_are_leased_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            twin = model("twin", digest=DEMO.digest)
            for each in (DEMO, twin):
                leasing = asyncio.create_task(client.lease(each))
                ask = await warden.questions.get()
                assert ask.model == reference(each)
                await warden.lease_out(ask)
                await leasing
            assert len(client._links) == 2

    run(scenario)


def test_runners_are_asked_for_their_figures_all_at_once_and_a_silent_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = EngineFigures(**{field.name: 1 for field in msgspec.structs.fields(EngineFigures)})

    async def scenario() -> None:
        async with both(tmp_path) as (client, warden):
            assert await client.reports() == ()
            names = ("told", "mute", "gone")
            for name in names:
                leasing = asyncio.create_task(client.lease(model(name)))
                await warden.lease_out(facts=runner_facts(model(name), name))
                await leasing
            told, mute, gone = warden.runners
            asking = asyncio.create_task(client.reports())
            for runner in (gone, mute, told):
                assert (await runner.hear(AskFigures)).call == 1
            told.say(Figures(call=1, figures=figures))
            gone.leave()
            assert await asking == tuple(
                RunnerReport(
                    model_name=name,
                    model_digest=model(name).digest,
                    figures=figures if name == "told" else None,
                )
                for name in names
            )
            assert client._links.keys() == {reference(model(name)) for name in ("told", "mute")}
            assert [report.model_name for report in await client.reports()] == ["told", "mute"]

    monkeypatch.setattr(warden_client, "FIGURES_SECONDS", 0.1)
    run(scenario)
