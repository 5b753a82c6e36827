"""What a client of the authorization server is told of a refusal."""

import json
import re

import pytest

from appliance.core.oauth import error_body
from appliance.core.refusals import Reason

OF_THE_RFCS = {
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "temporarily_unavailable",
}


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.code)
def test_error_is_one_of_the_rfcs_in_their_characters(reason: Reason) -> None:
    """RFC 6749 section 5.2, RFC 8707 section 2."""
    told = json.loads(error_body(reason))
    assert told.keys() == {"error", "error_description"}
    assert told["error"] in OF_THE_RFCS
    assert re.fullmatch(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", told["error_description"])


def test_client_can_tell_what_it_did_from_what_is_not_its_fault() -> None:
    said = {reason: json.loads(error_body(reason))["error"] for reason in Reason}
    assert said[Reason.CLIENT_INVALID] == "invalid_client"
    assert said[Reason.AUDIT_UNAVAILABLE] == "temporarily_unavailable"
    assert said[Reason.ADDRESS_RATE_LIMITED] == "temporarily_unavailable"
    assert said[Reason.BODY_TOO_LARGE] == "invalid_request"
