"""OpenSSF Model Signing v1.0 bundles: verifying and making them, with keys that the operator names.

A bundle is a Sigstore bundle v0.3 whose DSSE envelope holds the statement that ``core.manifest`` judges. *Key* mode
is accepted: ECDSA on P-256, P-384 or P-521 with SHA-256, SHA-384 or SHA-512. Certificate and Sigstore mode are refused
by name. Exactly one signature, as the Sigstore bundle format says.

ECDSA signatures come in pairs, (r, s) and (r, n - s). Both are accepted: OMS does not ask for the lower s, and half of
the signatures of every common signer have the higher one. The twin says nothing else, for the same key, about the same
bytes; a bundle is known by its own digest and a model by that of its bytes.

Trusts: the directory of public keys, which only the operator can write.
Promises: ``verify_bundle`` returns a ``SignedStatement`` signed by one of the trusted keys, or raises.
Not here: whether a model's bytes are the signed ones (``core.manifest.verified_model``); revocation (the catalogue).
"""

import os
import re
import stat
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Hashable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
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
from msgspec import Meta

from appliance.core import strict_json
from appliance.core.codec import canonical_json
from appliance.core.manifest import (
    PAYLOAD_TYPE,
    SignatureRefused,
    SignedStatement,
    decode_statement,
    encode_statement,
    pae,
)
from appliance.core.refusals import Fault
from appliance.core.values import Digest, Signer, Value
from appliance.models.descriptor import observe
from appliance.models.files import file_stamp
from appliance.sandbox.openat2 import open_beneath

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES: Final = 4 * 1024 * 1024
MAX_KEY_FILE_BYTES: Final = 16 * 1024

_SIGNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


# --- keys ------------------------------------------------------------------------------------------------------------


class TrustedKeys:
    """The public keys whose signatures count, each under the operator's name for its owner. None: nobody is trusted."""

    def __init__(self, unverified_pems: Mapping[str, bytes]) -> None:
        """Signer name -> PEM of a public key. Raises ``Fault`` for anything else, and for one key under two names."""
        self._by_hint: dict[str, tuple[Signer, ec.EllipticCurvePublicKey]] = {}
        for name, pem in unverified_pems.items():
            key = _public_key(name, pem)
            hint = key_hint(key)
            if hint in self._by_hint:
                raise Fault(f"the keys of {self._by_hint[hint][0].name} and {name} are the same key")
            self._by_hint[hint] = (Signer(name=name, fingerprint=key_fingerprint(key)), key)

    @classmethod
    def load(cls, directory: Path) -> "TrustedKeys":
        """Every ``<signer-name>.pem`` of a directory. Raises ``Fault`` if one is unreadable, or writable by others."""
        try:
            directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _check_operators_own(directory_fd, directory.name)
                names = sorted(name for name in os.listdir(directory_fd) if name.endswith(".pem"))  # noqa: PTH208 - by fd
                return cls({name.removesuffix(".pem"): _read_key_file(directory_fd, name) for name in names})
            finally:
                os.close(directory_fd)
        except OSError as error:
            raise Fault(f"the trusted keys could not be read: {error.strerror}") from error

    @staticmethod
    def stamp(directory: Path) -> Hashable:
        """Changes when a key is added, removed or replaced. Raises ``Fault`` if the directory cannot be read."""
        try:
            directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                names = sorted(os.listdir(directory_fd))  # noqa: PTH208 - by fd
                return file_stamp(directory_fd, "."), tuple((name, file_stamp(directory_fd, name)) for name in names)
            finally:
                os.close(directory_fd)
        except OSError as error:
            raise Fault(f"the trusted keys could not be read: {error.strerror}") from error

    def signers(self) -> tuple[Signer, ...]:
        return tuple(signer for signer, _ in self._by_hint.values())

    def find(self, unverified_hint: str) -> tuple[Signer, ec.EllipticCurvePublicKey]:
        """Raises ``SignatureRefused("signer-unknown")``: a signature by a key that nobody named proves nothing."""
        found = self._by_hint.get(unverified_hint)
        if found is None:
            raise SignatureRefused("signer-unknown", "the bundle names a key that is not trusted")
        return found


def _check_operators_own(fd: int, name: str) -> None:
    status = os.fstat(fd)
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Fault(f"{name} among the trusted keys belongs to, or is writable by, somebody else")


def _read_key_file(directory_fd: int, name: str) -> bytes:
    fd = open_beneath(directory_fd, name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _check_operators_own(fd, name)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Fault(f"{name} among the trusted keys is not a file")
        return os.read(fd, MAX_KEY_FILE_BYTES)
    finally:
        os.close(fd)


def _public_key(name: str, pem: bytes) -> ec.EllipticCurvePublicKey:
    if not _SIGNER_NAME.fullmatch(name):
        raise Fault("a trusted key's name has characters other than letters, digits and ._@-")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Fault(f"the trusted key of {name} is not a PEM public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise Fault(f"the trusted key of {name} is not an ECDSA key on P-256, P-384 or P-521")
    return key


def key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """How a bundle names a key: SHA-256, in hex, of the PEM text of its SubjectPublicKeyInfo, as the OMS tool does."""
    return sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> Digest:
    """How Paddock names a key: SHA-256 of its SubjectPublicKeyInfo in DER."""
    return Digest.of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


# --- verifying -------------------------------------------------------------------------------------------------------


class _PublicKeyId(Value, frozen=True, kw_only=True):
    hint: str | None = None


class _Material(Value, frozen=True, kw_only=True, rename="camel"):
    """One of the first three names the mode. In key mode the last two, which belong to Sigstore, must be empty."""

    public_key: _PublicKeyId | None = None
    x509_certificate_chain: Any = None
    certificate: Any = None
    tlog_entries: Any = None
    timestamp_verification_data: Any = None


class _Signature(Value, frozen=True, kw_only=True):
    """``keyid`` is ignored, as OMS says: it is not signed and selects nothing."""

    sig: Annotated[str, Meta(min_length=1, max_length=1024)]
    keyid: Annotated[str, Meta(max_length=1024)] | None = None


class _Envelope(Value, frozen=True, kw_only=True, rename="camel"):
    payload: Annotated[str, Meta(min_length=1)]
    payload_type: str
    signatures: Annotated[tuple[_Signature, ...], Meta(min_length=1, max_length=1)]


class _Bundle(Value, frozen=True, kw_only=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


def verify_bundle(unverified_bundle: bytes, trusted: TrustedKeys) -> SignedStatement:
    """The bytes of a bundle -> what a trusted signer said. Raises ``SignatureRefused``, and nothing else.

    (0) bounded, strict JSON of the known shape; (1) key mode; (2) the hint names a trusted key; (3) the signature over
    the DSSE encoding of the payload verifies under that key; (4) only then is the payload read, as an OMS v1.0
    statement. The caller owes: hashing the model and ``core.manifest.verified_model``.
    """
    bundle = _parse(unverified_bundle)
    hint = _hint(bundle.verification_material)
    signer, key = trusted.find(hint)
    envelope = bundle.dsse_envelope
    if envelope.payload_type != PAYLOAD_TYPE:
        raise SignatureRefused("payload-type", "the payload is not an in-toto statement")
    payload = _base64(envelope.payload)
    verify_ecdsa(key, _base64(envelope.signatures[0].sig), pae(envelope.payload_type, payload))
    return SignedStatement(
        statement=decode_statement(payload), signer=signer, bundle_digest=Digest.of(unverified_bundle)
    )


def _parse(unverified_bundle: bytes) -> _Bundle:
    if not unverified_bundle:
        raise SignatureRefused("unsigned", "there is no signature bundle")
    if len(unverified_bundle) > MAX_BUNDLE_BYTES:
        raise SignatureRefused("bundle-too-large", f"more than {MAX_BUNDLE_BYTES} bytes")
    try:
        bundle = msgspec.convert(strict_json.check(unverified_bundle, max_depth=16), _Bundle)
    except (strict_json.JsonInvalid, msgspec.ValidationError) as error:
        raise SignatureRefused("bundle-malformed", str(error)) from None
    if bundle.media_type != MEDIA_TYPE:
        raise SignatureRefused("bundle-malformed", "mediaType is not that of a Sigstore bundle v0.3")
    return bundle


def _hint(material: _Material) -> str:
    """Key mode and nothing beside it: material that is present and not looked at would be a second opinion unread."""
    if material.x509_certificate_chain is not None:
        raise SignatureRefused("mode-unsupported", "certificate mode is not supported; sign with a key")
    if material.certificate is not None:
        raise SignatureRefused("mode-unsupported", "Sigstore mode is not supported; sign with a key")
    if material.public_key is None:
        raise SignatureRefused("bundle-malformed", "there is no verification material")
    if material.tlog_entries not in (None, []) or material.timestamp_verification_data not in (None, {}):
        raise SignatureRefused("bundle-malformed", "key mode has no log entries and no timestamps")
    if not material.public_key.hint:
        raise SignatureRefused("key-hint-missing", "the bundle does not say which key signed it")
    return material.public_key.hint


def _base64(text: str) -> bytes:
    """Standard alphabet, padded, canonical: one text for one value."""
    try:
        raw = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise SignatureRefused("bundle-malformed", "payload or signature is not base64") from None
    if b64encode(raw).decode() != text:
        raise SignatureRefused("bundle-malformed", "payload or signature is not canonical base64")
    return raw


def verify_ecdsa(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> None:
    """A DER signature over ``data`` with the hash that belongs to the key's curve. Raises ``SignatureRefused``."""
    try:
        strict = encode_dss_signature(*decode_dss_signature(signature)) == signature
        if not strict:
            raise SignatureRefused("signature-invalid", "the signature is not in DER")
        key.verify(signature, data, ec.ECDSA(_HASHES[key.curve.name]))
    except (InvalidSignature, ValueError):
        raise SignatureRefused("signature-invalid", "the signature does not verify under the key it names") from None


# --- signing ---------------------------------------------------------------------------------------------------------


def sign_model(model_fd: int, *, path: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Hashes a model and returns its bundle, in the specification's form. ``path`` is its file name in the statement.

    Raises ``OSError`` if it cannot be read and ``SignatureRefused`` for a path that a verifier would not accept.
    """
    payload = encode_statement(path, observe(model_fd).digest)
    signature = key.sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(_HASHES[key.curve.name]))
    return canonical_json(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key_hint(key.public_key())}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


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
