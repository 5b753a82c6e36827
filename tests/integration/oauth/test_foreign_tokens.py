"""Tokens of foreign issuers at the real server: accepted as far as configured, and no further."""

import json
import time
from collections.abc import Callable

import pytest

from appliance.core.records import Opened
from tests.integration.oauth.conftest import Site, rsa_token
from tests.support.identity_provider import new_key

INVALID = 'error="invalid_token"'


def refused(site: Site, token: str, status: int = 401, error: str = INVALID) -> None:
    answer = site.get(token)
    assert answer.status == status, answer.body
    assert error in answer.headers["WWW-Authenticate"]


def curve(site: Site, **changes: object) -> str:
    return site.curve.token(**({"scope": "profile llm"} | changes))


def test_token_of_each_issuer_is_accepted_and_its_principal_is_in_the_record(site: Site) -> None:
    for token, provider in ((curve(site), site.curve), (rsa_token(site.rsa), site.rsa)):
        assert site.server.chat(token, max_tokens=2).status == 200
        actor = site.server.records(Opened)[-1].actor
        assert (actor.issuer, actor.subject, actor.client_id) == (provider.issuer, "carol", "chat")
        assert actor.groups == ("staff",)
        assert actor.token_id


def test_our_own_tokens_are_still_accepted(site: Site) -> None:
    assert site.server.chat(site.server.token(), max_tokens=2).status == 200


WRONG: dict[str, Callable[[Site], str]] = {
    "an issuer that is not configured": lambda site: site.stranger.token(),
    "an issuer that is not configured, in its name": lambda site: curve(site, key=site.stranger.keys["one"]),
    "another configured issuer, in its name": lambda site: curve(site, key=site.rsa.keys["one"], algorithm="RS256"),
    "our own name": lambda site: curve(site, iss="https://paddock.local"),
    "another audience": lambda site: curve(site, aud="mail"),
    "a list of audiences": lambda site: curve(site, aud=["llm"]),
    "no audience": lambda site: curve(site, aud=None),
    "a list without our audience": lambda site: rsa_token(site.rsa, aud=["account"]),
    "another algorithm of the same key": lambda site: rsa_token_by(site, "PS256"),
    "no signature": lambda site: curve(site).rpartition(".")[0] + ".AAAA",
    "type JWT": lambda site: curve(site, typ="JWT"),
    "no type": lambda site: curve(site, typ=None),
    "the type of another issuer": lambda site: rsa_token(site.rsa, typ="at+jwt"),
    "an ID token by its claim": lambda site: rsa_token(site.rsa, claim_typ="ID"),
    "a refresh token by its claim": lambda site: rsa_token(site.rsa, claim_typ="Refresh"),
    "an ID token by what only ID tokens have": lambda site: rsa_token(site.rsa, nonce="n"),
    "another client's token": lambda site: rsa_token(site.rsa, azp="mail"),
    "a key of that name": lambda site: curve(site, key=new_key("ES256")),
    "an unknown key": lambda site: curve(site, key_id="two", key=new_key("ES256")),
    "expired": lambda site: curve(site, iat=int(time.time()) - 900, exp=int(time.time()) - 60),
    "not valid yet": lambda site: curve(site, nbf=int(time.time()) + 300),
    "issued in the future": lambda site: curve(site, iat=int(time.time()) + 300),
    "a lifetime of days": lambda site: curve(site, exp=int(time.time()) + 3 * 86_400),
    "no expiry": lambda site: curve(site, exp=None),
    "no time of issue": lambda site: curve(site, iat=None),
    "groups that are a text": lambda site: curve(site, groups="people"),
    "a binding that nobody can confirm": lambda site: curve(site, cnf={"kid": "x"}),
}


def rsa_token_by(site: Site, algorithm: str) -> str:
    return site.rsa.token(typ="JWT", algorithm=algorithm)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_token_is_refused(site: Site, name: str) -> None:
    refused(site, WRONG[name](site))


def test_token_without_the_scope_is_refused_with_403(site: Site) -> None:
    """RFC 6750 section 3.1."""
    refused(site, curve(site, scope="profile"), 403, 'error="insufficient_scope", ')
    refused(site, curve(site, scope=None), 403, 'scope="llm"')


def test_foreign_issuer_cannot_say_the_name_of_one_of_our_groups(site: Site) -> None:
    answer = site.server.chat(curve(site, groups=["staff", "root"]), max_tokens=2)
    assert (answer.status, answer.json()["error"]["code"]) == (404, "model-not-found")


def test_issuer_that_was_never_reached_is_a_503_for_its_tokens_and_for_no_others(site: Site) -> None:
    answer = site.get(site.dark.token())
    assert (answer.status, answer.json()["error"]["code"]) == (503, "issuer-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "WWW-Authenticate" not in answer.headers
    assert site.get(curve(site)).status == 200


def test_unknown_keys_are_looked_for_at_most_once_in_a_cooldown(site: Site) -> None:
    before, began = site.curve.asked_for("/keys"), time.monotonic()
    stranger = new_key("ES256")
    for number in range(200):
        refused(site, curve(site, key_id=f"unknown-{number}", key=stranger))
    looks = site.curve.asked_for("/keys") - before
    assert looks <= (time.monotonic() - began) // 1 + 1  # cooldown_seconds


def test_rotated_key_is_found_and_a_withdrawn_one_verifies_nothing_also_from_the_cache(site: Site) -> None:
    old = site.curve.keys["one"]
    token = curve(site)
    assert site.get(token).status == 200
    site.curve.keys = {"two": new_key("ES256")}
    fresh = curve(site, key_id="two")
    try:
        site.server.wait_until(lambda: site.get(fresh).status == 200, "the new key is known")
        refused(site, token)
    finally:
        site.curve.keys = {"one": old}
        site.server.wait_until(lambda: site.get(curve(site)).status == 200, "the old key again")


def test_issuer_out_of_reach_costs_nothing_while_its_last_good_keys_are_kept(site: Site) -> None:
    bad = [
        (302, {"Location": f"{site.stranger.issuer}/keys"}, b""),
        (200, {"Content-Type": "text/html"}, b"<html>"),
        (200, {"Content-Type": "application/json"}, b'{"keys":[]}'),
        (200, {"Content-Type": "application/json"}, b" " * 70_000),
        (500, {}, b""),
    ]
    strangers = site.stranger.asked_for("/keys")
    try:
        for answer in bad:
            site.curve.answers["/keys"] = answer
            before = site.curve.asked_for("/keys")
            look_again(site, before)
            assert site.get(curve(site)).status == 200
    finally:
        site.curve.answers.clear()
    look_again(site, site.curve.asked_for("/keys"))
    assert site.stranger.asked_for("/keys") == strangers


def look_again(site: Site, before: int) -> None:
    """Has the liaison fetch once more: an unknown key makes it, when the cooldown is over."""
    unknown = curve(site, key_id="unknown", key=new_key("ES256"))

    def looked() -> bool:
        refused(site, unknown)
        return site.curve.asked_for("/keys") > before

    site.server.wait_until(looked, "another look at the keys")


def test_liaison_that_dies_is_started_again_and_tokens_are_verified_meanwhile(site: Site) -> None:
    former = site.server.pid_of("liaison")
    site.server.kill("liaison")
    assert site.get(curve(site)).status == 200
    site.server.wait_until(lambda: _pid(site) not in (None, former), "another liaison")
    site.server.wait_until(lambda: _opaque_works(site), "introspection works again")


def _pid(site: Site) -> int | None:
    try:
        return site.server.pid_of("liaison")
    except AssertionError:
        return None


def _opaque_works(site: Site) -> bool:
    token = "opaque-after-the-restart"
    site.opaque.active[token] = {"active": True} | site.opaque.claims()
    return site.get(token).status == 200


def test_log_of_refusals_is_one_line_each_and_has_no_token(site: Site) -> None:
    token = curve(site, sub="eve\n\x1b[31m", aud="mail")
    refused(site, token)
    assert token not in site.server.log
    assert json.dumps("\x1b") not in site.server.log
