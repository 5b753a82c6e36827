"""The DSSE envelope of the operator's own documents: one payload, one or more signatures, each of which must verify.

Trusts: nothing of the bytes.
Promises: ``verified_signers`` names keys that the caller's ``find`` gave and the deny-list spares, each of which signed
    the payload under its type.
Not here: whose signatures count, and how many are needed (``models.catalogue``, ``models.roots``); model signatures,
    whose bundles have another form (``models.oms``).
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from appliance.core import strict_json
from appliance.core.catalogue import MAX_MODELS, catalogue_refused
from appliance.core.codec import canonical_json
from appliance.core.manifest import SignatureRefused, pae
from appliance.core.values import Digest, Signer, Value
from appliance.models.certificates import DenyList
from appliance.models.keys import key_hint, sign_ecdsa, verify_ecdsa

MAX_ENVELOPE_BYTES: Final = 1024 * 1024
MAX_SIGNATURES: Final = 16

Find = Callable[[str], tuple[Signer, ec.EllipticCurvePublicKey]]
"""A key by its hint. Raises ``SignatureRefused`` for one that nobody named."""


class Signature(Value, frozen=True, kw_only=True):
    """``keyid`` is the key's hint, as in OMS key mode: it selects among the operator's keys and proves nothing."""

    keyid: Annotated[str, Meta(min_length=1, max_length=128)]
    sig: Annotated[str, Meta(min_length=1, max_length=1024)]


class Envelope(Value, frozen=True, kw_only=True, rename="camel"):
    payload: Annotated[str, Meta(min_length=1)]
    payload_type: str
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]

    def unverified_payload(self) -> bytes:
        return _base64(self.payload)


def parse_envelope(unverified: bytes, *payload_types: str) -> Envelope:
    """One of these types. Raises ``Refused(MODEL_NOT_VERIFIED)``."""
    if len(unverified) > MAX_ENVELOPE_BYTES:
        raise catalogue_refused("catalogue-too-large", f"more than {MAX_ENVELOPE_BYTES} bytes")
    try:
        envelope = msgspec.convert(strict_json.check(unverified, max_depth=4, max_items=MAX_MODELS), Envelope)
    except (strict_json.JsonInvalid, msgspec.ValidationError) as error:
        raise catalogue_refused("catalogue-malformed", str(error)) from None
    if envelope.payload_type not in payload_types:
        raise catalogue_refused("payload-type", "the payload is another kind of document")
    return envelope


def verified_signers(envelope: Envelope, find: Find, denied: DenyList) -> frozenset[Digest]:
    """The fingerprints of all who signed.

    Every signature must verify, those beyond the required number too: one that does not is never there for a good
    reason. Raises ``Refused(MODEL_NOT_VERIFIED)``.
    """
    signed = pae(envelope.payload_type, envelope.unverified_payload())
    signers = set()
    try:
        for signature in envelope.signatures:
            signer, key = find(signature.keyid)
            denied.check_key(signer)
            verify_ecdsa(key, _base64(signature.sig), signed)
            signers.add(signer.fingerprint)
    except SignatureRefused as error:
        raise catalogue_refused(error.reason, f"the catalogue: {error.detail}") from None
    return frozenset(signers)


def _base64(text: str) -> bytes:
    try:
        raw = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise catalogue_refused("catalogue-malformed", "payload or signature is not base64") from None
    if b64encode(raw).decode() != text:
        raise catalogue_refused("catalogue-malformed", "payload or signature is not canonical base64")
    return raw


def sign(payload: bytes, payload_type: str, keys: Sequence[ec.EllipticCurvePrivateKey]) -> bytes:
    """A payload -> its envelope, signed by each key."""
    return _encode(payload, payload_type, [_signature(payload, payload_type, key) for key in keys])


def cosign(envelope: Envelope, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The same envelope with one more signature, or a fresh one of a key that had signed."""
    payload = envelope.unverified_payload()
    others = [one for one in envelope.signatures if one.keyid != key_hint(key.public_key())]
    return _encode(payload, envelope.payload_type, [*others, _signature(payload, envelope.payload_type, key)])


def _signature(payload: bytes, payload_type: str, key: ec.EllipticCurvePrivateKey) -> Signature:
    made = sign_ecdsa(key, pae(payload_type, payload))
    return Signature(keyid=key_hint(key.public_key()), sig=b64encode(made).decode())


def _encode(payload: bytes, payload_type: str, signatures: Sequence[Signature]) -> bytes:
    return canonical_json(
        Envelope(payload=b64encode(payload).decode(), payload_type=payload_type, signatures=tuple(signatures))
    )
