"""``kill -9`` of a real writing process, again and again on one log."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.audit.fsck import verify_log
from appliance.audit.query import read_entries
from appliance.core.records import RefusalSummary
from tests.support.audit_log import VKEY, open_journal, run
from tests.support.faulty_files import fast_directory

KILLS = 20
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


def test_killed_writer_loses_nothing_acknowledged(place: Path) -> None:
    chance = random.Random(4711)
    acknowledged: set[int] = set()
    first = 1
    for _ in range(KILLS):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.support.journal_writer", str(place), str(first)],
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            text=True,
        ) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 400)):
                acknowledged.add(int(process.stdout.readline()))
            while not (
                place / "log" / "checkpoint"
            ).exists():  # without its first one nobody can tell it from a stripped log
                acknowledged.add(int(process.stdout.readline()))
            process.kill()
            acknowledged.update(
                int(line) for line in process.stdout.read().split("\n") if line.endswith(tuple("0123456789"))
            )
        first = max(acknowledged) + 1000
        report = verify_log(place / "log", VKEY)
        assert report.verdict == "intact", report

    async def recover() -> None:
        await open_journal(place).close()

    run(recover)
    report = verify_log(place / "log", VKEY)
    assert report.verdict == "intact", report
    assert report.unsigned_tail == 0
    found = [e.record.interval_seconds for e in read_entries(place / "log") if isinstance(e.record, RefusalSummary)]
    assert len(found) == len(set(found))
    assert acknowledged <= set(found)
    assert report.events["log-opened"] == KILLS
