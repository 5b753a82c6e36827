"""The catalogue on disk: its signatures, and the highest version seen, kept so that neither crash nor copy undoes it.

::

    trust/catalogue.json            a DSSE envelope, signed by as many of the keys below as ``policy.toml`` requires
    trust/catalogue-keys/<who>.pem  public keys that may sign it; while this directory exists, so must the catalogue
    models/catalogue/seen.json      what was accepted last (``core.catalogue.Seen``)

Changing the keys is the operator's to do, in the directory, like every other trust.

Trusts: the operator's trust directory; for rollback alone, whoever can write the store's root (the warden).
Promises: ``current`` returns a catalogue that is signed, not expired and not older than any it returned before, with
    that fact durable first; or None where no catalogue keys are configured and none were ever used.
Not here: what a catalogue says (``core.catalogue``); unloading what it no longer permits (the warden).
"""

import fcntl
import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from appliance.core import strict_json
from appliance.core.catalogue import (
    CATALOGUE_TYPE,
    MAX_MODELS,
    NOTHING_SEEN,
    Catalogue,
    Seen,
    accept,
    catalogue_refused,
    decode_catalogue,
)
from appliance.core.codec import canonical_json, json_decoder
from appliance.core.manifest import SignatureRefused, pae
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Value
from appliance.models.certificates import DenyList
from appliance.models.files import Incoming, check_directory, open_directory, read_file, write_all
from appliance.models.keys import TrustedKeys, key_hint, read_pems, read_trust_file, sign_ecdsa, verify_ecdsa
from appliance.models.trust import load_deny_list, load_policy_file

CATALOGUE_FILE: Final = "catalogue.json"
KEYS_DIRECTORY: Final = "catalogue-keys"
MAX_CATALOGUE_BYTES: Final = 1024 * 1024
MAX_SIGNATURES: Final = 16
_SEEN_FILE: Final = "seen.json"
_MAX_SEEN_BYTES: Final = 4 * 1024 * 1024


class _Signature(Value, frozen=True, kw_only=True):
    """``keyid`` is the key's hint, as in OMS key mode: it selects among the operator's keys and proves nothing."""

    keyid: Annotated[str, Meta(min_length=1, max_length=128)]
    sig: Annotated[str, Meta(min_length=1, max_length=1024)]


class _Envelope(Value, frozen=True, kw_only=True, rename="camel"):
    payload: Annotated[str, Meta(min_length=1)]
    payload_type: str
    signatures: Annotated[tuple[_Signature, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]


_SEEN_DECODER: Final[msgspec.json.Decoder[Seen]] = json_decoder(Seen)


def verify_catalogue(unverified_envelope: bytes, keys: TrustedKeys, denied: DenyList, *, required: int) -> bytes:
    """The bytes of an envelope -> its payload, signed by ``required`` distinct trusted keys.

    Every signature must verify, those beyond the required number too: one that does not is never there for a good
    reason. Raises ``Refused(MODEL_NOT_VERIFIED)``.
    """
    envelope = _parse(unverified_envelope)
    payload = _base64(envelope.payload)
    signers = set()
    try:
        for signature in envelope.signatures:
            signer, key = keys.find(signature.keyid)
            denied.check_key(signer)
            verify_ecdsa(key, _base64(signature.sig), pae(envelope.payload_type, payload))
            signers.add(signer.fingerprint)
    except SignatureRefused as error:
        raise catalogue_refused(error.reason, f"the catalogue: {error.detail}") from None
    if len(signers) < max(1, required):
        raise catalogue_refused("signers-missing", f"{len(signers)} of {required} required keys signed the catalogue")
    return payload


def _parse(unverified_envelope: bytes) -> _Envelope:
    if len(unverified_envelope) > MAX_CATALOGUE_BYTES:
        raise catalogue_refused("catalogue-too-large", f"more than {MAX_CATALOGUE_BYTES} bytes")
    try:
        envelope = msgspec.convert(strict_json.check(unverified_envelope, max_depth=4, max_items=MAX_MODELS), _Envelope)
    except (strict_json.JsonInvalid, msgspec.ValidationError) as error:
        raise catalogue_refused("catalogue-malformed", str(error)) from None
    if envelope.payload_type != CATALOGUE_TYPE:
        raise catalogue_refused("payload-type", "the payload is not a catalogue")
    return envelope


def _base64(text: str) -> bytes:
    try:
        raw = b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise catalogue_refused("catalogue-malformed", "payload or signature is not base64") from None
    if b64encode(raw).decode() != text:
        raise catalogue_refused("catalogue-malformed", "payload or signature is not canonical base64")
    return raw


def sign_catalogue(payload: bytes, keys: Sequence[ec.EllipticCurvePrivateKey]) -> bytes:
    """A payload -> its envelope, signed by each key. Raises ``Refused`` for one that no appliance would accept."""
    decode_catalogue(payload)
    return _envelope(payload, [(key_hint(key.public_key()), sign_ecdsa(key, _to_sign(payload))) for key in keys])


def cosign_catalogue(unverified_envelope: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The same envelope with one more signature. Whoever signs has looked at what it says (``catalogue show``)."""
    envelope = _parse(unverified_envelope)
    payload = _base64(envelope.payload)
    decode_catalogue(payload)
    others = [(one.keyid, _base64(one.sig)) for one in envelope.signatures if one.keyid != key_hint(key.public_key())]
    return _envelope(payload, [*others, (key_hint(key.public_key()), sign_ecdsa(key, _to_sign(payload)))])


def _to_sign(payload: bytes) -> bytes:
    return pae(CATALOGUE_TYPE, payload)


def _envelope(payload: bytes, signatures: Sequence[tuple[str, bytes]]) -> bytes:
    return canonical_json(
        {
            "payload": b64encode(payload).decode(),
            "payloadType": CATALOGUE_TYPE,
            "signatures": [{"keyid": hint, "sig": b64encode(sig).decode()} for hint, sig in signatures],
        }
    )


class CatalogueKeeper:
    """The current catalogue of one appliance. Safe to use from several threads and processes."""

    MEMORY: Final = "catalogue"
    """The directory in the store that this writes to, and to nothing else."""

    def __init__(self, trust_directory: Path, store_directory: Path) -> None:
        self._trust = trust_directory
        self._store = store_directory

    def prepare(self) -> None:
        """Makes the directory of its memory, for a process that can make none later. Raises ``Fault``."""
        with self._locked():
            pass

    def current(self, *, now_seconds: int) -> Catalogue | None:
        """Reads, judges and remembers. Raises ``Refused(MODEL_NOT_VERIFIED)``: no model may be loaded; or ``Fault``."""
        with self._locked() as directory:
            seen = _read_seen(directory)
            keys_directory = self._trust / KEYS_DIRECTORY
            if not keys_directory.exists():
                if seen != NOTHING_SEEN:
                    raise catalogue_refused("catalogue-missing", "there was a catalogue, and its keys are gone")
                return None
            payload = self._verified_payload(TrustedKeys(read_pems(keys_directory)))
            catalogue, now_seen = accept(payload, seen, now_seconds=now_seconds)
            if now_seen != seen:
                _write_seen(directory, now_seen)
            return catalogue

    def _verified_payload(self, keys: TrustedKeys) -> bytes:
        unverified = read_trust_file(self._trust, CATALOGUE_FILE)
        if unverified is None:
            raise catalogue_refused("catalogue-missing", "there are catalogue keys and no catalogue")
        required = load_policy_file(self._trust).required_catalogue_signers
        return verify_catalogue(unverified, keys, load_deny_list(self._trust), required=required)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """One judge at a time, so that two do not write what they remember in the wrong order."""
        opened: list[int] = []
        try:
            opened.append(os.open(self._store, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            check_directory(opened[0])
            opened.append(open_directory(opened[0], self.MEMORY))
            fcntl.flock(opened[1], fcntl.LOCK_EX)
            yield opened[1]
        except OSError as error:
            raise Fault(f"the catalogue's state: {error.strerror}") from error
        finally:
            for fd in opened:
                os.close(fd)


def _read_seen(directory: int) -> Seen:
    """Absent means that none was ever accepted. Damaged is a ``Fault``: it must not mean the same."""
    try:
        return _SEEN_DECODER.decode(read_file(directory, _SEEN_FILE, _MAX_SEEN_BYTES))
    except FileNotFoundError:
        return NOTHING_SEEN
    except (msgspec.DecodeError, Refused) as error:
        raise Fault("catalogue/seen.json is damaged") from error


def _write_seen(directory: int, seen: Seen) -> None:
    with Incoming(directory, named=True) as incoming:
        write_all(incoming.fd, canonical_json(seen))
        incoming.make_durable()
        incoming.rename(_SEEN_FILE)
    os.fsync(directory)
