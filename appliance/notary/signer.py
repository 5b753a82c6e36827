"""Signs access tokens (RFC 9068: JWT profile for OAuth 2.0 access tokens), ES256 and nothing else.

Trusts: its caller to be the operator (``notary.main`` checks the socket's peer), or to have judged the order
    (``notary.granting``).
Promises: a token has every claim that our own verifier demands, lives at most 24 hours, and is small enough for a
    header; what cannot be such a token is ``Refused``.
Not here: the record of it, which must be durable before the token leaves (``notary.main``, ``notary.office``).
"""

import secrets
from collections.abc import Sequence
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from appliance.core.clients import MAX_TTL_SECONDS, GrantOrder, Party
from appliance.core.refusals import Reason, Refused
from appliance.core.token_claims import MAX_NAME_CHARACTERS
from appliance.core.values import Digest, Value
from appliance.ipc.messages import IssueToken
from appliance.notary.keys import public_jwk

MAX_TOKEN_BYTES: Final = 8192
_MAX_NAME_CHARACTERS: Final = 255


class SignedToken(Value, frozen=True, kw_only=True):
    token: str
    token_id: str
    token_sha256: Digest
    expires_at_seconds: int


class TokenSigner:
    def __init__(self, key: EllipticCurvePrivateKey, *, issuer: str, audience: str) -> None:
        self._key = key
        self._key_id = public_jwk(key)["kid"]
        self.issuer = issuer
        self._audience = audience

    def sign(self, request: IssueToken, *, now_seconds: int) -> SignedToken:
        """Raises ``Refused(FIELD_INVALID)``."""
        for name in (request.subject, request.client_id, *request.groups, *request.models):
            if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
                raise Refused(Reason.FIELD_INVALID, "a name is empty, too long or not printable")
        if not 1 <= request.ttl_seconds <= MAX_TTL_SECONDS:
            raise Refused(Reason.FIELD_INVALID, f"a token lives 1 to {MAX_TTL_SECONDS} seconds")
        claims = {
            "sub": request.subject,
            "client_id": request.client_id,
            "groups": request.groups,
            "models": request.models,
        }
        return self._sign(claims, ttl_seconds=request.ttl_seconds, now_seconds=now_seconds)

    def sign_grant(self, order: GrantOrder, *, now_seconds: int) -> SignedToken:
        """Besides what an operator's token says: ``scope`` (RFC 9068 section 2.2.3), ``act`` (RFC 8693 section 4.1) and
        ``cnf`` (RFC 7800). Raises ``Refused(GRANT_INVALID)`` for what is no name, or would be too large."""
        parties = (name for party in order.acting for name in (party.subject, party.issuer or party.subject))
        names = (order.subject, order.client_id, *order.groups, *order.models, *parties)
        if not all(name and len(name) <= MAX_NAME_CHARACTERS and name.isprintable() for name in names):
            raise Refused(Reason.GRANT_INVALID, "a name is empty, too long or not printable")
        confirmation = {"x5t#S256": order.certificate_sha256, "jkt": order.jkt}
        optional = {
            "scope": " ".join(order.groups),
            "act": _act(order.acting),
            "cnf": {name: value for name, value in confirmation.items() if value is not None},
        }
        claims = {
            "sub": order.subject,
            "client_id": order.client_id,
            "groups": order.groups,
            "models": order.models,
            **{name: value for name, value in optional.items() if value},
        }
        try:
            return self._sign(claims, ttl_seconds=order.ttl_seconds, now_seconds=now_seconds)
        except Refused as refused:
            raise Refused(Reason.GRANT_INVALID, refused.detail) from refused

    def _sign(self, claims: dict[str, Any], *, ttl_seconds: int, now_seconds: int) -> SignedToken:
        """Raises ``Refused(FIELD_INVALID)`` for a token that no header would hold."""
        token_id = secrets.token_hex(16)  # a word of a command line: it must not begin with a dash
        expires_at_seconds = now_seconds + ttl_seconds
        common = {
            "iss": self.issuer,
            "aud": self._audience,
            "iat": now_seconds,
            "exp": expires_at_seconds,
            "jti": token_id,
        }
        headers = {"typ": "at+jwt", "kid": self._key_id}
        token = jwt.encode(common | claims, self._key, algorithm="ES256", headers=headers)
        if len(token) > MAX_TOKEN_BYTES:
            raise Refused(Reason.FIELD_INVALID, f"the token would be larger than {MAX_TOKEN_BYTES} bytes")
        return SignedToken(
            token=token,
            token_id=token_id,
            token_sha256=Digest.of(token.encode()),
            expires_at_seconds=expires_at_seconds,
        )


def _act(acting: Sequence[Party]) -> dict[str, Any]:
    """The nearest actor outside, each former one inside (RFC 8693 section 4.1)."""
    act: dict[str, Any] = {}
    for party in reversed(acting):
        issuer = {} if party.issuer is None else {"iss": party.issuer}
        act = {"sub": party.subject, **issuer, **({"act": act} if act else {})}
    return act
