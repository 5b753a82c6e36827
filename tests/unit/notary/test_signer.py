"""Tokens that verify, and those that are never made."""

import json
from base64 import urlsafe_b64decode
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from appliance.core.clients import Party
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest
from appliance.ipc.messages import IssueToken
from appliance.notary.keys import public_jwk
from appliance.notary.signer import SignedToken, TokenSigner
from tests.support.registered import order

KEY = generate_private_key(SECP256R1())
SIGNER = TokenSigner(KEY, issuer="https://issuer.test", audience="paddock")
NOW = 1_790_000_000


def sign(**fields: Any) -> SignedToken:
    given: dict[str, Any] = {
        "call": 1,
        "subject": "ada",
        "client_id": "cli",
        "groups": ("staff",),
        "models": ("demo",),
        "ttl_seconds": 60,
    }
    return SIGNER.sign(IssueToken(**(given | fields)), now_seconds=NOW)


def test_token_verifies_with_the_published_key_and_has_every_claim() -> None:
    signed = sign()
    header = jwt.get_unverified_header(signed.token)
    assert header == {"typ": "at+jwt", "alg": "ES256", "kid": public_jwk(KEY)["kid"]}
    claims = jwt.decode(
        signed.token,
        jwt.PyJWK(public_jwk(KEY)),
        algorithms=["ES256"],
        audience="paddock",
        issuer="https://issuer.test",
        options={
            "require": ["exp", "iat", "iss", "aud", "sub", "client_id", "jti"],
            "strict_aud": True,
            "verify_exp": False,
            "verify_iat": False,
        },
    )
    assert claims == {
        "iss": "https://issuer.test",
        "aud": "paddock",
        "sub": "ada",
        "client_id": "cli",
        "iat": NOW,
        "exp": NOW + 60,
        "jti": signed.token_id,
        "groups": ["staff"],
        "models": ["demo"],
    }
    assert signed.token_sha256 == Digest.of(signed.token.encode())
    assert signed.expires_at_seconds == NOW + 60


def test_numbers_are_integers_and_segments_unpadded() -> None:
    header, payload, signature = sign().token.split(".")
    assert not any("=" in part for part in (header, payload, signature))
    assert b'"exp":1790000060' in urlsafe_b64decode(payload + "==").replace(b" ", b"")
    assert len(urlsafe_b64decode(signature + "==")) == 64
    assert "exp" in json.loads(urlsafe_b64decode(payload + "=="))


def test_no_two_tokens_share_an_id() -> None:
    assert len({sign().token_id for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "fields",
    [
        {"ttl_seconds": 0},
        {"ttl_seconds": 86_401},
        {"ttl_seconds": -5},
        {"subject": ""},
        {"subject": "a\nb"},
        {"subject": "a\x00"},
        {"client_id": "x" * 256},
        {"groups": ("ok", "")},
        {"models": ("\u202e",)},
        {"groups": tuple(f"{n}" * 100 for n in range(64))},
    ],
)
def test_token_that_our_verifier_would_refuse_is_not_made(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        sign(**fields)
    assert refused.value.reason is Reason.FIELD_INVALID


# --- for clients ----------------------------------------------------------------------------------------------------


def claims_of(**fields: Any) -> dict[str, Any]:
    signed = SIGNER.sign_grant(order(**fields), now_seconds=NOW)
    claims: dict[str, Any] = jwt.decode(signed.token, options={"verify_signature": False})
    return claims


def test_what_is_absent_is_not_claimed() -> None:
    assert {"scope", "act", "cnf"} & claims_of(groups=()).keys() == set()
    assert claims_of(groups=("b", "a"))["scope"] == "b a"
    assert claims_of(jkt="j" * 43)["cnf"] == {"jkt": "j" * 43}


def test_nearest_actor_is_outermost() -> None:
    acting = tuple(Party(subject=name) for name in ("near", "middle", "far"))
    assert claims_of(acting=acting)["act"] == {"sub": "near", "act": {"sub": "middle", "act": {"sub": "far"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "a\nb"},
        {"subject": "x" * 1025},
        {"models": ("\u202e",)},
        {"acting": (Party(subject="agent", issuer="a\x00"),)},
        {"groups": tuple(f"{n:0200}" for n in range(64))},
    ],
)
def test_client_gets_no_token_that_our_verifier_would_refuse(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        SIGNER.sign_grant(order(**fields), now_seconds=NOW)
    assert refused.value.reason is Reason.GRANT_INVALID
