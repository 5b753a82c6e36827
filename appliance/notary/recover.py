"""What a starting notary makes of the log that a former one left.

(1) one notary per log, by ``flock``; (2) the write-ahead file is read up to its last good frame; (3) the tree is
rebuilt from the full tiles and those entries; (4) it must reach, and agree with, the last head given to the key and
the last signed checkpoint; (5) the entries from the oldest open request on are read again.

Trusts: the file system to return what was written; the head, which lies outside the log's directory.
Promises: a log that is shorter than what was signed, or another one, or damaged where it was once good, is refused
    with a ``Fault`` that names the place. Nothing on disk has been changed, except that directories and a lock exist.
Not here: checking old entries against their tiles (``audit.fsck``); making the entries found durable again, which
    the journal does by rewriting the write-ahead file.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from appliance.core.records import Entry, decode_entry
from appliance.core.refusals import Fault
from appliance.core.tree import TileTree, leaf_hash
from appliance.core.wal import WalContents, WalInvalid
from appliance.notary.checkpoint import Checkpointer
from appliance.notary.files import Files, make_directories
from appliance.notary.publish import load_tree, read_leaves
from appliance.notary.wal import WriteAhead, exists

REPLAY_ENTRIES: Final = 10_000
"""At least this many of the newest entries are read again, to answer repeated questions about closed requests."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """``tree`` ends at ``base``; ``entries`` and ``leaves`` follow it. ``replay``: the newest entries
    with their bytes, as far back as the oldest open request, or further."""

    tree: TileTree
    entries: tuple[bytes, ...]
    leaves: tuple[bytes, ...]
    replay: tuple[tuple[Entry, bytes], ...]
    torn_bytes: int


def lock_directory(files: Files, directory: Path) -> int:
    """Creates the directory if need be and locks it; returns the lock's descriptor, to be kept.

    Raises ``Fault`` when another process has it, ``OSError`` when it cannot be made.
    """
    make_directories(files, directory)
    fd = files.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        files.close(fd)
        raise Fault(f"another notary has the log in {directory}") from error
    return fd


def recover(directory: Path, wal: WriteAhead, checkpointer: Checkpointer) -> Recovered:
    """Raises ``Fault`` as described above, ``OSError`` when the disk does not answer."""
    signed = checkpointer.read()
    contents = _read_wal(directory, wal, expected=bool(signed))
    tree = load_tree(directory, contents.base)
    leaves = tuple(leaf_hash(entry) for entry in contents.entries)
    _check_signed(tree.copy(), leaves, {checkpoint.size: checkpoint.root for checkpoint in signed})
    replay_from = min(contents.replay_from, max(0, contents.end - REPLAY_ENTRIES))
    older = read_leaves(directory, replay_from, contents.base) if replay_from < contents.base else ()
    return Recovered(
        tree=tree,
        entries=contents.entries,
        leaves=leaves,
        replay=_decode(older + contents.entries[max(0, replay_from - contents.base) :], replay_from),
        torn_bytes=contents.torn_bytes,
    )


def _read_wal(directory: Path, wal: WriteAhead, *, expected: bool) -> WalContents:
    try:
        contents = wal.read()
    except FileNotFoundError:
        if expected or exists(directory / "tile"):
            raise Fault("the write-ahead file is missing although the log has entries") from None
        return WalContents(
            base=0, replay_from=0, entries=(), intact_bytes=0, torn_bytes=0, incomplete=False, damaged=False
        )
    except WalInvalid as error:
        raise Fault(str(error)) from error
    if contents.damaged:
        raise Fault(f"the write-ahead file is damaged at byte {contents.intact_bytes}, entry {contents.end}")
    return contents


def _check_signed(tree: TileTree, leaves: tuple[bytes, ...], roots: dict[int, bytes]) -> None:
    """Every signed root must be met on the way from the tree's size to the log's end."""
    start, end = tree.size, tree.size + len(leaves)
    for size in roots:
        if not start <= size <= end:
            raise Fault(
                f"the log holds entries {start} to {end}, but a checkpoint of size {size} was signed: rolled back"
            )
    for position in range(len(leaves) + 1):
        if tree.size in roots and tree.root() != roots[tree.size]:
            raise Fault(f"the log's first {tree.size} entries are not those that were signed")
        if position < len(leaves):
            tree.append(leaves[position])


def _decode(entries: tuple[bytes, ...], first_index: int) -> tuple[tuple[Entry, bytes], ...]:
    decoded = []
    for index, data in enumerate(entries, first_index):
        try:
            entry = decode_entry(data)
        except msgspec.MsgspecError as error:
            raise Fault(f"entry {index} cannot be read: {error}") from error
        if entry.seq != index:
            raise Fault(f"entry {index} says that it is {entry.seq}")
        decoded.append((entry, data))
    return tuple(decoded)
