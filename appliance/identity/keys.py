"""Verifying keys: a JWK set file -> an immutable map from key id to key.

Trusts: the operator and the notary, who alone can write the public directory.
Promises: every key is public, has an id and one asymmetric algorithm of the allowed list with its own curve, and was
    read from a file of bounded size.
Not here: fetching keys of other issuers, which happens off the request path.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.refusals import Fault
from appliance.core.strict_json import JsonInvalid, check

ALLOWED_ALGORITHMS: Final = frozenset({"ES256"})
MAX_JWKS_BYTES: Final = 64 * 1024

KeySet = Mapping[str, jwt.PyJWK]


def load_keys(path: Path) -> KeySet:
    """Raises ``Fault`` when the file is absent, too large, malformed, or holds a key that is not allowed."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JWKS_BYTES + 1)
    except OSError as error:
        raise Fault(f"cannot read the verifying keys: {error}") from error
    return parse_keys(data)


def parse_keys(data: bytes) -> KeySet:
    """JWK set (RFC 7517) -> keys by id. An empty set is a ``Fault``: it would verify nothing."""
    if len(data) > MAX_JWKS_BYTES:
        raise Fault("the JWK set is too large")
    try:
        document = check(data)
        entries = document["keys"]
        algorithms = {entry["alg"] for entry in entries}
        if not algorithms <= ALLOWED_ALGORITHMS:
            raise Fault(f"only {sorted(ALLOWED_ALGORITHMS)} keys are allowed")
        keys = {entry["kid"]: jwt.PyJWK(entry, algorithm=entry["alg"]) for entry in entries}
        uses = {entry.get("use", "sig") for entry in entries}
    except (JsonInvalid, KeyError, TypeError, jwt.PyJWTError) as error:
        raise Fault(f"the JWK set is malformed: {type(error).__name__}") from error
    if not keys or len(keys) != len(entries):
        raise Fault("the JWK set is empty or repeats a key id")
    if uses != {"sig"}:
        raise Fault("the JWK set has a key that is not for signatures")
    for key_id, key in keys.items():
        if not key_id or not isinstance(key_id, str):
            raise Fault("a key id must be a text that is not empty")
        if not isinstance(key.key, ec.EllipticCurvePublicKey) or not isinstance(key.key.curve, ec.SECP256R1):
            raise Fault("a key for ES256 must be a public key on P-256")
    return MappingProxyType(keys)
