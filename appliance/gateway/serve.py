"""The gateway's process: uvicorn around the gate, and the tasks that live beside it.

Trusts: the notary and the warden behind their sockets.
Promises: no request is taken before the log is open and the policy in force is recorded in it; on SIGTERM and SIGINT
    requests in flight end first and their outcome records reach the notary, within a grace time.
Not here: what is assembled (``appliance.assemble``).
"""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Final, Protocol

import uvicorn

from appliance.core.records import PolicyLoaded, RefusalSummary
from appliance.core.refusals import Fault, Reason, Refused
from appliance.gateway.gate import Gate
from appliance.gateway.warden_client import WardenClient
from appliance.ipc.notary_client import NotaryClient

NOTARY_START_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 10
SUMMARY_SECONDS: Final = 60

log = logging.getLogger(__name__)


class RecordedPolicy(Protocol):
    """A policy that follows its files, and has itself recorded before it decides (``policy.reload``)."""

    @property
    def record(self) -> PolicyLoaded: ...

    async def run(self, put_on_record: Callable[[PolicyLoaded], Awaitable[object]]) -> None: ...


async def serve(
    gate: Gate,
    *,
    notary: NotaryClient,
    warden: WardenClient,
    policy: RecordedPolicy,
    listeners: Callable[[], Sequence[socket.socket]],
) -> None:
    """Runs until a signal; listens last. Raises ``Refused(AUDIT_UNAVAILABLE)`` while the log cannot be written, and
    what ``listeners`` raises."""
    async with _background(notary.run()), _background(warden.run()):
        try:
            async with asyncio.timeout(NOTARY_START_SECONDS):
                await notary.connected()
        except TimeoutError:
            raise Refused(Reason.AUDIT_UNAVAILABLE, "the notary is not there") from None
        await notary.open(policy.record)
        sockets = listeners()
        log.info("listening on %s; policy %s", ", ".join(map(_name, sockets)), policy.record.policy_digest)
        async with _background(_summarise(gate.refusals, notary)), _background(policy.run(notary.open)):
            await _uvicorn(gate).serve(sockets=list(sockets))
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
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise Fault(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return sock


def _name(sock: socket.socket) -> str:
    address = sock.getsockname()
    return f"{address[0]} port {address[1]}" if isinstance(address, tuple) else str(address)


def _uvicorn(gate: Gate) -> uvicorn.Server:
    """Every option that bears on safety is written out, also where it is the default."""
    return uvicorn.Server(
        uvicorn.Config(
            gate,
            http="httptools",
            ws="none",
            loop="asyncio",
            lifespan="on",
            proxy_headers=False,
            server_header=False,
            date_header=True,
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=1000,
            backlog=1024,
        )
    )


@contextlib.asynccontextmanager
async def _background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs ``work`` beside the body and cancels it after."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _summarise(refusals: Counter[str], notary: NotaryClient) -> None:
    while True:
        await asyncio.sleep(SUMMARY_SECONDS)
        _write_summary(refusals, notary)


def _write_summary(refusals: Counter[str], notary: NotaryClient) -> None:
    """Strangers add to a count, never to the number of records."""
    if refusals:
        notary.close(RefusalSummary(interval_seconds=SUMMARY_SECONDS, counts=dict(refusals)))
        refusals.clear()
