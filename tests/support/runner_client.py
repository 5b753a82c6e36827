"""The gateway's end of a runner's channel, for tests: blocking, with a time limit on everything."""

import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from appliance.core.values import Message, Sampling
from appliance.ipc import frames
from appliance.ipc.messages import (
    Cancel,
    Conversation,
    Fenced,
    FromRunner,
    Load,
    LoadFailed,
    Ready,
    Reset,
    ResetDone,
    RunnerDelta,
    RunnerEnd,
    RunnerRefused,
    RunnerStarted,
    Speculating,
    Submit,
    TextPrompt,
    TokenPrompt,
)
from appliance.runner.main import ENVIRONMENT

TIMEOUT_SECONDS: Final = 30
_DECODER: Final = frames.FrameDecoder[FromRunner](FromRunner)
GREEDY: Final = Sampling(temperature=0.0)


@dataclass
class Answer:
    """All that a runner said about one request."""

    started: RunnerStarted | None = None
    deltas: list[RunnerDelta] = field(default_factory=list)
    end: RunnerEnd | None = None
    refused: RunnerRefused | None = None

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    def choice(self, number: int) -> str:
        """The text of one of several choices."""
        return "".join(delta.text for delta in self.deltas if delta.choice == number)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self.deltas)

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Names and arguments of the functions that were called, in order."""
        pieces = [piece for delta in self.deltas for piece in delta.tool_calls]
        return [
            (piece.name, "".join(more.arguments for more in pieces if more.index == piece.index))
            for piece in pieces
            if piece.name
        ]

    @property
    def done(self) -> bool:
        return self.end is not None or self.refused is not None

    def add(self, message: Any) -> None:
        assert not self.done, f"{message} after the end"
        match message:
            case RunnerStarted():
                assert self.started is None and not self.deltas
                self.started = message
            case RunnerDelta():
                assert self.started is not None
                self.deltas.append(message)
            case RunnerEnd():
                assert self.started is not None
                assert sum(delta.tokens for delta in self.deltas) <= message.completion_tokens
                self.end = message
            case RunnerRefused():
                assert self.started is None
                self.refused = message


Prompt = Conversation | TextPrompt | TokenPrompt


def _prompt(content: str | Iterable[Message] | Prompt) -> Prompt:
    if isinstance(content, str):
        return Conversation(messages=(Message(role="user", content=content),))
    return content if isinstance(content, Prompt) else Conversation(messages=tuple(content))


class RunnerClient:
    def __init__(self, channel: socket.socket, process: "subprocess.Popen[bytes]") -> None:
        self.channel = channel
        self.process = process
        self.answers: dict[str, Answer] = {}
        self.first: Any = None
        channel.settimeout(TIMEOUT_SECONDS)

    def send(self, message: msgspec.Struct) -> None:
        self.channel.send(frames.encode(message))

    def receive(self) -> FromRunner:
        data = self.channel.recv(frames.MAX_FRAME_BYTES)
        assert data, f"the runner closed its channel: {self.last_words()}"
        message = _DECODER.decode(data)
        request_id = getattr(message, "request_id", None)
        if request_id is not None:
            self.answers.setdefault(request_id, Answer()).add(message)
        return message

    def last_words(self) -> str:
        """How the process ended, and what it said on stderr."""
        status = self.process.wait(TIMEOUT_SECONDS)
        said = self.process.stderr.read() if self.process.stderr is not None else b""
        return f"status {status}, {said.decode(errors='replace')}"

    def submit(
        self,
        request_id: str,
        content: str | Iterable[Message] | Prompt = "hello",
        *,
        sampling: Sampling = GREEDY,
        max_prompt_tokens: int = 100_000,
        max_completion_tokens: int = 100_000,
        cache_partition: str = "",
        **asked: Any,
    ) -> None:
        """``asked`` are more fields of ``Submit``."""
        self.send(
            Submit(
                request_id=request_id,
                prompt=_prompt(content),
                sampling=sampling,
                max_prompt_tokens=max_prompt_tokens,
                max_completion_tokens=max_completion_tokens,
                cache_partition=cache_partition,
                **asked,
            )
        )

    def cancel(self, request_id: str) -> None:
        self.send(Cancel(request_id=request_id))

    def reset(self, nonce: str = "n") -> None:
        """Sends a reset and reads until it is confirmed."""
        self.send(Reset(nonce=nonce))
        while self.receive() != ResetDone(nonce=nonce):
            pass
        self.answers.clear()

    def wait_for(self, *request_ids: str) -> list[Answer]:
        """Reads until these requests have ended."""
        while not all(self.answers.get(request_id, Answer()).done for request_id in request_ids):
            self.receive()
        return [self.answers[request_id] for request_id in request_ids]

    def ask(self, content: str | Iterable[Message] | Prompt = "hello", **options: Any) -> Answer:
        """One request from beginning to end."""
        request_id = f"ask-{len(self.answers)}"
        self.submit(request_id, content, **options)
        return self.wait_for(request_id)[0]

    def wait_for_first_delta(self, request_id: str) -> None:
        while not self.answers.get(request_id, Answer()).deltas:
            self.receive()


@contextmanager
def bare_runner(
    model: Path,
    *extra: str,
    context_tokens: int = 2048,
    slots: int = 4,
    threads: int = 1,
    batch_tokens: int = 512,
    send_buffer_bytes: int = 1024 * 1024,
) -> Iterator[RunnerClient]:
    """A runner process without a sandbox. It is killed at the end if it has not ended by itself."""
    load = Load(runner_id="r", context_tokens=context_tokens, slots=slots, threads=threads, batch_tokens=batch_tokens)
    command = [sys.executable, "-m", "tests.support.runner_child", "{fd}"]
    command += [str(model), msgspec.json.encode(load).decode(), *extra]
    with _process(command, send_buffer_bytes) as runner:
        yield runner


@contextmanager
def sandboxed_runner(
    model: Path,
    *,
    context_tokens: int = 2048,
    slots: int = 4,
    threads: int = 2,
    speculation: Speculating = "off",
    expect: type = Ready,
) -> Iterator[RunnerClient]:
    """The real runner, every layer on. Yields after its first message, which must be of the kind that is expected.

    Skips the test where the host lacks a layer.
    """
    command = [sys.executable, "-I", "-B", "-m", "appliance.runner", "--channel-fd", "{fd}"]
    load = Load(runner_id="r", context_tokens=context_tokens, slots=slots, threads=threads, speculation=speculation)
    with _process(command, 1024 * 1024) as runner, model.open("rb") as file:
        fenced = runner.receive()
        if isinstance(fenced, LoadFailed) and fenced.reason == "layer-missing":
            pytest.skip(fenced.detail)
        assert isinstance(fenced, Fenced), fenced
        socket.send_fds(runner.channel, [frames.encode(load)], [file.fileno()])
        first = runner.receive()
        assert isinstance(first, expect), first
        runner.first = first
        yield runner


@contextmanager
def _process(command: list[str], send_buffer_bytes: int) -> Iterator[RunnerClient]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    process = subprocess.Popen(
        [str(theirs.fileno()) if word == "{fd}" else word for word in command],
        pass_fds=[theirs.fileno()],
        env=ENVIRONMENT,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
    )
    theirs.close()
    try:
        yield RunnerClient(ours, process)
    finally:
        ours.close()
        try:
            process.wait(TIMEOUT_SECONDS)
        finally:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
