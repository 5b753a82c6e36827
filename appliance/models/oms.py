"""OpenSSF Model Signing v1.0 bundles: verifying and making them, with keys and roots that the operator names.

A bundle is a Sigstore bundle v0.3 whose DSSE envelope holds the statement that ``core.manifest`` judges. *Key* mode and
*certificate* mode are accepted: ECDSA on P-256, P-384 or P-521 with SHA-256, SHA-384 or SHA-512. Sigstore mode is
refused by name. Exactly one signature, as the Sigstore bundle format says; several signers sign several bundles.

ECDSA signatures come in pairs, (r, s) and (r, n - s). Both are accepted: OMS does not ask for the lower s, and half of
the signatures of every common signer have the higher one. The twin says nothing else, for the same key, about the same
bytes; a bundle is known by its own digest and a model by that of its bytes.

Trusts: the operator's trust directory (``models.trust``).
Promises: ``verify_bundle`` returns a ``SignedStatement`` signed by somebody trusted now, or raises.
Not here: whether a model's bytes are the signed ones, and whether enough have signed (``core.manifest``).
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Meta

from appliance.core import strict_json
from appliance.core.codec import canonical_json
from appliance.core.manifest import (
    PAYLOAD_TYPE,
    WHOLE,
    Form,
    SignatureRefused,
    SignedStatement,
    decode_statement,
    encode_statement,
    pae,
)
from appliance.core.refusals import Fault
from appliance.core.values import Digest, Signer, Value
from appliance.models.certificates import MAX_CHAIN
from appliance.models.descriptor import observe
from appliance.models.keys import (
    TrustedKeys,
    generate_signing_key,
    key_fingerprint,
    key_hint,
    load_signing_key,
    private_pem,
    public_pem,
    sign_ecdsa,
    verify_ecdsa,
)
from appliance.models.trust import Trust, trust_of

__all__ = [
    "MAX_BUNDLE_BYTES",
    "MEDIA_TYPE",
    "SHARD_BYTES",
    "TrustedKeys",
    "generate_signing_key",
    "key_fingerprint",
    "key_hint",
    "load_signing_key",
    "private_pem",
    "public_pem",
    "sign_model",
    "verify_bundle",
    "verify_ecdsa",
]

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES: Final = 4 * 1024 * 1024
SHARD_BYTES: Final = 1_000_000_000
"""The specification's default size."""


# --- verifying -------------------------------------------------------------------------------------------------------


class _PublicKeyId(Value, frozen=True, kw_only=True):
    hint: str | None = None


class _RawCertificate(Value, frozen=True, kw_only=True, rename="camel"):
    raw_bytes: Annotated[str, Meta(min_length=1, max_length=64 * 1024)]


class _Chain(Value, frozen=True, kw_only=True):
    """Leaf first."""

    certificates: Annotated[tuple[_RawCertificate, ...], Meta(min_length=1, max_length=MAX_CHAIN)]


class _Material(Value, frozen=True, kw_only=True, rename="camel"):
    """One of the first three names the mode. The last two belong to Sigstore mode and must be empty."""

    public_key: _PublicKeyId | None = None
    x509_certificate_chain: _Chain | None = None
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


def verify_bundle(unverified_bundle: bytes, trusted: TrustedKeys | Trust) -> SignedStatement:
    """The bytes of a bundle -> what a trusted signer said. Raises ``SignatureRefused``, and nothing else.

    (0) bounded, strict JSON of the known shape; (1) key or certificate mode; (2) the hint names a trusted key, or the
    chain leads to a trusted root, now; (3) neither is on the deny-list; (4) the signature over the DSSE encoding of the
    payload verifies under that key; (5) only then is the payload read, as an OMS v1.0 statement. The caller owes:
    hashing the model and ``core.manifest.verified_model``, which counts the signers.
    """
    bundle = _parse(unverified_bundle)
    signer, key = _signer(bundle.verification_material, trust_of(trusted))
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


def _signer(material: _Material, trust: Trust) -> tuple[Signer, ec.EllipticCurvePublicKey]:
    """One mode and nothing beside it: material that is present and not looked at would be a second opinion unread."""
    if material.certificate is not None:
        raise SignatureRefused("mode-unsupported", "Sigstore mode is not supported; sign with a key or a certificate")
    if (material.public_key is None) == (material.x509_certificate_chain is None):
        raise SignatureRefused("bundle-malformed", "there must be a key or a certificate chain, and not both")
    if material.tlog_entries not in (None, []) or material.timestamp_verification_data not in (None, {}):
        raise SignatureRefused("bundle-malformed", "log entries and timestamps belong to Sigstore mode")
    if material.x509_certificate_chain is not None:
        chain = tuple(_base64(one.raw_bytes) for one in material.x509_certificate_chain.certificates)
        return trust.roots.judge(chain, trust.denied, now_seconds=trust.now_seconds)
    if material.public_key is None or not material.public_key.hint:
        raise SignatureRefused("key-hint-missing", "the bundle does not say which key signed it")
    signer, key = trust.keys.find(material.public_key.hint)
    trust.denied.check_key(signer)
    return signer, key


def _base64(text: str) -> bytes:
    """Standard alphabet, padded, canonical: one text for one value."""
    try:
        raw = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise SignatureRefused("bundle-malformed", "payload, certificate or signature is not base64") from None
    if b64encode(raw).decode() != text:
        raise SignatureRefused("bundle-malformed", "payload, certificate or signature is not canonical base64")
    return raw


# --- signing ---------------------------------------------------------------------------------------------------------


def sign_model(
    model_fd: int,
    *,
    path: str,
    key: ec.EllipticCurvePrivateKey,
    chain: Sequence[x509.Certificate] = (),
    shard_bytes: int | None = None,
) -> bytes:
    """Hashes a model and returns its bundle, in the specification's form. ``path`` is its file name in the statement.

    With a certificate ``chain``, leaf first, the bundle is in certificate mode. ``shard_bytes`` signs shards of that
    size instead of the whole file; the reference implementation (1.1.1) does not verify those, for it names their
    algorithm otherwise than the specification. Raises ``OSError`` if the model cannot be read, ``SignatureRefused`` for
    a path that a verifier would not accept and ``Fault`` for a leaf of another key.
    """
    form = WHOLE if shard_bytes is None else Form("sha256", shard_bytes)
    payload = encode_statement(path, observe(model_fd, (form,)), form)
    signature = sign_ecdsa(key, pae(PAYLOAD_TYPE, payload))
    return canonical_json(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {**_material(key.public_key(), chain), "tlogEntries": []},
            "dsseEnvelope": {
                "payload": b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def _material(key: ec.EllipticCurvePublicKey, chain: Sequence[x509.Certificate]) -> dict[str, Any]:
    if not chain:
        return {"publicKey": {"hint": key_hint(key)}}
    if chain[0].public_key() != key:
        raise Fault("the first certificate is not that of the signing key")
    ders = (certificate.public_bytes(Encoding.DER) for certificate in chain)
    return {"x509CertificateChain": {"certificates": [{"rawBytes": b64encode(der).decode()} for der in ders]}}
