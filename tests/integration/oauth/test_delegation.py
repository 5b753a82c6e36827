"""A service and its user at the real server: both are verified, policy judges both, and the log names both."""

import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest

from appliance.core.records import Opened, RefusedRequest
from tests.integration.oauth.conftest import LIMITS
from tests.support.appliance import GROUP, Answer, TestAppliance, appliance, chat_body
from tests.support.chain_model import chain_model
from tests.support.identity_provider import IdentityProvider, new_key, thumbprint

OURS = "https://paddock.local"
USERS = f"{OURS}#webui"
SECRET = "0123456789abcdef0123456789abcdef"
JWT, TOKEN = "X-OpenWebUI-User-Jwt", "X-Paddock-User-Token"
CHAT = "/v1/chat/completions"
SERVICES = "services"
Headers = tuple[tuple[str, str], ...]


@dataclass
class Site:
    server: TestAppliance
    idp: IdentityProvider
    stranger: IdentityProvider

    def service(self, name: str, groups: tuple[str, ...] = (SERVICES,), models: tuple[str, ...] = ("*",)) -> str:
        """Its own token."""
        return self.server.token(name, groups, models)

    def user(self, **changes: Any) -> str:
        return self.idp.token(**changes)

    def chat(self, service: str, *headers: tuple[str, str]) -> Answer:
        """``http.client`` sends a header as often as it is given here."""
        body = json.dumps(chat_body(max_tokens=2)).encode()
        fields = (("Authorization", f"Bearer {service}"), ("Content-Type", "application/json"), *headers)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        try:
            connection.putrequest("POST", CHAT)
            for name, value in (*fields, ("Content-Length", str(len(body)))):
                connection.putheader(name, value)
            connection.endheaders(body)
            with connection.getresponse() as response:
                return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


def signed(secret: str = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    """As Open WebUI does it; None takes a claim away."""
    now = int(time.time())
    claims = {
        "sub": "2d95199f-1f70",
        "email": "alice@example.com",
        "name": "Alice",
        "role": "user",
        "iss": "open-webui",
        "iat": now,
        "exp": now + 300,
    } | changes
    return jwt.encode({name: claims[name] for name in claims if claims[name] is not None}, secret, algorithm=algorithm)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("delegation")
    secret = folder / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    with ExitStack() as stack:
        idp = stack.enter_context(IdentityProvider(folder / "idp").serving())
        stranger = IdentityProvider(folder / "stranger")
        stack.callback(stranger.close)
        (folder / "appliance").mkdir()
        server = stack.enter_context(
            appliance(folder / "appliance", {"chain": chain_model()}, _config(idp, stranger, secret))
        )
        server.write_policy_data(
            {
                "groups": {GROUP: {"models": ["*"], "max_tokens": 100_000}},
                "delegates": {"groups": [SERVICES], "parties": [{"issuer": idp.issuer, "subject": "named"}]},
            }
        )
        one = Site(server, idp, stranger)
        for header in ((JWT, signed()), (TOKEN, one.user())):
            name = "webui" if header[0] == JWT else "agent"
            server.wait_until(
                lambda name=name, header=header: one.chat(one.service(name), header).status == 200,  # type: ignore[misc]
                "keys, and the policy's data",
            )
        yield one


def _config(idp: IdentityProvider, stranger: IdentityProvider, secret: Path) -> str:
    client = 'client_id = "tests"\n'
    form = f'form = "user-token"\n{client}'
    tokens = f'{form}user_issuers = ["{idp.issuer}", "{stranger.issuer}", "{OURS}"]\n'
    return "\n".join(
        (
            LIMITS,
            idp.settings("idp"),
            stranger.settings("stranger"),
            f'[delegation.webui]\nform = "openwebui-jwt"\n{client}subject = "webui"\nsecret_file = "{secret}"',
            f'groups_by_role = {{ user = ["{GROUP}"] }}',
            f'[delegation.agent]\n{tokens}subject = "agent"',
            f'[delegation.few]\n{tokens}subject = "few"\nrequests_per_minute = 3',
            f'[delegation.narrow]\n{form}user_issuers = ["{OURS}"]\nsubject = "narrow"',
        )
    )


def refusals(site: Site) -> list[RefusedRequest]:
    found: list[RefusedRequest] = site.server.records(RefusedRequest)
    return found


def last_refusal(site: Site, answer: Answer, status: int, reason: str) -> RefusedRequest:
    assert answer.status == status, answer.body
    assert answer.json()["error"]["code"] == reason
    record = refusals(site)[-1]
    assert record.reason == reason
    return record


# --- both are verified, seen and named ------------------------------------------------------------------------------


def test_signed_user_of_open_webui_is_the_principal_and_the_service_acts(site: Site) -> None:
    assert site.chat(site.service("webui"), (JWT, signed())).status == 200
    record = site.server.records(Opened)[-1]
    actor = record.actor
    assert (actor.issuer, actor.subject, actor.groups) == (USERS, "2d95199f-1f70", (GROUP,))
    [service] = actor.acting
    assert (service.issuer, service.subject, service.client_id, service.groups) == (OURS, "webui", "tests", (SERVICES,))
    assert service.token_id
    assert record.policy_input["principal"]["acting"] == [
        {"issuer": OURS, "subject": "webui", "client_id": "tests", "groups": [SERVICES]}
    ]


def test_user_with_a_token_is_the_principal_and_the_service_acts(site: Site) -> None:
    for user, issuer, subject in (
        (site.user(), site.idp.issuer, "carol"),
        (site.server.token("alice"), OURS, "alice"),
    ):
        assert site.chat(site.service("agent"), (TOKEN, user)).status == 200
        actor = site.server.records(Opened)[-1].actor
        assert (actor.issuer, actor.subject, actor.groups) == (issuer, subject, (GROUP,))
        assert [(one.issuer, one.subject) for one in actor.acting] == [(OURS, "agent")]


def test_users_of_a_service_and_subjects_of_its_issuer_are_not_the_same_by_one_name(site: Site) -> None:
    keys = set()
    for bearer, headers in (
        (site.server.token("alice"), ()),
        (site.service("webui"), ((JWT, signed(sub="alice")),)),
        (site.service("agent"), ((TOKEN, site.user(sub="alice")),)),
    ):
        assert site.chat(bearer, *headers).status == 200
        keys.add(site.server.records(Opened)[-1].actor.key)
    assert len(keys) == 3


def test_party_that_a_token_names_acts_by_its_name_in_the_policys_data(site: Site) -> None:
    """RFC 8693 section 4.1."""
    assert site.chat(site.user(act={"sub": "named", "act": {"sub": "behind"}})).status == 200
    actor = site.server.records(Opened)[-1].actor
    assert actor.subject == "carol"
    assert [(one.issuer, one.subject) for one in actor.acting] == [
        (site.idp.issuer, name) for name in ("named", "behind")
    ]
    record = last_refusal(
        site, site.chat(site.user(act={"sub": "unnamed", "act": {"sub": "named"}})), 404, "model-not-found"
    )
    assert record.decision is not None
    assert record.decision.reasons == ("delegation-not-permitted",)


@pytest.mark.parametrize(
    "act", [None, "named", {"sub": "named", "iss": OURS}, {"sub": "named", "groups": []}, {}], ids=str
)
def test_token_whose_act_is_not_understood_is_refused(site: Site, act: Any) -> None:
    claims = site.idp.claims() | {"act": act}
    token = jwt.encode(claims, site.idp.keys["one"], algorithm="ES256", headers={"kid": "one", "typ": "at+jwt"})
    assert site.chat(token).status == 401


# --- what confines ---------------------------------------------------------------------------------------------------


def test_service_that_policy_does_not_name_acts_for_nobody(site: Site) -> None:
    for groups in ((), (GROUP,)):
        answer = site.chat(site.service("webui", groups), (JWT, signed()))
        record = last_refusal(site, answer, 404, "model-not-found")  # as all that policy hides
        assert record.decision is not None
        assert record.decision.reasons == ("delegation-not-permitted",)
        assert (record.actor.issuer, record.actor.acting[0].subject) == (USERS, "webui")


def test_service_gives_a_user_nothing(site: Site) -> None:
    for role in ("pending", "admin", None):
        answer = site.chat(site.service("webui", (SERVICES, GROUP)), (JWT, signed(role=role)))
        record = last_refusal(site, answer, 404, "model-not-found")
        assert record.actor.groups == ()


def test_models_of_both_tokens_confine(site: Site) -> None:
    other, chain = ("other",), ("chain",)
    asked = (
        (site.service("agent", models=other), site.server.token("alice"), 404),
        (site.service("agent"), site.server.token("alice", models=other), 404),
        (site.service("agent", models=chain), site.server.token("alice", models=("other", "chain")), 200),
    )
    for service, user, status in asked:
        assert site.chat(service, (TOKEN, user)).status == status
    assert site.chat(site.service("webui", models=other), (JWT, signed())).status == 404


def test_made_up_users_have_one_rate_together(site: Site) -> None:
    service, users = site.service("few"), [site.user(sub=f"user-{n}") for n in range(100)]
    with ThreadPoolExecutor(len(users)) as at_once:
        answers = list(at_once.map(lambda user: site.chat(service, (TOKEN, user)), users))
    assert Counter(answer.status for answer in answers) == {200: 3, 429: 97}
    assert {answer.headers["Retry-After"] is not None for answer in answers if answer.status == 429} == {True}


def test_unsigned_headers_are_taken_away_and_the_service_asks_for_itself(site: Site) -> None:
    plain = (("X-OpenWebUI-User-Id", "root"), ("X-OpenWebUI-User-Role", "user"), ("X-OpenWebUI-User-Email", "a@b"))
    record = last_refusal(site, site.chat(site.service("webui"), *plain), 404, "model-not-found")
    assert (record.actor.issuer, record.actor.subject, record.actor.acting) == (OURS, "webui", ())
    assert "x-openwebui-user-id, x-openwebui-user-role, x-openwebui-user-email" in site.server.log


# --- what is refused, of the service and on record -------------------------------------------------------------------

KEY = new_key("ES256")
WRONG: dict[str, Callable[[Site], tuple[str, Headers]]] = {
    "a stranger with a signed user": lambda site: (site.server.token("mallory"), ((JWT, signed()),)),
    "a stranger with a user's token": lambda site: (site.server.token("mallory"), ((TOKEN, site.user()),)),
    "a user with the service's client id": lambda site: (site.server.token("alice"), ((JWT, signed()),)),
    "the service's name of another issuer": lambda site: (
        site.user(sub="webui", client_id="tests", groups=[SERVICES]),
        ((JWT, signed()),),
    ),
    "the user as the bearer, the service beside": lambda site: (site.user(), ((TOKEN, site.service("agent")),)),
    "the form of another service": lambda site: (site.service("agent"), ((JWT, signed()),)),
    "the form of another service, the other way": lambda site: (site.service("webui"), ((TOKEN, site.user()),)),
    "both forms": lambda site: (site.service("webui"), ((JWT, signed()), (TOKEN, site.user()))),
    "a signed user twice": lambda site: (site.service("webui"), ((JWT, signed()),) * 2),
    "a user's token twice": lambda site: (site.service("agent"), ((TOKEN, site.user()), (TOKEN, site.user()))),
    "an empty header": lambda site: (site.service("webui"), ((JWT, ""),)),
    "two signed users in one header": lambda site: (site.service("webui"), ((JWT, f"{signed()}, {signed()}"),)),
    "another secret": lambda site: (site.service("webui"), ((JWT, signed(SECRET[::-1])),)),
    "no signature": lambda site: (site.service("webui"), ((JWT, signed("", "none")),)),
    "another algorithm": lambda site: (site.service("webui"), ((JWT, signed(SECRET * 2, "HS512")),)),
    "expired": lambda site: (site.service("webui"), ((JWT, _aged(-400)),)),
    "not valid yet": lambda site: (site.service("webui"), ((JWT, _aged(120)),)),
    "without an end": lambda site: (site.service("webui"), ((JWT, signed(exp=None)),)),
    "with too late an end": lambda site: (site.service("webui"), ((JWT, signed(exp=int(time.time()) + 3600)),)),
    "another program's": lambda site: (site.service("webui"), ((JWT, signed(iss="lobechat")),)),
    "for another audience": lambda site: (site.service("webui"), ((JWT, signed(aud="vllm")),)),
    "nobody": lambda site: (site.service("webui"), ((JWT, signed(sub="")),)),
    "an access token as a signed user": lambda site: (site.service("webui"), ((JWT, site.user()),)),
    "a signed user as an access token": lambda site: (site.service("agent"), ((TOKEN, signed()),)),
    "no token": lambda site: (site.service("agent"), ((TOKEN, "alice"),)),
    "a token with its scheme": lambda site: (site.service("agent"), ((TOKEN, f"Bearer {site.user()}"),)),
    "a user's token of an unlisted issuer": lambda site: (site.service("narrow"), ((TOKEN, site.user()),)),
    "a user's token of an unknown issuer": lambda site: (site.service("agent"), ((TOKEN, _unknown(site)),)),
    "a forged user's token": lambda site: (site.service("agent"), ((TOKEN, site.user(key=KEY)),)),
    "an expired user's token": lambda site: (
        site.service("agent"),
        ((TOKEN, site.user(iat=int(time.time()) - 900, exp=int(time.time()) - 60)),),
    ),
    "a user's token for another audience": lambda site: (site.service("agent"), ((TOKEN, site.user(aud="mail")),)),
    "an ID token": lambda site: (site.service("agent"), ((TOKEN, site.user(nonce="n")),)),
    "a user's token bound to a key": lambda site: (
        site.service("agent"),
        ((TOKEN, site.user(cnf={"jkt": thumbprint(KEY)})),),
    ),
    "a user's token bound to a certificate": lambda site: (
        site.service("agent"),
        ((TOKEN, site.user(cnf={"x5t#S256": thumbprint(KEY)})),),
    ),
    "a user for whom somebody acts": lambda site: (site.service("agent"), ((TOKEN, site.user(act={"sub": "named"})),)),
    "the service itself": lambda site: (site.service("agent"), ((TOKEN, site.service("agent")),)),
}


def _aged(seconds: int) -> str:
    now = int(time.time()) + seconds
    return signed(iat=now, exp=now + 300)


def _unknown(site: Site) -> str:
    return site.user(iss="https://unknown.example")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_word_about_a_user_is_refused_and_recorded_and_never_passed_over(site: Site, name: str) -> None:
    bearer, headers = WRONG[name](site)
    record = last_refusal(site, site.chat(bearer, *headers), 403, "delegation-refused")
    said = jwt.decode(bearer, options={"verify_signature": False})
    assert (record.actor.issuer, record.actor.subject, record.actor.acting) == (said["iss"], said["sub"], ())
    assert record.detail
    assert record.decision is None


def test_refusal_is_no_challenge_and_says_nothing_of_what_was_wrong(site: Site) -> None:
    answers = [site.chat(site.service("webui"), (JWT, one)) for one in (signed(SECRET[::-1]), _aged(-400), "x")]
    assert len({answer.body for answer in answers}) == 1
    assert [answer.headers["WWW-Authenticate"] for answer in answers] == [None] * 3


def test_issuer_out_of_reach_lets_nobody_in(site: Site) -> None:
    """Keys that could not be fetched verify nothing."""
    answer = site.chat(site.service("agent"), (TOKEN, site.stranger.token()))
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "issuer-unavailable"


def test_word_about_a_user_does_not_help_a_token_that_is_not_good(site: Site) -> None:
    assert site.chat("x", (JWT, signed())).status == 401
    assert site.chat(signed(), (JWT, signed())).status == 401
