"""A client authenticates in the one way that is registered for it; who fails learns nothing of why."""

import hmac
import json
from typing import Any

import msgspec
import pytest

from appliance.core.refusals import Reason
from appliance.identity.issuer import authentication
from appliance.identity.issuer.authentication import ASSERTION_TYPE
from tests.support.oauth_desk import (
    BASIC,
    CERTIFICATE,
    CLIENTS,
    NEXT_SECRET,
    OTHER_CERTIFICATE,
    POST,
    SECRET,
    SIGNER,
    Answer,
    Desk,
    assertion,
    basic,
    by_assertion,
    claims_of,
)

GRANT = {"grant_type": "client_credentials"}

GOOD = {
    "basic": ({}, {"authorization": basic("basic")}),
    "basic with its id besides": ({"client_id": "basic"}, {"authorization": basic("basic")}),
    "post": ({"client_id": "post", "client_secret": SECRET}, {}),
    "post, the next secret": ({"client_id": "post", "client_secret": NEXT_SECRET}, {}),
    "assertion": (by_assertion(assertion()), {}),
    "assertion with its id besides": (by_assertion(assertion(), client_id="signer"), {}),
    "certificate": ({"client_id": "holder"}, {"certificate": CERTIFICATE}),
    "secret, on a connection with a certificate": ({}, {"authorization": basic("basic"), "certificate": CERTIFICATE}),
}


@pytest.mark.parametrize("name", GOOD)
def test_registered_way_is_taken(name: str) -> None:
    form, how = GOOD[name]
    answer = Desk().ask(GRANT | form, **how)
    assert (answer.status, answer.body["token_type"]) == (200, "Bearer")


def test_only_who_authenticates_by_its_certificate_gets_a_token_of_that_certificate() -> None:
    desk = Desk()
    bound = desk.ask(GRANT | {"client_id": "holder"}, certificate=CERTIFICATE).body["access_token"]
    assert claims_of(bound)["cnf"] == {"x5t#S256": next(c for c in CLIENTS if c.client_id == "holder").certificates[0]}
    free = desk.ask(GRANT, authorization=basic("basic"), certificate=CERTIFICATE).body["access_token"]
    assert "cnf" not in claims_of(free)


TWO_WAYS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "basic and post": ({"client_id": "basic", "client_secret": SECRET}, {"authorization": basic("basic")}),
    "basic and assertion": (by_assertion(assertion()), {"authorization": basic("signer")}),
    "post and assertion": (by_assertion(assertion(), client_id="signer", client_secret=SECRET), {}),
    "basic and half an assertion": ({"client_assertion_type": ASSERTION_TYPE}, {"authorization": basic("basic")}),
    "another scheme and post": ({"client_id": "post", "client_secret": SECRET}, {"authorization": "Bearer x"}),
}


@pytest.mark.parametrize("name", TWO_WAYS)
def test_two_ways_are_an_invalid_request(name: str) -> None:
    form, how = TWO_WAYS[name]
    desk = Desk()
    answer = desk.ask(GRANT | form, **how)
    assert (answer.status, answer.error) == (400, "invalid_request")
    assert desk.steps.seen == [], "nobody is looked up"


BAD: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "an id alone": ({"client_id": "basic"}, {}),
    "an id alone of one with a certificate": ({"client_id": "holder"}, {}),
    "unknown, basic": ({}, {"authorization": basic("nobody")}),
    "wrong secret, basic": ({}, {"authorization": basic("basic", "wrong")}),
    "disabled": ({}, {"authorization": basic("off")}),
    "the digest as the secret": ({}, {"authorization": basic("basic", BASIC.secrets_sha256[0].hex)}),
    "a part of the secret": ({}, {"authorization": basic("basic", SECRET[:-1])}),
    "unknown, post": ({"client_id": "nobody", "client_secret": SECRET}, {}),
    "wrong secret, post": ({"client_id": "post", "client_secret": "wrong"}, {}),
    "no id, post": ({"client_secret": SECRET}, {}),
    "basic by one of post": ({}, {"authorization": basic("post")}),
    "post by one of basic": ({"client_id": "basic", "client_secret": SECRET}, {}),
    "basic by one of assertions": ({}, {"authorization": basic("signer")}),
    "certificate by one of basic": ({"client_id": "basic"}, {"certificate": CERTIFICATE}),
    "basic by one of certificates": ({}, {"authorization": basic("holder"), "certificate": CERTIFICATE}),
    "assertion by one of basic": (by_assertion(assertion(client_id="basic")), {}),
    "another certificate": ({"client_id": "holder"}, {"certificate": OTHER_CERTIFICATE}),
    "a certificate of zeros": ({"client_id": "holder"}, {"certificate": bytes(32)}),
    "unknown, certificate": ({"client_id": "nobody"}, {"certificate": CERTIFICATE}),
    "two ids, basic": ({"client_id": "post"}, {"authorization": basic("basic")}),
    "two ids, assertion": (by_assertion(assertion(), client_id="basic"), {}),
    "assertion of another type": (by_assertion(assertion(), client_assertion_type="saml2-bearer"), {}),
    "a type and no assertion": ({"client_assertion_type": ASSERTION_TYPE}, {}),
    "an assertion and no type": ({"client_assertion": assertion()}, {}),
    "an id that cannot be": ({}, {"authorization": basic("a/../b")}),
    "a long id": ({}, {"authorization": basic("x" * 129)}),
    "an id with a line end": ({}, {"authorization": basic("basic\n")}),
    "bearer": ({}, {"authorization": "Bearer " + SECRET}),
    "unknown, assertion": (by_assertion(assertion(client_id="nobody")), {}),
}


@pytest.mark.parametrize("endpoint", ["token", "revoke", "introspect"])
def test_whoever_is_not_the_client_is_told_the_same(endpoint: Any) -> None:
    answers: set[tuple[int, bytes, tuple[tuple[bytes, bytes], ...]]] = set()
    for name, (form, how) in BAD.items():
        desk = Desk()
        answer = desk.ask(GRANT | {"token": "t"} | form, endpoint=endpoint, **how)
        assert answer.error == "invalid_client", name
        assert answer.whole.refused is Reason.CLIENT_INVALID
        assert desk.registry.orders == []
        answers.add((answer.status, answer.whole.body, answer.whole.headers))
    ((status, _body, headers),) = answers
    assert status == 401
    assert dict(headers)[b"www-authenticate"].startswith(b"Basic realm=")


def _compared(monkeypatch: pytest.MonkeyPatch, form: dict[str, str], how: dict[str, Any]) -> int:
    compared = 0

    def compare(one: str, other: str) -> bool:
        nonlocal compared
        compared += 1
        return hmac.compare_digest(one, other)

    class _Counting:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(authentication, "hmac", _Counting)
    desk = Desk()
    desk.ask(GRANT | form, **how)
    assert desk.steps.seen[0] == "look up the client"
    return compared


def test_unknown_client_costs_the_work_of_a_wrong_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [
        ("unknown, basic", "wrong secret, basic", "disabled", "basic by one of post", "basic by one of assertions"),
        ("unknown, post", "wrong secret, post", "post by one of basic"),
        ("unknown, certificate", "another certificate", "certificate by one of basic"),
    ]
    for names in ways:
        assert len({_compared(monkeypatch, *BAD[name]) for name in names}) == 1, names
    assert _compared(monkeypatch, *BAD["unknown, basic"]) == _compared(monkeypatch, *GOOD["basic"])
    assert _compared(monkeypatch, *BAD["unknown, certificate"]) == 8


def test_refusal_names_no_parameter_of_the_caller() -> None:
    for form, how in BAD.values():
        text = json.dumps(Desk().ask(GRANT | form, **how).body)
        assert not any(word in text for word in (SECRET, "nobody", "holder", "signer"))


def test_client_that_was_disabled_between_two_requests_gets_nothing() -> None:
    desk = Desk()
    desk.token(BASIC)
    desk.registry.clients["basic"] = msgspec.structs.replace(BASIC, disabled=True)
    assert _basic(desk).error == "invalid_client"


def test_secret_that_was_replaced_is_good_no_more() -> None:
    desk = Desk()
    desk.registry.clients["post"] = msgspec.structs.replace(POST, secrets_sha256=POST.secrets_sha256[1:])
    asked = GRANT | {"client_id": "post"}
    assert desk.ask(asked | {"client_secret": SECRET}).error == "invalid_client"
    assert desk.ask(asked | {"client_secret": NEXT_SECRET}).status == 200


def test_registered_kind_of_client_cannot_be_chosen_by_the_request() -> None:
    """One that has both a secret and keys on record, which the registry never lets in, still has one way."""
    both = msgspec.structs.replace(SIGNER, secrets_sha256=BASIC.secrets_sha256)
    assert Desk(both).ask(GRANT, authorization=basic("signer")).error == "invalid_client"


def _basic(desk: Desk) -> Answer:
    return desk.ask(GRANT, authorization=basic("basic"))
