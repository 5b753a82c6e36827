"""Signs access tokens (RFC 9068: JWT profile for OAuth 2.0 access tokens), ES256 and nothing else.

Trusts: its caller to be the operator (``notary.main`` checks the socket's peer).
Promises: a token has every claim that our own verifier demands, lives at most 24 hours, and is small enough for a
    header; what cannot be such a token is ``Refused``.
Not here: the record of it, which must be durable before the token leaves (``notary.main``).
"""

import secrets
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, Value
from appliance.ipc.messages import IssueToken
from appliance.notary.keys import public_jwk

MAX_TTL_SECONDS: Final = 24 * 60 * 60
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
        self._issuer = issuer
        self._audience = audience

    def sign(self, request: IssueToken, *, now_seconds: int) -> SignedToken:
        """Raises ``Refused(FIELD_INVALID)``."""
        for name in (request.subject, request.client_id, *request.groups, *request.models):
            if not name or len(name) > _MAX_NAME_CHARACTERS or not name.isprintable():
                raise Refused(Reason.FIELD_INVALID, "a name is empty, too long or not printable")
        if not 1 <= request.ttl_seconds <= MAX_TTL_SECONDS:
            raise Refused(Reason.FIELD_INVALID, f"a token lives 1 to {MAX_TTL_SECONDS} seconds")
        token_id = secrets.token_urlsafe(16)
        expires_at_seconds = now_seconds + request.ttl_seconds
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": request.subject,
            "client_id": request.client_id,
            "iat": now_seconds,
            "exp": expires_at_seconds,
            "jti": token_id,
            "groups": request.groups,
            "models": request.models,
        }
        headers = {"typ": "at+jwt", "kid": self._key_id}
        token = jwt.encode(claims, self._key, algorithm="ES256", headers=headers)
        if len(token) > MAX_TOKEN_BYTES:
            raise Refused(Reason.FIELD_INVALID, f"the token would be larger than {MAX_TOKEN_BYTES} bytes")
        return SignedToken(
            token=token,
            token_id=token_id,
            token_sha256=Digest.of(token.encode()),
            expires_at_seconds=expires_at_seconds,
        )
