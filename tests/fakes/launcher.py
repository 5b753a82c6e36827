"""``warden.ports.Launcher``: each runner is the other end of a socket pair, and says what the test says."""

import asyncio
import os
import socket

from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.ipc.connection import channel_pair
from appliance.ipc.messages import Load, Ready, ToRunner
from tests.support.scripted_peer import ScriptedPeer


class FakeRunner:
    """``warden.ports.LaunchedRunner``. ``lives_on`` is a runner that does not end when killed, until ``end``."""

    def __init__(self, runner_id: str) -> None:
        self.runner_id = runner_id
        self.channel: socket.socket
        self.channel, theirs = channel_pair()
        self.peer = ScriptedPeer(theirs, ToRunner)
        self.kills = 0
        self.lives_on = False
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await asyncio.shield(self._status)

    def kill(self) -> None:
        self.kills += 1
        if not self.lives_on:
            self.end(-9)

    def end(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)
            self.peer.leave()

    async def load(self) -> tuple[Load, bytes]:
        """What it was told to load, and the bytes that a runner would map from where the descriptor stands."""
        load: Load = await self.peer.hear(Load)
        [fd] = self.peer.fds
        try:
            return load, os.read(fd, 100)
        finally:
            os.close(fd)
            self.peer.fds.clear()

    async def become_ready(self) -> Load:
        load, _data = await self.load()
        self.peer.say(
            Ready(layers=("landlock",), degraded=(), filter_digest=Digest.of(b"f"), context_tokens=128, slots=2)
        )
        return load


class FakeLauncher:
    def __init__(self) -> None:
        self.launched: asyncio.Queue[FakeRunner] = asyncio.Queue()
        self.count = 0
        self.fault: Fault | None = None

    def launch(self, runner_id: str) -> FakeRunner:
        if self.fault is not None:
            raise self.fault
        runner = FakeRunner(runner_id)
        self.count += 1
        self.launched.put_nowait(runner)
        return runner

    async def next_ready(self) -> FakeRunner:
        runner = await self.launched.get()
        await runner.become_ready()
        return runner
