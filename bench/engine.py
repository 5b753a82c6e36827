"""What the engine gives up against llama.cpp's own server: nothing, say the bars.

*Ours* is a runner in its whole sandbox, started by the command with which the appliance starts it, on its own channel.
The *peer* is llama-server, compiled from the same sources and linked with the very libraries that our runner loads, on
a Unix socket. Both have the same model file, as many slots as there are callers, the same context, batch and threads, a
cache for each slot, and make no use of what an earlier request left there; both are asked by one client process with
prompts of token ids that nobody has seen before and the same sampling. Beside them, *packaged* is llama-cpp-python's
own server, which answers one request after the other.

What is not alike: llama-server writes and the client reads HTTP with event streams, the runner writes frames, which is
less work on both ends; a runner has no HTTP at all, the gateway's is measured by ``gate.py``. The packaged server takes
no token ids and gets as many words that are one token each. The client's CPU is on nobody's account, and printed.

Two models with random weights (``tests/support/drawn_model.py``): *half-billion* computes tens of milliseconds per
token; *mini* less than one, as a large model does on a fast GPU, so that it shows what a server adds to a step. A round
is a closed loop of callers, as many requests each as there are waves. Each figure is the median of alternated
repetitions (ours, peer, peer, ours ...), two with each of four pairs of processes; the packaged server, of which there
is one process, comes after or before both. Columns:

* *tokens/s*: generated tokens over the whole time of a round, prompts included; *prompt/s*: tokens of longer prompts
  whose answer is one token; *first*: milliseconds from asking to the first text, in the rounds of whole answers;
* *CPU*: of all processes of a server, per generated token, in those rounds;
* *x*: ours by the peer's, the median of the ratios within repetitions, with its 95 % interval (a bootstrap over the
  processes, then over their repetitions).

Bars, exit status 1 when one is missed:

* tokens/s: at least 0.97 of llama-server's at one caller and 1.0 from two on; with mini at least 1.05 at 4 callers and
  1.10 from 8 on; with mini at 8 callers at least 2.5 times those of the packaged server;
* first: the p50 is no worse at any number of callers; CPU: no more.

A whole run of *half-billion* takes about 40 minutes on two quiet cores, one of *mini* a third of that. What a point
gave is said on stderr as soon as it is measured. ``--quick`` takes two short repetitions of a few points: enough to see
that it works, too few to quote. On a shared machine wall time is noise of several per cent; CPU and ratios are
steadier. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path begins with its own folder

from appliance.ipc.messages import Load
from bench.support.asking import Kind, Round, Told
from bench.support.figures import Estimate, plain, surroundings, table
from bench.support.one_runner import SANDBOXED, cpu_of, one_runner
from bench.support.peers import Client, packaged_server
from bench.support.processes import memory_megabytes
from tests.support.drawn_model import FIRST_WORD, HALF_BILLION, MINI, Shape, cached_drawn_model
from tests.support.llama_server import llama_server
from tools import setup

CALLERS: Final = (1, 2, 4, 8, 16, 32)
PROCESSES: Final = 4
REPETITIONS: Final = 2
"""Of each process. Two processes of one program differ by several per cent, by where their memory lies."""
CONTEXT_TOKENS: Final = 512
THREADS: Final = 1
FIRST_PROMPT_TOKENS: Final = 32
FIRST_ANSWER_TOKENS: Final = 8
"""Of the first requests of a process, which do not count."""

BAR_ALONE: Final = 0.97
BAR_TOGETHER: Final = 1.0
BARS_SHORT_STEPS: Final = {4: 1.05, 8: 1.10, 16: 1.10, 32: 1.10}
BAR_PACKAGED: Final = 2.5
BAR_PACKAGED_CALLERS: Final = 8
BAR_NO_MORE: Final = 1.0


@dataclass(frozen=True)
class Course:
    """What is asked of one model. ``long_prompt_tokens`` is for the rounds of prompts."""

    shape: Shape
    prompt_tokens: int
    max_tokens: int
    long_prompt_tokens: int
    waves: int
    crowd: int
    """From so many callers on everything is half as long: it is long enough in all."""

    def of(self, callers: int) -> "Course":
        """A lone caller asks twice as often, so that not one answer decides."""
        if callers == 1:
            return replace(self, waves=2 * self.waves)
        if callers < self.crowd:
            return self
        return replace(
            self,
            prompt_tokens=self.prompt_tokens // 2,
            max_tokens=self.max_tokens // 2,
            long_prompt_tokens=self.long_prompt_tokens // 2,
        )


COURSES: Final = {
    "mini": Course(MINI, prompt_tokens=128, max_tokens=128, long_prompt_tokens=256, waves=3, crowd=64),
    "half-billion": Course(HALF_BILLION, prompt_tokens=64, max_tokens=64, long_prompt_tokens=128, waves=1, crowd=16),
}


@dataclass(frozen=True)
class Points:
    """What is measured in this run."""

    models: tuple[str, ...]
    callers: tuple[int, ...]
    processes: int
    repetitions: int
    """Of each process."""
    packaged: bool
    threads: int
    shorter: int = 1
    """By how much answers are shorter than in the courses."""


@dataclass(frozen=True)
class Target:
    """A server that runs."""

    kind: Kind
    where: str
    pid: int


@dataclass(frozen=True)
class Run:
    """One round on one server."""

    told: Told
    cpu_seconds: float
    prompt_tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.told.tokens / self.told.wall_seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.told.wall_seconds

    @property
    def cpu_ms(self) -> float:
        """Per generated token."""
        return 1000 * self.cpu_seconds / self.told.tokens

    @property
    def client_ms(self) -> float:
        """Of the client's CPU, per generated token."""
        return 1000 * self.told.client_cpu_seconds / self.told.tokens

    @property
    def first_p50_ms(self) -> float:
        return statistics.median(self.told.first_ms)

    @property
    def first_p99_ms(self) -> float:
        ordered = sorted(self.told.first_ms)
        return ordered[int(len(ordered) * 0.99)]


Repetition = dict[Kind, Run]
"""One round on each server, right after each other."""


class Point:
    """One model and one number of callers: its servers, and how they are asked."""

    def __init__(self, client: Client, course: Course, callers: int, points: Points) -> None:
        self._client = client
        self._course = course.of(callers)
        self._callers = callers
        self._answer_tokens = max(8, self._course.max_tokens // points.shorter)

    def first(self, target: Target) -> None:
        """Nobody's first request counts: it shows a server what its steps take."""
        self._run(target, -1, FIRST_PROMPT_TOKENS, FIRST_ANSWER_TOKENS)

    def answers(self, target: Target, seed: int) -> Run:
        return self._run(target, seed, self._course.prompt_tokens, self._answer_tokens)

    def prompts(self, target: Target, seed: int) -> Run:
        return self._run(target, seed, self._course.long_prompt_tokens, 1)

    def _run(self, target: Target, seed: int, prompt_tokens: int, max_tokens: int) -> Run:
        around = Round(
            kind=target.kind,
            where=target.where,
            callers=self._callers,
            waves=self._course.waves,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            seed=seed,
            first_token=FIRST_WORD,
            tokens=self._course.shape.vocabulary,
            text=target.kind == "packaged",
        )
        before = cpu_of(target.pid)
        told = self._client.play(around)
        requests = self._callers * self._course.waves
        if told.tokens != requests * max_tokens:
            raise RuntimeError(f"{target.kind}: {told.tokens} tokens in place of {requests * max_tokens}")
        return Run(told, cpu_of(target.pid) - before, requests * prompt_tokens)


def repetitions(ask: Callable[[Target, int], Run], targets: Sequence[Target], seeds: Iterable[int]) -> list[Repetition]:
    """The order is turned each time, so that nobody is always the first."""
    return [
        {target.kind: ask(target, seed) for target in (targets if seed % 2 == 0 else targets[::-1])} for seed in seeds
    ]


# --- the servers ----------------------------------------------------------------------------------------------------


@contextmanager
def servers(model: Path, load: Load, *, packaged: bool) -> Iterator[tuple[Client, dict[Kind, Target]]]:
    """All of them at once, and their client. Those that are not asked wait and cost nothing."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paddock-bench-")))
        runner = stack.enter_context(one_runner(SANDBOXED, model, load))
        channel = runner.channel.fileno()
        server = stack.enter_context(llama_server(model, load, place))
        found = {
            "runner": Target("runner", str(channel), runner.pid),
            "llama-server": Target("llama-server", str(server.path), server.pid),
        }
        if packaged:
            pid, port = stack.enter_context(packaged_server(model, load, place))
            found["packaged"] = Target("packaged", str(port), pid)
        client = Client(channel)
        stack.callback(client.stop)
        yield client, found


def measure(points: Points) -> dict[str, dict[int, dict[str, Any]]]:
    """Everything that is reported, by model and number of callers."""
    figures: dict[str, dict[int, dict[str, Any]]] = {}
    for name in points.models:
        model = cached_drawn_model(COURSES[name].shape, setup.cache_directory() / "drawn-models")
        figures[name] = {}
        for callers in points.callers:
            figures[name][callers] = figures_of(model, COURSES[name], callers, points)
            print(f"{name}, {callers} callers: {_brief(figures[name][callers])}", file=sys.stderr, flush=True)
    return figures


def figures_of(model: Path, course: Course, callers: int, points: Points) -> dict[str, Any]:
    """Each of the processes gets its share of the repetitions."""
    load = Load(runner_id="bench", context_tokens=CONTEXT_TOKENS, slots=callers, threads=points.threads)
    answers, prompts, memory = [], [], {}
    for process in range(points.processes):
        with servers(model, load, packaged=points.packaged and process == 0) as (client, targets):
            point = Point(client, course, callers, points)
            for target in targets.values():
                point.first(target)
            seeds = range(process * points.repetitions, (process + 1) * points.repetitions)
            answers.append(repetitions(point.answers, list(targets.values()), seeds))
            prompts.append(repetitions(point.prompts, [targets["runner"], targets["llama-server"]], seeds))
            memory |= {kind: memory_megabytes(target.pid) for kind, target in targets.items()}
    found: dict[str, Any] = {
        **_answer_figures(answers),
        "prompt_tokens_per_second": _compared(prompts, lambda run: run.prompt_tokens_per_second),
        "memory_megabytes": memory,
    }
    if points.packaged:
        found["packaged_tokens_per_second"] = _compared(answers[:1], lambda run: run.tokens_per_second, peer="packaged")
    return found


# --- figures --------------------------------------------------------------------------------------------------------


def _answer_figures(together: Sequence[Sequence[Repetition]]) -> dict[str, dict[str, Estimate]]:
    columns = ("tokens_per_second", "cpu_ms", "client_ms", "first_p50_ms", "first_p99_ms")
    return {name: _compared(together, lambda run, name=name: getattr(run, name)) for name in columns}


def _compared(
    together: Sequence[Sequence[Repetition]], value: Callable[[Run], float], peer: Kind = "llama-server"
) -> dict[str, Estimate]:
    """Ours, the peer's, and ours by the peer's, of repetitions by process."""
    both = [[(value(runs["runner"]), value(runs[peer])) for runs in group] for group in together]
    return {
        "ours": Estimate.of([[ours for ours, _ in group] for group in both]),
        "peer": Estimate.of([[theirs for _, theirs in group] for group in both]),
        "ratio": Estimate.of([[ours / theirs for ours, theirs in group] for group in both]),
    }


def missed_bars(figures: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """One line for each."""
    missed = []

    def judge(what: str, ratio: float, *, least: float | None = None, most: float | None = None) -> None:
        if least is not None and ratio < least:
            missed.append(f"{what}: {ratio:.3f}, less than {least}")
        if most is not None and ratio > most:
            missed.append(f"{what}: {ratio:.3f}, more than {most}")

    for model, by_callers in figures.items():
        for callers, found in by_callers.items():
            where = f"{model}, {callers} callers"
            bar = BAR_ALONE if callers == 1 else BAR_TOGETHER
            if model == "mini":
                bar = BARS_SHORT_STEPS.get(callers, bar)
            judge(f"{where}, tokens/s", found["tokens_per_second"]["ratio"].median, least=bar)
            judge(f"{where}, first p50", found["first_p50_ms"]["ratio"].median, most=BAR_NO_MORE)
            judge(f"{where}, CPU", found["cpu_ms"]["ratio"].median, most=BAR_NO_MORE)
            packaged = found.get("packaged_tokens_per_second")
            if packaged and model == "mini" and callers == BAR_PACKAGED_CALLERS:
                judge(f"{where}, tokens/s by packaged", packaged["ratio"].median, least=BAR_PACKAGED)
    return missed


# --- report ---------------------------------------------------------------------------------------------------------

_TITLES: Final = {
    "tokens_per_second": "Generated tokens per second",
    "cpu_ms": "CPU ms per generated token",
    "first_p50_ms": "First text after ms, p50",
    "first_p99_ms": "First text after ms, p99",
    "prompt_tokens_per_second": "Prompt tokens per second",
    "client_ms": "The client's CPU ms per generated token",
    "packaged_tokens_per_second": "Generated tokens per second, beside the packaged server",
}


def report(figures: dict[str, dict[int, dict[str, Any]]]) -> None:
    """The tables for people."""
    for model, by_callers in figures.items():
        for name, title in _TITLES.items():
            rows = [
                [str(callers), _plain(found[name]["ours"]), _plain(found[name]["peer"]), _ratio(found[name]["ratio"])]
                for callers, found in by_callers.items()
                if name in found
            ]
            if rows:
                print(table(f"{title}: {model}", ["callers", "ours", "peer", "x [95 %]"], rows))
        rows = [
            [str(callers), *(f"{size['rss']:.0f} / {size['pss']:.0f}" for size in found["memory_megabytes"].values())]
            for callers, found in by_callers.items()
        ]
        kinds = list(next(iter(by_callers.values()))["memory_megabytes"])
        print(table(f"Memory in MB, rss / pss: {model}", ["callers", *kinds], rows))


def _plain(each: Estimate) -> str:
    return f"{each.median:.{0 if each.median >= 100 else 2}f}"


def _ratio(each: Estimate) -> str:
    return f"{each.median:.2f} [{each.low:.2f}-{each.high:.2f}]"


def _brief(found: dict[str, Any]) -> str:
    names = ("tokens_per_second", "cpu_ms", "first_p50_ms", "prompt_tokens_per_second", "packaged_tokens_per_second")
    each = [(name, found[name]) for name in names if name in found]
    return ", ".join(f"{name} {_plain(it['ours'])} / {_plain(it['peer'])} = {_ratio(it['ratio'])}" for name, it in each)


def _points() -> Points:
    parser = argparse.ArgumentParser(description="The engine beside llama-server.")
    parser.add_argument("--quick", action="store_true", help="two short repetitions of a few points: does it work?")
    parser.add_argument("--models", nargs="+", choices=tuple(COURSES), default=tuple(COURSES))
    parser.add_argument("--callers", nargs="+", type=int)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--repetitions", type=int, help="of each process")
    parser.add_argument("--no-packaged", action="store_true", help="without llama-cpp-python's own server")
    parser.add_argument("--threads", type=int, default=THREADS)
    chosen = parser.parse_args()
    return Points(
        models=tuple(chosen.models),
        callers=tuple(chosen.callers or ((1, 8) if chosen.quick else CALLERS)),
        processes=chosen.processes or (1 if chosen.quick else PROCESSES),
        repetitions=chosen.repetitions or REPETITIONS,
        packaged=not chosen.no_packaged,
        threads=chosen.threads,
        shorter=8 if chosen.quick else 1,
    )


def main() -> int:
    points = _points()
    around = surroundings()
    figures = measure(points)
    report(figures)
    missed = missed_bars(figures)
    for line in missed:
        print(f"missed: {line}")
    summary = {
        "bench": "engine",
        "figures": plain(figures),
        "bars": {
            "alone": BAR_ALONE,
            "together": BAR_TOGETHER,
            "short_steps": BARS_SHORT_STEPS,
            "packaged": BAR_PACKAGED,
            "first_p50_and_cpu": BAR_NO_MORE,
        },
        "missed": missed,
        "processes": points.processes,
        "repetitions": points.repetitions,
        "threads": points.threads,
        "context_tokens": CONTEXT_TOKENS,
        "ours": "a runner in its whole sandbox, frames on its channel",
        "peer": "llama-server on the same libraries, HTTP on a Unix socket",
        "surroundings": around,
    }
    print(json.dumps(summary))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
