"""Verifies a log, or a copy of one, from its raw entries up, trusting nothing in between.

The steps: (1) the checkpoint's signature; (2) every entry of every bundle that it covers -> leaf hash -> every tile
-> root = the checkpoint's; (3) the root on the way, at the size of a checkpoint that the auditor holds from earlier;
(4) the entries after the checkpoint, in newer bundles and the write-ahead file: framing and sequence, and agreement
where both exist; (5) what the entries say (``audit.rules``).

Trusts: the verifier key and the older checkpoint that the auditor brings. Without a key of the auditor's own the one
    beside the log is used, which shows consistency but not authorship; the report says so.
Promises: ``intact`` means all of the above. It is safe beside a live writer, without false alarms (``audit.reading``).
Not here: that the newest entries are *there*: a tail that was cut cleanly, checkpoint and all, shows only against a
    checkpoint that is kept elsewhere.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from appliance.audit.reading import LogBroken, LogFiles
from appliance.audit.rules import Rules
from appliance.audit.signatures import CheckpointInvalid, KeyUnknown, verify_checkpoint
from appliance.core.note import Checkpoint, NoteInvalid, VerifierKey, parse_vkey
from appliance.core.tree import TILE_WIDTH, Tile, TileTree, leaf_hash
from appliance.core.values import Value
from appliance.core.wal import WalContents

Verdict = Literal["intact", "broken", "rolled-back", "key-unknown"]
EXIT_CODES: Final[dict[Verdict, int]] = {"intact": 0, "broken": 1, "rolled-back": 2, "key-unknown": 3}

_MAX_LISTED: Final = 100

_GIVEN_KEY: Final = "the verifier key was given by the auditor"
_FOUND_KEY: Final = (
    "the verifier key was found beside the log itself: this shows that the log is consistent, not who wrote it"
)


class Remark(Value, frozen=True, kw_only=True):
    """``seq`` is the entry that it concerns, or None."""

    seq: int | None
    what: str


class LogReport(Value, frozen=True, kw_only=True):
    """``size`` entries are signed; ``unsigned_tail`` more follow. ``problems`` break the log, ``findings`` do not."""

    verdict: Verdict
    key: str
    origin: str = ""
    size: int = 0
    unsigned_tail: int = 0
    torn_tail_bytes: int = 0
    open_requests: tuple[str, ...] = ()
    events: dict[str, int] = msgspec.field(default_factory=dict)
    problems: tuple[Remark, ...] = ()
    findings: tuple[Remark, ...] = ()

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def verify_log(directory: Path, vkey: str | None, *, held_checkpoint: bytes | None = None) -> LogReport:
    """``vkey`` is the verifier key's text. Reports, and raises nothing that depends on what the directory holds."""
    files = LogFiles(directory)
    statement = _FOUND_KEY if vkey is None else _GIVEN_KEY
    try:
        key = _verifier_key(files, vkey)
        held = None if held_checkpoint is None else verify_checkpoint(held_checkpoint, key)
        note = files.checkpoint()
        if note is None:
            raise LogBroken("there is no checkpoint")
        checkpoint = verify_checkpoint(note, key)
    except KeyUnknown as error:
        return LogReport(verdict="key-unknown", key=statement, problems=(Remark(seq=None, what=str(error)),))
    except (CheckpointInvalid, LogBroken) as error:
        return LogReport(verdict="broken", key=statement, problems=(Remark(seq=None, what=str(error)),))
    return _Check(files, checkpoint, held).run(statement)


def _verifier_key(files: LogFiles, vkey: str | None) -> VerifierKey:
    if vkey is None:
        found = files.vkey()
        if found is None:
            raise KeyUnknown("no verifier key was given, and none lies beside the log")
        vkey = found.decode(errors="replace")
    try:
        return parse_vkey(vkey)
    except NoteInvalid as error:
        raise KeyUnknown(str(error)) from error


class _Check:
    """One pass over one log."""

    def __init__(self, files: LogFiles, checkpoint: Checkpoint, held: Checkpoint | None) -> None:
        self._files = files
        self._checkpoint = checkpoint
        self._held = held
        self._tree = TileTree()
        self._rules = Rules()
        self._wal: WalContents | None = None
        self._problems: list[Remark] = []
        self._findings: list[Remark] = []
        self._rolled_back = False
        self._tail = 0

    def run(self, key_statement: str) -> LogReport:
        try:
            self._wal = self._files.wal()
            if self._wal is None:
                self._finding(None, "there is no write-ahead file: entries after the checkpoint cannot be seen")
            self._check_signed()
            self._check_tail()
        except LogBroken as error:
            self._problem(error.seq, str(error))
        for seq, what in self._rules.findings:
            self._finding(seq, what)
        return LogReport(
            verdict="broken" if self._problems else "rolled-back" if self._rolled_back else "intact",
            key=key_statement,
            origin=self._checkpoint.origin,
            size=self._checkpoint.size,
            unsigned_tail=self._tail,
            torn_tail_bytes=self._wal.torn_bytes if self._wal else 0,
            open_requests=self._rules.open_requests,
            events=dict(self._rules.events),
            problems=tuple(self._problems),
            findings=tuple(self._findings[:_MAX_LISTED]),
        )

    # --- what the checkpoint covers -----------------------------------------------------------------------------------

    def _check_signed(self) -> None:
        self._compare_held()
        for entry in self._signed_entries():
            seq = self._tree.size
            self._judge(seq, entry)
            if self._wal and self._wal.base <= seq < self._wal.end and self._wal.entries[seq - self._wal.base] != entry:
                self._problem(seq, "the bundle and the write-ahead file differ")
            for tile in self._tree.append(leaf_hash(entry)):
                self._compare(tile)
            self._compare_held()
        for tile in self._tree.partials():
            self._compare(tile)
        if self._tree.root() != self._checkpoint.root:
            self._problem(None, f"the root over {self._tree.size} entries is not the checkpoint's")
        if self._held and self._held.size > self._checkpoint.size:
            self._rollback(f"the log has {self._checkpoint.size} signed entries; the held checkpoint {self._held.size}")

    def _signed_entries(self) -> Iterator[bytes]:
        size = self._checkpoint.size
        for index in range(size // TILE_WIDTH):
            yield from self._files.bundle(index)
        if width := size % TILE_WIDTH:
            yield from self._files.bundle(size // TILE_WIDTH, width)

    def _compare(self, tile: Tile) -> None:
        found = self._files.tile(tile.level, tile.index, len(tile.hashes))
        for position, (computed, stored) in enumerate(zip(tile.hashes, found, strict=True)):
            if computed != stored:
                seq = (tile.index * TILE_WIDTH + position) * TILE_WIDTH**tile.level
                self._problem(seq, f"the entries and hash {position} of {tile.path} differ")

    def _compare_held(self) -> None:
        if self._held and self._tree.size == self._held.size and self._tree.root() != self._held.root:
            self._rollback(f"the log's first {self._held.size} entries are not those of the held checkpoint: a fork")

    # --- what comes after -------------------------------------------------------------------------------------------

    def _check_tail(self) -> None:
        if self._wal is None:
            return
        self._check_wal_end(self._wal)
        for entry in self._tail_entries(self._wal):
            self._judge(self._checkpoint.size + self._tail, entry)
            self._tail += 1

    def _tail_entries(self, wal: WalContents) -> Iterator[bytes]:
        seq = self._checkpoint.size
        while seq < wal.base:  # compacted while we were reading: these are in full bundles
            bundle = self._files.bundle(seq // TILE_WIDTH)[seq % TILE_WIDTH :]
            yield from bundle
            seq += len(bundle)
        yield from wal.entries[seq - wal.base :]

    def _check_wal_end(self, wal: WalContents) -> None:
        signed = wal.end < self._checkpoint.size
        if wal.damaged or (signed and wal.torn_bytes and not wal.incomplete):
            self._problem(wal.end, f"the write-ahead file is damaged at byte {wal.intact_bytes}")
        elif wal.torn_bytes:
            self._finding(wal.end, f"the write-ahead file ends in {wal.torn_bytes} bytes that were never acknowledged")
        elif signed:
            self._finding(wal.end, "the write-ahead file is older than the checkpoint, as in a copy of a live log")

    # --- remarks ------------------------------------------------------------------------------------------------------

    def _judge(self, seq: int, entry: bytes) -> None:
        for what in self._rules.judge(entry):
            self._problem(seq, what)

    def _problem(self, seq: int | None, what: str) -> None:
        if len(self._problems) < _MAX_LISTED:
            self._problems.append(Remark(seq=seq, what=what))

    def _finding(self, seq: int | None, what: str) -> None:
        self._findings.append(Remark(seq=seq, what=what))

    def _rollback(self, what: str) -> None:
        self._rolled_back = True
        self._finding(None, what)
