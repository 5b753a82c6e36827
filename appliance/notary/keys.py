"""The private keys: made once, kept in one directory, refused when anybody else could have read them.

``log.key`` (Ed25519) signs checkpoints, ``token.key`` (ECDSA P-256) signs access tokens; both PKCS #8 PEM, 0600, in a
directory of 0700. Their public parts are ``log.vkey`` (C2SP verifier key) and ``jwks.json`` (RFC 7517).

Trusts: root, and the file system's owner and mode bits.
Promises: a key that ``load_keys`` returns is a regular file of ours that nobody else may read; a half-written key is
    never left under its name.
Not here: what is signed (``notary.checkpoint``, ``notary.signer``).
"""

import os
import stat
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.core.refusals import Fault
from appliance.notary.checkpoint import verifier_key
from appliance.notary.files import PUBLIC_FILE, Files, make_directories, replace
from appliance.notary.wal import exists

_MAX_KEY_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Keys:
    log: Ed25519PrivateKey
    token: EllipticCurvePrivateKey


def load_keys(files: Files, directory: Path, *, may_create: bool) -> Keys:
    """Reads both keys, and makes those that are missing when ``may_create``.

    Raises ``Fault`` for a key that is missing, foreign, readable by others or of another kind; ``OSError``.
    """
    make_directories(files, directory)
    _check(directory, os.lstat(directory), stat.S_ISDIR, 0o077)
    log_path, token_path = directory / "log.key", directory / "token.key"
    if may_create:
        _create(files, log_path, Ed25519PrivateKey.generate)
    if not exists(token_path):  # losing it costs nothing but the tokens that are out
        _create(files, token_path, lambda: generate_private_key(SECP256R1()))
    log_key, token_key = _load(files, log_path), _load(files, token_path)
    if not isinstance(log_key, Ed25519PrivateKey):
        raise Fault(f"{log_path} is not an Ed25519 key")
    if not isinstance(token_key, EllipticCurvePrivateKey) or not isinstance(token_key.curve, SECP256R1):
        raise Fault(f"{token_path} is not an ECDSA P-256 key")
    return Keys(log=log_key, token=token_key)


def _create(files: Files, path: Path, generate: Any) -> None:
    if exists(path):
        return
    pem = generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace(files, path, pem)


def _load(files: Files, path: Path) -> Any:
    try:
        fd = files.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise Fault(f"{path} is missing") from None
    try:
        _check(path, os.fstat(fd), stat.S_ISREG, 0o177)
        pem = os.read(fd, _MAX_KEY_BYTES)
    finally:
        files.close(fd)
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise Fault(f"{path} is not a private key") from error


def _check(path: Path, found: os.stat_result, is_kind: Any, forbidden_bits: int) -> None:
    if not is_kind(found.st_mode):
        raise Fault(f"{path} is not of the expected kind")
    if found.st_uid != os.geteuid():
        raise Fault(f"{path} belongs to uid {found.st_uid}, not to the notary")
    if found.st_mode & forbidden_bits:
        raise Fault(f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others could have read the key")


# --- public parts ---------------------------------------------------------------------------------------------------


def public_jwk(key: EllipticCurvePrivateKey) -> dict[str, str]:
    """RFC 7517 / 7518 section 6.2, with the RFC 7638 thumbprint as ``kid``."""
    numbers = key.public_key().public_numbers()
    required = {
        "crv": "P-256",
        "kty": "EC",
        "x": _base64url(numbers.x.to_bytes(32, "big")),
        "y": _base64url(numbers.y.to_bytes(32, "big")),
    }
    thumbprint = sha256(msgspec.json.encode(required, order="sorted")).digest()
    return {**required, "kid": _base64url(thumbprint), "use": "sig", "alg": "ES256"}


def publish_keys(files: Files, keys: Keys, *, origin: str, public_dir: Path, log_dir: Path) -> None:
    """Writes the public parts, each atomically; the verifier key also beside the log. Raises ``OSError``."""
    vkey = f"{verifier_key(origin, keys.log)}\n".encode()
    jwks = msgspec.json.encode({"keys": [public_jwk(keys.token)]}, order="sorted")
    replace(files, log_dir / "log.vkey", vkey, PUBLIC_FILE)
    replace(files, public_dir / "log.vkey", vkey, PUBLIC_FILE)
    replace(files, public_dir / "jwks.json", jwks, PUBLIC_FILE)


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
