"""Bearer token -> ``VerifiedClaims`` (RFC 9068, RFC 8725).

The steps, in order; each refuses with ``token-invalid`` and a detail for the operator:

(1) shape: at most 8 kB, three base64url segments, no padding;
(2) header: strict JSON with exactly ``alg``, ``typ`` and ``kid``; ``typ`` is ``at+jwt``; the key id is known and the
    algorithm is that key's own;
(3) signature, issuer and audience, by PyJWT with one key and one algorithm;
(4) claims: strict JSON, all required ones with their types; times judged by the caller's clock and no other, and a
    lifetime within the horizon.

Trusts: the key set, loaded at start.
Promises: what ``verify`` returns was signed by a known key for this audience and is valid at ``now_seconds``. The cache
    is keyed by the SHA-256 of the whole token (CVE-2026-35030) and filled only after verification.
Not here: what the principal may do (policy), and revocation.
"""

import re
from collections import OrderedDict
from typing import Any, Final

import jwt
import msgspec

from appliance.core.refusals import Reason, Refused
from appliance.core.strict_json import JsonInvalid, check
from appliance.core.values import Digest, Value, VerifiedClaims
from appliance.identity.keys import KeySet

MAX_TOKEN_BYTES: Final = 8192
LEEWAY_SECONDS: Final = 30
CACHE_ENTRIES: Final = 4096
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class _Claims(Value, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """The claims that we rely on. Others are ignored knowingly: an issuer may add its own."""

    iss: str
    aud: str
    sub: str
    client_id: str
    jti: str
    iat: int
    exp: int
    nbf: int | None = None
    groups: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


class JwtVerifier:
    """Implements ``core.ports.TokenVerifier``."""

    def __init__(self, keys: KeySet, *, issuer: str, audience: str, max_lifetime_seconds: int) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._max_lifetime_seconds = max_lifetime_seconds
        self._cache: OrderedDict[Digest, VerifiedClaims] = OrderedDict()

    def verify(self, unverified_token: str, *, now_seconds: int) -> VerifiedClaims:
        """Raises ``Refused(TOKEN_INVALID)``."""
        token_sha256 = Digest.of(unverified_token.encode("utf-8", "surrogatepass"))
        claims = self._cache.get(token_sha256)
        if claims is None:
            claims = self._verify(unverified_token, token_sha256, now_seconds)
            self._remember(token_sha256, claims)
        _check_not_expired(claims.expires_at_seconds, now_seconds)
        return claims

    def _remember(self, token_sha256: Digest, claims: VerifiedClaims) -> None:
        self._cache[token_sha256] = claims
        if len(self._cache) > CACHE_ENTRIES:
            self._cache.popitem(last=False)

    def _verify(self, unverified_token: str, token_sha256: Digest, now_seconds: int) -> VerifiedClaims:
        unverified_header, unverified_claims = _segments(unverified_token)
        key = self._key_for(unverified_header)
        self._check_signature(unverified_token, key)
        claims = _typed_claims(unverified_claims)
        self._check_times(claims, now_seconds)
        return VerifiedClaims(
            issuer=claims.iss,
            subject=claims.sub,
            client_id=claims.client_id,
            audience=claims.aud,
            token_id=claims.jti,
            issued_at_seconds=claims.iat,
            expires_at_seconds=claims.exp,
            groups=claims.groups,
            models=claims.models,
            token_sha256=token_sha256,
        )

    def _key_for(self, unverified_header: bytes) -> jwt.PyJWK:
        """Step (2). ``jwk``, ``jku``, ``x5u``, ``crit``, ``b64`` and ``zip`` fall to the exact set of names."""
        header = _strict_object(unverified_header)
        if header.keys() != {"alg", "typ", "kid"}:
            raise _refused("the header has other members than alg, typ and kid")
        if header["typ"] not in ("at+jwt", "application/at+jwt"):  # a tuple: a list in typ has no hash
            raise _refused("typ is not at+jwt")
        kid = header["kid"]
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise _refused("unknown key id")
        if header["alg"] != key.algorithm_name:
            raise _refused("the algorithm is not the key's own")
        return key

    def _check_signature(self, unverified_token: str, key: jwt.PyJWK) -> None:
        """Step (3). Every option is written out, also where it is the default."""
        try:
            jwt.decode(
                unverified_token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub", "client_id", "jti"],
                    "verify_signature": True,
                    "verify_exp": False,  # by _check_times: PyJWT would read another clock than the caller's
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": True,
                    "verify_iss": True,
                    "strict_aud": True,
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.PyJWTError as error:
            raise _refused(type(error).__name__) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise _refused(f"malformed: {type(error).__name__}") from error

    def _check_times(self, claims: _Claims, now_seconds: int) -> None:
        if not 0 < claims.exp - claims.iat <= self._max_lifetime_seconds:
            raise _refused("the lifetime is not within the horizon")
        if claims.exp > now_seconds + self._max_lifetime_seconds + LEEWAY_SECONDS:
            raise _refused("it expires beyond the horizon")
        if claims.iat > now_seconds + LEEWAY_SECONDS or (claims.nbf or 0) > now_seconds + LEEWAY_SECONDS:
            raise _refused("it is not valid yet")
        _check_not_expired(claims.exp, now_seconds)


def _check_not_expired(expires_at_seconds: int, now_seconds: int) -> None:
    """RFC 7519 section 4.1.4: *on* or after that time it must not be accepted."""
    if now_seconds >= expires_at_seconds + LEEWAY_SECONDS:
        raise _refused("expired")


def _refused(detail: str) -> Refused:
    return Refused(Reason.TOKEN_INVALID, detail)


def _segments(unverified_token: str) -> tuple[bytes, bytes]:
    """Step (1): header and claims, decoded from base64url."""
    match = _TOKEN.fullmatch(unverified_token) if len(unverified_token) <= MAX_TOKEN_BYTES else None
    if match is None:
        raise _refused("not three base64url segments of at most 8 kB")
    try:
        return jwt.utils.base64url_decode(match[1]), jwt.utils.base64url_decode(match[2])
    except ValueError:
        raise _refused("a segment is not base64url") from None


def _strict_object(data: bytes) -> dict[str, Any]:
    try:
        value = check(data, max_depth=8)
    except JsonInvalid as error:
        raise _refused(str(error)) from error
    if not isinstance(value, dict):
        raise _refused("not a JSON object")
    return value


def _typed_claims(unverified_claims: bytes) -> _Claims:
    """Step (4): PyJWT accepts ``exp`` as a string and the last of two equal keys; we do not."""
    try:
        return msgspec.convert(_strict_object(unverified_claims), _Claims)
    except msgspec.ValidationError as error:
        raise _refused(f"claims: {error}") from error
