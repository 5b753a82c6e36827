"""The gateway's own HTTP server in this process, with short times, around any application; and a raw client."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from appliance.gateway.answering import BodyLimits
from appliance.gateway.app import build_app
from appliance.gateway.asgi import AsgiApp, send_response
from appliance.gateway.gate import Gate
from appliance.gateway.listeners import Listener, listen_tcp
from appliance.gateway.metrics import MetricsPage
from appliance.gateway.serve import http_server
from appliance.gateway.slots import Slots
from appliance.gateway.tally import Tally
from appliance.gateway.wire import WireLimits
from tests.fakes.world import NOW, World
from tests.support.scenario import until

SMALL_BUFFER_BYTES = 4096


@dataclass
class Served:
    listener: socket.socket
    refusals: Tally

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    @asynccontextmanager
    async def client(
        self, *, small_buffer: bool = False, before: bytes = b"", tls: ssl.SSLContext | None = None
    ) -> AsyncIterator["Client"]:
        """``before`` is sent before TLS begins."""
        sock = socket.socket(self.listener.family)
        if small_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, self.listener.getsockname())
        await loop.sock_sendall(sock, before)
        host = {"server_hostname": "localhost"} if tls else {}
        reader, writer = await asyncio.open_connection(sock=sock, limit=SMALL_BUFFER_BYTES, ssl=tls, **host)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()


class Client:
    """One connection, which sends what it is told and nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> bytes:
        """One answer with a Content-Length."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await self._reader.readexactly(length)

    async def some(self, n_bytes: int) -> bytes:
        """So much of what comes, or less when the server has ended the connection."""
        try:
            return await self._reader.readexactly(n_bytes)
        except asyncio.IncompleteReadError as error:
            return error.partial
        except ConnectionError:
            return b""

    async def rest(self) -> bytes:
        """What comes until the server ends the connection, in whatever way."""
        received = b""
        with suppress(ConnectionError):
            while piece := await self._reader.read(65536):
                received += piece
        return received

    async def flood(self, data: bytes, limit_bytes: int) -> int:
        """Sends the same bytes again and again until the server ends the connection. Returns how many were sent."""
        sent = 0
        with suppress(ConnectionError):
            while sent < limit_bytes and not self._reader.at_eof():
                self.send(data)
                await self.writer.drain()
                sent += len(data)
        return sent


@asynccontextmanager
async def served(
    app: AsgiApp, refusals: Tally | None = None, *, at: socket.socket | None = None, terms: Any = None, **limits: Any
) -> AsyncIterator[Served]:
    """``terms``: further arguments of ``Listener``."""
    listener = at or listen_tcp("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
    refusals = refusals or Tally()
    server = http_server(
        app, WireLimits(**({"request_seconds": 30.0} | limits)), refusals, [Listener(listener, **(terms or {}))]
    )
    task = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    try:
        yield Served(listener, refusals)
    finally:
        server.should_exit = True
        await task


def gate_around(
    world: World,
    *,
    slots: int = 2,
    inner: AsgiApp | None = None,
    refusals: Tally | None = None,
    hosts: Iterable[str] = ("test",),
) -> Gate:
    """The whole application on fakes, or ``inner``. It answers for any ``Host: test`` and knows the token ``good``."""
    held, refusals = Slots(slots), refusals or Tally()
    limits = BodyLimits(max_bytes=10_000, timeout_seconds=5.0)
    return Gate(
        inner or build_app(world.pipeline, limits, MetricsPage(world.pipeline, refusals, held)),  # type: ignore[arg-type]
        world.pipeline,
        verifier=world.verifier,
        addresses=world.addresses,
        rates=world.rates,
        slots=held,
        refusals=refusals,
        allowed_hosts=frozenset(hosts),
        now_seconds=lambda: NOW,
    )


class App:
    """Answers ``answer`` to everything, or holds every request until ``go``."""

    def __init__(self, *, held: bool = False, answer: bytes = b"ok") -> None:
        self.begun: list[Any] = []
        self.asked: list[Any] = []
        self.bodies: list[bytes] = []
        self.answer = answer
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
            return
        self.asked.append(scope)
        await self.go.wait()
        await send_response(send, 200, self.answer, content_type=b"text/plain", headers={})
