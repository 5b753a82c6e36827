"""The gateway's process: uvicorn around the gate, and the tasks that live beside it.

Trusts: the notary and the warden behind their sockets.
Promises: no request is taken before the log is open and the policy in force is recorded in it; on SIGTERM and SIGINT
    requests in flight end first and their outcome records reach the notary, within a grace time.
Not here: what is assembled (``appliance.assemble``).
"""

import asyncio
import contextlib
import gc
import logging
import math
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Final, Protocol, cast

import uvicorn

from appliance.core.records import PolicyLoaded
from appliance.core.refusals import Fault, Reason, Refused
from appliance.gateway import tls, wire
from appliance.gateway.asgi import AsgiApp
from appliance.gateway.gate import Gate
from appliance.gateway.listeners import BACKLOG, Arrival, Listener, direct
from appliance.gateway.porch import Arrive, Porch
from appliance.gateway.tally import Tally
from appliance.gateway.warden_client import WardenClient
from appliance.ipc.notary_client import NotaryClient

NOTARY_START_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 10
SUMMARY_SECONDS: Final = 60
REVOKED_SECONDS: Final = 0.25
"""Between two looks at the answers under way. A token that comes is looked up by itself."""
YOUNG_OBJECTS: Final = 20_000
"""Made and not freed before the collector of cycles looks at them: those of some dozen requests. By Python's own number
it would look twice in each."""

log = logging.getLogger(__name__)


class RecordedPolicy(Protocol):
    """A policy that follows its files, and has itself recorded before it decides (``policy.reload``). ``run`` returns
    when it can follow them no further."""

    @property
    def record(self) -> PolicyLoaded: ...

    async def run(self, put_on_record: Callable[[PolicyLoaded], Awaitable[object]]) -> None: ...


async def serve(
    gate: Gate,
    *,
    notary: NotaryClient,
    warden: WardenClient,
    policy: RecordedPolicy,
    limits: wire.WireLimits,
    listeners: Callable[[], Sequence[Listener]],
) -> None:
    """Runs until a signal, or until the policy is out of reach and another gateway is needed; listens last.

    Raises ``Refused(AUDIT_UNAVAILABLE)`` while the log cannot be written, ``Fault`` when a listener went deaf, and what
    ``listeners`` raises.
    """
    async with _background(notary.run()), _background(warden.run()):
        try:
            async with asyncio.timeout(NOTARY_START_SECONDS):
                await notary.connected()
        except TimeoutError:
            raise Refused(Reason.AUDIT_UNAVAILABLE, "the notary is not there") from None
        await notary.open(policy.record)
        opened = listeners()
        log.info("listening on %s; policy %s", ", ".join(map(str, opened)), policy.record.policy_digest)
        server = http_server(gate, limits, gate.refusals, opened)
        gc.freeze()  # modules and settings stay as long as the process: no collection needs to look at them
        gc.set_threshold(YOUNG_OBJECTS)
        async with (
            _background(_summarise(gate.refusals, notary)),
            _background(_end_revoked(gate)),
            _background(_follow(policy, notary, server)),
            _background(tls.follow(one.tls for one in opened if one.tls is not None)),
        ):
            await server.serve()
        _write_summary(gate.refusals, notary)
        with contextlib.suppress(TimeoutError):  # the notary closes as gateway-lost what it did not hear of
            async with asyncio.timeout(GRACE_SECONDS):
                await notary.drained()
        if server.went_deaf:
            raise Fault("a listener went deaf")


def http_server(app: AsgiApp, limits: wire.WireLimits, refusals: Tally, listeners: Sequence[Listener]) -> "_Server":
    """Every option that bears on safety is written out, also where it is the default."""
    config = uvicorn.Config(
        app,
        http=wire.Wire,
        ws="none",
        loop="asyncio",
        lifespan="on",
        proxy_headers=False,  # ``origin`` reads them, from whom they may be believed
        server_header=False,
        date_header=True,
        access_log=False,
        log_config=None,
        log_level=logging.WARNING,
        timeout_keep_alive=math.ceil(limits.keep_alive_seconds),
        timeout_graceful_shutdown=GRACE_SECONDS,
        limit_concurrency=None,  # it counts idle connections; ``wire`` bounds both kinds
    )
    return _Server(config, listeners, wire.Crowd(limits, refusals.strangers))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, listeners: Sequence[Listener], crowd: wire.Crowd) -> None:
        super().__init__(config)
        self._listeners = listeners
        self._crowd = crowd
        self.went_deaf = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Instead of uvicorn's, which knows one kind of listener."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise Fault("the application did not start")
        self.servers = [await self._begin(listener) for listener in self._listeners]
        self.started = True

    async def _begin(self, listener: Listener) -> asyncio.Server:
        if listener.proxy_protocol or listener.tls is not None:
            return cast("asyncio.Server", Porch(listener, self._crowd, self._wire, self._end_deaf))

        def arrive(transport: asyncio.BaseTransport) -> Arrival:
            return direct(listener, transport.get_extra_info("socket"))

        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: self._wire(arrive), sock=listener.sock, backlog=BACKLOG)

    def _end_deaf(self, error: BaseException) -> None:
        """A gateway with a listener that nobody accepts at would look alive: another is needed."""
        log.critical("a listener went deaf", exc_info=error)
        self.went_deaf = True
        self.should_exit = True

    def _wire(self, arrive: Arrive) -> wire.Wire:
        state = {"config": self.config, "server_state": self.server_state, "app_state": self.lifespan.state}
        return wire.Wire(self._crowd, arrive, **state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals for the rest of the loop's life. uvicorn would raise them once more when it has served,
        which ends the process before its last records have reached the notary."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        yield


@contextlib.asynccontextmanager
async def _background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs ``work`` beside the body and cancels it after. Work that ends by itself ends the body too: a gateway that
    has lost its notary's or its warden's connection keeper would look alive and answer nothing.

    Raises what ended the work, or ``Fault`` when it just returned.
    """
    body = asyncio.current_task()
    task = asyncio.create_task(work)
    ended_body = False

    def end_body(ended: asyncio.Task[None]) -> None:
        nonlocal ended_body
        if body is not None and not ended.cancelled():
            ended_body = body.cancel()

    task.add_done_callback(end_body)
    try:
        yield
    except asyncio.CancelledError:
        if not ended_body or body is None or body.uncancel():
            raise
        task.result()  # raises what ended it
        raise Fault("a part of the gateway ended by itself") from None
    finally:
        task.remove_done_callback(end_body)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _follow(policy: RecordedPolicy, notary: NotaryClient, server: uvicorn.Server) -> None:
    """Ends the server as a signal would, with its requests answered, when the policy is out of reach."""
    await policy.run(notary.open)
    server.should_exit = True
    await asyncio.Event().wait()  # until the server has ended


async def _summarise(refusals: Tally, notary: NotaryClient) -> None:
    while True:
        await asyncio.sleep(SUMMARY_SECONDS)
        _write_summary(refusals, notary)


async def _end_revoked(gate: Gate) -> None:
    while True:
        await asyncio.sleep(REVOKED_SECONDS)
        gate.end_revoked()


def _write_summary(refusals: Tally, notary: NotaryClient) -> None:
    for summary in refusals.take(SUMMARY_SECONDS):
        notary.close(summary)
