"""The warden's process: answers the gateway on its socket.

Trusts: a gateway's uid to ask for leases, an operator's to ask for the status.
Promises: one gateway's malformed frame or departure costs only its own connection; every question gets an answer, and
    none waits for a model that is being hashed but the lease of that model.
Not here: the runners themselves (``pool``).
"""

import asyncio
import logging
import socket
from typing import Any

from appliance.core.refusals import Fault, Refused
from appliance.ipc.connection import Connection, accept_forever, peer_uid
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import (
    NO_PLACE,
    AskLease,
    AskStatus,
    Complain,
    Failed,
    InUse,
    Leased,
    ListModels,
    MakeRoom,
    Release,
    ToWarden,
)
from appliance.ipc.notary_client import NotaryClient
from appliance.warden import pages
from appliance.warden.pool import NoPlace, Pool
from appliance.warden.ports import Needed

log = logging.getLogger(__name__)


async def serve(
    pool: Pool,
    *,
    notary: NotaryClient,
    starter: Needed,
    listening: socket.socket,
    gateway_uids: frozenset[int],
    operator_uids: frozenset[int],
    stop: asyncio.Event,
) -> None:
    """Serves until ``stop`` is set, then ends all runners and hands over the last records.

    Raises ``Fault`` when the starter has ended: without it, and without its runners, another warden must begin anew.
    """
    peers: set[_Peer] = set()

    def welcome(sock: socket.socket) -> None:
        peers.add(_Peer(sock, pool, peers, may_lease=peer_uid(sock) in gateway_uids))

    async def accept() -> None:
        await notary.connected()  # a lease needs its record: whoever asks before the log is there waits
        await accept_forever(listening, allowed_uids=gateway_uids | operator_uids, welcome=welcome)

    async def look() -> None:
        await notary.connected()  # it knows us as the warden before a byte of the store is read
        await pool.run()

    notary_task = asyncio.create_task(notary.run())
    accepting = asyncio.create_task(accept())
    looking = asyncio.create_task(look())
    leaning = asyncio.create_task(starter.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait(
            {notary_task, accepting, looking, leaning, stopping}, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()  # raises what ended it, so that this process ends as failed and is started again
    finally:
        accepting.cancel()
        looking.cancel()
        leaning.cancel()
        stopping.cancel()
        for peer in list(peers):
            peer.connection.close()
        await pool.stop()
        try:
            async with asyncio.timeout(2):
                await notary.drained()
        except TimeoutError:
            log.warning("the notary did not take the last records")
        notary_task.cancel()


class _Peer:
    """One connection; each question is answered by a task of its own, since a load takes seconds."""

    def __init__(self, sock: socket.socket, pool: Pool, peers: "set[_Peer]", *, may_lease: bool) -> None:
        self._pool = pool
        self._may_lease = may_lease
        self._peers = peers
        self._tasks: set[asyncio.Task[None]] = set()
        decoder: FrameDecoder[ToWarden] = FrameDecoder(ToWarden)
        self.connection: Connection[ToWarden] = Connection(
            sock, decoder, on_message=self._asked, on_closed=self._closed
        )

    def _asked(self, question: ToWarden, _fds: list[int]) -> None:
        if not self._may_lease and not isinstance(question, AskStatus):
            self.connection.close("an operator may ask for the status only")
        elif isinstance(question, Complain):
            self._pool.complain(question.runner_id, question.detail)
        elif isinstance(question, Release):
            self._pool.release(question.runner_id, idle=question.idle)
        elif isinstance(question, InUse):
            self._pool.in_use(self, question.runners)
        else:
            task = asyncio.create_task(self._answer(question))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _closed(self, why: str) -> None:
        log.info("a peer's connection closed: %s", why)
        self._peers.discard(self)
        self._pool.left(self)

    async def _answer(self, question: ListModels | AskLease | AskStatus) -> None:
        """The one place where whatever goes wrong becomes an answer: a question without one would cost its asker the
        whole time limit."""
        try:
            await self._try_to_answer(question)
        except NoPlace as refusal:
            if refusal.release:
                self._reply(MakeRoom(call=question.call, release=refusal.release))
            else:
                self._fail(question.call, NO_PLACE, refusal.detail)
        except Refused as refusal:
            self._fail(question.call, refusal.reason.code, refusal.detail)
        except Fault as fault:
            log.warning("%s", fault.detail)
            self._fail(question.call, "fault", fault.detail)
        except Exception as error:
            log.exception("a question could not be answered: %s", type(question).__name__)
            self._fail(question.call, "fault", type(error).__name__)

    async def _try_to_answer(self, question: ListModels | AskLease | AskStatus) -> None:
        pool = self._pool
        match question:
            case ListModels():
                self._reply(pages.model_list(question, pool.servable(), pool.pending()))
            case AskLease():
                runner, options, channel = await pool.lease(question.model, idle=question.idle, holder=self)
                if self.connection.closed:  # while the model was loaded
                    pool.left(self)
                keep = options.keep_alive_seconds
                self._reply(Leased(call=question.call, runner=runner, keep_alive_seconds=keep), [channel.fileno()])
            case AskStatus():
                loaded = await pool.loaded()
                self._reply(pages.status(question, pool.models(), loaded, pool.failed(), pool.planned(), pool.memory()))

    def _fail(self, call: int, reason: str, detail: str) -> None:
        self._reply(Failed(call=call, reason=reason, detail=detail[:2000]))

    def _reply(self, answer: Any, fds: list[int] | None = None) -> None:
        if self.connection.closed:
            return
        try:
            self.connection.send(answer, fds or [])
        except ConnectionError as error:
            log.info("an answer was not delivered: %s", error)
