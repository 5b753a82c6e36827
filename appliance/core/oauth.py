"""One request to our own authorization server and its answer, read of HTTP and not yet judged by OAuth."""

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import json

from appliance.core.refusals import Reason
from appliance.core.values import Value

Endpoint = Literal["token", "revoke", "introspect"]
"""RFC 6749 section 3.2, RFC 7009 section 2, RFC 7662 section 2."""

PATHS: Final[Mapping[str, Endpoint]] = {
    "/oauth/token": "token",
    "/oauth/revoke": "revoke",
    "/oauth/introspect": "introspect",
}
METADATA_PATH: Final = "/.well-known/oauth-authorization-server"
"""RFC 8414 section 3. Our issuer has no path of its own."""

_ERRORS: Final[Mapping[Reason, str]] = {
    Reason.CLIENT_INVALID: "invalid_client",
    Reason.CLIENT_UNAUTHORISED: "unauthorized_client",
    Reason.GRANT_INVALID: "invalid_grant",
    Reason.GRANT_TYPE_UNSUPPORTED: "unsupported_grant_type",
    Reason.SCOPE_INVALID: "invalid_scope",
    Reason.TARGET_INVALID: "invalid_target",
}


class TokenRequest(Value, frozen=True, kw_only=True):
    """``form`` is every parameter of the body in its order, a repeated one as often as it came: whether it may be
    repeated is the server's to say (RFC 8707 section 2 lets ``resource``). ``authorization`` is the header as it came;
    of the client's certificate there is its SHA-256 (RFC 8705 section 3.1)."""

    endpoint: Endpoint
    form: tuple[tuple[str, str], ...]
    authorization: str | None = None
    client_certificate_sha256: bytes | None = None


class OAuthAnswer(Value, frozen=True, kw_only=True):
    """``body`` is JSON, or empty; ``headers`` are those besides its type and length. ``refused`` is set where it is a
    no; that and ``detail`` are for the operator alone, the body is what the caller is told."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    refused: Reason | None = None
    detail: str = ""


def error_body(reason: Reason) -> bytes:
    """What a client is told of a refusal (RFC 6749 section 5.2, RFC 8707 section 2), and no more than the reason."""
    error = _ERRORS.get(reason, "temporarily_unavailable" if reason.status in {429, 503} else "invalid_request")
    return json.encode({"error": error, "error_description": reason.text})
