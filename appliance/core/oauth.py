"""One request to our own authorization server and its answer, read of HTTP and not yet judged by OAuth."""

from typing import Literal

from appliance.core.refusals import Reason
from appliance.core.values import Value

Endpoint = Literal["token", "revoke", "introspect"]
"""RFC 6749 section 3.2, RFC 7009 section 2, RFC 7662 section 2."""


class TokenRequest(Value, frozen=True, kw_only=True):
    """``form`` is every parameter of the body in its order, a repeated one as often as it came: whether it may be
    repeated is the server's to say (RFC 8707 section 2 lets ``resource``). ``authorization`` is the header as it came;
    of the client's certificate there is its SHA-256 (RFC 8705 section 3.1)."""

    endpoint: Endpoint
    form: tuple[tuple[str, str], ...]
    authorization: str | None = None
    client_certificate_sha256: bytes | None = None


class OAuthAnswer(Value, frozen=True, kw_only=True):
    """``refused`` is set where the answer is a no; it and ``detail`` are for the operator alone, the body is what the
    caller is told (RFC 6749 section 5)."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    refused: Reason | None = None
    detail: str = ""
