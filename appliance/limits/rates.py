"""How many requests a principal may make in a minute, in all and of one model: a moving window, by ``limits``.

Trusts: that ``principal_key`` was made by ``core.claims`` and is never empty; the clock.
Promises: no more requests pass in any sixty seconds than the rate allows; a store that is down lets nothing pass.
Not here: tokens (``budget.py``), addresses before authentication (``gate.py``).
"""

import math
import time
from collections.abc import Callable

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Digest
from appliance.limits.store import LoopMemory


class RequestRates:
    """``core.ports.RateLimiter``: one rate for each principal, and optionally one for each of its models."""

    def __init__(
        self,
        *,
        requests_per_minute: int,
        requests_per_minute_and_model: int | None = None,
        now_seconds: Callable[[], float] = time.monotonic,
        store: Storage | None = None,
    ) -> None:
        """Raises ``Fault`` for a rate below one: a limit that cannot be kept is not a limit."""
        if requests_per_minute < 1 or (requests_per_minute_and_model is not None and requests_per_minute_and_model < 1):
            raise Fault("a request rate needs at least one request a minute")
        self._now_seconds = now_seconds
        self._limiter = MovingWindowRateLimiter(store or LoopMemory(now_seconds))
        self._per_principal = RateLimitItemPerMinute(requests_per_minute, namespace="principal")
        self._per_model = (
            RateLimitItemPerMinute(requests_per_minute_and_model, namespace="principal-model")
            if requests_per_minute_and_model is not None
            else None
        )

    async def admit(self, principal_key: str, model: Digest) -> None:
        """Counts one request. Raises ``Refused(RATE_LIMITED)`` with a retry time, or ``Fault`` if the store is down.

        A request that the rate of its model refuses has still counted towards the rate of its principal.
        """
        if not principal_key:
            raise Fault("a rate needs a principal")
        await self._count(self._per_principal, principal_key)
        if self._per_model is not None:
            await self._count(self._per_model, principal_key, model.hex)

    async def _count(self, rate: RateLimitItem, *identifiers: str) -> None:
        try:
            if await self._limiter.hit(rate, *identifiers):
                return
            free_at = (await self._limiter.get_window_stats(rate, *identifiers)).reset_time
        except StorageError as problem:
            raise Fault(f"the store of request rates failed: {problem}") from problem
        retry_after_seconds = max(1, math.ceil(free_at - self._now_seconds()))
        raise Refused(Reason.RATE_LIMITED, f"more than {rate}", retry_after_seconds=retry_after_seconds)
