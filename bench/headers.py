"""What judging a model's header costs: CPU milliseconds and memory, for headers as large as the largest in use.

Bar: a verdict takes at most 100 ms of CPU and raises the process's memory by at most 64 MiB, for each of the headers.
Peer: ``GGUFReader`` of the ``gguf`` package, the reference reader in Python: it takes the same header apart, into
    arrays, and judges nothing. It is measured once.

Each measurement is a fresh interpreter, as each verdict in the appliance is. A verdict is ``read_facts``: the bytes are
read from the file (it is in the page cache), and whatever is made at first use is made. Its start (interpreter and
imports) is not in the verdict and has a column of its own; so has the whole process that the appliance starts for it:
start, sandbox, verdict, answer. Texts are made up; their counts and lengths are those of the models named.

The largest header is at the bar, or a fifth above where others share the core and its caches: ``core.gguf`` says why.

Usage: python bench/headers.py [--quick]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's path begins with its own folder

from appliance.core.refusals import Fault
from appliance.warden.starter_client import Starter
from appliance.warden.validate import SandboxedValidator
from bench.support.figures import Figure, plain, surroundings, table
from tests.support.gguf_headers import LARGE_HEADERS, write_header

BAR_CPU_MS: Final = 100.0
BAR_GROWTH_MIB: Final = 64.0
LIMIT_SECONDS: Final = 120.0

# What the fresh interpreters run; argument 1 is the file. ``clear_refs`` 5 starts the peak of memory anew.
MEASURED: Final = """\
import json, os, sys, time
{imports}
def memory_kib(name):
    with open("/proc/self/status") as status:
        return int(status.read().partition(name + ":")[2].split()[0])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before, start = memory_kib("VmRSS"), time.process_time()
{work}
end = time.process_time()
growth_kib = memory_kib("VmHWM") - before
print(json.dumps({{"start_ms": 1000 * start, "cpu_ms": 1000 * (end - start), "growth_mib": growth_kib / 1024}}))
"""
OURS: Final = MEASURED.format(
    imports="from appliance.validator.main import read_facts",  # all that the validator's process imports
    work="file = os.open(sys.argv[1], os.O_RDONLY)\nassert read_facts(file).vocabulary_tokens > 100_000",
)
PEER: Final = MEASURED.format(
    imports="from gguf import GGUFReader",
    work="assert len(GGUFReader(sys.argv[1]).fields) > 10",
)


def fresh(program: str, path: Path) -> dict[str, float]:
    """One measurement in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", program, path],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_SECONDS,
        check=True,
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def whole_process_ms(path: Path) -> float:
    """CPU of the process that the appliance starts, from its first instruction to its end; its starter's own apart."""
    return _with_starter_ms(path) - _with_starter_ms(None)


def _with_starter_ms(path: Path | None) -> float:
    """The kernel counts a process's CPU as its parent's once it was waited for, and the starter waits for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with Starter() as starter:
        if path is not None:
            with path.open("rb") as file:
                SandboxedValidator(starter)(file.fileno())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(path: Path, repetitions: int, *, sandbox: bool) -> dict[str, Figure]:
    """The peer once, in the middle: it takes so much longer that its spread says nothing."""
    ours, peer, whole = [], [], []
    for repetition in range(repetitions):
        ours.append(fresh(OURS, path))
        if sandbox:
            whole.append(whole_process_ms(path))
        if repetition == repetitions // 2:
            peer.append(fresh(PEER, path))
    figures = {
        "cpu_ms": Figure.of(one["cpu_ms"] for one in ours),
        "growth_mib": Figure.of(one["growth_mib"] for one in ours),
        "start_ms": Figure.of(one["start_ms"] for one in ours),
        "peer_cpu_ms": Figure.of(one["cpu_ms"] for one in peer),
        "peer_growth_mib": Figure.of(one["growth_mib"] for one in peer),
    }
    return figures | ({"whole_process_ms": Figure.of(whole)} if sandbox else {})


def missed_bars(figures: dict[str, dict[str, Figure]]) -> list[str]:
    """One line for each."""
    missed = []
    for name, figure in figures.items():
        for key, bar, unit in (("cpu_ms", BAR_CPU_MS, "ms of CPU"), ("growth_mib", BAR_GROWTH_MIB, "MiB")):
            if figure[key].median > bar:
                missed.append(f"{name}: {figure[key].median:.0f} {unit}, more than {bar:.0f}")
    return missed


def can_shut_in(path: Path) -> bool:
    """Whether this host has every layer of the validator's sandbox."""
    try:
        whole_process_ms(path)
    except Fault as fault:
        print(f"no whole processes: {fault}")
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="What judging a model's header costs, in CPU milliseconds.")
    parser.add_argument("--quick", action="store_true", help="two repetitions: does it work?")
    repetitions = 2 if parser.parse_args().quick else 5
    around = surroundings()
    figures: dict[str, dict[str, Figure]] = {}
    header_bytes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as place:
        path = Path(place, "model.gguf")
        for name, vocabulary in LARGE_HEADERS.items():
            write_header(path, vocabulary)
            header_bytes[name] = path.stat().st_size
            figures[name] = measure(path, repetitions, sandbox=can_shut_in(path))
    report(figures, header_bytes)
    missed = missed_bars(figures)
    for line in missed:
        print(f"missed: {line}")
    summary: dict[str, Any] = {
        "bench": "headers",
        "figures": plain(figures),
        "header_bytes": header_bytes,
        "bars": {"cpu_ms": BAR_CPU_MS, "growth_mib": BAR_GROWTH_MIB},
        "missed": missed,
        "repetitions": repetitions,
        "ours": "reads the file, checks all that the engine would read and more, in a fresh interpreter",
        "peer": "GGUFReader maps the file and takes every string and number out, in a fresh interpreter",
        "surroundings": around,
    }
    print(json.dumps(summary))
    return 1 if missed else 0


def report(figures: dict[str, dict[str, Figure]], header_bytes: dict[str, int]) -> None:
    """The table for people."""
    columns = {
        "verdict ms": "cpu_ms",
        "MiB": "growth_mib",
        "start ms": "start_ms",
        "whole process ms": "whole_process_ms",
        "peer ms": "peer_cpu_ms",
        "peer MiB": "peer_growth_mib",
    }
    rows = [
        [name, f"{header_bytes[name] / 1e6:.1f}", *(str(figure.get(key, "-")) for key in columns.values())]
        for name, figure in figures.items()
    ]
    print(table("CPU ms and memory of one verdict, median [range]", ["header", "MB", *columns], rows))


if __name__ == "__main__":
    sys.exit(main())
