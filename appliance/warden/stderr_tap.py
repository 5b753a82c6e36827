"""What of a runner's stderr may reach the log: few lines, short, printable, and an honest count of the rest.

Pure: bytes and the time in, lines out. A compromised runner writes what it likes, so nothing it writes may look like
another log line, move a terminal's cursor or fill a disk (attack list, "stdout/stderr flood").

Trusts: nothing.
Promises: at most ``MAX_TOTAL_BYTES`` of a runner's bytes in its life and ``MAX_LINES_PER_SECOND`` lines are returned;
each line is printable, without line breaks, at most ``MAX_LINE_CHARACTERS`` of input long.
Not here: reading the pipe (``launch_spawn``), and audit, which a runner's text never enters.
"""

from typing import Final

MAX_TOTAL_BYTES: Final = 64 * 1024
MAX_LINES_PER_SECOND: Final = 20
MAX_LINE_CHARACTERS: Final = 400


class StderrTap:
    """The state of one runner's stderr."""

    def __init__(self) -> None:
        self._rest = b""
        self._let_through_bytes = 0
        self._dropped_bytes = 0
        self._second = -1
        self._lines_this_second = 0

    def feed(self, data: bytes, *, now_seconds: float) -> list[str]:
        """Takes what was read and returns the lines to log now. A line that never ends is cut, not kept."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_CHARACTERS:
            lines.append(self._rest)
            self._rest = b""
        if int(now_seconds) != self._second:
            self._second, self._lines_this_second = int(now_seconds), 0
        return [escape(line) for line in lines if line.strip() and self._admit(line)]

    def end(self) -> list[str]:
        """The last, unfinished line, and what was left out."""
        last = [escape(self._rest)] if self._rest.strip() and self._within_total(self._rest) else []
        return [*last, f"({self._dropped_bytes} bytes left out)"] if self._dropped_bytes else last

    def _admit(self, line: bytes) -> bool:
        if self._lines_this_second < MAX_LINES_PER_SECOND and self._within_total(line):
            self._lines_this_second += 1
            return True
        self._dropped_bytes += len(line)
        return False

    def _within_total(self, line: bytes) -> bool:
        size = min(len(line), MAX_LINE_CHARACTERS)
        if self._let_through_bytes + size > MAX_TOTAL_BYTES:
            return False
        self._let_through_bytes += size
        return True


def escape(line: bytes) -> str:
    """Printable text on one line: control, format and direction characters, and bytes that are no UTF-8, as escapes."""
    text = line[:MAX_LINE_CHARACTERS].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
