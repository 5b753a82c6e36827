"""Several issuers at one verifier: each is believed for its own tokens, and only while its keys are in force."""

import asyncio
import json
from typing import Any

import pytest
from msgspec import structs

from appliance.core.refusals import Fault, Reason, Refused
from appliance.core.token_claims import MAX_NAME_CHARACTERS, Confirmation, IssuerRules, ReadClaims, read
from appliance.core.values import Presented, VerifiedClaims
from appliance.identity.dpop import ProofChecker
from appliance.identity.foreign import ForeignKeys, LiaisonLink
from appliance.identity.keys import KeySet, VerifyingKey, from_wire, parse_foreign_keys, to_wire
from appliance.identity.tokens import JwtIssuer, OpaqueIssuer, TokenVerifier
from appliance.ipc.messages import IssuerKeys, PublicKey
from tests.support.identity_provider import base64url, new_key, public_jwk
from tests.vectors.jwt import generate

NOW = generate.NOW
EVERY = frozenset({"ES256", "RS256", "PS256", "EdDSA"})
RULES = IssuerRules(issuer=generate.ISSUER, audiences=frozenset({"paddock"}), max_lifetime_seconds=86_400)
CERTIFICATE = bytes(range(32))


def key_set(*names: str) -> KeySet:
    keys = [generate.public_jwk(name, generate.KEYS[name]) for name in names]
    return parse_foreign_keys(json.dumps({"keys": keys}).encode(), EVERY)


class Source:
    """A ``KeySource`` that a test turns."""

    def __init__(self, keys: KeySet | None) -> None:
        self.now: KeySet | None = keys
        self.misses = 0

    def keys(self, now_seconds: int) -> KeySet | None:
        return self.now

    def miss(self) -> None:
        self.misses += 1


def verify(by: TokenVerifier, token: str, now_seconds: int = NOW, **presented: Any) -> VerifiedClaims:
    return asyncio.run(by.verify(Presented(unverified_token=token, **presented), now_seconds=now_seconds))


def refusal(by: TokenVerifier, token: str, now_seconds: int = NOW, **presented: Any) -> tuple[Reason, str]:
    with pytest.raises(Refused) as caught:
        verify(by, token, now_seconds, **presented)
    return caught.value.reason, caught.value.detail


# --- keys in force --------------------------------------------------------------------------------------------------


def test_verified_token_is_verified_anew_under_other_keys_and_not_at_all_without() -> None:
    source = Source(key_set("first", "second"))
    by = TokenVerifier([JwtIssuer(RULES, source)])
    first = verify(by, generate.GOOD)
    assert verify(by, generate.GOOD) is first
    source.now = key_set("first")
    assert verify(by, generate.GOOD) is not first
    source.now = key_set("second")
    assert refusal(by, generate.GOOD) == (Reason.TOKEN_INVALID, "unknown key id")
    assert source.misses == 1
    source.now = None
    assert refusal(by, generate.GOOD)[0] is Reason.ISSUER_UNAVAILABLE
    source.now = key_set("first")
    verify(by, generate.GOOD)


def test_issuer_twice_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="twice"):
        TokenVerifier([JwtIssuer(RULES, Source(None)), JwtIssuer(RULES, Source(None))])


def told(keys: KeySet, fetched_at_seconds: int = NOW) -> IssuerKeys:
    return IssuerKeys(name="one", keys=to_wire(keys), fetched_at_seconds=fetched_at_seconds)


def foreign(tmp_path: Any, algorithms: frozenset[str] = EVERY) -> ForeignKeys:
    return ForeignKeys(
        "one", algorithms, keep_seconds=100, link=LiaisonLink(tmp_path / "nobody.sock", now_seconds=lambda: NOW)
    )


def test_last_good_keys_are_kept_for_a_bounded_time(tmp_path: Any) -> None:
    source = foreign(tmp_path)
    assert source.keys(NOW) is None
    source.take(told(key_set("first")), now_seconds=NOW + 1000)
    known = source.keys(NOW + 99)
    assert known is not None
    assert set(known) == {"first"}
    assert source.keys(NOW + 100) is None
    source.take(told(key_set("first"), NOW + 100), now_seconds=NOW + 1000)
    assert source.keys(NOW + 199) is known  # the same object, so that cached tokens stay verified
    source.take(told(key_set("second"), NOW + 150), now_seconds=NOW + 1000)
    assert set(source.keys(NOW + 199) or ()) == {"second"}
    source.miss()  # nobody is connected: nothing happens


def test_keys_from_the_future_are_kept_for_no_longer(tmp_path: Any) -> None:
    source = foreign(tmp_path)
    source.take(told(key_set("first"), NOW + 10_000), now_seconds=NOW)
    assert source.keys(NOW + 99) is not None
    assert source.keys(NOW + 100) is None


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (PublicKey(key_id="x", algorithm="ES256", spki=b"junk"),),
        to_wire(key_set("first")) * 2,
        to_wire({"a": VerifyingKey("EdDSA", new_key("EdDSA").public_key())}),
    ],
)  # fmt: skip
def test_bad_keys_of_the_liaison_change_nothing(tmp_path: Any, keys: tuple[PublicKey, ...]) -> None:
    source = foreign(tmp_path, frozenset({"ES256"}))
    source.take(told(key_set("first")), now_seconds=NOW + 1000)
    with pytest.raises(Fault):
        source.take(IssuerKeys(name="one", keys=keys, fetched_at_seconds=NOW + 50), now_seconds=NOW + 50)
    assert set(source.keys(NOW + 99) or ()) == {"first"}
    assert source.keys(NOW + 100) is None


# --- a foreign set --------------------------------------------------------------------------------------------------


def foreign_set(*entries: Any, algorithms: frozenset[str] = EVERY) -> KeySet:
    return parse_foreign_keys(json.dumps({"keys": entries}).encode(), algorithms)


@pytest.mark.parametrize("algorithm", sorted(EVERY))
def test_key_survives_the_way_to_the_gateway(algorithm: str) -> None:
    keys = foreign_set(public_jwk(new_key(algorithm), algorithm, kid="a", alg=algorithm, use="sig"))
    there = from_wire(to_wire(keys), EVERY)
    assert there["a"].algorithm == algorithm
    assert there["a"].key == keys["a"].key


def test_keys_for_other_uses_are_passed_over() -> None:
    good = public_jwk(new_key("ES256"), "ES256", kid="good", alg="ES256")
    rsa = new_key("RS256")
    others = [
        public_jwk(rsa, "RS256", kid="enc", use="enc", alg="RSA-OAEP"),
        public_jwk(rsa, "RS256", kid="enc2", use="enc"),
        public_jwk(rsa, "RS256", kid="ops", key_ops=["encrypt"]),
        public_jwk(rsa, "RS256", kid="rs512", alg="RS512"),
        public_jwk(rsa, "RS256", kid="either of two"),
        {"kty": "a new kind"},
        {},
    ]
    assert set(foreign_set(good, *others)) == {"good"}


def test_key_without_an_algorithm_has_the_one_of_its_family_that_is_configured() -> None:
    entry = public_jwk(new_key("RS256"), "RS256", kid="a")
    assert foreign_set(entry, algorithms=frozenset({"PS256", "ES256"}))["a"].algorithm == "PS256"
    with pytest.raises(Fault, match="empty"):
        foreign_set(entry, algorithms=frozenset({"PS256", "RS256"}))


GOOD = public_jwk(new_key("ES256"), "ES256", kid="good", alg="ES256")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"kty": "oct", "k": "AAAA"}, "secret"),
        (GOOD | {"kid": "other", "d": "AAAA"}, "secret"),
        (GOOD, "repeats"),
        (GOOD | {"kid": None}, "key id"),
        (GOOD | {"kid": "x" * 129}, "key id"),
        (GOOD | {"kid": "other", "x": "AAAA"}, "malformed"),
        (GOOD | {"kid": "other", "kty": "RSA"}, "another type"),
        (GOOD | {"kid": "other", "use": 1}, "use or key_ops"),
        (GOOD | {"kid": "other", "key_ops": "verify"}, "use or key_ops"),
        (public_jwk(new_key("RS256"), "RS256", kid="other", alg="RS256", e="AQ"), "exponent"),
        (public_jwk(new_key("RS256"), "RS256", kid="other", alg="RS256", e="AAEAAg"), "exponent"),
        ("text", "no list of keys"),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, str) else "",
)
def test_fault_in_a_key_that_would_be_used_spoils_the_set(entry: Any, told: str) -> None:
    with pytest.raises(Fault) as caught:
        foreign_set(GOOD, entry)
    assert told in caught.value.detail or "malformed" in caught.value.detail


def test_number_of_keys_is_bounded() -> None:
    with pytest.raises(Fault, match="more than 64"):
        foreign_set(*[GOOD | {"kid": str(number)} for number in range(65)])


# --- claims by the issuer's rules -----------------------------------------------------------------------------------


def read_with(claims: dict[str, Any] | None = None, **rules: Any) -> ReadClaims:
    document = generate.CLAIMS | (claims or {})
    fields = {"issuer": generate.ISSUER, "audiences": frozenset({"paddock"}), "max_lifetime_seconds": 86_400}
    return read({name: value for name, value in document.items() if value is not None}, IssuerRules(**(fields | rules)))


def unread(claims: dict[str, Any] | None = None, **rules: Any) -> str:
    with pytest.raises(Refused) as caught:
        read_with(claims, **rules)
    assert caught.value.reason is Reason.TOKEN_INVALID
    return caught.value.detail


def test_claims_are_found_where_the_rules_say() -> None:
    said = read_with(
        {"azp": "app", "realm": {"roles": ["a", "b", "a", "root"]}, "https://x.example/models": ["m"], "oid": "77"},
        subject_claim=("oid",),
        client_claim=("azp",),
        groups_claim=("realm", "roles"),
        groups={"a": "ours", "b": "ours"},
        models_claim=("https://x.example/models",),
        token_id_claim=(),
    )
    assert (said.subject, said.client_id, said.groups, said.models) == ("77", "app", ("ours",), ("m",))
    assert said.token_id == ""


@pytest.mark.parametrize("found", [7, None, ["a"], {"a": 1}, True])
def test_name_that_is_no_text_is_refused(found: Any) -> None:
    assert "no text at azp" in unread({"azp": found}, client_claim=("azp",))


@pytest.mark.parametrize("name", ["sub", "client_id", "jti"])
def test_name_that_would_not_fit_a_record_is_refused(name: str) -> None:
    read_with({name: "x" * MAX_NAME_CHARACTERS})
    assert unread({name: "x" * (MAX_NAME_CHARACTERS + 1)}).startswith("claims: more than 1024 characters at ")


@pytest.mark.parametrize("found", ["people", [1], {"people": 1}, ["people", None]])
def test_groups_that_are_no_list_of_texts_are_refused(found: Any) -> None:
    assert "no list of texts at realm.roles" in unread({"realm": {"roles": found}}, groups_claim=("realm", "roles"))


@pytest.mark.parametrize("realm", [None, {}, "text", ["roles"], 7])
def test_way_that_leads_nowhere_finds_no_groups(realm: Any) -> None:
    assert read_with({"realm": realm}, groups_claim=("realm", "roles")).groups == ()


def test_groups_that_are_not_named_are_dropped_and_none_is_ours_by_its_own_name() -> None:
    assert read_with({"groups": ["staff", "root"]}, groups={}).groups == ()
    assert read_with({"groups": ["staff"]}, groups={"x": "staff"}).groups == ()


def test_models_are_the_configured_ones_without_a_claim_for_them() -> None:
    assert read_with({"models": ["*"]}, models_claim=(), models=("demo",)).models == ("demo",)


def test_list_of_audiences_wants_to_be_allowed() -> None:
    assert unread({"aud": ["paddock"]}) == "another audience"
    assert read_with({"aud": ["mail", "paddock"]}, audience_list=True).audience == "paddock"
    assert unread({"aud": ["mail"]}, audience_list=True) == "another audience"


def test_other_clients_required_and_refused_claims() -> None:
    assert "client" in unread(clients=frozenset({"other"}))
    assert "typ is not" in unread(required_claims={"typ": "Bearer"})
    assert "typ is not" in unread({"typ": ["Bearer"]}, required_claims={"typ": "Bearer"})
    assert "another kind" in unread({"nonce": ""}, refused_claims=frozenset({"nonce"}))


# --- binding --------------------------------------------------------------------------------------------------------


def opaque(
    confirmation: Confirmation | None, cache_seconds: int = 10, rules: dict[str, Any] | None = None, **changes: Any
) -> tuple[TokenVerifier, list[str]]:
    asked: list[str] = []

    async def ask(token: str) -> ReadClaims | None:
        asked.append(token)
        fields: dict[str, Any] = {
            "issuer": RULES.issuer,
            "subject": "bob",
            "client_id": "c",
            "audience": "paddock",
            "token_id": "",
            "expires_at_seconds": NOW + 60,
            "issued_at_seconds": None,
            "not_before_seconds": None,
            "groups": (),
            "models": (),
            "scopes": (),
            "confirmation": confirmation,
        }
        return ReadClaims(**(fields | changes))

    return TokenVerifier(
        [],
        opaque=OpaqueIssuer(structs.replace(RULES, **(rules or {})), ask, cache_seconds),
        proofs=ProofChecker("https://llm.example", since_seconds=0),
    ), asked


TOKEN = "an-opaque-token-of-some-length"


def test_token_bound_to_a_certificate_needs_that_certificate_each_time() -> None:
    """RFC 8705 section 3."""
    by, asked = opaque(Confirmation(certificate_sha256=base64url(CERTIFICATE)))
    for _ in range(2):
        assert verify(by, TOKEN, client_certificate_sha256=CERTIFICATE).subject == "bob"
        for other in (None, b"", bytes(32), CERTIFICATE[:31], CERTIFICATE + b"\x00"):
            reason, detail = refusal(by, TOKEN, client_certificate_sha256=other)
            assert (reason, "another certificate" in detail) == (Reason.TOKEN_INVALID, True)
    assert len(asked) == 1


def test_token_bound_to_both_needs_both() -> None:
    by, _ = opaque(Confirmation(certificate_sha256=base64url(CERTIFICATE), jkt="A" * 43))
    assert refusal(by, TOKEN)[0] is Reason.TOKEN_INVALID
    assert refusal(by, TOKEN, client_certificate_sha256=CERTIFICATE)[0] is Reason.PROOF_INVALID


def test_token_that_is_not_bound_needs_no_certificate() -> None:
    by, _ = opaque(None)
    assert verify(by, TOKEN, client_certificate_sha256=CERTIFICATE).subject == "bob"


def test_bound_token_is_refused_where_no_proof_can_be_judged() -> None:
    by = TokenVerifier([JwtIssuer(RULES, Source(key_set("first")))])
    token = generate.with_claims(cnf={"jkt": "A" * 43})
    for scheme in ("bearer", "dpop"):
        assert refusal(by, token, scheme=scheme, unverified_proof="a.b.c")[0] is Reason.TOKEN_INVALID


# --- opaque tokens --------------------------------------------------------------------------------------------------


def test_answer_is_asked_for_again_when_it_is_too_old() -> None:
    by, asked = opaque(None, cache_seconds=2)
    for later in (0, 1, 1):
        verify(by, TOKEN, NOW + later)
    assert len(asked) == 1
    verify(by, TOKEN, NOW + 2)
    assert len(asked) == 2


def test_token_without_a_name_is_named_by_its_digest() -> None:
    by, _ = opaque(None)
    claims = verify(by, TOKEN)
    assert claims.token_id == str(claims.token_sha256)
    assert claims.issued_at_seconds == NOW


def test_expiry_ends_an_answer_that_is_still_cached() -> None:
    by, _ = opaque(None, cache_seconds=60, expires_at_seconds=NOW + 1)
    verify(by, TOKEN)
    assert refusal(by, TOKEN, NOW + 31) == (Reason.TOKEN_INVALID, "expired")


@pytest.mark.parametrize(
    "said",
    [
        {"issuer": "https://paddock.local"},
        {"audience": "mail"},
        {"groups": ("root",)},
        {"models": ("*",)},
        {"client_id": "other"},
        {"subject": "b" * 1025},
        {"token_id": "b" * 1025},
    ],
    ids=lambda said: str(said)[:40],
)
def test_liaison_cannot_say_more_than_the_issuers_rules_let_it(said: dict[str, Any]) -> None:
    """One that were taken over would answer for people of that issuer, and be no administrator of ours."""
    rules = {"groups": {"people": "staff"}, "models_claim": (), "clients": frozenset({"c"})}
    by, _ = opaque(None, rules=rules)
    assert verify(by, TOKEN).subject == "bob"
    by, _ = opaque(None, rules=rules, **said)
    assert refusal(by, TOKEN) == (Reason.TOKEN_INVALID, "claims beyond the rules of their issuer")


def test_opaque_token_is_no_token_without_an_issuer_of_them() -> None:
    assert refusal(TokenVerifier([]), TOKEN)[0] is Reason.TOKEN_INVALID
