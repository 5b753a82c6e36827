"""What is revoked stops within a second at every process: a token, a client, a client's key, by whoever may end it, and
whatever dies in between. Real gateway, real notary, the operator's own commands."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.core.records import Closed, Opened, TokenRevoked
from tests.integration.oauth.conftest import MODELS
from tests.support.appliance import Answer, TestAppliance, appliance, chat_body
from tests.support.chain_model import chain_model, long_script
from tests.support.hostile_tokens import claims_of
from tests.support.identity_provider import new_key, thumbprint
from tests.support.oauth_clients import FORM, ISSUING, PUBLIC_URL, OAuthClient, paddock, register

WITHIN_SECONDS = 1.0
WORDS = 20_000
CONFIG = (
    f"{ISSUING}[limits]\naddress_requests_per_minute = 100000\nprincipal_requests_per_minute = 100000\n"
    "[models]\ncontext_tokens = 65536\nthreads = 1\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    folder = tmp_path_factory.mktemp("revocation")
    with appliance(folder, {"chain": chain_model(long_script(WORDS))}, CONFIG) as one:
        yield one


NAMES = (f"client-{number}" for number in count())


@pytest.fixture
def client(server: TestAppliance) -> OAuthClient:
    return register(server, next(NAMES), grants=("client_credentials",), exchanges=())


def status_of(server: TestAppliance, token: str) -> int:
    return server.request("GET", MODELS, token=token).status


def assert_ended_in_time(server: TestAppliance, *tokens: str) -> None:
    """What ended them has just been acknowledged."""
    deadline = time.monotonic() + WITHIN_SECONDS
    for token in tokens:
        while (status := status_of(server, token)) != 401:
            assert time.monotonic() < deadline, status


def by_its_client(client: OAuthClient, token: str) -> None:
    assert client.ask("/oauth/revoke", {"token": token}).status == 200


def by_its_id(client: OAuthClient, token: str) -> None:
    paddock(client.server, "tokens", "revoke", claims_of(token)["jti"])


def all_of_the_client(client: OAuthClient, token: str) -> None:
    paddock(client.server, "tokens", "revoke", "--client", client.client_id)


def disabled(client: OAuthClient, token: str) -> None:
    paddock(client.server, "clients", "disable", client.client_id)


def removed(client: OAuthClient, token: str) -> None:
    paddock(client.server, "clients", "remove", client.client_id)


def secret_replaced(client: OAuthClient, token: str) -> None:
    paddock(client.server, "clients", "new-secret", client.client_id)


def group_taken_away(client: OAuthClient, token: str) -> None:
    paddock(client.server, "clients", "change", client.client_id, "--group", "another")


ENDS: list[Callable[[OAuthClient, str], None]] = [
    by_its_client,
    by_its_id,
    all_of_the_client,
    disabled,
    removed,
    secret_replaced,
    group_taken_away,
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_what_is_ended_opens_nothing_within_a_second(
    server: TestAppliance, client: OAuthClient, end: Callable[[OAuthClient, str], None]
) -> None:
    token = client.token()
    for _ in range(2):  # the second time from the cache
        assert status_of(server, token) == 200
    end(client, token)
    assert_ended_in_time(server, token)
    named = {client.client_id, claims_of(token)["jti"]}
    assert [one for one in server.records(TokenRevoked) if named & {one.client_id, one.token_id}]


def asked_with_key(server: TestAppliance, client_id: str, key: Any) -> Answer:
    """RFC 7523 section 2.2."""
    now = int(time.time())
    claims = {"iss": client_id, "sub": client_id, "aud": PUBLIC_URL, "jti": token_hex(16), "iat": now, "exp": now + 60}
    form = {
        "grant_type": "client_credentials",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": jwt.encode(claims, key, algorithm="ES256"),
    }
    headers = {"Content-Type": FORM}
    return server.request("POST", "/oauth/token", body=urlencode(form).encode(), headers=headers)


def test_key_that_is_dropped_opens_nothing_within_a_second_and_the_next_one_does(
    server: TestAppliance, tmp_path: Path
) -> None:
    keys = [new_key("ES256"), new_key("ES256")]
    for number, key in enumerate(keys):
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{number}.pem").write_bytes(pem)
    paddock(server, "clients", "add", "keyed", "--key", f"{tmp_path}/0.pem", "--group", "staff", "--model", "*")
    token: str = asked_with_key(server, "keyed", keys[0]).json()["access_token"]
    assert status_of(server, token) == 200
    assert asked_with_key(server, "keyed", keys[1]).status == 401
    paddock(server, "clients", "change", "keyed", "--add-key", f"{tmp_path}/1.pem")
    assert status_of(server, token) == 200
    paddock(server, "clients", "change", "keyed", "--drop", thumbprint(keys[0]))
    assert_ended_in_time(server, token)
    refused = asked_with_key(server, "keyed", keys[0])
    assert (refused.status, refused.json()["error"]) == (401, "invalid_client")
    server.wait_until(lambda: asked_with_key(server, "keyed", keys[1]).status == 200, "the second to be over")


@pytest.mark.parametrize("end", [disabled, removed], ids=lambda end: end.__name__)
def test_client_that_is_gone_gets_no_more_tokens(
    server: TestAppliance, client: OAuthClient, end: Callable[[OAuthClient, str], None]
) -> None:
    end(client, "")
    answer = client.ask("/oauth/token", {"grant_type": "client_credentials"})
    assert (answer.status, answer.json()["error"]) == (401, "invalid_client")


def test_one_token_ends_and_its_brother_lives(server: TestAppliance, client: OAuthClient) -> None:
    first, second = client.token(), client.token()
    by_its_client(client, first)
    assert_ended_in_time(server, first)
    assert status_of(server, second) == 200


def test_token_of_another_client_is_not_theirs_to_end(server: TestAppliance, client: OAuthClient) -> None:
    thief = register(server, "thief", introspects=True)
    token = client.token()
    by_its_client(thief, token)
    assert status_of(server, token) == 200
    assert thief.introspected(token)["active"] is True


def test_token_that_an_operator_handed_out_ends_as_well(server: TestAppliance) -> None:
    token = server.token("alice-for-a-while")
    assert status_of(server, token) == 200
    paddock(server, "tokens", "revoke", claims_of(token)["jti"])
    assert_ended_in_time(server, token)


def test_revoked_token_is_not_active(server: TestAppliance, client: OAuthClient) -> None:
    """RFC 7662 section 2.2."""
    token = client.token()
    assert client.introspected(token)["active"] is True
    by_its_client(client, token)
    assert client.introspected(token) == {"active": False}


@pytest.mark.parametrize("stream", [True, False])
def test_answer_under_way_for_a_revoked_token_ends_within_a_second(
    server: TestAppliance, client: OAuthClient, stream: bool
) -> None:
    token = client.token()
    body = chat_body(stream=stream, max_tokens=WORDS, ignore_eos=True)
    if not stream:
        _end_while_it_is_gathered(server, client, token, body)
        return
    with server.open_request("POST", "/v1/chat/completions", token=token, body=body) as answer:
        request_id = answer.headers["x-request-id"]
        answer.readline()
        by_its_client(client, token)
        deadline = time.monotonic() + WITHIN_SECONDS
        *_, last = (line for line in answer if line.startswith(b"data: "))
        assert time.monotonic() < deadline
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "token-invalid"
    assert closed_record(server, request_id).outcome == "cancelled"


def _end_while_it_is_gathered(server: TestAppliance, client: OAuthClient, token: str, body: dict[str, Any]) -> None:
    before = len(server.records(Closed))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.request, "POST", "/v1/chat/completions", token=token, body=body)
        server.wait_until(lambda: under_way(server) > 0, "the request is under way")
        by_its_client(client, token)
        answer = asked.result(timeout=20)
    assert (answer.status, answer.json()["error"]["code"]) == (401, "token-invalid")
    server.wait_until(lambda: len(server.records(Closed)) > before, "the closed record")


def under_way(server: TestAppliance) -> int:
    return len(server.records(Opened)) - len(server.records(Closed))


def closed_record(server: TestAppliance, request_id: str) -> Closed:
    def found() -> list[Closed]:
        return [record for record in server.records(Closed) if record.request_id == request_id]

    server.wait_until(lambda: found() != [], "the closed record")
    return found()[0]


@pytest.mark.parametrize("victim", ["gateway", "notary"])
def test_what_is_revoked_stays_so_when_a_process_dies(server: TestAppliance, client: OAuthClient, victim: str) -> None:
    """And never is it taken for good in between: who cannot know refuses."""
    revoked, good = client.token(), client.token()
    by_its_client(client, revoked)
    assert_ended_in_time(server, revoked)
    killed = server.pid_of(victim)
    server.kill(victim)
    seen: set[int] = set()

    def is_back() -> bool:
        with suppress(OSError, HTTPException, AssertionError):  # there may be none for a moment
            seen.add(status_of(server, revoked))
            return server.pid_of(victim) != killed and status_of(server, good) == 200
        return False

    server.wait_until(is_back, "service")
    assert status_of(server, revoked) == 401
    assert seen <= {401, 503}


def test_nothing_is_opened_while_nobody_knows_what_was_revoked(tmp_path: Path) -> None:
    """Not even the list of models; the liveness goes on, and with the notary all comes back."""
    with appliance(tmp_path, {"chain": chain_model()}, ISSUING) as server:
        token = server.token()
        gateway = server.pid_of("gateway")
        statuses: set[int] = set()

        def refused() -> bool:
            answer = server.request("GET", MODELS, token=token)
            statuses.add(answer.status)
            return answer.status == 503 and answer.json()["error"]["code"] == "audit-unavailable"

        server.kill("notary")
        server.wait_until(refused, "a refusal")
        assert server.request("GET", "/healthz").status == 200
        server.wait_until(server.ready, "service")
        assert statuses <= {200, 503}
        assert server.pid_of("gateway") == gateway
