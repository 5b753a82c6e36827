"""What gateways are told of tokens that have ended, whatever else happens in the same turn."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.records import Record
from appliance.ipc.frames import encode
from appliance.ipc.messages import (
    ClientFound,
    EndTokens,
    FindClient,
    PutClient,
    Revoked,
)
from appliance.ipc.revocations import RevokedTokens
from appliance.notary.files import Files
from appliance.notary.registrar import Registrar
from appliance.notary.signer import TokenSigner
from tests.support.audit_log import run
from tests.support.faulty_files import fast_directory
from tests.support.registered import OUR_ISSUER, claims, client

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
