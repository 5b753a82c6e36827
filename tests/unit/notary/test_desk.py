"""Openings and closings that must not be written twice, or never."""

import asyncio
import errno
from pathlib import Path

import pytest

from appliance.audit.fsck import verify_log
from appliance.audit.query import read_entries
from appliance.core.records import Closed
from appliance.notary import desk as desk_module
from appliance.notary.desk import Desk
from appliance.notary.files import Files
from appliance.notary.journal import Journal, NotWritten, Outcome, Written
from tests.support.audit_log import LOG_OPENED, VKEY, append_all, open_journal, run
from tests.support.audit_records import closed, model_loaded, opened, policy_loaded, small


async def start(state: Path, files: Files | None = None) -> tuple[Journal, Desk]:
    journal = open_journal(state, files=files)
    await append_all(journal, [LOG_OPENED, policy_loaded(), model_loaded()])
    return journal, Desk(journal, journal.recovered.replay)


async def submit(desk: Desk, record: object) -> Outcome:
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    desk.submit(record, future.set_result, urgent=True)
    return await future


async def all_closed(desk: Desk) -> None:
    while desk.open_requests:
        await asyncio.sleep(0.005)


def closings(state: Path) -> list[tuple[str, str]]:
    return [
        (e.record.request_id, e.record.outcome) for e in read_entries(state / "log") if isinstance(e.record, Closed)
    ]


def test_request_is_opened_once_and_closed_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        assert await submit(desk, closed("r")) == NotWritten("the request was never opened", permanent=True)
        first = await submit(desk, opened("r"))
        assert isinstance(first, Written)
        assert await submit(desk, opened("r")) == NotWritten("the request id was used before", permanent=True)
        ended = await submit(desk, closed("r"))
        assert isinstance(ended, Written)
        assert await submit(desk, closed("r")) == ended
        assert await submit(desk, opened("r")) == NotWritten("the request id was used before", permanent=True)
        await journal.close()

    run(scenario)
    assert closings(tmp_path) == [("r", "completed")]


def test_simultaneous_closings_write_one_record_and_all_are_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        await submit(desk, opened("r"))
        answers = await asyncio.gather(*(submit(desk, closed("r")) for _ in range(5)))
        assert isinstance(answers[0], Written)
        assert len(set(answers)) == 1
        await journal.close()

    run(scenario)
    assert len(closings(tmp_path)) == 1


def test_closing_before_the_opening_is_durable_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        opening = asyncio.create_task(submit(desk, opened("r")))
        await asyncio.sleep(0)
        assert await submit(desk, closed("r")) == NotWritten("the request is still being opened")
        assert isinstance(await opening, Written)
        await journal.close()

    run(scenario)


@pytest.mark.parametrize("request_id", ["", "x" * 65, "a b", "../x", "ä", "a\n"])
def test_malformed_request_id_is_refused(tmp_path: Path, request_id: str) -> None:
    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        assert await submit(desk, opened(request_id)) == NotWritten("the request id is malformed", permanent=True)
        await journal.close()

    run(scenario)


def test_closing_repeated_after_a_restart_is_answered_with_the_first_index(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        await submit(desk, opened("r"))
        first = await submit(desk, closed("r"))
        await journal.close()
        journal, desk = await start(tmp_path)
        assert await submit(desk, closed("r")) == first
        await journal.close()

    run(scenario)
    assert len(closings(tmp_path)) == 1


def test_what_a_dead_gateway_left_open_is_closed_and_what_lives_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        for name in ("dead", "alive"):
            await submit(desk, opened(name))
        opening = asyncio.create_task(submit(desk, opened("late")))
        await asyncio.sleep(0)
        assert desk.close_lost(frozenset({"alive"}), "gone") == 2
        assert isinstance(await opening, Written)
        while desk.open_requests != {"alive"}:
            await asyncio.sleep(0.005)
        assert isinstance(await submit(desk, closed("alive")), Written)
        await journal.close()

    run(scenario)
    assert closings(tmp_path) == [("dead", "gateway-lost"), ("late", "gateway-lost"), ("alive", "completed")]
    assert verify_log(tmp_path / "log", VKEY).verdict == "intact"


def test_open_requests_are_known_again_after_a_crash(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        await submit(desk, opened("r1"))
        await submit(desk, opened("r2"))
        await submit(desk, closed("r1"))
        await append_all(journal, [small(n) for n in range(600)])
        await journal.close()
        journal, desk = await start(tmp_path)
        assert desk.open_requests == {"r2"}
        desk.close_lost(frozenset(), "gone")
        await all_closed(desk)
        await journal.close()

    run(scenario)
    assert closings(tmp_path) == [("r1", "completed"), ("r2", "gateway-lost")]


def test_lost_request_is_closed_when_the_disk_works_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "_RETRY_SECONDS", 0.01)

    class Failing(Files):
        failing = False

        def datasync(self, fd: int) -> None:
            if self.failing:
                raise OSError(errno.EIO, "broken")
            super().datasync(fd)

    async def scenario() -> None:
        files = Failing()
        journal, desk = await start(tmp_path, files)
        await submit(desk, opened("r"))
        files.failing = True
        assert isinstance(await submit(desk, opened("never")), NotWritten)
        assert isinstance(await submit(desk, closed("r")), NotWritten)
        desk.close_lost(frozenset(), "gone")
        await asyncio.sleep(0.1)
        assert desk.open_requests == {"r"}
        files.failing = False
        await all_closed(desk)
        assert await submit(desk, closed("never")) == NotWritten("the request was never opened", permanent=True)
        await journal.close()

    run(scenario)
    assert closings(tmp_path) == [("r", "gateway-lost")]


def test_memory_of_requests_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_OPEN", 3)
    monkeypatch.setattr(desk_module, "MAX_CLOSED", 2)

    async def scenario() -> None:
        journal, desk = await start(tmp_path)
        for number in range(3):
            assert isinstance(await submit(desk, opened(f"r{number}")), Written)
        assert await submit(desk, opened("r3")) == NotWritten("too many requests are open")
        for number in range(3):
            assert isinstance(await submit(desk, closed(f"r{number}")), Written)
        assert await submit(desk, closed("r0")) == NotWritten("the request was never opened", permanent=True)
        assert isinstance(await submit(desk, closed("r2")), Written)
        await journal.close()

    run(scenario)
