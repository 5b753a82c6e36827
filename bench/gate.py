"""What the gate costs: CPU microseconds per request and per streamed token, beside the same load straight at a runner
and beside LiteLLM's proxy.

*Ours* is a whole appliance as ``paddock serve`` starts it: gateway, notary, warden and a runner in its full sandbox,
with a verified token, rates, policy, budget and a durable audit record for each request. The limits are raised by its
configuration so that they count every request and refuse none. The *peer* is the same runner program with the same
model, in the same sandbox, spoken to on its own channel with nothing in front: what remains when the gate is taken
away.

*LiteLLM* is the proxy of LiteLLM 1.106.2, one worker, in a virtual environment of its own, before a mock upstream that
says as many tokens at once, or one every 5 ms in a stream. Its process is compared with our gate's (all three); neither
upstream is on anybody's account. What each side checks is not the same, and the table says so.

The callers are a process of their own (closed loop, keep-alive connections); its CPU is on nobody's account. Each
figure is the median of alternated repetitions (each side in its turn, the order turned round each time) with its range.
The token has been seen before, and policy has answered the same question in the same second where the window allows;
*nothing cached* is the load in which each request has a new token of a new principal. Columns:

* *the gate*: gateway, notary and warden together, the processes that the peer does without;
* *difference*: all processes on our side, less the peer's runner. It is the noisier of the two, because a runner costs
  more per token when requests reach it more slowly and it finds fewer to decode at once.

Whole requests use a model that computes almost nothing. Streams use one that takes some milliseconds per token, so
that tokens pass one by one as a real model's do; the table says how many events a token took.

Bars, exit status 1 when one is missed:

* LiteLLM takes at least 30 times the CPU of the gate per whole request at 8 callers, 10 times with nothing cached, and
  15 times per streamed token at 8 callers;
* at one caller a whole request takes at most 2 ms longer than straight at the runner (p50);
* when 64 streams start at once, the first byte comes at most 40 ms later than straight at the runner (p50);
* the gateway's memory stays at or below 120 MB (VmRSS after all the load).

Everything else is printed to be read and has no bar. ``--quick`` takes two short repetitions: enough to see that it
works, too few to quote. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path begins with its own folder

from bench.support.exchange import Outcome, Setup, Side, Window
from bench.support.figures import Figure, plain, surroundings, table
from bench.support.litellm_proxy import MASTER_KEY, litellm_proxy
from bench.support.load_process import LoadProcess
from bench.support.models import PACED, QUICK, make_models
from bench.support.processes import children, cpu_seconds, innermost, resident_megabytes
from tests.support.appliance import TestAppliance, appliance

BAR_CALLERS: Final = 8
BARS: Final = {
    "request_times": 30.0,
    "uncached_times": 10.0,
    "token_times": 15.0,
    "added_p50_us": 2000.0,
    "first_byte_ms": 40.0,
    "gateway_megabytes": 120.0,
}
"""Those in ``times`` are least values, the others greatest."""

SHORT_TOKENS: Final = 4
LONG_TOKENS: Final = 200
REQUEST_CALLERS: Final = (1, 8, 32)
STREAM_CALLERS: Final = (1, 8)

BURST_CALLERS: Final = 64
FRESH_TOKENS: Final = 200
"""Of one repetition with nothing cached: each costs its issuer a signature and a durable record."""

SLOTS: Final = BURST_CALLERS
CONTEXT_TOKENS: Final = 512
THREADS: Final = 1
CONFIG: Final = f"""\
[limits]
address_requests_per_minute = 1_000_000_000
principal_requests_per_minute = 1_000_000_000
concurrent_requests = 100_000
budget_tokens = 1_000_000_000_000
[models]
context_tokens = {CONTEXT_TOKENS}
slots = {SLOTS}
threads = {THREADS}
"""

GATE: Final = ("gateway", "notary", "warden")
SETTLE_SECONDS: Final = 0.2
"""Around a window: what preparing cost is not on its account, the outcome records of its last answers are."""


@dataclass(frozen=True)
class Run:
    """One window: what the callers saw, and the CPU seconds of each server process in it."""

    outcome: Outcome
    cpu: dict[str, float]

    def us(self, role: str, units: int) -> float:
        return self.cpu[role] * 1e6 / units


@dataclass(frozen=True)
class Pair:
    """One repetition: each side right after the other."""

    ours: Run
    peer: Run
    litellm: Run | None


class Bench:
    """The sides and the process that loads them."""

    def __init__(
        self, one: TestAppliance, load: LoadProcess, litellm_pid: int | None, *, seconds: float, repetitions: int
    ) -> None:
        self._pids: dict[Side, dict[str, list[int]]] = {
            "gate": {role: [one.pid_of(role)] for role in GATE},
            "straight": {"runner": load.runner_pids},
        }
        self._sides: tuple[Side, ...] = ("gate", "straight")
        if litellm_pid is not None:
            self._pids["litellm"] = {"litellm": [litellm_pid]}
            self._sides = (*self._sides, "litellm")
        self._one = one
        self._issued = 0
        starter = one.pid_of("starter")
        self._pids["gate"]["warden"].append(starter)
        self._pids["gate"]["runner"] = [innermost(child) for child in children(starter)]
        self._load = load
        self._seconds = seconds
        self._repetitions = repetitions

    def pairs(
        self,
        model: str,
        *,
        callers: int,
        max_tokens: int,
        stream: bool,
        fresh: bool = False,
        seconds: float | None = None,
    ) -> list[Pair]:
        """The order within a pair is turned round each time. ``fresh``: each of our requests has a new token."""
        pairs = []
        for repetition in range(self._repetitions):
            runs = {
                side: self._run(
                    Window(
                        side=side,
                        model=model,
                        callers=callers,
                        max_tokens=max_tokens,
                        stream=stream,
                        seconds=self._seconds if seconds is None else seconds,
                        fresh_tokens=self._new_tokens() if fresh and side == "gate" else (),
                    )
                )
                for side in (self._sides if repetition % 2 == 0 else self._sides[::-1])
            }
            pairs.append(Pair(ours=runs["gate"], peer=runs["straight"], litellm=runs.get("litellm")))
        return pairs

    def _new_tokens(self) -> tuple[str, ...]:
        """Each of another principal, so that neither its token nor its policy's answer is known."""
        self._issued += FRESH_TOKENS
        return tuple(self._one.token(f"caller-{number}") for number in range(self._issued - FRESH_TOKENS, self._issued))

    def megabytes(self) -> dict[str, float]:
        """VmRSS of the gateway, and of LiteLLM where it takes part."""
        pids = {"gateway": self._pids["gate"]["gateway"], **self._pids.get("litellm", {})}
        return {f"{name}_megabytes": round(resident_megabytes(pid), 1) for name, (pid,) in pids.items()}

    def _run(self, window: Window) -> Run:
        self._load.prepare(window)
        time.sleep(SETTLE_SECONDS)
        before = self._cpu(window.side)
        outcome = self._load.run()
        time.sleep(SETTLE_SECONDS)
        after = self._cpu(window.side)
        return Run(outcome, {role: after[role] - before[role] for role in after})

    def _cpu(self, side: Side) -> dict[str, float]:
        return {role: sum(map(cpu_seconds, pids)) for role, pids in self._pids[side].items()}


# --- figures --------------------------------------------------------------------------------------------------------


def measure(bench: Bench) -> dict[str, Any]:
    """Everything that is reported, by number of callers."""
    return {
        "requests": {
            callers: request_figures(bench.pairs(QUICK, callers=callers, max_tokens=SHORT_TOKENS, stream=False))
            for callers in REQUEST_CALLERS
        },
        "streams": {
            callers: stream_figures(bench.pairs(PACED, callers=callers, max_tokens=LONG_TOKENS, stream=True))
            for callers in STREAM_CALLERS
        },
        "uncached": {
            BAR_CALLERS: request_figures(
                bench.pairs(QUICK, callers=BAR_CALLERS, max_tokens=SHORT_TOKENS, stream=False, fresh=True)
            )
        },
        "burst": burst_figures(
            bench.pairs(PACED, callers=BURST_CALLERS, max_tokens=SHORT_TOKENS, stream=True, seconds=0.0)
        ),
        **bench.megabytes(),
    }


def request_figures(pairs: list[Pair]) -> dict[str, Figure]:
    """CPU us per request, and how long a request takes in us."""
    return {
        **_cpu_figures(pairs, lambda outcome: outcome.requests),
        "per_second": Figure.of(pair.ours.outcome.requests / pair.ours.outcome.wall_seconds for pair in pairs),
        "peer_per_second": Figure.of(pair.peer.outcome.requests / pair.peer.outcome.wall_seconds for pair in pairs),
        "p50_us": Figure.of(pair.ours.outcome.p50_ms * 1000 for pair in pairs),
        "peer_p50_us": Figure.of(pair.peer.outcome.p50_ms * 1000 for pair in pairs),
        **_litellm(pairs, "litellm_p50_us", lambda pair, other: other.outcome.p50_ms * 1000),
        "added_p50_us": Figure.of((pair.ours.outcome.p50_ms - pair.peer.outcome.p50_ms) * 1000 for pair in pairs),
    }


def stream_figures(pairs: list[Pair]) -> dict[str, Figure]:
    """CPU us per token, with each request's own cost spread over its tokens; and how tokens were cut into events."""
    return {
        **_cpu_figures(pairs, lambda outcome: outcome.tokens),
        "per_second": Figure.of(pair.ours.outcome.tokens / pair.ours.outcome.wall_seconds for pair in pairs),
        "peer_per_second": Figure.of(pair.peer.outcome.tokens / pair.peer.outcome.wall_seconds for pair in pairs),
        "events_per_token": Figure.of(pair.ours.outcome.pieces / pair.ours.outcome.tokens for pair in pairs),
    }


def burst_figures(pairs: list[Pair]) -> dict[str, Figure]:
    """When the first byte of a body comes, in ms after its request. LiteLLM's upstream says its first word at once."""
    return {
        "first_ms": Figure.of(pair.ours.outcome.first_p50_ms for pair in pairs),
        "peer_first_ms": Figure.of(pair.peer.outcome.first_p50_ms for pair in pairs),
        **_litellm(pairs, "litellm_first_ms", lambda pair, other: other.outcome.first_p50_ms),
        "added_ms": Figure.of(pair.ours.outcome.first_p50_ms - pair.peer.outcome.first_p50_ms for pair in pairs),
    }


def _cpu_figures(pairs: list[Pair], units: Callable[[Outcome], int]) -> dict[str, Figure]:
    def figure(value: Callable[[Pair], float]) -> Figure:
        return Figure.of(value(pair) for pair in pairs)

    def ours(pair: Pair, *roles: str) -> float:
        return sum(pair.ours.us(role, units(pair.ours.outcome)) for role in roles)

    def peer(pair: Pair) -> float:
        return pair.peer.us("runner", units(pair.peer.outcome))

    def litellm(other: Run) -> float:
        return other.us("litellm", units(other.outcome))

    return {
        "gateway_us": figure(lambda pair: ours(pair, "gateway")),
        "notary_us": figure(lambda pair: ours(pair, "notary")),
        "warden_us": figure(lambda pair: ours(pair, "warden")),
        "gate_us": figure(lambda pair: ours(pair, *GATE)),
        "runner_us": figure(lambda pair: ours(pair, "runner")),
        "peer_runner_us": figure(peer),
        **_litellm(pairs, "litellm_us", lambda pair, other: litellm(other)),
        **_litellm(pairs, "litellm_times", lambda pair, other: litellm(other) / ours(pair, *GATE)),
        "difference_us": figure(lambda pair: ours(pair, *GATE, "runner") - peer(pair)),
    }


def _litellm(pairs: list[Pair], name: str, value: Callable[[Pair, Run], float]) -> dict[str, Figure]:
    """A figure of LiteLLM's side, where it takes part."""
    values = [value(pair, pair.litellm) for pair in pairs if pair.litellm is not None]
    return {name: Figure.of(values)} if values else {}


def missed_bars(figures: dict[str, Any]) -> list[str]:
    """One line for each. Those of LiteLLM count where it takes part."""
    reached = {
        "added_p50_us": figures["requests"][1]["added_p50_us"].median,
        "first_byte_ms": figures["burst"]["added_ms"].median,
        "gateway_megabytes": figures["gateway_megabytes"],
    }
    if "litellm_megabytes" in figures:
        for name, case in (("request_times", "requests"), ("uncached_times", "uncached"), ("token_times", "streams")):
            reached[name] = figures[case][BAR_CALLERS]["litellm_times"].median
    return [
        f"{name}: {reached[name]:.1f}, {'less' if name.endswith('times') else 'more'} than {bar:.0f}"
        for name, bar in BARS.items()
        if name in reached and (reached[name] < bar if name.endswith("times") else reached[name] > bar)
    ]


# --- report ---------------------------------------------------------------------------------------------------------

_CPU_COLUMNS: Final = {
    "gateway": "gateway_us",
    "notary": "notary_us",
    "warden": "warden_us",
    "the gate": "gate_us",
    "its runner": "runner_us",
    "straight": "peer_runner_us",
    "difference": "difference_us",
    "LiteLLM": "litellm_us",
    "LiteLLM / the gate": "litellm_times",
}
CHECKS: Final = """\
What was checked for each request
the gate  a signed token of a principal (verified once, then remembered until it ends); the rates of address and
          principal; policy (its answer remembered for the same input in the same second); a token budget, reserved and
          settled; two audit records, the first synced to disk before any work; every event of the runner's answer
LiteLLM   one static master key
straight  nothing
"""
_RATE_COLUMNS: Final = {"gate": "per_second", "straight": "peer_per_second"}


def report(figures: dict[str, Any]) -> None:
    """The tables for people."""
    requests, streams, burst = figures["requests"], figures["streams"], figures["burst"]
    print(CHECKS)
    print(_table(f"CPU us per whole request ({SHORT_TOKENS} tokens), median [range]", requests, _CPU_COLUMNS))
    print(
        _table(
            "A whole request from the caller's side: p50 in us, median [range]",
            requests,
            {"gate": "p50_us", "straight": "peer_p50_us", "added": "added_p50_us", "LiteLLM": "litellm_p50_us"},
        )
    )
    print(_table("Whole requests per second, median [range]", requests, _RATE_COLUMNS))
    print(_table(f"CPU us per streamed token (streams of {LONG_TOKENS}), median [range]", streams, _CPU_COLUMNS))
    print(_table("Streamed tokens per second, median [range]", streams, _RATE_COLUMNS))
    for callers, figure in streams.items():
        print(f"events per token at {callers} callers: {figure['events_per_token'].median:.2f}")
    print(_table("CPU us per whole request with nothing cached, median [range]", figures["uncached"], _CPU_COLUMNS))
    print(
        f"first byte when {BURST_CALLERS} streams start at once, p50 in ms: the gate {burst['first_ms']}, straight "
        f"{burst['peer_first_ms']}, added {burst['added_ms']}; LiteLLM {burst.get('litellm_first_ms', '-')}"
    )
    print(f"gateway: {figures['gateway_megabytes']} MB; LiteLLM: {figures.get('litellm_megabytes', '-')} MB")


def _table(title: str, rows: dict[int, dict[str, Figure]], columns: dict[str, str]) -> str:
    cells = [[str(callers), *(str(row.get(name, "-")) for name in columns.values())] for callers, row in rows.items()]
    return table(title, ["callers", *columns], cells)


# --- the sides ------------------------------------------------------------------------------------------------------


@contextmanager
def all_sides(*, with_litellm: bool) -> Iterator[tuple[TestAppliance, LoadProcess, int | None]]:
    """The appliance, whose log is verified when it has stopped, the load process with the peer's runners, and LiteLLM's
    process id."""
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        models = make_models(directory)
        litellm_pid, litellm_port = stack.enter_context(litellm_proxy(directory)) if with_litellm else (None, 0)
        with appliance(directory, models, CONFIG) as one:
            for model in models:
                one.chat(one.token(), model=model, max_tokens=1)  # a runner starts with its first request
            load = LoadProcess(
                Setup(
                    doors={"gate": (one.port, one.token()), "litellm": (litellm_port, MASTER_KEY)},
                    models={model: str(file) for model, file in models.items()},
                    context_tokens=CONTEXT_TOKENS,
                    slots=SLOTS,
                    threads=THREADS,
                )
            )
            try:
                yield one, load, litellm_pid
            finally:
                load.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="What the gate costs, in CPU microseconds.")
    parser.add_argument("--quick", action="store_true", help="two short repetitions: does it work?")
    parser.add_argument("--without-litellm", action="store_true", help="leave out the peer that has to be downloaded")
    arguments = parser.parse_args()
    seconds, repetitions = (0.3, 2) if arguments.quick else (1.0, 5)
    around = surroundings()
    with all_sides(with_litellm=not arguments.without_litellm) as (one, load, litellm_pid):
        figures = measure(Bench(one, load, litellm_pid, seconds=seconds, repetitions=repetitions))
    report(figures)
    missed = missed_bars(figures)
    for line in missed:
        print(f"missed: {line}")
    summary = {
        "bench": "gate",
        "figures": plain(figures),
        "bars": BARS,
        "missed": missed,
        "repetitions": repetitions,
        "window_seconds": seconds,
        "ours": "HTTP, address and principal rates, token, policy, budget, durable audit record, sandboxed runner",
        "peer": "frames on the channel of a sandboxed runner",
        "surroundings": around,
    }
    print(json.dumps(summary))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
