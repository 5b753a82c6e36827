"""Moving windows in this process's memory, for ``limits``' asynchronous strategies.

``limits`` has a memory store of its own, which after each hit looks at every key in a worker thread: 65 µs of CPU a
hit at 100 principals and more above that. This one takes a constant few, stays on the event loop and starts no task.

Trusts: one event loop; the clock, in seconds, which need not be wall time but must not go backwards.
Promises: no more than ``limit`` entries of a key in any ``expiry`` seconds; memory follows the keys seen in that time.
Not here: what is counted and how much is allowed (``rates.py``); windows shared between processes.
"""

from collections import deque
from collections.abc import Callable

from limits.aio.storage import MovingWindowSupport, Storage


class _Window:
    __slots__ = ("expiry_seconds", "times")

    def __init__(self, expiry_seconds: float) -> None:
        self.expiry_seconds = expiry_seconds
        self.times: deque[float] = deque()

    def forget_before(self, now: float) -> None:
        while self.times and self.times[0] <= now - self.expiry_seconds:
            self.times.popleft()


class LoopMemory(Storage, MovingWindowSupport):
    """A ``limits.aio`` storage for ``MovingWindowRateLimiter``. No method awaits, so each is one step of the loop."""

    STORAGE_SCHEME = None  # made in code, never from an address in a setting

    def __init__(self, now_seconds: Callable[[], float]) -> None:
        super().__init__(wrap_exceptions=True)
        self._now_seconds = now_seconds
        self._windows: dict[str, _Window] = {}
        self._next_sweep = 0.0

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Counts ``amount`` hits if they fit in the window; otherwise counts none and says False."""
        now = self._now_seconds()
        self._sweep(now, expiry)
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(expiry)
        window.forget_before(now)
        if len(window.times) + amount > limit:
            return False
        window.times.extend([now] * amount)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest counted hit was, and how many there are."""
        now = self._now_seconds()
        window = self._windows.get(key)
        if window is None:
            return now, 0
        window.forget_before(now)
        return (window.times[0], len(window.times)) if window.times else (now, 0)

    def _sweep(self, now: float, expiry_seconds: float) -> None:
        if now < self._next_sweep:
            return
        self._next_sweep = now + expiry_seconds
        for window in self._windows.values():
            window.forget_before(now)
        self._windows = {key: window for key, window in self._windows.items() if window.times}

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    async def check(self) -> bool:
        return True

    async def reset(self) -> int | None:
        count = len(self._windows)
        self._windows.clear()
        return count

    async def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    # Counters belong to the fixed-window strategy, which this store does not serve.

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        raise NotImplementedError

    async def get(self, key: str) -> int:
        raise NotImplementedError

    async def get_expiry(self, key: str) -> float:
        raise NotImplementedError
