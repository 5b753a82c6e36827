"""Tokens that are bound to a key (RFC 9449) at the real server: nobody else can use them."""

import time
from typing import Any

import pytest

from tests.integration.oauth.conftest import MODELS, PUBLIC_URL, Site
from tests.support.identity_provider import new_key, proof_for, public_jwk, thumbprint

KEY = new_key("ES256")
URL = PUBLIC_URL + MODELS


def bound(site: Site, key: Any = KEY, algorithm: str = "ES256") -> str:
    return site.curve.token(scope="llm", cnf={"jkt": thumbprint(key, algorithm)})


def send(site: Site, token: str, proof: str | None, scheme: str = "DPoP") -> Any:
    headers = {"Authorization": f"{scheme} {token}"} | ({} if proof is None else {"DPoP": proof})
    return site.get(None, **headers)


def refused(answer: Any, error: str = "invalid_dpop_proof") -> None:
    assert answer.status == 401
    challenge = answer.headers["WWW-Authenticate"]
    assert f'DPoP realm="paddock", error="{error}", algs="ES256 EdDSA PS256 RS256"' in challenge


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "PS256", "RS256"])
def test_bound_token_with_a_proof_is_accepted(site: Site, algorithm: str) -> None:
    key = new_key(algorithm)
    token = bound(site, key, algorithm)
    for _ in range(2):
        assert send(site, token, proof_for(key, token, url=URL, algorithm=algorithm)).status == 200


def test_bound_token_sent_as_bearer_is_refused(site: Site) -> None:
    token = bound(site)
    refused(send(site, token, None, "Bearer"))
    refused(send(site, token, proof_for(KEY, token, url=URL), "Bearer"))


def test_bound_token_without_a_proof_is_refused(site: Site) -> None:
    refused(send(site, bound(site), None))


def test_proof_is_taken_once(site: Site) -> None:
    token = bound(site)
    proof = proof_for(KEY, token, url=URL)
    assert send(site, token, proof).status == 200
    refused(send(site, token, proof))


def test_token_that_is_not_bound_is_refused_with_the_scheme_of_bound_ones(site: Site) -> None:
    """RFC 9449 section 7.1."""
    token = site.curve.token(scope="llm")
    refused(send(site, token, proof_for(KEY, token, url=URL)), "invalid_token")


@pytest.mark.parametrize(
    "spoiled",
    [
        {"method": "POST"},
        {"url": PUBLIC_URL + "/v1/chat/completions"},
        {"url": "https://evil.example/v1/models"},
        {"url": "http://llm.example/v1/models"},
        {"url": f"{URL}/"},
        {"iat": int(time.time()) - 3600},
        {"iat": int(time.time()) + 3600},
        {"ath": None},
        {"ath": "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"},
        {"jti": None},
        {"header": {"typ": "JWT"}},
        {"header": {"jwk": public_jwk(new_key("ES256"), "ES256")}},
    ],
    ids=str,
)
def test_proof_for_something_else_is_refused(site: Site, spoiled: dict[str, Any]) -> None:
    token = bound(site)
    refused(send(site, token, proof_for(KEY, token, **({"url": URL} | spoiled))))


def test_address_is_the_configured_one_and_not_that_of_the_host_header(site: Site) -> None:
    token = bound(site)
    host = f"http://127.0.0.1:{site.server.port}{MODELS}"
    refused(send(site, token, proof_for(KEY, token, url=host)))


def test_query_is_no_part_of_the_address(site: Site) -> None:
    token = bound(site)
    assert send(site, token, proof_for(KEY, token, url=f"{URL}?limit=1#top")).status == 200


def test_token_that_is_bound_to_a_certificate_is_refused_without_one(site: Site) -> None:
    answer = site.get(site.curve.token(scope="llm", cnf={"x5t#S256": thumbprint(KEY)}))
    assert answer.status == 401
    assert 'Bearer realm="paddock", error="invalid_token"' in answer.headers["WWW-Authenticate"]


# --- what a client is told ------------------------------------------------------------------------------------------

POINTER = f'resource_metadata="{PUBLIC_URL}/.well-known/oauth-protected-resource"'


def test_client_without_a_token_is_told_both_schemes_and_where_to_get_one(site: Site) -> None:
    """RFC 6750 section 3, RFC 9449 section 7.1, RFC 9728 section 5.1. No error code: no token came."""
    challenge = site.get(None).headers["WWW-Authenticate"]
    algorithms = 'DPoP realm="paddock", algs="ES256 EdDSA PS256 RS256"'
    assert challenge == f'Bearer realm="paddock", {POINTER}, {algorithms}, {POINTER}'


def test_metadata_of_the_resource_are_public_and_name_it_and_its_issuers(site: Site) -> None:
    """RFC 9728 sections 2 and 3."""
    answer = site.get(None, "/.well-known/oauth-protected-resource")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    issuers = sorted(one.issuer for one in (site.curve, site.rsa, site.opaque, site.dark))
    assert answer.json() == {
        "resource": PUBLIC_URL,
        "authorization_servers": issuers,
        "bearer_methods_supported": ["header"],
        "resource_name": "Paddock",
        "dpop_signing_alg_values_supported": ["ES256", "EdDSA", "PS256", "RS256"],
        "dpop_bound_access_tokens_required": False,
    }


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PUT"])
def test_metadata_are_public_to_be_read_only(site: Site, method: str) -> None:
    assert site.server.request(method, "/.well-known/oauth-protected-resource").status == 401


@pytest.mark.parametrize(
    "request_",
    [
        {"headers": {"Authorization": "Bearer a, Bearer b"}},
        {"path": f"{MODELS}?access_token=x"},
    ],
    ids=str,
)
def test_token_in_two_places_or_the_wrong_one_is_an_invalid_request(site: Site, request_: dict[str, Any]) -> None:
    """RFC 6750 sections 2 and 3.1."""
    path = request_.get("path", MODELS)
    answer = site.server.request("GET", path, headers=request_.get("headers"))
    assert answer.status == 400
    assert answer.headers["WWW-Authenticate"] == f'Bearer realm="paddock", error="invalid_request", {POINTER}'
