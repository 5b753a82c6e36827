"""The process that talks with foreign issuers: it fetches their keys, and asks them about opaque tokens.

The gateway has no network of its own, and its requests must not wait for one. So the keys are fetched here, before and
while they are needed, and handed on as they change; and what a stranger on the network sends is parsed here, in a
process that can reach the configured ports and those of name servers, and no others by TCP. What a gateway gets are
typed values of bounded size.

Trusts: the gateway's uid, behind its socket; each issuer for its own keys and tokens only.
Promises: an issuer is asked for its keys once every ``refresh_seconds``, and after an unknown key at most once every
    ``cooldown_seconds``, however often a gateway asks; no more than ``MAX_IN_FLIGHT`` introspections at a time, and
    one line of the log in ``QUIET_SECONDS``, however many tokens are asked about in vain.
Not here: whether a token is good (``tokens``, in the gateway, which keeps the last good keys for a bounded time).
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from appliance.core.refusals import Fault
from appliance.core.token_claims import IssuerRules
from appliance.identity import introspection
from appliance.identity.https import Endpoint, Unreachable, exchange
from appliance.identity.keys import KeySet, parse_foreign_keys, to_wire
from appliance.ipc.connection import Connection, accept_forever
from appliance.ipc.frames import FrameDecoder, FrameError
from appliance.ipc.messages import Introspect, Introspected, IntrospectionFailed, IssuerKeys, RefreshKeys, ToLiaison

MAX_IN_FLIGHT: Final = 8
FETCH_SECONDS: Final = 10.0
ASK_SECONDS: Final = 3.0
QUIET_SECONDS: Final = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyProvider:
    """An issuer whose tokens are JWTs."""

    name: str
    endpoint: Endpoint
    tls: ssl.SSLContext
    algorithms: frozenset[str]
    refresh_seconds: float
    cooldown_seconds: float


@dataclass(frozen=True)
class TokenProvider:
    """An issuer whose tokens are opaque. ``credential`` is our own, and secret."""

    name: str
    endpoint: Endpoint
    tls: ssl.SSLContext
    rules: IssuerRules
    credential: str


class Follower:
    """Keeps one issuer's keys."""

    def __init__(
        self, provider: KeyProvider, told: Callable[[IssuerKeys], None], now_seconds: Callable[[], int]
    ) -> None:
        self._provider = provider
        self._told = told
        self._now_seconds = now_seconds
        self._asked = asyncio.Event()
        self._failures = 0
        self.latest: IssuerKeys | None = None

    def ask(self) -> None:
        """Something was signed by a key that is not known here."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled. After a failure it is tried again sooner, and never sooner than a second."""
        while True:
            await self._fetch()
            cooldown, refresh = self._provider.cooldown_seconds, self._provider.refresh_seconds
            if self._failures:
                await asyncio.sleep(min(cooldown, 2.0 ** min(self._failures - 1, 10)))
                continue
            await asyncio.sleep(cooldown)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, refresh - cooldown)):
                    await self._asked.wait()

    async def _fetch(self) -> None:
        provider = self._provider
        self._asked.clear()
        try:
            data = await exchange(provider.endpoint, provider.tls, timeout_seconds=FETCH_SECONDS)
            keys = parse_foreign_keys(data, provider.algorithms)
        except (Unreachable, Fault) as error:  # what there was is kept, for as long as the gateway keeps it
            self._failures += 1
            log.warning("issuer %s: no keys: %s", provider.name, error)
            return
        if self._failures or self.latest is None:
            log.info("issuer %s: %d keys", provider.name, len(keys))
        self._failures = 0
        self._tell(keys)

    def _tell(self, keys: KeySet) -> None:
        self.latest = IssuerKeys(name=self._provider.name, keys=to_wire(keys), fetched_at_seconds=self._now_seconds())
        self._told(self.latest)


class Liaison:
    """Serves gateways."""

    def __init__(
        self, keys: Sequence[KeyProvider], tokens: TokenProvider | None, *, now_seconds: Callable[[], int]
    ) -> None:
        self._followers = {one.name: Follower(one, self._broadcast, now_seconds) for one in keys}
        self._tokens = tokens
        self._gateways: set[Connection[ToLiaison]] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._quiet_until = 0.0

    async def serve(self, listening: socket.socket, *, gateway_uids: frozenset[int], stop: asyncio.Event) -> None:
        """Until ``stop``."""
        following = [asyncio.create_task(follower.run()) for follower in self._followers.values()]
        accepting = asyncio.create_task(accept_forever(listening, allowed_uids=gateway_uids, welcome=self._welcome))
        stopping = asyncio.create_task(stop.wait())
        tasks = [*following, accepting, stopping]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended - {stopping}:
                task.result()  # raises what ended it
        finally:
            for task in (*tasks, *self._asking):
                task.cancel()
            for connection in tuple(self._gateways):
                connection.close()

    def _welcome(self, sock: socket.socket) -> None:
        connection: Connection[ToLiaison] = Connection(
            sock,
            FrameDecoder(ToLiaison),
            on_message=lambda message, _fds: self._heard(connection, message),
            on_closed=lambda _why: self._gateways.discard(connection),
        )
        self._gateways.add(connection)
        for follower in self._followers.values():
            if follower.latest is not None:
                _send(connection, follower.latest)

    def _broadcast(self, keys: IssuerKeys) -> None:
        for connection in tuple(self._gateways):
            _send(connection, keys)

    def _heard(self, connection: Connection[ToLiaison], message: ToLiaison) -> None:
        match message:
            case RefreshKeys(name=name):
                if follower := self._followers.get(name):
                    follower.ask()
            case Introspect():
                self._introspect(connection, message)

    def _introspect(self, connection: Connection[ToLiaison], question: Introspect) -> None:
        if self._tokens is None or len(self._asking) >= MAX_IN_FLIGHT:
            why = "too many questions at a time" if self._tokens else "no issuer of opaque tokens is configured"
            _send(connection, IntrospectionFailed(call=question.call, detail=why))
            return
        task = asyncio.create_task(self._ask(self._tokens, connection, question))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, provider: TokenProvider, connection: Connection[ToLiaison], question: Introspect) -> None:
        try:
            data = await exchange(
                provider.endpoint,
                provider.tls,
                timeout_seconds=ASK_SECONDS,
                form=introspection.form(question.token),
                credential=provider.credential,
            )
            claims = introspection.judge(data, provider.rules)
        except Unreachable as error:
            self._tell_failure(provider, error)
            _send(connection, IntrospectionFailed(call=question.call, detail=str(error)))
            return
        _send(connection, Introspected(call=question.call, claims=claims))

    def _tell_failure(self, provider: TokenProvider, error: Unreachable) -> None:
        """Strangers' tokens are asked about too, as often as they like."""
        self._failures += 1
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            log.warning("issuer %s: %d without an answer about a token: %s", provider.name, self._failures, error)
            self._failures, self._quiet_until = 0, now + QUIET_SECONDS


def _send(connection: Connection[ToLiaison], message: IssuerKeys | Introspected | IntrospectionFailed) -> None:
    """A gateway that has gone, or an answer that is too large to be sent, is answered by the gateway's own deadline."""
    with suppress(ConnectionError, FrameError):
        connection.send(message)
