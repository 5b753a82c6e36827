"""Reads entries and picks some.

Trusts: nothing; what it yields is *unverified* until ``audit.fsck`` has said ``intact`` of the same directory.
Promises: entries come in order, each once, also beside a live writer.
Not here: verification; access rights (whoever may read the directory may query it).
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from appliance.audit.reading import LogBroken, LogFiles
from appliance.core.note import NoteInvalid, parse_checkpoint, parse_note
from appliance.core.records import (
    Actor,
    Entry,
    Opened,
    Record,
    RefusalSummary,
    RefusedRequest,
    TokenIssued,
    decode_entry,
)
from appliance.core.tree import TILE_WIDTH
from appliance.core.values import Value


class Query(Value, frozen=True, kw_only=True):
    """Which entries are wanted; None means any. Times are RFC 3339 UTC as in the log: ``since`` <= time < ``until``,
    and may be cut short (``2026-11-22``). ``event`` is a record's tag, such as ``opened``. ``subject`` is for whom was
    asked, ``acting`` the subject of anybody who asked for another."""

    since: str | None = None
    until: str | None = None
    event: str | None = None
    subject: str | None = None
    acting: str | None = None
    request_id: str | None = None


def read_entries(directory: Path) -> Iterator[Entry]:
    """Every entry, the unsigned tail included. Raises ``LogBroken`` where the log cannot be read further."""
    for seq, data in enumerate(_raw_entries(LogFiles(directory))):
        try:
            yield decode_entry(data)
        except msgspec.MsgspecError as error:
            raise LogBroken(f"entry {seq} cannot be read: {error}", seq) from error


def query(directory: Path, wanted: Query) -> Iterator[Entry]:
    """Entries that match every condition. Raises ``LogBroken``."""
    return (entry for entry in read_entries(directory) if _matches(entry, wanted))


def _raw_entries(files: LogFiles) -> Iterator[bytes]:
    size = _claimed_size(files.checkpoint())
    wal = files.wal()
    if wal is None or wal.end < size:  # a copy without one, or with an older one: as far as the checkpoint goes
        yield from _bundles(files, size)
        return
    yield from _bundles(files, wal.base)
    yield from wal.entries


def _bundles(files: LogFiles, size: int) -> Iterator[bytes]:
    for index in range(size // TILE_WIDTH):
        yield from files.bundle(index)
    if width := size % TILE_WIDTH:
        yield from files.bundle(size // TILE_WIDTH, width)


def _claimed_size(unverified_note: bytes | None) -> int:
    if unverified_note is None:
        return 0
    try:
        return parse_checkpoint(parse_note(unverified_note).text).size
    except NoteInvalid as error:
        raise LogBroken(str(error)) from error


def _matches(entry: Entry, wanted: Query) -> bool:
    record = entry.record
    if wanted.since is not None and entry.time < wanted.since:
        return False
    if wanted.until is not None and entry.time >= wanted.until:
        return False
    if wanted.event is not None and record.__struct_config__.tag != wanted.event:
        return False
    if wanted.request_id is not None and getattr(record, "request_id", None) != wanted.request_id:
        return False
    if wanted.acting is not None and wanted.acting not in _acting(entry):
        return False
    return wanted.subject is None or _subject(entry) == wanted.subject


def _subject(entry: Entry) -> str | None:
    record = entry.record
    if isinstance(record, TokenIssued):
        return record.subject
    actor = _actor(record)
    return actor.subject if actor else None


def _acting(entry: Entry) -> list[str]:
    record = entry.record
    if isinstance(record, TokenIssued):
        return [one.subject for one in record.acting]
    actor = _actor(record)
    return [one.subject for one in actor.acting] if actor else []


def _actor(record: Record) -> Actor | None:
    """Refusals that were only counted have one too, unless they are those of strangers."""
    if isinstance(record, RefusalSummary):
        return record.actor or None
    return record.actor if isinstance(record, Opened | RefusedRequest) else None
