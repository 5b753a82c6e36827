"""A compromised runner writes what it likes; none of it may forge a line, move a cursor or fill a disk."""

from appliance.warden.stderr_tap import (
    MAX_LINE_CHARACTERS,
    MAX_LINES_PER_SECOND,
    MAX_TOTAL_BYTES,
    StderrTap,
    escape,
)


def test_ordinary_lines_pass() -> None:
    tap = StderrTap()
    assert tap.feed(b"one\ntw", now_seconds=0) == ["one"]
    assert tap.feed(b"o\n\n", now_seconds=0) == ["two"]
    assert tap.end() == []


def test_terminal_escapes_do_not_pass() -> None:
    assert escape(b"\x1b[2J\rok\x07\t\x00") == r"\x1b[2J\rok\x07\t\x00"


def test_line_breaks_of_unicode_do_not_pass() -> None:
    assert escape("a\u2028b\u0085c\u202ed".encode()) == r"a\u2028b\x85c\u202ed"


def test_invalid_bytes_do_not_pass() -> None:
    assert escape(b"\xff\xfe") == r"\xff\xfe"


def test_flood_of_lines_is_capped_per_second() -> None:
    tap = StderrTap()
    assert len(tap.feed(b"x\n" * 10_000, now_seconds=1.0)) == MAX_LINES_PER_SECOND
    assert tap.feed(b"y\n", now_seconds=1.9) == []
    assert tap.feed(b"z\n", now_seconds=2.0) == ["z"]
    assert tap.end() == [f"({10_000 - MAX_LINES_PER_SECOND + 1} bytes left out)"]


def test_flood_over_a_lifetime_is_capped() -> None:
    tap = StderrTap()
    line = b"x" * 100 + b"\n"
    kept = [text for second in range(1000) for text in tap.feed(line * 10, now_seconds=second)]
    assert sum(map(len, kept)) <= MAX_TOTAL_BYTES
    assert "left out" in tap.end()[-1]


def test_line_without_an_end_is_not_kept_in_memory() -> None:
    tap = StderrTap()
    lines = [text for second in range(50) for text in tap.feed(b"x" * 10_000, now_seconds=second)]
    assert lines
    assert all(len(text) == MAX_LINE_CHARACTERS for text in lines)
    assert tap.end() == []
