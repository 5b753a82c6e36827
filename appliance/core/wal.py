"""The write-ahead file of the log: framing that tells a torn tail from damage.

The file, all numbers big-endian::

    file   = magic[16] base[8] replay_from[8] crc32[4]  frame*
    frame  = magic[4] first_index[8] count[4] length[4] payload_crc32[4] header_crc32[4]  payload[length]

``base`` is the index of the first entry; ``replay_from`` is the oldest index that a starting notary must read again to
know every open request. A payload is an entry bundle (``core.tree``). One frame is one group commit, and a frame is
written only after the one before it was synced. Hence: bytes that are no frame, with no frame after them, are the
torn tail of a write that was never acknowledged; with a frame after them they are damage to something that was.
"""

import struct
from collections.abc import Sequence
from typing import Final
from zlib import crc32

from appliance.core.tree import decode_bundle, encode_bundle
from appliance.core.values import Value

_FILE_MAGIC: Final = b"\xffpaddock-wal-v1\n"
_FRAME_MAGIC: Final = b"\xffPWB"
"""0xff occurs in no UTF-8 text, so no entry contains it."""

_FILE_HEADER: Final = struct.Struct(">16sQQ")
_FRAME_HEADER: Final = struct.Struct(">4sQIII")
_CRC: Final = struct.Struct(">I")
FILE_HEADER_BYTES: Final = _FILE_HEADER.size + _CRC.size
FRAME_HEADER_BYTES: Final = _FRAME_HEADER.size + _CRC.size


class WalInvalid(Exception):
    """The file does not begin like a write-ahead file."""


class WalContents(Value, frozen=True, kw_only=True):
    """What a write-ahead file holds. ``intact_bytes`` is where the last good frame ends; ``torn_bytes`` follow it.

    ``incomplete``: the torn bytes are the beginning of a frame and no more, as a reader meets them beside a live
    writer. ``damaged``: a good frame follows them, so they were once good.
    """

    base: int
    replay_from: int
    entries: tuple[bytes, ...]
    intact_bytes: int
    torn_bytes: int
    incomplete: bool
    damaged: bool

    @property
    def end(self) -> int:
        return self.base + len(self.entries)


def encode_file_header(base: int, replay_from: int) -> bytes:
    header = _FILE_HEADER.pack(_FILE_MAGIC, base, replay_from)
    return header + _CRC.pack(crc32(header))


def encode_frame(first_index: int, entries: Sequence[bytes]) -> bytes:
    """One group commit -> its bytes."""
    payload = encode_bundle(entries)
    header = _FRAME_HEADER.pack(_FRAME_MAGIC, first_index, len(entries), len(payload), crc32(payload))
    return header + _CRC.pack(crc32(header)) + payload


def parse_wal(data: bytes) -> WalContents:
    """File bytes -> contents up to the last good frame. Raises ``WalInvalid`` when the file header is bad."""
    header = data[: _FILE_HEADER.size]
    if len(data) < FILE_HEADER_BYTES or _CRC.pack(crc32(header)) != data[_FILE_HEADER.size : FILE_HEADER_BYTES]:
        raise WalInvalid("the write-ahead file's header is damaged")
    magic, base, replay_from = _FILE_HEADER.unpack(header)
    if magic != _FILE_MAGIC or replay_from > base:
        raise WalInvalid("not a write-ahead file of this version")
    entries: list[bytes] = []
    position = FILE_HEADER_BYTES
    while frame := _frame_at(data, position, base + len(entries)):
        length, more = frame
        entries.extend(more)
        position += length
    return WalContents(
        base=base,
        replay_from=replay_from,
        entries=tuple(entries),
        intact_bytes=position,
        torn_bytes=len(data) - position,
        incomplete=_is_incomplete(data, position),
        damaged=_frame_follows(data, position),
    )


def _header_at(data: bytes, position: int) -> tuple[int, int, int, int] | None:
    """(first index, count, payload length, payload crc) of the good frame header at ``position``."""
    end = position + FRAME_HEADER_BYTES
    header = data[position : end - _CRC.size]
    if end > len(data) or _CRC.pack(crc32(header)) != data[end - _CRC.size : end]:
        return None
    magic, first_index, count, length, crc = _FRAME_HEADER.unpack(header)
    return (first_index, count, length, crc) if magic == _FRAME_MAGIC else None


def _frame_at(data: bytes, position: int, expected_index: int | None) -> tuple[int, list[bytes]] | None:
    """(length of the frame, its entries) when a good frame with the expected index stands at ``position``."""
    header = _header_at(data, position)
    if header is None:
        return None
    first_index, count, length, crc = header
    payload = data[position + FRAME_HEADER_BYTES : position + FRAME_HEADER_BYTES + length]
    if len(payload) != length or crc32(payload) != crc or expected_index not in (None, first_index):
        return None
    try:
        entries = decode_bundle(payload)
    except ValueError:
        return None
    return (FRAME_HEADER_BYTES + length, entries) if len(entries) == count > 0 else None


def _is_incomplete(data: bytes, position: int) -> bool:
    rest = len(data) - position
    if rest < FRAME_HEADER_BYTES:
        return data[position : position + len(_FRAME_MAGIC)] == _FRAME_MAGIC[:rest]
    header = _header_at(data, position)
    return header is not None and rest < FRAME_HEADER_BYTES + header[2]


def _frame_follows(data: bytes, position: int) -> bool:
    while (position := data.find(_FRAME_MAGIC, position)) >= 0:
        if _frame_at(data, position, None):
            return True
        position += 1
    return False
