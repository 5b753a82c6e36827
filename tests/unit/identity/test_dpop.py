"""A proof is taken for the key, token, method and address that it was made for, in its time, and once."""

import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.refusals import Reason, Refused
from appliance.identity import dpop
from appliance.identity.dpop import AGE_SECONDS, AHEAD_SECONDS, ProofChecker, thumbprint
from appliance.identity.keys import VerifyingKey, parse_jwk
from tests.support.identity_provider import base64url, new_key, proof_for, public_jwk
from tests.support.identity_provider import thumbprint as thumbprint_of

NOW = 1_790_000_000
URL = "https://llm.example/v1/models"
TOKEN = "the.token.itself"
KEY = new_key("ES256")
JKT = thumbprint_of(KEY)


def checker() -> ProofChecker:
    return ProofChecker("https://llm.example", since_seconds=0)


def proof(**changes: Any) -> str:
    return proof_for(KEY, TOKEN, **({"url": URL, "iat": NOW} | changes))


def check(unverified: str, by: ProofChecker | None = None, now_seconds: int = NOW, **changes: Any) -> None:
    asked = {"token": TOKEN, "jkt": JKT, "method": "GET", "path": "/v1/models"} | changes
    (by or checker()).check(unverified, now_seconds=now_seconds, **asked)


def refusal(unverified: str, by: ProofChecker | None = None, now_seconds: int = NOW, **changes: Any) -> str:
    with pytest.raises(Refused) as caught:
        check(unverified, by, now_seconds, **changes)
    assert caught.value.reason is Reason.PROOF_INVALID
    return caught.value.detail


def test_good_proof_is_taken() -> None:
    check(proof())
    check(proof(nonce="one that nobody gave out", extra=[1]), checker())


@pytest.mark.parametrize("url", ["HTTPS://LLM.example/v1/models", "https://llm.example:443/v1/models?a=b#c"])
def test_address_is_compared_as_rfc_3986_normalises_it(url: str) -> None:
    check(proof(url=url))


@pytest.mark.parametrize(
    "url",
    ["https://llm.example/v1/models/", "https://llm.example/v1/MODELS", "https://llm.example:8443/v1/models",
     "/v1/models", "https://llm.example/v1/%6dodels", "https://llm.example//v1/models", "",
     "http://llm.example/v1/models",
     "https://u@llm.example/v1/models", "https://llm.example:x/v1/models", "https://[/v1/models"],
)  # fmt: skip
def test_other_address_is_refused(url: str) -> None:
    assert refusal(proof(url=url)).startswith("htu ")


SPOILED = [
    ("another method", {"method": "POST"}, "htm is another method"),
    ("method in other letters", {"method": "get"}, "htm is another method"),
    ("another token's hash", {"ath": base64url(b"x" * 32)}, "ath is another token's"),
    ("hash with padding", {"ath": "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="}, "ath is another token's"),
    ("too old", {"iat": NOW - AGE_SECONDS - 1}, "iat is not within"),
    ("too early", {"iat": NOW + AHEAD_SECONDS + 1}, "iat is not within"),
    ("time as a text", {"iat": str(NOW)}, "claims: "),
    ("time as a float", {"iat": NOW + 0.5}, "claims: "),
    ("no time", {"iat": None}, "claims: "),
    ("no identifier", {"jti": None}, "claims: "),
    ("empty identifier", {"jti": ""}, "claims: "),
    ("long identifier", {"jti": "x" * 257}, "claims: "),
    ("no hash", {"ath": None}, "claims: "),
    ("no address", {"htu": None}, "htu "),
    ("type JWT", {"header": {"typ": "JWT"}}, "typ is not dpop+jwt"),
    ("type of an access token", {"header": {"typ": "at+jwt"}}, "typ is not dpop+jwt"),
    ("key id beside the key", {"header": {"kid": "x"}}, "other members"),
    ("critical", {"header": {"crit": ["x"]}}, "other members"),
    ("no key", {"header": {"jwk": None}}, "the algorithm is not"),
    ("key as a text", {"header": {"jwk": "x"}}, "the algorithm is not"),
    ("private key", {"header": {"jwk": public_jwk(KEY, "ES256", d="AAAA")}}, "than a public key"),
    ("secret", {"header": {"jwk": {"kty": "oct", "k": "AAAA"}}}, "than a public key"),
    ("chain beside the key", {"header": {"jwk": public_jwk(KEY, "ES256", x5c=["AAAA"])}}, "than a public key"),
    ("list as kind", {"header": {"jwk": {"kty": ["EC"]}}}, "than a public key"),
    ("somebody else's key", {"header": {"jwk": public_jwk(new_key("ES256"), "ES256")}}, "InvalidSignatureError"),
    ("no point", {"header": {"jwk": public_jwk(KEY, "ES256", y=public_jwk(KEY, "ES256")["x"])}}, "malformed"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), [row[1:] for row in SPOILED], ids=[row[0] for row in SPOILED])
def test_spoiled_proof_is_refused(changes: dict[str, Any], told: str) -> None:
    if changes.get("htu", "") is None:
        changes = {"url": "https://elsewhere.example"}
    assert told in refusal(proof(**changes))


def test_other_key_than_the_tokens_is_refused() -> None:
    other = new_key("ES256")
    assert "bound to" in refusal(proof_for(other, TOKEN, url=URL, iat=NOW))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "RS512", "", None, 1, ["ES256"]])
def test_algorithm_that_was_not_told_is_refused(algorithm: object) -> None:
    head, body, signature = proof().split(".")
    members = json.loads(jwt.utils.base64url_decode(head)) | {"alg": algorithm}
    assert refusal(".".join((base64url(json.dumps(members).encode()), body, signature)))


def test_algorithm_of_another_family_than_the_keys_is_refused() -> None:
    head, body, signature = proof().split(".")
    members = json.loads(jwt.utils.base64url_decode(head)) | {"alg": "RS256"}
    assert "of another type" in refusal(".".join((base64url(json.dumps(members).encode()), body, signature)))


def test_weak_or_enormous_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    jwk = public_jwk(weak, "RS256")
    head = base64url(json.dumps({"typ": "dpop+jwt", "alg": "RS256", "jwk": jwk}).encode())
    assert "bits" in refusal(f"{head}.{head}.AAAA")
    assert "at most 4 kB" in refusal(proof(pad="x" * 4096))
    p384 = ec.generate_private_key(ec.SECP384R1())
    head = base64url(json.dumps({"typ": "dpop+jwt", "alg": "ES256", "jwk": public_jwk(p384, "ES256")}).encode())
    assert refusal(f"{head}.{head}.AAAA")


@pytest.mark.parametrize("text", ["", "a", "a.b", "a.b.c.d", "é.b.c", "a.b.c\n", "..", "\ud800.b.c", "AAAA.AAAA.AAAA"])
def test_what_is_no_proof_is_refused(text: str) -> None:
    assert refusal(text)


def test_repeated_member_is_refused() -> None:
    head = base64url(b'{"typ":"x","typ":"dpop+jwt","alg":"ES256","jwk":{}}')
    assert "twice" in refusal(f"{head}.AAAA.AAAA")


def test_proof_is_taken_once_and_remembered_for_as_long_as_it_would_pass() -> None:
    by = checker()
    early = proof(iat=NOW + AHEAD_SECONDS)
    check(early, by)
    for later in (0, 1, AGE_SECONDS, AHEAD_SECONDS + AGE_SECONDS):
        assert refusal(early, by, NOW + later) == "the proof was used before"
    assert "iat is not within" in refusal(early, by, NOW + AHEAD_SECONDS + AGE_SECONDS + 1)


def test_identifier_of_another_key_is_another_proof() -> None:
    by, other = checker(), new_key("ES256")
    check(proof(jti="one"), by)
    check(proof_for(other, TOKEN, url=URL, iat=NOW, jti="one"), by, jkt=thumbprint_of(other))


def test_refused_proof_is_not_remembered() -> None:
    by = checker()
    refusal(proof(jti="one"), by, method="POST")
    check(proof(jti="one"), by)


def test_memory_of_proofs_is_bounded_and_forgets_none_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpop, "MAX_REMEMBERED", 3)
    by = checker()
    first = proof()
    for one in (first, proof(), proof()):
        check(one, by)
    with pytest.raises(Refused) as caught:
        check(proof(), by)
    assert (caught.value.reason, caught.value.retry_after_seconds) == (Reason.OVERLOADED, AGE_SECONDS)
    assert refusal(first, by) == "the proof was used before"
    later = NOW + AGE_SECONDS + AHEAD_SECONDS + 1
    check(proof(iat=later), by, later)


def test_thumbprint_is_that_of_the_rfc() -> None:
    """RFC 7638 section 3.1."""
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhM"
        "stn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5"
        "hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key = parse_jwk({"kty": "RSA", "n": modulus, "e": "AQAB"}, "RS256")
    assert thumbprint(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
def test_thumbprint_is_the_same_for_every_spelling_of_a_key(algorithm: str) -> None:
    key = new_key(algorithm)
    assert thumbprint(VerifyingKey(algorithm, key.public_key())) == thumbprint_of(key, algorithm)


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.dictionaries(
    st.sampled_from(["kty", "crv", "x", "y", "n", "e", "EC"]), inner, max_size=4), max_leaves=6))  # fmt: skip
def test_any_key_is_refused_and_never_an_error(jwk: Any) -> None:
    for algorithm in ("ES256", "RS256", "EdDSA"):
        head = base64url(json.dumps({"typ": "dpop+jwt", "alg": algorithm, "jwk": jwk}).encode())
        refusal(f"{head}.AAAA.AAAA")


def test_proof_that_the_process_before_may_have_taken_is_refused() -> None:
    """What was used is remembered in memory only: a restart must not make old proofs new."""
    unverified = proof()
    check(unverified)
    restarted = ProofChecker("https://llm.example", since_seconds=NOW + 1)
    assert refusal(unverified, restarted, NOW + 2).startswith("iat is before this process")
    check(proof(iat=NOW + 1), restarted, NOW + 2)
