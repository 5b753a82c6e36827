"""JWS in its compact serialisation (RFC 7515 section 7.1), read as strictly for access tokens as for all else.

Trusts: PyJWT for the signature.
Promises: a JSON object has each name once and little depth; a payload was signed with the one key and algorithm given.
    What is not so is ``Refused`` with the caller's reason.
Not here: what header and claims must say (``tokens``, ``dpop``, ``delegation``).
"""

import re
from base64 import urlsafe_b64encode
from typing import Any, Final

import jwt

from appliance.core.refusals import Reason, Refused
from appliance.core.strict_json import JsonInvalid, check
from appliance.identity.keys import AnyPublicKey, VerifyingKey

SERIALISATION: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
"""Header, payload and signature, in base64url without padding."""
_MAX_DEPTH: Final = 8
_JWS: Final = jwt.PyJWS(options={"verify_signature": True, "enforce_minimum_key_length": True})


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unverified_object(segment: str, reason: Reason) -> dict[str, Any]:
    """The JSON object of a header or payload."""
    try:
        data = jwt.utils.base64url_decode(segment)
    except ValueError:
        raise Refused(reason, "a segment is not base64url") from None
    return strict_object(data, reason)


def strict_object(data: bytes, reason: Reason) -> dict[str, Any]:
    try:
        value = check(data, max_depth=_MAX_DEPTH)
    except JsonInvalid as error:
        raise Refused(reason, str(error)) from error
    if not isinstance(value, dict):
        raise Refused(reason, "not a JSON object")
    return value


def signed_payload(serialised: str, key: VerifyingKey, reason: Reason) -> bytes:
    return _payload(serialised, key.key, key.algorithm, reason)


def authenticated_payload(serialised: str, secret: bytes, reason: Reason) -> bytes:
    """By a secret under HS256. Its type keeps it from ever being a public key, which everybody has (RFC 8725 section
    2.1)."""
    return _payload(serialised, secret, "HS256", reason)


def _payload(serialised: str, key: AnyPublicKey | bytes, algorithm: str, reason: Reason) -> bytes:
    try:
        payload: bytes = _JWS.decode(serialised, key, algorithms=[algorithm])
    except jwt.PyJWTError as error:
        raise Refused(reason, type(error).__name__) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(reason, f"malformed: {type(error).__name__}") from error
    return payload
