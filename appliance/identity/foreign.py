"""The gateway's end of the liaison: foreign issuers' keys as they come, and answers about opaque tokens.

Trusts: the liaison for the keys of the issuers that are configured, and for what their rules let an issuer say.
Promises: a key set is in force until ``keep_seconds`` after it was fetched, and then no longer, whoever is down; keys
    are judged once more before they verify anything. The request path waits for nothing but an introspection.
Not here: fetching and parsing (``liaison``).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.token_claims import ReadClaims
from appliance.identity.keys import KeySet, from_wire
from appliance.ipc.connection import Caller, CallFailed, Connection, connect, own_or_root
from appliance.ipc.frames import FrameDecoder, FrameError
from appliance.ipc.messages import FromLiaison, Introspect, Introspected, IntrospectionFailed, IssuerKeys, RefreshKeys

ANSWER_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1
_RECONNECT_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

log = logging.getLogger(__name__)

_Answer = Introspected | IntrospectionFailed


class ForeignKeys:
    """Implements ``identity.tokens.KeySource`` for one issuer."""

    def __init__(self, name: str, algorithms: frozenset[str], *, keep_seconds: int, link: "LiaisonLink") -> None:
        self.name = name
        self._algorithms = algorithms
        self._keep_seconds = keep_seconds
        self._link = link
        self._told: IssuerKeys | None = None
        self._keys: KeySet | None = None
        self._until_seconds = 0

    def keys(self, now_seconds: int) -> KeySet | None:
        return self._keys if now_seconds < self._until_seconds else None

    def miss(self) -> None:
        self._link.hint(self.name)

    def take(self, told: IssuerKeys, *, now_seconds: int) -> None:
        """Raises ``Fault`` for keys that are not good, and keeps what there was."""
        if self._told is None or told.keys != self._told.keys:
            self._keys = from_wire(told.keys, self._algorithms)
        self._told = told
        self._until_seconds = min(told.fetched_at_seconds, now_seconds) + self._keep_seconds


class LiaisonLink:
    """One connection to the liaison, made again for as long as ``run`` runs."""

    def __init__(
        self, path: Path, *, now_seconds: Callable[[], int], server_uids: frozenset[int] | None = None
    ) -> None:
        self._path = path
        self._now_seconds = now_seconds
        self._server_uids = own_or_root() if server_uids is None else server_uids
        self._decoder: FrameDecoder[FromLiaison] = FrameDecoder(FromLiaison)
        self._connection: Connection[FromLiaison] | None = None
        self._caller: Caller[_Answer] = Caller()
        self._sources: dict[str, ForeignKeys] = {}
        self._attempt = 0

    def follow(self, sources: Iterable[ForeignKeys]) -> None:
        self._sources = {source.name: source for source in sources}

    def hint(self, name: str) -> None:
        """There may be newer keys. How often that is believed is the liaison's affair."""
        self._tell(RefreshKeys(name=name))

    async def ask(self, token: str) -> ReadClaims | None:
        """What the issuer of opaque tokens says of one. Raises ``Refused(ISSUER_UNAVAILABLE)``."""
        connection = self._connection
        if connection is None:
            raise _unavailable("no connection to the liaison")
        try:
            question = Introspect(call=self._caller.next_call(), token=token)
            answer = await self._caller.ask(connection, question, timeout_seconds=ANSWER_SECONDS)
        except (CallFailed, TimeoutError, FrameError) as error:
            raise _unavailable(f"the liaison did not answer: {error}") from error
        if isinstance(answer, IntrospectionFailed):
            raise _unavailable(answer.detail)
        return answer.claims

    async def run(self) -> None:
        """Keeps the connection alive until cancelled. A liaison that says nothing is tried less and less often."""
        while True:
            closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            try:
                sock = await connect(self._path, self._server_uids)
            except OSError:
                closed.set_result("nobody is there")
            else:
                self._connection = Connection(
                    sock, self._decoder, on_message=self._heard, on_closed=partial(_resolve, closed)
                )
            try:
                why = await closed
                if self._attempt == 0:
                    log.warning("lost the liaison: %s", why)
            finally:
                self._drop()
            await asyncio.sleep(_RECONNECT_SECONDS[min(self._attempt, len(_RECONNECT_SECONDS) - 1)])
            self._attempt += 1

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._caller.disconnected("the liaison is gone")

    def _heard(self, message: FromLiaison, _fds: list[int]) -> None:
        self._attempt = 0
        if not isinstance(message, IssuerKeys):
            self._caller.answered(message, [])
            return
        source = self._sources.get(message.name)
        if source is None:
            log.error("the liaison speaks of an issuer that is not configured")
            return
        try:
            source.take(message, now_seconds=self._now_seconds())
        except Fault as fault:
            log.warning("issuer %s: the liaison's keys are not good: %s", message.name, fault.detail)

    def _tell(self, message: RefreshKeys) -> None:
        if self._connection is not None and not self._connection.closed:
            try:
                self._connection.send(message)
            except ConnectionError:
                log.info("the liaison is not reading")


def _resolve(future: "asyncio.Future[str]", why: str) -> None:
    if not future.done():
        future.set_result(why)


def _unavailable(detail: str) -> Refused:
    return Refused(Reason.ISSUER_UNAVAILABLE, detail, retry_after_seconds=RETRY_SECONDS)
