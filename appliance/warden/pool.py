"""The runners: one per loaded model, each starting, ready, condemned or gone.

A runner starts when its model is first leased and serves until it dies, is complained about, makes room, or its model
stops being what it was: gone, replaced, or signed by somebody who is trusted no more. The model is verified again at
every start, and the descriptor that was hashed is the one that the runner gets.

Trusts: the store to verify, the launcher to confine.
Promises: a lease is given only for a runner that was fenced in before it got the verified model, that shows its
    filters, and whose ``ModelLoaded`` is durable. A model that fails costs one attempt per back-off, however often it
    is asked for; its failure is forgotten when it loads, or its files or the trusted keys change.
Not here: which models there are (``catalogue``); what gateways may ask (``main``); how a runner is confined
    (``sandbox``), and how that is checked (``fence``).
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from appliance.core.ports import AuditLog
from appliance.core.records import ModelLoaded, ModelRef, RunnerEnded, reference
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.text import printable
from appliance.core.values import GgufFacts, RunnerFacts, Value, VerifiedModel
from appliance.ipc.messages import FailedModel, Fenced, Load, LoadedModel, Ready
from appliance.warden import fence, memory
from appliance.warden.catalogue import Catalogue, replaced
from appliance.warden.handshake import handshake
from appliance.warden.ports import LaunchedRunner, Launcher, OpenedModel, VerifiedStore

log = logging.getLogger(__name__)

RESCAN_SECONDS: Final = 2.0
ENDING_SECONDS: Final = 5.0
"""How long anybody waits for a runner that was told to end. One that lives on keeps its place."""
MAX_DEFAULT_THREADS: Final = 8


class PoolSettings(Value, frozen=True, kw_only=True):
    context_tokens: int
    slots: int
    threads: int
    max_loaded: int
    load_timeout_seconds: float
    runner_memory_bytes: int | None = None


class NoPlace(Refused):
    """As many models are loaded as may be."""

    def __init__(self, places: int) -> None:
        super().__init__(Reason.RUNNER_UNAVAILABLE, f"{places} models are loaded already")


@dataclass
class Runner:
    """A live runner. ``channel`` is the warden's copy of the gateway's end: it outlives a gateway. ``condemned`` is why
    it must end, and empty while it may serve."""

    model: VerifiedModel
    facts: RunnerFacts
    launched: LaunchedRunner
    channel: socket.socket
    memory_limit_bytes: int
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
        self._loads = 0
        self._lingering: set[asyncio.Task[object]] = set()

    # --- what there is ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Looks at the store again and again, until cancelled."""
        try:
            while True:
                await self.rescan()
                await asyncio.sleep(RESCAN_SECONDS)
        finally:
            self._catalogue.stop()

    async def rescan(self) -> None:
        """Takes note of what changed in the store or among the trusted keys, and ends the runners whose model is not
        what it was. New models are verified in the background: hashing one must not hold this up."""
        for name, meaning in (await self._catalogue.rescan()).items():
            for runner in list(self._runners.values()):
                if runner.model.name == name and reference(runner.model) != meaning:
                    self._condemn(runner, "its model was removed, replaced or is trusted no more")

    def models(self) -> tuple[VerifiedModel, ...]:
        """The models that verify, as far as is known now."""
        return self._catalogue.models()

    def pending(self) -> tuple[str, ...]:
        """Those that are still being hashed."""
        return self._catalogue.pending()

    def failed(self) -> tuple[FailedModel, ...]:
        """Those that did not verify, or verify and did not load, when that was tried last."""
        return self._catalogue.failures()

    async def settled(self) -> None:
        """Waits until everything that was found has been verified."""
        await self._catalogue.settled()

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The live runners, each with its model."""
        return tuple(
            LoadedModel(model=runner.model, runner=runner.facts, memory_limit_bytes=runner.memory_limit_bytes)
            for runner in self._runners.values()
        )

    # --- leases -----------------------------------------------------------------------------------------------------

    async def lease(self, wanted: ModelRef) -> tuple[RunnerFacts, socket.socket]:
        """The runner for exactly this model, started if need be. The pool keeps the socket; the caller sends a copy.

        Raises ``Refused(MODEL_NOT_VERIFIED | RUNNER_UNAVAILABLE | AUDIT_UNAVAILABLE)``, ``NoPlace``, or ``Fault`` when
        the store cannot be read.
        """
        async with self._turn(wanted):
            runner = self._runners.get(wanted)
            if runner is not None and runner.condemned:
                await self._wait_for_end(runner)  # killed, but not yet dead: nobody is given that one again
                runner = None
            if runner is None:
                runner = await self._start(wanted)
            return runner.facts, runner.channel

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
            self._keep_place(runner.ended)

    # --- starting ---------------------------------------------------------------------------------------------------

    async def _start(self, wanted: ModelRef) -> Runner:
        stamp = await self._catalogue.require(wanted)
        await self._take_place()
        try:
            started = time.monotonic()
            runner = await self._verify_and_load(wanted, stamp)
            await self._introduce(runner, load_ms=round((time.monotonic() - started) * 1000))
        finally:
            self._loads -= 1
        self._catalogue.recovered(wanted.name)
        self._runners[wanted] = runner
        runner.ended = asyncio.create_task(self._watch(runner))
        return runner

    async def _take_place(self) -> None:
        """Raises ``NoPlace``, after waiting for what is ending already."""
        if self._is_full():
            condemned = [runner.ended for runner in self._runners.values() if runner.condemned and runner.ended]
            ending = {*condemned, *self._lingering}
            if ending:
                await asyncio.wait(ending, timeout=ENDING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if self._is_full():
            raise NoPlace(self._settings.max_loaded)
        self._loads += 1

    def _is_full(self) -> bool:
        return len(self._runners) + self._loads + len(self._lingering) >= self._settings.max_loaded

    async def _verify_and_load(self, wanted: ModelRef, stamp: Hashable) -> Runner:
        try:
            opened = await asyncio.to_thread(self._store.open_verified, wanted.name)
        except (Refused, Fault) as error:
            self._catalogue.failed(wanted.name, wanted.digest, stamp, error)
            raise Refused(Reason.MODEL_NOT_VERIFIED, error.detail) from error
        try:
            self._catalogue.know(opened.model, stamp)
            if reference(opened.model) != wanted:
                raise replaced(wanted)
            return await self._load(opened, stamp)
        finally:
            os.close(opened.file)

    async def _load(self, opened: OpenedModel, stamp: Hashable) -> Runner:
        """Starts a process, hands it the model, and waits until it is ready. Leaves nothing behind on failure."""
        runner_id = secrets.token_hex(8)
        load = self._what_to_load(runner_id, opened.model.facts)
        try:
            launched = await self._launcher.launch(runner_id, load.memory_bytes)
        except Fault as fault:  # the host's, and yet each attempt costs a hash of the whole model
            raise self._not_loaded(opened, stamp, fault.detail) from fault
        os.lseek(opened.file, 0, os.SEEK_SET)  # verifying read it; the runner maps from where the descriptor stands
        try:
            async with asyncio.timeout(self._settings.load_timeout_seconds):
                fenced, ready = await handshake(launched.channel, load, opened.file, self._launcher.allow_degraded)
                await launched.inspect(frozenset(fenced.layers))
        except (Refused, Fault, TimeoutError) as error:
            status = await self._bury(launched)
            detail = f"{getattr(error, 'detail', '') or 'no answer in time'} (exit status {status})"
            raise self._not_loaded(opened, stamp, detail) from error
        except BaseException:
            launched.kill()
            launched.channel.close()
            self._keep_place(asyncio.create_task(launched.wait()))
            raise
        facts = _facts(load, opened, fenced, ready)
        return Runner(
            model=opened.model,
            facts=facts,
            launched=launched,
            channel=launched.channel,
            memory_limit_bytes=load.memory_bytes,
        )

    def _not_loaded(self, opened: OpenedModel, stamp: Hashable, detail: str) -> Refused:
        """What everybody who asks is told until the back-off is over."""
        refused = Refused(Reason.RUNNER_UNAVAILABLE, printable(detail))
        self._catalogue.failed(opened.model.name, opened.model.digest, stamp, refused)
        return refused

    def _what_to_load(self, runner_id: str, facts: GgufFacts) -> Load:
        context_tokens = min(self._settings.context_tokens, facts.context_tokens)
        slots = self._settings.slots
        threads = self._settings.threads or min(os.cpu_count() or 1, MAX_DEFAULT_THREADS)
        return Load(
            runner_id=runner_id,
            context_tokens=context_tokens,
            slots=slots,
            threads=threads,
            memory_bytes=self._settings.runner_memory_bytes
            or memory.limit_bytes(
                facts, tokens=context_tokens * slots, slots=slots, threads=threads, host_bytes=memory.host_bytes()
            ),
        )

    async def _introduce(self, runner: Runner, *, load_ms: int) -> None:
        """Nobody is given a runner that an auditor would not know. Raises ``Refused(AUDIT_UNAVAILABLE)``."""
        try:
            await self._audit.open(ModelLoaded(model=reference(runner.model), runner=runner.facts, load_ms=load_ms))
        except BaseException:
            runner.condemned = "its start could not be recorded"
            runner.launched.kill()
            self._keep_place(asyncio.create_task(self._watch(runner)))
            raise

    async def _bury(self, launched: LaunchedRunner) -> int | None:
        """Ends a runner that never served. Its status, if it has one and ends in time."""
        launched.kill()
        launched.channel.close()
        ending = asyncio.create_task(launched.wait())
        await asyncio.wait({ending}, timeout=ENDING_SECONDS)
        if ending.done():
            return ending.result()
        self._keep_place(ending)
        return None

    def _keep_place(self, ending: "asyncio.Task[object] | None") -> None:
        """What has not ended still has its memory."""
        if ending is not None and not ending.done():
            self._lingering.add(ending)
            ending.add_done_callback(self._lingering.discard)

    # --- ends -------------------------------------------------------------------------------------------------------

    def complain(self, runner_id: str, detail: str) -> None:
        """Ends a runner that the gateway found at fault."""
        self._condemn_by_id(runner_id, f"complaint: {printable(detail)}")

    def release(self, runner_id: str) -> None:
        """Ends a runner that the gateway does not need."""
        self._condemn_by_id(runner_id, "released to make room")

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
            log.warning("runner %s has to end: %s", runner.facts.runner_id, why)
            runner.condemned = why
        runner.launched.kill()

    async def _watch(self, runner: Runner) -> None:
        status = await runner.launched.wait()
        wanted = reference(runner.model)
        if self._runners.get(wanted) is runner:
            del self._runners[wanted]
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
