"""The files of a log, read in an order that is right beside a live writer.

The checkpoint comes first, then the write-ahead file, then bundles and tiles. What a checkpoint covers was durable
and in its tiles before the checkpoint appeared; an entry leaves the write-ahead file only after a full bundle holds
it; a partial tile goes only after the full one is there. So a reader who keeps this order misses nothing, and what it
finds missing is missing.

Trusts: nothing that it reads.
Promises: only well-formed pieces come back, each bounded in size; anything else is ``LogBroken`` with the place.
Not here: whether the pieces fit together (``audit.fsck``), signatures (``audit.signatures``).
"""

from pathlib import Path
from typing import Final

from appliance.core.tree import (
    HASH_BYTES,
    MAX_ENTRY_BYTES,
    TILE_WIDTH,
    bundle_path,
    decode_bundle,
    decode_tile,
    tile_path,
)
from appliance.core.wal import WalContents, WalInvalid, parse_wal

_MAX_BUNDLE_BYTES: Final = TILE_WIDTH * (MAX_ENTRY_BYTES + 2)
_MAX_SMALL_FILE_BYTES: Final = 64 * 1024
_MAX_WAL_BYTES: Final = 512 * 1024 * 1024


class LogBroken(Exception):
    """A piece of the log is missing or malformed. ``seq`` is the first entry that it concerns, where there is one."""

    def __init__(self, what: str, seq: int | None = None) -> None:
        super().__init__(what)
        self.seq = seq


class LogFiles:
    """One log directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def checkpoint(self) -> bytes | None:
        """The signed note as it stands; None when there is none. Raises ``LogBroken``."""
        return self._read("checkpoint", _MAX_SMALL_FILE_BYTES)

    def vkey(self) -> bytes | None:
        """The verifier key that lies beside the log; None when there is none. Raises ``LogBroken``."""
        return self._read("log.vkey", _MAX_SMALL_FILE_BYTES)

    def wal(self) -> WalContents | None:
        """The write-ahead file; None when there is none. Raises ``LogBroken``."""
        data = self._read("wal", _MAX_WAL_BYTES)
        try:
            return None if data is None else parse_wal(data)
        except WalInvalid as error:
            raise LogBroken(str(error)) from error

    def bundle(self, index: int, width: int = TILE_WIDTH) -> list[bytes]:
        """The first ``width`` entries of bundle ``index``. Raises ``LogBroken``."""
        seq = index * TILE_WIDTH
        path, data = self._partial_or_full(bundle_path(index, width), bundle_path(index), _MAX_BUNDLE_BYTES, seq)
        try:
            entries = decode_bundle(data)
        except ValueError as error:
            raise LogBroken(f"{path}: {error}", seq) from error
        if len(entries) < width or (len(entries) > width and path != bundle_path(index)):
            raise LogBroken(f"{path} holds {len(entries)} entries, not {width}", seq)
        return entries[:width]

    def tile(self, level: int, index: int, width: int = TILE_WIDTH) -> tuple[bytes, ...]:
        """The first ``width`` hashes of a tile. Raises ``LogBroken``."""
        seq = index * TILE_WIDTH ** (level + 1)
        limit = TILE_WIDTH * HASH_BYTES
        path, data = self._partial_or_full(tile_path(level, index, width), tile_path(level, index), limit, seq)
        try:
            hashes = decode_tile(data)
        except ValueError as error:
            raise LogBroken(f"{path}: {error}", seq) from error
        if len(hashes) < width or (len(hashes) > width and path != tile_path(level, index)):
            raise LogBroken(f"{path} holds {len(hashes)} hashes, not {width}", seq)
        return hashes[:width]

    def _partial_or_full(self, partial: str, full: str, limit: int, seq: int) -> tuple[str, bytes]:
        """tlog-tiles: a partial tile may have given way to the full one."""
        for path in (partial, full):
            data = self._read(path, limit, seq)
            if data is not None:
                return path, data
        raise LogBroken(f"{partial} is missing", seq)

    def _read(self, path: str, limit: int, seq: int | None = None) -> bytes | None:
        try:
            with (self._directory / path).open("rb") as file:
                data = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LogBroken(f"{path} cannot be read: {error.strerror}", seq) from error
        if len(data) > limit:
            raise LogBroken(f"{path} is too large", seq)
        return data
