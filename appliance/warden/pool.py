"""The runners: one per loaded model, each starting, ready, condemned or gone.

A runner starts when its model is first leased and serves until it dies, is complained about, makes room, has been idle
for longer than it is kept, or its model stops being what it was: gone, replaced, or signed by somebody who is trusted
no more. The model is verified again at every start, and the descriptor that was hashed is the one that the runner gets.

Whether a runner is idle, only the gateway that holds it knows, which may be about to ask it something. So the warden
names the runners whose end would help, and the gateway gives them up; those that no gateway holds end by the warden's
word. How a model is loaded is a matter of the settings: nothing that a caller says loads it again.

Trusts: the store to verify, the launcher to confine.
Promises: a lease is given only for a runner that was fenced in before it got the verified model, that shows its
    filters, and whose ``ModelLoaded`` is durable. All that live fit the budget by their plans (``places``), and nothing
    is started for a model that cannot. A model that fails costs one attempt per back-off, however often it is asked
    for; its failure is forgotten when it loads, or its files or the trusted keys change.
Not here: which models there are (``catalogue``); how each is loaded (``loading``); what gateways may ask (``main``);
    how a runner is confined (``sandbox``), and how that is checked (``fence``).
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from appliance.core.memory import LoadOptions, MemoryPlan, mib, who_makes_room
from appliance.core.ports import AuditLog
from appliance.core.records import ModelLoaded, ModelRef, RunnerEnded, RunnerNotStarted, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.text import printable
from appliance.core.values import RunnerFacts, VerifiedModel
from appliance.ipc.messages import (
    FailedModel,
    Fenced,
    Load,
    LoadedModel,
    MemoryBudget,
    PlannedModel,
    Ready,
    RunnerUse,
    TakenMemory,
)
from appliance.warden import fence
from appliance.warden.catalogue import Catalogue, replaced
from appliance.warden.handshake import handshake
from appliance.warden.loading import Loading, PoolSettings
from appliance.warden.places import Place, Places
from appliance.warden.ports import LaunchedRunner, Launcher, OpenedModel, VerifiedStore

log = logging.getLogger(__name__)

RESCAN_SECONDS: Final = 2.0
ENDING_SECONDS: Final = 5.0
"""How long anybody waits for a runner that was told to end. One that lives on keeps its place."""
MEASURE_SECONDS: Final = 1.0
"""How long a status waits for what the kernel says of the runners' memory."""
UNHELD_SECONDS: Final = 30.0
"""A runner whose gateway has gone is nobody's after so long: a gateway that lost its connection comes back and says
what it holds."""


class NoPlace(Refused):
    """Too much is loaded already. ``release`` are the runners of the asker's without which there would be room."""

    def __init__(self, detail: str, release: tuple[str, ...] = ()) -> None:
        super().__init__(Reason.RUNNER_UNAVAILABLE, detail)
        self.release = release


@dataclass
class Runner:
    """A live runner. ``channel`` is the warden's copy of the gateway's end: it outlives a gateway. ``condemned`` is why
    it must end, and empty while it may serve. ``holder`` is who leased it, as long as that one is connected.
    ``used_at`` is when it last had something to do or changed hands, by ``time.monotonic``; ``busy`` is whether it has.
    """

    model: VerifiedModel
    facts: RunnerFacts
    launched: LaunchedRunner
    channel: socket.socket
    place: Place
    plan: MemoryPlan
    options: LoadOptions
    memory_limit_bytes: int
    used_at: float = field(default_factory=time.monotonic)
    busy: bool = False
    holder: object | None = None
    ended: "asyncio.Task[None] | None" = field(default=None)
    condemned: str = ""


class Pool:
    """All methods belong to the event loop's thread; the store is called in worker threads. ``run`` must be running."""

    def __init__(self, store: VerifiedStore, launcher: Launcher, audit: AuditLog, settings: PoolSettings) -> None:
        self._store = store
        self._launcher = launcher
        self._audit = audit
        self._settings = settings
        self._catalogue = Catalogue(store, audit)
        self._runners: dict[ModelRef, Runner] = {}
        self._turns: dict[ModelRef, tuple[asyncio.Lock, int]] = {}
        self._places = Places(most=settings.max_loaded, budget_bytes=settings.memory_bytes)
        self._loading = Loading(settings)
        self._lingering: set[asyncio.Task[object]] = set()
        self._has_warned = False

    # --- what there is ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks at the store again and again, until cancelled."""
        try:
            while True:
                await self.rescan()
                self.end_idle()
                await asyncio.sleep(RESCAN_SECONDS)
        finally:
            self._catalogue.stop()

    async def rescan(self) -> None:
        """Takes note of what changed in the store or among the trusted keys, and ends the runners whose model is not
        what it was. New models are verified in the background: hashing one must not hold this up."""
        for name, meaning in (await self._catalogue.rescan()).items():
            for runner in list(self._runners.values()):
                if runner.model.name == name and reference(runner.model) != meaning:
                    self._condemn(runner, _CHANGED)
        if not self._has_warned:
            self._has_warned = True
            for name in self._settings.named.keys() - self._catalogue.names():
                log.warning("the settings name a model that is not in the store: %s", printable(name))

    def models(self) -> tuple[VerifiedModel, ...]:
        """The models that verify, as far as is known now; adapters too."""
        return self._catalogue.models()

    def servable(self) -> tuple[VerifiedModel, ...]:
        """Those of them that somebody may be given a runner for."""
        return tuple(model for model in self._catalogue.models() if not model.is_adapter)

    def pending(self) -> tuple[str, ...]:
        """Those that are still being hashed."""
        return self._catalogue.pending()

    def failed(self) -> tuple[FailedModel, ...]:
        """Those that did not verify, or verify and did not load, when that was tried last."""
        return self._catalogue.failures()

    async def settled(self) -> None:
        """Waits until everything that was found has been verified."""
        await self._catalogue.settled()

    async def loaded(self) -> tuple[LoadedModel, ...]:
        """The live runners, each with its model and what it takes now."""
        runners = tuple(self._runners.values())
        taken = await asyncio.gather(*(_taken(runner.launched) for runner in runners))
        now = time.monotonic()
        return tuple(_told(runner, what, now) for runner, what in zip(runners, taken, strict=True))

    def planned(self) -> tuple[PlannedModel, ...]:
        """What the models would take that verify and are not loaded."""
        loaded = {runner.model.name for runner in self._runners.values()}
        return tuple(self._loading.planned(model) for model in self.servable() if model.name not in loaded)

    def memory(self) -> MemoryBudget:
        return MemoryBudget(budget_bytes=self._places.budget_bytes, planned_bytes=self._places.planned_bytes)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def lease(
        self, wanted: ModelRef, *, idle: Sequence[str] = (), holder: object | None = None
    ) -> tuple[RunnerFacts, LoadOptions, socket.socket]:
        """The runner for exactly this model, started if need be. The pool keeps the socket; the caller sends a copy.

        ``holder`` is who asks, and ``idle`` names those of its runners that it could give up, longest idle first.
        Raises ``Refused(MODEL_NOT_VERIFIED | RUNNER_UNAVAILABLE | AUDIT_UNAVAILABLE)``, ``NoPlace``, or ``Fault`` when
        the store cannot be read.
        """
        async with self._turn(wanted):
            runner = self._runners.get(wanted)
            if runner is not None and runner.condemned:
                await self._wait_for_end(runner)  # killed, but not yet dead: nobody is given that one again
                runner = None
            if runner is None:
                runner = await self._start(wanted, idle, holder)
            runner.holder, runner.used_at = holder, time.monotonic()
            return runner.facts, runner.options, runner.channel

    def in_use(self, holder: object, runners: Sequence[RunnerUse]) -> None:
        """What a gateway says of the runners that it holds. One that it was given and does not name after a while, it
        has never taken: it had given up waiting for the load."""
        now = time.monotonic()
        uses = {use.runner_id: use for use in runners}
        for runner in self._runners.values():
            if use := uses.get(runner.facts.runner_id):
                runner.holder, runner.busy = holder, use.idle_seconds is None
                runner.used_at = now - (use.idle_seconds or 0)
            elif runner.holder is holder and now - runner.used_at >= UNHELD_SECONDS:
                runner.holder, runner.busy = None, False

    def left(self, holder: object) -> None:
        """A gateway's connection is gone, and perhaps the gateway."""
        for runner in self._runners.values():
            if runner.holder is holder:
                runner.holder, runner.busy, runner.used_at = None, False, time.monotonic()

    def end_idle(self) -> None:
        """Ends the runners that nobody holds and that have been idle for longer than they are kept."""
        now = time.monotonic()
        for runner in self._runners.values():
            keep = runner.options.keep_alive_seconds
            if runner.holder is None and keep >= 0 and now - runner.used_at >= max(keep, UNHELD_SECONDS):
                self._condemn(runner, _IDLE)

    @asynccontextmanager
    async def _turn(self, wanted: ModelRef) -> AsyncIterator[None]:
        """One at a time for one model. The lock exists as long as somebody holds it or waits."""
        lock, users = self._turns.get(wanted, (asyncio.Lock(), 0))
        self._turns[wanted] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(wanted)
            if users > 1:
                self._turns[wanted] = lock, users - 1

    async def _wait_for_end(self, runner: Runner) -> None:
        if runner.ended is not None:
            await asyncio.wait({runner.ended}, timeout=ENDING_SECONDS)
        wanted = reference(runner.model)
        if self._runners.get(wanted) is runner:
            log.error("runner %s lives on", runner.facts.runner_id)
            del self._runners[wanted]
            self._linger(runner.ended)

    # --- starting ---------------------------------------------------------------------------------------------------

    async def _start(self, wanted: ModelRef, idle: Sequence[str], holder: object | None) -> Runner:
        """(1) nothing is known against the model; (2) it can fit, (3) it fits; (4) its bytes verify, and a runner has
        them; (5) that is on record; (6) nothing has become known against it meanwhile, unseen by ``rescan`` because
        there was no runner yet."""
        stamp = await self._catalogue.require(wanted)
        planned = await self._require_fit(wanted, stamp)
        place = await self._take_place(planned.total, idle, holder)
        try:
            started = time.monotonic()
            runner = await self._verify_and_load(wanted, stamp, place)
            await self._introduce(runner, load_ms=round((time.monotonic() - started) * 1000))
            self._catalogue.recovered(wanted.name)
            self._runners[wanted] = runner
            place.keep()
            runner.ended = asyncio.create_task(self._watch(runner))
        finally:
            place.leave()
        try:
            await self._catalogue.require(wanted)
        except BaseException:
            self._condemn(runner, _CHANGED)
            raise
        return runner

    async def _require_fit(self, wanted: ModelRef, stamp: Hashable) -> MemoryPlan:
        """Raises ``Refused(RUNNER_UNAVAILABLE)`` for a model that can never be loaded here, ``MODEL_NOT_VERIFIED`` for
        an adapter, which is none; as ``verify`` for one that nobody has looked into yet."""
        model = self._catalogue.known(wanted)
        if model is None:
            try:
                model = await asyncio.to_thread(self._store.verify, wanted.name)
            except (Refused, Fault) as error:
                self._catalogue.failed(wanted.name, wanted.digest, stamp, error)
                raise Refused(Reason.MODEL_NOT_VERIFIED, error.detail) from error
            if reference(model) != wanted:
                raise replaced(wanted)
        if model.is_adapter:
            raise Refused(Reason.MODEL_NOT_VERIFIED, f"{wanted.name} is an adapter, and served with models only")
        planned = self._loading.planned(model)
        if planned.unfit:
            refused = Refused(Reason.RUNNER_UNAVAILABLE, planned.unfit)
            record = RunnerNotStarted(model=wanted, reason="memory-short", detail=planned.unfit)
            self._catalogue.failed(wanted.name, wanted.digest, stamp, refused, record)
            raise refused
        return planned.plan

    async def _take_place(self, n_bytes: int, idle: Sequence[str], holder: object | None) -> Place:
        """Raises ``NoPlace``, after waiting for what is ending already, and for what nobody holds and now ends. What is
        told to end and never does keeps its place, and nobody from making room elsewhere."""
        try:
            async with asyncio.timeout(ENDING_SECONDS):
                while not self._places.room.fits(n_bytes):
                    ending = self._endings()
                    if not ending:
                        ending = self._make_room(n_bytes, idle, holder)
                    await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self._make_room(n_bytes, idle, holder)
            raise self._no_place(n_bytes) from None
        return self._places.take(n_bytes)

    def _endings(self) -> "set[asyncio.Task[object]]":
        condemned = [runner.ended for runner in self._runners.values() if runner.condemned and runner.ended]
        return {*condemned, *self._lingering}

    def _make_room(self, n_bytes: int, idle: Sequence[str], holder: object | None) -> "set[asyncio.Task[object]]":
        """Ends those that nobody holds, if that helps: first of them, since they are of no use to anybody. Raises
        ``NoPlace``, with those of the asker's that would have to go too."""
        now = time.monotonic()
        live = {runner.facts.runner_id: runner for runner in self._runners.values() if not runner.condemned}
        unheld = [one for one in live.values() if one.holder is None and now - one.used_at >= UNHELD_SECONDS]
        unheld.sort(key=lambda one: one.used_at)
        offered = [live[name] for name in dict.fromkeys(idle) if name in live and live[name].holder is holder]
        candidates = [*unheld, *(one for one in offered if one not in unheld)]
        going = who_makes_room(
            n_bytes, self._places.room, [(one.facts.runner_id, one.place.n_bytes) for one in candidates]
        )
        if not going:
            raise self._no_place(n_bytes)
        held = tuple(name for name in going if live[name] not in unheld)
        for name in going:
            if name not in held:
                self._condemn(live[name], _MADE_ROOM)
        if held:
            raise self._no_place(n_bytes, held)
        return self._endings()

    def _no_place(self, n_bytes: int, release: tuple[str, ...] = ()) -> NoPlace:
        room = self._places.room
        return NoPlace(
            f"it needs {mib(n_bytes)} and a place; there are {mib(max(room.n_bytes, 0))} of "
            f"{mib(self._places.budget_bytes)}, and {max(room.places, 0)} of {self._places.most} places",
            release,
        )

    async def _verify_and_load(self, wanted: ModelRef, stamp: Hashable, place: Place) -> Runner:
        try:
            opened = await asyncio.to_thread(self._store.open_verified, wanted.name)
        except (Refused, Fault) as error:
            self._catalogue.failed(wanted.name, wanted.digest, stamp, error)
            raise Refused(Reason.MODEL_NOT_VERIFIED, error.detail) from error
        try:
            self._catalogue.know(opened.model, stamp)
            if reference(opened.model) != wanted:
                raise replaced(wanted)
            planned = self._loading.planned(opened.model).plan
            if planned.total > place.n_bytes:  # same bytes, so somebody who reads headers has lied
                raise Refused(Reason.MODEL_NOT_VERIFIED, "its header was read as something else before")
            return await self._load(opened, stamp, place, planned)
        finally:
            for file in (opened.file, *opened.companions):
                os.close(file)

    async def _load(self, opened: OpenedModel, stamp: Hashable, place: Place, planned: MemoryPlan) -> Runner:
        """Starts a process, hands it the model, and waits until it is ready. Leaves nothing behind on failure."""
        runner_id = secrets.token_hex(8)
        load = self._loading.order(runner_id, opened.model, planned)
        try:
            launched = await self._launcher.launch(runner_id, load.memory_bytes)
        except Fault as fault:  # the host's, and yet each attempt costs a hash of the whole model
            raise self._not_started(opened, stamp, fault) from fault
        files = (opened.file, *opened.companions)
        for file in files:
            os.lseek(file, 0, os.SEEK_SET)  # verifying read it; the runner maps from where the descriptor stands
        try:
            async with asyncio.timeout(self._settings.load_timeout_seconds):
                fenced, ready = await handshake(launched.channel, load, files, self._launcher.allow_degraded)
                await launched.inspect(frozenset(fenced.layers))
        except (Refused, Fault, TimeoutError) as error:
            status = await self._bury(launched, place)
            detail = f"{getattr(error, 'detail', '') or 'no answer in time'} (exit status {status})"
            raise self._not_loaded(opened, stamp, detail) from error
        except BaseException:
            launched.kill()
            launched.channel.close()
            self._linger(asyncio.create_task(launched.wait()), place)
            raise
        facts = _facts(load, opened, fenced, ready)
        return Runner(
            model=opened.model,
            facts=facts,
            launched=launched,
            channel=launched.channel,
            place=place,
            plan=planned,
            options=self._loading.options(opened.model.name),
            memory_limit_bytes=load.memory_bytes,
        )

    def _not_loaded(self, opened: OpenedModel, stamp: Hashable, detail: str) -> Refused:
        """What everybody who asks is told until the back-off is over."""
        refused = Refused(Reason.RUNNER_UNAVAILABLE, printable(detail))
        self._catalogue.failed(opened.model.name, opened.model.digest, stamp, refused)
        return refused

    def _not_started(self, opened: OpenedModel, stamp: Hashable, fault: Fault) -> Refused:
        """As ``_not_loaded``, when nothing is wrong with the model."""
        refused = Refused(Reason.RUNNER_UNAVAILABLE, printable(fault.detail))
        model = reference(opened.model)
        record = RunnerNotStarted(model=model, reason="host-fault", detail=refused.detail[:500])
        self._catalogue.failed(model.name, model.digest, stamp, refused, record)
        return refused

    async def _introduce(self, runner: Runner, *, load_ms: int) -> None:
        """Nobody is given a runner that an auditor would not know. Raises ``Refused(AUDIT_UNAVAILABLE)``."""
        try:
            await self._audit.open(ModelLoaded(model=reference(runner.model), runner=runner.facts, load_ms=load_ms))
        except BaseException:
            runner.condemned = "its start could not be recorded"
            runner.launched.kill()
            runner.place.keep()
            self._linger(asyncio.create_task(self._watch(runner)))
            raise

    async def _bury(self, launched: LaunchedRunner, place: Place) -> int | None:
        """Ends a runner that never served. Its status, if it has one and ends in time."""
        launched.kill()
        launched.channel.close()
        ending = asyncio.create_task(launched.wait())
        await asyncio.wait({ending}, timeout=ENDING_SECONDS)
        if ending.done():
            return ending.result()
        self._linger(ending, place)
        return None

    def _linger(self, ending: "asyncio.Task[object] | None", place: Place | None = None) -> None:
        """What has not ended still has its memory: it keeps its place, if it does not keep it anyway."""
        if ending is None or ending.done():
            return
        self._lingering.add(ending)
        ending.add_done_callback(self._lingering.discard)
        if place is not None:
            place.keep_for(ending)

    # --- ends -------------------------------------------------------------------------------------------------------

    def complain(self, runner_id: str, detail: str) -> None:
        """Ends a runner that the gateway found at fault."""
        self._condemn_by_id(runner_id, f"complaint: {printable(detail)}")

    def release(self, runner_id: str, *, idle: bool = False) -> None:
        """Ends a runner that the gateway does not need: for another, or because it was ``idle`` for long enough."""
        self._condemn_by_id(runner_id, _IDLE if idle else _MADE_ROOM)

    async def stop(self) -> None:
        """Ends all runners and waits until their ends are recorded, as long as that takes no longer than it should."""
        self._catalogue.stop()
        for runner in self._runners.values():
            runner.launched.kill()
        ending = [runner.ended for runner in self._runners.values() if runner.ended]
        if ending:
            await asyncio.wait(ending, timeout=ENDING_SECONDS)

    def _condemn_by_id(self, runner_id: str, why: str) -> None:
        for runner in list(self._runners.values()):
            if runner.facts.runner_id == runner_id:
                self._condemn(runner, why)

    def _condemn(self, runner: Runner, why: str) -> None:
        if not runner.condemned:
            level = logging.INFO if why in {_IDLE, _MADE_ROOM} else logging.WARNING
            log.log(level, "runner %s has to end: %s", runner.facts.runner_id, why)
            runner.condemned = why
        runner.launched.kill()

    async def _watch(self, runner: Runner) -> None:
        status = await runner.launched.wait()
        wanted = reference(runner.model)
        if self._runners.get(wanted) is runner:
            del self._runners[wanted]
        runner.place.leave()  # in the same step: who looks for room sees it as ending, or its place as free
        runner.channel.close()
        log.warning("runner %s ended with status %s", runner.facts.runner_id, status)
        self._audit.close(
            RunnerEnded(
                runner_id=runner.facts.runner_id,
                model_digest=runner.facts.model_digest,
                exit_status=status,
                detail=runner.condemned[:500],
            )
        )


_CHANGED: Final = "its model was removed, replaced or is trusted no more, or what it is served with"
_MADE_ROOM: Final = "released to make room"
_IDLE: Final = "idle for longer than it is kept"


async def _taken(launched: LaunchedRunner) -> TakenMemory | None:
    try:
        async with asyncio.timeout(MEASURE_SECONDS):
            return await launched.taken()
    except TimeoutError:
        return None


def _told(runner: Runner, taken: TakenMemory | None, now: float) -> LoadedModel:
    idle = None if runner.busy else max(0, round(now - runner.used_at))
    keep = runner.options.keep_alive_seconds
    return LoadedModel(
        model=runner.model,
        runner=runner.facts,
        memory_limit_bytes=runner.memory_limit_bytes,
        options=runner.options,
        plan=runner.plan,
        taken=taken,
        idle_seconds=idle,
        ends_in_seconds=None if idle is None or keep < 0 else max(0, keep - idle),
    )


def _facts(load: Load, opened: OpenedModel, fenced: Fenced, ready: Ready) -> RunnerFacts:
    return RunnerFacts(
        runner_id=load.runner_id,
        model_digest=opened.model.digest,
        seal_mode=opened.seal_mode,
        layers=(*fenced.layers, *fence.FILTERS),
        degraded=fenced.degraded,
        filter_digest=fenced.filter_digest,
        context_tokens=ready.context_tokens,
        slots=ready.slots,
    )
