"""The write-ahead file: where an entry first becomes durable.

Start, compaction and recovery from a failed sync are one act, ``rewrite``: write a fresh file from what is known to
be good, sync it, rename it over the old one, sync the name. After a failed ``fdatasync`` the kernel may report the
lost pages as clean ("fsyncgate", PostgreSQL 2018), so neither a second sync nor a second read of that file proves
anything; only fresh pages in a fresh file do. Until a rewrite has succeeded, nothing is appended.

Trusts: its one caller at a time (the journal's committer thread), and that the entries given to ``rewrite`` are all
    the acknowledged ones from ``base`` on.
Promises: when ``append`` or ``rewrite`` returns, what they were given survives a loss of power. When they raise
    ``OSError``, nothing acknowledged earlier is lost.
Not here: who waits for an append, and when to compact (``notary.journal``); the format (``core.wal``).
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance.core.wal import WalContents, encode_file_header, encode_frame, parse_wal
from appliance.notary.files import Files, sync_directory, write_synced

_FRAME_ENTRIES: Final = 1024


class WriteAhead:
    def __init__(self, files: Files, path: Path) -> None:
        self._files = files
        self._path = path
        self._fd: int | None = None
        self._end = 0
        self.suspect = True
        """True when the file on disk may differ from what it should hold: only ``rewrite`` may follow."""

    def read(self) -> WalContents:
        """What a former process left. Raises ``FileNotFoundError``, ``OSError``, ``WalInvalid``."""
        return parse_wal(self._path.read_bytes())

    def append(self, first_index: int, entries: Sequence[bytes]) -> None:
        """Adds one group and syncs it. Raises ``OSError``; the group is then cut off again, or the file suspect."""
        if self.suspect or self._fd is None:
            raise OSError("the write-ahead file must be rewritten first")
        frame = encode_frame(first_index, entries)
        try:
            self._files.write_at(self._fd, frame, self._end)
        except OSError:
            self._cut()
            raise
        try:
            self._files.datasync(self._fd)
        except OSError:
            self._cut()
            self.suspect = True
            raise
        self._end += len(frame)

    def rewrite(self, base: int, replay_from: int, entries: Sequence[bytes]) -> None:
        """Replaces the file by one that holds exactly these entries. Raises ``OSError``; the old file then still
        stands, and stays usable if it was (unless the rename itself is in doubt)."""
        parts = [encode_file_header(base, replay_from)]
        parts += [
            encode_frame(base + start, entries[start : start + _FRAME_ENTRIES])
            for start in range(0, len(entries), _FRAME_ENTRIES)
        ]
        data = b"".join(parts)
        temporary = self._path.with_name(self._path.name + ".tmp")
        fd = write_synced(self._files, temporary, data)
        self.suspect = True  # until the new name is durable: a crash could bring the old file back
        try:
            self._files.rename(temporary, self._path)
            sync_directory(self._files, self._path.parent)
        except OSError:
            self._files.close(fd)
            raise
        self.close()
        self._fd, self._end, self.suspect = fd, len(data), False

    def close(self) -> None:
        if self._fd is not None:
            with suppress(OSError):  # everything acknowledged was synced; close has nothing left to say
                self._files.close(self._fd)
            self._fd = None

    def _cut(self) -> None:
        """Takes back a group that failed. Not synced: a crash right now may still bring it back, unacknowledged."""
        if self._fd is None:
            return
        try:
            self._files.truncate(self._fd, self._end)
        except OSError:
            self.suspect = True


def exists(path: Path) -> bool:
    """Unlike ``Path.exists``, a disk error is an error."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True
