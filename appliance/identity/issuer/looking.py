"""Looking into a token that somebody brings who is not its bearer (RFC 7662, RFC 7009, RFC 8693).

Trusts: nothing before the verifier has judged the same text.
Promises: where somebody only asks about a token, one of another issuer is not looked at, so that no stranger's token
    makes us ask its issuer; what is told of one of ours are its own claims. A token that names who may act for its
    subject is exchanged by nobody else.
Not here: verifying it, and who may be told (``authority``).
"""

import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Presented, VerifiedClaims
from appliance.identity.compact import SERIALISATION, unverified_object
from appliance.identity.issuer.forms import MAX_TOKEN_CHARACTERS

_TOLD: Final = (
    *("scope", "client_id", "exp", "iat", "sub", "aud", "iss", "jti"),  # RFC 7662 section 2.2
    *("cnf", "act"),  # RFC 8705 section 3.2, RFC 8693 section 4.1
    *("groups", "models"),  # ours, by which another Paddock reads it
)
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")
"""RFC 8705 section 3.1."""


class Look(NamedTuple):
    """``presented`` is the token as if its bearer sent it."""

    presented: Presented
    unverified_claims: Mapping[str, Any]


class Looked(NamedTuple):
    """The verifier has found the token good. ``claims_of_text`` are those of the text that it verified."""

    claims: VerifiedClaims
    claims_of_text: Mapping[str, Any]

    def description(self) -> dict[str, Any]:
        return {"token_type": "Bearer"} | {
            name: self.claims_of_text[name] for name in _TOLD if name in self.claims_of_text
        }


def unverified_look(unverified_token: str, issuer: str) -> Look | None:
    """None for what is no access token of ours."""
    match = SERIALISATION.fullmatch(unverified_token) if len(unverified_token) <= MAX_TOKEN_CHARACTERS else None
    if match is None:
        return None
    try:
        claims = unverified_object(match[2], Reason.TOKEN_INVALID)
    except Refused:
        return None
    if claims.get("iss") != issuer:
        return None
    # Whoever asks need not hold the certificate that the token is bound to: he is told which one it is.
    certificate_sha256 = _certificate(claims.get("cnf"))
    return Look(
        Presented(unverified_token=unverified_token, client_certificate_sha256=certificate_sha256),
        claims,
    )


def check_may_act(verified_token: str, client_id: str, issuer: str) -> None:
    """RFC 8693 section 4.4, of a token that was verified; an opaque one says nothing here. Raises
    ``Refused(OAUTH_REQUEST_INVALID)``."""
    match = SERIALISATION.fullmatch(verified_token)
    if match is None:
        return
    claims = unverified_object(match[2], Reason.OAUTH_REQUEST_INVALID)
    if "may_act" not in claims:
        return
    may_act = claims["may_act"]
    if not isinstance(may_act, dict) or may_act.get("sub") != client_id or may_act.get("iss", issuer) != issuer:
        raise Refused(Reason.OAUTH_REQUEST_INVALID, "the subject token lets another act, and not this client")


def _certificate(unverified_confirmation: object) -> bytes | None:
    if not isinstance(unverified_confirmation, dict):
        return None
    thumbprint = unverified_confirmation.get("x5t#S256")
    if not isinstance(thumbprint, str) or not _THUMBPRINT.fullmatch(thumbprint):
        return None
    return urlsafe_b64decode(thumbprint + "=")
