"""What gateways are told of tokens that have ended, whatever else happens in the same turn."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.clients import MAX_TOKEN_ID_CHARACTERS, EndedClient, RevokedToken
from appliance.core.records import Record, TokenRevoked
from appliance.ipc.frames import FrameDecoder, FrameError, encode
from appliance.ipc.messages import (
    AskGrant,
    AskRevoke,
    ClientFound,
    EndTokens,
    FindClient,
    Granted,
    NotGranted,
    PutClient,
    RevocationDone,
    Revoked,
)
from appliance.ipc.revocations import RevokedTokens
from appliance.notary import granting
from appliance.notary.files import Files
from appliance.notary.office import MAX_WAITING
from appliance.notary.registrar import Registrar, pages
from appliance.notary.signer import TokenSigner
from tests.support.audit_log import run
from tests.support.faulty_files import fast_directory
from tests.support.registered import OUR_ISSUER, claims, client, order, revoke

NOW = 1_790_000_000


class Gateway:
    def __init__(self) -> None:
        self.revocations = RevokedTokens(now_seconds=lambda: NOW)

    def tell(self, revoked: Revoked) -> None:
        encode(revoked)
        self.revocations.told(revoked)

    def lets_pass(self, token_id: str, **fields: Any) -> bool:
        return not self.revocations.is_revoked(claims(token_id=token_id, **fields))


class Office:
    """A registrar whose log takes everything, and whose clock is ``now_seconds``. What is given to it together is one
    turn's."""

    def __init__(self, place: Path) -> None:
        self.now_seconds = NOW
        self.records: list[Record] = []
        self.gateway = Gateway()
        signer = TokenSigner(ec.generate_private_key(ec.SECP256R1()), issuer=OUR_ISSUER, audience="paddock")
        clock: Any = SimpleNamespace(wall_seconds=lambda: self.now_seconds)
        journal: Any = SimpleNamespace(append=self._append)
        self.registrar = Registrar(Files(), place, journal, signer, clock)
        self.registrar.gateways = lambda: [self.gateway]

    async def _append(self, record: Record) -> None:
        self.records.append(record)

    async def order(self, *orders: Any) -> list[Any]:
        answers: list[Any] = []
        for one in orders:
            if isinstance(one, PutClient | EndTokens):
                self.registrar.ordered(one, answers.append)
            else:
                self.registrar.asked(one, answers.append)
        return await self.answered(answers, len(orders))

    async def answered(self, answers: list[Any], n_answers: int) -> list[Any]:
        running = asyncio.create_task(self.registrar.run())
        async with asyncio.timeout(10):
            while len(answers) < n_answers:
                await asyncio.sleep(0)
                assert not running.done(), running.exception()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return answers


@pytest.fixture
def place() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


def test_end_in_the_turn_in_which_a_gateway_comes_is_not_lost(place: Path) -> None:
    async def scenario() -> None:
        office = Office(place)
        answers: list[Any] = []
        office.registrar.tell_all(office.gateway)
        office.registrar.ordered(EndTokens(call=1, token_id="t"), answers.append)
        await office.answered(answers, 1)
        assert not office.gateway.lets_pass("t")
        office.registrar.close()

    run(scenario)


def test_change_in_the_turn_in_which_clients_are_read_again_is_not_lost(place: Path) -> None:
    async def scenario() -> None:
        office = Office(place)
        office.registrar._read_again()
        found, *_ = await office.order(PutClient(call=1, client=client()), FindClient(call=2, client_id="agent"))
        assert found == ClientFound(call=2, client=None)  # not yet: it is looked up at once
        assert await office.order(FindClient(call=3, client_id="agent")) == [ClientFound(call=3, client=client())]
        office.registrar.close()

    run(scenario)


def test_longest_list_of_ends_fits_its_frames() -> None:
    tokens = [RevokedToken(token_id="t" * MAX_TOKEN_ID_CHARACTERS, expires_at_seconds=NOW)] * 5000
    clients = [EndedClient(client_id="\U0001f600" * 255, until_seconds=NOW)] * 5000
    for page in pages(tokens, clients):
        encode(page)


@pytest.mark.parametrize("token_id", ["t" * (MAX_TOKEN_ID_CHARACTERS + 1), "\U0001f600", "\x1b[2J", ""])
@pytest.mark.parametrize(
    "ask", [lambda name: AskRevoke(call=1, order=revoke(token_id=name)), lambda name: EndTokens(call=1, token_id=name)]
)
def test_text_that_is_no_id_of_a_token_is_not_taken(ask: Any, token_id: str) -> None:
    with pytest.raises(FrameError):
        FrameDecoder[Any](AskRevoke | EndTokens).decode(encode(ask(token_id)))


def test_token_that_a_gateway_ends_for_a_moment_is_ended_by_an_operator_for_its_life(place: Path) -> None:
    async def scenario() -> None:
        office = Office(place)
        await office.order(PutClient(call=1, client=client()))
        short = revoke(token_id="t", expires_at_seconds=NOW + 1)
        assert await office.order(AskRevoke(call=2, order=short), EndTokens(call=3, token_id="t")) == [
            RevocationDone(call=2),
            RevocationDone(call=3),
        ]
        assert [one.why for one in office.records if isinstance(one, TokenRevoked)] == ["client", "operator"]
        office.now_seconds += 3600
        office.registrar.tell_all(office.gateway)
        await office.order(EndTokens(call=4, token_id="another"))
        assert not office.gateway.lets_pass("t")
        office.registrar.close()

    run(scenario)


def test_token_of_before_the_clock_was_set_back_ends_with_its_client(place: Path) -> None:
    async def scenario() -> None:
        office = Office(place)
        await office.order(PutClient(call=1, client=client()))
        (granted,) = await office.order(AskGrant(call=2, order=order()))
        assert isinstance(granted, Granted)
        office.registrar.tell_all(office.gateway)
        office.now_seconds -= 5
        await office.order(EndTokens(call=3, client_id="agent"))
        assert not office.gateway.lets_pass(granted.tokens.token_id, issued_at_seconds=NOW)
        office.registrar.close()

    run(scenario)


def test_end_of_a_client_in_the_place_of_its_family_is_on_record(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        office = Office(place)
        (_, granted) = await office.order(
            PutClient(call=1, client=client()), AskGrant(call=2, order=order(refreshable=True))
        )
        monkeypatch.setattr(granting, "MAX_REVOKED", 0)
        await office.order(AskRevoke(call=3, order=revoke(unverified_refresh_token=granted.tokens.refresh_token)))
        revoked = [one for one in office.records if isinstance(one, TokenRevoked)]
        assert [(one.why, one.client_id, one.family is None) for one in revoked] == [
            ("client", "agent", False),
            ("client", "agent", True),
        ]
        office.registrar.close()

    run(scenario)


def test_gateway_that_asks_without_end_keeps_no_operator_from_ending_tokens(place: Path) -> None:
    async def scenario() -> None:
        office = Office(place)
        asked = [AskRevoke(call=call, order=revoke(token_id="t")) for call in range(2 * MAX_WAITING)]
        answers = await office.order(*asked, EndTokens(call=9999, client_id="agent"))
        assert RevocationDone(call=9999) in answers
        assert sum(isinstance(answer, NotGranted) for answer in answers) == MAX_WAITING
        office.registrar.close()

    run(scenario)
