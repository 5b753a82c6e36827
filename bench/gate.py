"""What the gate costs: CPU microseconds per request and per streamed token, beside the same load straight at a runner.

*Ours* is a whole appliance as ``paddock serve`` starts it: gateway, warden, notary and a runner in its full sandbox,
with a verified token, rates, policy, budget and a durable audit record for each request. The limits are raised by its
configuration so that they count every request and refuse none. The *peer* is the same runner program with the same
model, in the same sandbox, spoken to on its own channel with nothing in front: what remains when the gate is taken
away. The model recites a fixed script and computes almost nothing.

Callers are a process of their own (closed loop, keep-alive connections); its CPU is on nobody's account. Each figure
is the median of alternated repetitions (ours, peer, ours, peer ...) with its range. "Cached" means that the token has
been seen before and the policy is compiled; policy is evaluated for every request all the same.

Bars, exit status 1 when one is missed:

* the gateway spends at most 1000 us of CPU per whole (not streamed) request at 8 callers;
* the gateway's memory stays at or below 200 MB (VmRSS after all the load).

Everything else is printed to be read and has no bar. ``--quick`` takes two short repetitions: enough to see that it
works, too few to quote. The last line is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.support.exchange import FromLoad, Go, Hello, Outcome, Prepared, Setup, Side, ToLoad, Window  # noqa: E402
from bench.support.figures import Figure, plain, surroundings, table  # noqa: E402
from bench.support.models import PACED, QUICK, make_models  # noqa: E402
from bench.support.processes import children, cpu_seconds, innermost, resident_megabytes  # noqa: E402
from tests.support.appliance import TestAppliance, appliance  # noqa: E402

BAR_REQUEST_US: Final = 1000.0
BAR_CALLERS: Final = 8
BAR_MEGABYTES: Final = 200.0

SHORT_TOKENS: Final = 4
LONG_TOKENS: Final = 200
REQUEST_CALLERS: Final = (1, 8, 32)
STREAM_CALLERS: Final = (1, 8)
SLOTS: Final = max(REQUEST_CALLERS)
CONTEXT_TOKENS: Final = 512
THREADS: Final = 1

CONFIG: Final = f"""\
[limits]
address_requests_per_minute = 1_000_000_000
principal_requests_per_minute = 1_000_000_000
budget_tokens = 1_000_000_000_000
[models]
context_tokens = {CONTEXT_TOKENS}
slots = {SLOTS}
threads = {THREADS}
"""
ROLES: Final = ("gateway", "notary", "warden", "runner")
SETTLE_SECONDS: Final = 0.2
"""After the last answer: outcome records reach the log within 50 ms and belong to the account."""


class LoadProcess:
    """The callers' process and the words with it."""

    def __init__(self, setup: Setup) -> None:
        self._decoder: msgspec.json.Decoder[FromLoad] = msgspec.json.Decoder(FromLoad)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.support.load"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        hello = self._ask(setup)
        if not isinstance(hello, Hello):
            raise TypeError("expected Hello")
        self.runner_pids = hello.runner_pids

    def prepare(self, window: Window) -> None:
        if not isinstance(self._ask(window), Prepared):
            raise TypeError("expected Prepared")

    def run(self) -> Outcome:
        outcome = self._ask(Go())
        if not isinstance(outcome, Outcome):
            raise TypeError("expected Outcome")
        return outcome

    def stop(self) -> None:
        """The load process ends when its stdin does, and its runner with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()

    def _ask(self, message: ToLoad) -> FromLoad:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(message) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load process ended with status {self._process.wait(30)}; its reason stands above")
        return self._decoder.decode(line)


@dataclass(frozen=True)
class Run:
    """One window: what the callers saw, and the CPU seconds of each server process in it."""

    outcome: Outcome
    cpu: dict[str, float]

    def request_us(self, role: str | None = None) -> float:
        return self._seconds(role) * 1e6 / self.outcome.requests

    def token_us(self, role: str | None = None) -> float:
        return self._seconds(role) * 1e6 / self.outcome.tokens

    def _seconds(self, role: str | None) -> float:
        return sum(self.cpu.values()) if role is None else self.cpu[role]


@dataclass(frozen=True)
class Pair:
    """One repetition: ours and the peer, one right after the other."""

    gate: Run
    straight: Run


class Bench:
    """The two sides and the process that loads them."""

    def __init__(self, ours: TestAppliance, load: LoadProcess, *, seconds: float, repetitions: int) -> None:
        self._pids: dict[Side, dict[str, int]] = {
            "gate": {role: ours.pid_of(role) for role in ROLES},
            "straight": {"runner": load.runner_pid},
        }
        self._load = load
        self._seconds = seconds
        self._repetitions = repetitions

    def pairs(self, *, callers: int, max_tokens: int, stream: bool) -> list[Pair]:
        """The order within a pair changes each time, so that neither side is always the first."""
        pairs = []
        for repetition in range(self._repetitions):
            sides: list[Side] = ["gate", "straight"] if repetition % 2 == 0 else ["straight", "gate"]
            runs = {
                side: self._run(
                    Window(side=side, callers=callers, max_tokens=max_tokens, stream=stream, seconds=self._seconds)
                )
                for side in sides
            }
            pairs.append(Pair(gate=runs["gate"], straight=runs["straight"]))
        return pairs

    def gateway_megabytes(self) -> float:
        return resident_megabytes(self._pids["gate"]["gateway"])

    def _run(self, window: Window) -> Run:
        pids = self._pids[window.side]
        self._load.prepare(window)
        time.sleep(SETTLE_SECONDS)  # what preparing cost is not on the account
        before = {role: cpu_seconds(pid) for role, pid in pids.items()}
        outcome = self._load.run()
        time.sleep(SETTLE_SECONDS)
        return Run(outcome, {role: cpu_seconds(pid) - before[role] for role, pid in pids.items()})


# --- figures ---------------------------------------------------------------------------------------------------------


def request_figures(pairs: list[Pair]) -> dict[str, Any]:
    """CPU microseconds per request by process, what the gate adds, and latency in milliseconds."""
    return {
        **{f"{role}_us": Figure.of(pair.gate.request_us(role) for pair in pairs) for role in ROLES},
        "straight_runner_us": Figure.of(pair.straight.request_us() for pair in pairs),
        "added_us": Figure.of(pair.gate.request_us() - pair.straight.request_us() for pair in pairs),
        "gate_per_second": Figure.of(pair.gate.outcome.requests / pair.gate.outcome.wall_seconds for pair in pairs),
        "straight_per_second": Figure.of(
            pair.straight.outcome.requests / pair.straight.outcome.wall_seconds for pair in pairs
        ),
        "gate_p50_us": Figure.of(pair.gate.outcome.p50_ms * 1000 for pair in pairs),
        "straight_p50_us": Figure.of(pair.straight.outcome.p50_ms * 1000 for pair in pairs),
        "added_p50_us": Figure.of((pair.gate.outcome.p50_ms - pair.straight.outcome.p50_ms) * 1000 for pair in pairs),
    }


def stream_figures(pairs: list[Pair]) -> dict[str, Any]:
    """CPU microseconds per token, the request's own cost included. Few pieces per token flatter the gateway: it then
    found several tokens waiting and wrote them as one event."""
    return {
        **{f"{role}_us": Figure.of(pair.gate.token_us(role) for pair in pairs) for role in ROLES},
        "straight_runner_us": Figure.of(pair.straight.token_us() for pair in pairs),
        "added_us": Figure.of(pair.gate.token_us() - pair.straight.token_us() for pair in pairs),
        "gate_pieces_per_token": Figure.of(pair.gate.outcome.pieces / pair.gate.outcome.tokens for pair in pairs),
        "straight_pieces_per_token": Figure.of(
            pair.straight.outcome.pieces / pair.straight.outcome.tokens for pair in pairs
        ),
        "gate_tokens_per_second": Figure.of(
            pair.gate.outcome.tokens / pair.gate.outcome.wall_seconds for pair in pairs
        ),
        "straight_tokens_per_second": Figure.of(
            pair.straight.outcome.tokens / pair.straight.outcome.wall_seconds for pair in pairs
        ),
    }


def measure(bench: Bench) -> dict[str, Any]:
    requests = {
        callers: request_figures(bench.pairs(callers=callers, max_tokens=SHORT_TOKENS, stream=False))
        for callers in REQUEST_CALLERS
    }
    streams = {
        callers: stream_figures(bench.pairs(callers=callers, max_tokens=LONG_TOKENS, stream=True))
        for callers in STREAM_CALLERS
    }
    return {"requests": requests, "streams": streams, "gateway_megabytes": round(bench.gateway_megabytes(), 1)}


def missed_bars(figures: dict[str, Any]) -> list[str]:
    missed = []
    request_us = figures["requests"][BAR_CALLERS]["gateway_us"].median
    if request_us > BAR_REQUEST_US:
        missed.append(
            f"gateway: {request_us:.0f} us of CPU per request at {BAR_CALLERS} callers > {BAR_REQUEST_US:.0f}"
        )
    if figures["gateway_megabytes"] > BAR_MEGABYTES:
        missed.append(f"gateway: {figures['gateway_megabytes']} MB > {BAR_MEGABYTES:.0f}")
    return missed


# --- report ----------------------------------------------------------------------------------------------------------

_CPU_COLUMNS: Final = {
    "gateway": "gateway_us",
    "notary": "notary_us",
    "warden": "warden_us",
    "runner": "runner_us",
    "straight: runner": "straight_runner_us",
    "gate adds": "added_us",
}


def report(figures: dict[str, Any]) -> None:
    print(
        _table(
            f"CPU us per whole request ({SHORT_TOKENS} tokens), median [range]",
            figures["requests"],
            {**_CPU_COLUMNS, "requests/s": "gate_per_second", "straight": "straight_per_second"},
        )
    )
    print(
        _table(
            f"Latency of a whole request, us, p50 of a repetition, median [range] ({SHORT_TOKENS} tokens)",
            figures["requests"],
            {"gate": "gate_p50_us", "straight": "straight_p50_us", "gate adds": "added_p50_us"},
        )
    )
    print(
        _table(
            f"CPU us per streamed token (answers of {LONG_TOKENS} tokens), median [range]",
            figures["streams"],
            {**_CPU_COLUMNS, "tokens/s": "gate_tokens_per_second", "straight": "straight_tokens_per_second"},
        )
    )
    for callers, stream in figures["streams"].items():
        pieces = stream["gate_pieces_per_token"]
        print(f"pieces per token at {callers} callers: {pieces.median:.2f} [{pieces.least:.2f}-{pieces.greatest:.2f}]")
    print(f"gateway: {figures['gateway_megabytes']} MB")


def _table(title: str, rows: dict[int, dict[str, Figure]], columns: dict[str, str]) -> str:
    return table(
        title,
        ["callers", *columns],
        [[str(callers), *(str(row[name]) for name in columns.values())] for callers, row in rows.items()],
    )


@contextmanager
def both_sides() -> Iterator[tuple[TestAppliance, LoadProcess]]:
    """The appliance, whose log is verified when it has stopped, and the load process with the peer."""
    model = chain_model(long_script(2 * LONG_TOKENS))
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as directory:
        with appliance(Path(directory), {"chain": model}, CONFIG) as ours:
            ours.chat(ours.token())  # the runner starts with the first request
            load = LoadProcess(
                Setup(
                    port=ours.port,
                    token=ours.token(),
                    model=str(model),
                    context_tokens=CONTEXT_TOKENS,
                    slots=SLOTS,
                    threads=THREADS,
                )
            )
            try:
                yield ours, load
            finally:
                load.stop()


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What the gate costs, in CPU microseconds.")
    parser.add_argument("--quick", action="store_true", help="two short repetitions: does it work?")
    quick = parser.parse_args(None if arguments is None else list(arguments)).quick
    seconds, repetitions = (0.3, 2) if quick else (1.0, 5)
    around = surroundings()
    with both_sides() as (ours, load):
        figures = measure(Bench(ours, load, seconds=seconds, repetitions=repetitions))
    report(figures)
    missed = missed_bars(figures)
    for line in missed:
        print(f"missed: {line}")
    summary = {
        "bench": "gate",
        "figures": plain(figures),
        "bars": {"gateway_us_at_8_callers": BAR_REQUEST_US, "gateway_megabytes": BAR_MEGABYTES, "missed": missed},
        "repetitions": repetitions,
        "window_seconds": seconds,
        "gate_side": "HTTP: token, address and principal rates, policy, budget, durable audit, runner",
        "straight_side": "frames on the runner's channel",
        "surroundings": around,
    }
    print(json.dumps(summary))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
