"""The grants of RFC 6749: what a client gets, and what it is told when it gets nothing."""

import msgspec
import pytest

from appliance.core.clients import TOKEN_EXCHANGE, GrantOrder, RefreshOrder
from appliance.core.refusals import Fault, Reason, Refused
from appliance.identity.compact import base64url
from tests.support.oauth_desk import (
    BASIC,
    CERTIFICATE,
    CHAT,
    HOLDER,
    ISSUER,
    NOW,
    OTHER_CERTIFICATE,
    REFRESH_TYPE,
    SUBJECT_TYPE,
    Answer,
    Desk,
    basic,
    claims_of,
    users_token,
)
from tests.vectors.jwt import generate

GRANT = {"grant_type": "client_credentials"}


def test_client_gets_what_is_registered_for_it_and_no_refresh_token() -> None:
    desk = Desk()
    answer = desk.ask(GRANT, authorization=basic("chat"))
    assert set(answer.body) == {"access_token", "token_type", "expires_in", "scope"}
    assert (answer.body["expires_in"], answer.body["scope"]) == (300, "staff analysts night")
    assert desk.registry.orders == [
        GrantOrder(
            client_id="chat",
            grant="client_credentials",
            subject="chat",
            groups=("staff", "analysts", "night"),
            models=("demo", "large"),
            ttl_seconds=300,
        )
    ]
    claims = claims_of(answer.body["access_token"])
    assert (claims["sub"], claims["client_id"], claims["exp"]) == ("chat", "chat", NOW + 300)


def test_scope_narrows_what_is_registered() -> None:
    desk = Desk()
    answer = desk.token(BASIC, scope="analysts")
    assert (answer["scope"], claims_of(answer["access_token"])["groups"]) == ("analysts", ["analysts"])
    assert desk.token(BASIC, scope="analysts staff analysts")["scope"] == "analysts staff"


def test_client_without_groups_gets_a_token_without_scope() -> None:
    answer = Desk(msgspec.structs.replace(BASIC, groups=())).token(BASIC)
    assert "scope" not in answer


@pytest.mark.parametrize(
    "scope", ["night", "staff night", "Staff", "*", "staff  analysts", " staff", "staff,analysts", '"', "x" * 16_385]
)
def test_scope_beyond_the_client_or_malformed_is_refused(scope: str) -> None:
    desk = Desk()
    answer = desk.ask(GRANT | {"scope": scope}, authorization=basic("basic"))
    assert (answer.status, answer.error) == (400, "invalid_scope")
    assert desk.registry.orders == []


@pytest.mark.parametrize("targets", [[ISSUER], [ISSUER + "/"], [generate.AUDIENCE], [ISSUER, generate.AUDIENCE]])
@pytest.mark.parametrize("name", ["resource", "audience"])
def test_our_own_resource_may_be_named(name: str, targets: list[str]) -> None:
    form = [*GRANT.items(), *((name, target) for target in targets)]
    assert Desk().ask(form, authorization=basic("basic")).status == 200


@pytest.mark.parametrize(
    "targets",
    [["https://other.example"], [ISSUER, "https://other.example"], [ISSUER + "/v1"], [ISSUER + "#a"], ["Paddock"],
     [ISSUER.upper()], ["x" * 2000]],
)  # fmt: skip
@pytest.mark.parametrize("name", ["resource", "audience"])
def test_other_resource_is_an_invalid_target(name: str, targets: list[str]) -> None:
    desk = Desk()
    form = [*GRANT.items(), *((name, target) for target in targets)]
    answer = desk.ask(form, authorization=basic("basic"))
    assert (answer.status, answer.error) == (400, "invalid_target")
    assert desk.registry.orders == []


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "invalid_request"),
        ({"grant_type": ""}, "invalid_request"),
        ({"grant_type": "x" * 10_000}, "invalid_request"),
        ({"grant_type": "password", "username": "a", "password": "b"}, "unsupported_grant_type"),
        ({"grant_type": "authorization_code", "code": "x"}, "unsupported_grant_type"),
        ({"grant_type": "implicit"}, "unsupported_grant_type"),
        ({"grant_type": "CLIENT_CREDENTIALS"}, "unsupported_grant_type"),
        ({"grant_type": "client_credentials "}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "unauthorized_client"),
        ({"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"}, "unauthorized_client"),
    ],
)
def test_grant_that_is_not_offered_or_not_registered_is_refused(form: dict[str, str], error: str) -> None:
    desk = Desk()
    answer = desk.ask(form, authorization=basic("basic"))
    assert (answer.status, answer.error) == (400, error)
    assert form.get("grant_type", "") not in answer.body["error_description"] or not form.get("grant_type")
    assert desk.registry.orders == []


def test_client_credentials_need_to_be_registered() -> None:
    only = msgspec.structs.replace(CHAT, grants=CHAT.grants[1:])
    assert Desk(only).ask(GRANT, authorization=basic("chat")).error == "unauthorized_client"


def test_unknown_parameters_are_passed_over() -> None:
    assert Desk().ask(GRANT | {"foo": "bar", "username": "x"}, authorization=basic("basic")).status == 200


# --- refresh tokens -------------------------------------------------------------------------------------------------


def _refreshable(desk: Desk) -> str:
    body = desk.exchange(users_token(), requested_token_type=REFRESH_TYPE).body
    return str(body["refresh_token"])


def _refresh(desk: Desk, token: str, client: str = "chat", **form: str) -> Answer:
    return desk.ask({"grant_type": "refresh_token", "refresh_token": token} | form, authorization=basic(client))


def test_refresh_token_gives_the_next_one_and_an_access_token() -> None:
    desk = Desk()
    first = _refreshable(desk)
    answer = _refresh(desk, first)
    assert set(answer.body) == {"access_token", "token_type", "expires_in", "scope", "refresh_token"}
    assert answer.body["refresh_token"] != first
    assert answer.body["scope"] == "staff analysts"
    assert desk.registry.orders[-1] == RefreshOrder(client_id="chat", unverified_refresh_token=first)


def test_refresh_token_that_was_used_before_ends_its_family() -> None:
    desk = Desk()
    first = _refreshable(desk)
    second = _refresh(desk, first).body["refresh_token"]
    assert _refresh(desk, first).error == "invalid_grant"
    assert _refresh(desk, second).error == "invalid_grant"


def test_refresh_may_narrow_the_scope_and_not_widen_it() -> None:
    desk = Desk()
    answer = _refresh(desk, _refreshable(desk), scope="staff")
    assert answer.body["scope"] == "staff"
    wider = _refresh(desk, answer.body["refresh_token"], scope="staff night")
    assert (wider.status, wider.error) == (400, "invalid_scope")
    assert _refresh(desk, answer.body["refresh_token"], scope="a  b").error == "invalid_scope"


def test_refresh_token_of_another_client_is_refused() -> None:
    desk = Desk(CHAT, msgspec.structs.replace(CHAT, client_id="thief"))
    assert _refresh(desk, _refreshable(desk), client="thief").error == "invalid_grant"


def test_refresh_token_is_bound_to_the_certificate_of_its_client() -> None:
    desk = Desk(msgspec.structs.replace(HOLDER, certificates=(*HOLDER.certificates, base64url(OTHER_CERTIFICATE))))
    form = {
        "client_id": "holder",
        "grant_type": TOKEN_EXCHANGE,
        "subject_token": users_token(),
        "subject_token_type": SUBJECT_TYPE,
        "requested_token_type": REFRESH_TYPE,
    }
    token = desk.ask(form, certificate=CERTIFICATE).body["refresh_token"]
    asked = {"client_id": "holder", "grant_type": "refresh_token", "refresh_token": token}
    assert desk.ask(asked, certificate=OTHER_CERTIFICATE).error == "invalid_grant"
    assert desk.ask(asked, certificate=CERTIFICATE).status == 200


@pytest.mark.parametrize("token", ["x", "family-1.99", "x" * 128, "x" * 129, "x" * 1024, "a b"])
def test_refresh_token_that_is_none_is_refused(token: str) -> None:
    answer = _refresh(Desk(), token)
    assert (answer.status, answer.error) == (400, "invalid_grant")


def test_refresh_token_that_no_message_can_carry_is_not_sent_to_the_notary() -> None:
    desk = Desk()
    _refresh(desk, "x" * 129)
    _refresh(desk, "x", scope="x" * 256)
    assert desk.steps.seen == ["look up the client"] * 2


def test_missing_refresh_token_is_an_invalid_request() -> None:
    for form in ({}, {"refresh_token": ""}):
        answer = Desk().ask({"grant_type": "refresh_token"} | form, authorization=basic("chat"))
        assert (answer.status, answer.error) == (400, "invalid_request")


def test_refresh_for_another_resource_is_refused_and_uses_nothing_up() -> None:
    desk = Desk()
    first = _refreshable(desk)
    assert _refresh(desk, first, resource="https://other.example").error == "invalid_target"
    assert _refresh(desk, first, resource=ISSUER).status == 200


# --- when the notary is away or says no -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["look up the client", "grant"])
def test_notary_that_is_away_is_a_503(step: str) -> None:
    desk = Desk()
    desk.steps.fail[step] = Refused(Reason.AUDIT_UNAVAILABLE, "the notary is away", retry_after_seconds=2)
    answer = desk.ask(GRANT, authorization=basic("basic"))
    assert (answer.status, answer.error) == (503, "temporarily_unavailable")
    assert answer.headers[b"retry-after"] == b"2"
    assert b"www-authenticate" not in answer.headers


def test_notarys_judgement_is_the_last() -> None:
    desk = Desk()
    desk.steps.watch = lambda name: desk.registry.clients.pop("basic", None) if name == "grant" else None
    answer = desk.ask(GRANT, authorization=basic("basic"))
    assert (answer.error, desk.registry.orders) == ("invalid_grant", [])


def test_fault_is_no_answer() -> None:
    desk = Desk()
    desk.steps.fail["grant"] = Fault("broken")
    with pytest.raises(Fault):
        desk.ask(GRANT, authorization=basic("basic"))
