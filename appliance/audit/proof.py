"""One entry, and the proof that it is in the log: a text of a kilobyte or two that stands alone (C2SP tlog-proof).

Example::

    c2sp.org/tlog-proof@v1
    index 73894
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
    …

    paddock.example/log
    109482
    sFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=

    — paddock.example/log hI2DJw…

Trusts: the verifier key that it is given.
Promises: ``check_proof`` returns only when that key signed a log with exactly these bytes at that index.
Not here: which entry one wants (``audit.query``); the rest of the log (``audit.fsck``).
"""

from base64 import b64encode
from pathlib import Path
from typing import Final

from appliance.audit.reading import LogBroken, LogFiles
from appliance.audit.signatures import verify_checkpoint
from appliance.core.note import NoteInvalid, VerifierKey, decode_base64
from appliance.core.tree import (
    HASH_BYTES,
    TILE_WIDTH,
    ProofInvalid,
    check_inclusion,
    inclusion_ranges,
    leaf_hash,
    range_root,
    subtree_root,
)

_HEADER: Final = "c2sp.org/tlog-proof@v1"
_TILE_LEVELS: Final = 8
_MAX_HASHES: Final = 64


def make_proof(directory: Path, index: int, key: VerifierKey) -> tuple[bytes, str]:
    """(entry bytes, proof text) for one signed entry.

    Raises ``LogBroken`` when the log cannot be read or has no such signed entry, ``KeyUnknown`` and
    ``CheckpointInvalid`` for its checkpoint, ``ProofInvalid`` when its tiles do not lead to its root.
    """
    files = LogFiles(directory)
    note = files.checkpoint()
    if note is None:
        raise LogBroken("there is no checkpoint")
    checkpoint = verify_checkpoint(note, key)
    if not 0 <= index < checkpoint.size:
        raise LogBroken(f"entry {index} is not among the {checkpoint.size} signed ones")
    entry = _entry(files, index, checkpoint.size)
    tiles = _Tiles(files, checkpoint.size)
    hashes = [range_root(tiles.root, *span) for span in inclusion_ranges(index, checkpoint.size)]
    lines = [_HEADER, f"index {index}", *(b64encode(each).decode() for each in hashes), ""]
    text = "\n".join(lines) + "\n" + note.decode()
    check_proof(text, entry, key)
    return entry, text


def check_proof(unverified_text: str, entry: bytes, key: VerifierKey) -> int:
    """Returns the entry's index. Raises ``ProofInvalid``, ``KeyUnknown`` or ``CheckpointInvalid``."""
    head, _, note = unverified_text.partition("\n\n")
    lines = head.split("\n")
    if lines[0] != _HEADER or len(lines) < 2 or not lines[1].startswith("index ") or len(lines) > _MAX_HASHES + 2:
        raise ProofInvalid("not a proof of this kind")
    number = lines[1].removeprefix("index ")
    if not (number.isascii() and number.isdecimal() and len(number) < 20) or str(int(number)) != number:
        raise ProofInvalid("the proof's index is malformed")
    try:
        hashes = [decode_base64(line) for line in lines[2:]]
    except NoteInvalid as error:
        raise ProofInvalid(str(error)) from error
    if any(len(each) != HASH_BYTES for each in hashes):
        raise ProofInvalid("a line of the proof is not a hash")
    checkpoint = verify_checkpoint(note.encode(), key)
    check_inclusion(index=int(number), size=checkpoint.size, leaf=leaf_hash(entry), proof=hashes, root=checkpoint.root)
    return int(number)


def _entry(files: LogFiles, index: int, size: int) -> bytes:
    bundle, position = divmod(index, TILE_WIDTH)
    return files.bundle(bundle, min(TILE_WIDTH, size - bundle * TILE_WIDTH))[position]


class _Tiles:
    """Roots of perfect subtrees, from tiles."""

    def __init__(self, files: LogFiles, size: int) -> None:
        self._files = files
        self._size = size

    def root(self, level: int, index: int) -> bytes:
        """Of the subtree of ``2**level`` leaves that starts at leaf ``index * 2**level``."""
        tile_level, height = divmod(level, _TILE_LEVELS)
        start = index << height  # its first hash, counted along the tile level
        tile, position = divmod(start, TILE_WIDTH)
        width = min(TILE_WIDTH, self._size // TILE_WIDTH**tile_level - tile * TILE_WIDTH)
        hashes = self._files.tile(tile_level, tile, width)
        return subtree_root(hashes[position : position + (1 << height)])
