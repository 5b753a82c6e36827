"""For whom a service asks: the headers in which it may say so, and what all its users together may ask.

Trusts: ``core.ports.Delegation`` for who the user is; the gate, that the service's own token was verified.
Promises: such a header from anybody but a service that is configured to send it, in another form, or more than once, is
    refused; each refusal has been counted against somebody's rate, since it is recorded. However many users a service
    makes up, they have one request rate and one number of places between them, and only so many are let in.
Not here: the user's own rate and places, which count besides (``gate``).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from appliance.core.claims import principal_through
from appliance.core.delegation import HEADERS
from appliance.core.forwarded import Header
from appliance.core.ports import Delegation, RateLimiter
from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.values import Principal, VerifiedClaims
from appliance.gateway.asgi import Scope
from appliance.gateway.slots import Slots


class Users:
    """How many different users a service brings in one window of the token budgets: each has an account there, and
    those that it makes up must have an end."""

    def __init__(self, most: int, window_seconds: int) -> None:
        """Raises ``Fault`` for numbers that would let nobody in."""
        if min(most, window_seconds) < 1:
            raise Fault("a service needs at least one user, in a window of at least a second")
        self._most = most
        self._window_seconds = window_seconds
        self._window = 0
        self._keys: set[str] = set()

    def admit(self, principal_key: str, now_seconds: int) -> None:
        """Raises ``Refused(RATE_LIMITED)`` with a retry time, for one more than there may be."""
        window = now_seconds // self._window_seconds
        if window > self._window:
            self._window = window
            self._keys.clear()
        if principal_key in self._keys:
            return
        if len(self._keys) >= self._most:
            ends_seconds = (self._window + 1) * self._window_seconds
            raise Refused(
                Reason.RATE_LIMITED,
                f"more than {self._most} different users of one service",
                retry_after_seconds=max(1, ends_seconds - now_seconds),
            )
        self._keys.add(principal_key)


class Delegate(NamedTuple):
    """A service, with what is counted for all its users together."""

    delegation: Delegation
    rates: RateLimiter
    slots: Slots
    users: Users


class Named(NamedTuple):
    """The user of a request, with the tokens besides the service's that it stands on: when one ends, so does it."""

    principal: Principal
    tokens: tuple[VerifiedClaims, ...]


def said(scope: Scope) -> list[Header]:
    """What the request says of a user, nothing of it judged."""
    return [header for header in scope["headers"] if header[0] in HEADERS]


class Delegates:
    def __init__(self, delegates: Sequence[Delegate] = ()) -> None:
        self._delegates = tuple(delegates)

    async def named(
        self,
        said: Sequence[Header],
        service: VerifiedClaims,
        own: Principal,
        *,
        rates: RateLimiter,
        held: ExitStack,
        now_seconds: int,
    ) -> Named:
        """The user of whom the headers speak. ``own`` is the bearer of the ``service``'s token, with whose ``rates`` a
        refusal is counted where it is none of our services; places are ``held`` as long as the request.

        Raises ``Refused(DELEGATION_REFUSED | RATE_LIMITED | TOO_MANY_STREAMS)``, ``Fault``, and as
        ``core.ports.Delegation``.
        """
        delegate = next((one for one in self._delegates if one.delegation.is_for(service)), None)
        if delegate is None:
            await rates.admit(own.key)
            raise Refused(Reason.DELEGATION_REFUSED, "a user was named by one who may not")
        held.enter_context(delegate.slots.taken(own.key))
        await delegate.rates.admit(own.key)
        if [name for name, _value in said] != [delegate.delegation.header]:
            raise Refused(Reason.DELEGATION_REFUSED, "another header than this service's, or more than one")
        user = await delegate.delegation.user(said[0][1].decode("latin-1"), now_seconds=now_seconds)
        made = principal_through(service, user)
        delegate.users.admit(made.key, now_seconds)
        return Named(made, (user,) if isinstance(user, VerifiedClaims) else ())
