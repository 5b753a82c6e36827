"""Fixed windows in this process's memory, for ``limits``' synchronous strategies.

``limits`` has a memory store of its own, which starts a thread for a hit when the last one's is over, to look at every
key: up to half a millisecond of CPU for a request, and more with many addresses. This one looks at every key once a
minute and starts no thread.

Trusts: one thread; this process's wall clock, which is what ``limits`` compares with.
Promises: a key's count is that of its current window; memory follows the keys of the last two windows.
Not here: what is counted and how much is allowed (``gate.py``).
"""

import time
from typing import Final

from limits.storage import Storage

_SWEEP_SECONDS: Final = 60.0


class LoopCounters(Storage):
    """A ``limits`` storage for ``FixedWindowRateLimiter``."""

    STORAGE_SCHEME = ["paddock-memory"]  # noqa: RUF012 - the registry of ``limits`` wants a list

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **_options: str) -> None:
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self._windows: dict[str, tuple[int, float]] = {}
        self._next_sweep = 0.0

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = time.time()
        self._sweep(now)
        count, ends = self._windows.get(key, (0, 0.0))
        if ends <= now:
            count, ends = 0, now + expiry
        self._windows[key] = (count + amount, ends)
        return count + amount

    def get(self, key: str) -> int:
        count, ends = self._windows.get(key, (0, 0.0))
        return count if ends > time.time() else 0

    def get_expiry(self, key: str) -> float:
        _count, ends = self._windows.get(key, (0, time.time()))
        return ends

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        forgotten = len(self._windows)
        self._windows.clear()
        return forgotten

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _sweep(self, now: float) -> None:
        if now < self._next_sweep:
            return
        self._next_sweep = now + _SWEEP_SECONDS
        self._windows = {key: window for key, window in self._windows.items() if window[1] > now}
