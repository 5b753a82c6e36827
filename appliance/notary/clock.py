"""Both clocks of an entry.

Trusts: the kernel's clocks; that ``boot_id`` changes with every boot.
Promises: ``now`` is (RFC 3339 UTC text with milliseconds, monotonic milliseconds).
Not here: whether the wall clock is right. The log shows when it was set back (``audit.fsck``).
"""

import time
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    @property
    def boot_id(self) -> str: ...

    def now(self) -> tuple[str, int]: ...

    def wall_seconds(self) -> int: ...


class SystemClock:
    def __init__(self) -> None:
        self.boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        self._second = -1
        self._text = ""

    def now(self) -> tuple[str, int]:
        wall_ms = time.time_ns() // 1_000_000
        second, ms = divmod(wall_ms, 1000)
        if second != self._second:  # one formatting per second, not per entry
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{ms:03d}Z", time.monotonic_ns() // 1_000_000

    def wall_seconds(self) -> int:
        return int(time.time())
