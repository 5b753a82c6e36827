"""A client ends its own tokens (RFC 7009) and asks about those it may see (RFC 7662); of others it learns nothing."""

from typing import Any

import msgspec
import pytest

from appliance.core.clients import RevokeOrder
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Presented, VerifiedClaims
from appliance.identity.compact import base64url
from tests.support.oauth_desk import (
    BASIC,
    CERTIFICATE,
    CHAT,
    FOREIGN,
    HOLDER,
    ISSUER,
    NOW,
    POST,
    REFRESH_TYPE,
    SECRET,
    SIGNER,
    Answer,
    Desk,
    basic,
    claims_of,
    users_token,
)
from tests.vectors.jwt import generate

INACTIVE = b'{"active":false}'
RESOURCE = {"client_id": "post", "client_secret": SECRET}
"""A protected resource, which may ask about everybody's tokens."""


def revoke(desk: Desk, token: str, client: str = "basic", **form: str) -> Answer:
    return desk.ask({"token": token} | form, endpoint="revoke", authorization=basic(client))


def introspect(desk: Desk, token: str, **form: str) -> Answer:
    return desk.ask({"token": token} | RESOURCE | form, endpoint="introspect")


def revoked(desk: Desk) -> list[RevokeOrder]:
    return [order for order in desk.registry.orders if isinstance(order, RevokeOrder)]


# --- revocation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", ["", "access_token", "refresh_token", "something_else", "x" * 1000])
def test_access_token_is_revoked_whatever_the_hint(hint: str) -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    assert introspect(desk, token).body["active"] is True
    answer = revoke(desk, token, token_type_hint=hint)
    assert (answer.status, answer.body, answer.whole.refused) == (200, {}, None)
    assert revoked(desk) == [
        RevokeOrder(client_id="basic", token_id=claims_of(token)["jti"], expires_at_seconds=NOW + 600)
    ]
    assert introspect(desk, token).whole.body == INACTIVE


@pytest.mark.parametrize("hint", ["", "access_token", "refresh_token"])
def test_refresh_token_is_revoked_with_its_family(hint: str) -> None:
    desk = Desk()
    token = desk.exchange(users_token(), requested_token_type=REFRESH_TYPE).body["refresh_token"]
    assert revoke(desk, token, client="chat", token_type_hint=hint).status == 200
    assert revoked(desk) == [RevokeOrder(client_id="chat", unverified_refresh_token=token)]
    form = {"grant_type": "refresh_token", "refresh_token": token}
    assert desk.ask(form, authorization=basic("chat")).error == "invalid_grant"


@pytest.mark.parametrize(
    "token",
    ["x" * 129, "x" * 8192, "a.b.c" + "c" * 200, users_token(iat=NOW - 700, exp=NOW - 100), users_token(FOREIGN),
     users_token(aud="another"), generate.token(signature=lambda _head: bytes(64)), users_token(client_id="chat")],
)  # fmt: skip
def test_token_that_is_unknown_or_anothers_is_passed_over(token: str) -> None:
    desk = Desk()
    answer = revoke(desk, token)
    assert (answer.status, answer.body) == (200, {})
    assert revoked(desk) == []


def test_another_clients_refresh_token_stays_good() -> None:
    desk = Desk()
    token = desk.exchange(users_token(), requested_token_type=REFRESH_TYPE).body["refresh_token"]
    assert revoke(desk, token).status == 200
    form = {"grant_type": "refresh_token", "refresh_token": token}
    assert desk.ask(form, authorization=basic("chat")).status == 200


def test_token_that_was_revoked_is_revoked_once() -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    assert [revoke(desk, token).status for _ in range(2)] == [200, 200]
    assert len(revoked(desk)) == 1


def test_token_of_a_certificate_is_revoked_by_its_client() -> None:
    desk = Desk()
    asked = {"client_id": "holder"}
    token = desk.ask({"grant_type": "client_credentials"} | asked, certificate=CERTIFICATE).body["access_token"]
    assert desk.ask({"token": token} | asked, endpoint="revoke", certificate=CERTIFICATE).status == 200
    assert len(revoked(desk)) == 1


@pytest.mark.parametrize("endpoint", ["revoke", "introspect"])
@pytest.mark.parametrize("form", [[], [("token", "")], [("token", "a"), ("token", "a")], [("token", "x" * 8193)]])
def test_request_without_exactly_one_token_is_invalid(endpoint: Any, form: list[tuple[str, str]]) -> None:
    answer = Desk().ask(form, endpoint=endpoint, authorization=basic("basic"))
    assert (answer.status, answer.error) == (400, "invalid_request")


@pytest.mark.parametrize("endpoint", ["revoke", "introspect"])
def test_nobody_is_told_anything_without_authenticating(endpoint: Any) -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    for how in ({}, {"authorization": basic("basic", "wrong")}, {"authorization": "Bearer " + token}):
        answer = desk.ask({"token": token}, endpoint=endpoint, **how)
        assert (answer.status, answer.error) == (401, "invalid_client")
    assert revoked(desk) == []


def test_revocation_that_is_not_on_record_is_a_503() -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    desk.steps.fail["revoke"] = Refused(Reason.AUDIT_UNAVAILABLE, "the disk is full")
    assert revoke(desk, token).status == 503
    assert introspect(desk, token).body["active"] is True


# --- introspection --------------------------------------------------------------------------------------------------


def test_resource_is_told_what_the_token_says() -> None:
    desk = Desk()
    token = desk.token(BASIC, scope="staff")["access_token"]
    assert introspect(desk, token).body == {
        "active": True,
        "token_type": "Bearer",
        "scope": "staff",
        "client_id": "basic",
        "sub": "basic",
        "aud": generate.AUDIENCE,
        "iss": ISSUER,
        "jti": claims_of(token)["jti"],
        "iat": NOW,
        "exp": NOW + 600,
        "groups": ["staff"],
        "models": ["demo", "large"],
    }


def test_resource_is_told_who_acts_and_which_certificate() -> None:
    desk = Desk()
    exchanged = desk.exchange(users_token()).body["access_token"]
    assert introspect(desk, exchanged).body["act"] == {"sub": "chat"}
    asked = {"grant_type": "client_credentials", "client_id": "holder"}
    bound = desk.ask(asked, certificate=CERTIFICATE).body["access_token"]
    assert introspect(desk, bound).body["cnf"] == {"x5t#S256": base64url(CERTIFICATE)}


@pytest.mark.parametrize(
    "token",
    ["x", "x" * 8192, "a.b.c", "family-1.2", users_token(iat=NOW - 700, exp=NOW - 100), users_token(FOREIGN),
     users_token("https://other.example"), users_token(aud="another"), generate.with_header(typ="JWT"),
     generate.token(signature=lambda _head: bytes(64)), users_token(cnf={"jkt": base64url(CERTIFICATE)}),
     users_token(cnf={"x5t#S256": "short"}), users_token(cnf={"x5t#S256": "_" * 42 + "!"}), users_token(cnf=[]),
     users_token(cnf={"x5t#S256": 1}), users_token(iss=[ISSUER])],
)  # fmt: skip
def test_what_is_not_a_good_token_of_ours_is_exactly_inactive(token: str) -> None:
    answer = introspect(Desk(), token)
    assert (answer.status, answer.whole.body, answer.whole.refused) == (200, INACTIVE, None)


def test_revoked_token_and_that_of_an_ended_client_are_inactive() -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    desk.registry.revocations.ended["basic"] = NOW - 1
    assert introspect(desk, token).body["active"] is True
    desk.registry.revocations.ended["basic"] = NOW
    assert introspect(desk, token).whole.body == INACTIVE


def test_token_is_inactive_once_its_time_is_over() -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    desk.now_seconds = NOW + 600 + 30
    assert introspect(desk, token).whole.body == INACTIVE


def test_client_that_is_no_resource_sees_its_own_tokens_only() -> None:
    desk = Desk()
    own, other = desk.token(BASIC)["access_token"], desk.token(CHAT)["access_token"]
    answers = [
        desk.ask({"token": token}, endpoint="introspect", authorization=basic("basic")) for token in (own, other)
    ]
    assert answers[0].body["client_id"] == "basic"
    assert answers[1].whole.body == INACTIVE


def test_resource_that_may_introspect_no_more_is_told_nothing() -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    desk.registry.clients["post"] = msgspec.structs.replace(POST, introspects=False)
    assert introspect(desk, token).whole.body == INACTIVE


def test_refresh_token_is_told_of_to_nobody() -> None:
    desk = Desk()
    token = desk.exchange(users_token(), requested_token_type=REFRESH_TYPE).body["refresh_token"]
    assert introspect(desk, token).whole.body == INACTIVE
    assert introspect(desk, token, token_type_hint="refresh_token").whole.body == INACTIVE


def test_nobody_knowing_what_is_revoked_is_a_503_and_no_answer() -> None:
    desk = Desk()
    token = desk.token(BASIC)["access_token"]
    desk.registry.revocations.unknown = True
    for answer in (introspect(desk, token), revoke(desk, token)):
        assert (answer.status, answer.error) == (503, "temporarily_unavailable")


def test_foreign_token_makes_us_ask_nobody() -> None:
    desk = Desk()
    asked: list[Presented] = []

    class _Asked:
        async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
            asked.append(presented)
            raise Refused(Reason.ISSUER_UNAVAILABLE, "away")

    desk.authority._verifier = _Asked()
    for token in (users_token(FOREIGN), "opaque-" * 30):
        assert introspect(desk, token).whole.body == INACTIVE
        assert revoke(desk, token).body == {}
    assert asked == []


def test_every_kind_of_client_may_revoke_what_is_its_own() -> None:
    assert {BASIC.authentication, POST.authentication, SIGNER.authentication, HOLDER.authentication} == {
        "client_secret_basic", "client_secret_post", "private_key_jwt", "self_signed_tls_client_auth"
    }  # fmt: skip
    desk = Desk()
    token = desk.ask({"grant_type": "client_credentials"} | RESOURCE).body["access_token"]
    assert desk.ask({"token": token} | RESOURCE, endpoint="revoke").status == 200
    assert len(revoked(desk)) == 1
