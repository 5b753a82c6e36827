"""What the benchmark and its load process tell each other, and what both sides of a comparison have in common."""

from typing import Final, Literal, Protocol

from msgspec import Struct

PROMPT: Final = "hi"
ASK_SECONDS: Final = 60.0
"""No answer of a benchmark takes this long."""

Side = Literal["gate", "straight", "litellm"]


class Setup(Struct, tag=True):
    """Begins. One straight runner is started for each of ``models`` (name -> file), with the appliance's settings.
    ``doors``: the port and the token of each side that speaks HTTP."""

    doors: dict[Side, tuple[int, str]]
    models: dict[str, str]
    context_tokens: int
    slots: int
    threads: int


class Hello(Struct, tag=True):
    runner_pids: list[int]


class Window(Struct, tag=True):
    """One closed-loop run: each of ``callers`` asks at least once, and again as soon as it has its answer, for
    ``seconds``; or, where there are ``fresh_tokens``, until each of them was used once."""

    side: Side
    model: str
    callers: int
    max_tokens: int
    stream: bool
    seconds: float
    fresh_tokens: tuple[str, ...] = ()


class Prepared(Struct, tag=True):
    """Every caller is connected and has had one answer: token, policy and connection are warm."""


class Go(Struct, tag=True):
    """The processor clocks have been read."""


class Outcome(Struct, tag=True):
    """``pieces`` are the deltas in which ``tokens`` arrived; latencies are of whole answers, but for the
    first byte of a body."""

    requests: int
    tokens: int
    pieces: int
    wall_seconds: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float


ToLoad = Setup | Window | Go
FromLoad = Hello | Prepared | Outcome


class Reply(Struct):
    """One whole answer. ``first_at``: when its first word came, by ``time.perf_counter``."""

    tokens: int
    pieces: int
    first_at: float


class Caller(Protocol):
    """One client of one side."""

    async def ask(self, token: str | None = None) -> Reply: ...

    def close(self) -> None: ...
