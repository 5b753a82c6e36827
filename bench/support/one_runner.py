"""One runner process, started and asked by nobody but the benchmark: one question at a time, nothing in front."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from appliance.core.values import Message, Sampling
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, encode
from appliance.ipc.messages import Conversation, Fenced, FromRunner, Load, Ready, RunnerDelta, RunnerEnd, Submit
from appliance.runner.main import ENVIRONMENT
from bench.support.exchange import ASK_SECONDS, PROMPT
from bench.support.processes import children, cpu_seconds

_HERE: Final = Path(__file__).parent
SANDBOXED: Final = ("-m", "appliance.runner")
BARE: Final = (str(_HERE / "runner_without_sandbox.py"),)
CLOCKED: Final = (str(_HERE / "runner_with_clock.py"),)

_DECODER: Final = FrameDecoder[FromRunner](FromRunner)


@dataclass(frozen=True)
class Cost:
    """Of something that a runner did: seconds that passed, and seconds of all its processes' threads."""

    wall_seconds: float
    cpu_seconds: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall_seconds + other.wall_seconds, self.cpu_seconds + other.cpu_seconds)


class OneRunner:
    """Loaded and ready. ``start`` is what it cost from the launch until then."""

    def __init__(self, process: "subprocess.Popen[bytes]", channel: socket.socket, start: Cost) -> None:
        self.start: Final = start
        self.stderr: Final = process.stderr
        self.pid: Final = process.pid
        self.channel: Final = channel

    def answer(self, tokens: int) -> Cost:
        """What one token costs, on average, in an answer of ``tokens``: from its first words to its last."""
        self.channel.send(
            encode(
                Submit(
                    request_id="bench",
                    prompt=Conversation(messages=(Message(role="user", content=PROMPT),)),
                    sampling=Sampling(),
                    max_prompt_tokens=256,
                    max_completion_tokens=tokens,
                    cache_partition="bench",
                )
            )
        )
        while not isinstance(message := _receive(self.channel), RunnerDelta):
            pass
        began, before, first = time.perf_counter(), cpu_of(self.pid), message.tokens
        while not isinstance(message, RunnerEnd):
            message = _receive(self.channel)
        wall, cpu = time.perf_counter() - began, cpu_of(self.pid) - before
        if message.completion_tokens != tokens:
            raise RuntimeError(f"the answer has {message.completion_tokens} tokens, not {tokens}")
        return Cost(wall / (tokens - first), cpu / (tokens - first))


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and of those below it: the runner and, in a pid namespace, its guardian."""
    return cpu_seconds(pid) + sum(map(cpu_of, children(pid)))


def _receive(channel: socket.socket) -> Any:
    data = channel.recv(MAX_FRAME_BYTES)
    if not data:
        raise RuntimeError("the runner left")
    return _DECODER.decode(data)


@contextmanager
def one_runner(program: tuple[str, ...], model: Path, load: Load) -> Iterator[OneRunner]:
    """A runner that is ended afterwards. Raises ``TypeError`` when it does not become ready."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_FRAME_BYTES)
    ours.settimeout(ASK_SECONDS)
    file = os.open(model, os.O_RDONLY)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", *program, "--channel-fd", str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
        env=ENVIRONMENT,
        cwd="/",
    )
    theirs.close()
    try:
        if isinstance(message := _receive(ours), Fenced):
            socket.send_fds(ours, [encode(load)], [file])
            message = _receive(ours)
        if not isinstance(message, Ready):
            raise TypeError(f"the runner is not ready: {message}")
        start = Cost(time.perf_counter() - began, cpu_of(process.pid))
        yield OneRunner(process, ours, start)
    finally:
        os.close(file)
        ours.close()  # the ordinary end of a runner
        try:
            process.wait(ASK_SECONDS)
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
