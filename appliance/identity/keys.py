"""Verifying keys: a JWK set (RFC 7517) -> an immutable map from key id to key.

Our own notary's set is read from a file, and any fault in it spoils it: there are only ES256 keys, all of them good. A
foreign issuer's set may also hold keys for other uses, which are passed over; what is left must be good as well.

Trusts: the operator and the notary, who alone can write the public directory; of a foreign issuer only that the bytes
    are its own.
Promises: every key is public, has an id and one asymmetric algorithm of those allowed, is of that algorithm's family
    and strong enough for it (RFC 8725 sections 3.1, 3.2, 3.5), and was read from bytes of bounded size.
Not here: fetching the keys of other issuers (``liaison``), which happens off the request path.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from appliance.core.refusals import Fault
from appliance.core.strict_json import JsonInvalid, check
from appliance.ipc.messages import PublicKey

OWN_ALGORITHMS: Final = frozenset({"ES256"})
MAX_JWKS_BYTES: Final = 64 * 1024
MAX_KEYS: Final = 64

_FAMILIES: Final = {"ES256": "EC", "RS256": "RSA", "PS256": "RSA", "EdDSA": "OKP"}
"""RFC 7518 section 3.1 and RFC 8037 section 3.1: the ``kty`` of an algorithm's keys."""

AnyPublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class VerifyingKey(NamedTuple):
    algorithm: str
    key: AnyPublicKey


KeySet = Mapping[str, VerifyingKey]


def load_keys(path: Path) -> KeySet:
    """Our own. Raises ``Fault`` when the file is absent, too large, malformed, or holds a key that is not allowed."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JWKS_BYTES + 1)
    except OSError as error:
        raise Fault(f"cannot read the verifying keys: {error}") from error
    return parse_keys(data)


def parse_keys(data: bytes) -> KeySet:
    """Our own set -> keys by id. An empty set is a ``Fault``: it would verify nothing."""
    entries = _entries(data)
    if any(entry.get("alg") not in tuple(OWN_ALGORITHMS) for entry in entries):
        raise Fault(f"only {sorted(OWN_ALGORITHMS)} keys are allowed")
    if any(not _is_for_signatures(entry) for entry in entries):
        raise Fault("the JWK set has a key that is not for signatures")
    return _by_id((_key_id(entry), parse_jwk(entry, entry["alg"])) for entry in entries)


def parse_foreign_keys(data: bytes, algorithms: frozenset[str]) -> KeySet:
    """Another issuer's set -> those of its keys that are for signatures by one of these algorithms.

    A key that does not name its algorithm has the one of its family that is configured, if that is only one.
    Raises ``Fault`` when none is left, when one that is left is not good, and when the set publishes a secret.
    """
    found = []
    for entry in _entries(data):
        if entry.get("kty") == "oct" or "d" in entry:
            raise Fault("the JWK set has a secret in it")  # whoever publishes it may have signed with it as well
        algorithm = _algorithm(entry, algorithms)
        if algorithm is not None and _is_for_signatures(entry):
            found.append((_key_id(entry), parse_jwk(entry, algorithm)))
    return _by_id(found)


def parse_jwk(entry: Mapping[str, Any], algorithm: str) -> VerifyingKey:
    """One public JWK -> a key that is good for one algorithm. Raises ``Fault``."""
    if entry.get("kty") != _FAMILIES[algorithm]:
        raise Fault(f"the JWK set is malformed: a key for {algorithm} of another type")
    try:
        key = jwt.PyJWK(dict(entry), algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        raise Fault(f"the JWK set is malformed: {type(error).__name__}") from error
    return require_good(algorithm, key)


def to_wire(keys: KeySet) -> tuple[PublicKey, ...]:
    return tuple(
        PublicKey(
            key_id=key_id,
            algorithm=known.algorithm,  # type: ignore[arg-type]  # a member of _FAMILIES
            spki=known.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        )
        for key_id, known in keys.items()
    )


def from_wire(keys: Iterable[PublicKey], algorithms: frozenset[str]) -> KeySet:
    """Keys as another process of ours read them, judged once more. Raises ``Fault``."""
    found = []
    for key in keys:
        if key.algorithm not in algorithms:
            raise Fault("a key for an algorithm that is not configured")
        try:
            found.append((key.key_id, require_good(key.algorithm, load_der_public_key(key.spki))))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Fault(f"a key cannot be read: {type(error).__name__}") from error
    return _by_id(found)


def require_good(algorithm: str, key: object) -> VerifyingKey:
    """Raises ``Fault`` unless this is a public key of the algorithm's family and size."""
    match algorithm, key:
        case "ES256", ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return VerifyingKey(algorithm, key)
        case "EdDSA", ed25519.Ed25519PublicKey():
            return VerifyingKey(algorithm, key)
        case "RS256" | "PS256", rsa.RSAPublicKey():
            _check_rsa(key.public_numbers())
            return VerifyingKey(algorithm, key)
        case "ES256", _:
            raise Fault("a key for ES256 must be a public key on P-256")
        case _:
            raise Fault(f"a key for {algorithm} must be a public one of its family")


_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
"""Beyond it one verification takes milliseconds."""

_ROCA_PRIMES: Final = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
_ROCA_POWERS: Final = {prime: {pow(65537, power, prime) for power in range(prime)} for prime in _ROCA_PRIMES}


def _check_rsa(numbers: rsa.RSAPublicNumbers) -> None:
    """RFC 7518 section 3.3 for the size; FIPS 186-5 appendix A.1.1 for the exponent; CVE-2017-15361 (ROCA): moduli that
    the faulty generator made are powers of 65537 modulo every small prime."""
    if not _MIN_RSA_BITS <= numbers.n.bit_length() <= _MAX_RSA_BITS:
        raise Fault(f"an RSA key must have {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits")
    if not 2**16 < numbers.e < 2**256 or numbers.e % 2 == 0:
        raise Fault("an RSA key's exponent is too small, too large or even")
    if all(numbers.n % prime in powers for prime, powers in _ROCA_POWERS.items()):
        raise Fault("an RSA key was made by a faulty generator (CVE-2017-15361)")


def _entries(data: bytes) -> list[dict[str, Any]]:
    if len(data) > MAX_JWKS_BYTES:
        raise Fault("the JWK set is too large")
    try:
        document = check(data)
    except JsonInvalid as error:
        raise Fault(f"the JWK set is malformed: {error}") from error
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Fault("the JWK set is malformed: no list of keys")
    if len(entries) > MAX_KEYS:
        raise Fault(f"the JWK set has more than {MAX_KEYS} keys")
    return entries


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    """RFC 7517 sections 4.2 and 4.3. Raises ``Fault`` for what is neither word nor list."""
    use, operations = entry.get("use", "sig"), entry.get("key_ops", ["verify"])
    if not isinstance(use, str) or not isinstance(operations, list):
        raise Fault("the JWK set is malformed: use or key_ops")
    return use == "sig" and "verify" in operations


def _algorithm(entry: Mapping[str, Any], algorithms: frozenset[str]) -> str | None:
    said = entry.get("alg")
    if said is not None:
        return said if isinstance(said, str) and said in algorithms else None
    possible = [name for name in algorithms if _FAMILIES[name] == entry.get("kty")]
    return possible[0] if len(possible) == 1 else None


def _key_id(entry: Mapping[str, Any]) -> str:
    key_id = entry.get("kid")
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= 128:
        raise Fault("a key id must be a text of 1 to 128 characters")
    return key_id


def _by_id(found: Iterable[tuple[str, VerifyingKey]]) -> KeySet:
    pairs = list(found)
    keys = dict(pairs)
    if not keys or len(keys) != len(pairs):
        raise Fault("the JWK set is empty or repeats a key id")
    return MappingProxyType(keys)
