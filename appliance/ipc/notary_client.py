"""The gateway's and the warden's end of the notary's socket: reconnects, and never loses an outcome record.

Trusts: whoever owns the notary's socket path.
Promises: ``open`` returns only for a durable record. A record given to ``close`` is offered again after every
    reconnect until the notary has acknowledged it. ``revocations`` knows what the notary says while it is there.
Not here: what the records say (``core.records``), who may write which (the notary); what is asked about clients
    (``registry_client``).
"""

import asyncio
import itertools
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, Literal

from appliance.core.records import Closed, Opened, Record
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Receipt
from appliance.ipc.connection import Caller, CallFailed, Connection, connect, own_or_root
from appliance.ipc.frames import FrameDecoder, FrameError
from appliance.ipc.messages import Append, Appended, AppendFailed, AskRegistry, FromNotary, FromRegistry, Hello, Revoked
from appliance.ipc.revocations import RevokedTokens

TIMEOUT_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 0.5
OFFERED_AT_ONCE: Final = 256
MAX_UNDELIVERED: Final = 10_000
_RECONNECT_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

log = logging.getLogger(__name__)


class NotaryClient:
    """Implements ``core.ports.AuditLog``. ``run`` must be running for anything to be written."""

    def __init__(
        self, path: Path, role: Literal["gateway", "warden"], *, server_uids: frozenset[int] | None = None
    ) -> None:
        """``server_uids``: who may be the notary; None means this process's own uid and root (socket activation)."""
        self._path = path
        self._role = role
        self._server_uids = own_or_root() if server_uids is None else server_uids
        self._decoder: FrameDecoder[FromNotary] = FrameDecoder(FromNotary)
        self._connection: Connection[FromNotary] | None = None
        self._caller: Caller[FromNotary] = Caller()
        self._in_flight: set[str] = set()
        self._undelivered: dict[int, Record] = {}
        self._offered: set[int] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._connected = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.revocations = RevokedTokens()

    async def open(self, record: Record) -> Receipt:
        """Raises ``Refused(AUDIT_UNAVAILABLE)`` when the record could not be made durable in time."""
        connection = self._connection
        if connection is None or len(self._undelivered) >= MAX_UNDELIVERED:
            raise Refused(Reason.AUDIT_UNAVAILABLE, "no connection to the notary")
        if isinstance(record, Opened):
            self._in_flight.add(record.request_id)
        question = Append(call=self._caller.next_call(), record=record, durable=True)
        try:
            answer = await self._caller.ask(connection, question, timeout_seconds=TIMEOUT_SECONDS)
        except (CallFailed, TimeoutError, FrameError, asyncio.CancelledError) as error:
            # It may be durable all the same: an answer that never began is closed like one that broke off.
            self._abandon(record)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Refused(Reason.AUDIT_UNAVAILABLE, f"the notary did not answer: {error}") from error
        if not isinstance(answer, Appended):
            self._forget(record)
            detail = answer.detail if isinstance(answer, AppendFailed) else "an answer to another question"
            raise Refused(Reason.AUDIT_UNAVAILABLE, detail)
        return Receipt(index=answer.index, leaf_hash=answer.leaf_hash)

    def close(self, record: Record) -> None:
        """Takes charge of an outcome record. Never raises."""
        call = self._caller.next_call()
        if len(self._undelivered) >= MAX_UNDELIVERED and not isinstance(record, Closed):
            # Answers are bounded by their number in flight, since ``open`` has refused new ones from this bound on.
            log.error("an audit record was not delivered: %s", type(record).__name__)
            return
        self._undelivered[call] = record
        self._idle.clear()
        self._offer_some()

    def next_call(self) -> int:
        return self._caller.next_call()

    async def ask(self, question: AskRegistry) -> FromNotary:
        """A gateway's question about clients and tokens, with a number of ``next_call``. Raises
        ``Refused(AUDIT_UNAVAILABLE)`` when there is no answer in time; what was asked may be done all the same."""
        if self._connection is None:
            raise Refused(Reason.AUDIT_UNAVAILABLE, "no connection to the notary")
        try:
            return await self._caller.ask(self._connection, question, timeout_seconds=TIMEOUT_SECONDS)
        except (CallFailed, TimeoutError, FrameError) as error:
            raise Refused(Reason.AUDIT_UNAVAILABLE, f"the notary did not answer: {error}") from error

    async def run(self) -> None:
        """Keeps the connection alive until cancelled."""
        attempt = 0
        while True:
            closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            try:
                sock = await connect(self._path, self._server_uids)
            except OSError:
                await asyncio.sleep(_RECONNECT_SECONDS[min(attempt, len(_RECONNECT_SECONDS) - 1)])
                attempt += 1
                continue
            self._connection = Connection(
                sock, self._decoder, on_message=self._answered, on_closed=partial(_resolve, closed)
            )
            try:
                self._greet()
                attempt = 0
                why = await closed
                log.warning("lost the notary: %s", why)
            finally:
                self._drop_connection("this side is stopping")
            await asyncio.sleep(_RECONNECT_SECONDS[0])

    async def connected(self) -> None:
        """Waits until the notary is there, and has told a gateway which tokens have ended."""
        await self._connected.wait()
        if self._role == "gateway":
            await self.revocations.complete()

    async def drained(self) -> None:
        """Waits until the notary has every outcome record."""
        await self._idle.wait()

    def _greet(self) -> None:
        connection = self._connection
        if connection is None:
            return
        with suppress(ConnectionError):
            connection.send(Hello(role=self._role, open_requests=tuple(sorted(self._in_flight))))
            self._connected.set()
        self._offered.clear()
        self._offer_some()

    def _offer_some(self) -> None:
        """Offers the oldest records, so many at once that the notary can take them; acknowledgements make room."""
        if self._connection is None or self._retry is not None:
            return
        for call, record in list(itertools.islice(self._undelivered.items(), OFFERED_AT_ONCE)):
            if call not in self._offered:
                self._offer(self._connection, call, record)

    def _offer(self, connection: Connection[FromNotary], call: int, record: Record) -> None:
        try:
            connection.send(Append(call=call, record=record, durable=False))
            self._offered.add(call)
        except ConnectionError:
            return  # offered again on the next connection
        except FrameError:
            log.exception("an audit record is too large and was dropped: %s", type(record).__name__)
            self._delivered(call)

    def _offer_again(self) -> None:
        self._retry = None
        self._offer_some()

    def _answered(self, answer: FromNotary, _fds: list[int]) -> None:
        if isinstance(answer, Revoked):
            self.revocations.told(answer)
        elif answer.call in self._undelivered:
            self._outcome_answered(answer)
        else:
            self._caller.answered(answer, [])

    def _outcome_answered(self, answer: Appended | AppendFailed | FromRegistry) -> None:
        self._offered.discard(answer.call)
        if isinstance(answer, AppendFailed) and not answer.permanent:  # the disk may be full: all wait a moment
            if self._retry is None:
                self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._offer_again)
            return
        if isinstance(answer, AppendFailed):
            log.error("the notary refused an outcome record: %s", answer.detail)
        self._delivered(answer.call)

    def _delivered(self, call: int) -> None:
        record = self._undelivered.pop(call)
        if isinstance(record, Closed):
            self._in_flight.discard(record.request_id)
        if self._undelivered:
            self._offer_some()
        else:
            self._idle.set()

    def _abandon(self, record: Record) -> None:
        if isinstance(record, Opened):
            self.close(
                Closed(
                    request_id=record.request_id,
                    outcome="gateway-error",
                    prompt_tokens=0,
                    completion_tokens=0,
                    returned_tokens=record.reserved_tokens,
                    first_token_ms=None,
                    total_ms=0,
                    detail="the opened record was not acknowledged in time; nothing was answered",
                )
            )

    def _forget(self, record: Record) -> None:
        if isinstance(record, Opened):
            self._in_flight.discard(record.request_id)

    def _drop_connection(self, why: str) -> None:
        connection, self._connection = self._connection, None
        self._connected.clear()
        self.revocations.forget()
        if connection is not None:
            connection.close(why)
        self._caller.disconnected(why)


def _resolve(future: "asyncio.Future[str]", why: str) -> None:
    if not future.done():
        future.set_result(why)
