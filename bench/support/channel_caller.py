"""Callers that speak to a runner with nothing in between: the frames that the gateway would send, on its own channel.

The runner is the appliance's own, in its whole sandbox, started by the warden's launcher.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core.values import Message, Sampling
from appliance.ipc.connection import Connection
from appliance.ipc.frames import FrameDecoder
from appliance.ipc.messages import (
    Conversation,
    Fenced,
    FromRunner,
    Load,
    Ready,
    RunnerDelta,
    RunnerEnd,
    RunnerStarted,
    Submit,
)
from appliance.warden.launch_spawn import SpawnLauncher
from appliance.warden.starter_client import Starter
from bench.support.exchange import ASK_SECONDS, PROMPT, Reply, Setup
from bench.support.processes import innermost


@dataclass
class _Pending:
    done: "asyncio.Future[Reply]"
    pieces: int = 0
    first_at: float = 0.0


class RunnerChannel:
    """One runner and its channel, shared by any number of callers."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.connection: Connection[FromRunner] | None = None
        self.first: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending: dict[str, _Pending] = {}
        self._count = 0

    async def ask(self, max_tokens: int) -> Reply:
        """Raises ``RuntimeError`` when the runner does anything but answer, ``TimeoutError`` when it takes too long."""
        assert self.connection is not None
        self._count += 1
        request_id = f"straight-{self._count}"
        pending = self._pending[request_id] = _Pending(asyncio.get_running_loop().create_future())
        self.connection.send(
            Submit(
                request_id=request_id,
                prompt=Conversation(messages=(Message(role="user", content=PROMPT),)),
                sampling=Sampling(),
                max_prompt_tokens=256,
                max_completion_tokens=max_tokens,
                cache_partition="straight",
            )
        )
        async with asyncio.timeout(ASK_SECONDS):
            return await pending.done

    def heard(self, message: Any, _fds: list[int]) -> None:
        match message:
            case RunnerDelta():
                pending = self._pending[message.request_id]
                pending.pieces += 1
                pending.first_at = pending.first_at or time.perf_counter()
            case RunnerEnd(reason="length"):
                pending = self._pending.pop(message.request_id)
                pending.done.set_result(
                    Reply(tokens=message.completion_tokens, pieces=pending.pieces, first_at=pending.first_at)
                )
            case RunnerStarted() | Fenced():
                pass
            case _ if not self.first.done():
                self.first.set_result(message)
            case _:
                self.lost(f"unexpected: {message}")

    def lost(self, why: str) -> None:
        for pending in self._pending.values():
            if not pending.done.done():
                pending.done.set_exception(RuntimeError(why))
        if not self.first.done():
            self.first.set_exception(RuntimeError(why))


class ChannelCaller:
    """One caller among those on a channel."""

    def __init__(self, channel: RunnerChannel, *, max_tokens: int) -> None:
        self._channel = channel
        self._max_tokens = max_tokens

    async def ask(self, token: str | None = None) -> Reply:
        """A channel knows no tokens."""
        return await self._channel.ask(self._max_tokens)

    def close(self) -> None:
        """The channel stays for the next callers."""


@asynccontextmanager
async def runner(setup: Setup, model_file: str) -> AsyncIterator[RunnerChannel]:
    """A runner that is loaded and ready; ended afterwards."""
    with Starter() as starter:
        launched = await SpawnLauncher(starter).launch("straight")
        try:
            channel = RunnerChannel(launched.pid)
            channel.connection = Connection(
                launched.channel, FrameDecoder(FromRunner), on_message=channel.heard, on_closed=channel.lost
            )
            load = Load(
                runner_id="straight",
                context_tokens=setup.context_tokens,
                slots=setup.slots,
                threads=setup.threads,
            )
            with Path(model_file).open("rb") as model:
                channel.connection.send(load, [model.fileno()])
                async with asyncio.timeout(ASK_SECONDS):
                    first = await channel.first
            if not isinstance(first, Ready):
                raise TypeError(f"the runner is not ready: {first}")
            channel.pid = innermost(launched.pid)
            yield channel
            channel.connection.close()
        finally:
            launched.kill()
            await launched.wait()
            await launched.stderr
