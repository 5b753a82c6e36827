"""How many requests a principal may make in a minute: a moving window, by ``limits``.

Trusts: that ``principal_key`` was made by ``core.claims`` and is never empty; the clock.
Promises: no more requests pass in any sixty seconds than the rate allows; a store that is down lets nothing pass.
Not here: tokens (``budget.py``), addresses before authentication (``gate.py``).
"""

import math
import time
from collections.abc import Callable

from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from appliance.core.refusals import Fault, Reason, Refused
from appliance.limits.store import LoopMemory


class RequestRates:
    """``core.ports.RateLimiter``: one rate for each principal."""

    def __init__(
        self,
        *,
        requests_per_minute: int,
        now_seconds: Callable[[], float] = time.monotonic,
        store: Storage | None = None,
    ) -> None:
        """Raises ``Fault`` for a rate below one: a limit that cannot be kept is not a limit."""
        if requests_per_minute < 1:
            raise Fault("a request rate needs at least one request a minute")
        self._now_seconds = now_seconds
        self._limiter = MovingWindowRateLimiter(store or LoopMemory(now_seconds))
        self._rate = RateLimitItemPerMinute(requests_per_minute, namespace="principal")

    async def admit(self, principal_key: str) -> None:
        """Counts one request. Raises ``Refused(RATE_LIMITED)`` with a retry time, or ``Fault`` if the store is down."""
        if not principal_key:
            raise Fault("a rate needs a principal")
        try:
            if await self._limiter.hit(self._rate, principal_key):
                return
            free_at = (await self._limiter.get_window_stats(self._rate, principal_key)).reset_time
        except StorageError as problem:
            raise Fault(f"the store of request rates failed: {problem}") from problem
        retry_after_seconds = max(1, math.ceil(free_at - self._now_seconds()))
        raise Refused(Reason.RATE_LIMITED, f"more than {self._rate}", retry_after_seconds=retry_after_seconds)
