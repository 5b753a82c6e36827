"""Tokens of our own authorization server, from the client to the record: real gateway, real notary, real TLS."""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from appliance.core.oauth import METADATA_PATH
from appliance.core.records import Opened, TokenIssued
from tests.integration.oauth.conftest import MODELS
from tests.support.appliance import LIMIT_SECONDS, TestAppliance, appliance, free_port
from tests.support.certificates import Party
from tests.support.chain_model import chain_model
from tests.support.hostile_tokens import claims_of
from tests.support.oauth_clients import FORM, ISSUING, PUBLIC_URL, paddock, register
from tests.support.tls_folder import authority, client_context, client_of, server_of, write_folder

AUTHORITY = authority()
CONFIG = f"{ISSUING}[limits]\naddress_requests_per_minute = 100000\nprincipal_requests_per_minute = 100000\n"
AT_ONCE = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    folder = tmp_path_factory.mktemp("issued")
    tls = write_folder(folder / "tls", server_of(AUTHORITY), AUTHORITY)
    plain, secure = (f'[[listen]]\nhost = "127.0.0.1"\nport = {free_port()}\n' for _ in range(2))
    listeners = f'{plain}{secure}tls = {json.dumps(str(tls))}\nclient_certificates = "optional"\n'
    with appliance(folder, {"chain": chain_model()}, CONFIG + listeners) as one:
        yield one


def test_token_that_a_client_asks_for_opens_what_is_registered_and_its_record_says_whose_it_is(
    server: TestAppliance,
) -> None:
    client = register(server, "reports")
    said = client.granted(scope="staff", resource=PUBLIC_URL)
    assert (said["token_type"], said["scope"]) == ("Bearer", "staff")
    assert server.chat(said["access_token"], max_tokens=1).status == 200
    (opened,) = [record for record in server.records(Opened) if record.actor.client_id == "reports"]
    assert (opened.actor.subject, opened.actor.issuer, opened.actor.groups) == ("reports", PUBLIC_URL, ("staff",))
    (issued,) = [record for record in server.records(TokenIssued) if record.token_id == opened.actor.token_id]
    assert (issued.client_id, issued.grant) == ("reports", "client_credentials")


def test_what_leads_to_the_token_endpoint_is_told_from_the_first_refusal_on(server: TestAppliance) -> None:
    """RFC 9728 section 5, RFC 8414 section 3: challenge, resource, authorization server, endpoint."""
    challenge = server.request("GET", MODELS).headers["WWW-Authenticate"]
    assert f'resource_metadata="{PUBLIC_URL}/.well-known/oauth-protected-resource"' in challenge
    resource = server.request("GET", "/.well-known/oauth-protected-resource").json()
    assert resource["authorization_servers"] == [PUBLIC_URL]
    assert resource["tls_client_certificate_bound_access_tokens"] is True
    said = server.request("GET", METADATA_PATH).json()
    assert said["issuer"] == PUBLIC_URL
    assert said["token_endpoint"] == f"{PUBLIC_URL}/oauth/token"


def test_hundred_at_once_are_each_answered_and_no_token_is_without_its_record(server: TestAppliance) -> None:
    client = register(server, "many")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        form = {"grant_type": "client_credentials"}
        answers = list(pool.map(lambda _: client.ask("/oauth/token", form), range(AT_ONCE)))
    issued = [claims_of(answer.json()["access_token"])["jti"] for answer in answers if answer.status == HTTPStatus.OK]
    others = [answer for answer in answers if answer.status != HTTPStatus.OK]
    assert issued
    assert {(answer.status, answer.json()["error"]) for answer in others} <= {(503, "temporarily_unavailable")}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in others)
    recorded = [record.token_id for record in server.records(TokenIssued) if record.client_id == "many"]
    assert sorted(recorded) == sorted(issued)
    assert len(set(issued)) == len(issued)


def over_tls(server: TestAppliance, certificate: Party | None, method: str, path: str, **details: Any) -> Any:
    """Status and JSON of an answer at our own TLS."""
    context = client_context(server.directory, AUTHORITY, certificate)
    port = server.config.listen[1].port
    connection = http.client.HTTPSConnection("localhost", port, timeout=LIMIT_SECONDS, context=context)
    try:
        connection.request(method, path, **details)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_client_of_a_certificate_gets_a_token_that_is_of_no_use_over_another(
    server: TestAppliance, tmp_path: Path
) -> None:
    """RFC 8705 sections 2.2 and 3."""
    owner, other = client_of(AUTHORITY), client_of(AUTHORITY)
    (tmp_path / "owner.pem").write_bytes(owner.pem)
    certificate = f"{tmp_path}/owner.pem"
    paddock(server, "clients", "add", "host7", "--certificate", certificate, "--group", "staff", "--model", "*")
    form = urlencode({"grant_type": "client_credentials", "client_id": "host7"}).encode()
    asked: dict[str, Any] = {"body": form, "headers": {"Content-Type": FORM}}
    for stranger in (other, None):
        status, said = over_tls(server, stranger, "POST", "/oauth/token", **asked)
        assert (status, said["error"]) == (401, "invalid_client")
    status, said = over_tls(server, owner, "POST", "/oauth/token", **asked)
    assert status == HTTPStatus.OK
    bearer = {"Authorization": f"Bearer {said['access_token']}"}
    for presented, expected in ((owner, 200), (other, 401), (None, 401)):
        assert over_tls(server, presented, "GET", MODELS, headers=bearer)[0] == expected
    assert server.request("GET", MODELS, headers=bearer).status == HTTPStatus.UNAUTHORIZED
