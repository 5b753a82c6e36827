"""A notary with clients, a gateway and an operator at it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from appliance.core.clients import Client
from appliance.ipc.messages import ClientFound, EndTokens, PutClient, RemoveClient, RevocationDone
from appliance.ipc.notary_client import NotaryClient as GatewaysEnd
from appliance.ipc.registry_client import RegistryClient
from appliance.notary.main import NotaryConfig
from tests.support.notary_client import NotaryClient, operator, running_notary
from tests.support.registered import claims

WITHIN_SECONDS = 10


class World:
    """``registry`` and ``revocations`` are what a gateway holds."""

    def __init__(self, gateway: GatewaysEnd, operator: NotaryClient) -> None:
        self.gateway = gateway
        self.operator = operator
        self.registry = RegistryClient(gateway)
        self.revocations = gateway.revocations

    async def put(self, client: Client, before: Client | None = None) -> Client:
        answer = await self.operator.ask(PutClient, client=client, before=before)
        assert isinstance(answer, ClientFound), answer
        assert answer.client == client
        return client

    async def remove(self, client_id: str) -> None:
        answer = await self.operator.ask(RemoveClient, client_id=client_id)
        assert isinstance(answer, ClientFound), answer

    async def end(self, **which: Any) -> None:
        answer = await self.operator.ask(EndTokens, **which)
        assert isinstance(answer, RevocationDone), answer

    def counts(self, token_id: str, **fields: Any) -> bool:
        """Whether a verifier would let this token pass. Raises ``Refused`` while it could not know."""
        return not self.revocations.is_revoked(claims(**({"token_id": token_id, "issued_at_seconds": 2**40} | fields)))

    async def ended(self, token_id: str, **fields: Any) -> None:
        """Waits until it would not."""
        async with asyncio.timeout(WITHIN_SECONDS):
            while self.counts(token_id, **fields):
                await asyncio.sleep(0)


@asynccontextmanager
async def connected(config: NotaryConfig) -> AsyncIterator[World]:
    """To a notary that runs already; with the list of what has ended."""
    gateway = GatewaysEnd(config.socket_path, "gateway")
    running = asyncio.create_task(gateway.run())
    who = await operator(config)
    try:
        async with asyncio.timeout(WITHIN_SECONDS):
            await gateway.connected()
        yield World(gateway, who)
    finally:
        who.close()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def world(config: NotaryConfig, **given: Any) -> AsyncIterator[World]:
    async with running_notary(config, **given), connected(config) as one:
        yield one
