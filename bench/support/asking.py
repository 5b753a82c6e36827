"""The client of the engine's benchmark, in a process of its own: the same loop for every server.

Started as ``python -m bench.support.asking``; reads one ``Round`` after another as JSON lines on stdin and answers each
with a ``Told`` on stdout. A round is a closed loop of callers: each asks again as soon as it has its answer. Nothing is
decoded that the loop does not need, on either side: a frame's kind and counts there, the first and the last event of a
stream here. The prompts are made before the clock starts.
"""

import json
import random
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol

import msgspec
from msgspec import Struct

from appliance.core.values import Sampling
from appliance.ipc.frames import MAX_FRAME_BYTES, FrameDecoder, encode
from appliance.ipc.messages import FromRunner, RunnerDelta, RunnerEnd, RunnerStarted, Submit, TextPrompt, TokenPrompt

SAMPLING: Final = Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
_RECEIVE_BYTES: Final = 256 * 1024

Kind = Literal["runner", "llama-server", "packaged"]
Prompt = list[int] | str


class Round(Struct):
    """``where`` is a descriptor, the path of a socket or a port. ``seed`` decides the prompts, whoever is asked.

    Prompts are token ids from ``first_token`` on and below ``tokens``, or with ``text`` as many words of two letters.
    """

    kind: Kind
    where: str
    callers: int
    waves: int
    prompt_tokens: int
    max_tokens: int
    seed: int
    first_token: int
    tokens: int
    text: bool = False


class Told(Struct):
    """What the callers saw. ``first_ms`` has one entry per request: from asking until the first text."""

    wall_seconds: float
    client_cpu_seconds: float
    tokens: int
    first_ms: list[float]


Happened = tuple[int, int | None]
"""A caller and None for its first text, or the number of tokens of its whole answer."""


class Server(Protocol):
    def ask(self, caller: int, prompt: Prompt) -> None: ...

    def wait(self) -> Iterator[Happened]:
        """At least one thing that happened, waiting for it. Raises ``RuntimeError`` when it is not an answer."""

    def close(self) -> None: ...


class Runner:
    """A runner on its channel."""

    def __init__(self, around: Round) -> None:
        self._channel = socket.socket(fileno=int(around.where))
        self._channel.setblocking(True)
        self._decoder = FrameDecoder[FromRunner](FromRunner)
        self._max_tokens = around.max_tokens
        self._count = 0
        self._begun: set[str] = set()

    def ask(self, caller: int, prompt: Prompt) -> None:
        self._count += 1
        message = Submit(
            request_id=f"{caller}-{self._count}",
            prompt=TextPrompt(text=prompt) if isinstance(prompt, str) else TokenPrompt(ids=tuple(prompt)),
            sampling=SAMPLING,
            max_prompt_tokens=1_000_000,
            max_completion_tokens=self._max_tokens,
            cache_partition=f"{caller}-{self._count}",
            principal=str(caller),
        )
        self._channel.send(encode(message))

    def wait(self) -> Iterator[Happened]:
        message = self._decoder.decode(self._channel.recv(MAX_FRAME_BYTES))
        match message:
            case RunnerDelta(request_id=name):
                if name not in self._begun:
                    self._begun.add(name)
                    yield _caller(name), None
            case RunnerEnd(request_id=name, reason="length"):
                self._begun.discard(name)
                yield _caller(name), message.completion_tokens
            case RunnerStarted():
                pass
            case _:
                raise RuntimeError(f"not an answer: {message}")

    def close(self) -> None:
        self._channel.detach()  # for the next round


def _caller(request_id: str) -> int:
    return int(request_id.partition("-")[0])


class Http:
    """Event streams, each on a connection of its own: llama-server closes them after a stream."""

    def __init__(self, around: Round, connect: Callable[[], socket.socket]) -> None:
        self._around = around
        self._connect = connect
        self._open: dict[int, tuple[int, socket.socket, bytearray]] = {}  # by descriptor: caller, socket, answer
        self._epoll = select.epoll()

    def ask(self, caller: int, prompt: Prompt) -> None:
        body = json.dumps(_body(self._around, prompt)).encode()
        path = "/completion" if self._around.kind == "llama-server" else "/v1/completions"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: peer\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        connection = self._connect()
        connection.sendall(head.encode() + b"\r\n" + body)
        self._open[connection.fileno()] = caller, connection, bytearray()
        self._epoll.register(connection, select.EPOLLIN)

    def wait(self) -> Iterator[Happened]:
        for number, _ in self._epoll.poll():
            caller, connection, answer = self._open[number]
            begun = _EVENT in answer
            data = connection.recv(_RECEIVE_BYTES)
            if not data:
                raise RuntimeError(f"the connection ended: {bytes(answer[:500])!r}")
            answer += data
            if not begun and _EVENT in answer:
                yield caller, None
            if answer.endswith(_LAST_CHUNK):
                del self._open[number]
                connection.close()
                yield caller, self._tokens(bytes(answer))

    def _tokens(self, answer: bytes) -> int:
        if self._around.kind == "packaged":
            return answer.count(_PACKAGED_TOKEN)
        tokens = _TOKENS.findall(answer)
        if not tokens:
            raise RuntimeError(f"not an answer: {answer[:500]!r}")
        return int(tokens[-1])

    def close(self) -> None:
        self._epoll.close()


_EVENT: Final = b"data: "
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_TOKENS: Final = re.compile(rb'"tokens_predicted":(\d+)')
_PACKAGED_TOKEN: Final = b'"finish_reason": null'


def _body(around: Round, prompt: Prompt) -> dict[str, object]:
    common = {name: getattr(SAMPLING, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    common |= {"prompt": prompt, "stream": True}
    if around.kind == "packaged":
        return common | {"max_tokens": around.max_tokens}
    return common | {"n_predict": around.max_tokens, "cache_prompt": False}


def _server(around: Round) -> Server:
    def unix() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(around.where)
        return connection

    def loopback() -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(around.where)))

    if around.kind == "runner":
        return Runner(around)
    return Http(around, unix if around.kind == "llama-server" else loopback)


def _prompts(around: Round) -> list[list[Prompt]]:
    """Those of each caller. No two are alike, nor begin alike."""
    chance = random.Random(around.seed)

    def prompt() -> Prompt:
        if around.text:
            return " ".join(
                "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=2)) for _ in range(around.prompt_tokens)
            )
        return [chance.randrange(around.first_token, around.tokens) for _ in range(around.prompt_tokens)]

    return [[prompt() for _ in range(around.waves)] for _ in range(around.callers)]


def told(around: Round) -> Told:
    """Plays one round."""
    prompts = _prompts(around)
    server = _server(around)
    asked: dict[int, float] = {}
    first_ms: list[float] = []
    tokens = 0

    def ask(caller: int) -> None:
        asked[caller] = time.perf_counter()
        server.ask(caller, prompts[caller].pop())

    cpu, began = time.process_time(), time.perf_counter()
    for caller in range(around.callers):
        ask(caller)
    while asked:
        for caller, count in server.wait():
            if count is None:
                first_ms.append((time.perf_counter() - asked[caller]) * 1000)
                continue
            tokens += count
            del asked[caller]
            if prompts[caller]:
                ask(caller)
    wall, spent = time.perf_counter() - began, time.process_time() - cpu
    server.close()
    return Told(wall_seconds=wall, client_cpu_seconds=spent, tokens=tokens, first_ms=first_ms)


def main() -> None:
    for line in sys.stdin:
        print(msgspec.json.encode(told(msgspec.json.decode(line, type=Round))).decode(), flush=True)


if __name__ == "__main__":
    main()
