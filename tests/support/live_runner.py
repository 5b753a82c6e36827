"""A real runner, started by the real launcher, loaded and ready; and what the host sees of it."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import appliance
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, encode
from appliance.ipc.messages import Fenced, FromRunner, Load
from appliance.warden.commands import RUNNER_COMMAND, VALIDATOR_COMMAND
from appliance.warden.launch_spawn import LaunchedRunner, SpawnLauncher
from appliance.warden.starter_client import Starter

DEMO_MODEL = Path(appliance.__file__).parent / "data" / "paddock-demo.gguf"
LOAD = Load(runner_id="test", context_tokens=256, slots=2, threads=2, batch_tokens=64)
LIMIT_SECONDS = 30.0

_DECODER = FrameDecoder[FromRunner](FromRunner)
ResultT = TypeVar("ResultT")


def within_limit(scenario: Callable[[], Awaitable[ResultT]], seconds: float = LIMIT_SECONDS) -> ResultT:
    """Runs one async scenario with the time limit that every client in a test has."""

    async def limited() -> ResultT:
        async with asyncio.timeout(seconds):
            return await scenario()

    return asyncio.run(limited())


def starter_of(
    *,
    runner: tuple[str, ...] = RUNNER_COMMAND,
    validator: tuple[str, ...] = VALIDATOR_COMMAND,
    allow_degraded: frozenset[str] = frozenset(),
    groups: Path | None = None,
    before: str = "",
) -> Starter:
    """A real starter, with other programs where the runner and the validator should be, and ``before`` run first."""
    program = (
        f"{before}\nimport sys; from appliance.warden import commands, starter; "
        f"commands.RUNNER_COMMAND = {runner!r}; commands.VALIDATOR_COMMAND = {validator!r}; starter.main(sys.argv[1:])"
    )
    return Starter(allow_degraded=allow_degraded, groups=groups, command=(sys.executable, "-I", "-B", "-c", program))


@asynccontextmanager
async def launched(
    *, command: tuple[str, ...] = RUNNER_COMMAND, allow_degraded: frozenset[str] = frozenset()
) -> AsyncIterator[LaunchedRunner]:
    """A runner that waits for its Load; ended afterwards, whatever happened."""
    with starter_of(runner=command, allow_degraded=allow_degraded) as starter:
        runner = await SpawnLauncher(starter).launch("test")
        runner.channel.setblocking(False)
        try:
            yield runner
        finally:
            runner.kill()
            await runner.wait()
            await runner.stderr
            runner.channel.close()


def send(runner: LaunchedRunner, message: object, descriptors: tuple[int, ...] = ()) -> None:
    socket.send_fds(runner.channel, [encode(message)], descriptors)  # type: ignore[arg-type]


async def receive(runner: LaunchedRunner) -> FromRunner | None:
    """The next message; None when the runner has gone."""
    try:
        data = await asyncio.get_running_loop().sock_recv(runner.channel, MAX_FRAME_BYTES)
    except ConnectionResetError:
        return None
    return _DECODER.decode(data) if data else None


async def load(runner: LaunchedRunner, model: Path = DEMO_MODEL, message: Load = LOAD) -> FromRunner | None:
    """Waits until the fence is up, hands over a model and returns the answer; or what came in place of the fence."""
    first = await receive(runner)
    return await hand_over(runner, model, message) if isinstance(first, Fenced) else first


async def hand_over(runner: LaunchedRunner, model: Path = DEMO_MODEL, message: Load = LOAD) -> FromRunner | None:
    """Hands over a model and returns the answer."""
    with model.open("rb") as file:
        send(runner, message, (file.fileno(),))
    return await receive(runner)


def inner_pid(runner: LaunchedRunner) -> int:
    """The host's number of the process in the sandbox, the only child of the one that waits for it."""
    (child,) = children(runner.pid)
    return child


def children(pid: int) -> list[int]:
    """Of a process with one thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status(pid: int, thread: int | None = None) -> dict[str, str]:
    """``/proc/<pid>/status``, or that of one of its threads."""
    path = Path(f"/proc/{pid}/status" if thread is None else f"/proc/{pid}/task/{thread}/status")
    return dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)


def threads(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
