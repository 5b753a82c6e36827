"""No outcome record is lost and no opening is believed, whatever the notary does at the other end."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from appliance.core.records import Closed, Record
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest
from appliance.ipc import notary_client
from appliance.ipc.frames import MAX_FRAME_BYTES, encode
from appliance.ipc.messages import Append, Appended, AppendFailed, Hello, Revoked, ToNotary
from appliance.ipc.notary_client import MAX_UNDELIVERED, NotaryClient
from tests.support.audit_records import closed, opened, small
from tests.support.scenario import run, turns, until
from tests.support.scripted_peer import ScriptedPeer, ScriptedServer

LEAF = Digest.of(b"leaf")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notary_client, "_RECONNECT_SECONDS", (0.001, 0.005))
    monkeypatch.setattr(notary_client, "RETRY_SECONDS", 0.01)


@contextlib.asynccontextmanager
async def both(
    path: Path, role: Literal["gateway", "warden"] = "gateway"
) -> AsyncIterator[tuple[NotaryClient, ScriptedServer]]:
    server = ScriptedServer(path / "notary.sock", ToNotary)
    client = NotaryClient(path / "notary.sock", role)
    running = asyncio.create_task(client.run())
    try:
        yield client, server
    finally:
        running.cancel()
        await asyncio.wait([running])
        server.stop()


async def greeted(server: ScriptedServer) -> tuple[ScriptedPeer, Hello]:
    peer = await server.accept()
    hello: Hello = await peer.hear(Hello)
    return peer, hello


async def asked(peer: ScriptedPeer, record: Record) -> Append:
    append: Append = await peer.hear(Append)
    assert append.record == record
    return append


def written(append: Append) -> Appended:
    return Appended(call=append.call, index=7, leaf_hash=LEAF)


async def begin(client: NotaryClient, peer: ScriptedPeer, request_id: str = "r-1") -> None:
    """Opens one request to its durable record."""
    opening = asyncio.create_task(client.open(opened(request_id)))
    peer.say(written(await asked(peer, opened(request_id))))
    await opening


async def refusal(opening: "asyncio.Task[Any]") -> Refused:
    with pytest.raises(Refused) as caught:
        await opening
    assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    return caught.value


# --- opening --------------------------------------------------------------------------------------------------------


def test_opening_waits_for_the_durable_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, hello = await greeted(server)
            assert hello == Hello(role="gateway")
            opening = asyncio.create_task(client.open(opened("r-1")))
            append = await asked(peer, opened("r-1"))
            assert append.durable
            await turns()
            assert not opening.done()
            peer.say(written(append))
            receipt = await opening
            assert (receipt.index, receipt.leaf_hash) == (7, LEAF)

    run(scenario)


def test_answers_find_their_questions_in_any_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            openings = [asyncio.create_task(client.open(opened(f"r-{n}"))) for n in range(3)]
            appends = [await peer.hear(Append) for _ in openings]
            for append in reversed(appends):
                peer.say(Appended(call=append.call, index=append.call, leaf_hash=LEAF))
            assert [(await opening).index for opening in openings] == [append.call for append in appends]

    run(scenario)


def test_without_a_notary_nothing_opens(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = NotaryClient(tmp_path / "absent.sock", "gateway")
        running = asyncio.create_task(client.run())
        await turns()
        assert client._connection is None
        await refusal(asyncio.create_task(client.open(opened("r-1"))))
        running.cancel()
        await asyncio.wait([running])

    run(scenario)


def test_notary_that_refuses_an_opening_leaves_nothing_in_flight(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            opening = asyncio.create_task(client.open(opened("r-1")))
            append = await asked(peer, opened("r-1"))
            peer.say(AppendFailed(call=append.call, detail="the disk is full"))
            assert (await refusal(opening)).detail == "the disk is full"
            await client.drained()
            peer.leave()
            _peer, hello = await greeted(server)
            assert hello.open_requests == ()

    run(scenario)


async def _is_silent(_peer: ScriptedPeer, _opening: "asyncio.Task[Any]") -> None:
    """Until the client's patience ends."""


async def _leaves(peer: ScriptedPeer, _opening: "asyncio.Task[Any]") -> None:
    peer.leave()


async def _is_cancelled(_peer: ScriptedPeer, opening: "asyncio.Task[Any]") -> None:
    opening.cancel()


@pytest.mark.parametrize("behaviour", [_is_silent, _leaves, _is_cancelled])
def test_opening_without_an_answer_is_closed_as_never_begun(
    tmp_path: Path, behaviour: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be durable all the same, so the notary is told that nothing came of it, until it has understood."""
    monkeypatch.setattr(notary_client, "TIMEOUT_SECONDS", 0.05)

    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            opening = asyncio.create_task(client.open(opened("r-1")))
            await asked(peer, opened("r-1"))
            await behaviour(peer, opening)
            with pytest.raises((Refused, asyncio.CancelledError)):
                await opening
            if behaviour is _leaves:
                peer, hello = await greeted(server)
                assert hello.open_requests == ("r-1",)
            append = await peer.hear(Append)
            assert not append.durable
            assert isinstance(append.record, Closed)
            assert (append.record.request_id, append.record.outcome) == ("r-1", "gateway-error")
            assert append.record.returned_tokens == opened("r-1").reserved_tokens
            peer.say(written(append))
            await client.drained()
            peer.leave()
            _peer, hello = await greeted(server)
            assert hello.open_requests == ()

    run(scenario)


def test_answer_that_comes_too_late_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notary_client, "TIMEOUT_SECONDS", 0.02)

    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            opening = asyncio.create_task(client.open(opened("r-1")))
            append = await asked(peer, opened("r-1"))
            await refusal(opening)
            peer.say(written(append))
            peer.say(written(append))
            peer.say(written(await peer.hear(Append)))
            await client.drained()
            await begin(client, peer, "r-2")

    run(scenario)


def test_refusal_that_is_no_opening_leaves_no_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notary_client, "TIMEOUT_SECONDS", 0.02)

    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            await refusal(asyncio.create_task(client.open(small(60))))
            await peer.hear(Append)
            await client.drained()
            await turns()
            assert peer.heard.empty()

    run(scenario)


def test_opening_too_large_for_a_frame_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            huge = opened("r-1", policy_input={"x": "x" * MAX_FRAME_BYTES})
            await refusal(asyncio.create_task(client.open(huge)))
            assert isinstance((await peer.hear(Append)).record, Closed)
            await begin(client, peer, "r-2")

    run(scenario)


# --- closing --------------------------------------------------------------------------------------------------------


def test_closing_returns_at_once_and_is_delivered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            await begin(client, peer)
            client.close(closed("r-1"))
            append = await asked(peer, closed("r-1"))
            assert not append.durable
            draining = asyncio.create_task(client.drained())
            await turns()
            assert not draining.done()
            peer.say(written(append))
            await draining

    run(scenario)


def test_closing_without_a_notary_is_delivered_to_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            await begin(client, peer, "r-1")
            await begin(client, peer, "r-2")
            server.stop()
            await until(lambda: client._connection is None)
            client.close(closed("r-1"))
            server.start()
            peer, hello = await greeted(server)
            assert hello.open_requests == ("r-1", "r-2")  # the second is still being answered
            peer.say(written(await asked(peer, closed("r-1"))))
            await client.drained()
            peer.leave()
            _peer, hello = await greeted(server)
            assert hello.open_requests == ("r-2",)

    run(scenario)


def test_closing_without_an_answer_is_offered_again_after_each_reconnect(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            await begin(client, peer)
            client.close(closed("r-1"))
            for _ in range(4):
                await asked(peer, closed("r-1"))
                peer.leave()
                peer, hello = await greeted(server)
                assert hello.open_requests == ("r-1",)
            peer.say(written(await asked(peer, closed("r-1"))))
            await client.drained()

    run(scenario)


def test_closing_that_a_full_disk_refuses_is_offered_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            await begin(client, peer)
            client.close(closed("r-1"))
            for _ in range(3):
                append = await asked(peer, closed("r-1"))
                peer.say(AppendFailed(call=append.call, detail="the disk is full"))
            peer.say(written(await asked(peer, closed("r-1"))))
            await client.drained()

    run(scenario)


def test_closing_that_can_never_be_written_is_told_to_the_operator_and_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            client.close(closed("r-1"))
            append = await asked(peer, closed("r-1"))
            peer.say(AppendFailed(call=append.call, detail="the request was never opened", permanent=True))
            await client.drained()
            assert "never opened" in caplog.text

    run(scenario)


def test_closing_answered_twice_is_no_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            client.close(closed("r-1"))
            append = await asked(peer, closed("r-1"))
            for answer in (written(append), written(append), AppendFailed(call=append.call, detail="late")):
                peer.say(answer)
            await client.drained()
            await begin(client, peer, "r-2")

    run(scenario)


def test_record_too_large_for_a_frame_does_not_block_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            with caplog.at_level(logging.CRITICAL, logger="appliance.ipc.notary_client"):
                client.close(opened("r-9", policy_input={"x": "x" * MAX_FRAME_BYTES}))
            client.close(closed("r-1"))
            peer.say(written(await asked(peer, closed("r-1"))))
            await client.drained()

    run(scenario)


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_full_box_refuses_new_answers_but_never_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was opened before the box was full ends too: its outcome must not be the one that is dropped."""
    monkeypatch.setattr(notary_client, "MAX_UNDELIVERED", 3)

    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            for number in range(5):
                await begin(client, peer, f"r-{number}")
            for number in range(3):
                client.close(closed(f"r-{number}"))
            await refusal(asyncio.create_task(client.open(opened("r-9"))))
            client.close(small(60))
            client.close(closed("r-3"))
            client.close(closed("r-4"))
            for number in range(5):
                peer.say(written(await asked(peer, closed(f"r-{number}"))))
            await client.drained()
            assert peer.heard.empty()

    run(scenario)


def test_greeting_fits_a_frame_however_many_answers_are_in_flight() -> None:
    """As many as may be undelivered, and as many connections as the server takes."""
    encode(Hello(role="gateway", open_requests=tuple(f"{number:032x}" for number in range(MAX_UNDELIVERED + 1000))))


def test_close_before_run_is_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = NotaryClient(tmp_path / "notary.sock", "warden")
        client.close(small(1))
        server = ScriptedServer(tmp_path / "notary.sock", ToNotary)
        running = asyncio.create_task(client.run())
        peer, hello = await greeted(server)
        assert hello == Hello(role="warden")
        peer.say(written(await asked(peer, small(1))))
        await client.drained()
        running.cancel()
        await asyncio.wait([running])
        server.stop()

    run(scenario)


# --- a notary that is none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [b"\xc1", b"junk", encode(Hello(role="gateway"))])
def test_malformed_word_ends_the_connection_and_a_new_one_is_made(tmp_path: Path, junk: bytes) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            opening = asyncio.create_task(client.open(opened("r-1")))
            await asked(peer, opened("r-1"))
            await asyncio.get_running_loop().sock_sendall(peer.sock, junk)
            await refusal(opening)
            peer, hello = await greeted(server)
            assert hello.open_requests == ("r-1",)

    run(scenario)


def test_descriptor_from_the_notary_is_closed_with_the_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            client.close(closed("r-1"))
            append = await asked(peer, closed("r-1"))
            reader, writer = os.pipe()
            peer.say(written(append), [reader])
            os.close(reader)
            peer, _hello = await greeted(server)
            with pytest.raises(BrokenPipeError):
                os.write(writer, b"x")
            os.close(writer)
            peer.say(written(await asked(peer, closed("r-1"))))
            await client.drained()

    run(scenario)


def test_connected_waits_for_a_connection_each_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path, "warden") as (client, server):
            await client.connected()
            assert client._connection is not None
            server.stop()
            await until(lambda: client._connection is None)
            waiting = asyncio.create_task(client.connected())
            await turns()
            assert not waiting.done()
            server.start()
            await waiting

    run(scenario)


def test_gateway_is_not_connected_before_it_knows_which_tokens_have_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            waiting = asyncio.create_task(client.connected())
            peer.say(Revoked(anew=True, complete=False))
            await begin(client, peer)
            assert not waiting.done()
            peer.say(Revoked())
            await waiting
            peer.leave()
            await until(lambda: client._connection is None)
            again = asyncio.create_task(client.connected())
            peer, _hello = await greeted(server)
            await turns()
            assert not again.done()
            peer.say(Revoked(anew=True))
            await again

    run(scenario)


def test_stopped_client_fails_those_who_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        opening: asyncio.Task[Any] | None = None
        async with both(tmp_path) as (client, server):
            peer, _hello = await greeted(server)
            opening = asyncio.create_task(client.open(opened("r-1")))
            await asked(peer, opened("r-1"))
        assert opening is not None
        await refusal(opening)

    run(scenario)


def test_thousands_of_undelivered_records_drain_on_one_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with both(tmp_path) as (client, server):
            for number in range(MAX_UNDELIVERED):
                client.close(closed(f"r-{number}"))
            peer, _hello = await greeted(server)
            for number in range(MAX_UNDELIVERED):
                append = await asked(peer, closed(f"r-{number}"))
                peer.say(written(append))
            await client.drained()
            assert not peer.gone.is_set()

    run(scenario)


def test_strangers_socket_is_not_the_notary(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = ScriptedServer(tmp_path / "notary.sock", ToNotary)
        client = NotaryClient(tmp_path / "notary.sock", "gateway", server_uids=frozenset({os.getuid() + 1}))
        running = asyncio.create_task(client.run())
        peer = await server.accept()
        await peer.gone.wait()
        assert peer.heard.empty()
        await refusal(asyncio.create_task(client.open(opened("r-1"))))
        running.cancel()
        await asyncio.wait([running])
        server.stop()

    run(scenario)
