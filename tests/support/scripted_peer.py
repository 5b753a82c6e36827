"""The other end of a channel, or a whole server on a path, whose every word the test says."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.ipc.connection import Connection, listen
from appliance.ipc.frames import FrameDecoder


class ScriptedPeer:
    """One end of a channel. Belongs to the event loop's thread."""

    def __init__(self, sock: socket.socket, hears: Any) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.fds: list[int] = []
        self.gone = asyncio.Event()
        self.sock = sock
        decoder: FrameDecoder[Any] = FrameDecoder(hears)
        self.connection: Connection[Any] = Connection(
            sock, decoder, on_message=self._hear, on_closed=lambda _why: self.gone.set(), accepts_fds=True
        )

    def _hear(self, message: Any, fds: list[int]) -> None:
        self.fds += fds
        self.heard.put_nowait(message)

    async def hear(self, kind: type | None = None) -> Any:
        """The next message, which must be of this kind."""
        message = await self.heard.get()
        assert kind is None or isinstance(message, kind), message
        return message

    def say(self, message: Any, fds: Sequence[int] = ()) -> None:
        self.connection.send(message, fds)

    def leave(self) -> None:
        self.connection.close()


class ScriptedServer:
    """Listens on a path and hands out one ``ScriptedPeer`` for each connection."""

    def __init__(self, path: Path, hears: Any) -> None:
        self._path = path
        self._hears = hears
        self._listening: socket.socket | None = None
        self._waiting: asyncio.Queue[ScriptedPeer] = asyncio.Queue()
        self._peers: list[ScriptedPeer] = []
        self._loop = asyncio.get_running_loop()
        self.start()

    def start(self) -> None:
        self._listening = listen(self._path, mode=0o600)
        self._loop.add_reader(self._listening.fileno(), self._welcome, self._listening)

    async def accept(self) -> ScriptedPeer:
        """The next peer that connects, now or after the next ``start``."""
        return await self._waiting.get()

    def stop(self) -> None:
        """As a process that dies: the listening socket and all connections at once."""
        if self._listening is not None:
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
        for peer in self._peers:
            peer.leave()

    def _welcome(self, listening: socket.socket) -> None:
        sock, _address = listening.accept()
        peer = ScriptedPeer(sock, self._hears)
        self._peers.append(peer)
        self._waiting.put_nowait(peer)
