"""What a client may not have is refused by who signs, whatever the gateway says."""

from typing import Any

import msgspec
import pytest

from appliance.core.clients import TOKEN_EXCHANGE, Client, Family, Party
from appliance.core.grants import check_client, judge_grant, judge_holder, refreshed, takes_away
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest
from tests.support.registered import (
    CERTIFICATE,
    JKT,
    OTHER_CERTIFICATE,
    OUR_ISSUER,
    by_certificate,
    by_key,
    client,
    exchange,
    exchanging,
    order,
    public_key,
    refresh,
)

NOW = 1_790_000_000
OTHER_ISSUER = "https://idp.test"
FAMILY = Family(
    family_id="f",
    client_id="agent",
    grant="client_credentials",
    subject="agent",
    groups=("analysts", "staff"),
    models=("demo",),
    ttl_seconds=600,
    expires_at_seconds=NOW + 1000,
)


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


def reason_of(call: Any, *given: Any, **named: Any) -> Reason:
    with pytest.raises(Refused) as refused:
        call(*given, **named)
    return refused.value.reason


# --- grants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registered", "asked"),
    [
        (client(), order()),
        (client(), order(groups=(), models=(), refreshable=True, jkt=JKT, certificate_sha256=CERTIFICATE)),
        (client(models=("*",)), order(models=("*", "any"))),
        (by_certificate(), order(certificate_sha256=CERTIFICATE)),
        (exchanging(), exchange(refreshable=True)),
        (exchanging(), exchange(acting=(Party(subject="agent"), Party(subject="another")))),
        (exchanging(exchanges=(OUR_ISSUER, OTHER_ISSUER)), exchange(subject=f"{OTHER_ISSUER}|ada")),
        (exchanging(exchanges=(OTHER_ISSUER,)), exchange(subject=f"{OTHER_ISSUER}|ada")),
    ],
)
def test_what_is_registered_is_granted(registered: Client, asked: Any) -> None:
    assert judge_grant(registered, asked, issuer=OUR_ISSUER) is registered


@pytest.mark.parametrize(
    ("registered", "asked", "reason"),
    [
        (None, order(), Reason.GRANT_INVALID),
        (client(disabled=True), order(), Reason.GRANT_INVALID),
        (client(), exchange(), Reason.GRANT_INVALID),
        (exchanging(), order(), Reason.GRANT_INVALID),
        (client(), order(grant="refresh_token"), Reason.GRANT_INVALID),
        (client(grants=("client_credentials",)), order(refreshable=True), Reason.GRANT_INVALID),
        (client(), order(groups=("analysts", "admins")), Reason.SCOPE_INVALID),
        (client(), order(groups=("*",)), Reason.SCOPE_INVALID),
        (client(), order(models=("demo", "secret")), Reason.GRANT_INVALID),
        (client(), order(models=("*",)), Reason.GRANT_INVALID),
        (client(), order(ttl_seconds=601), Reason.GRANT_INVALID),
        (client(), order(subject="ada"), Reason.GRANT_INVALID),
        (client(), order(acting=(Party(subject="agent"),)), Reason.GRANT_INVALID),
        (exchanging(), exchange(acting=()), Reason.GRANT_INVALID),
        (exchanging(exchanges=(OTHER_ISSUER,)), exchange(subject="ada"), Reason.GRANT_INVALID),
        (exchanging(exchanges=(OTHER_ISSUER,)), exchange(subject="https://third.test|ada"), Reason.GRANT_INVALID),
        (exchanging(), exchange(acting=(Party(subject="x"), Party(subject="agent"))), Reason.GRANT_INVALID),
        (exchanging(), exchange(acting=(Party(subject="agent", issuer="https://x.test"),)), Reason.GRANT_INVALID),
        (by_certificate(), order(), Reason.GRANT_INVALID),
        (by_certificate(), order(certificate_sha256=OTHER_CERTIFICATE), Reason.GRANT_INVALID),
        (by_certificate(), order(jkt=JKT), Reason.GRANT_INVALID),
    ],
)
def test_what_is_not_registered_is_not_granted(registered: Any, asked: Any, reason: Reason) -> None:
    assert reason_of(judge_grant, registered, asked, issuer=OUR_ISSUER) is reason


# --- refresh tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registered", "family", "asked"),
    [
        (None, FAMILY, refresh("f.x")),
        (client(disabled=True), FAMILY, refresh("f.x")),
        (client(grants=("client_credentials",)), FAMILY, refresh("f.x")),
        (client(), None, refresh("f.x")),
        (client(client_id="other"), FAMILY, refresh("f.x", client_id="other")),
        (client(), changed(FAMILY, expires_at_seconds=NOW), refresh("f.x")),
        (client(), FAMILY, refresh("f.x", jkt=JKT)),
        (client(), changed(FAMILY, jkt=JKT), refresh("f.x")),
        (client(), changed(FAMILY, certificate_sha256=CERTIFICATE), refresh("f.x")),
        (client(), changed(FAMILY, jkt=JKT), refresh("f.x", jkt="k" * 43)),
    ],
)
def test_refresh_token_is_nobody_elses(registered: Any, family: Any, asked: Any) -> None:
    assert reason_of(judge_holder, registered, family, asked, now_seconds=NOW) is Reason.GRANT_INVALID


def test_refresh_gives_what_the_family_has_and_the_client_still_may_have() -> None:
    registered = client(ttl_seconds=300)
    assert judge_holder(registered, FAMILY, refresh("f.x"), now_seconds=NOW) == (registered, FAMILY)
    everything = refreshed(registered, FAMILY, None)
    assert (everything.groups, everything.ttl_seconds, everything.subject) == (("analysts", "staff"), 300, "agent")
    assert refreshed(registered, FAMILY, ("staff",)).groups == ("staff",)
    assert refreshed(registered, FAMILY, ()).groups == ()
    assert reason_of(refreshed, registered, FAMILY, ("admins",)) is Reason.SCOPE_INVALID
    assert reason_of(refreshed, client(groups=("staff",)), FAMILY, None) is Reason.GRANT_INVALID
    assert reason_of(refreshed, client(models=("other",)), FAMILY, None) is Reason.GRANT_INVALID
    bound = changed(FAMILY, certificate_sha256=CERTIFICATE)
    assert refreshed(by_certificate(), bound, None).certificate_sha256 == CERTIFICATE
    assert reason_of(refreshed, by_certificate(certificates=("x" * 43,)), bound, None) is Reason.GRANT_INVALID


# --- clients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registered", [client(), by_key(), by_certificate(), exchanging()])
def test_client_that_proves_itself_in_one_way_is_registered(registered: Client) -> None:
    check_client(registered)


@pytest.mark.parametrize(
    "registered",
    [
        client(secrets_sha256=()),
        client(certificates=(CERTIFICATE,)),
        client(keys=(public_key(),)),
        by_key(certificates=(CERTIFICATE,)),
        by_key(public_key(), public_key()),
        by_certificate(certificates=()),
        by_certificate(secrets_sha256=(Digest.of(b"x"),)),
        client(grants=("refresh_token",)),
        client(grants=("client_credentials", "client_credentials")),
        client(grants=(TOKEN_EXCHANGE,)),
        client(exchanges=(OUR_ISSUER,)),
        client(models=("de\x1bmo",)),
    ],
)
def test_client_that_makes_no_sense_is_not_registered(registered: Client) -> None:
    assert reason_of(check_client, registered) is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("fields", "takes"),
    [
        ({}, False),
        ({"groups": ("analysts", "staff", "more")}, False),
        ({"models": ("*",)}, False),
        ({"ttl_seconds": 60}, False),
        ({"secrets_sha256": (Digest.of(b"secret"), Digest.of(b"new"))}, False),
        ({"disabled": True}, True),
        ({"secrets_sha256": (Digest.of(b"new"),)}, True),
        ({"groups": ("staff",)}, True),
        ({"models": ("demo",)}, True),
        ({"grants": ("client_credentials",)}, True),
    ],
)
def test_what_is_taken_away_is_noticed(fields: dict[str, Any], takes: bool) -> None:
    assert takes_away(client(), client(**fields)) is takes


def test_taking_away_what_is_all_is_noticed() -> None:
    assert takes_away(client(models=("*",)), client(models=("demo",)))
    assert takes_away(by_certificate(), by_certificate(certificates=(OTHER_CERTIFICATE,)))
    assert takes_away(by_key(public_key()), by_key(public_key()))
    assert not takes_away(client(disabled=True), client())
