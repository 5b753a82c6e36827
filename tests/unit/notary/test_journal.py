"""What the journal must not lose, reorder, acknowledge early or buffer without end."""

import asyncio
import time
from pathlib import Path

import pytest

from appliance.audit.fsck import verify_log
from appliance.audit.query import read_entries
from appliance.core.records import LogOpened
from appliance.core.refusals import Fault
from appliance.core.tree import TileTree, leaf_hash
from appliance.notary import journal as journal_module
from appliance.notary.files import Files
from appliance.notary.journal import Journal, NotWritten, Outcome, Written
from appliance.notary.publish import Publisher
from tests.support.audit_log import (
    LOG_OPENED,
    OTHER_KEY,
    VKEY,
    append_all,
    checkpointer,
    failed,
    make_log,
    open_journal,
    run,
    written,
)
from tests.support.audit_records import FakeClock, opened, small


class CountingFiles(Files):
    def __init__(self) -> None:
        self.syncs = 0

    def datasync(self, fd: int) -> None:
        self.syncs += 1
        super().datasync(fd)


def test_hundred_durable_appends_share_syncs(tmp_path: Path) -> None:
    async def scenario() -> None:
        files = CountingFiles()
        journal = open_journal(tmp_path, files=files)
        await journal.append(LOG_OPENED)
        before = files.syncs
        outcomes = written(await append_all(journal, [small(n) for n in range(100)]))
        assert [outcome.index for outcome in outcomes] == list(range(1, 101))
        assert files.syncs - before < 10
        await journal.close()

    run(scenario)
    assert verify_log(tmp_path / "log", VKEY).verdict == "intact"


def test_nothing_is_acknowledged_before_its_sync(tmp_path: Path) -> None:
    answers: list[Outcome] = []
    answered_before_syncs: list[int] = []

    class WatchedFiles(Files):
        def datasync(self, fd: int) -> None:
            answered_before_syncs.append(len(answers))
            super().datasync(fd)
            assert len(answers) == answered_before_syncs[-1]

    async def scenario() -> None:
        journal = open_journal(tmp_path, files=WatchedFiles())
        await journal.append(LOG_OPENED)
        for number in range(1, 5):
            journal.submit(small(number), answers.append, urgent=number % 2 == 1)
        assert answers == []
        await journal.append(small(5))
        assert [answer.index for answer in written(answers)] == [1, 2, 3, 4]
        await journal.close()

    run(scenario)
    assert answered_before_syncs == [0, 0]


def test_lazy_record_alone_does_not_wait_for_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        journal.submit(LOG_OPENED, answer.set_result, urgent=False)
        assert not answer.done()
        assert isinstance(await asyncio.wait_for(answer, 5), Written)
        await journal.close()

    run(scenario)


def test_lazy_record_rides_with_an_urgent_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        files = CountingFiles()
        journal = open_journal(tmp_path, files=files)
        answers: list[Outcome] = []
        journal.submit(LOG_OPENED, answers.append, urgent=False)
        await journal.append(small(1))
        assert len(answers) == 1
        assert files.syncs == 1
        await journal.close()

    run(scenario)


def test_log_continues_after_a_restart_across_many_bundles(tmp_path: Path) -> None:
    async def scenario() -> None:
        for start in range(3):
            journal = open_journal(tmp_path)
            assert journal.size == start * 1001
            written(await append_all(journal, [LOG_OPENED, *(small(n) for n in range(1000))]))
            if start == 1:
                await journal.publish()
            await journal.close()

    run(scenario)
    entries = list(read_entries(tmp_path / "log"))
    assert [entry.seq for entry in entries] == list(range(3003))
    report = verify_log(tmp_path / "log", VKEY)
    assert (report.verdict, report.size, report.unsigned_tail) == ("intact", 3003, 0)


def test_write_ahead_file_does_not_grow_without_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        for _ in range(12):
            written(await append_all(journal, [LOG_OPENED, *(small(n) for n in range(499))]))
            await journal.publish()
        await journal.append(LOG_OPENED)
        assert (tmp_path / "log" / "wal").stat().st_size < 3000 * 250
        await journal.close()

    run(scenario)
    report = verify_log(tmp_path / "log", VKEY)
    assert (report.verdict, report.size) == ("intact", 6001)


def test_open_request_survives_compaction_and_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        journal.oldest_needed = lambda: 1
        written(await append_all(journal, [LOG_OPENED, opened("req-1"), *(small(n) for n in range(3000))]))
        await journal.publish()
        for _ in range(5):
            written(await append_all(journal, [small(n) for n in range(3000)]))
            await journal.publish()
        await journal.close()
        again = open_journal(tmp_path)
        assert again.recovered.tree.size > 12_000
        assert again.recovered.replay[0][0].seq <= 1
        assert any(entry.record == opened("req-1") for entry, _ in again.recovered.replay)
        await again.close()

    run(scenario)


def test_full_queue_refuses_instead_of_buffering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_QUEUED_RECORDS", 10)

    async def scenario() -> None:
        journal = open_journal(tmp_path)
        outcomes = await append_all(journal, [LOG_OPENED, *(small(n) for n in range(30))])
        refused = failed(outcomes)
        assert len(refused) == 21  # ten wait
        assert {each.detail for each in refused} == {"the log's queue is full"}
        await journal.close()

    run(scenario)


def test_unpublishable_log_stops_accepting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_UNPUBLISHED_BYTES", 1000)

    async def scenario() -> None:
        journal = open_journal(tmp_path)
        written(await append_all(journal, [LOG_OPENED, *(small(n) for n in range(300))]))
        assert await append_all(journal, [small(1)]) == [NotWritten("the log cannot be published")]
        await journal.publish()
        monkeypatch.setattr(journal_module, "MAX_UNPUBLISHED_BYTES", 100_000)
        written(await append_all(journal, [small(1)]))
        await journal.close()

    run(scenario)


def test_record_too_large_or_unreadable_is_refused_and_the_rest_of_its_group_is_not(tmp_path: Path) -> None:
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"x": deep}

    async def scenario() -> None:
        journal = open_journal(tmp_path)
        outcomes = await append_all(
            journal,
            [
                LOG_OPENED,
                opened("a", policy_input={"x": "y" * 70_000}),
                opened("b", policy_input=deep),
                opened("c", policy_input={"x": object()}),
                opened("d", reserved_tokens="many"),
                small(1),
            ],
        )
        assert [type(outcome) for outcome in outcomes] == [Written, *[NotWritten] * 4, Written]
        assert written([outcomes[0], outcomes[5]])[1].index == 1
        await journal.close()

    run(scenario)
    assert verify_log(tmp_path / "log", VKEY).verdict == "intact"


def test_two_notaries_on_one_log_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        with pytest.raises(Fault, match="another notary"):
            open_journal(tmp_path)
        await journal.append(LOG_OPENED)
        await journal.close()
        await open_journal(tmp_path).close()

    run(scenario)


def test_closed_journal_takes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        answers: list[Outcome] = []
        journal.submit(LOG_OPENED, answers.append, urgent=False)
        await journal.close()
        assert isinstance(answers[0], Written)
        with pytest.raises(Fault, match="closed"):
            await journal.append(small(1))

    run(scenario)


def reopen(state: Path) -> Journal:
    journal: list[Journal] = []

    async def scenario() -> None:
        journal.append(open_journal(state))
        await journal[0].close()

    run(scenario)
    return journal[0]


def test_torn_tail_is_cut_and_counted(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(n) for n in range(5)])
    with (log / "wal").open("ab") as file:
        file.write(b"\xffPWB torn")
    assert verify_log(log, VKEY).torn_tail_bytes == 9
    journal = reopen(tmp_path)
    assert journal.recovered.torn_bytes == 9
    assert journal.size == 6
    assert verify_log(log, VKEY).torn_tail_bytes == 0


def test_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(n) for n in range(5)])
    data = (log / "wal").read_bytes()
    (log / "wal").write_bytes(data[:-10])
    with pytest.raises(Fault, match="rolled back"):
        reopen(tmp_path)


def test_restored_older_log_is_refused_by_the_head_outside_it(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(n) for n in range(5)])
    older = {path: path.read_bytes() for path in log.rglob("*") if path.is_file()}
    make_log(tmp_path, [small(n) for n in range(5)])
    for path, data in older.items():
        path.write_bytes(data)
    with pytest.raises(Fault, match="rolled back"):
        reopen(tmp_path)


def test_other_entries_than_were_signed_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    log = make_log(tmp_path / "a", [small(n) for n in range(5)])
    other = make_log(tmp_path / "b", [small(n + 1) for n in range(5)])
    (log / "wal").write_bytes((other / "wal").read_bytes())
    with pytest.raises(Fault, match="not those that were signed"):
        reopen(tmp_path / "a")


@pytest.mark.parametrize(("missing", "said"), [("log/wal", "write-ahead file is missing"), ("head", "head is missing")])
def test_log_with_a_part_missing_is_refused(tmp_path: Path, missing: str, said: str) -> None:
    make_log(tmp_path, [small(n) for n in range(5)])
    (tmp_path / missing).unlink()
    with pytest.raises(Fault, match=said):
        reopen(tmp_path)


def test_missing_tile_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        for _ in range(6):
            written(await append_all(journal, [LOG_OPENED, *(small(n) for n in range(599))]))
            await journal.publish()
        await journal.close()

    run(scenario)
    (tmp_path / "log/tile/0/003").unlink()
    with pytest.raises(Fault, match="tile/0/003 cannot be read"):
        reopen(tmp_path)


def test_damage_in_the_middle_is_not_taken_for_a_torn_tail(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        for number in range(5):
            written(await append_all(journal, [LOG_OPENED, small(number)]))
        await journal.close()

    run(scenario)
    data = bytearray((tmp_path / "log/wal").read_bytes())
    data[300] ^= 1
    (tmp_path / "log/wal").write_bytes(data)
    with pytest.raises(Fault, match="damaged at byte"):
        reopen(tmp_path)


def test_log_is_not_continued_with_another_key_or_origin(tmp_path: Path) -> None:
    make_log(tmp_path, [small(1)])

    async def scenario() -> None:
        with pytest.raises(Fault, match="another key"):
            open_journal(tmp_path, key=OTHER_KEY)

    run(scenario)
    head = tmp_path / "head"
    head.write_text(head.read_text().replace("paddock.test", "else.test"))
    with pytest.raises(Fault, match="origin"):
        reopen(tmp_path)


def test_time_within_a_boot_does_not_run_backwards_across_a_restart(tmp_path: Path) -> None:
    make_log(tmp_path, [small(1)], clock=FakeClock(monotonic_ms=10**9))
    log = make_log(tmp_path, [small(2)], clock=FakeClock(monotonic_ms=0))
    times = [entry.monotonic_ms for entry in read_entries(log)]
    assert times == sorted(times)
    assert verify_log(log, VKEY).problems == ()


def test_entries_hold_what_was_given(tmp_path: Path) -> None:
    log = make_log(tmp_path, [small(3)])
    entries = list(read_entries(log))
    assert isinstance(entries[0].record, LogOpened)
    assert entries[1].record == small(3)
    assert entries[1].time.startswith("2026-09-")
    assert entries[1].boot_id == "boot-1"


def test_cancelled_publication_does_not_spoil_the_next(tmp_path: Path) -> None:
    """The worker goes on when its caller is cancelled, as at every stop of the notary."""

    class Slow(Files):
        def rename(self, old: Path, new: Path) -> None:
            time.sleep(0.002)
            super().rename(old, new)

    async def scenario() -> None:
        journal = open_journal(tmp_path, files=Slow())
        written(await append_all(journal, [LOG_OPENED, *(small(n) for n in range(700))]))
        publishing = asyncio.create_task(journal.publish_forever(0.01))
        await asyncio.sleep(0.005)
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        written(await append_all(journal, [small(n) for n in range(300)]))
        await journal.close()

    run(scenario)
    report = verify_log(tmp_path / "log", VKEY)
    assert (report.verdict, report.size) == ("intact", 1001)


def test_entries_that_do_not_continue_the_signed_log_are_never_signed(tmp_path: Path) -> None:
    entries = [b"entry %d" % n for n in range(600)]
    leaves = [leaf_hash(entry) for entry in entries]
    signing = checkpointer(tmp_path)
    publisher = Publisher(Files(), tmp_path / "log", signing, TileTree())
    assert publisher.publish(0, entries[:300], leaves[:300]) == 256
    before = (tmp_path / "log/checkpoint").read_bytes()
    for first, begin in ((0, 0), (256, 0), (256, 255), (300, 300)):
        with pytest.raises(Fault, match=r"do not follow|not those that were signed"):
            publisher.publish(first, entries[begin:], leaves[begin:])
    with pytest.raises(Fault, match="is smaller"):
        publisher.publish(256, entries[256:290], leaves[256:290])
    assert (tmp_path / "log/checkpoint").read_bytes() == before
    assert publisher.publish(256, entries[256:], leaves[256:]) == 512


def test_second_root_for_one_size_is_never_signed(tmp_path: Path) -> None:
    signing = checkpointer(tmp_path)
    (tmp_path / "log").mkdir()
    signing.sign(5, b"a" * 32)
    signing.sign(5, b"a" * 32)
    with pytest.raises(Fault, match="another root"):
        signing.sign(5, b"b" * 32)
    again = checkpointer(tmp_path)
    again.read()
    with pytest.raises(Fault, match="is smaller"):
        again.sign(4, b"b" * 32)
