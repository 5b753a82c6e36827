"""What the notary has told a gateway of tokens that ended before their time.

The notary sends all of it when a gateway comes, and then each end as it happens. Until the whole list is here, and from
the moment the connection is lost, nobody knows whether a token of ours still counts: then none does. Nothing is lost by
that, since no answer can be put on record at such a time either.

Trusts: the notary.
Promises: memory is bounded by what the notary remembers, and what has expired since is dropped.
Not here: verifying a token, and whether it is of our own issuer (``identity.tokens``).
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from appliance.core.clients import MAX_TTL_SECONDS
from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import LEEWAY_SECONDS
from appliance.core.values import VerifiedClaims
from appliance.ipc.messages import Revoked

_DROP_SECONDS: Final = 60


class RevokedTokens:
    """Implements ``core.ports.Revocations``."""

    def __init__(self, *, now_seconds: Callable[[], int] = lambda: int(time.time())) -> None:
        self._now_seconds = now_seconds
        self._expiries: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._has_begun = False
        self._is_complete = asyncio.Event()
        self._dropped_at = 0

    def is_revoked(self, claims: VerifiedClaims) -> bool:
        """A token of the second in which its client's tokens ended has ended with them. Raises
        ``Refused(AUDIT_UNAVAILABLE)`` while the list is not complete."""
        if not self._is_complete.is_set():
            raise Refused(
                Reason.AUDIT_UNAVAILABLE, "the notary has not said which tokens have ended", retry_after_seconds=1
            )
        if claims.token_id in self._expiries:
            return True
        until_seconds = self._ended.get(claims.client_id)
        return until_seconds is not None and claims.issued_at_seconds <= until_seconds

    async def complete(self) -> None:
        """Waits until the whole list is here."""
        await self._is_complete.wait()

    def told(self, revoked: Revoked) -> None:
        """To be called with each message, in order. What comes before a list has begun is part of the list to come."""
        if revoked.anew:
            self.forget()
            self._has_begun = True
        if not self._has_begun:
            return
        for token in revoked.tokens:
            self._expiries[token.token_id] = token.expires_at_seconds
        for client in revoked.clients:
            self._ended[client.client_id] = max(client.until_seconds, self._ended.get(client.client_id, 0))
        if revoked.complete:
            self._is_complete.set()
        self._drop_expired()

    def forget(self) -> None:
        """To be called when the notary is lost."""
        self._has_begun = False
        self._is_complete.clear()
        self._expiries.clear()
        self._ended.clear()

    def _drop_expired(self) -> None:
        now_seconds = self._now_seconds()
        if 0 <= now_seconds - self._dropped_at < _DROP_SECONDS:
            return
        self._dropped_at = now_seconds
        expired = now_seconds - LEEWAY_SECONDS
        self._expiries = {token_id: expiry for token_id, expiry in self._expiries.items() if expiry > expired}
        self._ended = {name: until for name, until in self._ended.items() if until + MAX_TTL_SECONDS > expired}
