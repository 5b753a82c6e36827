"""Server-sent events, sans I/O (WHATWG HTML, section 9.2)."""

from typing import Final

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"


def event(data: bytes) -> bytes:
    """One event with one data line. ``data`` must not contain a line break; JSON without spaces never does."""
    if b"\n" in data or b"\r" in data:
        raise ValueError("an event's data must be one line")
    return b"data: " + data + b"\n\n"
