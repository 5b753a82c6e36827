"""Every system call of the journal fails once, for a while, or is the last one: then the log must be intact and hold
every record that was acknowledged."""

import asyncio
import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.audit.fsck import verify_log
from appliance.audit.query import read_entries
from appliance.core.records import RefusalSummary
from appliance.core.refusals import Fault
from appliance.notary import journal as journal_module
from appliance.notary.files import Files
from appliance.notary.journal import Journal, NotWritten, Written
from tests.support.audit_log import LOG_OPENED, VKEY, append_all, open_journal, run
from tests.support.audit_records import small
from tests.support.faulty_files import FailingFiles, PowerLossFiles, WatchedFiles, fast_directory

GROUPS = (3, 260, 5, 250, 4, 30)


@pytest.fixture
def place() -> Iterator[Path]:
    with fast_directory() as path:
        yield path


@pytest.fixture(autouse=True)
def compact_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_ENTRIES", 256)


async def write_story(state: Path, files: Files, acknowledged: list[int], refused: list[int]) -> None:
    """Groups of records with publications between them; notes each answer as it comes."""
    journal = open_journal(state, files=files)
    try:
        await append_one(journal, LOG_OPENED)
        number = 0
        for size in GROUPS:
            records = [small(number + n) for n in range(size)]
            number += size
            for record, outcome in zip(records, await append_all(journal, records), strict=True):
                (acknowledged if isinstance(outcome, Written) else refused).append(record.interval_seconds)
            with suppress(OSError):  # as publish_forever does: the next one tries again
                await journal.publish()
    finally:
        with suppress(OSError):
            await journal.close()


async def append_one(journal: Journal, record: object) -> None:
    for _ in range(100):
        outcome = (await append_all(journal, [record]))[0]
        if isinstance(outcome, Written):
            return
    raise Fault("never written")


def recovered_numbers(state: Path) -> list[int]:
    """Recovers with a sound disk, as the next notary does; the log must then be intact."""

    async def scenario() -> None:
        journal = open_journal(state)
        await append_one(journal, LOG_OPENED)
        await journal.close()

    run(scenario)
    report = verify_log(state / "log", VKEY)
    assert report.verdict == "intact", report
    assert report.unsigned_tail == 0
    return [e.record.interval_seconds for e in read_entries(state / "log") if isinstance(e.record, RefusalSummary)]


def assert_readable_as_it_stands(state: Path) -> None:
    """An auditor needs no recovery: whatever checkpoint is there, its tiles are too."""
    if (state / "log/checkpoint").exists():
        report = verify_log(state / "log", VKEY)
        assert report.verdict == "intact", report


def count_steps(state: Path) -> int:
    files = WatchedFiles(lambda step, name: None)

    async def scenario() -> None:
        await write_story(state, files, [], [])

    run(scenario)
    return files.steps


@pytest.mark.parametrize(
    ("count", "error", "stride"),
    [(1, errno.EIO, 4), (2, errno.ENOSPC, 5), (7, errno.EIO, 7), (10_000, errno.ENOSPC, 5)],
    ids=["once", "twice", "seven-times", "for-ever"],
)
def test_failed_system_call_loses_nothing_acknowledged(place: Path, count: int, error: int, stride: int) -> None:
    (place / "counting").mkdir()
    steps = count_steps(place / "counting")
    for first in (*range(1, 50), *range(50, steps + 1, stride)):
        state = place / f"at-{first}"
        state.mkdir()
        acknowledged: list[int] = []
        refused: list[int] = []
        files = FailingFiles(first, count, error)

        async def scenario(state=state, files=files, acknowledged=acknowledged, refused=refused) -> None:
            with suppress(OSError, Fault):  # the process ends; the supervisor starts another
                await write_story(state, files, acknowledged, refused)

        run(scenario)
        found = recovered_numbers(state)
        assert found == sorted(set(found)), (first, files.failed)
        assert set(acknowledged) <= set(found), (first, files.failed)
        shutil.rmtree(state)


def test_single_failure_while_running_is_answered_and_overcome(place: Path) -> None:
    """After one failed call the same process goes on: at most one commit is refused, and what was refused is absent."""
    (place / "counting").mkdir()
    opened_after = 40
    for first in range(opened_after, count_steps(place / "counting") + 1, 2):
        state = place / f"at-{first}"
        state.mkdir()
        acknowledged: list[int] = []
        refused: list[int] = []
        files = FailingFiles(first, 1)

        async def scenario(state=state, files=files, acknowledged=acknowledged, refused=refused) -> None:
            await write_story(state, files, acknowledged, refused)

        run(scenario)
        assert len(acknowledged) + len(refused) == sum(GROUPS)
        assert refused == list(range(refused[0], refused[0] + len(refused))) if refused else True
        assert len(refused) <= max(GROUPS)
        assert recovered_numbers(state) == sorted(acknowledged)
        shutil.rmtree(state)


def test_killed_before_any_system_call_loses_nothing_acknowledged(place: Path) -> None:
    """A copy of the directory before each call is what ``kill -9`` at that moment leaves."""
    state, copies = place / "state", place / "copies"
    state.mkdir()
    copies.mkdir()
    acknowledged: list[int] = []
    at: dict[int, tuple[int, ...]] = {}

    def copy(step: int, name: str) -> None:
        shutil.copytree(state, copies / str(step))
        at[step] = tuple(acknowledged)

    async def scenario() -> None:
        await write_story(state, WatchedFiles(copy), acknowledged, [])

    run(scenario)
    for step, known in at.items():
        assert_readable_as_it_stands(copies / str(step))
        assert set(known) <= set(recovered_numbers(copies / str(step))), step
    assert len(at) > 100


@pytest.mark.parametrize("torn", [False, True], ids=["nothing-unsynced", "half-of-the-unsynced"])
def test_power_loss_before_any_system_call_loses_nothing_acknowledged(place: Path, torn: bool) -> None:
    """Only what was synced, under names that were synced, is there afterwards."""
    state, copies = place / "state", place / "copies"
    state.mkdir()
    copies.mkdir()
    acknowledged: list[int] = []
    at: dict[int, tuple[int, ...]] = {}

    def lose(step: int, name: str) -> None:
        files.materialise(copies / str(step), torn=torn)
        at[step] = tuple(acknowledged)

    files = PowerLossFiles(state, lose)

    async def scenario() -> None:
        await write_story(state, files, acknowledged, [])

    run(scenario)
    for step, known in at.items():
        assert_readable_as_it_stands(copies / str(step))
        found = recovered_numbers(copies / str(step))
        assert set(known) <= set(found), step
    assert max(len(known) for known in at.values()) == sum(GROUPS)


def test_failed_sync_is_never_trusted_again(place: Path) -> None:
    """fsyncgate: after a failed sync the next append goes to a fresh file, with everything acknowledged in it."""

    class SyncFails(Files):
        def __init__(self) -> None:
            self.fail = False
            self.syncs: list[int] = []

        def datasync(self, fd: int) -> None:
            self.syncs.append(fd)
            if self.fail:
                self.fail = False
                raise OSError(errno.EIO, "lost")
            super().datasync(fd)

    async def scenario() -> None:
        files = SyncFails()
        journal = open_journal(place, files=files)
        await append_one(journal, LOG_OPENED)
        inode = (place / "log/wal").stat().st_ino
        files.fail = True
        assert not isinstance((await append_all(journal, [small(1)]))[0], Written)
        assert isinstance((await append_all(journal, [small(2)]))[0], Written)
        assert (place / "log/wal").stat().st_ino != inode
        await journal.close()

    run(scenario)
    assert recovered_numbers(place) == [2]


def test_commit_that_fails_unexpectedly_is_answered_and_its_file_not_trusted_again(place: Path) -> None:
    class Surprising(Files):
        surprise = False

        def datasync(self, fd: int) -> None:
            if self.surprise:
                self.surprise = False
                raise RuntimeError("nobody thought of this")
            super().datasync(fd)

    async def scenario() -> None:
        files = Surprising()
        journal = open_journal(place, files=files)
        await append_one(journal, LOG_OPENED)
        inode = (place / "log/wal").stat().st_ino
        files.surprise = True
        assert (
            await append_all(journal, [small(1), small(2)])
            == [NotWritten("the log cannot be written: nobody thought of this")] * 2
        )
        assert isinstance((await append_all(journal, [small(3)]))[0], Written)
        assert (place / "log/wal").stat().st_ino != inode
        await journal.close()

    run(scenario)
    assert recovered_numbers(place) == [3]


def test_publishing_that_fails_does_not_stop_appends_and_catches_up(place: Path) -> None:
    class NoTiles(Files):
        broken = True

        def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            if self.broken and "tile" in path.parts:
                raise OSError(errno.ENOSPC, "full")
            return super().open(path, flags, mode)

    async def scenario() -> None:
        files = NoTiles()
        journal = open_journal(place, files=files)
        await append_one(journal, LOG_OPENED)
        publishing = asyncio.create_task(journal.publish_forever(0.01))
        for number in range(3):
            assert isinstance((await append_all(journal, [small(number)]))[0], Written)
            await asyncio.sleep(0.02)
        assert not (place / "log/checkpoint").exists()
        files.broken = False
        while not (place / "log/checkpoint").exists():
            await asyncio.sleep(0.01)
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await journal.close()

    run(scenario)
    assert recovered_numbers(place) == [0, 1, 2]
