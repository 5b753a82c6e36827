"""Token exchange (RFC 8693): a client acts for somebody with what both may have, and it shows in the token."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from appliance.core.clients import TOKEN_EXCHANGE, Client, GrantOrder, Party
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Presented, VerifiedClaims
from appliance.identity.compact import base64url
from tests.support.made_values import CLAIMS
from tests.support.oauth_desk import (
    BASIC,
    CERTIFICATE,
    CHAT,
    FOREIGN,
    HOLDER,
    ISSUER,
    NOW,
    OTHER_CERTIFICATE,
    REFRESH_TYPE,
    SUBJECT_TYPE,
    Desk,
    basic,
    claims_of,
    users_token,
)
from tests.vectors.jwt import generate


def test_exchanged_token_has_what_both_have_and_names_who_acts() -> None:
    desk = Desk()
    answer = desk.exchange(users_token())
    assert set(answer.body) == {"access_token", "token_type", "expires_in", "scope", "issued_token_type"}
    assert answer.body["issued_token_type"] == SUBJECT_TYPE
    assert desk.registry.orders == [
        GrantOrder(
            client_id="chat",
            grant=TOKEN_EXCHANGE,
            subject="alice",
            groups=("staff", "analysts"),
            models=("demo",),
            acting=(Party(subject="chat"),),
            ttl_seconds=300,
        )
    ]
    claims = claims_of(answer.body["access_token"])
    assert (claims["sub"], claims["client_id"], claims["act"]) == ("alice", "chat", {"sub": "chat"})


def test_subject_of_another_issuer_is_not_ours_of_that_name() -> None:
    desk = Desk()
    ours = claims_of(desk.exchange(users_token()).body["access_token"])["sub"]
    theirs = claims_of(desk.exchange(users_token(FOREIGN)).body["access_token"])["sub"]
    assert (ours, theirs) == ("alice", f"{FOREIGN}|alice")


def test_jwt_is_a_type_of_subject_token_too() -> None:
    jwt_type = "urn:ietf:params:oauth:token-type:jwt"
    assert Desk().exchange(users_token(), subject_token_type=jwt_type).status == 200


def test_scope_narrows_what_both_have_and_cannot_go_beyond() -> None:
    desk = Desk()
    assert desk.exchange(users_token(), scope="staff").body["scope"] == "staff"
    for beyond in ("night", "staff night", "people"):  # the client's alone, and the subject's alone
        answer = desk.exchange(users_token(groups=["staff", "people"]), scope=beyond)
        assert (answer.status, answer.error) == (400, "invalid_scope")


@pytest.mark.parametrize(
    ("registered", "said", "both"),
    [
        (("demo",), ["demo", "other"], ["demo"]),
        (("*",), ["demo"], ["demo"]),
        (("demo",), ["*"], ["demo"]),
        (("*",), ["*"], ["*"]),
        (("demo",), ["other"], []),
        ((), ["*"], []),
        (("*",), [], []),
    ],
)
def test_models_are_those_of_both(registered: tuple[str, ...], said: list[str], both: list[str]) -> None:
    desk = Desk(msgspec.structs.replace(CHAT, models=registered))
    answer = desk.exchange(users_token(models=said))
    assert claims_of(answer.body["access_token"])["models"] == both


@pytest.mark.parametrize("said", [[str(number) for number in range(65)], ["x" * 256], [""]])
def test_models_that_no_order_can_carry_are_refused(said: list[str]) -> None:
    desk = Desk(msgspec.structs.replace(CHAT, models=("*",)))
    answer = desk.exchange(users_token(models=said))
    assert (answer.status, answer.error) == (400, "invalid_request")
    assert "grant" not in desk.steps.seen


def test_token_of_nothing_in_common_has_no_groups() -> None:
    answer = Desk().exchange(users_token(groups=["people"]))
    assert "scope" not in answer.body
    assert claims_of(answer.body["access_token"])["groups"] == []


def test_exchanged_token_ends_no_later_than_the_subjects_own() -> None:
    assert Desk().exchange(users_token(exp=NOW + 100)).body["expires_in"] == 100
    late = Desk().exchange(users_token(exp=NOW))  # which the verifier still takes, for clocks differ
    assert (late.status, late.error) == (400, "invalid_request")


def test_refresh_token_is_for_who_asks_and_is_registered() -> None:
    answer = Desk().exchange(users_token(exp=NOW + 100), requested_token_type=REFRESH_TYPE)
    assert set(answer.body) >= {"access_token", "refresh_token", "issued_token_type"}
    assert (answer.body["issued_token_type"], answer.body["expires_in"]) == (SUBJECT_TYPE, 300)
    assert "refresh_token" not in Desk().exchange(users_token()).body
    without = msgspec.structs.replace(CHAT, grants=("client_credentials", TOKEN_EXCHANGE))
    refused = Desk(without).exchange(users_token(), requested_token_type=REFRESH_TYPE)
    assert (refused.status, refused.error) == (400, "unauthorized_client")


BAD_FORMS: dict[str, dict[str, str]] = {
    "no subject token": {"subject_token": ""},
    "no type": {"subject_token_type": ""},
    "an id token": {"subject_token_type": "urn:ietf:params:oauth:token-type:id_token"},
    "a refresh token": {"subject_token_type": REFRESH_TYPE},
    "saml": {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"},
    "a type that is none": {"subject_token_type": "access_token"},
    "an actor token": {"actor_token": "x", "actor_token_type": SUBJECT_TYPE},
    "an actor token without its type": {"actor_token": "x"},
    "a type of an actor token": {"actor_token_type": SUBJECT_TYPE},
    "an id token is wanted": {"requested_token_type": "urn:ietf:params:oauth:token-type:id_token"},
    "something is wanted": {"requested_token_type": "x"},
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_exchange_that_is_not_offered_is_an_invalid_request(name: str) -> None:
    desk = Desk()
    answer = desk.exchange(users_token(), **BAD_FORMS[name])
    assert (answer.status, answer.error) == (400, "invalid_request")
    assert desk.registry.orders == []


BAD_TOKENS: dict[str, str] = {
    "junk": "x",
    "signed by nobody": generate.token(signature=lambda _head: bytes(64)),
    "an issuer that is not configured": users_token("https://other.example"),
    "expired": users_token(iat=NOW - 700, exp=NOW - 100),
    "for somebody else": users_token(aud="another"),
    "an id token": generate.with_header(typ="JWT"),
    "bound to a certificate": users_token(cnf={"x5t#S256": base64url(CERTIFICATE)}),
    "bound to a key": users_token(cnf={"jkt": base64url(CERTIFICATE)}),
    "a long one": "a." + "b" * 8000 + ".c",
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_subject_token_that_is_not_good_is_an_invalid_request(name: str) -> None:
    desk = Desk()
    answer = desk.exchange(BAD_TOKENS[name])
    assert (answer.status, answer.error) == (400, "invalid_request")
    assert answer.whole.detail.startswith("the subject token: ")
    assert desk.registry.orders == []


def test_revoked_subject_token_is_refused() -> None:
    desk = Desk()
    desk.registry.revocations.tokens.add("0001")
    assert desk.exchange(users_token()).whole.detail == "the subject token: revoked"
    assert desk.exchange(users_token(FOREIGN)).status == 200, "another issuer's identifiers are its own"


def test_subject_token_is_not_taken_while_nobody_knows_what_is_revoked() -> None:
    desk = Desk()
    desk.registry.revocations.unknown = True
    answer = desk.exchange(users_token())
    assert (answer.status, answer.error) == (503, "temporarily_unavailable")


def test_issuer_that_is_not_registered_for_the_client_is_refused() -> None:
    for client, token in (
        (msgspec.structs.replace(CHAT, exchanges=(FOREIGN,)), users_token()),
        (msgspec.structs.replace(CHAT, exchanges=(ISSUER,)), users_token(FOREIGN)),
        (msgspec.structs.replace(CHAT, exchanges=()), users_token()),
    ):
        desk = Desk(client)
        answer = desk.exchange(token)
        assert (answer.status, answer.error) == (400, "invalid_request")
        assert desk.registry.orders == []


def test_bound_subject_token_is_exchanged_by_its_holder() -> None:
    form = {"client_id": "holder", "grant_type": TOKEN_EXCHANGE, "subject_token_type": SUBJECT_TYPE}
    for certificate, status in ((CERTIFICATE, 200), (OTHER_CERTIFICATE, 400)):
        token = users_token(cnf={"x5t#S256": base64url(certificate)})
        answer = Desk(HOLDER).ask(form | {"subject_token": token}, certificate=CERTIFICATE)
        assert answer.status == status
    bound = Desk(HOLDER).ask(form | {"subject_token": users_token()}, certificate=CERTIFICATE).body["access_token"]
    assert claims_of(bound)["cnf"] == {"x5t#S256": base64url(CERTIFICATE)}


def test_strangers_token_is_looked_at_by_nobody_before_the_client_is_known() -> None:
    desk = Desk()
    asked: list[Presented] = []

    class _Asked:
        async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
            asked.append(presented)
            raise Refused(Reason.TOKEN_INVALID)

    desk.authority._verifier = _Asked()
    form = {"grant_type": TOKEN_EXCHANGE, "subject_token": users_token(), "subject_token_type": SUBJECT_TYPE}
    assert desk.ask(form, authorization=basic("chat", "wrong")).error == "invalid_client"
    assert desk.ask(form, authorization=basic(BASIC.client_id)).error == "unauthorized_client"
    assert desk.ask(form | {"resource": "https://x"}, authorization=basic("chat")).error == "invalid_target"
    assert asked == []


def test_issuer_that_cannot_be_asked_is_a_503() -> None:
    desk = Desk()

    class _Away:
        async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
            raise Refused(Reason.ISSUER_UNAVAILABLE, "away", retry_after_seconds=5)

    desk.authority._verifier = _Away()
    answer = desk.exchange(users_token())
    assert (answer.status, answer.error, answer.headers[b"retry-after"]) == (503, "temporarily_unavailable", b"5")


@pytest.mark.parametrize(
    ("may_act", "status"),
    [
        ({"sub": "chat"}, 200),
        ({"sub": "chat", "iss": ISSUER}, 200),
        ({"sub": "other"}, 400),
        ({"sub": "chat", "iss": FOREIGN}, 400),
        ({"client_id": "chat"}, 400),
        ({}, 400),
        ("chat", 400),
        (["chat"], 400),
        (None, 400),
    ],
)
@pytest.mark.parametrize("issuer", [ISSUER, FOREIGN])
def test_token_that_lets_another_act_is_not_exchanged(may_act: Any, status: int, issuer: str) -> None:
    answer = Desk().exchange(users_token(issuer, may_act=may_act))
    assert answer.status == status
    assert status == 200 or answer.error == "invalid_request"


# --- who acted before -----------------------------------------------------------------------------------------------


class _Delegated(VerifiedClaims, frozen=True, kw_only=True):
    acting: tuple[Any, ...] = ()


def _exchange_of(client: Client, **claims: Any) -> tuple[Any, Desk]:
    desk = Desk(client)
    values = {name: getattr(CLAIMS, name) for name in CLAIMS.__struct_fields__} | {"issuer": ISSUER} | claims

    class _Says:
        async def verify(self, presented: Presented, *, now_seconds: int) -> VerifiedClaims:
            return _Delegated(**values)

    desk.authority._verifier = _Says()
    return desk.exchange(users_token()), desk


def _chain(length: int, issuer: str = ISSUER) -> tuple[Any, ...]:
    return tuple(SimpleNamespace(subject=f"service-{number}", issuer=issuer) for number in range(length))


def test_who_acted_before_stays_in_the_token() -> None:
    answer, desk = _exchange_of(CHAT, acting=_chain(2))
    assert claims_of(answer.body["access_token"])["act"] == {
        "sub": "chat",
        "act": {"sub": "service-0", "act": {"sub": "service-1"}},
    }
    answer, desk = _exchange_of(CHAT, issuer=FOREIGN, acting=_chain(1, FOREIGN))
    (order,) = desk.registry.orders
    assert isinstance(order, GrantOrder)
    assert order.acting == (Party(subject="chat"), Party(subject="service-0", issuer=FOREIGN))


def test_chain_of_those_who_act_has_an_end() -> None:
    assert _exchange_of(CHAT, acting=_chain(3))[0].status == 200
    answer, desk = _exchange_of(CHAT, acting=_chain(4))
    assert (answer.status, answer.error, desk.registry.orders) == (400, "invalid_request", [])


@pytest.mark.parametrize("subject", ["", "x" * 1025])
def test_subject_without_a_name_or_with_a_long_one_is_refused(subject: str) -> None:
    assert _exchange_of(CHAT, subject=subject)[0].error == "invalid_request"


def test_subject_whose_name_is_too_long_beside_its_issuer_is_refused() -> None:
    assert _exchange_of(CHAT, subject="x" * 1024)[0].status == 200
    assert _exchange_of(CHAT, issuer=FOREIGN, subject="x" * 1024)[0].error == "invalid_request"
