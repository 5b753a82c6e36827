"""The metadata say what the endpoints do, and nothing that they do not."""

import json
import subprocess
import sys
from typing import get_args

import pytest

from appliance.core.clients import TOKEN_EXCHANGE, Authentication, Grant
from appliance.core.refusals import Misconfigured
from appliance.identity.issuer import metadata
from tests.support.oauth_desk import ISSUER, Desk, basic

METHODS = ["client_secret_basic", "client_secret_post", "private_key_jwt", "self_signed_tls_client_auth"]
ALGORITHMS = ["ES256", "EdDSA", "PS256", "RS256"]


def test_document_is_this() -> None:
    said = {
        "issuer": ISSUER,
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials", "refresh_token", TOKEN_EXCHANGE],
        "protected_resources": [ISSUER],
        "tls_client_certificate_bound_access_tokens": True,
    }
    for name, path in (("token", "token"), ("revocation", "revoke"), ("introspection", "introspect")):
        said[f"{name}_endpoint"] = f"{ISSUER}/oauth/{path}"
        said[f"{name}_endpoint_auth_methods_supported"] = METHODS
        said[f"{name}_endpoint_auth_signing_alg_values_supported"] = ALGORITHMS
    assert json.loads(Desk().authority.metadata) == said


def test_grants_and_methods_are_all_that_can_be_registered() -> None:
    document = json.loads(metadata.document(issuer=ISSUER, public_url=ISSUER))
    assert set(document["token_endpoint_auth_methods_supported"]) == set(get_args(Authentication))
    assert set(document["grant_types_supported"]) == set(get_args(Grant))


@pytest.mark.parametrize("grant", ["authorization_code", "password", "urn:ietf:params:oauth:grant-type:jwt-bearer"])
def test_grant_that_is_not_told_is_not_offered(grant: str) -> None:
    assert Desk().ask({"grant_type": grant}, authorization=basic("chat")).error == "unsupported_grant_type"


@pytest.mark.parametrize(
    "issuer", ["http://issuer.example", "issuer.example", "", "https://issuer.example?a", "https://a#b"]
)
def test_issuer_that_can_have_no_metadata_is_misconfigured(issuer: str) -> None:
    with pytest.raises(Misconfigured):
        metadata.document(issuer=issuer, public_url=ISSUER)


@pytest.mark.parametrize(
    "urls", [("http://a.example", ISSUER), (ISSUER, "http://a.example"), ("http://localhost", ISSUER)]
)
def test_no_variable_of_the_environment_allows_http(urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
    with pytest.raises(Misconfigured):
        metadata.document(issuer=urls[0], public_url=urls[1])


def test_server_brings_no_http_client_and_no_old_jose_with_it() -> None:
    """What it does not have loaded it cannot do: fetch something that a request names."""
    found = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c",
         "import sys, appliance.identity.issuer.authority;"
         "print(sorted({'requests', 'httpx', 'authlib.jose', 'joserfc'} & set(sys.modules)))"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (found.stdout.strip(), found.stderr, found.returncode) == ("[]", "", 0)
