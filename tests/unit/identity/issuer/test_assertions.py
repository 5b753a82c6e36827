"""An assertion authenticates its own client, here, now and once."""

import asyncio
import hmac
import json
from hashlib import sha256
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jwk
from joserfc import jwt as joserfc_jwt
from joserfc.errors import JoseError
from joserfc.jwt import JWTClaimsRegistry

from appliance.core.clients import Client
from appliance.core.oauth import OAuthAnswer, TokenRequest
from appliance.core.refusals import Reason, Refused
from appliance.identity.compact import base64url
from appliance.identity.issuer import assertions
from appliance.identity.issuer.assertions import LEEWAY_SECONDS, MAX_LIFETIME_SECONDS, AssertionChecker
from tests.support.identity_provider import new_key
from tests.support.oauth_desk import (
    ISSUER,
    NOW,
    SIGNER,
    SIGNING_KEY,
    Desk,
    assertion,
    by_assertion,
    registered_key,
    users_token,
)
from tests.vectors.jwt import generate

STRANGER = new_key("ES256")
RSA_KEY = new_key("RS256")


def raw(header: bytes, claims: bytes, key: Any = SIGNING_KEY) -> str:
    return generate.token(header=header, claims=claims, key=key)


CLAIMS = {"iss": "signer", "sub": "signer", "aud": ISSUER, "jti": "j", "iat": NOW, "exp": NOW + 60}
HEADER = b'{"alg":"ES256","kid":"k1"}'


def said(**changes: Any) -> bytes:
    return json.dumps(CLAIMS | changes).encode()


def unsigned(header: bytes) -> str:
    return f"{base64url(header)}.{base64url(said())}"


def with_public_key_as_secret() -> str:
    """CVE-2022-29217, and authlib's CVE-2024-37568."""
    pem = SIGNING_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = unsigned(b'{"alg":"HS256","kid":"k1"}')
    return f"{head}.{base64url(hmac.new(pem, head.encode(), sha256).digest())}"


def with_own_key_in_header() -> str:
    """authlib's CVE-2026-27962."""
    jwk = generate.public_jwk("k1", STRANGER)
    return raw(json.dumps({"alg": "ES256", "kid": "k1", "jwk": jwk}).encode(), said(), STRANGER)


HOSTILE: dict[str, tuple[str, str]] = {
    "nothing signed it": (unsigned(b'{"alg":"none"}') + ".", "not three base64url"),
    "alg none": (unsigned(b'{"alg":"none"}') + ".AAAA", "an algorithm that is not offered"),
    "a public key as a secret": (with_public_key_as_secret(), "an algorithm that is not offered"),
    "alg in small letters": (raw(b'{"alg":"es256","kid":"k1"}', said()), "an algorithm that is not offered"),
    "alg a list": (raw(b'{"alg":["ES256"],"kid":"k1"}', said()), "an algorithm that is not offered"),
    "another alg than the key's": (
        assertion(key=RSA_KEY, algorithm="RS256"),
        "InvalidSignatureError",
    ),
    "no alg": (raw(b'{"kid":"k1"}', said()), "the header has other members"),
    "a key in the header": (with_own_key_in_header(), "the header has other members"),
    "crit": (assertion(header={"kid": "k1", "crit": ["x"], "x": 1}), "the header has other members"),
    "another's key": (assertion(key=STRANGER), "InvalidSignatureError"),
    "an unknown key id": (assertion(header={"kid": "k2"}), "InvalidSignatureError"),
    "a key id that is a number": (raw(b'{"alg":"ES256","kid":1}', said()), "the key id is not a text"),
    "a key id of null": (raw(b'{"alg":"ES256","kid":null}', said()), "the key id is not a text"),
    "an access token's type": (assertion(header={"kid": "k1", "typ": "at+jwt"}), "typ is another"),
    "a proof's type": (assertion(header={"kid": "k1", "typ": "dpop+jwt"}), "typ is another"),
    "an access token of ours": (users_token(), "typ is another"),
    "twice alg in the header": (raw(b'{"alg":"ES256","kid":"k1","alg":"ES256"}', said()), "a key occurs twice"),
    "twice aud": (raw(HEADER, said()[:-1] + b',"aud":"%s"}' % ISSUER.encode()), "a key occurs twice"),
    "twice sub, once escaped": (raw(HEADER, said()[:-1] + b',"s\\u0075b":"signer"}'), "a key occurs twice"),
    "claims that are no object": (raw(HEADER, b'["signer"]'), "not a JSON object"),
    "no JSON": (raw(HEADER, b"{"), "not JSON"),
    "deep claims": (raw(HEADER, said(x=1)[:-2] + b"[" * 50 + b"]" * 50 + b"}"), "nested deeper"),
    "four segments": (assertion() + ".AAAA", "not three base64url"),
    "five segments": ("a.b.c.d.e", "not three base64url"),
    "padding": (assertion() + "=", "not three base64url"),
    "the URL of the endpoint": (assertion(aud=ISSUER + "/oauth/token"), "the audience"),
    "the issuer with a slash": (assertion(aud=ISSUER + "/"), "the audience"),
    "another issuer": (assertion(aud="https://other.example"), "the audience"),
    "the audience of our tokens": (assertion(aud=generate.AUDIENCE), "the audience"),
    "a list with our issuer alone": (assertion(aud=[ISSUER]), "claims: "),
    "a list of two": (assertion(aud=[ISSUER, "https://other.example"]), "claims: "),
    "no aud": (assertion(aud=None), "claims: "),
    "another issuer of it": (assertion(iss="someone"), "issuer and subject"),
    "no iss": (assertion(iss=None), "claims: "),
    "no sub": (assertion(sub=None), "no sub"),
    "a sub that is a number": (raw(HEADER, said(sub=1)), "no sub"),
    "no jti": (assertion(jti=None), "claims: "),
    "an empty jti": (assertion(jti=""), "claims: "),
    "a long jti": (assertion(jti="x" * 257), "claims: "),
    "no exp": (assertion(exp=None), "claims: "),
    "no iat": (assertion(iat=None), "claims: "),
    "exp as a text": (raw(HEADER, said(exp=str(NOW + 60))), "claims: "),
    "exp as NaN": (raw(HEADER, said(exp=float("nan"))), "NaN"),
    "expired": (assertion(iat=NOW - 100, exp=NOW - LEEWAY_SECONDS), "expired"),
    "exp before iat": (assertion(exp=NOW - 1), "a lifetime of"),
    "exp far away": (assertion(exp=NOW + MAX_LIFETIME_SECONDS + 1), "a lifetime of"),
    "iat in the future": (assertion(iat=NOW + LEEWAY_SECONDS + 1, exp=NOW + 90), "it is not valid yet"),
    "nbf in the future": (assertion(nbf=NOW + LEEWAY_SECONDS + 1), "it is not valid yet"),
    "from before this process": (assertion(iat=NOW - 1), "from before what is remembered"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_assertion_is_refused(name: str) -> None:
    text, detail = HOSTILE[name]
    desk = Desk()
    if name == "expired":
        desk = Desk(began_seconds=NOW - 200)
    answer = desk.ask(by_assertion(text))
    assert (answer.status, answer.error) == (401, "invalid_client")
    assert answer.whole.detail.startswith(detail)
    assert desk.registry.orders == []


@pytest.mark.parametrize("changes", [{"nbf": NOW}, {"extra": {"a": [1]}}, {"exp": NOW + MAX_LIFETIME_SECONDS}])
def test_good_assertion_is_taken(changes: dict[str, Any]) -> None:
    assert Desk().ask(by_assertion(assertion(**changes))).status == 200


@pytest.mark.parametrize("header", [{"kid": "k1", "typ": "client-authentication+jwt"}, {"kid": "k1", "typ": "JWT"}])
def test_types_of_assertions_are_taken(header: dict[str, Any]) -> None:
    assert Desk().ask(by_assertion(assertion(header=header))).status == 200


def _joserfc_takes(text: str) -> bool:
    """What another library, told the same rules, says of an assertion of ``SIGNER``."""
    key = jwk.ECKey.import_key(generate.public_jwk("k1", SIGNING_KEY))
    rules = JWTClaimsRegistry(
        now=NOW,
        leeway=LEEWAY_SECONDS,
        **{name: {"essential": True, "value": "signer"} for name in ("iss", "sub")},
        aud={"essential": True, "value": ISSUER},
        jti={"essential": True},
        iat={"essential": True},
        exp={"essential": True},
    )
    try:
        rules.validate(joserfc_jwt.decode(text, key, algorithms=["ES256"]).claims)
    except (JoseError, ValueError, TypeError, AttributeError):
        return False
    return True


def test_what_is_taken_another_library_takes_too() -> None:
    taken = [assertion(), assertion(nbf=NOW), assertion(extra=1), assertion(exp=NOW + MAX_LIFETIME_SECONDS)]
    for text in (*taken, *(text for text, _detail in HOSTILE.values())):
        ours = Desk().ask(by_assertion(text)).status == 200
        assert ours == (text in taken)
        assert _joserfc_takes(text) or not ours


def test_what_another_library_signs_is_taken() -> None:
    key = jwk.ECKey.import_key(SIGNING_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = joserfc_jwt.encode({"alg": "ES256", "kid": "k1", "typ": "JWT"}, CLAIMS, key)
    assert _joserfc_takes(text)
    assert Desk().ask(by_assertion(text)).status == 200


@pytest.mark.parametrize("algorithm", assertions.ALGORITHMS)
def test_each_algorithm_that_is_told_is_offered(algorithm: str) -> None:
    key = RSA_KEY if algorithm in {"RS256", "PS256"} else new_key(algorithm)
    client = msgspec.structs.replace(SIGNER, keys=(registered_key(key, algorithm),))
    text = assertion(key=key, algorithm=algorithm)
    assert Desk(client).ask(by_assertion(text)).status == 200


def test_rsa_key_is_good_for_its_own_padding_only() -> None:
    client = msgspec.structs.replace(SIGNER, keys=(registered_key(RSA_KEY, "PS256"),))
    assert Desk(client).ask(by_assertion(assertion(key=RSA_KEY, algorithm="RS256"))).error == "invalid_client"


def test_key_id_may_be_left_out_where_there_is_one_key() -> None:
    text = jwt.encode(CLAIMS, SIGNING_KEY, algorithm="ES256")
    assert Desk().ask(by_assertion(text)).status == 200
    two = (*SIGNER.keys, registered_key(STRANGER, "ES256", "k2"))
    assert Desk(msgspec.structs.replace(SIGNER, keys=two)).ask(by_assertion(text)).error == "invalid_client"
    other = assertion(key=STRANGER, header={"kid": "k2"})
    assert Desk(msgspec.structs.replace(SIGNER, keys=two)).ask(by_assertion(other)).status == 200


def test_one_clients_key_does_not_sign_for_another() -> None:
    desk = Desk(SIGNER, msgspec.structs.replace(SIGNER, client_id="other", keys=(registered_key(STRANGER, "ES256"),)))
    assert desk.ask(by_assertion(assertion(client_id="other"))).error == "invalid_client"
    assert desk.ask(by_assertion(assertion(client_id="other", key=STRANGER))).status == 200


def test_assertion_is_taken_once_until_it_has_expired_and_is_forgotten() -> None:
    desk = Desk()
    text = assertion(exp=NOW + MAX_LIFETIME_SECONDS)
    assert desk.ask(by_assertion(text)).status == 200
    for later in (0, 1, MAX_LIFETIME_SECONDS + LEEWAY_SECONDS - 1):
        desk.now_seconds = NOW + later
        answer = desk.ask(by_assertion(text))
        assert (answer.error, answer.whole.detail) == ("invalid_client", "it was used before")
    desk.now_seconds = NOW + MAX_LIFETIME_SECONDS + LEEWAY_SECONDS
    assert desk.ask(by_assertion(text)).whole.detail == "expired"


def test_assertion_is_not_taken_again_when_the_clock_was_ahead_and_is_set_back() -> None:
    desk = Desk()
    used = by_assertion(assertion(exp=NOW + MAX_LIFETIME_SECONDS))
    assert desk.ask(used).status == 200
    desk.now_seconds = NOW + 3600
    assert desk.ask(by_assertion(assertion(jti="j-2", iat=NOW + 3600, exp=NOW + 3660))).status == 200
    desk.now_seconds = NOW + 40
    assert desk.ask(used).error == "invalid_client"
    assert desk.ask(by_assertion(assertion(jti="j-3", iat=NOW + 40, exp=NOW + 100))).status == 200


def test_of_a_hundred_at_once_with_one_assertion_one_is_answered() -> None:
    desk = Desk()
    request = TokenRequest(endpoint="token", form=tuple(by_assertion(assertion()).items()))

    async def all_at_once() -> list[OAuthAnswer]:
        return await asyncio.gather(*(desk.authority.answer(request) for _ in range(100)))

    answers = asyncio.run(all_at_once())
    assert sorted(answer.status for answer in answers) == [200] + [401] * 99
    assert len(desk.registry.orders) == 1


@pytest.mark.parametrize("endpoint", ["revoke", "introspect"])
def test_assertion_for_one_endpoint_is_used_up_for_all(endpoint: Any) -> None:
    desk = Desk()
    form = by_assertion(assertion(), token="x")
    assert desk.ask(form, endpoint=endpoint).status == 200
    assert desk.ask(form).whole.detail == "it was used before"


def test_refused_assertion_uses_up_no_identifier() -> None:
    desk = Desk()
    desk.ask(by_assertion(assertion(key=STRANGER)))
    desk.ask(by_assertion(assertion(aud="https://other.example")))
    assert desk.ask(by_assertion(assertion())).status == 200


def test_same_identifier_of_another_client_is_another() -> None:
    desk = Desk(SIGNER, msgspec.structs.replace(SIGNER, client_id="other"))
    assert desk.ask(by_assertion(assertion())).status == 200
    assert desk.ask(by_assertion(assertion(client_id="other"))).status == 200


def _check(checker: AssertionChecker, client: Client, jti: str, now_seconds: int = NOW) -> None:
    text = assertion(client_id=client.client_id, jti=jti, iat=now_seconds, exp=now_seconds + 60)
    checker.check(assertions.read(text), client, now_seconds=now_seconds)


def test_memory_is_bounded_for_each_client_and_forgets_none_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assertions, "MAX_REMEMBERED_OF_CLIENT", 3)
    checker = AssertionChecker(ISSUER, since_seconds=NOW)
    other = msgspec.structs.replace(SIGNER, client_id="other")
    for jti in "abc":
        _check(checker, SIGNER, jti)
    with pytest.raises(Refused) as caught:
        _check(checker, SIGNER, "d")
    assert caught.value.reason is Reason.OVERLOADED
    _check(checker, other, "a")
    later = NOW + MAX_LIFETIME_SECONDS + 2 * LEEWAY_SECONDS + 1
    for jti in "abc":
        _check(checker, SIGNER, jti, later)
    assert (len(checker._used), dict(checker._of_client)) == (3, {"signer": 3})


def test_unknown_client_costs_the_work_of_a_wrong_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    signed_payload = assertions.signed_payload

    def verify(text: str, key: Any, reason: Reason) -> bytes:
        verified.append(key.algorithm)
        return signed_payload(text, key, reason)

    monkeypatch.setattr(assertions, "signed_payload", verify)
    for text in (assertion(key=STRANGER), assertion(client_id="nobody"), assertion(client_id="basic"),
                 assertion(header={"kid": "k2"}), assertion(key=RSA_KEY, algorithm="PS256")):  # fmt: skip
        assert Desk().ask(by_assertion(text)).error == "invalid_client"
    assert verified == ["ES256"] * 4 + ["PS256"]
