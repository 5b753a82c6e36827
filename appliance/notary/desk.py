"""Which records make sense, and which requests are open: every ``Opened`` gets exactly one ``Closed``.

A request id is *opening* (its record is queued), *open*, *closing* or *closed*. The desk refuses a second opening,
answers a repeated closing with the index of the first (the gateway asks again after a notary's restart), and closes
as ``gateway-lost`` what a dead gateway left open.

A gateway whose connection drops may come back with its answers still in flight, so nothing is closed then; the next
``Hello`` of a gateway says what is alive. After a notary's start a gateway has a short while to say so.

Trusts: its caller about who is speaking (``notary.main``); the journal's promises.
Promises: in the log, as far as this process writes it, each request id is opened at most once and closed at most
    once, after it was opened. The map holds all open requests, at most ``MAX_OPEN``, and the last ``MAX_CLOSED``.
Not here: roles and connections (``notary.main``).
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Iterable, Set
from typing import Final

from appliance.core.records import Closed, Entry, Opened, Record
from appliance.core.tree import leaf_hash
from appliance.notary.journal import Done, Journal, NotWritten, Outcome, Written

MAX_OPEN: Final = 100_000
MAX_CLOSED: Final = 10_000
_RETRY_SECONDS: Final = 1.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


class Desk:
    """Belongs to the event loop's thread."""

    def __init__(self, journal: Journal, replay: Iterable[tuple[Entry, bytes]]) -> None:
        """``replay``: the entries that a starting notary reads again, in order, with their bytes."""
        self._journal = journal
        self._opening: set[str] = set()
        self._open: dict[str, int] = {}
        self._closing: dict[str, tuple[int, list[Done]]] = {}
        self._closed: OrderedDict[str, Written] = OrderedDict()
        self._lost: dict[str, str] = {}
        for entry, data in replay:
            self._replay(entry, data)
        journal.oldest_needed = self.oldest_open

    @property
    def open_requests(self) -> frozenset[str]:
        return frozenset(self._open) | self._opening | frozenset(self._closing)

    def oldest_open(self) -> int | None:
        """Index of the oldest ``Opened`` without a durable ``Closed``."""
        indexes = [*self._open.values(), *(index for index, _ in self._closing.values())]
        return min(indexes, default=None)

    def submit(self, record: Record, done: Done, *, urgent: bool, encoded: bytes | None = None) -> None:
        """Writes a record if it makes sense; ``done`` says what came of it. ``encoded`` as the journal has it."""
        if isinstance(record, Opened):
            self._submit_opened(record, done, urgent, encoded)
        elif isinstance(record, Closed):
            self._submit_closed(record, done, urgent, encoded)
        else:
            self._journal.submit(record, done, urgent=urgent, encoded=encoded)

    def close_lost(self, alive: Set[str], detail: str) -> int:
        """Closes as ``gateway-lost`` every request that is not in ``alive``; returns how many. Tries until it can."""
        lost = [request_id for request_id in (*self._open, *self._opening) if request_id not in alive]
        for request_id in lost:
            self._lost[request_id] = detail
            if request_id in self._open:
                self._close_lost(request_id)
        return len(lost)

    # --- opening ----------------------------------------------------------------------------------------------------

    def _submit_opened(self, record: Opened, done: Done, urgent: bool, encoded: bytes | None) -> None:
        request_id = record.request_id
        if not _REQUEST_ID.fullmatch(request_id):
            done(NotWritten("the request id is malformed", permanent=True))
            return
        if any(request_id in known for known in (self._opening, self._open, self._closing, self._closed)):
            done(NotWritten("the request id was used before", permanent=True))
            return
        if len(self._open) + len(self._opening) + len(self._closing) >= MAX_OPEN:
            done(NotWritten("too many requests are open"))
            return
        self._opening.add(request_id)

        def opened(outcome: Outcome) -> None:
            self._opening.discard(request_id)
            if isinstance(outcome, Written):
                self._open[request_id] = outcome.index
            done(outcome)
            if request_id in self._lost:
                self._close_lost(request_id)

        self._journal.submit(record, opened, urgent=urgent, encoded=encoded)

    # --- closing ----------------------------------------------------------------------------------------------------

    def _submit_closed(self, record: Closed, done: Done, urgent: bool, encoded: bytes | None) -> None:
        request_id = record.request_id
        if request_id in self._closed:
            done(self._closed[request_id])
        elif request_id in self._closing:
            self._closing[request_id][1].append(done)
        elif request_id in self._open:
            self._close(record, done, urgent, encoded)
        elif request_id in self._opening:
            done(NotWritten("the request is still being opened"))
        else:
            done(NotWritten("the request was never opened", permanent=True))

    def _close(self, record: Closed, done: Done, urgent: bool = False, encoded: bytes | None = None) -> None:
        request_id = record.request_id
        opened_at = self._open.pop(request_id)
        waiting = [done]
        self._closing[request_id] = (opened_at, waiting)

        def closed(outcome: Outcome) -> None:
            del self._closing[request_id]
            if isinstance(outcome, Written):
                self._lost.pop(request_id, None)
                self._remember(request_id, outcome)
            else:
                self._open[request_id] = opened_at
            for each in waiting:
                each(outcome)

        self._journal.submit(record, closed, urgent=urgent, encoded=encoded)

    def _close_lost(self, request_id: str) -> None:
        detail = self._lost.get(request_id)
        if detail is None or request_id not in self._open:
            self._lost.pop(request_id, None)
            return
        record = Closed(
            request_id=request_id,
            outcome="gateway-lost",
            prompt_tokens=0,
            completion_tokens=0,
            returned_tokens=0,
            first_token_ms=None,
            total_ms=0,
            detail=detail,
        )
        self._close(record, lambda outcome: self._retry_lost(request_id, outcome))

    def _retry_lost(self, request_id: str, outcome: Outcome) -> None:
        if isinstance(outcome, NotWritten):
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._close_lost, request_id)

    # --- memory -----------------------------------------------------------------------------------------------------

    def _remember(self, request_id: str, written: Written) -> None:
        self._closed[request_id] = written
        if len(self._closed) > MAX_CLOSED:
            self._closed.popitem(last=False)

    def _replay(self, entry: Entry, data: bytes) -> None:
        record = entry.record
        if isinstance(record, Opened):
            self._open[record.request_id] = entry.seq
        elif isinstance(record, Closed):  # its opening may lie before the part that is read again
            self._open.pop(record.request_id, None)
            self._remember(record.request_id, Written(entry.seq, leaf_hash(data)))
