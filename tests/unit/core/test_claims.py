"""No two identities share a key, and nobody without a subject is anybody."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.claims import principal, principal_key
from appliance.core.refusals import Reason, Refused
from tests.support.made_values import CLAIMS


def test_principal_says_what_the_claims_say() -> None:
    made = principal(CLAIMS)
    for name in ("issuer", "subject", "client_id", "groups", "models", "token_id", "token_sha256"):
        assert getattr(made, name) == getattr(CLAIMS, name)
    assert made.key == principal_key(CLAIMS.issuer, CLAIMS.subject)


def test_empty_subject_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        principal(msgspec.structs.replace(CLAIMS, subject=""))
    assert caught.value.reason is Reason.CLAIM_MISSING


def test_key_depends_on_nothing_but_issuer_and_subject() -> None:
    other = msgspec.structs.replace(CLAIMS, client_id="x", groups=(), models=(), token_id="2")
    assert principal(other).key == principal(CLAIMS).key


_PAIRS = st.tuples(st.text(st.characters(codec="utf-8"), max_size=6), st.text(st.characters(codec="utf-8"), max_size=6))


@given(_PAIRS, _PAIRS)
def test_two_identities_never_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (principal_key(*one) == principal_key(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [(("a", "bc"), ("ab", "c")), (("", "a"), ("a", "")), (("a\x00", "b"), ("a", "\x00b"))]
)
def test_text_cannot_move_between_issuer_and_subject(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert principal_key(*one) != principal_key(*other)


@pytest.mark.parametrize("subject", ["../../etc", "a b\n", "\x00", "é" * 500, "\u202e"])
def test_key_has_one_size_and_alphabet_whatever_the_subject(subject: str) -> None:
    key = principal_key("issuer", subject)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")
