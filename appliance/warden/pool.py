"""The runners: one per loaded model, each starting, ready or gone.

A runner starts when its model is first leased and serves until it dies, is complained about, or the warden stops. The
model is verified again at every start, and the descriptor that was hashed is the one that the runner gets.

Trusts: the store to verify, the launcher to confine.
Promises: a lease is given only for a runner that has installed its last filter and answered for the verified digest;
    every start, refusal and end is recorded.
Not here: what gateways may ask (``main``); how a runner is confined (``sandbox``).
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Final

from appliance.core.ports import AuditLog
from appliance.core.records import ModelLoaded, ModelRef, ModelRefused, RunnerEnded
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest, RunnerFacts, SealMode, Value, VerifiedModel
from appliance.ipc.connection import Connection
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import FromRunner, Load, LoadedModel, LoadFailed, Ready
from appliance.warden.ports import LaunchedRunner, Launcher, OpenedModel, VerifiedStore

log = logging.getLogger(__name__)

RESCAN_SECONDS: Final = 2.0
MAX_DEFAULT_THREADS: Final = 8


class PoolSettings(Value, frozen=True, kw_only=True):
    context_tokens: int
    slots: int
    threads: int
    max_loaded: int
    load_timeout_seconds: float


@dataclass
class Runner:
    """A live runner. ``channel`` is the warden's copy of the gateway's end: it outlives a gateway."""

    model: VerifiedModel
    facts: RunnerFacts
    launched: LaunchedRunner
    channel: socket.socket
    ended: "asyncio.Task[None] | None" = field(default=None)
    condemned: bool = False


class Pool:
    """All methods belong to the event loop's thread; the store is called in worker threads."""

    def __init__(self, store: VerifiedStore, launcher: Launcher, audit: AuditLog, settings: PoolSettings) -> None:
        self._store = store
        self._launcher = launcher
        self._audit = audit
        self._settings = settings
        self._models: dict[str, VerifiedModel] = {}
        self._refused: set[str] = set()
        self._scan = asyncio.Lock()
        self._scanned = float("-inf")
        self._runners: dict[Digest, Runner] = {}
        self._starting: dict[Digest, asyncio.Lock] = {}
        self._loads = 0

    async def models(self) -> tuple[VerifiedModel, ...]:
        """The models that verify. New names in the store are verified when they are first seen."""
        async with self._scan:
            if time.monotonic() - self._scanned > RESCAN_SECONDS:
                await self._rescan()
                self._scanned = time.monotonic()
        return tuple(sorted(self._models.values(), key=lambda model: model.name))

    async def _rescan(self) -> None:
        names = set(await asyncio.to_thread(self._store.names))
        for gone in self._models.keys() - names:
            del self._models[gone]
        self._refused &= names
        for name in sorted(names - self._models.keys() - self._refused):
            try:
                self._models[name] = await asyncio.to_thread(self._store.verify, name)
            except (Refused, Fault) as error:
                self._refused.add(name)
                self._record_refused(name, None, error)

    async def lease(self, digest: Digest) -> tuple[RunnerFacts, socket.socket]:
        """The runner for a model, started if need be. The pool keeps the socket; the caller sends a copy of it.

        Raises ``Refused(MODEL_NOT_VERIFIED | RUNNER_UNAVAILABLE)``.
        """
        async with self._starting.setdefault(digest, asyncio.Lock()):
            runner = self._runners.get(digest)
            if runner is not None and runner.condemned and runner.ended is not None:
                await asyncio.shield(runner.ended)  # killed, but not yet dead: nobody is given that one again
                runner = None
            if runner is None:
                runner = await self._start(self._by_digest(digest))
                self._runners[digest] = runner
            return runner.facts, runner.channel

    def loaded(self) -> tuple[LoadedModel, ...]:
        """The live runners, each with its model."""
        return tuple(LoadedModel(model=runner.model, runner=runner.facts) for runner in self._runners.values())

    def complain(self, runner_id: str, detail: str) -> None:
        """Ends a runner that the gateway found at fault."""
        for runner in self._runners.values():
            if runner.facts.runner_id == runner_id:
                log.warning("runner %s ended on complaint: %r", runner_id, detail)
                runner.condemned = True
                runner.launched.kill()

    async def stop(self) -> None:
        """Ends all runners and waits until their ends are recorded."""
        runners = list(self._runners.values())
        for runner in runners:
            runner.launched.kill()
        await asyncio.gather(*(runner.ended for runner in runners if runner.ended), return_exceptions=True)

    def _by_digest(self, digest: Digest) -> VerifiedModel:
        for model in self._models.values():
            if model.digest == digest:
                return model
        raise Refused(Reason.MODEL_NOT_VERIFIED, f"no verified model {digest}")

    async def _start(self, model: VerifiedModel) -> Runner:
        if len(self._runners) + self._loads >= self._settings.max_loaded:
            raise Refused(Reason.RUNNER_UNAVAILABLE, f"{self._settings.max_loaded} models are loaded already")
        self._loads += 1
        try:
            return await self._verify_and_load(model)
        finally:
            self._loads -= 1

    async def _verify_and_load(self, model: VerifiedModel) -> Runner:
        started = time.monotonic()
        try:
            opened = await asyncio.to_thread(self._store.open_verified, model.name)
        except (Refused, Fault) as error:
            self._record_refused(model.name, model.digest, error)
            raise Refused(Reason.MODEL_NOT_VERIFIED, str(error)) from error
        try:
            if opened.model.digest != model.digest:
                self._models[model.name] = opened.model  # verified too, and what its name means from now on
                replaced = Refused(Reason.MODEL_NOT_VERIFIED, "the model was replaced meanwhile")
                self._record_refused(model.name, model.digest, replaced)
                raise replaced
            runner = await self._load(opened)
        finally:
            os.close(opened.file)
        self._audit.close(
            ModelLoaded(
                model=_reference(opened.model),
                runner=runner.facts,
                load_ms=round((time.monotonic() - started) * 1000),
            )
        )
        runner.ended = asyncio.create_task(self._watch(runner))
        return runner

    async def _load(self, opened: OpenedModel) -> Runner:
        """Starts a process, hands it the model, and waits until it is ready. Leaves nothing behind on failure."""
        runner_id = secrets.token_hex(8)
        try:
            launched = self._launcher.launch(runner_id)
        except Fault as fault:
            raise Refused(Reason.RUNNER_UNAVAILABLE, fault.detail) from fault
        load = Load(
            runner_id=runner_id,
            context_tokens=min(self._settings.context_tokens, opened.model.facts.context_tokens),
            slots=self._settings.slots,
            threads=self._settings.threads or min(os.cpu_count() or 1, MAX_DEFAULT_THREADS),
        )
        os.lseek(opened.file, 0, os.SEEK_SET)  # verifying read it; the runner maps from where the descriptor stands
        try:
            async with asyncio.timeout(self._settings.load_timeout_seconds):
                ready, channel = await _handshake(launched.channel, load, opened.file)
        except (Refused, TimeoutError) as error:
            launched.kill()
            status = await launched.wait()
            detail = f"{str(error) or 'no answer in time'} (exit status {status})"
            self._record_refused(opened.model.name, opened.model.digest, Refused(Reason.RUNNER_UNAVAILABLE, detail))
            raise Refused(Reason.RUNNER_UNAVAILABLE, detail) from error
        except BaseException:
            launched.kill()
            raise
        facts = _facts(runner_id, opened.model.digest, opened.seal_mode, ready)
        return Runner(model=opened.model, facts=facts, launched=launched, channel=channel)

    async def _watch(self, runner: Runner) -> None:
        status = await runner.launched.wait()
        digest = runner.facts.model_digest
        if self._runners.get(digest) is runner:
            del self._runners[digest]
        runner.channel.close()
        log.warning("runner %s ended with status %d", runner.facts.runner_id, status)
        self._audit.close(
            RunnerEnded(runner_id=runner.facts.runner_id, model_digest=digest, exit_status=status, detail="")
        )

    def _record_refused(self, name: str, digest: Digest | None, error: Refused | Fault) -> None:
        log.error("model %s refused: %s", name, error)
        reason = error.reason.code if isinstance(error, Refused) else "fault"
        self._audit.close(ModelRefused(name=name, digest=digest, reason=reason, detail=error.detail[:500]))


async def _handshake(channel: socket.socket, load: Load, model_file: int) -> tuple[Ready, socket.socket]:
    """Sends ``Load`` with the model's descriptor; returns the answer, and the channel for leasing.

    Raises ``Refused(RUNNER_UNAVAILABLE)`` when the runner refuses the model or dies.
    """
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def hear(message: Any, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if fds:
            connection.close("a descriptor where none belongs")
        elif not answered.done():
            answered.set_result(message)

    def lost(why: str) -> None:
        if not answered.done():
            answered.set_result(LoadFailed(reason="runner-died", detail=why))

    decoder: FrameDecoder[FromRunner] = FrameDecoder(FromRunner)
    connection: Connection[FromRunner] = Connection(channel, decoder, on_message=hear, on_closed=lost)
    try:
        connection.send(load, [model_file])
        answer = await answered
    except ConnectionError as error:
        raise Refused(Reason.RUNNER_UNAVAILABLE, str(error)) from error
    except BaseException:
        connection.close()
        raise
    if isinstance(answer, Ready):
        return answer, connection.detach()
    connection.close()
    detail = f"{answer.reason}: {answer.detail}" if isinstance(answer, LoadFailed) else type(answer).__name__
    raise Refused(Reason.RUNNER_UNAVAILABLE, detail)


def _facts(runner_id: str, digest: Digest, seal_mode: SealMode, ready: Ready) -> RunnerFacts:
    return RunnerFacts(
        runner_id=runner_id,
        model_digest=digest,
        seal_mode=seal_mode,
        layers=ready.layers,
        degraded=ready.degraded,
        filter_digest=ready.filter_digest,
        context_tokens=ready.context_tokens,
        slots=ready.slots,
    )


def _reference(model: VerifiedModel) -> ModelRef:
    return ModelRef(name=model.name, digest=model.digest, signer=model.signer, bundle_digest=model.bundle_digest)
