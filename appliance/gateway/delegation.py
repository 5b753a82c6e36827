"""For whom a service asks: the headers in which it may say so, and what all its users together may ask.

Trusts: ``core.ports.Delegation`` for who the user is; the gate, that the service's own token was verified.
Promises: such a header from anybody but a service that is configured to send it, in another form, or more than once, is
    refused; each refusal has been counted against somebody's rate, since it is recorded. However many users a service
    makes up, they have one request rate and one number of places between them.
Not here: the user's own rate and places, which count besides (``gate``).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from appliance.core.claims import principal_through
from appliance.core.delegation import HEADERS
from appliance.core.forwarded import Header
from appliance.core.ports import Delegation, RateLimiter
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Principal, VerifiedClaims
from appliance.gateway.asgi import Scope
from appliance.gateway.slots import Slots


class Delegate(NamedTuple):
    """A service, with what is counted for all its users together."""

    delegation: Delegation
    rates: RateLimiter
    slots: Slots


def said(scope: Scope) -> list[Header]:
    """What the request says of a user, nothing of it judged."""
    return [header for header in scope["headers"] if header[0] in HEADERS]


class Delegates:
    def __init__(self, delegates: Sequence[Delegate] = ()) -> None:
        self._delegates = tuple(delegates)

    async def principal(
        self,
        said: Sequence[Header],
        service: VerifiedClaims,
        own: Principal,
        *,
        rates: RateLimiter,
        held: ExitStack,
        now_seconds: int,
    ) -> Principal:
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
        return principal_through(service, user)
