"""What a sequence of entries must say for itself, whatever its hashes.

====================================================================  ==========
rule                                                                  broken is
====================================================================  ==========
each entry decodes, is canonical, and its ``seq`` is its index         a problem
the first record is ``log-opened``                                    a problem
a request is opened once, allowed, and closed at most once after      a problem
an ``opened`` names a runner that a ``model-loaded`` introduced,
  with that model, signer and seal mode                               a problem
every decision's policy was loaded before it                          a problem
a client is registered before a token is issued to it                 a problem
monotonic time never falls within a boot                              a problem
the wall clock never falls                                            a finding
a notary says ``log-closed`` before the next says ``log-opened``      a finding
a token is issued only to a client that is neither disabled nor
  removed, and with no group but of its own                           a finding
a refresh token is used once                                          a finding
====================================================================  ==========

A change of a client is on record before it counts: where a disk failed in between it is offered again, and tokens may
have been issued by what was registered before.

Trusts: nothing.
Promises: each entry is judged against all before it, in one pass; memory grows with the number of requests
    and clients only.
Not here: hashes and signatures (``audit.fsck``).
"""

import re
from collections import Counter
from collections.abc import Iterator

import msgspec

from appliance.core.records import (
    ClientChanged,
    Closed,
    Entry,
    LogClosed,
    LogOpened,
    ModelLoaded,
    Opened,
    PolicyLoaded,
    RefusedRequest,
    TokenIssued,
    TokenRevoked,
    decode_entry,
    encode_entry,
)
from appliance.core.values import Decision, Digest, seals_at_least

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Rules:
    """Feed it entries in order; read ``open_requests`` and ``events`` at the end."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self._next_seq = 0
        self._open: dict[str, int] = {}
        self._closed: set[str] = set()
        self._runners: dict[str, ModelLoaded] = {}
        self._policies: set[Digest] = set()
        self._clients: dict[str, ClientChanged] = {}
        self._monotonic_ms: dict[str, int] = {}
        self._last_time = ""
        self._log_is_open = False
        self.findings: list[tuple[int, str]] = []

    @property
    def open_requests(self) -> tuple[str, ...]:
        """Requests without a ``closed``, oldest first."""
        return tuple(self._open)

    def judge(self, data: bytes) -> Iterator[str]:
        """Yields every problem with the next entry."""
        seq = self._next_seq
        self._next_seq += 1
        try:
            entry = decode_entry(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            yield f"not an entry: {error}"
            return
        if encode_entry(entry) != data:
            yield "not in canonical form"
        if entry.seq != seq:
            yield f"says that it is entry {entry.seq}"
        self.events[entry.record.__struct_config__.tag] += 1  # type: ignore[index]
        yield from self._judge_times(entry)
        yield from self._judge_record(entry)

    def _judge_times(self, entry: Entry) -> Iterator[str]:
        if not _TIME.fullmatch(entry.time):
            yield "its time is malformed"
        elif entry.time < self._last_time:
            self.findings.append((entry.seq, f"the clock was set back from {self._last_time} to {entry.time}"))
        self._last_time = entry.time
        if entry.monotonic_ms < self._monotonic_ms.get(entry.boot_id, 0):
            yield "monotonic time fell within one boot"
        self._monotonic_ms[entry.boot_id] = entry.monotonic_ms

    def _judge_record(self, entry: Entry) -> Iterator[str]:
        record = entry.record
        if entry.seq == 0 and not isinstance(record, LogOpened):
            yield "the first record is not log-opened"
        if isinstance(record, LogOpened):
            self._note_log_opened(entry.seq, record)
        elif isinstance(record, LogClosed):
            self._log_is_open = False
        elif isinstance(record, PolicyLoaded):
            self._policies.add(record.policy_digest)
        elif isinstance(record, ModelLoaded):
            self._runners[record.runner.runner_id] = record
        elif isinstance(record, RefusedRequest):
            if record.decision is not None:
                yield from self._judge_decision(record.decision)
        elif isinstance(record, Opened):
            yield from self._judge_opened(entry.seq, record)
        elif isinstance(record, Closed):
            yield from self._judge_closed(record)
        elif isinstance(record, ClientChanged):
            self._clients[record.client_id] = record
        elif isinstance(record, TokenIssued):
            yield from self._judge_issued(entry.seq, record)
        elif isinstance(record, TokenRevoked) and record.why == "refresh-token-reused":
            self.findings.append((entry.seq, f"a refresh token of {record.client_id} was used twice"))

    def _judge_issued(self, seq: int, record: TokenIssued) -> Iterator[str]:
        if record.grant is None:
            return
        client = self._clients.get(record.client_id)
        if client is None:
            yield f"a token was issued to {record.client_id}, which was never registered"
        elif client.change in {"disabled", "removed"}:
            self.findings.append((seq, f"a token was issued to {record.client_id} although it was {client.change}"))
        elif not set(record.groups) <= set(client.groups):
            self.findings.append((seq, f"a token was issued to {record.client_id} with groups beyond its own"))

    def _note_log_opened(self, seq: int, record: LogOpened) -> None:
        if self._log_is_open:
            self.findings.append((seq, "the notary before ended without closing the log"))
        if record.recovered_bytes:
            self.findings.append((seq, f"{record.recovered_bytes} unacknowledged bytes of a crash were cut"))
        self._log_is_open = True

    def _judge_decision(self, decision: Decision) -> Iterator[str]:
        if decision.policy_digest not in self._policies:
            yield f"decided by policy {decision.policy_digest}, which was not loaded before"

    def _judge_opened(self, seq: int, record: Opened) -> Iterator[str]:
        if record.request_id in self._open or record.request_id in self._closed:
            yield f"request {record.request_id} was opened before"
        self._open.setdefault(record.request_id, seq)
        if not record.decision.allow:
            yield "opened although the decision does not allow it"
        yield from self._judge_decision(record.decision)
        loaded = self._runners.get(record.runner.runner_id)
        if loaded is None:
            yield f"runner {record.runner.runner_id} was not recorded as loaded"
        elif (loaded.model, loaded.runner.seal_mode) != (record.model, record.runner.seal_mode):
            yield f"runner {record.runner.runner_id} was loaded with another model, signer or seal"
        minimum = record.decision.obligations.minimum_seal
        if minimum is not None and not seals_at_least(record.runner.seal_mode, minimum):
            yield f"opened with {record.runner.seal_mode} although policy demanded {minimum}"
        if record.runner.model_digest != record.model.digest:
            yield "the runner's model is not the request's"

    def _judge_closed(self, record: Closed) -> Iterator[str]:
        if record.request_id in self._open:
            del self._open[record.request_id]
            self._closed.add(record.request_id)
        elif record.request_id in self._closed:
            yield f"request {record.request_id} was closed before"
        else:
            yield f"request {record.request_id} was never opened"
