"""Which keys may sign the catalogue now: the operator's, or those that they, step by step, handed over to.

::

    trust/catalogue-keys/<who>.pem    the operator's keys: where every succession begins
    trust/catalogue-roots/<n>.json    the n-th handing over, a DSSE envelope of a ``core.catalogue_root.Root``

Somebody with one machine changes the first and needs no second. Somebody with a hundred distributes the second together
with the catalogue, and all of it: the whole succession is verified each time. How far it has come is remembered, for
the operator's keys that it came from, as a version and a digest: a succession that ends earlier, or has another root
there, is refused, so that no earlier key counts again. To change the operator's keys is to begin anew, and takes
removing the roots that the new keys have not signed.

Trusts: the operator's trust directory; what the caller remembers, to refuse and for nothing else.
Promises: each step was signed by as many keys as were required before it, and by as many as it requires itself. No key
    comes into force by being remembered.
Not here: remembering (``models.catalogue``).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.catalogue_root import ROOT_TYPE, Root, SeenRoot, decode_root, encode_root, root_refused
from appliance.core.manifest import SignatureRefused
from appliance.core.refusals import Fault
from appliance.core.values import Digest, Signer
from appliance.models.certificates import DenyList
from appliance.models.envelope import parse_envelope, sign, verified_signers
from appliance.models.keys import TrustedKeys, load_public_key, public_pem, read_pems, read_trust_file

KEYS_DIRECTORY: Final = "catalogue-keys"
ROOTS_DIRECTORY: Final = "catalogue-roots"

_ROOT_FILE = re.compile(r"([1-9][0-9]{0,8})\.json")


@dataclass(frozen=True)
class KeysInForce:
    """``root`` is None, and the version 0, while the operator's own keys count. ``anchor`` names these."""

    anchor: Digest
    keys: TrustedKeys
    required: int
    root: Root | None = None

    @property
    def version(self) -> int:
        return 0 if self.root is None else self.root.version

    def check_not_expired(self, now_seconds: int) -> None:
        """Raises ``Refused``. An expired root may still hand over: it is the only one that can."""
        if self.root is not None and now_seconds >= self.root.expires_at_seconds:
            raise root_refused("root-expired", f"root {self.version} has expired, and none follows it")


def keys_in_force(trust: Path, remembered: Mapping[str, SeenRoot], denied: DenyList, *, required: int) -> KeysInForce:
    """(0) The operator's keys; (1) every root that follows from them; (2) no fewer, and no others, than were seen.

    ``remembered``: the last root by the anchor. ``required`` is the operator's own minimum, which holds for every step.
    Raises ``Refused(MODEL_NOT_VERIFIED)`` or ``Fault``.
    """
    operators = TrustedKeys(read_pems(trust / KEYS_DIRECTORY))
    held = KeysInForce(_anchor(operators), operators, required)
    seen = remembered.get(held.anchor.hex)
    while (unverified := _read_root(trust, held.version + 1)) is not None:
        root = _verified_root(unverified, held, denied)
        if seen is not None and seen.version == root.version and seen != SeenRoot.of(root):
            raise root_refused("root-equivocation", f"root {root.version} was seen with other content")
        held = _handed_over(held, root, required)
    _check_reached(trust, held.version)
    if seen is not None and held.version < seen.version:
        raise root_refused("root-rollback", f"root {seen.version} was seen, and there is none after {held.version}")
    return held


def _anchor(operators: TrustedKeys) -> Digest:
    return Digest.of("\n".join(sorted(map(str, _fingerprints(operators)))).encode())


def _fingerprints(keys: TrustedKeys) -> frozenset[Digest]:
    return frozenset(signer.fingerprint for signer in keys.signers())


def _handed_over(held: KeysInForce, root: Root, required: int) -> KeysInForce:
    return KeysInForce(held.anchor, _keys_of(root), max(required, root.required), root)


def _keys_of(root: Root) -> TrustedKeys:
    """A key stands there as it would be written anew, with nothing beside it: a root is published, and a PEM file may
    hold a private key as well."""
    try:
        for key in root.keys:
            if public_pem(load_public_key(key.name, key.pem.encode())) != key.pem.encode():
                raise root_refused("root-malformed", f"the key of {key.name} is not the plain PEM of a public key")
        return TrustedKeys({key.name: key.pem.encode() for key in root.keys})
    except Fault as fault:
        raise root_refused("root-malformed", fault.detail) from None


def _verified_root(unverified: bytes, held: KeysInForce, denied: DenyList) -> Root:
    """The keys by which a root is verified are partly its own: it is read before, and means nothing until after."""
    envelope = parse_envelope(unverified, ROOT_TYPE)
    unverified_root = decode_root(envelope.unverified_payload())
    if unverified_root.version != held.version + 1:
        raise root_refused("root-version", f"root {unverified_root.version} does not follow root {held.version}")
    own = _keys_of(unverified_root)

    def find(hint: str) -> tuple[Signer, ec.EllipticCurvePublicKey]:
        try:
            return held.keys.find(hint)
        except SignatureRefused:
            return own.find(hint)

    signers = verified_signers(envelope, find, denied)
    for whose, keys, required in (("the last", held.keys, held.required), ("its own", own, unverified_root.required)):
        count = len(signers & _fingerprints(keys))
        if count < max(1, required):
            raise root_refused("signers-missing", f"{count} of {required} required keys of {whose} signed the root")
    return unverified_root


def _read_root(trust: Path, version: int) -> bytes | None:
    directory = trust / ROOTS_DIRECTORY
    return read_trust_file(directory, f"{version}.json") if directory.exists() else None


def _check_reached(trust: Path, version: int) -> None:
    """A root that lies there and cannot be reached would be overlooked."""
    try:
        names = os.listdir(trust / ROOTS_DIRECTORY)  # noqa: PTH208 - names alone
    except FileNotFoundError:
        return
    except OSError as error:
        raise Fault(f"{ROOTS_DIRECTORY} among the trusted keys could not be read: {error.strerror}") from error
    found = [int(match[1]) for match in map(_ROOT_FILE.fullmatch, names) if match]
    if found and max(found) > version:
        raise root_refused("root-missing", f"there is a root {max(found)}, and none with the number {version + 1}")


def sign_root(root: Root, keys: list[ec.EllipticCurvePrivateKey]) -> bytes:
    """A root -> its envelope, signed by each key. Raises ``Refused`` for one that no appliance would accept."""
    payload = encode_root(root)
    _keys_of(decode_root(payload))
    return sign(payload, ROOT_TYPE, keys)
