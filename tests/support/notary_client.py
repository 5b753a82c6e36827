"""A gateway, a warden and an operator, as far as a notary can tell; and a notary to talk to."""

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from appliance.core.records import Record, encode_record
from appliance.core.values import Digest
from appliance.ipc.connection import Caller, Connection, connect, peer_uid
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import (
    Append,
    Appended,
    AppendFailed,
    FromNotary,
    FromNotaryAdmin,
    Hello,
    IssueToken,
    Revoked,
)
from appliance.notary.main import NotaryConfig, run_notary
from appliance.notary.speakers import Process

ORIGIN = "paddock.test/log"
TIMEOUT_SECONDS = 10


class NotaryClient:
    """One connection. ``closed`` is done, with the reason, when the notary has ended it."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._caller: Caller[Any] = Caller()
        self.revoked: asyncio.Queue[Revoked] = asyncio.Queue()
        self.connection: Connection[Any]

    @classmethod
    async def open(cls, path: Path, union: Any = FromNotary) -> "NotaryClient":
        client = cls()
        sock = await connect(path, None)
        client.connection = Connection(sock, FrameDecoder(union), on_message=client._heard, on_closed=client._gone)
        return client

    @classmethod
    async def hello(
        cls, path: Path, role: Literal["gateway", "warden"], open_requests: tuple[str, ...] = ()
    ) -> "NotaryClient":
        client = await cls.open(path)
        client.connection.send(Hello(role=role, open_requests=open_requests))
        return client

    def _heard(self, message: Any, fds: list[int]) -> None:
        if isinstance(message, Revoked):
            self.revoked.put_nowait(message)
        else:
            self._caller.answered(message, fds)

    async def ask(self, kind: Any, **fields: Any) -> Any:
        question = kind(call=self._caller.next_call(), **fields)
        return await self._caller.ask(self.connection, question, timeout_seconds=TIMEOUT_SECONDS)

    def _gone(self, why: str) -> None:
        self.closed.set_result(why)
        self._caller.disconnected(why)

    async def append(self, record: Record, *, durable: bool = True) -> Appended | AppendFailed:
        question = Append(call=self._caller.next_call(), record=encode_record(record), durable=durable)
        return await self._caller.ask(self.connection, question, timeout_seconds=TIMEOUT_SECONDS)

    async def appended(self, record: Record, *, durable: bool = True) -> Appended:
        answer = await self.append(record, durable=durable)
        assert isinstance(answer, Appended), answer
        return answer

    async def issue(self, **fields: Any) -> Any:
        given = {"subject": "ada", "client_id": "cli", "groups": ("staff",), "models": ("*",), "ttl_seconds": 60}
        return await self.ask(IssueToken, **(given | fields))

    def close(self) -> None:
        self.connection.close()


async def operator(config: NotaryConfig) -> NotaryClient:
    return await NotaryClient.open(config.admin_socket_path, FromNotaryAdmin)


def notary_config(place: Path, **changes: Any) -> NotaryConfig:
    """Everything under ``place``; we are every uid."""
    mine = frozenset({os.getuid()})
    fields: dict[str, Any] = {
        "state_dir": place / "state",
        "public_dir": place / "public",
        "socket_path": place / "notary.sock",
        "admin_socket_path": place / "notary-admin.sock",
        "gateway_uids": mine,
        "warden_uids": mine,
        "operator_uids": mine,
        "issuer": "https://issuer.test",
        "audience": "paddock",
        "log_origin": ORIGIN,
        "version": "test",
        "settings_digest": Digest.of(b"settings"),
        "checkpoint_interval_seconds": 0.05,
    }
    (place / "public").mkdir(exist_ok=True)
    (place / "state").mkdir(exist_ok=True)
    return NotaryConfig(**(fields | changes))


def every_connection_a_process() -> Callable[[socket.socket], Process]:
    """The tests' peers are all in one process. No process has a negative number, so that none is watched."""
    numbers = itertools.count(-1, -1)
    return lambda sock: Process(next(numbers), peer_uid(sock))


@asynccontextmanager
async def running_notary(config: NotaryConfig, **given: Any) -> AsyncIterator[asyncio.Event]:
    """A notary in this event loop, stopped in an orderly way at the end. Yields its stop event.

    Each connection counts as a process of its own, unless ``process_of`` says otherwise.
    """
    given.setdefault("process_of", every_connection_a_process())
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(run_notary(config, stop=stop, on_ready=ready.set, **given))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT_SECONDS)
        if task.done():
            await task
        yield stop
    finally:
        waiting.cancel()
        stop.set()
        await asyncio.wait_for(task, TIMEOUT_SECONDS)
