"""The write-ahead file: what must be cut, and what must not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.wal import (
    FILE_HEADER_BYTES,
    FRAME_HEADER_BYTES,
    WalInvalid,
    encode_file_header,
    encode_frame,
    parse_wal,
)

GROUPS = [[b"alpha", b"beta"], [b"gamma"], [b"delta" * 20, b"epsilon"]]


def whole(base: int = 7) -> tuple[bytes, list[int]]:
    """A file of three frames, and the offset at which each ends."""
    data, index, ends = encode_file_header(base, 3), base, []
    for group in GROUPS:
        data += encode_frame(index, group)
        index += len(group)
        ends.append(len(data))
    return data, ends


def test_round_trip() -> None:
    data, _ = whole()
    contents = parse_wal(data)
    assert contents.entries == tuple(entry for group in GROUPS for entry in group)
    assert (contents.base, contents.replay_from, contents.end) == (7, 3, 12)
    assert (contents.intact_bytes, contents.torn_bytes, contents.damaged) == (len(data), 0, False)


def test_every_truncation_keeps_the_whole_frames_and_is_not_damage() -> None:
    data, ends = whole()
    for length in range(FILE_HEADER_BYTES, len(data)):
        contents = parse_wal(data[:length])
        frames = sum(end <= length for end in ends)
        assert contents.entries == tuple(entry for group in GROUPS[:frames] for entry in group)
        assert contents.intact_bytes + contents.torn_bytes == length
        assert not contents.damaged
        assert contents.incomplete or not contents.torn_bytes


def test_every_flipped_byte_is_noticed_and_damage_is_told_from_a_torn_tail() -> None:
    data, ends = whole()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x20
        if position < FILE_HEADER_BYTES:
            with pytest.raises(WalInvalid):
                parse_wal(bytes(changed))
            continue
        contents = parse_wal(bytes(changed))
        frame = sum(end <= position for end in ends)
        assert contents.entries == tuple(entry for group in GROUPS[:frame] for entry in group)
        assert contents.damaged == (frame < len(GROUPS) - 1)
        assert not contents.incomplete


def test_frame_with_the_wrong_index_is_damage() -> None:
    data = encode_file_header(0, 0) + encode_frame(0, [b"a"]) + encode_frame(2, [b"c"])
    contents = parse_wal(data)
    assert contents.entries == (b"a",)
    assert contents.damaged


def test_zeros_after_a_lost_write_are_a_torn_tail() -> None:
    data, ends = whole()
    torn = data[: ends[1]] + data[ends[1] : ends[1] + FRAME_HEADER_BYTES] + bytes(len(data) - ends[1])
    contents = parse_wal(torn)
    assert contents.end == 10
    assert not contents.damaged


@given(st.binary(max_size=400))
def test_any_bytes_after_the_header_are_survived(junk: bytes) -> None:
    contents = parse_wal(encode_file_header(0, 0) + junk)
    assert contents.intact_bytes + contents.torn_bytes == FILE_HEADER_BYTES + len(junk)


@pytest.mark.parametrize("data", [b"", b"x" * 10, b"x" * 100, encode_file_header(3, 4)])
def test_other_file_is_refused(data: bytes) -> None:
    with pytest.raises(WalInvalid):
        parse_wal(data)
