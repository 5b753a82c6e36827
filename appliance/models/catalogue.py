"""The catalogue on disk: its signatures, and the highest version seen, kept so that neither crash nor copy undoes it.

::

    trust/catalogue.json            a DSSE envelope, signed by as many of the keys in force as are required
    trust/catalogue-keys/<who>.pem  the operator's keys, from which those in force follow (``models.roots``); while this
                                    directory exists, so must the catalogue
    models/catalogue/seen.json      what was accepted last (``core.catalogue.Seen``): versions and digests, by which a
                                    catalogue or a root is refused, and never accepted

Trusts: the operator's trust directory; for rollback alone, whoever can write the store's root (the warden).
Promises: ``current`` returns a catalogue that is signed, not expired and not older than any it returned before, with
    that fact durable first; or None where no catalogue keys are configured and none were ever used.
Not here: what a catalogue says (``core.catalogue``); unloading what it no longer permits (the warden).
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.catalogue import (
    CATALOGUE_TYPE,
    NOTHING_SEEN,
    Catalogue,
    Seen,
    accept,
    catalogue_refused,
    decode_catalogue,
)
from appliance.core.catalogue_root import ROOT_TYPE, Root, SeenRoot, decode_root
from appliance.core.codec import canonical_json, json_decoder
from appliance.core.refusals import Fault, Refused
from appliance.models.certificates import DenyList
from appliance.models.envelope import cosign, parse_envelope, sign, verified_signers
from appliance.models.files import Incoming, check_directory, open_directory, read_file, write_all
from appliance.models.keys import TrustedKeys, read_trust_file
from appliance.models.roots import KEYS_DIRECTORY, keys_in_force
from appliance.models.trust import load_deny_list, load_policy_file

CATALOGUE_FILE: Final = "catalogue.json"
IGNORED: Final = "trust/catalogue.json is ignored, since there is no trust/catalogue-keys to say who may sign it"
_SEEN_FILE: Final = "seen.json"
_MAX_SEEN_BYTES: Final = 4 * 1024 * 1024

_SEEN_DECODER: Final[msgspec.json.Decoder[Seen]] = json_decoder(Seen)


def verify_catalogue(unverified_envelope: bytes, keys: TrustedKeys, denied: DenyList, *, required: int) -> bytes:
    """The bytes of an envelope -> its payload, signed by ``required`` distinct trusted keys, and by nobody else.

    Raises ``Refused(MODEL_NOT_VERIFIED)``.
    """
    envelope = parse_envelope(unverified_envelope, CATALOGUE_TYPE)
    signers = verified_signers(envelope, keys.find, denied)
    if len(signers) < max(1, required):
        raise catalogue_refused("signers-missing", f"{len(signers)} of {required} required keys signed the catalogue")
    return envelope.unverified_payload()


def sign_catalogue(payload: bytes, keys: Sequence[ec.EllipticCurvePrivateKey]) -> bytes:
    """A payload -> its envelope, signed by each key. Raises ``Refused`` for one that no appliance would accept."""
    decode_catalogue(payload)
    return sign(payload, CATALOGUE_TYPE, keys)


def cosign_catalogue(unverified_envelope: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The same catalogue, or root, with one more signature. Whoever signs has looked at what it says."""
    envelope = parse_envelope(unverified_envelope, CATALOGUE_TYPE, ROOT_TYPE)
    decode = decode_root if envelope.payload_type == ROOT_TYPE else decode_catalogue
    decode(envelope.unverified_payload())
    return cosign(envelope, key)


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
        return self.in_force(now_seconds=now_seconds)[0]

    def in_force(self, *, now_seconds: int) -> tuple[Catalogue | None, Root | None]:
        """As ``current``, and the root whose keys signed it; None where these are the operator's own."""
        with self._locked() as directory:
            seen = _read_seen(directory)
            if not (self._trust / KEYS_DIRECTORY).exists():
                if seen != NOTHING_SEEN:
                    raise catalogue_refused("catalogue-missing", "there was a catalogue, and its keys are gone")
                return None, None
            denied = load_deny_list(self._trust)
            required = load_policy_file(self._trust).required_catalogue_signers
            keys = keys_in_force(self._trust, seen.roots, denied, required=required)
            if keys.root is not None and SeenRoot.of(keys.root) != seen.roots.get(keys.anchor.hex):
                seen = seen.with_root(keys.anchor, SeenRoot.of(keys.root))
                _write_seen(directory, seen)  # whatever becomes of the catalogue, no earlier root counts again
            keys.check_not_expired(now_seconds)
            payload = verify_catalogue(self._unverified(), keys.keys, denied, required=keys.required)
            catalogue, now_seen = accept(payload, seen, now_seconds=now_seconds)
            if now_seen != seen:
                _write_seen(directory, now_seen)
            return catalogue, keys.root

    def is_ignored(self) -> bool:
        """Whether a catalogue lies there that, for want of keys, restricts nothing."""
        return (self._trust / CATALOGUE_FILE).exists() and not (self._trust / KEYS_DIRECTORY).exists()

    def _unverified(self) -> bytes:
        unverified = read_trust_file(self._trust, CATALOGUE_FILE)
        if unverified is None:
            raise catalogue_refused("catalogue-missing", "there are catalogue keys and no catalogue")
        return unverified

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
    encoded = canonical_json(seen)
    if len(encoded) > _MAX_SEEN_BYTES:  # what cannot be read again is not written
        raise Fault(f"catalogue/seen.json would have more than {_MAX_SEEN_BYTES} bytes")
    with Incoming(directory, named=True) as incoming:
        write_all(incoming.fd, encoded)
        incoming.make_durable()
        incoming.rename(_SEEN_FILE)
    os.fsync(directory)
