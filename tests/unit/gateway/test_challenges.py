"""What a client is told that lacks the right credentials: the RFCs' words, and nothing of what it sent."""

import json

import pytest

from appliance.core.refusals import Reason, Refused
from appliance.gateway.challenges import Challenges

URL = "https://llm.example"
POINTER = f'resource_metadata="{URL}/.well-known/oauth-protected-resource"'
PLAIN = Challenges()
FULL = Challenges(URL, issuers=("https://b.example", "https://a.example"), proof_algorithms=("ES256", "EdDSA"))


def header(refusal: Refused, by: Challenges = PLAIN) -> str | None:
    value = by.header(refusal)
    return None if value is None else value.decode()


def test_401_says_how_and_names_an_error_only_when_a_token_came() -> None:
    """RFC 6750 section 3."""
    assert header(Refused(Reason.TOKEN_MISSING)) == 'Bearer realm="paddock"'
    assert header(Refused(Reason.TOKEN_INVALID, "secret detail")) == 'Bearer realm="paddock", error="invalid_token"'


def test_where_dpop_is_offered_both_schemes_are_told() -> None:
    """RFC 9449 section 7.1, RFC 9728 section 5.1."""
    dpop = f'DPoP realm="paddock", algs="ES256 EdDSA", {POINTER}'
    assert header(Refused(Reason.TOKEN_MISSING), FULL) == f'Bearer realm="paddock", {POINTER}, {dpop}'
    error = 'error="invalid_token"'
    assert header(Refused(Reason.TOKEN_INVALID), FULL) == (
        f'Bearer realm="paddock", {error}, {POINTER}, DPoP realm="paddock", {error}, algs="ES256 EdDSA", {POINTER}'
    )


def test_bad_proof_is_answered_in_the_scheme_of_proofs() -> None:
    told = header(Refused(Reason.PROOF_INVALID), FULL)
    assert told == f'DPoP realm="paddock", error="invalid_dpop_proof", algs="ES256 EdDSA", {POINTER}'
    assert header(Refused(Reason.PROOF_INVALID)) == 'DPoP realm="paddock", error="invalid_dpop_proof"'


def test_other_errors_of_rfc_6750_name_no_scheme_of_another_rfc() -> None:
    assert (
        header(Refused(Reason.TOKEN_MISPLACED), FULL) == f'Bearer realm="paddock", error="invalid_request", {POINTER}'
    )
    scope = header(Refused(Reason.SCOPE_MISSING, param="llm models"), FULL)
    assert scope == f'Bearer realm="paddock", error="insufficient_scope", {POINTER}, scope="llm models"'
    assert "insufficient_scope" in (header(Refused(Reason.CLAIM_MISSING)) or "")


CHALLENGED = {Reason.TOKEN_MISSING, Reason.TOKEN_INVALID, Reason.TOKEN_MISPLACED, Reason.PROOF_INVALID}
CHALLENGED |= {Reason.SCOPE_MISSING, Reason.CLAIM_MISSING}


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_every_401_has_a_challenge_and_no_refusal_has_one_that_credentials_cannot_mend(reason: Reason) -> None:
    assert (header(Refused(reason, param="x")) is not None) == (reason in CHALLENGED)
    assert reason.status != 401 or reason in CHALLENGED | {Reason.CLIENT_INVALID}  # the authorization server's own


def test_metadata_say_what_is_configured_and_are_none_without_a_public_url() -> None:
    """RFC 9728 section 2."""
    assert PLAIN.metadata is None
    assert Challenges(None, issuers=("https://a.example",), proof_algorithms=("ES256",)).metadata is None
    said = json.loads(FULL.metadata or b"")
    assert said["resource"] == URL
    assert said["authorization_servers"] == ["https://a.example", "https://b.example"]
    assert said["bearer_methods_supported"] == ["header"]
    assert "authorization_servers" not in json.loads(Challenges(URL).metadata or b"")


def test_certificates_are_told_of_where_clients_may_have_some() -> None:
    """RFC 9728 section 2, RFC 8705 section 3.3; the default is false."""
    member = "tls_client_certificate_bound_access_tokens"
    assert json.loads(Challenges(URL, takes_certificates=True).metadata or b"")[member] is True
    assert member not in json.loads(FULL.metadata or b"")
