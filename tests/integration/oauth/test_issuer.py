"""Our own authorization server as a client library meets it that knows nothing of us: Authlib's, unmodified, before the
real gateway and notary."""

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import jwt
import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc.jwk import ECKey

from appliance.cli import clients
from appliance.core.clients import TOKEN_EXCHANGE
from appliance.core.records import TokenIssued
from appliance.identity.issuer.authentication import ASSERTION_TYPE
from tests.integration.oauth.conftest import MODELS
from tests.support.appliance import LIMIT_SECONDS, TestAppliance, appliance, free_port
from tests.support.chain_model import chain_model
from tests.support.identity_provider import new_key
from tests.support.oauth_clients import ACCESS_TOKEN, FORM, ISSUING, PUBLIC_URL, REFRESH_TOKEN, OAuthClient, register
from tests.support.tls_folder import authority, client_context, client_of, server_of, write_folder

CA = authority()
BEARER = client_of(CA)
KEY = new_key("ES256")
LIMITS = "[limits]\naddress_requests_per_minute = 100000\nprincipal_requests_per_minute = 100000\n"


@dataclass
class Site:
    server: TestAppliance
    folder: Path

    @property
    def tls_port(self) -> int:
        return self.server.config.listen[1].port

    def url(self, endpoint: str) -> str:
        return f"http://127.0.0.1:{self.server.port}/oauth/{endpoint}"

    def status(self, token: str) -> int:
        return self.server.request("GET", MODELS, token=token).status


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("issuer")
    tls = write_folder(folder / "tls", server_of(CA), CA)
    places = ("", f'tls = {json.dumps(str(tls))}\nclient_certificates = "optional"\n')
    listen = "".join(f'[[listen]]\nhost = "127.0.0.1"\nport = {free_port()}\n{rest}' for rest in places)
    (folder / "appliance").mkdir()
    with appliance(folder / "appliance", {"chain": chain_model()}, f"{LIMITS}{ISSUING}{listen}") as server:
        yield Site(server, folder)


def client_of_library(one: OAuthClient, method: str, secret: Any = None) -> OAuth2Client:
    return OAuth2Client(
        one.client_id,
        secret or one.secret,
        token_endpoint_auth_method=method,
        revocation_endpoint_auth_method=method,
        timeout=LIMIT_SECONDS,
        trust_env=False,
    )


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_library_gets_uses_shows_and_revokes_a_token(site: Site, method: str) -> None:
    one = register(site.server, f"library-{uuid4()}", authentication=method, groups=("staff", "other"))
    with client_of_library(one, method) as library:
        token = library.fetch_token(site.url("token"), grant_type="client_credentials", scope="staff")
        assert (token["token_type"], token["scope"]) == ("Bearer", "staff")
        assert "refresh_token" not in token
        assert site.status(token["access_token"]) == 200
        told = library.introspect_token(site.url("introspect"), token=token["access_token"]).json()
        assert (told["active"], told["client_id"], told["iss"]) == (True, one.client_id, PUBLIC_URL)
        assert library.revoke_token(site.url("revoke"), token=token["access_token"]).status_code == 200
        assert site.status(token["access_token"]) == 401
        again = library.introspect_token(site.url("introspect"), token=token["access_token"])
        assert again.content == b'{"active":false}'
    records = [record for record in site.server.records(TokenIssued) if record.client_id == one.client_id]
    assert len(records) == 1


def test_library_refreshes_and_a_thief_with_the_old_token_ends_it_all(site: Site) -> None:
    one = register(site.server, "refreshing")
    first = one.family()
    with client_of_library(one, "client_secret_basic") as library:
        second = library.refresh_token(site.url("token"), refresh_token=first["refresh_token"])
        assert second["refresh_token"] != first["refresh_token"]
        assert site.status(second["access_token"]) == 200
        with pytest.raises(OAuthError) as caught:
            library.refresh_token(site.url("token"), refresh_token=first["refresh_token"])
        assert caught.value.error == "invalid_grant"
        with pytest.raises(OAuthError) as caught:
            library.refresh_token(site.url("token"), refresh_token=second["refresh_token"])
        assert caught.value.error == "invalid_grant"
    assert site.status(second["access_token"]) == 401


# --- a key of its own -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signer(site: Site) -> OAuthClient:
    pem = site.folder / "signer.pem"
    pem.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    fields = {"grants": ("client_credentials",), "groups": ("staff",), "models": ("*",)}
    clients.add(site.server.config, "signer", keys=(pem,), certificates=(), **fields)
    return OAuthClient(site.server, "signer", "")


def _asserting(site: Site, text: str) -> Any:
    form = {
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": text,
    }
    return site.server.request("POST", "/oauth/token", body=urlencode(form).encode(), headers={"Content-Type": FORM})


def _assertion(**changes: Any) -> str:
    now = int(time())
    claims = {"iss": "signer", "sub": "signer", "aud": PUBLIC_URL, "jti": uuid4().hex, "iat": now, "exp": now + 60}
    return jwt.encode(claims | changes, KEY, algorithm="ES256")


def test_client_with_a_key_gets_a_token_once_for_each_assertion(site: Site, signer: OAuthClient) -> None:
    text = _assertion()
    answer = _asserting(site, text)
    assert (answer.status, site.status(answer.json()["access_token"])) == (200, 200)
    assert _asserting(site, text).status == 401
    for changes in ({"aud": site.url("token")}, {"aud": PUBLIC_URL + "/oauth/token"}, {"aud": [PUBLIC_URL]}):
        refused = _asserting(site, _assertion(**changes))
        assert (refused.status, refused.json()["error"]) == (401, "invalid_client")


def test_library_that_signs_for_the_endpoint_is_refused_and_for_the_issuer_taken(
    site: Site, signer: OAuthClient
) -> None:
    key = ECKey.import_key(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for audience, error in ((site.url("token"), "invalid_client"), (PUBLIC_URL, None)):
        with client_of_library(signer, "private_key_jwt", secret=key) as library:
            claims = {"exp": int(time()) + 60}
            library.register_client_auth_method(PrivateKeyJWT(audience, claims=claims, alg="ES256"))
            if error is None:
                token = library.fetch_token(site.url("token"), grant_type="client_credentials")
                assert site.status(token["access_token"]) == 200
            else:
                with pytest.raises(OAuthError) as caught:
                    library.fetch_token(site.url("token"), grant_type="client_credentials")
                assert caught.value.error == error


# --- a certificate --------------------------------------------------------------------------------------------------


def test_client_with_a_certificate_gets_a_token_that_is_good_with_it_only(site: Site) -> None:
    pem = site.folder / "bearer.crt"
    pem.write_bytes(BEARER.pem)
    fields = {"grants": ("client_credentials",), "groups": ("staff",), "models": ("*",)}
    clients.add(site.server.config, "bearer", keys=(), certificates=(pem,), **fields)
    tls = f"https://localhost:{site.tls_port}"
    with_it, without = client_context(site.folder, CA, BEARER), client_context(site.folder, CA)
    with _bearing(with_it) as library:
        token = library.fetch_token(f"{tls}/oauth/token", grant_type="client_credentials")
        assert library.get(tls + MODELS).status_code == 200
    with _bearing(without) as library:
        with pytest.raises(OAuthError) as caught:
            library.fetch_token(f"{tls}/oauth/token", grant_type="client_credentials")
        assert caught.value.error == "invalid_client"
        library.token = token
        assert library.get(tls + MODELS).status_code == 401


def _bearing(context: ssl.SSLContext) -> OAuth2Client:
    return OAuth2Client(
        "bearer", token_endpoint_auth_method="none", verify=context, timeout=LIMIT_SECONDS, trust_env=False
    )


# --- acting for a person --------------------------------------------------------------------------------------------


def test_service_acts_for_a_person_with_what_both_may_and_it_is_on_record(site: Site) -> None:
    one = register(site.server, "acting", groups=("staff", "night"), models=("chain",))
    form = {"subject_token": site.server.token(subject="carol", groups=("staff", "people")),
            "subject_token_type": ACCESS_TOKEN, "grant_type": TOKEN_EXCHANGE}  # fmt: skip
    said = one.granted(**form)
    claims = jwt.decode(said["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["groups"], claims["models"]) == ("carol", ["staff"], ["chain"])
    assert claims["act"]["sub"] == "acting"
    assert said["issued_token_type"] == ACCESS_TOKEN
    assert site.status(said["access_token"]) == 200
    (record,) = (record for record in site.server.records(TokenIssued) if record.client_id == "acting")
    assert (record.subject, [party.subject for party in record.acting]) == ("carol", ["acting"])
    again = register(site.server, "behind").granted(**form | {"subject_token": said["access_token"]})["access_token"]
    told = register(site.server, "resource", introspects=True).introspected(again)
    assert (told["sub"], told["act"]) == ("carol", {"sub": "behind", "act": {"sub": "acting"}})
    assert site.status(again) == 200
    for changes, error in (
        ({"scope": "night"}, "invalid_scope"),
        ({"subject_token": "x" * 200}, "invalid_request"),
        ({"audience": "https://elsewhere.example"}, "invalid_target"),
        ({"actor_token": "x"}, "invalid_request"),
    ):
        answer = one.ask("/oauth/token", form | changes)
        assert (answer.status, answer.json()["error"]) == (400, error)


def test_exchange_without_being_registered_for_it_gives_nothing(site: Site) -> None:
    one = register(site.server, "plain", grants=("client_credentials",), exchanges=())
    form = {"grant_type": TOKEN_EXCHANGE, "subject_token": site.server.token(), "subject_token_type": ACCESS_TOKEN}
    answer = one.ask("/oauth/token", form | {"requested_token_type": REFRESH_TOKEN})
    assert (answer.status, answer.json()["error"]) == (400, "unauthorized_client")


# --- what anybody can see -------------------------------------------------------------------------------------------


def test_metadata_lead_to_endpoints_that_are_there(site: Site) -> None:
    answer = site.server.request("GET", "/.well-known/oauth-authorization-server")
    said = answer.json()
    assert said["issuer"] == PUBLIC_URL
    for name in ("token", "revocation", "introspection"):
        path = said[f"{name}_endpoint"].removeprefix(PUBLIC_URL)
        assert site.server.request("POST", path, body=b"token=x", headers={"Content-Type": FORM}).status == 401


def test_unknown_client_and_wrong_secret_are_one_answer(site: Site) -> None:
    known = register(site.server, "known")
    answers = set()
    for client_id in ("known", "unknown"):
        answer = OAuthClient(site.server, client_id, "wrong").ask("/oauth/token", {"grant_type": "client_credentials"})
        headers = sorted((name.lower(), value) for name, value in answer.headers.items() if name.lower() != "date")
        answers.add((answer.status, answer.body, str([pair for pair in headers if "request-id" not in pair[0]])))
    assert len(answers) == 1
    assert site.status(known.token()) == 200
