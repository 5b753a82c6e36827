"""Verifying and sealing a model: gigabytes per second, beside what the processor's SHA-256 can do.

Bar: verifying a stored model hashes at least 1.5 GB per CPU second; sealing copies at least 1.5 GB per CPU second; and
    a sealed model that was signed in shards is verified at least 1.8 times as fast on two cores as on one, by wall
    time, where there are two.
Peer: ``openssl speed sha256`` with blocks of 1 MiB, one thread: the least that hashing can cost here.

One run measures, in turns: the peer; a whole verification by one thread (one SHA-256 of everything); the shards on one
core and on two; the copy into sealed memory; and a whole load (copy, seal, hash), which does both and so cannot be as
fast as either. Sealed memory is hashed more slowly than a stored file where its pages are small: the last line names
``/sys/kernel/mm/transparent_hugepage/shmem_enabled``. GB is 10^9 bytes. The model is in the page cache: the disk is
not measured.

Usage: python bench/verify.py [--quick] [--directory DIR]
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
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from appliance.models.descriptor import hash_shards, observe, sealed_copy

BAR_GB_PER_CPU_SECOND = 1.5
BAR_TWO_CORES = 1.8
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def measured(work: Callable[[], object], n_bytes: int) -> dict[str, float]:
    """GB per second of wall time and of CPU time."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"gb_per_second": n_bytes / wall / 1e9, "gb_per_cpu_second": n_bytes / cpu / 1e9}


def openssl(seconds: int) -> dict[str, float]:
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


def one_round(path: Path, n_bytes: int, shard_bytes: int, seconds: int) -> dict[str, dict[str, float]]:
    file = os.open(path, os.O_RDONLY)
    sealed = -1
    try:
        found = {"openssl sha256": openssl(seconds)}
        found["hash stored file, 1 thread"] = measured(lambda: observe(file), n_bytes)

        def seal() -> None:
            nonlocal sealed
            sealed = sealed_copy(file)

        found["copy and seal"] = measured(seal, n_bytes)
        found["hash sealed, 1 thread"] = measured(lambda: observe(sealed), n_bytes)
        for threads in (1, 2):
            found[f"hash sealed shards, {threads} threads"] = measured(
                lambda n=threads: hash_shards(sealed, "sha256", shard_bytes, n_bytes, threads=n), n_bytes
            )
        os.close(sealed)

        def load() -> None:
            seal()
            hash_shards(sealed, "sha256", shard_bytes, n_bytes, threads=2)

        found["load: copy, seal, hash shards on 2"] = measured(load, n_bytes)
    finally:
        os.close(file)
        if sealed >= 0:
            os.close(sealed)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer rounds")
    parser.add_argument("--directory", type=Path, default=None, help="where to put the model")
    chosen = parser.parse_args()
    rounds, n_bytes, seconds = (2, 512 * 2**20, 1) if chosen.quick else (5, 2 * 2**30, 2)
    shard_bytes = n_bytes // 8
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=chosen.directory) as place:
        path = Path(place, "model")
        make_model(path, n_bytes)
        one_round(path, n_bytes, shard_bytes, 1)  # so that the file is in the cache
        runs = [one_round(path, n_bytes, shard_bytes, seconds) for _ in range(rounds)]
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
    peer = figures["openssl sha256"]["gb_per_cpu_second"]["median"]
    print(f"{'':36}{'GB per second':>24}{'GB per CPU second':>24}{'of openssl':>12}")
    for name, one in figures.items():
        cells = "".join(f"{c['median']:>12} {c['range'][0]:>5}-{c['range'][1]:<5}" for c in one.values())
        print(f"{name:36}{cells}{one['gb_per_cpu_second']['median'] / peer:>12.2f}")
    speed_up = statistics.median(
        run["hash sealed shards, 2 threads"]["gb_per_second"] / run["hash sealed shards, 1 threads"]["gb_per_second"]
        for run in runs
    )
    verify = figures["hash stored file, 1 thread"]["gb_per_cpu_second"]["median"]
    seal = figures["copy and seal"]["gb_per_cpu_second"]["median"]
    two_cores = len(os.sched_getaffinity(0)) >= 2
    passed = min(verify, seal) >= BAR_GB_PER_CPU_SECOND and (not two_cores or speed_up >= BAR_TWO_CORES)
    print(f"verify {verify} GB/CPU s ({verify / peer:.2f} of openssl), seal {seal}, two cores {speed_up:.2f} times one")
    summary = {
        "bench": "verify",
        "passed": passed,
        "bars": {"gb_per_cpu_second": BAR_GB_PER_CPU_SECOND, "two_cores": BAR_TWO_CORES},
        "verify_of_openssl": round(verify / peer, 3),
        "two_cores": round(speed_up, 2),
        "rounds": rounds,
        "model_bytes": n_bytes,
        "shard_bytes": shard_bytes,
        "load_average": round(load_average, 2),
        "figures": figures,
        "huge_pages": re.findall(r"\[(\w+)\]", HUGE_PAGES.read_text()) if HUGE_PAGES.exists() else [],
        "versions": {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION},
        "ours_did": "sendfile into a memory file, seals, then SHA-256 of a mapping, each shard in a thread",
        "peer_did": "SHA-256 of one 1 MiB block in the cache, again and again",
    }
    print(json.dumps(summary))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
