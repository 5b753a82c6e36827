"""A progress bar, where somebody looks.

Trusts: the stream that it draws on.
Promises: nothing is written to a stream that is no terminal, and no more than ten times a second.
Not here: what the numbers mean.
"""

import shutil
from time import monotonic
from typing import Final, TextIO

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_EVERY_SECONDS: Final = 0.1


class Bar:
    """``title  [####    ]  41 %  1.2 GiB  30.1 MiB/s``. Call ``end`` when there is no more."""

    def __init__(self, title: str, total_bytes: int, stream: TextIO) -> None:
        self._title = title
        self._total_bytes = total_bytes
        self._stream = stream
        self._visible = stream.isatty()
        self._started = monotonic()
        self._first_bytes: int | None = None
        self._next = 0.0

    def show(self, done_bytes: int) -> None:
        if not self._visible or monotonic() < self._next:
            return
        now = monotonic()
        self._next = now + _EVERY_SECONDS
        if self._first_bytes is None:
            self._first_bytes = done_bytes
        rate = (done_bytes - self._first_bytes) / max(now - self._started, 1e-3)
        width = max(shutil.get_terminal_size().columns - 56, 10)
        self._stream.write("\r" + line(self._title, done_bytes, self._total_bytes, rate, width) + "\x1b[K")
        self._stream.flush()

    def end(self) -> None:
        if self._visible:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def line(title: str, done_bytes: int, total_bytes: int, bytes_per_second: float, width: int) -> str:
    """One line of text, without control characters."""
    share = min(max(done_bytes / total_bytes, 0.0), 1.0) if total_bytes else 1.0
    filled = int(share * width)
    bar = "#" * filled + " " * (width - filled)
    return f"{title}  [{bar}]  {share:4.0%}  {readable(done_bytes)}  {readable(bytes_per_second)}/s"


def readable(n_bytes: float) -> str:
    """1536 -> ``1.5 KiB``."""
    for unit in _UNITS[:-1]:
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} {_UNITS[-1]}"
