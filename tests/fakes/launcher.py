"""``warden.ports.Launcher``: each runner is the other end of a socket pair, and says what the test says."""

import asyncio
import os
import socket

from appliance.core.refusals import Fault
from appliance.ipc.connection import channel_pair
from appliance.ipc.messages import Fenced, Load, Ready, TakenMemory, ToRunner
from appliance.sandbox.layers import LAYERS
from appliance.warden.fence import FILTERS, filter_digest
from tests.support.scripted_peer import ScriptedPeer

FENCED = Fenced(
    layers=tuple(layer for layer in LAYERS if layer not in FILTERS), degraded=(), filter_digest=filter_digest()
)


class FakeRunner:
    """``warden.ports.LaunchedRunner``, fenced in unless ``fenced`` says something else, or nothing.

    ``lives_on`` is a runner that does not end when killed, until ``end``; ``looks_wrong`` one whose process shows that
    a filter is missing.
    """

    def __init__(self, runner_id: str, fenced: Fenced | None = FENCED) -> None:
        self.runner_id = runner_id
        self.looks_wrong = False
        self.inspected: list[frozenset[str]] = []
        self.channel: socket.socket
        self.channel, theirs = channel_pair()
        self.peer = ScriptedPeer(theirs, ToRunner)
        self.kills = 0
        self.lives_on = False
        self._status: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        if fenced is not None:
            self.peer.say(fenced)

    async def wait(self) -> int | None:
        return await asyncio.shield(self._status)

    async def inspect(self, named: frozenset[str]) -> None:
        self.inspected.append(named)
        if self.looks_wrong:
            raise Fault("a thread of the runner has 1 filters, not 2")

    async def taken(self) -> TakenMemory | None:
        return TakenMemory(private_bytes=2**20, mapped_bytes=2**21)

    def kill(self) -> None:
        self.kills += 1
        if not self.lives_on:
            self.end(-9)

    def end(self, status: int | None) -> None:
        if not self._status.done():
            self._status.set_result(status)
            self.peer.leave()

    async def load(self) -> tuple[Load, bytes]:
        """What it was told to load, and the bytes that a runner would map from where each descriptor stands."""
        load: Load = await self.peer.hear(Load)
        assert len(self.peer.fds) == 1 + len(load.companions)
        try:
            return load, b" ".join(os.read(fd, 100) for fd in self.peer.fds)
        finally:
            for fd in self.peer.fds:
                os.close(fd)
            self.peer.fds.clear()

    async def become_ready(self) -> Load:
        load, _data = await self.load()
        self.peer.say(Ready(context_tokens=min(128, load.context_tokens), slots=load.slots))
        return load


class FakeLauncher:
    def __init__(self) -> None:
        self.launched: asyncio.Queue[FakeRunner] = asyncio.Queue()
        self.count = 0
        self.fault: Fault | None = None
        self.fenced: Fenced | None = FENCED
        self.allow_degraded: frozenset[str] = frozenset()

    async def launch(self, runner_id: str, memory_bytes: int) -> FakeRunner:
        if self.fault is not None:
            raise self.fault
        runner = FakeRunner(runner_id, self.fenced)
        self.count += 1
        self.launched.put_nowait(runner)
        return runner

    async def next_ready(self) -> FakeRunner:
        runner = await self.launched.get()
        await runner.become_ready()
        return runner
