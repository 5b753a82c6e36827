"""Verifying and sealing a model as one operation, in each seal mode, beside what the processor's SHA-256 can do.

Bar: verifying (hashing the bytes that are handed out) and sealing (making them unchangeable) each at least 1.5 GB per
    CPU second on one core, and modes that seal without copying also as one operation; ``sealed-memfd`` as one operation
    at least 0.8 of its bound; a model that was signed in shards at least 1.8 times as fast on two cores as on one, by
    wall time, where there are two.
Peer: ``openssl speed sha256`` with blocks of 1 MiB, one thread: the least that hashing can cost here.

One run measures, in turns, the peer and what a load does with a model's bytes:

- ``ro-store``: hash the stored file;
- ``verity``: the same the first time, then ask the kernel for its measurement; not where the host has no fs-verity;
- ``sealed-memfd``: copy into a memory file, seal it, hash what was sealed; and the two parts of that by themselves.

Copying costs nearly as much as hashing, so ``sealed-memfd`` cannot come near the peer, nor near 1.5 where the peer does
less than 2; its bound is what it would do if what is sealed could be hashed as cheaply as the peer hashes. CPU time is
what is judged, since others use the machine too. For two cores only wall time tells: short runs alternate, the best of
each are compared, those that were disturbed least, and beside it stands the CPU time that two threads take of what one
takes (1 where neither waits for the other). ``--alone`` gives those runs real-time priority, a fifth of a second at a
time, which needs root: on a busy machine nothing else tells how two cores would do.

GB is 10^9 bytes. The model is in the page cache: the disk is not measured.

Usage: python bench/verify.py [--quick] [--alone] [--directory DIR]
"""

import argparse
import json
import os
import platform
import re
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from appliance.core.manifest import WHOLE, Statement
from appliance.core.refusals import Refused
from appliance.models import verity
from appliance.models.descriptor import Wholes, hash_shards, observe, sealed_copy

BAR_GB_PER_CPU_SECOND = 1.5
BAR_TWO_CORES = 1.8
BAR_OF_BOUND = 0.8
SHARDS = 8
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
UNSIGNED = Statement(form=WHOLE, resources=())
PEER, HASH, COPY = "openssl sha256", "  hash what is sealed", "  copy and seal"
LATER = "verity, later loads"

Figures = dict[str, float]


def measured(work: Callable[[], object], n_bytes: int) -> Figures:
    """GB per second of wall time and of CPU time."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"gb_per_second": n_bytes / wall / 1e9, "gb_per_cpu_second": n_bytes / cpu / 1e9}


def openssl(seconds: int) -> Figures:
    command = ["openssl", "speed", "-elapsed", "-seconds", str(seconds), "-bytes", str(2**20), "sha256"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = re.search(r"^sha256 +([0-9.]+)k$", done.stdout, re.MULTILINE)
    if not found:
        raise SystemExit(f"openssl said something else:\n{done.stdout}")
    rate = float(found[1]) * 1000 / 1e9
    return {"gb_per_second": rate, "gb_per_cpu_second": rate * seconds / max(cpu, 0.001)}


def make_model(path: Path, n_bytes: int) -> None:
    block = os.urandom(2**20)
    with path.open("wb") as file:
        for _ in range(n_bytes // 2**20):
            file.write(block)


def one_round(path: Path, n_bytes: int, seconds: int, with_verity: bool) -> dict[str, Figures]:
    file = os.open(path, os.O_RDONLY)
    sealed: list[int] = []
    receipts = verity.Receipts()

    def seal() -> int:
        sealed.append(sealed_copy(file))
        return sealed[-1]

    def let_go() -> None:
        """One copy at a time: memory that the machine has never used before costs several times as much."""
        while sealed:
            os.close(sealed.pop())

    def load_under_verity() -> None:
        receipts.observe(file, [UNSIGNED], Wholes())

    try:
        found = {PEER: openssl(seconds)}
        found["ro-store"] = measured(lambda: observe(file), n_bytes)
        if with_verity:
            found["verity, first load"] = measured(load_under_verity, n_bytes)
            found[LATER] = measured(load_under_verity, n_bytes)
        found["sealed-memfd"] = measured(lambda: observe(seal()), n_bytes)
        let_go()
        found[COPY] = measured(seal, n_bytes)
        found[HASH] = measured(lambda: observe(sealed[-1]), n_bytes)
        let_go()
        found["sealed-memfd, shards on 2 cores"] = measured(
            lambda: hash_shards(seal(), "sha256", n_bytes // SHARDS, n_bytes, threads=2), n_bytes
        )
    finally:
        let_go()
        os.close(file)
    return found


@contextmanager
def undisturbed(wanted: bool) -> Iterator[None]:
    """Ahead of every ordinary process, and after a pause in which those had their turn."""
    if not wanted:
        yield
        return
    time.sleep(0.2)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def two_cores(path: Path, n_bytes: int, turns: int, alone: bool) -> dict[str, Figures]:
    """Two threads hashing the shards, beside one: how many times as fast, and at how many times the CPU time."""
    file = os.open(path, os.O_RDONLY)
    sealed = sealed_copy(file)
    runs: dict[tuple[int, int], list[Figures]] = {(fd, n): [] for fd in (file, sealed) for n in (1, 2)}
    try:
        for _ in range(turns):
            for (fd, threads), found in runs.items():
                work = partial(hash_shards, fd, "sha256", n_bytes // SHARDS, n_bytes, threads=threads)
                with undisturbed(alone):
                    found.append(measured(work, n_bytes))
    finally:
        os.close(file)
        os.close(sealed)

    def times(fd: int) -> Figures:
        one, two = runs[fd, 1], runs[fd, 2]
        best = [max(run["gb_per_second"] for run in found) for found in (one, two)]
        cost = [statistics.median(1 / run["gb_per_cpu_second"] for run in found) for found in (one, two)]
        return {"as_fast": round(best[1] / best[0], 2), "cpu_time": round(cost[1] / cost[0], 2)}

    return {"stored": times(file), "sealed": times(sealed)}


def why_no_verity(path: Path) -> str | None:
    """Gives the model fs-verity, or says why it cannot have it."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        verity.enable(file)
    except Refused as refused:
        return refused.detail
    finally:
        os.close(file)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer rounds")
    parser.add_argument("--alone", action="store_true", help="real-time priority where wall time is compared")
    parser.add_argument("--directory", type=Path, default=None, help="where to put the model")
    chosen = parser.parse_args()
    rounds, n_bytes, seconds, turns = (3, 512 * 2**20, 1, 4) if chosen.quick else (5, 2 * 2**30, 2, 12)
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=chosen.directory) as place:
        path, small = Path(place, "model"), Path(place, "small")
        make_model(path, n_bytes)
        make_model(small, 256 * 2**20)
        no_verity = why_no_verity(path)
        one_round(path, n_bytes, 1, no_verity is None)  # so that the file is in the cache
        runs = [one_round(path, n_bytes, seconds, no_verity is None) for _ in range(rounds)]
        speed_up = two_cores(small, small.stat().st_size, turns, chosen.alone)
    figures = {
        name: {
            key: {
                "median": round(statistics.median(run[name][key] for run in runs), 2),
                "range": [round(min(run[name][key] for run in runs), 2), round(max(run[name][key] for run in runs), 2)],
            }
            for key in runs[0][name]
        }
        for name in runs[0]
    }
    per_cpu = {name: one["gb_per_cpu_second"]["median"] for name, one in figures.items()}
    print(f"{'':36}{'GB per second':>24}{'GB per CPU second':>24}{'of openssl':>12}")
    for name, one in figures.items():
        cells = "".join(f"{c['median']:>12} {c['range'][0]:>5}-{c['range'][1]:<5}" for c in one.values())
        print(f"{name:36}{cells}{per_cpu[name] / per_cpu[PEER]:>12.2f}")
    bound = 1 / (1 / per_cpu[PEER] + 1 / per_cpu[COPY])
    print(f"sealed-memfd is bound by its copy: {bound:.2f} GB per CPU second if hashing cost what it costs the peer")
    if no_verity is not None:
        print(f"verity not measured, {no_verity}; its first load does what ro-store does")
    holds = {
        f"{name.strip()} on one core": per_cpu[name] >= BAR_GB_PER_CPU_SECOND
        for name in ("ro-store", "verity, first load", LATER, COPY)
        if name in per_cpu
    }
    holds["sealed-memfd beside its bound"] = per_cpu["sealed-memfd"] >= BAR_OF_BOUND * bound
    if len(os.sched_getaffinity(0)) >= 2:
        for kind, one in speed_up.items():
            print(f"two cores hash a {kind} file {one['as_fast']} times as fast, in {one['cpu_time']} of the CPU time")
            holds[f"shards of a {kind} file on two cores"] = one["as_fast"] >= BAR_TWO_CORES
    for what, held in holds.items():
        print(f"{'holds ' if held else 'MISSES'}  {what}")
    passed = all(holds.values())
    summary = {
        "bench": "verify",
        "passed": passed,
        "bars": {"gb_per_cpu_second": BAR_GB_PER_CPU_SECOND, "two_cores": BAR_TWO_CORES, "of_bound": BAR_OF_BOUND},
        "holds": holds,
        "of_openssl": {name: round(value / per_cpu[PEER], 3) for name, value in per_cpu.items()},
        "sealed_memfd_bound": round(bound, 2),
        "two_cores": speed_up,
        "rounds": rounds,
        "model_bytes": n_bytes,
        "shards": SHARDS,
        "alone": chosen.alone,
        "load_average": round(load_average, 2),
        "figures": figures,
        "no_verity": no_verity,
        "huge_pages": re.findall(r"\[(\w+)\]", HUGE_PAGES.read_text()) if HUGE_PAGES.exists() else [],
        "versions": {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION},
        "ours_did": "sendfile into a memory file, seals, then SHA-256 of a mapping, each shard in a thread",
        "peer_did": "SHA-256 of one 1 MiB block in the cache, again and again",
    }
    print(json.dumps(summary))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
