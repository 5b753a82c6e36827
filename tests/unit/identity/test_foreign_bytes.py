"""What foreign issuers and strangers send is judged or refused, and is never an error of ours."""

import asyncio
import json
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.token_claims import IssuerRules, ReadClaims
from appliance.core.values import Presented
from appliance.identity.https import Unreachable
from appliance.identity.introspection import judge
from appliance.identity.keys import parse_foreign_keys
from appliance.identity.tokens import JwtIssuer, OwnKeys, TokenVerifier
from tests.support.identity_provider import new_key, public_jwk
from tests.vectors.jwt import generate

NOW = generate.NOW
ALGORITHMS = ("ES256", "RS256", "PS256", "EdDSA")
EVERY = frozenset(ALGORITHMS)
RULES = IssuerRules(
    issuer=generate.ISSUER, audiences=frozenset({"paddock"}), max_lifetime_seconds=86_400, groups={"people": "staff"}
)
KEYS = {"EC": new_key("ES256"), "RSA": new_key("RS256"), "OKP": new_key("EdDSA")}
FAMILY = {"ES256": "EC", "RS256": "RSA", "PS256": "RSA", "EdDSA": "OKP"}
MEMBERS = ("kty", "crv", "x", "y", "n", "e", "kid", "use", "key_ops", "alg")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def verified(keys: dict[str, Any], token: str) -> bool:
    source = OwnKeys(parse_foreign_keys(json.dumps({"keys": [keys]}).encode(), EVERY))
    by = TokenVerifier([JwtIssuer(RULES, source)])
    try:
        asyncio.run(by.verify(Presented(unverified_token=token), now_seconds=NOW))
    except Refused as refused:
        assert refused.reason is Reason.TOKEN_INVALID
        return False
    return True


@pytest.mark.parametrize("signed_by", ALGORITHMS)
@pytest.mark.parametrize("of_the_key", ALGORITHMS)
def test_no_algorithm_stands_for_another_of_the_same_key_either(of_the_key: str, signed_by: str) -> None:
    """RFC 8725 section 3.1."""
    keys = public_jwk(KEYS[FAMILY[of_the_key]], of_the_key, kid="first", alg=of_the_key)
    headers = {"kid": "first", "typ": "at+jwt"}
    token = jwt.encode(generate.CLAIMS, KEYS[FAMILY[signed_by]], algorithm=signed_by, headers=headers)
    assert verified(keys, token) == (of_the_key == signed_by)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_signature_by_another_key_of_the_same_algorithm_is_refused(algorithm: str) -> None:
    keys = public_jwk(KEYS[FAMILY[algorithm]], algorithm, kid="first", alg=algorithm)
    headers = {"kid": "first", "typ": "at+jwt"}
    assert not verified(keys, jwt.encode(generate.CLAIMS, new_key(algorithm), algorithm=algorithm, headers=headers))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ALGORITHMS), st.sampled_from(MEMBERS), JSON)
def test_any_value_in_a_key_is_a_key_or_a_fault(algorithm: str, member: str, value: Any) -> None:
    good = public_jwk(KEYS[FAMILY[algorithm]], algorithm, kid="first", alg=algorithm)
    try:
        parse_foreign_keys(json.dumps({"keys": [good | {member: value}]}).encode(), EVERY)
    except Fault as fault:
        assert fault.detail


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_for_a_set_are_a_fault(data: bytes) -> None:
    with pytest.raises(Fault):
        parse_foreign_keys(data, EVERY)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_about_a_token_are_no_answer(data: bytes) -> None:
    with pytest.raises(Unreachable):
        judge(data, RULES)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from((*generate.CLAIMS, "active", "iss", "cnf", "act", "scope", "nbf", "token_type")), JSON)
def test_any_value_in_an_answer_is_judged(member: str, value: Any) -> None:
    document = {"active": True, **generate.CLAIMS, "groups": ["people"]} | {member: value}
    try:
        said = judge(json.dumps(document).encode(), RULES)
    except Unreachable:
        return
    assert said is None or isinstance(said, ReadClaims)
    if said is not None and member != "groups":
        assert said.groups == ("staff",)
