"""No bytes but a header of version 2 are taken for one, and none says more than it does."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.proxy_protocol import HEAD_BYTES, MAX_BYTES, SIGNATURE, announced, length_after
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Peer

V4 = (
    ipaddress.ip_address("203.0.113.9").packed
    + ipaddress.ip_address("192.0.2.1").packed
    + struct.pack("!HH", 4711, 443)
)
V6 = ipaddress.ip_address("2001:db8::9").packed * 2 + struct.pack("!HH", 4711, 443)
UNIX = b"/run/x".ljust(108, b"\0") * 2


def header(command: int, family: int, rest: bytes, *, length: int | None = None) -> tuple[bytes, bytes]:
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest) if length is None else length), rest


@pytest.mark.parametrize(
    ("command", "family", "rest", "peer"),
    [
        (0x21, 0x11, V4, Peer(address="203.0.113.9", port=4711)),
        (0x21, 0x11, V4 + b"\x03\x00\x04abcd", Peer(address="203.0.113.9", port=4711)),
        (0x21, 0x21, V6, Peer(address="2001:db8::9", port=4711)),
        (
            0x21,
            0x21,
            ipaddress.ip_address("::ffff:203.0.113.9").packed + V6[16:],
            Peer(address="203.0.113.9", port=4711),
        ),
        (0x21, 0x31, UNIX, Peer(address="unix", port=0)),
        (0x21, 0x00, b"", None),
        (0x21, 0x00, V4, None),
        (0x20, 0x00, b"", None),
        (0x20, 0x11, V4, None),
        (0x20, 0x12, b"what a local command carries is not looked at", None),
    ],
)
def test_header_says_who_connected_to_the_proxy(command: int, family: int, rest: bytes, peer: Peer | None) -> None:
    head, rest = header(command, family, rest)
    assert length_after(head) == len(rest)
    assert announced(head, rest) == peer


MALFORMED = {
    "version 1": (b"PROXY TCP4 192.0", b""),
    "HTTP": (b"GET / HTTP/1.1\r\n", b""),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaa", b""),
    "nothing": (b"", b""),
    "half a signature": (SIGNATURE, b""),
    "version 3": header(0x31, 0x11, V4),
    "unknown command": header(0x22, 0x11, V4),
    "UDP": header(0x21, 0x12, V4),
    "UDP over IPv6": header(0x21, 0x22, V6),
    "Unix datagrams": header(0x21, 0x32, UNIX),
    "unspecified transport": header(0x21, 0x10, V4),
    "unspecified family over a stream": header(0x21, 0x01, V4),
    "unknown family": header(0x21, 0x41, V4),
    "IPv4 cut short": header(0x21, 0x11, V4[:-1]),
    "IPv6 with the addresses of IPv4": header(0x21, 0x21, V4),
    "Unix cut short": header(0x21, 0x31, UNIX[:-1]),
    "no addresses": header(0x21, 0x11, b""),
    "longer than it is": header(0x21, 0x11, V4, length=13),
    "longer than anybody needs": header(0x21, 0x11, V4 + bytes(MAX_BYTES - HEAD_BYTES - len(V4) + 1)),
    "as long as it can say": header(0x21, 0x11, bytes(65535)),
}


@pytest.mark.parametrize(("head", "rest"), MALFORMED.values(), ids=MALFORMED)
def test_anything_else_is_refused(head: bytes, rest: bytes) -> None:
    with pytest.raises(Refused) as caught:
        announced(head, rest)
    assert caught.value.reason is Reason.CONNECTION_REFUSED


def test_longest_header_is_taken() -> None:
    head, rest = header(0x21, 0x11, V4 + bytes(MAX_BYTES - HEAD_BYTES - len(V4)))
    assert announced(head, rest) == Peer(address="203.0.113.9", port=4711)


@given(
    st.binary(max_size=20) | st.builds(lambda tail: SIGNATURE + tail, st.binary(max_size=4)), st.binary(max_size=600)
)
def test_hostile_bytes_are_refused_or_a_peer(head: bytes, rest: bytes) -> None:
    try:
        peer = announced(head, rest)
    except Refused as refusal:
        assert refusal.reason is Reason.CONNECTION_REFUSED
    else:
        assert head.startswith(SIGNATURE)
        assert len(rest) == length_after(head) <= MAX_BYTES - HEAD_BYTES
        assert peer is None or peer.is_unix or ipaddress.ip_address(peer.address)


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 65535), st.binary(max_size=300))
def test_every_address_is_read_as_it_was_written(
    source: ipaddress.IPv4Address | ipaddress.IPv6Address,
    destination: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    tlvs: bytes,
) -> None:
    if source.version != destination.version:
        destination = source
    rest = source.packed + destination.packed + struct.pack("!HH", port, 443) + tlvs
    peer = announced(*header(0x21, 0x11 if source.version == 4 else 0x21, rest))
    assert peer is not None
    told = ipaddress.ip_address(peer.address)
    assert told in {source, getattr(source, "ipv4_mapped", None)}
    assert peer.port == port
