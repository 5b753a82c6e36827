"""Durable audit records: CPU microseconds per record, and records per second, at 64 concurrent clients.

Bar: our journal takes at most 150 CPU microseconds per durable ``opened`` record (about 1.5 KB) with canonical JSON,
    RFC 6962 leaf, group commit, tiles and signed checkpoints, and writes more records per second than the peer.
Peer: SQLite in WAL mode with ``synchronous=FULL`` and one transaction per record, in a worker thread: what a service
    would use for an audit table that is durable but proves nothing.

Each client writes its next record when the last one is durable. Ours and the peer take turns in one run. CPU time is
the whole process's; wall time on a shared machine is noise, and so is a comparison of disks.

Usage: python bench/journal.py [--quick] [--directory DIR]
"""

import argparse
import asyncio
import json
import platform
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import cryptography
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.audit.fsck import verify_log
from appliance.core.codec import canonical_json
from appliance.core.records import LogOpened
from appliance.core.values import Digest
from appliance.notary.checkpoint import Checkpointer
from appliance.notary.clock import SystemClock
from appliance.notary.files import Files
from appliance.notary.journal import Journal
from tests.support.audit_records import model_loaded, opened, policy_loaded

CLIENTS = 64
BAR_CPU_US = 150.0

Append = Callable[[int], Awaitable[object]]


class CountingFiles(Files):
    def __init__(self) -> None:
        self.syncs = 0

    def datasync(self, fd: int) -> None:
        self.syncs += 1
        super().datasync(fd)


async def drive(append: Append, count: int) -> dict[str, float]:
    """``count`` records by 64 clients; CPU and wall time per record, and the p99 wait of one."""
    numbers = iter(range(count))
    waits: list[float] = []

    async def client() -> None:
        for number in numbers:
            began = time.perf_counter()
            await append(number)
            waits.append(time.perf_counter() - began)

    usage, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    waits.sort()
    return {
        "cpu_us": cpu / count * 1e6,
        "records_per_second": count / wall,
        "wait_p50_ms": waits[len(waits) // 2] * 1e3,
        "wait_p99_ms": waits[len(waits) * 99 // 100] * 1e3,
    }


async def ours(place: Path, count: int) -> dict[str, float]:
    files = CountingFiles()
    key = Ed25519PrivateKey.generate()
    checkpointer = Checkpointer(
        files, head_path=place / "head", checkpoint_path=place / "log/checkpoint", origin="bench.test/log", key=key
    )
    journal = Journal(files, place / "log", checkpointer, SystemClock())
    for record in (
        LogOpened(version="bench", settings_digest=Digest.of(b""), recovered_bytes=0),
        policy_loaded(),
        model_loaded(),
    ):
        await journal.append(record)
    publishing = asyncio.create_task(journal.publish_forever(1.0))
    syncs = files.syncs
    figures = await drive(lambda number: journal.append(opened(f"req-{number:08d}")), count)
    figures["records_per_sync"] = count / (files.syncs - syncs)
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    await journal.close()
    report = verify_log(place / "log", str(checkpointer.verifier))
    if report.verdict != "intact" or report.events["opened"] != count:
        raise SystemExit(f"the log that was measured is not intact: {report.problems[:3]}")
    return figures


async def peer(place: Path, count: int) -> dict[str, float]:
    worker = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(place / "audit.sqlite", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE audit (seq INTEGER PRIMARY KEY, record BLOB NOT NULL)")
        return connection

    connection = await loop.run_in_executor(worker, connect)

    def insert(data: bytes) -> None:
        connection.execute("INSERT INTO audit (record) VALUES (?)", (data,))

    async def append(number: int) -> None:
        await loop.run_in_executor(worker, insert, canonical_json(opened(f"req-{number:08d}")))

    figures = await drive(append, count)
    await loop.run_in_executor(worker, connection.close)
    worker.shutdown()
    figures["records_per_sync"] = 1.0
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer records and rounds")
    parser.add_argument("--directory", type=Path, default=None, help="where to write (a real disk, not a memory one)")
    chosen = parser.parse_args()
    rounds, count, peer_count = (2, 4_000, 400) if chosen.quick else (5, 20_000, 2_000)
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for name, run, records in (("ours", ours, count), ("peer", peer, peer_count)):
            with tempfile.TemporaryDirectory(dir=chosen.directory) as place:
                runs[name].append(asyncio.run(run(Path(place), records)))
    figures = {
        name: {
            key: {
                "median": round(statistics.median(run[key] for run in done), 1),
                "range": [round(min(run[key] for run in done), 1), round(max(run[key] for run in done), 1)],
            }
            for key in done[0]
        }
        for name, done in runs.items()
    }
    print(f"{'':22}{'ours':>26}{'SQLite':>26}")
    for key in figures["ours"]:
        cells = (figures[name][key] for name in ("ours", "peer"))
        print(f"{key:22}" + "".join(f"{c['median']:>12} {c['range'][0]:>6}-{c['range'][1]:<6}" for c in cells))
    cpu = figures["ours"]["cpu_us"]["median"]
    faster = figures["ours"]["records_per_second"]["median"] > figures["peer"]["records_per_second"]["median"]
    passed = cpu <= BAR_CPU_US and faster
    summary = {
        "bench": "journal",
        "passed": passed,
        "bar_cpu_us": BAR_CPU_US,
        "clients": CLIENTS,
        "rounds": rounds,
        "records": {"ours": count, "peer": peer_count},
        "figures": figures,
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "msgspec": msgspec.__version__,
            "cryptography": cryptography.__version__,
        },
        "ours_did": "canonical JSON, leaf hash, group commit with fdatasync, tiles, checkpoint each second",
        "peer_did": "canonical JSON, one INSERT and one transaction per record, WAL, synchronous=FULL",
    }
    print(json.dumps(summary))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
