"""ECDSA keys: the public ones that the operator trusts by name, and the private ones that sign.

Trusts: the directory of public keys, which only the operator can write.
Promises: a key is on P-256, P-384 or P-521, and its signatures are checked with the one hash that belongs to its curve.
Not here: what was signed (``models.oms``, ``models.catalogue``); certificates (``models.certificates``).
"""

import os
import re
import stat
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeGuard

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from appliance.core.manifest import SignatureRefused
from appliance.core.refusals import Fault
from appliance.core.values import Digest, Signer
from appliance.sandbox.openat2 import open_beneath

MAX_TRUST_FILE_BYTES: Final = 1024 * 1024

_SIGNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


# --- the operator's files --------------------------------------------------------------------------------------------


def read_pems(directory: Path) -> dict[str, bytes]:
    """Name -> bytes of every ``<name>.pem`` of a directory that only the operator can write. Raises ``Fault``."""
    try:
        directory_fd = _open_trust(directory)
        try:
            names = sorted(name for name in os.listdir(directory_fd) if name.endswith(".pem"))  # noqa: PTH208 - by fd
            return {name.removesuffix(".pem"): _read_operators_own(directory_fd, directory / name) for name in names}
        finally:
            os.close(directory_fd)
    except OSError as error:
        raise Fault(f"the trusted keys in {directory} could not be read: {error.strerror}") from error


def read_trust_file(directory: Path, name: str) -> bytes | None:
    """One file of such a directory, or None where it is absent. Raises ``Fault``."""
    try:
        directory_fd = _open_trust(directory)
        try:
            return _read_operators_own(directory_fd, directory / name)
        except FileNotFoundError:
            return None
        finally:
            os.close(directory_fd)
    except OSError as error:
        raise Fault(f"{directory / name} could not be read: {error.strerror}") from error


def _open_trust(directory: Path) -> int:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Fault(f"there is no directory {directory}: run 'paddock init'") from None
    try:
        _check_operators_own(fd, directory)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_operators_own(fd: int, path: Path) -> None:
    status = os.fstat(fd)
    if status.st_uid not in {0, os.geteuid()}:
        raise Fault(f"{path} belongs to user {status.st_uid}, who could change whom this appliance trusts: chown it")
    if status.st_mode & stat.S_IWGRP:
        raise Fault(f"{path} can be written by its group: chmod go-w {path}")
    if status.st_mode & stat.S_IWOTH:
        raise Fault(f"{path} can be written by everybody: chmod go-w {path}")


def _read_operators_own(directory_fd: int, path: Path) -> bytes:
    fd = open_beneath(directory_fd, path.name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_operators_own(fd, path)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Fault(f"{path} is not a file")
        if status.st_size > MAX_TRUST_FILE_BYTES:
            raise Fault(f"{path} is larger than {MAX_TRUST_FILE_BYTES} bytes")
        pieces = []
        while piece := os.read(fd, MAX_TRUST_FILE_BYTES):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def check_signer_name(name: str) -> str:
    """Raises ``Fault``: the name of a key or a root is a file's, and stands in audit records."""
    if not _SIGNER_NAME.fullmatch(name):
        raise Fault("a trusted key's name has characters other than letters, digits and ._@-")
    return name


# --- public keys -----------------------------------------------------------------------------------------------------


class TrustedKeys:
    """The public keys whose signatures count, each under the operator's name for its owner. None: nobody is trusted."""

    def __init__(self, unverified_pems: Mapping[str, bytes]) -> None:
        """Signer name -> PEM of a public key. Raises ``Fault`` for anything else, and for one key under two names."""
        self._by_hint: dict[str, tuple[Signer, ec.EllipticCurvePublicKey]] = {}
        for name, pem in unverified_pems.items():
            key = load_public_key(name, pem)
            hint = key_hint(key)
            if hint in self._by_hint:
                raise Fault(f"the keys of {self._by_hint[hint][0].name} and {name} are the same key")
            self._by_hint[hint] = (Signer(name=name, fingerprint=key_fingerprint(key)), key)

    @classmethod
    def load(cls, directory: Path) -> "TrustedKeys":
        """Every ``<signer-name>.pem`` of a directory. Raises ``Fault`` if one is unreadable, or writable by others."""
        return cls(read_pems(directory))

    def signers(self) -> tuple[Signer, ...]:
        return tuple(signer for signer, _ in self._by_hint.values())

    def find(self, unverified_hint: str) -> tuple[Signer, ec.EllipticCurvePublicKey]:
        """Raises ``SignatureRefused("signer-unknown")``: a signature by a key that nobody named proves nothing."""
        found = self._by_hint.get(unverified_hint)
        if found is None:
            raise SignatureRefused("signer-unknown", "the bundle names a key that is not trusted")
        return found


def load_public_key(name: str, pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of this owner. What else stands in the file is not looked at: pass on ``public_pem`` of the key, not the
    file. Raises ``Fault`` for a name or a key that cannot be trusted."""
    check_signer_name(name)
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Fault(f"the trusted key of {name} is not a PEM public key") from error
    if not is_acceptable(key):
        raise Fault(f"the trusted key of {name} is not an ECDSA key on P-256, P-384 or P-521")
    return key


def is_acceptable(key: Any) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Whether a public key is of the kind, and on one of the curves, whose signatures are accepted."""
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _HASHES


def key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """How a bundle names a key: SHA-256, in hex, of the PEM text of its SubjectPublicKeyInfo, as the OMS tool does."""
    return sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> Digest:
    """How Paddock names a key: SHA-256 of its SubjectPublicKeyInfo in DER."""
    return Digest.of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def verify_ecdsa(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> None:
    """A DER signature over ``data`` with the hash that belongs to the key's curve. Raises ``SignatureRefused``."""
    try:
        strict = encode_dss_signature(*decode_dss_signature(signature)) == signature
        if not strict:
            raise SignatureRefused("signature-invalid", "the signature is not in DER")
        key.verify(signature, data, ec.ECDSA(_HASHES[key.curve.name]))
    except (InvalidSignature, ValueError):
        raise SignatureRefused("signature-invalid", "the signature does not verify under the key it names") from None


# --- private keys ----------------------------------------------------------------------------------------------------


def sign_ecdsa(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """A DER signature with the hash that belongs to the key's curve."""
    return key.sign(data, ec.ECDSA(_HASHES[key.curve.name]))


def generate_signing_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def load_signing_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """An unencrypted PEM private key. Raises ``Fault`` for any other key than the three that verify."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Fault("the signing key is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise Fault("the signing key is not an ECDSA key on P-256, P-384 or P-521")
    return key


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 PEM, not encrypted: write it with mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo PEM: what goes into the directory of trusted keys."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
