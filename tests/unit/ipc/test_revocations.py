"""A token counts only while it is known that it has not ended."""

import pytest

from appliance.core.clients import MAX_TTL_SECONDS, EndedClient, RevokedToken
from appliance.core.refusals import Reason, Refused
from appliance.ipc.messages import Revoked
from appliance.ipc.revocations import RevokedTokens
from tests.support.registered import claims

NOW = 1_790_000_000


def token(token_id: str, expires_at_seconds: int = NOW + 60) -> RevokedToken:
    return RevokedToken(token_id=token_id, expires_at_seconds=expires_at_seconds)


def ended(client_id: str, until_seconds: int) -> EndedClient:
    return EndedClient(client_id=client_id, until_seconds=until_seconds)


def told(*messages: Revoked) -> RevokedTokens:
    revocations = RevokedTokens(now_seconds=lambda: NOW)
    for message in messages:
        revocations.told(message)
    return revocations


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (Revoked(anew=True, complete=False),),
        (Revoked(tokens=(token("a"),)),),
        (Revoked(anew=True), Revoked(anew=True, complete=False)),
    ],
)
def test_nothing_counts_before_the_list_is_complete(messages: tuple[Revoked, ...]) -> None:
    with pytest.raises(Refused) as refused:
        told(*messages).is_revoked(claims(token_id="z"))
    assert refused.value.reason is Reason.AUDIT_UNAVAILABLE


def test_nothing_counts_when_the_notary_is_lost() -> None:
    revocations = told(Revoked(anew=True))
    assert not revocations.is_revoked(claims())
    revocations.forget()
    with pytest.raises(Refused):
        revocations.is_revoked(claims())


def test_list_in_pages_and_what_comes_later_are_one() -> None:
    revocations = told(
        Revoked(tokens=(token("a"),), anew=True, complete=False),
        Revoked(tokens=(token("b"),)),
        Revoked(tokens=(token("c"),)),
    )
    assert [name for name in "abcd" if revocations.is_revoked(claims(token_id=name))] == ["a", "b", "c"]
    revocations.told(Revoked(tokens=(token("d"),), anew=True))
    assert [name for name in "abcd" if revocations.is_revoked(claims(token_id=name))] == ["d"]


def test_client_ends_with_the_second_in_which_it_ended_and_never_goes_back() -> None:
    revocations = told(Revoked(clients=(ended("agent", NOW),), anew=True), Revoked(clients=(ended("agent", NOW - 9),)))
    assert revocations.is_revoked(claims(issued_at_seconds=NOW - 1))
    assert revocations.is_revoked(claims(issued_at_seconds=NOW))
    assert not revocations.is_revoked(claims(issued_at_seconds=NOW + 1))
    assert not revocations.is_revoked(claims(issued_at_seconds=NOW, client_id="other"))


def test_what_has_expired_is_dropped_and_nothing_else() -> None:
    now_seconds = NOW
    revocations = RevokedTokens(now_seconds=lambda: now_seconds)
    revocations.told(Revoked(tokens=(token("a"), token("b", NOW + 600)), clients=(ended("x", NOW),), anew=True))
    now_seconds = NOW + 120
    revocations.told(Revoked())
    assert (set(revocations._expiries), set(revocations._ended)) == ({"b"}, {"x"})
    now_seconds = NOW + MAX_TTL_SECONDS + 31
    revocations.told(Revoked())
    assert (revocations._expiries, revocations._ended) == ({}, {})
