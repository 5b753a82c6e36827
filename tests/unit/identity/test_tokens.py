"""No bearer token becomes claims unless every rule holds. The tokens and their verdicts are in tests/vectors/jwt."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import LEEWAY_SECONDS, IssuerRules
from appliance.core.values import Digest, Presented, VerifiedClaims
from appliance.identity import tokens
from appliance.identity.keys import parse_keys
from appliance.identity.tokens import MAX_TOKEN_BYTES, JwtIssuer, OwnKeys, TokenVerifier
from tests.fakes.registry import FakeRevocations
from tests.vectors.jwt import generate

NOW = generate.NOW
VECTORS = json.loads(generate.TOKENS.read_text(encoding="utf-8"))


class Verifier:
    """A verifier of the vectors' issuer whose tokens need not be waited for: it asks nobody."""

    def __init__(self, revocations: FakeRevocations | None = None, **changes: Any) -> None:
        rules = {
            "issuer": VECTORS["issuer"],
            "audiences": frozenset({VECTORS["audience"]}),
            "max_lifetime_seconds": VECTORS["max_lifetime_seconds"],
        }
        keys = OwnKeys(parse_keys(json.dumps(VECTORS["jwks"]).encode()))
        self.inner = TokenVerifier([JwtIssuer(IssuerRules(**(rules | changes)), keys, revocations)])

    def verify(self, unverified_token: str, *, now_seconds: int) -> VerifiedClaims:
        waiting = self.inner.verify(Presented(unverified_token=unverified_token), now_seconds=now_seconds)
        with pytest.raises(StopIteration) as done:
            waiting.send(None)
        claims: VerifiedClaims = done.value.value
        return claims


verifier = Verifier


def refusal(unverified_token: str, now_seconds: int = NOW, by: Verifier | None = None, reason: str = "invalid") -> str:
    with pytest.raises(Refused) as caught:
        (by or verifier()).verify(unverified_token, now_seconds=now_seconds)
    assert caught.value.reason is (Reason.TOKEN_INVALID if reason == "invalid" else Reason.PROOF_INVALID)
    assert caught.value.detail
    return caught.value.detail


def test_vectors_are_what_the_generator_writes() -> None:
    assert generate.TOKENS.read_text(encoding="utf-8") == generate.text()


def _of(accepted: bool) -> list[Any]:
    chosen = [vector for vector in VECTORS["tokens"] if (vector["refused"] is None) == accepted]
    return [pytest.param(vector, id=f"{vector['row']}: {vector['name']!a}") for vector in chosen]


@pytest.mark.parametrize("vector", _of(accepted=False))
def test_hostile_token_is_refused(vector: dict[str, Any]) -> None:
    assert refusal(vector["token"]).startswith(vector["refused"])


@pytest.mark.parametrize("vector", _of(accepted=True))
def test_good_token_is_not_refused(vector: dict[str, Any]) -> None:
    assert verifier().verify(vector["token"], now_seconds=NOW).issuer == VECTORS["issuer"]


def test_revoked_token_is_refused_each_time_that_it_comes_also_from_the_cache() -> None:
    revocations = FakeRevocations()
    one = verifier(revocations)
    claims = one.verify(generate.GOOD, now_seconds=NOW)
    assert not one.inner.has_ended(claims)
    revocations.tokens.add(claims.token_id)
    for _ in range(2):
        assert refusal(generate.GOOD, by=one) == "revoked"
    assert one.inner.has_ended(claims)
    fresh = verifier(revocations)
    assert refusal(generate.GOOD, by=fresh) == "revoked"
    revocations.tokens.clear()
    assert one.verify(generate.GOOD, now_seconds=NOW) == claims


def test_token_that_may_have_been_revoked_opens_nothing_and_what_runs_goes_on() -> None:
    revocations = FakeRevocations()
    one = verifier(revocations)
    claims = one.verify(generate.GOOD, now_seconds=NOW)
    revocations.unknown = True
    for by in (one, verifier(revocations)):
        with pytest.raises(Refused) as caught:
            by.verify(generate.GOOD, now_seconds=NOW)
        assert caught.value.reason is Reason.AUDIT_UNAVAILABLE
    assert not one.inner.has_ended(claims)


def test_token_that_is_none_is_told_so_also_while_nobody_knows_what_was_revoked() -> None:
    revocations = FakeRevocations()
    revocations.unknown = True
    assert refusal(generate.GOOD[:-4] + "AAAA", by=verifier(revocations))


def test_every_row_of_the_table_has_a_token() -> None:
    assert {vector["row"] for vector in VECTORS["tokens"]} == {0, *range(12, 21), 23, 24}


def test_claims_are_those_that_were_signed() -> None:
    claims = verifier().verify(generate.GOOD, now_seconds=NOW)
    assert (claims.subject, claims.client_id, claims.audience, claims.token_id) == (
        "alice",
        "notebook",
        "paddock",
        "0001",
    )
    assert (claims.issued_at_seconds, claims.expires_at_seconds) == (NOW - 60, NOW + 600)
    assert (claims.groups, claims.models) == (("staff",), ("demo",))
    assert claims.token_sha256 == Digest.of(generate.GOOD.encode())


def test_token_without_models_names_none() -> None:
    token = generate.with_claims(models=generate.MISSING, groups=generate.MISSING)
    claims = verifier().verify(token, now_seconds=NOW)
    assert (claims.groups, claims.models) == ((), ())


def test_token_above_the_largest_size_is_refused() -> None:
    """Base64url has no text of one character more than a multiple of four, so the largest may be one shorter."""
    spare = (MAX_TOKEN_BYTES - len(generate.with_claims(pad=""))) * 3 // 4 - 3
    while len(larger := generate.with_claims(pad="x" * (spare + 1))) <= MAX_TOKEN_BYTES:
        spare += 1
    largest = generate.with_claims(pad="x" * spare)
    assert MAX_TOKEN_BYTES - 1 <= len(largest) <= MAX_TOKEN_BYTES
    verifier().verify(largest, now_seconds=NOW)
    assert refusal(larger) == generate.SHAPE


@pytest.mark.parametrize("text", ["\ud800", generate.GOOD + "\udfff", "é" * 100, "\x00"])
def test_text_that_no_header_can_carry_is_refused(text: str) -> None:
    assert refusal(text) == generate.SHAPE


def test_clock_is_the_callers_and_no_other() -> None:
    """The vectors lie years from the day of this test: the system's clock must have no say."""
    expires = NOW + 600
    assert verifier().verify(generate.GOOD, now_seconds=NOW)
    verifier().verify(generate.GOOD, now_seconds=expires + LEEWAY_SECONDS - 1)
    assert refusal(generate.GOOD, expires + LEEWAY_SECONDS) == "expired"
    assert refusal(generate.GOOD, NOW - 60 - LEEWAY_SECONDS - 1) == generate.EARLY


# --- the cache ------------------------------------------------------------------------------------------------------


def test_cached_token_expires_at_the_same_second_as_a_new_one() -> None:
    one = verifier()
    last = NOW + 600 + LEEWAY_SECONDS - 1
    first = one.verify(generate.GOOD, now_seconds=NOW)
    assert one.verify(generate.GOOD, now_seconds=last) is first
    assert refusal(generate.GOOD, last + 1, by=one) == "expired"
    assert refusal(generate.GOOD, last + 1) == "expired"


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_cache_never_answers_for_a_changed_token(segment: int) -> None:
    """CVE-2026-35030: a cache under the first characters of a token gave one caller the identity of another."""
    one = verifier()
    one.verify(generate.GOOD, now_seconds=NOW)
    for position in range(0, len(generate.GOOD.split(".")[segment]) - 1, 7):
        parts = generate.GOOD.split(".")
        swapped = "A" if parts[segment][position] != "A" else "B"
        parts[segment] = parts[segment][:position] + swapped + parts[segment][position + 1 :]
        refusal(".".join(parts), by=one)


def test_refused_token_is_not_remembered() -> None:
    one = verifier()
    early = generate.with_claims(nbf=NOW + 100)
    assert refusal(early, by=one) == generate.EARLY
    one.verify(early, now_seconds=NOW + 100)


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_ENTRIES", 3)
    one = verifier()
    made = [generate.with_claims(jti=str(number)) for number in range(5)]
    seen = [one.verify(token, now_seconds=NOW) for token in made]
    assert len(one.inner._cache) == 3
    assert one.verify(made[4], now_seconds=NOW) is seen[4]
    assert one.verify(made[0], now_seconds=NOW) is not seen[0]


def test_verifiers_share_nothing() -> None:
    verifier().verify(generate.GOOD, now_seconds=NOW)
    assert refusal(generate.GOOD, by=verifier(audiences=frozenset({"other"}))) == generate.AUDIENCE_OTHER


# --- forgery --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_token_with_one_changed_character_is_refused(data: st.DataObject) -> None:
    """Only the last character of a segment has bits that encode nothing, so it is left alone."""
    ends = {len(generate.HEAD) - 1, len(generate.HEAD) + len(generate.BODY), len(generate.GOOD) - 1}
    places = [at for at in range(len(generate.GOOD)) if at not in ends and generate.GOOD[at] != "."]
    at = data.draw(st.sampled_from(places))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ \n"))
    if letter != generate.GOOD[at]:
        refusal(generate.GOOD[:at] + letter + generate.GOOD[at + 1 :])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_signed_nonsense_is_refused_and_never_an_error(header: bytes, claims: bytes) -> None:
    refusal(generate.token(header=header, claims=claims))
    refusal(generate.token(claims=claims))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(generate.CLAIMS)), st.sampled_from(sorted(generate.HEADER)), _JSON)
def test_any_value_in_any_place_is_accepted_or_refused_and_never_an_error(claim: str, member: str, value: Any) -> None:
    """Before the signature is checked a stranger chooses the values; ``{"typ": []}`` once was an error of ours."""
    for token in (generate.with_claims(**{claim: value}), generate.with_header(**{member: value})):
        try:
            verifier().verify(token, now_seconds=NOW)
        except Refused as refused:
            assert refused.reason is Reason.TOKEN_INVALID
