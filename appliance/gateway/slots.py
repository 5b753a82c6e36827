"""How many requests of one principal are under way at once: without a bound, one could keep every runner busy.

Trusts: that the key was made by ``core.claims``; one thread.
Promises: a slot is free again when its request ends, however it ends; memory follows who is asking now.
Not here: how often a principal may ask (``RateLimiter``), what it may spend (``TokenBudget``).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from appliance.core.refusals import Fault, Reason, Refused

RETRY_SECONDS: Final = 1


class Slots:
    """Requests under way, per principal."""

    def __init__(self, per_principal: int) -> None:
        """Raises ``Fault`` for a number that would let nobody in."""
        if per_principal < 1:
            raise Fault("a principal needs at least one request at a time")
        self._per_principal = per_principal
        self._taken: Counter[str] = Counter()

    @property
    def under_way(self) -> int:
        """Requests of all principals at this moment."""
        return self._taken.total()

    @contextmanager
    def taken(self, principal_key: str) -> Iterator[None]:
        """Holds one slot. Raises ``Refused(TOO_MANY_STREAMS)``."""
        if self._taken[principal_key] >= self._per_principal:
            raise Refused(
                Reason.TOO_MANY_STREAMS,
                f"more than {self._per_principal} at once",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._taken[principal_key] += 1
        try:
            yield
        finally:
            self._taken[principal_key] -= 1
            if not self._taken[principal_key]:
                del self._taken[principal_key]
