"""What a verified log cannot hide."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.audit.fsck import LogReport, verify_log
from appliance.audit.query import Query, query
from appliance.core.clients import Party
from appliance.core.note import Checkpoint, Signature, format_note
from appliance.core.records import Entry, LogClosed, Record, RefusalSummary, TokenIssued, decode_entry, encode_entry
from appliance.core.tree import TileTree, bundle_path, decode_bundle, encode_bundle, leaf_hash
from appliance.core.values import Digest, Obligations
from appliance.notary.checkpoint import verifier_key
from tests.support.audit_log import (
    KEY,
    LOG_OPENED,
    ORIGIN,
    OTHER_KEY,
    VKEY,
    append_all,
    make_log,
    open_journal,
    run,
    written,
)
from tests.support.audit_records import (
    ADAPTED,
    RUNNER,
    THROUGH,
    FakeClock,
    closed,
    model_loaded,
    opened,
    policy_loaded,
    small,
)

ON_DISK = msgspec.structs.replace(RUNNER, seal_mode="ro-store")
STRICT = msgspec.structs.replace(opened("r").decision, obligations=Obligations(minimum_seal="verity"))
STORY: list[Record] = [
    policy_loaded(),
    model_loaded(),
    opened("r1"),
    closed("r1"),
    opened("r2"),
    LogClosed(),
]


def write_log(directory: Path, entries: Sequence[bytes], *, key: Ed25519PrivateKey = KEY) -> Path:
    """A log without a write-ahead file, as a forger who holds the key would write it."""
    tree = TileTree()
    tiles = [tile for entry in entries for tile in tree.append(leaf_hash(entry))]
    written = {tile.path: tile.data for tile in (*tiles, *tree.partials())}
    for start in range(0, len(entries), 256):
        bundle = entries[start : start + 256]
        written[bundle_path(start // 256, len(bundle))] = encode_bundle(bundle)
    text = Checkpoint(origin=ORIGIN, size=len(entries), root=tree.root()).text
    verifier = verifier_key(ORIGIN, key)
    note = format_note(text, (Signature(name=ORIGIN, key_id=verifier.key_id, signature=key.sign(text.encode())),))
    written["checkpoint"] = note.encode()
    written["log.vkey"] = f"{verifier}\n".encode()
    for name, data in written.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def entries_of(records: Sequence[Record], **changes: object) -> list[bytes]:
    clock = FakeClock()
    result = []
    for seq, record in enumerate(records):
        time, monotonic_ms = clock.now()
        fields = {"v": 1, "seq": seq, "time": time, "boot_id": "b", "monotonic_ms": monotonic_ms, "record": record}
        result.append(encode_entry(Entry(**fields)))
    return result


def rewrite(data: bytes, **changes: object) -> bytes:
    entry = decode_entry(data)
    return encode_entry(Entry(**({name: getattr(entry, name) for name in entry.__struct_fields__} | changes)))


def problems(report: LogReport) -> list[tuple[int | None, str]]:
    return [(remark.seq, remark.what) for remark in report.problems]


def test_honest_log_is_intact(tmp_path: Path) -> None:
    report = verify_log(make_log(tmp_path, STORY), VKEY)
    assert report.verdict == "intact"
    assert report.exit_code == 0
    assert (report.origin, report.size, report.unsigned_tail) == (ORIGIN, 7, 0)
    assert report.open_requests == ("r2",)
    assert report.events["opened"] == 2
    assert report.findings == ()
    assert "given by the auditor" in report.key


def test_key_found_beside_the_log_is_said_to_prove_less(tmp_path: Path) -> None:
    log = write_log(tmp_path, entries_of([LOG_OPENED]))
    report = verify_log(log, None)
    assert report.verdict == "intact"
    assert "not who wrote it" in report.key


def test_every_flipped_byte_of_a_small_log_is_found(tmp_path: Path) -> None:
    log = make_log(tmp_path, STORY)
    paths = [p for p in log.rglob("*") if p.is_file() and p.name not in ("lock", "log.vkey")]
    assert {p.relative_to(log).parts[0] for p in paths} == {"checkpoint", "tile", "wal"}
    for path in paths:
        data = path.read_bytes()
        for position in range(0, len(data), 1 if len(data) < 1000 else 13):
            changed = bytearray(data)
            changed[position] ^= 1
            path.write_bytes(changed)
            report = verify_log(log, VKEY)
            assert report.exit_code in (1, 3), (path, position, report)
        path.write_bytes(data)
    assert verify_log(log, VKEY).verdict == "intact"


def test_every_missing_file_is_found(tmp_path: Path) -> None:
    log = make_log(tmp_path, [*STORY, *(small(n) for n in range(300))])
    for path in [p for p in log.rglob("*") if p.is_file() and p.name not in ("lock", "wal")]:
        kept = path.read_bytes()
        path.unlink()
        assert verify_log(log, VKEY).verdict == "broken", path
        path.write_bytes(kept)
    assert verify_log(log, VKEY).verdict == "intact"


def test_log_without_its_write_ahead_file_says_what_it_cannot_see(tmp_path: Path) -> None:
    log = make_log(tmp_path, STORY)
    (log / "wal").unlink()
    report = verify_log(log, VKEY)
    assert report.verdict == "intact"
    assert "cannot be seen" in report.findings[0].what


def test_changed_entry_is_named(tmp_path: Path) -> None:
    log = make_log(tmp_path, [*STORY, *(small(n) for n in range(300))])
    path = log / bundle_path(0)
    entries = decode_bundle(path.read_bytes())
    entries[77] = rewrite(entries[77], record=small(999))
    path.write_bytes(encode_bundle(entries))
    report = verify_log(log, VKEY)
    assert report.exit_code == 1
    assert (77, "the entries and hash 77 of tile/0/000 differ") in problems(report)


def test_entry_cut_from_or_moved_within_a_bundle_is_found(tmp_path: Path) -> None:
    log = make_log(tmp_path, STORY)
    path = log / bundle_path(0, 7)
    entries = decode_bundle(path.read_bytes())
    for changed in (entries[:-1], entries[:3] + entries[4:] + entries[3:4], [*entries, entries[-1]]):
        path.write_bytes(encode_bundle(changed))
        assert verify_log(log, VKEY).verdict == "broken"


def test_shorter_log_is_a_rollback_against_a_held_checkpoint(tmp_path: Path) -> None:
    entries = entries_of([LOG_OPENED, *(small(n) for n in range(20))])
    held = (write_log(tmp_path / "long", entries) / "checkpoint").read_bytes()
    log = write_log(tmp_path / "short", entries[:10])
    assert verify_log(log, VKEY).verdict == "intact"
    report = verify_log(log, VKEY, held_checkpoint=held)
    assert (report.verdict, report.exit_code) == ("rolled-back", 2)
    assert "10 signed entries; the held checkpoint 21" in report.findings[-1].what


def test_rewritten_history_signed_again_with_the_current_key_fails_against_a_held_checkpoint(tmp_path: Path) -> None:
    entries = entries_of([LOG_OPENED, *(small(n) for n in range(20))])
    held = (write_log(tmp_path / "before", entries[:10]) / "checkpoint").read_bytes()
    assert verify_log(write_log(tmp_path / "honest", entries), VKEY, held_checkpoint=held).verdict == "intact"
    entries[4] = rewrite(entries[4], record=small(4711))
    forged = write_log(tmp_path / "forged", entries)
    assert verify_log(forged, VKEY).verdict == "intact"
    report = verify_log(forged, VKEY, held_checkpoint=held)
    assert report.exit_code == 2
    assert "a fork" in report.findings[-1].what


def test_log_signed_by_another_key_is_not_accepted(tmp_path: Path) -> None:
    log = write_log(tmp_path, entries_of([LOG_OPENED]), key=OTHER_KEY)
    assert verify_log(log, VKEY).exit_code == 3
    assert verify_log(log, "nonsense").exit_code == 3
    (log / "log.vkey").unlink()
    assert verify_log(log, None).exit_code == 3


def test_held_checkpoint_by_another_key_is_not_accepted(tmp_path: Path) -> None:
    entries = entries_of([LOG_OPENED])
    held = (write_log(tmp_path / "a", entries, key=OTHER_KEY) / "checkpoint").read_bytes()
    log = write_log(tmp_path / "b", entries)
    assert verify_log(log, VKEY, held_checkpoint=held).verdict == "key-unknown"
    assert verify_log(log, VKEY, held_checkpoint=b"junk").verdict == "broken"


def test_empty_directory_is_not_intact(tmp_path: Path) -> None:
    assert verify_log(tmp_path, VKEY).verdict == "broken"
    assert verify_log(tmp_path / "nowhere", VKEY).verdict == "broken"


@pytest.mark.parametrize(
    ("records", "seq", "said"),
    [
        ([policy_loaded()], 0, "the first record is not log-opened"),
        ([LOG_OPENED, model_loaded(), opened("r")], 2, "was not loaded before"),
        ([LOG_OPENED, policy_loaded(), opened("r")], 2, "runner runner-1 was not recorded as loaded"),
        ([LOG_OPENED, closed("r")], 1, "request r was never opened"),
        ([LOG_OPENED, *STORY[:4], closed("r1")], 5, "request r1 was closed before"),
        ([LOG_OPENED, *STORY[:4], opened("r1")], 5, "request r1 was opened before"),
        ([LOG_OPENED, *STORY[:3], opened("r1")], 4, "request r1 was opened before"),
        (
            [
                LOG_OPENED,
                *STORY[:2],
                opened("r", runner=ON_DISK),
            ],
            3,
            "loaded with another model, signer or seal",
        ),
        (
            [LOG_OPENED, policy_loaded(), model_loaded(model=ADAPTED), opened("r")],
            3,
            "loaded with another model, signer or seal",
        ),
        (
            [LOG_OPENED, policy_loaded(), model_loaded(runner=ON_DISK), opened("r", runner=ON_DISK, decision=STRICT)],
            3,
            "opened with ro-store although policy demanded verity",
        ),
    ],
)
def test_log_that_does_not_explain_itself_is_broken(tmp_path: Path, records: list[Record], seq: int, said: str) -> None:
    report = verify_log(write_log(tmp_path, entries_of(records)), VKEY)
    assert report.verdict == "broken"
    assert [(remark.seq, said in remark.what) for remark in report.problems] == [(seq, True)]


def test_clock_set_back_is_a_finding_and_monotonic_time_running_back_a_problem(tmp_path: Path) -> None:
    entries = entries_of([LOG_OPENED, small(1), small(2)])
    entries[2] = rewrite(entries[2], time="2020-01-01T00:00:00.000Z")
    report = verify_log(write_log(tmp_path / "a", entries), VKEY)
    assert report.verdict == "intact"
    assert [(f.seq, "set back" in f.what) for f in report.findings[1:]] == [(2, True)]
    entries[2] = rewrite(entries[2], monotonic_ms=0)
    report = verify_log(write_log(tmp_path / "b", entries), VKEY)
    assert problems(report) == [(2, "monotonic time fell within one boot")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: rewrite(e, seq=9), "says that it is entry 9"),
        (lambda e: e.replace(b'"v":1', b'"v": 1'), "not in canonical form"),
        (lambda e: e[:-1], "not an entry"),
        (lambda e: b"[" * 60_000, "not an entry"),
        (lambda e: rewrite(e, time="yesterday"), "its time is malformed"),
    ],
)
def test_signed_but_malformed_entry_is_broken(tmp_path: Path, change: object, said: str) -> None:
    entries = entries_of([LOG_OPENED, small(1)])
    entries[1] = change(entries[1])  # type: ignore[operator]
    report = verify_log(write_log(tmp_path, entries), VKEY)
    assert report.verdict == "broken"
    assert report.problems[0].seq == 1
    assert said in report.problems[0].what


def test_unsigned_tail_is_counted_and_judged(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        written(await append_all(journal, [LOG_OPENED, *STORY[:3]]))
        await journal.publish()
        written(await append_all(journal, [closed("r1"), small(1)]))
        report = verify_log(tmp_path / "log", VKEY)
        assert (report.verdict, report.size, report.unsigned_tail) == ("intact", 4, 2)
        assert report.open_requests == ()
        written(await append_all(journal, [closed("never-opened")]))
        assert problems(verify_log(tmp_path / "log", VKEY)) == [(6, "request never-opened was never opened")]
        await journal.close()

    run(scenario)


def test_notary_that_ended_without_closing_is_a_finding(tmp_path: Path) -> None:
    make_log(tmp_path, [small(1)])
    report = verify_log(make_log(tmp_path, [LogClosed()], clock=FakeClock(wall_ms=1_800_000_000_000)), VKEY)
    assert report.verdict == "intact"
    assert [(f.seq, f.what) for f in report.findings] == [(2, "the notary before ended without closing the log")]


def test_no_false_alarm_beside_a_live_writer(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        written(await append_all(journal, [LOG_OPENED]))
        await journal.publish()

        async def write() -> None:
            for number in range(0, 3150, 350):
                written(await append_all(journal, [small(number + n) for n in range(350)]))
                await journal.publish()

        writer = asyncio.create_task(write())
        sizes = set()
        while not writer.done():
            report = await asyncio.to_thread(verify_log, tmp_path / "log", VKEY)
            assert report.verdict == "intact", report
            sizes.add(report.size)
        await writer
        await journal.close()
        assert len(sizes) > 3

    run(scenario, timeout_seconds=60)


def test_copy_made_file_by_file_of_a_live_log_is_intact_up_to_its_checkpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = open_journal(tmp_path)
        written(await append_all(journal, [LOG_OPENED, *(small(n) for n in range(100))]))
        await journal.publish()
        (tmp_path / "copy").mkdir()
        shutil.copy(tmp_path / "log/wal", tmp_path / "copy/wal")  # before everything else: the worst order
        written(await append_all(journal, [small(n) for n in range(100)]))
        await journal.publish()
        shutil.copytree(tmp_path / "log/tile", tmp_path / "copy/tile")
        shutil.copy(tmp_path / "log/checkpoint", tmp_path / "copy/checkpoint")
        await journal.close()
        report = verify_log(tmp_path / "copy", VKEY)
        assert (report.verdict, report.size) == ("intact", 201)
        assert "older than the checkpoint" in report.findings[0].what

    run(scenario)


def test_query_picks_by_event_subject_request_and_time(tmp_path: Path) -> None:
    async def one_after_the_other() -> None:  # records that are committed together have one time
        journal = open_journal(tmp_path)
        for record in (LOG_OPENED, *STORY):
            written(await append_all(journal, [record]))
        await journal.publish()
        await journal.close()

    run(one_after_the_other)
    log = tmp_path / "log"
    assert [e.seq for e in query(log, Query(event="opened"))] == [3, 5]
    assert [e.seq for e in query(log, Query(request_id="r1"))] == [3, 4]
    assert [e.seq for e in query(log, Query(subject="ada", event="opened"))] == [3, 5]
    assert list(query(log, Query(subject="eve"))) == []
    times = [e.time for e in query(log, Query())]
    assert [e.seq for e in query(log, Query(since=times[2], until=times[5]))] == [2, 3, 4]


def test_query_finds_whoever_acted_for_another(tmp_path: Path) -> None:
    issued = TokenIssued(
        subject="ada",
        client_id="agent",
        groups=(),
        models=(),
        token_id="2",
        token_sha256=Digest.of(b"2"),
        expires_at_seconds=1,
        acting=(Party(subject="agent"), Party(subject="behind")),
    )
    log = make_log(tmp_path, [policy_loaded(), model_loaded(), opened("r1", actor=THROUGH), closed("r1"), issued])
    assert verify_log(log, VKEY).verdict == "intact"
    assert [e.seq for e in query(log, Query(acting="webui"))] == [3]
    assert [e.seq for e in query(log, Query(acting="behind"))] == [3, 5]
    assert [e.seq for e in query(log, Query(acting="ada"))] == []
    assert [e.seq for e in query(log, Query(subject="webui"))] == []
    assert [e.seq for e in query(log, Query(subject="ada", acting="webui"))] == [3]


def test_refusals_that_were_only_counted_are_not_missing_from_a_query(tmp_path: Path) -> None:
    counted = RefusalSummary(interval_seconds=60, counts={"rate-limited": 7}, actor=THROUGH)
    strangers = RefusalSummary(interval_seconds=60, counts={"token-missing": 9})
    log = make_log(tmp_path, [policy_loaded(), counted, strangers])
    assert [e.seq for e in query(log, Query(subject="ada"))] == [2]
    assert [e.seq for e in query(log, Query(acting="webui"))] == [2]
