"""What a token is bound to (RFC 7800): confirmed, or the token is refused."""

from typing import Any

import pytest

from appliance.core.refusals import Refused
from appliance.core.token_claims import OTHER_METHODS, IssuerRules, read

RULES = IssuerRules(issuer="i", audiences=frozenset({"a"}), max_lifetime_seconds=3600)
KEY = "A" * 43


def claims(cnf: Any) -> dict[str, Any]:
    said = {"iss": "i", "aud": "a", "sub": "s", "client_id": "c", "jti": "j", "exp": 100, "groups": [], "models": []}
    return said | {"cnf": cnf}


@pytest.mark.parametrize("more", [{}, {"kc-jkt-type": "DPoP"}, {"x": {"y": 1}}], ids=str)
def test_member_that_is_no_method_does_not_spoil_the_binding(more: dict[str, Any]) -> None:
    bound = read(claims({"jkt": KEY} | more), RULES).confirmation
    assert bound is not None
    assert (bound.jkt, bound.certificate_sha256) == (KEY, None)


def test_both_methods_bind_together() -> None:
    bound = read(claims({"jkt": KEY, "x5t#S256": KEY}), RULES).confirmation
    assert bound is not None
    assert (bound.jkt, bound.certificate_sha256) == (KEY, KEY)


@pytest.mark.parametrize(
    "cnf", [{}, {"kc-jkt-type": "DPoP"}, {"jkt": None}, {"jkt": ""}, {"jkt": [KEY]}, [], "x"], ids=str
)
def test_token_with_a_binding_that_names_nothing_is_no_bearer_token(cnf: Any) -> None:
    with pytest.raises(Refused, match="cnf"):
        read(claims(cnf), RULES)


@pytest.mark.parametrize("method", sorted(OTHER_METHODS))
def test_method_that_cannot_be_confirmed_is_not_passed_over(method: str) -> None:
    for beside in ({}, {"jkt": KEY}):
        with pytest.raises(Refused, match="cnf"):
            read(claims({method: {"kty": "EC"}} | beside), RULES)
