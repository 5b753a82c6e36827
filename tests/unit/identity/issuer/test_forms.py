"""What two readers could read differently is refused before anybody else reads it."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.refusals import Reason, Refused
from appliance.identity.issuer import forms


def refusal(pairs: list[tuple[str, str]]) -> Refused:
    with pytest.raises(Refused) as caught:
        forms.read(pairs)
    return caught.value


def test_parameters_are_read_and_targets_kept_apart() -> None:
    form = forms.read([("grant_type", "a b"), ("resource", "x"), ("audience", "y"), ("resource", "x")])
    assert dict(form.values) == {"grant_type": "a b"}
    assert form.targets == ("x", "y", "x")


def test_what_nobody_knows_or_has_no_value_is_left_out() -> None:
    form = forms.read([("scope", ""), ("dpop_jkt", "x"), ("é", "ü"), ("x" * 9000, "y" * 9000)])
    assert (dict(form.values), form.targets) == ({}, ())


@pytest.mark.parametrize("name", ["grant_type", "scope", "client_id", "client_secret", "token", "unknown"])
def test_repeated_parameter_is_refused_even_without_a_value(name: str) -> None:
    for first, second in (("a", "a"), ("a", ""), ("", "a"), ("", "")):
        found = refusal([(name, first), (name, second)])
        assert (found.reason, found.detail) == (Reason.OAUTH_REQUEST_INVALID, "a parameter is repeated")


def test_too_many_parameters_are_refused() -> None:
    many = [(f"n{number}", "") for number in range(forms.MAX_PARAMETERS)]
    forms.read(many)
    assert refusal([*many, ("one", "more")]).reason is Reason.OAUTH_REQUEST_INVALID


@pytest.mark.parametrize(
    ("name", "most", "reason"),
    [
        ("grant_type", 1024, Reason.OAUTH_REQUEST_INVALID),
        ("client_secret", 1024, Reason.OAUTH_REQUEST_INVALID),
        ("refresh_token", 1024, Reason.OAUTH_REQUEST_INVALID),
        ("subject_token", 8192, Reason.OAUTH_REQUEST_INVALID),
        ("client_assertion", 8192, Reason.OAUTH_REQUEST_INVALID),
        ("token", 8192, Reason.OAUTH_REQUEST_INVALID),
        ("scope", 16_384, Reason.SCOPE_INVALID),
        ("resource", 1024, Reason.TARGET_INVALID),
        ("audience", 1024, Reason.TARGET_INVALID),
    ],
)
def test_long_value_is_refused(name: str, most: int, reason: Reason) -> None:
    forms.read([(name, "x" * most)])
    assert refusal([(name, "x" * (most + 1))]).reason is reason


@pytest.mark.parametrize("value", ["a\0b", "a\r\nb", "a\tb", "caf\u00e9", "\u2028", "\ud800", "\x7f"])
def test_value_that_is_not_printable_ascii_is_refused(value: str) -> None:
    assert refusal([("client_id", value)]).reason is Reason.OAUTH_REQUEST_INVALID


def test_scope_names_are_each_once_in_their_order() -> None:
    assert forms.scopes("b a b !#[]~") == ("b", "a", "!#[]~")
    assert len(forms.scopes("x" * 255 + " " + " ".join(map(str, range(63))))) == 64


@pytest.mark.parametrize(
    "scope", ["", " ", " a", "a ", "a  b", 'a"b', "a\\b", "a\tb", "\u00e9", " ".join(map(str, range(65))), "x" * 256]
)
def test_scope_that_is_none_is_refused(scope: str) -> None:
    with pytest.raises(Refused) as caught:
        forms.scopes(scope)
    assert caught.value.reason is Reason.SCOPE_INVALID


def encoded(pair: bytes) -> str:
    return "Basic " + b64encode(pair).decode()


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (encoded(b"a:b"), ("a", "b")),
        (encoded(b"a:b").replace("Basic ", "bAsIc  "), ("a", "b")),
        (encoded(b"a%3Ab:c%2Bd+e"), ("a:b", "c+d e")),
        (encoded(b"a:b:c"), ("a", "b:c")),
    ],
)
def test_credentials_are_decoded_as_in_a_form(header: str, wanted: tuple[str, str]) -> None:
    assert forms.basic(header) == wanted


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic ", "Basic a", "Basic YQ", "Basic YTpi=", "Basic YTpi, Basic YTpi", "Bearer YTpi", "BasicYTpi",
     "Basic Y Tpi", "Basic YTpi\n", "Basic !!!!", encoded(b"a"), encoded(b":b"), encoded(b"a:"), encoded(b"a%:b"),
     encoded(b"a%zz:b"), encoded(b"a:b\0"), encoded("\u00e9:b".encode()), encoded(b"%C3%A9:b"), encoded(b"a b:c"),
     encoded(b"a:" + b"x" * 10_000)],
)  # fmt: skip
def test_header_that_is_no_credentials_is_refused(header: str) -> None:
    with pytest.raises(Refused) as caught:
        forms.basic(header)
    assert caught.value.reason is Reason.CLIENT_INVALID


@given(st.lists(st.tuples(st.text(), st.text())), st.text())
def test_whatever_comes_is_read_or_refused(pairs: list[tuple[str, str]], header: str) -> None:
    for read in (lambda: forms.read(pairs), lambda: forms.basic(header), lambda: forms.scopes(header)):
        try:
            read()
        except Refused as refusal:
            assert refusal.reason.status in (400, 401)
