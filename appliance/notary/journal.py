"""The append-only log: group commit on the event loop, one worker that publishes, one truth.

An entry passes three states. What a loss of power takes:

==========  ====================================================  ================================================
state       means                                                 a crash loses
==========  ====================================================  ================================================
queued      accepted, has no index yet                            the record; nobody was told that it exists
durable     in the write-ahead file, synced; ``done`` was called  nothing
published   in bundles and tiles under a signed checkpoint        nothing; and an auditor can tell if it is removed
==========  ====================================================  ================================================

An *urgent* record is committed with all that came in the same turn of the loop; one that is not rides on the next
commit, at the latest after 50 ms. Both are answered after the sync that covers them, never before: an answer is a
promise. The loop stands still for a sync. Nobody could be answered sooner, what arrives meanwhile waits in the sockets
and is the next group, so a hundred callers share a handful of syncs; and a thread that syncs for the loop costs more
than all the rest of a record.

When a commit fails (disk full, I/O error, read-only), every record of its group is answered with ``NotWritten``, and
the next append tries again: the log recovers by itself once the disk does. Nothing is dropped silently and nothing
is retried behind the caller's back. After a failed *sync* the file is rewritten first (``notary.wal`` says why). A
record that was answered ``NotWritten`` can come back only if the machine dies before the file was cut.

Trusts: that one event loop's thread calls it; ``done`` callbacks do not raise.
Promises: indexes are contiguous, in the order of submission; ``done`` is called exactly once for each record, in the
    loop's thread, before any publication covers it. Memory is bounded by the ``MAX_`` constants below.
Not here: which records make sense (``notary.desk``); the file's format and its failures (``notary.wal``).
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from appliance.core.records import Entry, Record, encode_entry_around, encode_record, read_record
from appliance.core.refusals import Fault
from appliance.core.tree import MAX_ENTRY_BYTES, leaf_hash
from appliance.notary.checkpoint import Checkpointer
from appliance.notary.clock import Clock
from appliance.notary.files import Files
from appliance.notary.publish import Publisher
from appliance.notary.recover import Recovered, lock_directory, recover
from appliance.notary.wal import WriteAhead

MAX_QUEUED_RECORDS: Final = 8192
MAX_QUEUED_BYTES: Final = 32 * 1024 * 1024
MAX_UNPUBLISHED_BYTES: Final = 128 * 1024 * 1024
"""Durable entries are kept in memory until a full bundle holds them; if publishing fails for long, appends stop."""

MAX_RECORD_BYTES: Final = MAX_ENTRY_BYTES - 512
"""An entry adds sequence number, times and boot id to its record."""

_GROUP_RECORDS: Final = 1024
_GROUP_BYTES: Final = 4 * 1024 * 1024
_LAZY_SECONDS: Final = 0.05
_COMPACT_ENTRIES: Final = 2048

_UNENCODABLE: Final = (TypeError, ValueError, RecursionError, NotImplementedError, msgspec.MsgspecError)
"""What msgspec raises for a value that has no JSON form, or whose JSON it would not read again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """Durable, at this index."""

    index: int
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class NotWritten:
    """Not in the log. ``detail`` is for the operator; ``permanent`` when the same record will never be accepted."""

    detail: str
    permanent: bool = False


Outcome = Written | NotWritten
Done = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    record: bytes
    done: Done


class Journal:
    """``oldest_needed`` gives the index from which a starting notary must read again (None: from the end)."""

    def __init__(self, files: Files, directory: Path, checkpointer: Checkpointer, clock: Clock) -> None:
        """Locks, recovers and rewrites the log; blocks while it does. Raises ``Fault`` or ``OSError``."""
        self._files = files
        self._clock = clock
        self._lock_fd = lock_directory(files, directory)
        self._wal = WriteAhead(files, directory / "wal")
        try:
            self.recovered: Recovered = recover(directory, self._wal, checkpointer)
            base = self.recovered.tree.size
            first_replayed = base + len(self.recovered.entries) - len(self.recovered.replay)
            self._wal.rewrite(base, min(base, first_replayed), self.recovered.entries)
        except BaseException:
            self._wal.close()
            files.close(self._lock_fd)
            raise
        self._publisher = Publisher(files, directory, checkpointer, self.recovered.tree)
        self.oldest_needed: Callable[[], int | None] = lambda: None

        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._commit_soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._base = base
        self._compact_at = base + _COMPACT_ENTRIES
        self._entries = list(self.recovered.entries)
        self._leaves = list(self.recovered.leaves)
        self._entry_bytes = sum(map(len, self._entries))
        self._last_monotonic_ms = _last_monotonic_ms(self.recovered.replay, clock.boot_id)
        self._published_size = -1
        self._publication: asyncio.Future[int] | None = None
        self._grown = asyncio.Event()
        self._publishing = ThreadPoolExecutor(1, thread_name_prefix="journal-publish")

    @property
    def size(self) -> int:
        """Number of durable entries."""
        return self._base + len(self._entries)

    # --- appending --------------------------------------------------------------------------------------------------

    def submit(self, record: Record, done: Done, *, urgent: bool, encoded: bytes | None = None) -> None:
        """Queues a record. ``done`` may be called before this returns, when the record cannot be accepted at all.

        ``encoded`` are the bytes from which ``read_record`` made it, where it came from another process.
        """
        data = self._refusal() or _judged(encoded or _encoded(record))
        if isinstance(data, NotWritten):
            done(data)
            return
        self._queue.append(_Waiting(data, done))
        self._queued_bytes += len(data)
        self._schedule(urgent=urgent)

    async def append(self, record: Record) -> Written:
        """Writes one record urgently. Raises ``Fault`` when it could not be written."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.submit(record, lambda outcome: None if future.done() else future.set_result(outcome), urgent=True)
        outcome = await future
        if isinstance(outcome, NotWritten):
            raise Fault(outcome.detail)
        return outcome

    def _refusal(self) -> NotWritten | None:
        """Why no record at all is queued now."""
        if self._closed:
            return NotWritten("the log is closed")
        if len(self._queue) >= MAX_QUEUED_RECORDS or self._queued_bytes >= MAX_QUEUED_BYTES:
            return NotWritten("the log's queue is full")
        if self._entry_bytes >= MAX_UNPUBLISHED_BYTES:
            return NotWritten("the log cannot be published")
        return None

    def _schedule(self, *, urgent: bool) -> None:
        if self._commit_soon:
            return
        if urgent or len(self._queue) >= _GROUP_RECORDS:
            self._commit_soon = True
            asyncio.get_running_loop().call_soon(self._commit)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LAZY_SECONDS, self._commit)

    def _commit(self) -> None:
        """Writes, syncs and answers one group."""
        self._commit_soon = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._queue:
            return
        group = self._take_group()
        try:
            self._rewrite_if_due()
            entries = self._entries_of(group)
            self._wal.append(self.size, entries)
        except Exception as error:  # noqa: BLE001 - whatever it is, the group is not in the log and is told so
            self._answer_not_written(group, error)
        else:
            for waiting, entry in zip(group, entries, strict=True):
                waiting.done(self._note(entry))
        if self._queue:
            self._schedule(urgent=True)

    def _take_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size_bytes = 0
        while self._queue and len(group) < _GROUP_RECORDS and size_bytes < _GROUP_BYTES:
            waiting = self._queue.popleft()
            size_bytes += len(waiting.record)
            group.append(waiting)
        self._queued_bytes -= size_bytes
        return group

    def _rewrite_if_due(self) -> None:
        """Raises ``OSError`` when the file cannot be used as it is and no other can be written."""
        if not self._wal.suspect and self._base < self._compact_at:
            return
        oldest = self.oldest_needed()
        try:
            self._wal.rewrite(self._base, self._base if oldest is None else min(oldest, self._base), self._entries)
        except OSError:
            if self._wal.suspect:
                raise
            # a mere compaction: the longer file is still good
        self._compact_at = self._base + _COMPACT_ENTRIES

    def _entries_of(self, group: Sequence[_Waiting]) -> list[bytes]:
        """One look at the clock for all that become durable together."""
        time, monotonic_ms = self._clock.now()
        self._last_monotonic_ms = max(monotonic_ms, self._last_monotonic_ms)
        return [
            encode_entry_around(
                waiting.record,
                seq=seq,
                time=time,
                boot_id=self._clock.boot_id,
                monotonic_ms=self._last_monotonic_ms,
            )
            for seq, waiting in enumerate(group, self.size)
        ]

    def _answer_not_written(self, group: Sequence[_Waiting], error: Exception) -> None:
        if not isinstance(error, OSError):
            self._wal.suspect = True  # we do not know how far it came; fresh pages will
            _log.error("a commit of the log failed", exc_info=error)
        detail = f"the log cannot be written: {getattr(error, 'strerror', None) or error}"
        _log.warning("%s (%d records)", detail, len(group))
        for waiting in group:
            waiting.done(NotWritten(detail))

    def _note(self, entry: bytes) -> Written:
        written = Written(self.size, leaf_hash(entry))
        self._entries.append(entry)
        self._leaves.append(written.leaf_hash)
        self._entry_bytes += len(entry)
        self._grown.set()
        return written

    # --- publishing -------------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        """Publishes and signs what is durable now, if that is more than last time.

        Raises ``OSError`` when a file cannot be written; the next call tries again. ``Fault`` is final: the log
        contradicts what was signed. A caller that is cancelled does not stop the worker; the next call waits for it.
        """
        while self._publication is not None:
            await asyncio.wait((self._publication,))
        self._grown.clear()
        size = self.size
        if size == self._published_size:
            return
        self._publication = asyncio.get_running_loop().run_in_executor(
            self._publishing, self._publisher.publish, self._base, tuple(self._entries), tuple(self._leaves)
        )
        self._publication.add_done_callback(lambda job: self._published(size, job))
        await asyncio.shield(self._publication)

    def _published(self, size: int, job: "asyncio.Future[int]") -> None:
        """Forgets the entries that full bundles hold now; whether or not anybody still waits for the publication."""
        self._publication = None
        if job.exception() is not None:
            return  # whoever waits is told; nothing has changed
        boundary = job.result()
        self._published_size = size
        full = boundary - self._base
        self._entry_bytes -= sum(map(len, self._entries[:full]))
        del self._entries[:full], self._leaves[:full]
        self._base = boundary

    async def publish_forever(self, interval_seconds: float) -> None:
        """Publishes at most once per interval while there is something new. Raises ``Fault`` as ``publish`` does."""
        while True:
            await self._grown.wait()
            try:
                await self.publish()
            except OSError as error:
                _log.warning("the log cannot be published, retrying: %s", error.strerror or error)
                self._grown.set()
            await asyncio.sleep(interval_seconds)

    async def close(self) -> None:
        """Takes no more records, answers every one that was queued, publishes, and gives the lock back.

        Raises ``OSError`` or ``Fault`` when the last publication failed; everything durable stays durable.
        """
        self._closed = True
        while self._queue:
            self._commit()
        try:
            await self.publish()
        finally:
            self._publishing.shutdown()
            self._wal.close()
            os.close(self._lock_fd)


def _encoded(record: Record) -> bytes | NotWritten:
    """What a later start could not read again is never written."""
    try:
        data = encode_record(record)
        read_record(data)
    except _UNENCODABLE as error:
        return NotWritten(f"the record cannot be written: {error}", permanent=True)
    return data


def _judged(data: bytes | NotWritten) -> bytes | NotWritten:
    if isinstance(data, bytes) and len(data) > MAX_RECORD_BYTES:
        return NotWritten("the record is too large", permanent=True)
    return data


def _last_monotonic_ms(replay: Sequence[tuple[Entry, bytes]], boot_id: str) -> int:
    """So that time within one boot never runs backwards, not even for a process in another time namespace."""
    if not replay or replay[-1][0].boot_id != boot_id:
        return 0
    return replay[-1][0].monotonic_ms
