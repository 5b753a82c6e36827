"""Who asks: what a trusted proxy says of its client goes into the scope, and the headers for it out of every scope.

So whatever comes after, limits, policy and the record, has one place to look, ``scope["client"]``, and a handler that
looks for such a header finds none.

Trusts: ``listeners.Arrival`` on whether the peer is a trusted proxy.
Promises: after ``settle`` no header by which proxies speak of clients is left, and nothing of it was believed from
    anybody else.
Not here: which headers these are and how they are read (``core.forwarded``).
"""

from appliance.core.forwarded import origin, split
from appliance.gateway.asgi import ARRIVAL, CLIENT_CERTIFICATE, Scope
from appliance.gateway.listeners import Arrival


def settle(scope: Scope) -> tuple[str, ...]:
    """Returns the names of the headers that somebody sent who may not. Raises ``Refused(HEADER_INVALID)`` for a trusted
    proxy that cannot be understood."""
    arrival: Arrival | None = scope.get(ARRIVAL)
    scope["headers"], told = split(scope["headers"])
    if arrival is None or not arrival.is_believed:
        return tuple(name.decode("latin-1") for name, _value in told)
    said = origin(arrival.peer, told, arrival.trust)
    scope["client"] = (said.peer.address, said.peer.port)
    scope["scheme"] = said.scheme or scope["scheme"]
    scope[CLIENT_CERTIFICATE] = said.client_certificate_sha256  # that of the connection is the proxy's own
    return ()
