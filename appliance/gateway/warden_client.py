"""The gateway's view of the warden: the catalogue, refreshed off the request path, and one lease per model.

Trusts: whoever owns the warden's socket path.
Promises: while the warden is away, models whose runners are alive go on being served and nothing new is loaded.
Not here: loading and verifying (the warden); the channel's protocol (``runner_link``).
"""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest, VerifiedModel
from appliance.gateway.runner_link import RunnerLink
from appliance.ipc.connection import Caller, CallFailed, Connection, connect
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import AskLease, Complain, Failed, FromWarden, Leased, ListModels, ModelList

REFRESH_SECONDS: Final = 2.0
LIST_SECONDS: Final = 120.0
RECONNECT_SECONDS: Final = 0.2

log = logging.getLogger(__name__)


class WardenClient:
    """Implements ``core.ports.Models``. ``run`` must be running."""

    def __init__(self, path: Path, *, load_timeout_seconds: float, silence_seconds: float) -> None:
        self._path = path
        self._load_timeout_seconds = load_timeout_seconds
        self._silence_seconds = silence_seconds
        self._decoder: FrameDecoder[FromWarden] = FrameDecoder(FromWarden)
        self._connection: Connection[FromWarden] | None = None
        self._caller: Caller[FromWarden] = Caller()
        self._catalogue: tuple[VerifiedModel, ...] | None = None
        self._links: dict[Digest, RunnerLink] = {}
        self._leasing: dict[Digest, asyncio.Lock] = {}

    async def catalogue(self) -> tuple[VerifiedModel, ...]:
        """As last heard, at most some seconds old. Raises ``Fault`` before the warden has ever answered."""
        if self._catalogue is None:
            raise Fault("the warden has not answered yet")
        return self._catalogue

    async def lease(self, model: VerifiedModel) -> RunnerLink:
        """Raises ``Refused(MODEL_NOT_VERIFIED | RUNNER_UNAVAILABLE)``, or ``Fault`` when the warden is away."""
        async with self._leasing.setdefault(model.digest, asyncio.Lock()):
            link = self._links.get(model.digest)
            if link is None or link.broken:
                link = await self._new_link(model)
                self._links[model.digest] = link
            return link

    async def run(self) -> None:
        """Keeps the connection and the catalogue fresh, and watches the runners, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_runners())
            tasks.create_task(self._stay_connected())

    async def _watch_runners(self) -> None:
        """Beside the connection: a runner may also fall silent while the warden is away or busy."""
        while True:
            for link in list(self._links.values()):
                link.check_silence(self._silence_seconds)
            await asyncio.sleep(REFRESH_SECONDS)

    async def _stay_connected(self) -> None:
        while True:
            try:
                sock = await connect(self._path)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._connection = Connection(
                sock, self._decoder, on_message=self._caller.answered, on_closed=self._caller.disconnected
            )
            try:
                await self._keep_fresh(self._connection)
            except (CallFailed, TimeoutError) as error:
                log.warning("lost the warden: %s", error)
            finally:
                self._connection.close()
                self._connection = None
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _keep_fresh(self, connection: Connection[FromWarden]) -> None:
        while True:
            question = ListModels(call=self._caller.next_call())
            answer = await self._caller.ask(connection, question, timeout_seconds=LIST_SECONDS)
            if isinstance(answer, ModelList):
                self._catalogue = answer.models
            await asyncio.sleep(REFRESH_SECONDS)

    async def _new_link(self, model: VerifiedModel) -> RunnerLink:
        connection = self._connection
        if connection is None:
            raise Fault("the warden is away")
        question = AskLease(call=self._caller.next_call(), digest=model.digest)
        try:
            answer, fds = await self._caller.ask_with_fds(
                connection, question, timeout_seconds=self._load_timeout_seconds
            )
        except (CallFailed, TimeoutError) as error:
            raise Fault(f"no lease: {error}") from error
        match answer, fds:
            case Leased(), [fd] if answer.runner.model_digest == model.digest:
                link = RunnerLink(socket.socket(fileno=fd), answer.runner, self._broken)
                await link.reset()
                return link
            case Failed(), []:
                reason = (
                    Reason.MODEL_NOT_VERIFIED if answer.reason == "model-not-verified" else Reason.RUNNER_UNAVAILABLE
                )
                raise Refused(reason, answer.detail)
        for fd in fds:
            os.close(fd)
        raise Fault("the warden answered something else")

    def _broken(self, link: RunnerLink, why: str) -> None:
        log.warning("runner %s: %s", link.facts.runner_id, why)
        if self._links.get(link.facts.model_digest) is link:
            del self._links[link.facts.model_digest]
        if self._connection is not None:
            with suppress(ConnectionError):  # the warden notices a dead runner by itself
                self._connection.send(Complain(runner_id=link.facts.runner_id, detail=why[:2000]))
