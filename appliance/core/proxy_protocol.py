"""PROXY protocol version 2: who connected to the proxy, in front of the first byte of the connection itself.

HAProxy's specification (proxy-protocol.txt, section 2.2): 12 bytes of signature, version and command, family and
transport, then the length of what follows: addresses, and TLVs, which are not looked at. Version 1 is not spoken.
"""

import ipaddress
import struct
from typing import Final

from appliance.core.refusals import Reason, Refused
from appliance.core.values import UNIX_PEER, Peer

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
HEAD_BYTES: Final = 16
MAX_BYTES: Final = 536
"""Of a whole header: what the specification lets a sender count on (section 2.2, "without being fragmented")."""

_VERSION: Final = 2
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _IPV4, _IPV6, _UNIX = 0, 1, 2, 3
_STREAM: Final = 1
_ADDRESSES: Final = {
    _IPV4: struct.Struct("!4s4sHH"),
    _IPV6: struct.Struct("!16s16sHH"),
    _UNIX: struct.Struct("108s108s"),
}


def length_after(head: bytes) -> int:
    """How many bytes follow the first ``HEAD_BYTES`` of a connection. Raises ``Refused(CONNECTION_REFUSED)`` when these
    do not begin a header of this version, or a longer one than anybody needs."""
    if head[:12] != SIGNATURE or len(head) != HEAD_BYTES:
        raise _refused("no header of version 2")
    if head[12] >> 4 != _VERSION or head[12] & 15 not in {_LOCAL, _PROXY}:
        raise _refused(f"version and command {head[12]:#04x}")
    length: int = struct.unpack_from("!H", head, 14)[0]
    if HEAD_BYTES + length > MAX_BYTES:
        raise _refused(f"{HEAD_BYTES + length} bytes")
    return length


def announced(head: bytes, rest: bytes) -> Peer | None:
    """Who connected to the proxy. None where the header says no more than the connection itself: the proxy asks for
    itself (LOCAL), or does not know (UNSPEC).

    Raises ``Refused(CONNECTION_REFUSED)`` for other transports than streams, and for addresses that are cut short.
    """
    if len(rest) != length_after(head):
        raise _refused("cut short")
    if head[12] & 15 == _LOCAL:
        return None
    family, transport = head[13] >> 4, head[13] & 15
    if (family, transport) == (_UNSPECIFIED, 0):
        return None
    layout = _ADDRESSES.get(family)
    if layout is None or transport != _STREAM:
        raise _refused(f"family and transport {head[13]:#04x}")
    if len(rest) < layout.size:
        raise _refused("addresses cut short")
    source, _destination, *ports = layout.unpack_from(rest)
    if family == _UNIX:
        return UNIX_PEER
    return Peer(address=str(unmapped(ipaddress.ip_address(source))), port=ports[0])


def unmapped(address: Address) -> Address:
    """An IPv4 address in IPv6 clothes (RFC 4291 section 2.5.5.2) is the IPv4 address."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _refused(detail: str) -> Refused:
    return Refused(Reason.CONNECTION_REFUSED, f"PROXY protocol: {detail}")
