"""What the benchmark and its load process tell each other, and what both sides of a comparison have in common."""

from typing import Final, Literal, Protocol

from msgspec import Struct

PROMPT: Final = "hi"
ASK_SECONDS: Final = 60.0
"""No answer of a benchmark takes this long."""

Side = Literal["gate", "straight"]


class Setup(Struct, tag=True):
    """Begins. One straight runner is started for each of ``models`` (name -> file), with the appliance's settings."""

    port: int
    token: str
    models: dict[str, str]
    context_tokens: int
    slots: int
    threads: int


class Hello(Struct, tag=True):
    runner_pids: list[int]


class Window(Struct, tag=True):
    """One closed-loop run: each of ``callers`` asks again as soon as it has its answer, for ``seconds``."""

    side: Side
    model: str
    callers: int
    max_tokens: int
    stream: bool
    seconds: float


class Prepared(Struct, tag=True):
    """Every caller is connected and has had one answer: token, policy and connection are warm."""


class Go(Struct, tag=True):
    """The processor clocks have been read."""


class Outcome(Struct, tag=True):
    """``pieces`` are the deltas in which ``tokens`` arrived; latencies are of whole answers."""

    requests: int
    tokens: int
    pieces: int
    wall_seconds: float
    p50_ms: float
    p99_ms: float


ToLoad = Setup | Window | Go
FromLoad = Hello | Prepared | Outcome


class Reply(Struct):
    """One whole answer."""

    tokens: int
    pieces: int


class Caller(Protocol):
    """One client of one side."""

    async def ask(self) -> Reply: ...

    def close(self) -> None: ...
