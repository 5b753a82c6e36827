"""A signed word about a user is taken as strictly as a token, and its users are never an issuer's subjects."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.claims import principal_key
from appliance.core.delegation import Service, SignedUser, SignedUserRules, issuer_of_users, read_signed_user
from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import LEEWAY_SECONDS
from tests.support.made_values import CLAIMS

NOW = 1_790_000_000
RULES = SignedUserRules(
    issuer=issuer_of_users("https://paddock.local", "webui"),
    jwt_issuer="open-webui",
    max_lifetime_seconds=300,
    groups_by_role={"user": ("staff",), "admin": ("staff", "operators")},
    groups_by_email={"carol@example.com": ("research", "staff")},
    groups_by_id={"7": ("night",)},
)
GOOD: dict[str, Any] = {
    "sub": "2d95199f",
    "email": "alice@example.com",
    "name": "Alice",
    "role": "user",
    "iss": "open-webui",
    "iat": NOW,
    "exp": NOW + 300,
}


def said(now_seconds: int = NOW, **changes: Any) -> SignedUser:
    document = {name: value for name, value in (GOOD | changes).items() if value != "absent"}
    return read_signed_user(document, RULES, now_seconds=now_seconds)


def test_what_open_webui_writes_is_read() -> None:
    assert said() == SignedUser(subject="2d95199f", groups=("staff",))
    assert said(nbf=NOW, later="unknown", email="absent", name="absent").groups == ("staff",)


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({"role": "absent"}, ()),
        ({"role": ""}, ()),
        ({"role": "pending"}, ()),
        ({"role": "User"}, ()),
        ({"role": " user"}, ()),
        ({"role": "admin"}, ("staff", "operators")),
        ({"role": "x", "email": "carol@example.com"}, ("research", "staff")),
        ({"role": "x", "email": "CAROL@example.com"}, ()),
        ({"role": "x", "email": "carol@example.com@evil.example"}, ()),
        ({"role": "x", "sub": "7"}, ("night",)),
        ({"role": "user", "email": "carol@example.com", "sub": "7"}, ("staff", "research", "night")),
        ({"role": "x", "groups": ["staff"]}, ()),
    ],
    ids=str,
)
def test_no_group_comes_but_by_configuration(changes: dict[str, Any], groups: tuple[str, ...]) -> None:
    assert said(**changes).groups == groups


@pytest.mark.parametrize(
    "changes",
    [
        *({name: "absent"} for name in ("iss", "sub", "iat", "exp")),
        *({name: None} for name in GOOD),
        *({name: 1} for name in ("sub", "email", "name", "role", "iss")),
        *({name: [GOOD[name]]} for name in GOOD),
        {"sub": ""},
        {"sub": "a" * 1025},
        {"email": "a" * 1025},
        {"iss": "open-webui2"},
        {"iss": ["open-webui"]},
        {"aud": "paddock"},
        {"aud": []},
        {"aud": None},
        {"exp": str(NOW + 300)},
        {"exp": float("inf")},
        {"exp": NOW + 1.5},
        {"exp": True},
        {"exp": -1},
        {"exp": NOW + 301},
        {"exp": NOW + 86400},
        {"iat": NOW + 31, "exp": NOW + 300},
        {"iat": NOW - 331, "exp": NOW - 31},
        {"iat": NOW, "exp": NOW},
        {"nbf": NOW + 31},
        {"nbf": "0"},
    ],
    ids=str,
)
def test_anything_else_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        said(**changes)
    assert caught.value.reason is Reason.TOKEN_INVALID


def test_it_is_not_taken_after_its_time() -> None:
    assert said(NOW + 300 + LEEWAY_SECONDS - 1).subject == "2d95199f"
    with pytest.raises(Refused, match="expired"):
        said(NOW + 300 + LEEWAY_SECONDS)


_NAMES = st.from_regex(r"\A[A-Za-z0-9._-]{1,8}\Z")
_ISSUERS = st.text(st.sampled_from("a#b/."), min_size=1, max_size=8)


@given(_ISSUERS, _NAMES, _ISSUERS, _NAMES)
def test_users_of_two_services_never_have_one_issuer(one: str, name: str, other: str, its: str) -> None:
    same = (one, name) == (other, its)
    assert (issuer_of_users(one, name) == issuer_of_users(other, its)) == same


def test_user_of_a_service_is_never_the_subject_of_that_name() -> None:
    assert principal_key(RULES.issuer, "alice") != principal_key("https://paddock.local", "alice")


@pytest.mark.parametrize("changes", [{"issuer": "x"}, {"client_id": "x"}, {"subject": "x"}], ids=str)
def test_service_is_known_by_all_three(changes: dict[str, str]) -> None:
    fields = {"issuer": CLAIMS.issuer, "client_id": CLAIMS.client_id, "subject": CLAIMS.subject}
    assert Service(**fields).bears(CLAIMS)
    assert not Service(**(fields | changes)).bears(CLAIMS)
