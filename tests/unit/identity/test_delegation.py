"""A user is told only by whom it may be told, in its form; everything else has one reason, and is never ignored."""

import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.delegation import Service, SignedUserRules, issuer_of_users
from appliance.core.refusals import Misconfigured, Reason, Refused
from appliance.core.values import Digest, ForwardedUser, Presented, VerifiedClaims
from appliance.identity.delegation import SignedUsers, UserTokens
from tests.support.made_values import CLAIMS
from tests.vectors.jwt import generate

NOW = 1_790_000_000
SECRET = "0123456789abcdef0123456789abcdef"
SERVICE = Service(issuer="https://paddock.local", client_id="webui", subject="webui")
RULES = SignedUserRules(
    issuer=issuer_of_users(SERVICE.issuer, "webui"),
    jwt_issuer="open-webui",
    max_lifetime_seconds=300,
    groups_by_role={"user": ("staff",)},
    groups_by_email={},
    groups_by_id={},
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
HEADER = b'{"alg":"HS256","typ":"JWT"}'
SIGNED = jwt.encode(GOOD, SECRET, algorithm="HS256")


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(
    header: bytes = HEADER, payload: bytes | None = None, secret: str = SECRET, hash_name: str = "sha256"
) -> str:
    """Of any bytes, under a good MAC."""
    text = f"{b64(header)}.{b64(json.dumps(GOOD).encode() if payload is None else payload)}"
    return f"{text}.{b64(hmac.digest(secret.encode(), text.encode(), hash_name))}"


def user(unverified: str, *, now_seconds: int = NOW, secret: str = SECRET) -> ForwardedUser:
    waiting = SignedUsers(SERVICE, RULES, secret).user(unverified, now_seconds=now_seconds)
    with pytest.raises(StopIteration) as done:
        waiting.send(None)
    found: ForwardedUser = done.value.value
    return found


def refusal(unverified: str, **how: Any) -> str:
    with pytest.raises(Refused) as caught:
        user(unverified, **how)
    assert caught.value.reason is Reason.DELEGATION_REFUSED
    return caught.value.detail


def test_what_pyjwt_signs_as_open_webui_does_is_taken() -> None:
    wanted = ForwardedUser(
        issuer="https://paddock.local#webui",
        subject="2d95199f",
        groups=("staff",),
        token_sha256=Digest.of(SIGNED.encode()),
    )
    assert user(SIGNED) == wanted
    assert user(forged()).subject == "2d95199f"


SEGMENTS = SIGNED.split(".")
NONE = b'{"alg":"none","typ":"JWT"}'
ANOTHER = json.dumps(GOOD | {"sub": "x"}).encode()

HOSTILE: dict[str, str] = {
    "nothing": "",
    "two segments": ".".join(SEGMENTS[:2]),
    "no signature": ".".join(SEGMENTS[:2]) + ".",
    "four segments": f"{SIGNED}.x",
    "a list of two": f"{SIGNED},{SIGNED}",
    "a scheme": f"Bearer {SIGNED}",
    "a space": f" {SIGNED}",
    "a line's end": f"{SIGNED}\n",
    "padding": f"{SIGNED}=",
    "a letter beyond ASCII": f"{SIGNED}\xe9",
    "too long": forged(payload=json.dumps(GOOD | {"x": "a" * 8192}).encode()),
    "another secret": forged(secret=SECRET[::-1]),
    "an empty secret": forged(secret=""),
    "another payload": f"{SEGMENTS[0]}.{b64(ANOTHER)}.{SEGMENTS[2]}",
    "alg none": f"{b64(NONE)}.{SEGMENTS[1]}.",
    "alg none with a MAC": forged(NONE),
    "alg None": forged(b'{"alg":"None","typ":"JWT"}'),
    "alg HS512": forged(b'{"alg":"HS512","typ":"JWT"}', hash_name="sha512"),
    "alg HS384": forged(b'{"alg":"HS384","typ":"JWT"}', hash_name="sha384"),
    "alg of the name and a MAC of another": forged(hash_name="sha512"),
    "alg ES256": forged(b'{"alg":"ES256","typ":"JWT"}'),
    "alg hs256": forged(b'{"alg":"hs256","typ":"JWT"}'),
    "alg a list": forged(b'{"alg":["HS256"],"typ":"JWT"}'),
    "no alg": forged(b'{"typ":"JWT"}'),
    "no typ": forged(b'{"alg":"HS256"}'),
    "typ of access tokens": forged(b'{"alg":"HS256","typ":"at+jwt"}'),
    "a key id": forged(b'{"alg":"HS256","typ":"JWT","kid":"../../dev/null"}'),
    "a key of its own": forged(b'{"alg":"HS256","typ":"JWT","jwk":{"kty":"oct","k":"AAAA"}}'),
    "crit": forged(b'{"alg":"HS256","typ":"JWT","crit":["exp"]}'),
    "b64": forged(b'{"alg":"HS256","typ":"JWT","b64":false}'),
    "alg twice": forged(b'{"alg":"none","alg":"HS256","typ":"JWT"}'),
    "alg twice, once escaped": forged(b'{"\\u0061lg":"none","alg":"HS256","typ":"JWT"}'),
    "a header that is no object": forged(b'["HS256"]'),
    "a header that is no JSON": forged(b"HS256"),
    "sub twice": forged(payload=json.dumps(GOOD).encode()[:-1] + b',"sub":"root"}'),
    "sub twice, once escaped": forged(payload=json.dumps(GOOD).encode()[:-1] + b',"s\\u0075b":"root"}'),
    "NaN": forged(payload=json.dumps(GOOD).encode()[:-1] + b',"x":NaN}'),
    "depth": forged(payload=json.dumps(GOOD).encode()[:-1] + b',"x":' + b"[" * 9 + b"]" * 9 + b"}"),
    "bytes that are no UTF-8": forged(payload=json.dumps(GOOD).encode()[:-1] + b',"x":"\xff"}'),
    "a lone surrogate": forged(payload=json.dumps(GOOD).encode()[:-1] + b',"x":"\\ud800"}'),
    "a payload that is no object": forged(payload=b"[]"),
    "an empty payload": forged(payload=b""),
    "another issuer": forged(payload=json.dumps(GOOD | {"iss": "open-webui-2"}).encode()),
    "exp as text": forged(payload=json.dumps(GOOD | {"exp": str(NOW + 300)}).encode()),
    "no exp": forged(payload=json.dumps({name: GOOD[name] for name in GOOD if name != "exp"}).encode()),
    "too long a life": forged(payload=json.dumps(GOOD | {"exp": NOW + 301}).encode()),
    "an audience": forged(payload=json.dumps(GOOD | {"aud": "paddock"}).encode()),
    "an access token": generate.GOOD,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_anything_else_is_refused(name: str) -> None:
    assert refusal(HOSTILE[name])


def test_it_is_refused_after_its_time_and_before() -> None:
    assert "expired" in refusal(SIGNED, now_seconds=NOW + 330)
    assert "valid yet" in refusal(forged(payload=json.dumps(GOOD | {"exp": NOW + 200}).encode()), now_seconds=NOW - 31)
    user(SIGNED, now_seconds=NOW + 329)


@given(st.text(max_size=200))
def test_no_text_has_another_end(text: str) -> None:
    refusal(text)


@given(st.integers(0, len(SIGNED) - 1), st.integers(0, 127))
def test_no_changed_character_goes_unseen(place: int, character: int) -> None:
    changed = SIGNED[:place] + chr(character) + SIGNED[place + 1 :]
    if changed != SIGNED:
        # The last letter of a segment may have bits that say nothing: then the bytes that were signed are the same.
        try:
            assert user(changed).subject == "2d95199f"
            assert changed[:-1] == SIGNED[:-1]
        except Refused as refused:
            assert refused.reason is Reason.DELEGATION_REFUSED


@pytest.mark.parametrize("secret", ["", "a" * 31])
def test_short_secret_is_no_secret(secret: str) -> None:
    with pytest.raises(Misconfigured, match="at least 32 bytes"):
        SignedUsers(SERVICE, RULES, secret)


def test_mac_by_a_public_key_is_refused() -> None:
    """RFC 8725 section 2.1, the other way round: what everybody has is no secret here, and no key of an issuer is."""
    public = json.dumps(json.loads(generate.TOKENS.read_text())["jwks"]["keys"][0])
    assert refusal(forged(secret=public))


# --- the user's own token -------------------------------------------------------------------------------------------


class Verifier:
    """Knows what the tests tell it, and refuses as it is told."""

    def __init__(self, found: VerifiedClaims | Refused) -> None:
        self._found = found
        self.presented: list[Presented] = []

    async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
        assert now_seconds == NOW
        self.presented.append(presented)
        if isinstance(self._found, Refused):
            raise self._found
        return self._found

    def has_ended(self, claims: VerifiedClaims) -> bool:
        raise AssertionError


def told(verifier: Verifier, issuers: tuple[str, ...] = (CLAIMS.issuer,)) -> VerifiedClaims:
    waiting = UserTokens(SERVICE, verifier, issuers).user("the user's", now_seconds=NOW)
    with pytest.raises(StopIteration) as done:
        waiting.send(None)
    found: VerifiedClaims = done.value.value
    return found


def test_users_token_is_verified_as_any_and_without_the_services_proofs() -> None:
    verifier = Verifier(CLAIMS)
    assert told(verifier) == CLAIMS
    assert verifier.presented == [Presented(unverified_token="the user's")]


def test_token_of_another_issuer_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        told(Verifier(CLAIMS), ("https://other.example",))
    assert caught.value.reason is Reason.DELEGATION_REFUSED


@pytest.mark.parametrize(
    "reason", [Reason.TOKEN_INVALID, Reason.PROOF_INVALID, Reason.SCOPE_MISSING, Reason.AUDIT_UNAVAILABLE]
)
def test_refusal_of_the_users_token_is_no_challenge_to_the_service(reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        told(Verifier(Refused(reason, "why")))
    wanted = Reason.AUDIT_UNAVAILABLE if reason is Reason.AUDIT_UNAVAILABLE else Reason.DELEGATION_REFUSED
    assert caught.value.reason is wanted


def test_issuer_out_of_reach_is_told_as_that() -> None:
    with pytest.raises(Refused) as caught:
        told(Verifier(Refused(Reason.ISSUER_UNAVAILABLE, "idp", retry_after_seconds=5)))
    assert (caught.value.reason, caught.value.retry_after_seconds) == (Reason.ISSUER_UNAVAILABLE, 5)
