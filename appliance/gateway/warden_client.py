"""The gateway's view of the warden: the catalogue, refreshed off the request path, and one lease per model.

Trusts: the users who may be the warden, by the kernel's word.
Promises: while the warden is away, models whose runners are alive go on being served and nothing new is loaded; a
    complaint about a runner is repeated until the warden has heard it, and no runner is leased anew before. When there
    is no room, the runners that the warden names make some, if they are idle still; one that was idle for longer than
    it is kept is given back.
Not here: loading and verifying (the warden); the channel's protocol (``runner_link``).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance.core.records import ModelRef, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import RunnerReport, VerifiedModel
from appliance.gateway.runner_link import RunnerLink
from appliance.ipc.connection import Caller, CallFailed, Connection, connect, own_or_root
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import (
    MAX_RUNNERS,
    NO_PLACE,
    AskLease,
    Complain,
    Failed,
    FromWarden,
    InUse,
    Leased,
    ListModels,
    MakeRoom,
    ModelList,
    Release,
    RunnerUse,
)

REFRESH_SECONDS: Final = 2.0
LIST_SECONDS: Final = 10.0
RECONNECT_SECONDS: Final = 0.2
IDLE_SECONDS: Final = 30.0
"""A runner used less long ago is not given up for another model: two callers could make each other wait for ever."""
LEAST_KEPT_SECONDS: Final = 5.0
"""Before a runner is given back as idle: whoever was just given it is still writing the record of what it will ask."""
TURNS_TO_MAKE_ROOM: Final = 3
"""Those who could go may be busy when they are told to; then there may be others."""
RETRY_AFTER_SECONDS: Final = 10
FIGURES_SECONDS: Final = 1.0
"""A runner answers between two of its steps, so at once; one that does not is left out of what is told."""

_REASONS: Final = {reason.code: reason for reason in (Reason.MODEL_NOT_VERIFIED, Reason.AUDIT_UNAVAILABLE)}

log = logging.getLogger(__name__)


class WardenClient:
    """Implements ``core.ports.Models``. ``run`` must be running."""

    def __init__(
        self,
        path: Path,
        *,
        load_timeout_seconds: float,
        silence_seconds: float,
        queue_seconds: int,
        server_uids: frozenset[int] | None = None,
    ) -> None:
        """``server_uids``: who may be the warden; None means this process's own uid and root (socket activation)."""
        self._path = path
        self._server_uids = own_or_root() if server_uids is None else server_uids
        self._load_timeout_seconds = load_timeout_seconds
        self._silence_seconds = silence_seconds
        self._queue_seconds = queue_seconds
        self._decoder: FrameDecoder[FromWarden] = FrameDecoder(FromWarden)
        self._connection: Connection[FromWarden] | None = None
        self._caller: Caller[FromWarden] = Caller()
        self._catalogue: tuple[VerifiedModel, ...] | None = None
        self._links: dict[ModelRef, RunnerLink] = {}
        self._leasing: dict[ModelRef, asyncio.Lock] = {}
        self._complaints: dict[str, str] = {}
        self._told: set[str] = set()  # those of them that were sent on this connection

    async def catalogue(self) -> tuple[VerifiedModel, ...]:
        """As last heard, at most some seconds old. Raises ``Fault`` before the warden has ever answered."""
        if self._catalogue is None:
            raise Fault("the warden has not answered yet")
        return self._catalogue

    async def lease(self, model: VerifiedModel) -> RunnerLink:
        """Raises ``Refused(MODEL_NOT_VERIFIED | RUNNER_UNAVAILABLE | AUDIT_UNAVAILABLE)``, or ``Fault`` when the warden
        is away."""
        wanted = reference(model)
        link = self._links.get(wanted)
        if link is None or link.broken:
            link = await self._only_link(wanted)
        link.leased()
        return link

    async def _only_link(self, wanted: ModelRef) -> RunnerLink:
        """However many wait for a model that is not loaded, one of them asks."""
        async with self._leasing.setdefault(wanted, asyncio.Lock()):
            link = self._links.get(wanted)
            if link is None or link.broken:
                link = await self._new_link(wanted)
                self._links[wanted] = link
            return link

    async def reports(self) -> tuple[RunnerReport, ...]:
        """Asks every runner that is leased, all at once."""
        links = [(model, link) for model, link in self._links.items() if not link.broken]
        figures = await asyncio.gather(*(link.figures(FIGURES_SECONDS) for _model, link in links))
        return tuple(
            RunnerReport(model_name=model.name, model_digest=model.digest, figures=said)
            for (model, _link), said in zip(links, figures, strict=True)
        )

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
            self._give_back_idle()
            await asyncio.sleep(REFRESH_SECONDS)

    async def _stay_connected(self) -> None:
        while True:
            try:
                sock = await connect(self._path, self._server_uids)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            self._connection = Connection(
                sock,
                self._decoder,
                on_message=self._caller.answered,
                on_closed=self._caller.disconnected,
                accepts_fds=True,
            )
            self._told.clear()
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
            self._tell_complaints(connection)
            self._tell_uses(connection)
            told = frozenset(self._told)
            listed = await self._all_models(connection)
            for runner_id in told:  # the warden reads in order: whoever answers this has heard them
                self._complaints.pop(runner_id, None)
            self._told -= told
            if listed is not None:
                self._take_over(*listed)
            await asyncio.sleep(REFRESH_SECONDS)

    async def _all_models(
        self, connection: Connection[FromWarden]
    ) -> tuple[tuple[VerifiedModel, ...], frozenset[str]] | None:
        """Page after page: the models, and the names of those that are pending. None when the warden has no answer."""
        models: list[VerifiedModel] = []
        pending: set[str] = set()
        after, more = "", True
        while more:
            question = ListModels(call=self._caller.next_call(), after=after)
            answer = await self._caller.ask(connection, question, timeout_seconds=LIST_SECONDS)
            if not isinstance(answer, ModelList):
                return None
            models += answer.models
            pending |= set(answer.pending)
            last = max((*answer.pending, *(model.name for model in answer.models)), default="")
            if answer.more and last <= after:
                raise CallFailed("a page of its list does not go on")
            after, more = last, answer.more
        return tuple(models), frozenset(pending)

    def _take_over(self, listed: tuple[VerifiedModel, ...], pending: frozenset[str]) -> None:
        """A warden that has just started is still hashing; what was known before stays until it has an opinion."""
        kept = [model for model in self._catalogue or () if model.name in pending]
        models = (*listed, *kept)
        if self._catalogue is not None or models or not pending:
            self._catalogue = tuple(sorted(models, key=lambda model: model.name))

    def _tell_complaints(self, connection: Connection[FromWarden]) -> None:
        with suppress(ConnectionError):  # told again on the next connection
            for runner_id, why in self._complaints.items():
                if runner_id not in self._told:
                    connection.send(Complain(runner_id=runner_id, detail=why[:2000]))
                    self._told.add(runner_id)

    def _tell_uses(self, connection: Connection[FromWarden]) -> None:
        uses = (
            RunnerUse(runner_id=link.facts.runner_id, idle_seconds=None if link.busy else round(link.idle_seconds))
            for link in self._links.values()
        )
        with suppress(ConnectionError):  # told again on the next connection
            connection.send(InUse(runners=tuple(uses)[:MAX_RUNNERS]))

    async def _new_link(self, wanted: ModelRef) -> RunnerLink:
        """Asks again when somebody idle could make room."""
        try:
            answer, fds = await self._ask_lease(wanted)
            for _ in range(TURNS_TO_MAKE_ROOM):
                if not isinstance(answer, MakeRoom):
                    break
                _close(fds)
                self._release(answer.release)
                answer, fds = await self._ask_lease(wanted)
        except (CallFailed, TimeoutError) as error:
            raise Fault(f"no lease: {error}") from error
        match answer, fds:
            case Leased(), [fd] if answer.runner.model_digest == wanted.digest:
                link = RunnerLink(
                    socket.socket(fileno=fd),
                    answer.runner,
                    self._broken,
                    queue_seconds=self._queue_seconds,
                    keep_alive_seconds=answer.keep_alive_seconds,
                )
                await link.reset()
                return link
            case Failed(), []:
                reason = _REASONS.get(answer.reason, Reason.RUNNER_UNAVAILABLE)
                retry = RETRY_AFTER_SECONDS if answer.reason == NO_PLACE else None
                raise Refused(reason, answer.detail, retry_after_seconds=retry)
            case MakeRoom(), []:
                detail = "whoever could make room is asked again and again"
                raise Refused(Reason.RUNNER_UNAVAILABLE, detail, retry_after_seconds=RETRY_AFTER_SECONDS)
        _close(fds)
        raise Fault("the warden answered something else")

    async def _ask_lease(self, wanted: ModelRef) -> tuple[FromWarden, list[int]]:
        connection = self._connection
        if connection is None:
            raise Fault("the warden is away")
        self._tell_complaints(connection)
        idle = tuple(self._idle())[:MAX_RUNNERS]
        question = AskLease(call=self._caller.next_call(), model=wanted, idle=idle)
        return await self._caller.ask_with_fds(connection, question, timeout_seconds=self._load_timeout_seconds)

    def _idle(self) -> dict[str, ModelRef]:
        """The runners that could make room, longest idle first, and what each has loaded."""
        links = self._links.items()
        idle = [(model, link) for model, link in links if not link.busy and link.idle_seconds >= IDLE_SECONDS]
        idle.sort(key=lambda held: held[1].idle_seconds, reverse=True)
        return {link.facts.runner_id: model for model, link in idle}

    def _release(self, runner_ids: Iterable[str]) -> None:
        """Gives up those of them that are idle still."""
        idle = self._idle()
        for runner_id in runner_ids:
            if runner_id in idle:
                self._give_up(idle[runner_id], Release(runner_id=runner_id))

    def _give_back_idle(self) -> None:
        """The runners that have been idle for longer than they are kept."""
        for model, link in list(self._links.items()):
            keep = link.keep_alive_seconds
            if keep >= 0 and link.idle_seconds >= max(keep, LEAST_KEPT_SECONDS):
                self._give_up(model, Release(runner_id=link.facts.runner_id, idle=True))

    def _give_up(self, held: ModelRef, word: Release) -> None:
        """Nothing, while the warden is away: a runner that it has not heard about would have no holder and live on."""
        if self._connection is None:
            return
        link = self._links.pop(held)
        link.retire()
        log.info("runner %s is idle and given up", link.facts.runner_id)
        with suppress(ConnectionError):  # the warden then finds that nobody holds it
            self._connection.send(word)

    def _broken(self, link: RunnerLink, why: str) -> None:
        log.warning("runner %s: %s", link.facts.runner_id, why)
        for held, other in list(self._links.items()):
            if other is link:
                del self._links[held]
        self._complaints[link.facts.runner_id] = why
        if self._connection is not None:
            self._tell_complaints(self._connection)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
