"""Nobody becomes another by a header, and a trusted proxy that cannot be understood is not guessed at."""

import base64
import hashlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.forwarded import MAX_HOPS, Origin, Trust, network, origin, split
from appliance.core.refusals import Reason, Refused
from appliance.core.values import UNIX_PEER, Peer

PROXY = Peer(address="10.0.0.1", port=5000)
TRUST = Trust(networks=(network("10.0.0.0/24"), network("2001:db8:1::/48")), unix=True)
DER = b"\x30\x82\x01\x00" + bytes(range(256))
X5T = hashlib.sha256(DER).digest()


def client(*lines: str, proxy: Peer = PROXY) -> str:
    return origin(proxy, [(b"x-forwarded-for", line.encode("latin-1")) for line in lines], TRUST).peer.address


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ((), "10.0.0.1"),
        (("203.0.113.9",), "203.0.113.9"),
        (("198.51.100.1, 203.0.113.9",), "203.0.113.9"),
        (("198.51.100.1, 203.0.113.9, 10.0.0.7",), "203.0.113.9"),
        (("198.51.100.1", "203.0.113.9", "10.0.0.7"), "203.0.113.9"),
        (("203.0.113.9, 2001:db8:1::7 ,\t10.0.0.7",), "203.0.113.9"),
        (("<script>, unknown, 203.0.113.9",), "203.0.113.9"),
        (("10.0.0.9, 10.0.0.7",), "10.0.0.9"),
        (("::ffff:203.0.113.9",), "203.0.113.9"),
        (("203.0.113.9, ::ffff:10.0.0.7",), "203.0.113.9"),
        (("2001:DB8:2:0::1",), "2001:db8:2::1"),
        (("127.0.0.1, 203.0.113.9",), "203.0.113.9"),
    ],
)
def test_the_rightmost_address_that_is_no_proxy_asks(lines: tuple[str, ...], address: str) -> None:
    assert client(*lines) == address
    assert client(*lines, proxy=UNIX_PEER) == (address if lines else "unix")


@pytest.mark.parametrize(
    "hops",
    ["", " ", ",", "203.0.113.9,", "203.0.113.9:80", "[2001:db8::1]", "203.0.113.009", "203.0.113", "fe80::1%eth0",
     "unix", "unknown", "_hidden", "for=203.0.113.9", "203.0.113.9 10.0.0.7", "203.0.113.9;10.0.0.7", "\xb9",
     "a" * 5000, "203.0.113.9, x, 10.0.0.7"],
)  # fmt: skip
def test_proxy_that_cannot_be_understood_is_refused(hops: str) -> None:
    with pytest.raises(Refused) as caught:
        client(hops)
    assert caught.value.reason is Reason.HEADER_INVALID


@given(st.lists(st.text(st.characters(max_codepoint=255), max_size=40), max_size=5), st.ip_addresses(v=4))
def test_no_claim_to_the_left_becomes_the_client(claims: list[str], real: ipaddress.IPv4Address) -> None:
    if real in ipaddress.ip_network("10.0.0.0/24"):
        return
    assert client(*claims, str(real)) == str(real)


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_hostile_lines_are_refused_or_an_address(lines: list[bytes]) -> None:
    try:
        told = origin(PROXY, [(b"x-forwarded-for", line) for line in lines], TRUST)
    except Refused as refusal:
        assert refusal.reason is Reason.HEADER_INVALID
    else:
        assert ipaddress.ip_address(told.peer.address)


def test_unsigned_words_about_users_are_taken_away_and_signed_ones_are_not() -> None:
    names = (b"x-openwebui-user-id", b"x-openwebui-user-name", b"x-openwebui-user-email", b"x-openwebui-user-role")
    signed = [(b"x-openwebui-user-jwt", b"a.b.c"), (b"x-openwebui-chat-id", b"1"), (b"x-paddock-user-token", b"t")]
    unsigned = [(name, b"root") for name in names]
    assert split([*unsigned, *signed]) == (signed, unsigned)


@pytest.mark.parametrize("value", [b"http", b"https"])
def test_scheme_is_told(value: bytes) -> None:
    assert origin(PROXY, [(b"x-forwarded-proto", value)], TRUST).scheme == value.decode()


@pytest.mark.parametrize(
    "values", [[b""], [b"HTTPS"], [b"ws"], [b"https, http"], [b"https", b"https"], [b"https", b"x"]]
)
def test_scheme_that_is_none_is_refused(values: list[bytes]) -> None:
    with pytest.raises(Refused):
        origin(PROXY, [(b"x-forwarded-proto", value) for value in values], TRUST)


def pem() -> bytes:
    """As nginx writes ``$ssl_client_escaped_cert``."""
    lines = base64.encodebytes(DER).decode().strip()
    text = f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
    for mark in ("+", "/", "=", "\n", " "):
        text = text.replace(mark, f"%{ord(mark):02X}")
    return text.encode()


@pytest.mark.parametrize("value", [b":" + base64.b64encode(DER) + b":", pem(), pem().removesuffix(b"%0A")])
def test_certificate_of_the_client_is_told_in_both_ways(value: bytes) -> None:
    assert origin(PROXY, [(b"client-cert", value)], TRUST).client_certificate_sha256 == X5T


GOOD = b":" + base64.b64encode(DER) + b":"


@pytest.mark.parametrize(
    "values",
    [
        [b""], [b"::"], [b":="], [GOOD[:-1]], [GOOD[1:]], [GOOD, GOOD], [GOOD + b", " + GOOD], [b":" + GOOD[4:]],
        [b":a:"], [b":" + b"QQ=Q" + b":"], [pem().replace(b"%0A", b"\n")], [pem() + pem()],
        [b"-----BEGIN%20CERTIFICATE-----"], [pem().replace(b"%20", b" ")], [GOOD + b";a=b"],
    ],
)  # fmt: skip
def test_certificate_that_is_none_is_refused(values: list[bytes]) -> None:
    with pytest.raises(Refused) as caught:
        origin(PROXY, [(b"client-cert", value) for value in values], TRUST)
    assert caught.value.reason is Reason.HEADER_INVALID


@pytest.mark.parametrize(
    "name",
    ["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded", "X-Forwarded-User",
     "X-Real-IP", "Client-Cert", "Client-Cert-Chain", "X-Client-Cert", "X-Client-IP", "X-SSL-Client-Cert", "X-User",
     "X-User-Id", "X-Tenant", "X-Tenant-Id", "X-Remote-User", "Remote-User", "True-Client-IP", "X-Original-URL"],
)  # fmt: skip
def test_no_word_about_the_client_stays_among_the_headers(name: str) -> None:
    header = (name.lower().encode(), b"x")
    assert split([(b"host", b"h"), header, (b"accept", b"*/*")]) == ([(b"host", b"h"), (b"accept", b"*/*")], [header])


@pytest.mark.parametrize(
    "name", ["Host", "Authorization", "Accept", "Content-Type", "X-OpenWebUI-User-Jwt", "User-Agent"]
)
def test_what_the_client_itself_says_stays(name: str) -> None:
    header = (name.lower().encode(), b"x")
    assert split([header]) == ([header], [])


def test_other_words_of_a_trusted_proxy_are_not_listened_to() -> None:
    told = [(b"forwarded", b"for=198.51.100.1"), (b"x-real-ip", b"198.51.100.1"), (b"x-user", b"root")]
    assert origin(PROXY, told, TRUST) == Origin(peer=PROXY)


@pytest.mark.parametrize(
    ("address", "covered"),
    [("10.0.0.255", True), ("10.0.1.0", False), ("::ffff:10.0.0.1", True), ("2001:db8:1:2::3", True), ("::1", False),
     ("fe80::1%eth0", False), ("unix", True)],
)  # fmt: skip
def test_trust_covers_what_it_names(address: str, covered: bool) -> None:
    assert TRUST.covers(Peer(address=address, port=1)) is covered
    assert not Trust().covers(Peer(address=address, port=1))


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "10.0.0.1/24", "10.0.0", "proxy.example", "", "10.0.0.0/33"])
def test_everybody_and_nobody_are_not_to_be_trusted(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        network(text)


def test_row_of_proxies_without_end_is_refused_before_it_costs_much() -> None:
    proxies = ["10.0.0.9"] * 1500
    assert client(", ".join(["203.0.113.9", *proxies[: MAX_HOPS - 1]])) == "203.0.113.9"
    assert client(", ".join(["10.0.0.9"] * MAX_HOPS)) == "10.0.0.9"
    assert client("10.0.0.7", *["203.0.113.9"] * 1500) == "203.0.113.9"
    with pytest.raises(Refused) as caught:
        client(", ".join(proxies))
    assert caught.value.reason is Reason.HEADER_INVALID
