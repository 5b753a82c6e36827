"""The liaison and the gateway's link to it, in one process: what is handed over, and what comes of one that is gone."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import IssuerRules
from appliance.identity.foreign import ForeignKeys, LiaisonLink
from appliance.identity.https import Endpoint, tls_context
from appliance.identity.introspection import credential
from appliance.identity.liaison import KeyProvider, Liaison, TokenProvider
from appliance.ipc.connection import listen
from tests.support.identity_provider import AUDIENCE, IdentityProvider
from tests.support.scenario import run, until

ALGORITHMS = frozenset({"ES256"})
OWN = frozenset({os.getuid()})


@pytest.fixture
def idp(tmp_path: Path) -> Iterator[IdentityProvider]:
    with IdentityProvider(tmp_path / "idp").serving() as one:
        yield one


def now_seconds() -> int:
    return int(time.time())


def keys_of(idp: IdentityProvider, name: str = "idp", refresh_seconds: float = 3600.0) -> KeyProvider:
    return KeyProvider(
        name=name,
        endpoint=Endpoint.parse(f"{idp.issuer}/keys"),
        tls=tls_context(idp.ca_file),
        algorithms=ALGORITHMS,
        refresh_seconds=refresh_seconds,
        cooldown_seconds=0.05,
    )


def tokens_of(idp: IdentityProvider) -> TokenProvider:
    rules = IssuerRules(issuer=idp.issuer, audiences=frozenset({AUDIENCE}), max_lifetime_seconds=86_400)
    return TokenProvider(
        name="idp",
        endpoint=Endpoint.parse(f"{idp.issuer}/introspect"),
        tls=tls_context(idp.ca_file),
        rules=rules,
        credential=credential("a", "b"),
    )


@asynccontextmanager
async def serving(path: Path, liaison: Liaison) -> AsyncIterator[asyncio.Event]:
    stop = asyncio.Event()
    listening = listen(path, mode=0o600)
    task = asyncio.create_task(liaison.serve(listening, gateway_uids=OWN, stop=stop))
    try:
        yield stop
    finally:
        stop.set()
        await task
        listening.close()


@asynccontextmanager
async def linked(path: Path, keep_seconds: int = 100) -> AsyncIterator[tuple[LiaisonLink, ForeignKeys]]:
    link = LiaisonLink(path, now_seconds=now_seconds)
    source = ForeignKeys("idp", ALGORITHMS, keep_seconds=keep_seconds, link=link)
    link.follow([source])
    task = asyncio.create_task(link.run())
    try:
        yield link, source
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def known(source: ForeignKeys, *names: str) -> Callable[[], bool]:
    return lambda: set(source.keys(now_seconds()) or ()) == set(names)


async def refused(link: LiaisonLink) -> str:
    with pytest.raises(Refused) as caught:
        await link.ask("a-token-of-some-length")
    assert caught.value.reason is Reason.ISSUER_UNAVAILABLE
    assert caught.value.retry_after_seconds
    return caught.value.detail


def test_keys_are_handed_over_kept_and_followed(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        async with linked(path) as (_link, source):
            async with serving(path, Liaison([keys_of(idp)], None, now_seconds=now_seconds)):
                await until(known(source, "one"))
                idp.keys["two"] = idp.keys["one"]
                source.miss()
                await until(known(source, "one", "two"))
            assert known(source, "one", "two")()  # the liaison is gone, its keys are not
            del idp.keys["one"]
            async with serving(path, Liaison([keys_of(idp)], None, now_seconds=now_seconds)):
                await until(known(source, "two"))

    run(scenario)


def test_keys_are_looked_at_again_without_being_asked(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        liaison = Liaison([keys_of(idp, refresh_seconds=0.1)], None, now_seconds=now_seconds)
        async with serving(path, liaison), linked(path) as (_link, source):
            await until(known(source, "one"))
            idp.keys["two"] = idp.keys["one"]
            await until(known(source, "one", "two"))

    run(scenario)


def test_second_gateway_is_told_what_is_known_already(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        liaison = Liaison([keys_of(idp)], None, now_seconds=now_seconds)
        async with serving(path, liaison), linked(path) as (_link, first):
            await until(known(first, "one"))
            async with linked(path) as (_link, second):
                await until(known(second, "one"))
        assert idp.asked_for("/keys") == 1

    run(scenario)


def test_keys_under_a_name_that_is_not_configured_are_dropped(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        providers = [keys_of(idp, "another"), keys_of(idp)]
        async with serving(path, Liaison(providers, None, now_seconds=now_seconds)), linked(path) as (link, source):
            await until(known(source, "one"))
            assert set(link._sources) == {"idp"}

    run(scenario)


def test_active_token_is_told_with_its_claims_and_another_with_none(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"
    idp.active["good"] = {"active": True} | idp.claims()

    async def scenario() -> None:
        async with serving(path, Liaison([], tokens_of(idp), now_seconds=now_seconds)), linked(path) as (link, _source):
            await until(lambda: link._connection is not None)
            said = await link.ask("good")
            assert said is not None
            assert (said.subject, said.audience) == ("carol", AUDIENCE)
            assert await link.ask("other") is None

    run(scenario)


def test_question_that_nobody_can_answer_is_refused(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        async with linked(path) as (link, _source):
            assert "no connection" in await refused(link)
            async with serving(path, Liaison([], None, now_seconds=now_seconds)):
                await until(lambda: link._connection is not None)
                assert "no issuer of opaque tokens" in await refused(link)
            await until(lambda: link._connection is None)
            async with serving(path, Liaison([], tokens_of(idp), now_seconds=now_seconds)):
                await until(lambda: link._connection is not None)
                idp.answers["/introspect"] = (500, {}, b"")
                assert "status 500" in await refused(link)

    run(scenario)


def test_no_number_of_tokens_asked_about_in_vain_fills_the_log(
    tmp_path: Path, idp: IdentityProvider, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        liaison = Liaison([], tokens_of(idp), now_seconds=now_seconds)
        async with linked(path) as (link, _source), serving(path, liaison):
            await until(lambda: link._connection is not None)
            idp.answers["/introspect"] = (500, {}, b"")
            for _ in range(20):
                assert "status 500" in await refused(link)

    run(scenario)
    assert [line for line in caplog.messages if "status 500" in line] == [
        "issuer idp: 1 without an answer about a token: status 500"
    ]


def test_who_waits_is_told_when_the_liaison_goes(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        held = threading.Event()

        def hold() -> None:
            loop.call_soon_threadsafe(stop.set)
            held.wait(10)

        idp.gate = hold

        async def until_asked() -> None:
            async with serving(path, Liaison([], tokens_of(idp), now_seconds=now_seconds)):
                await stop.wait()

        async with linked(path) as (link, _source):
            task = asyncio.create_task(until_asked())
            await until(lambda: link._connection is not None)
            assert "did not answer" in await refused(link)
            held.set()
            await task

    run(scenario)


def test_peer_of_another_user_is_not_heard(tmp_path: Path, idp: IdentityProvider) -> None:
    path = tmp_path / "liaison.sock"

    async def scenario() -> None:
        listening = listen(path, mode=0o600)
        stop = asyncio.Event()
        liaison = Liaison([keys_of(idp)], None, now_seconds=now_seconds)
        task = asyncio.create_task(liaison.serve(listening, gateway_uids=frozenset({12345}), stop=stop))
        async with linked(path) as (_link, source):
            await until(lambda: idp.asked_for("/keys") > 0)
            await until(lambda: _link._attempt > 2)
            assert source.keys(now_seconds()) is None
        stop.set()
        await task
        listening.close()

    run(scenario)
