"""Who asks: the one way in which a client authenticates (RFC 6749 section 2.3, RFC 7523 section 2.2, RFC 8705 section
2.2).

Trusts: the registry for what a client is to prove itself with; the gateway for the certificate of the connection.
Promises: exactly one method was used and it is the registered one; a client that is not known, one that is registered
    for another method and one with the wrong secret are refused in the same words after the same work.
Not here: the grants of a client (``grants``).
"""

import hmac
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from appliance.core.clients import Authentication, Client
from appliance.core.refusals import Reason, Refused
from appliance.identity.compact import base64url
from appliance.identity.issuer import assertions, forms
from appliance.identity.issuer.assertions import Assertion, AssertionChecker

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
METHODS: Final[tuple[Authentication, ...]] = (
    "client_secret_basic",
    "client_secret_post",
    "private_key_jwt",
    "self_signed_tls_client_auth",
)
_CLIENT_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_SECRETS: Final = 2
_CERTIFICATES: Final = 8
"""As many as a client may have (``core.clients``): so many are compared for every client, known or not."""


class Offered(NamedTuple):
    """What came to prove who the client is; nothing of it is verified. ``certificate_sha256`` is of the connection."""

    method: Authentication
    client_id: str
    secret: str = ""
    assertion: Assertion | None = None
    certificate_sha256: str = ""


def offered(form: forms.Form, authorization: str | None, certificate_sha256: bytes | None) -> Offered:
    """Raises ``Refused(OAUTH_REQUEST_INVALID)`` for more than one method (RFC 6749 section 5.2), and
    ``Refused(CLIENT_INVALID)`` for none and for what cannot be good."""
    values = form.values
    by_assertion = "client_assertion" in values or "client_assertion_type" in values
    if (authorization is not None) + ("client_secret" in values) + by_assertion > 1:
        raise Refused(Reason.OAUTH_REQUEST_INVALID, "more than one way to authenticate")
    if authorization is not None:
        client_id, secret = forms.basic(authorization)
        found = Offered("client_secret_basic", client_id, secret)
    elif "client_secret" in values:
        found = Offered("client_secret_post", values.get("client_id", ""), values["client_secret"])
    elif by_assertion:
        if values.get("client_assertion_type") != ASSERTION_TYPE or "client_assertion" not in values:
            raise _refused("an assertion of another type, or none")
        assertion = assertions.read(values["client_assertion"])
        found = Offered("private_key_jwt", assertion.unverified_client_id, assertion=assertion)
    else:
        if certificate_sha256 is None:
            raise _refused("nothing to authenticate by")
        found = Offered(
            "self_signed_tls_client_auth",
            values.get("client_id", ""),
            certificate_sha256=base64url(certificate_sha256),
        )
    if not _CLIENT_ID.fullmatch(found.client_id) or values.get("client_id", found.client_id) != found.client_id:
        raise _refused("no client id, or two, or one that cannot be")
    return found


def check(proof: Offered, client: Client | None, checker: AssertionChecker, *, now_seconds: int) -> None:
    """``client`` is what is registered under the id that was offered. Raises ``Refused(CLIENT_INVALID)``, and
    ``Refused(OVERLOADED)`` as ``AssertionChecker.check`` does."""
    rightful = client if client is not None and client.authentication == proof.method else None
    match proof.method:
        case "private_key_jwt":
            if proof.assertion is None:
                raise _refused("no assertion")
            checker.check(proof.assertion, rightful, now_seconds=now_seconds)
        case "self_signed_tls_client_auth":
            certificates = rightful.certificates if rightful is not None else ()
            if not _is_among(proof.certificate_sha256, certificates, at_most=_CERTIFICATES):
                raise _refused("another certificate than the registered ones, or no such client")
        case _:
            digests = [digest.hex for digest in rightful.secrets_sha256] if rightful is not None else ()
            if not _is_among(sha256(proof.secret.encode("ascii")).hexdigest(), digests, at_most=_SECRETS):
                raise _refused("the wrong secret, or no such client")
    if rightful is None:
        raise _refused("no such client, or one that authenticates otherwise")


def _is_among(presented: str, registered: Sequence[str], *, at_most: int) -> bool:
    """Compares as often for nobody's credentials as for many, whichever is the right one."""
    compared = (*registered, *[presented] * (at_most - len(registered)))
    found = [hmac.compare_digest(presented, one) for one in compared]
    return any(found[: len(registered)])


def _refused(detail: str) -> Refused:
    return Refused(Reason.CLIENT_INVALID, detail)
