"""Who acts for the subject of a token (RFC 8693 section 4.1): all of it is understood, or the token is refused."""

import json
from typing import Any

import msgspec
import pytest

from appliance.core.claims import models_of_both, principal, principal_key, principal_through
from appliance.core.decide import policy_input
from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import IssuerRules, ReadClaims, check_within, read
from appliance.core.values import ActingParty, Digest, ForwardedUser, VerifiedClaims
from appliance.identity.introspection import judge
from tests.support.made_values import ALICE, CLAIMS, PEER

ISSUER = "https://issuer.example"
RULES = IssuerRules(issuer=ISSUER, audiences=frozenset({"paddock"}), max_lifetime_seconds=600)
CLAIMED: dict[str, Any] = {
    "iss": ISSUER,
    "aud": "paddock",
    "sub": "alice",
    "client_id": "agent",
    "jti": "1",
    "iat": 1,
    "exp": 2,
}


def acting(act: Any) -> tuple[tuple[str, str], ...]:
    return tuple((one.issuer, one.subject) for one in read(CLAIMED | {"act": act}, RULES).acting)


def chain(*subjects: str) -> dict[str, Any]:
    act: dict[str, Any] = {}
    for subject in reversed(subjects):
        act = {"sub": subject, **({"act": act} if act else {})}
    return act


def test_nobody_acts_where_the_token_names_nobody() -> None:
    assert read(CLAIMED, RULES).acting == ()


def test_the_nearest_comes_first_and_is_of_the_tokens_issuer() -> None:
    assert acting({"sub": "agent"}) == ((ISSUER, "agent"),)
    assert acting({"sub": "agent", "iss": ISSUER}) == ((ISSUER, "agent"),)
    behind = {"sub": "webui", "iss": "https://other.example", "act": {"sub": "third"}}
    assert acting({"sub": "agent", "act": behind}) == (
        (ISSUER, "agent"),
        ("https://other.example", "webui"),
        (ISSUER, "third"),
    )
    assert len(acting(chain("a", "b", "c", "d"))) == 4


@pytest.mark.parametrize(
    "act",
    [
        None,
        {},
        [],
        "agent",
        True,
        [{"sub": "agent"}],
        {"iss": ISSUER},
        {"sub": ""},
        {"sub": None},
        {"sub": 1},
        {"sub": ["agent"]},
        {"sub": "a" * 1025},
        {"sub": "agent", "iss": None},
        {"sub": "agent", "iss": ""},
        {"sub": "agent", "iss": "a" * 256},
        {"sub": "agent", "iss": "https://paddock.local"},
        {"sub": "agent", "client_id": "agent"},
        {"sub": "agent", "groups": ["services"]},
        {"sub": "agent", "exp": 2},
        {"sub": "agent", "act": None},
        {"sub": "agent", "act": {}},
        {"sub": "agent", "act": {"sub": "b", "x": 1}},
        chain("a", "b", "c", "d", "e"),
    ],
    ids=str,
)
def test_what_is_not_understood_whole_is_refused(act: Any) -> None:
    with pytest.raises(Refused) as caught:
        acting(act)
    assert caught.value.reason is Reason.TOKEN_INVALID


@pytest.mark.parametrize(
    "party",
    [
        ActingParty(issuer=ISSUER, subject="agent", groups=("services",)),
        ActingParty(issuer=ISSUER, subject="agent", client_id="agent"),
        ActingParty(issuer=ISSUER, subject="agent", token_id="1"),
        ActingParty(issuer=ISSUER, subject="agent", token_sha256=Digest.of(b"x")),
        ActingParty(issuer="https://paddock.local", subject="agent"),
    ],
    ids=str,
)
def test_process_that_read_an_answer_cannot_say_more_than_an_answer_could(party: ActingParty) -> None:
    claims = read(CLAIMED | {"act": {"sub": "agent"}}, RULES)
    check_within(claims, RULES)
    with pytest.raises(Refused):
        check_within(msgspec.structs.replace(claims, acting=(party,)), RULES)


def test_principal_and_policy_see_who_acts() -> None:
    agent = ActingParty(issuer=ISSUER, subject="agent")
    made = principal(msgspec.structs.replace(CLAIMS, acting=(agent,)))
    assert (made.key, made.acting) == (ALICE.key, (agent,))
    document = policy_input("describe", principal=made, peer=PEER, method="GET", route="/", now_seconds=0)
    assert document["principal"]["acting"] == [
        {"issuer": ISSUER, "subject": "agent", "client_id": "", "groups": []},
    ]


# --- a service with a token of its own ------------------------------------------------------------------------------

SERVICE = msgspec.structs.replace(
    CLAIMS,
    issuer="https://paddock.local",
    subject="webui",
    client_id="webui",
    groups=("services",),
    models=("demo", "other"),
    token_id="s",
    token_sha256=Digest.of(b"service"),
)
FORWARDED = ForwardedUser(
    issuer="https://paddock.local#webui", subject="alice", groups=("staff",), token_sha256=Digest.of(b"jwt")
)


def test_principal_is_the_user_and_the_service_acts() -> None:
    made = principal_through(SERVICE, CLAIMS)
    assert (made.key, made.subject, made.groups, made.client_id) == (ALICE.key, "alice", CLAIMS.groups, "notebook")
    assert (made.token_id, made.token_sha256) == (CLAIMS.token_id, CLAIMS.token_sha256)
    assert made.acting == (
        ActingParty(
            issuer="https://paddock.local",
            subject="webui",
            client_id="webui",
            groups=("services",),
            token_id="s",
            token_sha256=Digest.of(b"service"),
        ),
    )


def test_user_without_a_token_is_confined_by_the_services() -> None:
    made = principal_through(SERVICE, FORWARDED)
    assert (made.key, made.issuer) == (principal_key(FORWARDED.issuer, "alice"), FORWARDED.issuer)
    assert (made.groups, made.models, made.client_id) == (("staff",), SERVICE.models, "webui")
    assert made.token_id == str(FORWARDED.token_sha256)


@pytest.mark.parametrize(
    ("service", "user", "both"),
    [
        (("*",), ("*",), ("*",)),
        (("*",), ("demo",), ("demo",)),
        (("demo",), ("*",), ("demo",)),
        (("demo", "other"), ("other", "third"), ("other",)),
        (("demo",), ("other",), ()),
        ((), ("*",), ()),
        (("*",), (), ()),
        (("*", "demo"), ("demo",), ("demo",)),
    ],
)
def test_both_tokens_confine(service: tuple[str, ...], user: tuple[str, ...], both: tuple[str, ...]) -> None:
    assert models_of_both(service, user) == both
    made = principal_through(
        msgspec.structs.replace(SERVICE, models=service), msgspec.structs.replace(CLAIMS, models=user)
    )
    assert made.models == both


AGENT = ActingParty(issuer=ISSUER, subject="agent")


@pytest.mark.parametrize(
    ("service", "user"),
    [
        (SERVICE, SERVICE),
        (SERVICE, msgspec.structs.replace(SERVICE, client_id="x", token_id="2")),
        (SERVICE, msgspec.structs.replace(CLAIMS, subject="")),
        (SERVICE, msgspec.structs.replace(CLAIMS, acting=(AGENT,))),
        (msgspec.structs.replace(SERVICE, acting=(AGENT,)), CLAIMS),
        (msgspec.structs.replace(SERVICE, acting=(AGENT,)), FORWARDED),
        (SERVICE, msgspec.structs.replace(FORWARDED, subject="")),
    ],
    ids=["itself", "itself by another token", "nobody", "acted for", "acting for one", "acting for one", "nobody"],
)
def test_delegation_that_nobody_could_tell_apart_is_refused(
    service: VerifiedClaims, user: VerifiedClaims | ForwardedUser
) -> None:
    with pytest.raises(Refused) as caught:
        principal_through(service, user)
    assert caught.value.reason is Reason.DELEGATION_REFUSED


# --- answers about opaque tokens (RFC 7662 section 2.2) -------------------------------------------------------------


def test_answer_about_a_token_says_who_acts_and_comes_whole_through_the_liaison() -> None:
    answer = CLAIMED | {"active": True, "act": {"sub": "agent", "act": {"sub": "behind"}}}
    said = judge(json.dumps(answer).encode(), RULES)
    assert said is not None
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(said, enc_hook=str), type=ReadClaims)
    assert sent == said
    check_within(sent, RULES)
    assert [one.subject for one in sent.acting] == ["agent", "behind"]


def test_answer_about_a_token_for_which_nobody_knows_who_acts_is_none() -> None:
    assert judge(json.dumps(CLAIMED | {"active": True, "act": "agent"}).encode(), RULES) is None
