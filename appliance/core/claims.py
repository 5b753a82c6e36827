"""Verified claims -> the principal that policy, limits and audit see."""

from functools import lru_cache
from hashlib import sha256

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Principal, VerifiedClaims


def principal(claims: VerifiedClaims) -> Principal:
    """Raises ``Refused(CLAIM_MISSING)`` when the token names no subject."""
    if not claims.subject:
        raise Refused(Reason.CLAIM_MISSING, "sub is empty")
    return Principal(
        key=principal_key(claims.issuer, claims.subject),
        issuer=claims.issuer,
        subject=claims.subject,
        client_id=claims.client_id,
        groups=claims.groups,
        models=claims.models,
        token_id=claims.token_id,
        token_sha256=claims.token_sha256,
    )


@lru_cache(maxsize=4096)  # a caller asks more than once
def principal_key(issuer: str, subject: str) -> str:
    """A name of fixed size and alphabet for (issuer, subject), whatever characters these contain.

    Length prefixes keep two different pairs from ever meeting in one key.
    """
    parts = b"".join(len(text.encode()).to_bytes(4, "big") + text.encode() for text in (issuer, subject))
    return sha256(b"paddock principal\x00" + parts).hexdigest()[:32]
