"""What the sandbox costs a runner: milliseconds when it starts, and tokens per second afterwards.

*With* is the runner as the warden starts it, every layer on. The peer, *without*, is the same program with the same
model and environment, in which the functions that put the layers on do nothing (``support/runner_without_sandbox.py``);
only this benchmark can start such a runner.

Bars, exit status 1 when one is missed:

* starting, from the launch of the process to ``Ready`` with the demo model, takes at most 50 ms longer: the median of
  the differences within pairs. Importing the sandbox's own modules is on both sides and not in the difference; its
  time is printed with the steps, and added to it the sum has to stay within the bar too;
* a token takes at most 1 % more, as the median of the ratios within turns (with, without, without, with). The model
  computes some milliseconds per token, on one thread, as a small real model does; a free-running one would put more
  calls into a second than any answer has, one that computes longer would hide them. The first word of an answer starts
  the clock, its last one stops it.

Each figure is a median with its 95 % interval (a bootstrap over processes, then over turns within them, since two
processes differ by where their memory lies). On a shared machine wall time is noise of several per cent, so the second
bar is judged by CPU time per token, which bounds tokens per second wherever the runner has a core to itself; wall time
only contradicts it when its whole interval lies beyond the bar. A machine that is too busy for
either bar is named as such.

``--quick`` takes few of each: enough to see that it works, too few to quote. The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path begins with its own folder

import appliance
from appliance.ipc.messages import Load
from bench.support.figures import Estimate, plain, surroundings, table
from bench.support.models import PACED, make_model
from bench.support.one_runner import BARE, CLOCKED, SANDBOXED, Cost, one_runner

BAR_START_MS: Final = 50.0
BAR_TOKEN: Final = 0.01

DEMO_MODEL: Final = Path(appliance.__file__).parent / "data" / "paddock-demo.gguf"
LOAD: Final = Load(runner_id="bench", context_tokens=512, slots=1, threads=1)
TOKENS: Final = 17
"""Short answers, so that the two sides take turns more often than the machine changes its mind."""
IMPORTS: Final = "import the sandbox's modules"
_IMPORTED: Final = """
import ctypes, json, time
import msgspec, appliance.ipc.messages
began = time.perf_counter()
from appliance.sandbox import layers, probe, seccomp
print(1000 * (time.perf_counter() - began))
"""


def starts(pairs: int) -> dict[str, list[Cost]]:
    """What each start cost. Who comes first changes with each pair."""
    found: dict[str, list[Cost]] = {"with": [], "without": []}
    sides = [("with", SANDBOXED), ("without", BARE)]
    for _ in range(pairs):
        for name, program in sides:
            with one_runner(program, DEMO_MODEL, LOAD) as runner:
                found[name].append(runner.start)
        sides.reverse()
    return found


def steps(times: int) -> dict[str, float]:
    """Step -> median milliseconds of wall time."""
    found: list[dict[str, float]] = []
    for _ in range(times):
        with one_runner(CLOCKED, DEMO_MODEL, LOAD) as runner:
            imported = subprocess.run(
                [sys.executable, "-I", "-B", "-c", _IMPORTED], capture_output=True, check=True, timeout=60
            )
            found.append({IMPORTS: float(imported.stdout), **json.loads(runner.stderr.readline())})
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def turns(model: Path, *, processes: int, each: int) -> list[list[tuple[Cost, Cost]]]:
    """For each pair of processes its turns: what a token cost with and without, each the sum of two answers."""
    found = []
    for _ in range(processes):
        with one_runner(SANDBOXED, model, LOAD) as ours, one_runner(BARE, model, LOAD) as peer:
            ours.answer(TOKENS)
            peer.answer(TOKENS)
            found.append([_turn(ours.answer, peer.answer) for _ in range(each)])
    return found


def _turn(ours: Any, peer: Any) -> tuple[Cost, Cost]:
    first, second, third, fourth = ours(TOKENS), peer(TOKENS), peer(TOKENS), ours(TOKENS)
    return first + fourth, second + third


# --- figures --------------------------------------------------------------------------------------------------------


def start_figures(found: dict[str, list[Cost]]) -> dict[str, dict[str, Estimate]]:
    """Milliseconds of wall and CPU time: with, without, and the difference within pairs."""
    columns = {}
    for kind in ("wall", "cpu"):
        ours, peer = ([1000 * getattr(cost, f"{kind}_seconds") for cost in found[side]] for side in found)
        added = [a - b for a, b in zip(ours, peer, strict=True)]
        columns[f"{kind}_ms"] = {
            "with": Estimate.of([ours]), "without": Estimate.of([peer]), "added": Estimate.of([added]),
        }  # fmt: skip
    return columns


def token_figures(found: list[list[tuple[Cost, Cost]]]) -> dict[str, dict[str, Estimate]]:
    """Milliseconds per token, with and without, and how much more one takes (0.01 is 1 %)."""
    columns = {}
    for kind in ("wall", "cpu"):
        pairs = [[tuple(getattr(cost, f"{kind}_seconds") for cost in turn) for turn in group] for group in found]
        columns[f"{kind}_ms"] = {
            "with": Estimate.of([[500 * ours for ours, _ in group] for group in pairs]),
            "without": Estimate.of([[500 * peer for _, peer in group] for group in pairs]),
            "more": Estimate.of([[ours / peer - 1 for ours, peer in group] for group in pairs]),
        }
    return columns


def judged(figures: dict[str, Any]) -> dict[str, bool]:
    """Bar -> whether it was passed."""
    added = figures["start"]["wall_ms"]["added"].median
    more = {kind: figures["tokens"][kind]["more"] for kind in ("wall_ms", "cpu_ms")}
    return {
        "start": added + figures["steps_ms"][IMPORTS] <= BAR_START_MS,
        "tokens": more["cpu_ms"].median <= BAR_TOKEN and more["wall_ms"].low <= BAR_TOKEN,
    }


# --- report ---------------------------------------------------------------------------------------------------------


def report(figures: dict[str, Any], passed: dict[str, bool]) -> None:
    """The tables for people."""
    kinds = {"wall_ms": "wall time", "cpu_ms": "CPU time"}
    rows = [[title, *map(_ms, figures["start"][kind].values())] for kind, title in kinds.items()]
    print(table("Milliseconds to start, median [95 %]", ["", "with", "without", "added"], rows))
    rows = [[name, f"{each:.2f}"] for name, each in figures["steps_ms"].items()]
    rows.append(["all of these", f"{sum(figures['steps_ms'].values()):.2f}"])
    print(table("Of which, by step (ms of wall time)", ["", "median"], rows))
    rows = []
    for kind, title in kinds.items():
        ours, peer, more = figures["tokens"][kind].values()
        rows.append([title, _ms(ours), _ms(peer), _percent(more)])
    print(table("Milliseconds per token, median [95 %]", ["", "with", "without", "more"], rows))
    added, more = figures["start"]["wall_ms"]["added"], figures["tokens"]["cpu_ms"]["more"]
    print(f"{_word(passed['start'])}: a start takes {_ms(added)} ms more; the bar is {BAR_START_MS:.0f}")
    print(f"{_word(passed['tokens'])}: a token takes {_percent(more)} % more; the bar is {100 * BAR_TOKEN:.0f} %")
    if added.high - added.low > BAR_START_MS or more.high - more.low > 2 * BAR_TOKEN:
        print("an interval is wider than its bar: too few repetitions, or too busy a machine, to quote these figures")


def _word(passed: bool) -> str:
    return "passed" if passed else "missed"


def _ms(each: Estimate) -> str:
    return f"{each.median:.1f} [{each.low:.1f}-{each.high:.1f}]"


def _percent(each: Estimate) -> str:
    return f"{100 * each.median:+.2f} [{100 * each.low:+.2f} to {100 * each.high:+.2f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description="What the sandbox costs a runner.")
    parser.add_argument("--quick", action="store_true", help="few of each: does it work?")
    pairs, clocked, processes, each = (4, 2, 2, 5) if parser.parse_args().quick else (40, 9, 8, 60)
    around = surroundings()
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as place:
        found = turns(make_model(Path(place), PACED), processes=processes, each=each)
    figures = {
        "tokens": token_figures(found),
        "start": start_figures(starts(pairs)),
        "steps_ms": steps(clocked),
    }
    passed = judged(figures)
    report(figures, passed)
    summary = {
        "bench": "sandbox",
        "figures": plain(figures),
        "bars": {"start_ms": BAR_START_MS, "token": BAR_TOKEN},
        "missed": [name for name, good in passed.items() if not good],
        "pairs": pairs,
        "processes": processes,
        "turns": processes * each,
        "ours": "the runner in its whole sandbox",
        "peer": "the runner without any layer",
        "surroundings": around,
    }
    print(json.dumps(summary))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
