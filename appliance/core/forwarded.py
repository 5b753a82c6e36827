"""Who asks, where a reverse proxy brings the request: what a trusted peer says in headers, and nobody else.

Three headers are read, each with one meaning:

=====================  ===============================================================================================
``X-Forwarded-For``    addresses, each added at the right by the hop that saw it. From the right, those of trusted
                       proxies are passed over; the first other one asks. What stands left of it is its own claim.
``X-Forwarded-Proto``  ``http`` or ``https``, of the client's connection
``Client-Cert``        the certificate with which the client authenticated itself: RFC 9440, or as nginx writes it
=====================  ===============================================================================================

Those and all others by which proxies are known to speak of clients are taken away from every request, so that nothing
behind can read them: ``Forwarded`` (RFC 7239) too, which says the same in another way, and two ways can disagree.
"""

import binascii
import hashlib
import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from appliance.core.proxy_protocol import unmapped
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Peer, Value

Header = tuple[bytes, bytes]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FOR: Final = b"x-forwarded-for"
PROTO: Final = b"x-forwarded-proto"
CLIENT_CERT: Final = b"client-cert"
_READ: Final = frozenset({FOR, PROTO, CLIENT_CERT})
_OF_PROXIES: Final = (
    b"forwarded", b"x-forwarded", b"x-original-", b"x-real-ip", b"x-cluster-client-ip", b"true-client-ip", b"x-client-",
    b"client-cert", b"ssl-", b"x-ssl-", b"x-user", b"x-tenant", b"remote-", b"x-remote-", b"x-auth-request-",
    b"cf-connecting-", b"x-openwebui-user-id", b"x-openwebui-user-name", b"x-openwebui-user-email",
    b"x-openwebui-user-role",
)  # fmt: skip
"""How their names begin. Open WebUI's words about its users are no proxy's, but as unsigned as theirs, and anybody
could have written them; the signed one is another matter (``core.delegation``)."""
MAX_HOPS: Final = 32
"""More proxies than anybody has in a row: each is compared with every trusted network."""
_ADDRESS = re.compile("[0-9A-Fa-f:.]{2,45}")
_PEM = re.compile(
    rb"-----BEGIN%20CERTIFICATE-----(?:%0A)((?:[A-Za-z0-9]|%2B|%2F|%3D|%0A)+)-----END%20CERTIFICATE-----(?:%0A)?"
)
_RFC_9440 = re.compile(rb":([A-Za-z0-9+/=]+):")


class Trust(Value, frozen=True, kw_only=True):
    """Whose word about clients is taken: of proxies at these addresses, and of whoever may connect to the Unix
    socket."""

    networks: tuple[Network, ...] = ()
    unix: bool = False

    def covers(self, peer: Peer) -> bool:
        if peer.is_unix:
            return self.unix
        address = unmapped(ipaddress.ip_address(peer.address.partition("%")[0]))  # without an IPv6 zone
        return any(address in network for network in self.networks)


def network(text: str) -> Network:
    """One address, or a network with no bit set beyond its prefix. Raises ``ValueError``, also for all addresses."""
    parsed = ipaddress.ip_network(text)
    if parsed.prefixlen == 0:
        raise ValueError(f"{text} is everybody")
    return parsed


class Origin(Value, frozen=True, kw_only=True):
    """What a request's proxy said of it. ``client_certificate_sha256`` has 32 bytes: ``x5t#S256`` of RFC 8705."""

    peer: Peer
    scheme: str | None = None
    client_certificate_sha256: bytes | None = None


def split(headers: list[Header]) -> tuple[list[Header], list[Header]]:
    """The headers of the request itself, and those by which proxies speak of clients."""
    told = [header for header in headers if header[0].startswith(_OF_PROXIES)]
    if not told:
        return headers, told
    return [header for header in headers if not header[0].startswith(_OF_PROXIES)], told


def origin(proxy: Peer, told: Iterable[Header], trust: Trust) -> Origin:
    """What ``proxy``, which is trusted, says. Without a word about the client, the proxy itself asks.

    Raises ``Refused(HEADER_INVALID)`` for what cannot be read: such a proxy is not the one that was configured.
    """
    values: dict[bytes, list[bytes]] = {name: [] for name in _READ}
    for name, value in told:
        if name in _READ:
            values[name].append(value)
    return Origin(
        peer=_client(proxy, values[FOR], trust),
        scheme=_scheme(values[PROTO]),
        client_certificate_sha256=_certificate_sha256(values[CLIENT_CERT]),
    )


def _client(proxy: Peer, lines: list[bytes], trust: Trust) -> Peer:
    """Several lines of one header are one list (RFC 9110 section 5.3)."""
    client = proxy
    for passed, hop in enumerate(reversed(b",".join(lines).split(b",")) if lines else ()):
        if passed == MAX_HOPS:
            raise Refused(Reason.HEADER_INVALID, f"X-Forwarded-For: more than {MAX_HOPS} proxies in a row")
        client = _peer(hop.decode("latin-1").strip(" \t"))
        if not trust.covers(client):
            break
    return client


def _peer(hop: str) -> Peer:
    """An address without a port, as nginx, HAProxy and Caddy write it."""
    try:
        if _ADDRESS.fullmatch(hop):
            return Peer(address=str(unmapped(ipaddress.ip_address(hop))), port=0)
    except ValueError:
        pass
    raise Refused(Reason.HEADER_INVALID, f"X-Forwarded-For: {hop[:80]!r}")


def _scheme(values: list[bytes]) -> str | None:
    if not values:
        return None
    if values in ([b"http"], [b"https"]):
        return values[0].decode()
    raise Refused(Reason.HEADER_INVALID, f"X-Forwarded-Proto: {values[0][:80]!r}")


def _certificate_sha256(values: list[bytes]) -> bytes | None:
    if not values:
        return None
    encoded = _base64_of(values[0])
    if len(values) > 1 or encoded is None or len(encoded) % 4:  # binascii would pass over a pad too many
        raise Refused(Reason.HEADER_INVALID, f"{len(values)} Client-Cert, or malformed")
    try:
        return hashlib.sha256(binascii.a2b_base64(encoded, strict_mode=True)).digest()
    except binascii.Error:
        raise Refused(Reason.HEADER_INVALID, "Client-Cert is not base64") from None


def _base64_of(value: bytes) -> bytes | None:
    if match := _RFC_9440.fullmatch(value):
        return match[1]
    if match := _PEM.fullmatch(value):
        return match[1].replace(b"%0A", b"").replace(b"%2B", b"+").replace(b"%2F", b"/").replace(b"%3D", b"=")
    return None
