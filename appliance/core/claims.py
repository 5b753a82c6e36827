"""Verified claims -> the principal that policy, limits and audit see."""

from functools import lru_cache
from hashlib import sha256

from appliance.core.refusals import Reason, Refused
from appliance.core.values import ActingParty, ForwardedUser, Principal, VerifiedClaims


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
        acting=claims.acting,
    )


def principal_through(service: VerifiedClaims, user: VerifiedClaims | ForwardedUser) -> Principal:
    """The user, for whom a service acts with a token of its own: never the service, and never more than both may.

    Raises ``Refused(DELEGATION_REFUSED)`` for a user without a name or with the service's own, and where either token
    says already that somebody acts for its subject: which of them is asking, nobody could tell.
    """
    if not user.subject or (user.issuer, user.subject) == (service.issuer, service.subject):
        raise Refused(Reason.DELEGATION_REFUSED, "the user is nobody, or the service itself")
    if service.acting or (isinstance(user, VerifiedClaims) and user.acting):
        raise Refused(Reason.DELEGATION_REFUSED, "somebody acts for the bearer of one of the tokens already")
    if isinstance(user, VerifiedClaims):
        client_id, token_id, models = user.client_id, user.token_id, models_of_both(service.models, user.models)
    else:
        client_id, token_id, models = service.client_id, str(user.token_sha256), service.models
    return Principal(
        key=principal_key(user.issuer, user.subject),
        issuer=user.issuer,
        subject=user.subject,
        client_id=client_id,
        groups=user.groups,
        models=models,
        token_id=token_id,
        token_sha256=user.token_sha256,
        acting=(_acting(service),),
    )


def models_of_both(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """What two tokens may both name; ``*`` is all."""
    if "*" in some:
        return others
    return some if "*" in others else tuple(name for name in some if name in others)


def _acting(service: VerifiedClaims) -> ActingParty:
    return ActingParty(
        issuer=service.issuer,
        subject=service.subject,
        client_id=service.client_id,
        groups=service.groups,
        token_id=service.token_id,
        token_sha256=service.token_sha256,
    )


@lru_cache(maxsize=4096)  # a caller asks more than once
def principal_key(issuer: str, subject: str) -> str:
    """A name of fixed size and alphabet for (issuer, subject), whatever characters these contain.

    Length prefixes keep two different pairs from ever meeting in one key.
    """
    parts = b"".join(len(text.encode()).to_bytes(4, "big") + text.encode() for text in (issuer, subject))
    return sha256(b"paddock principal\x00" + parts).hexdigest()[:32]
