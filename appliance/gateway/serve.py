"""The gateway's process: uvicorn around the gate, and the tasks that live beside it.

Trusts: the notary and the warden behind their sockets.
Promises: no request is taken before the log is open and the policy in force is recorded in it; on SIGTERM and SIGINT
    requests in flight end first and their outcome records reach the notary, within a grace time.
Not here: what is assembled (``appliance.assemble``).
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Final, Protocol

import uvicorn

from appliance.core.records import PolicyLoaded
from appliance.core.refusals import Fault, Reason, Refused
from appliance.gateway import wire
from appliance.gateway.asgi import AsgiApp
from appliance.gateway.gate import Gate
from appliance.gateway.tally import Tally
from appliance.gateway.warden_client import WardenClient
from appliance.ipc.notary_client import NotaryClient

NOTARY_START_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 10
SUMMARY_SECONDS: Final = 60
BACKLOG: Final = 256
"""asyncio accepts as many at a time, each with a descriptor, before ``wire`` sees the first of them."""

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
    listeners: Callable[[], Sequence[socket.socket]],
) -> None:
    """Runs until a signal, or until the policy is out of reach and another gateway is needed; listens last.

    Raises ``Refused(AUDIT_UNAVAILABLE)`` while the log cannot be written, and what ``listeners`` raises.
    """
    async with _background(notary.run()), _background(warden.run()):
        try:
            async with asyncio.timeout(NOTARY_START_SECONDS):
                await notary.connected()
        except TimeoutError:
            raise Refused(Reason.AUDIT_UNAVAILABLE, "the notary is not there") from None
        await notary.open(policy.record)
        sockets = listeners()
        log.info("listening on %s; policy %s", ", ".join(map(_name, sockets)), policy.record.policy_digest)
        server = http_server(gate, limits, gate.refusals)
        async with _background(_summarise(gate.refusals, notary)), _background(_follow(policy, notary, server)):
            await server.serve(sockets=list(sockets))
        _write_summary(gate.refusals, notary)
        with contextlib.suppress(TimeoutError):  # the notary closes as gateway-lost what it did not hear of
            async with asyncio.timeout(GRACE_SECONDS):
                await notary.drained()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ``Fault`` when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Accepted sockets inherit the protocol number, and asyncio sets TCP_NODELAY only where it says TCP: without it each
    # answer of two writes waits for the peer's delayed acknowledgement, 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Fault(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return sock


def _name(sock: socket.socket) -> str:
    address = sock.getsockname()
    return f"{address[0]} port {address[1]}" if isinstance(address, tuple) else str(address)


def http_server(app: AsgiApp, limits: wire.WireLimits, refusals: Tally) -> uvicorn.Server:
    """Every option that bears on safety is written out, also where it is the default."""
    return _Server(
        uvicorn.Config(
            app,
            http=wire.protocol(limits, refusals.strangers),
            ws="none",
            loop="asyncio",
            lifespan="on",
            proxy_headers=False,
            server_header=False,
            date_header=True,
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            timeout_keep_alive=math.ceil(limits.keep_alive_seconds),
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=None,  # it counts idle connections; ``wire`` bounds both kinds
            backlog=BACKLOG,
        )
    )


class _Server(uvicorn.Server):
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


def _write_summary(refusals: Tally, notary: NotaryClient) -> None:
    for summary in refusals.take(SUMMARY_SECONDS):
        notary.close(summary)
