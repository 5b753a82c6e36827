"""A disk that is really full, and a directory that is really read-only."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.audit.fsck import verify_log
from appliance.core.refusals import Fault
from appliance.notary.journal import NotWritten, Written
from tests.support.audit_log import LOG_OPENED, VKEY, append_all, open_journal, run
from tests.support.audit_records import small


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], timeout=10, check=True)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def test_full_disk_refuses_and_space_that_returns_is_used(small_disk: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(small_disk)
        assert isinstance((await append_all(journal, [LOG_OPENED]))[0], Written)
        await journal.publish()
        ballast = small_disk / "ballast"
        fill(ballast)
        number, refusal = 1, None
        while refusal is None:  # the last page of the write-ahead file has some room left
            outcome = (await append_all(journal, [small(number)]))[0]
            if isinstance(outcome, NotWritten):
                refusal = outcome
            else:
                number += 1
            assert number < 100
        assert refusal.detail == "the log cannot be written: No space left on device"
        assert isinstance((await append_all(journal, [small(number)]))[0], NotWritten)
        with pytest.raises(OSError, match="No space"):
            await journal.publish()
        ballast.unlink()
        assert isinstance((await append_all(journal, [small(number)]))[0], Written)
        assert journal.size == number + 1
        await journal.close()
        report = verify_log(small_disk / "log", VKEY)
        assert (report.verdict, report.size) == ("intact", number + 1)

    run(scenario)


def test_full_disk_refuses_to_start(small_disk: Path) -> None:
    async def scenario() -> None:
        fill(small_disk / "ballast")
        with pytest.raises(OSError, match="No space"):
            open_journal(small_disk)
        (small_disk / "ballast").unlink()
        journal = open_journal(small_disk)
        assert isinstance((await append_all(journal, [LOG_OPENED]))[0], Written)
        await journal.close()

    run(scenario)


def test_read_only_disk_refuses_to_start_and_a_writable_one_goes_on(small_disk: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(small_disk)
        assert isinstance((await append_all(journal, [LOG_OPENED]))[0], Written)
        await journal.close()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], timeout=10, check=True)
        with pytest.raises((OSError, Fault)):
            open_journal(small_disk)
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], timeout=10, check=True)
        again = open_journal(small_disk)
        assert isinstance((await append_all(again, [small(1)]))[0], Written)
        await again.close()

    run(scenario)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_directory_refuses_to_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        await journal.append(LOG_OPENED)
        await journal.close()
        (tmp_path / "log").chmod(0o500)
        with pytest.raises(OSError, match="Permission denied"):
            open_journal(tmp_path)
        (tmp_path / "log").chmod(0o700)

    run(scenario)
