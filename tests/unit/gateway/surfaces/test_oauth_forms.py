"""No form is read in two ways, and none costs more than its bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.refusals import Reason, Refused
from appliance.gateway.surfaces.oauth import MAX_PARAMETERS, read_form


def refused(body: bytes) -> str:
    with pytest.raises(Refused) as caught:
        read_form(body)
    assert caught.value.reason is Reason.OAUTH_REQUEST_INVALID
    return caught.value.detail


def test_parameters_keep_their_order_and_a_repeated_one_stays_repeated() -> None:
    assert read_form(b"resource=b&resource=a&a=1") == (("resource", "b"), ("resource", "a"), ("a", "1"))
    assert read_form(b"") == ()


@pytest.mark.parametrize(
    ("body", "pair"),
    [
        (b"a=b+c%20d", ("a", "b c d")),
        (b"a=%2B%26%3D%25", ("a", "+&=%")),
        (b"a=b=c==", ("a", "b=c==")),
        (b"a=", ("a", "")),
        (b"a=%C3%A4", ("a", "\xe4")),
        (b"%61=b", ("a", "b")),
        (b"grant_type=urn:ietf:params:oauth:grant-type:token-exchange", (
            "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"
        )),
        (b"resource=https://llm.example/a?b", ("resource", "https://llm.example/a?b")),
        (b"a=%2525", ("a", "%25")),
    ],
)  # fmt: skip
def test_value_is_decoded_once(body: bytes, pair: tuple[str, str]) -> None:
    assert read_form(body) == (pair,)


@pytest.mark.parametrize(
    "body",
    [
        b"a", b"&a=1", b"a=1&", b"a=1&&b=2", b"=1", b"a=%", b"a=%4", b"a=%zz", b"a=%u0041", b"a=% 41", b"a=1;b=2\n",
        b"a= 1", b"a=1\r\nb=2", b"a=\x00", b"a=\xc3\xa4", b"a=\x7f", b"\xef\xbb\xbfa=1", b'{"grant_type":"password"}',
    ],
)  # fmt: skip
def test_what_is_not_name_and_value_in_percent_encoding_is_refused(body: bytes) -> None:
    assert "name=value" in refused(body)


@pytest.mark.parametrize("body", [b"a=%ff", b"a=%C0%80", b"a=%ED%A0%80", b"%ff=a", b"a=%F4%90%80%80"])
def test_what_is_not_utf_8_is_refused(body: bytes) -> None:
    assert "UTF-8" in refused(body)


@pytest.mark.parametrize("body", [b"a=%00", b"a=%0d%0aX", b"a%09=1", b"a=%7f", b"a=%C2%85"])
def test_control_characters_are_refused(body: bytes) -> None:
    assert "control" in refused(body)


def test_parameters_are_bounded() -> None:
    pieces = [b"a=1"] * MAX_PARAMETERS
    assert len(read_form(b"&".join(pieces))) == MAX_PARAMETERS
    assert "more than" in refused(b"&".join([*pieces, b"a=1"]))


@given(st.binary(max_size=200) | st.text(alphabet="a=&%+;2fC\x00\xe4", max_size=40).map(str.encode))
def test_any_bytes_are_pairs_or_refused(body: bytes) -> None:
    try:
        pairs = read_form(body)
    except Refused as refusal:
        assert refusal.reason is Reason.OAUTH_REQUEST_INVALID
        return
    assert all(name for name, _value in pairs)
    assert sum(len(name) + len(value) for name, value in pairs) <= len(body)
