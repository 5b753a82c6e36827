"""What a service says of its user -> the user, verified: by the user's own token, or by a secret shared with it.

A JWT under HS256 is read as strictly as a token: three base64url segments, strict JSON, ``alg`` and ``typ`` and nothing
else in the header, one algorithm, all times judged by the caller's clock. Whoever has the secret can sign for any user,
so this process, which must have it to verify, could too: a shared secret tells the two ends apart from everybody else,
and not from each other.

Trusts: the verifier of tokens; the operator's secret; the service's token, which was verified before.
Promises: a user is told only of a service that is configured to do so, in its own form. All that is not so is
    ``Refused(DELEGATION_REFUSED)``, and never ignored.
Not here: whether policy permits the delegation (``policy``); how often a service may ask for users (``gateway``).
"""

from collections.abc import Collection
from typing import Final

from appliance.core.delegation import (
    OPENWEBUI_JWT,
    USER_TOKEN,
    Service,
    SignedUserRules,
    read_signed_user,
)
from appliance.core.ports import TokenVerifier
from appliance.core.refusals import Misconfigured, Reason, Refused
from appliance.core.values import Digest, ForwardedUser, Presented, VerifiedClaims
from appliance.identity.compact import SERIALISATION, authenticated_payload, strict_object, unverified_object

MIN_SECRET_BYTES: Final = 32
"""RFC 7518 section 3.2: at least as long as the hash."""
MAX_JWT_BYTES: Final = 8192
_HEADER: Final = {"alg": "HS256", "typ": "JWT"}


class UserTokens:
    """Implements ``core.ports.Delegation`` with the user's own access token, of one of ``issuers``."""

    header: Final = USER_TOKEN

    def __init__(self, service: Service, verifier: TokenVerifier, issuers: Collection[str]) -> None:
        self._service = service
        self._verifier = verifier
        self._issuers = frozenset(issuers)

    def is_for(self, service: VerifiedClaims) -> bool:
        return self._service.bears(service)

    async def user(self, unverified: str, *, now_seconds: int) -> VerifiedClaims:
        """A token that is bound to a key or a certificate is the user's to send and nobody else's: it is presented
        without a proof, and so refused."""
        try:
            user = await self._verifier.verify(Presented(unverified_token=unverified), now_seconds=now_seconds)
        except Refused as refusal:
            raise _of_the_user(refusal) from refusal
        if user.issuer not in self._issuers:
            raise _refused("the user's token is of an issuer that this service may not speak for")
        return user


class SignedUsers:
    """Implements ``core.ports.Delegation`` with Open WebUI's signed header. One that was overheard can be sent again
    until it expires, by whoever has the service's own token too."""

    header: Final = OPENWEBUI_JWT

    def __init__(self, service: Service, rules: SignedUserRules, secret: str) -> None:
        """Raises ``Misconfigured`` for a secret that is too short."""
        if len(secret.encode()) < MIN_SECRET_BYTES:
            raise Misconfigured(f"a secret for HS256 needs at least {MIN_SECRET_BYTES} bytes")
        self._service = service
        self._rules = rules
        self._secret = secret.encode()

    def is_for(self, service: VerifiedClaims) -> bool:
        return self._service.bears(service)

    async def user(self, unverified: str, *, now_seconds: int) -> ForwardedUser:
        try:
            return self._user(unverified, now_seconds)
        except Refused as refusal:
            raise _of_the_user(refusal) from refusal

    def _user(self, unverified: str, now_seconds: int) -> ForwardedUser:
        match = SERIALISATION.fullmatch(unverified) if len(unverified) <= MAX_JWT_BYTES else None
        if match is None:
            raise _refused("not three base64url segments of at most 8 kB")
        if unverified_object(match[1], Reason.TOKEN_INVALID) != _HEADER:
            raise _refused("the header says something else than HS256 and JWT")
        payload = authenticated_payload(unverified, self._secret, Reason.TOKEN_INVALID)
        claims = strict_object(payload, Reason.TOKEN_INVALID)
        said = read_signed_user(claims, self._rules, now_seconds=now_seconds)
        return ForwardedUser(
            issuer=self._rules.issuer,
            subject=said.subject,
            groups=said.groups,
            token_sha256=Digest.of(unverified.encode("ascii")),
        )


def _of_the_user(refusal: Refused) -> Refused:
    """401 would say that the service's own token is at fault, and have it fetch another for nothing. What only an
    issuer or a notary out of reach could tell is nobody's fault."""
    if refusal.reason in {Reason.ISSUER_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE}:
        return refusal
    return _refused(f"of the user: {refusal}")


def _refused(detail: str) -> Refused:
    return Refused(Reason.DELEGATION_REFUSED, detail)
