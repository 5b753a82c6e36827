"""No catalogue counts unless enough trusted keys signed it, and none that is older than one that counted before."""

import json
import os
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.catalogue import CATALOGUE_TYPE, Catalogue
from appliance.core.manifest import PAYLOAD_TYPE, pae
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.models.catalogue import CatalogueKeeper, cosign_catalogue, sign_catalogue, verify_catalogue
from appliance.models.certificates import DenyList
from appliance.models.envelope import MAX_SIGNATURES
from appliance.models.keys import TrustedKeys, key_fingerprint, key_hint, public_pem
from tests.support.refusals import code_of
from tests.support.signed_models import KEY, OTHER_KEY, spoiled

NOW = 1_800_000_000
STRANGER = ec.generate_private_key(ec.SECP256R1())
KEYS = TrustedKeys({"first": public_pem(KEY.public_key()), "second": public_pem(OTHER_KEY.public_key())})


def payload(version: int = 1, *, expires: int = NOW + 100, **entry: Any) -> bytes:
    listed = {
        "name": "demo",
        "version": 1,
        "digest": str(Digest.of(b"demo")),
        "signer": "acme",
        "minimum_seal": "ro-store",
        "expires_at_seconds": NOW + 100,
    } | entry
    return json.dumps({"version": version, "expires_at_seconds": expires, "models": [listed]}).encode()


ENVELOPE = sign_catalogue(payload(), [KEY])
BOTH = sign_catalogue(payload(), [KEY, OTHER_KEY])


def signed_as(kind: str) -> bytes:
    """The same payload, rightly signed as another kind of document, and called a catalogue."""
    signature = KEY.sign(pae(kind, payload()), ec.ECDSA(hashes.SHA256()))
    return spoiled(ENVELOPE, lambda e: e["signatures"][0].update(sig=b64encode(signature).decode()))


def signature(change: Callable[[dict[str, Any]], object], envelope: bytes = ENVELOPE) -> bytes:
    return spoiled(envelope, lambda e: change(e["signatures"][0]))


ENVELOPES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 1, "catalogue-malformed"),
    ("not JSON", b"{", 1, "catalogue-malformed"),
    ("an array", b"[]", 1, "catalogue-malformed"),
    ("deep nesting", b"[" * 100_000, 1, "catalogue-malformed"),
    ("too large", ENVELOPE + b" " * 2**20, 1, "catalogue-too-large"),
    ("duplicate key", ENVELOPE.replace(b'"payloadType"', b'"payload":"","payloadType"', 1), 1, "catalogue-malformed"),
    ("unknown key", spoiled(ENVELOPE, lambda e: e.update(other=1)), 1, "catalogue-malformed"),
    ("no signatures", spoiled(ENVELOPE, lambda e: e.update(signatures=[])), 1, "catalogue-malformed"),
    ("null signatures", spoiled(ENVELOPE, lambda e: e.update(signatures=None)), 1, "catalogue-malformed"),
    ("17 signatures", spoiled(ENVELOPE, lambda e: e.update(signatures=e["signatures"] * 17)), 1,
     "catalogue-malformed"),
    ("unknown signature key", signature(lambda s: s.update(cert="x")), 1, "catalogue-malformed"),
    ("no key id", signature(lambda s: s.pop("keyid")), 1, "catalogue-malformed"),
    ("empty key id", signature(lambda s: s.update(keyid="")), 1, "catalogue-malformed"),
    ("key id of another key", signature(lambda s: s.update(keyid=key_hint(OTHER_KEY.public_key()))), 1,
     "signature-invalid"),
    ("key that is not trusted", sign_catalogue(payload(), [STRANGER]), 1, "signer-unknown"),
    ("one good signature and a stranger's", sign_catalogue(payload(), [KEY, STRANGER]), 1, "signer-unknown"),
    ("one good signature and a bad one", signature(lambda s: s.update(sig="AAAA"), BOTH), 1, "signature-invalid"),
    ("swapped signatures", spoiled(BOTH, lambda e: e["signatures"][0].update(sig=e["signatures"][1]["sig"])), 1,
     "signature-invalid"),
    ("no base64", signature(lambda s: s.update(sig="!")), 1, "catalogue-malformed"),
    ("base64 with spare bits", signature(lambda s: s.update(sig="AB==")), 1, "catalogue-malformed"),
    ("swapped payload", spoiled(ENVELOPE, lambda e: e.update(payload=b64encode(payload(2)).decode())), 1,
     "signature-invalid"),
    ("another payload type", spoiled(ENVELOPE, lambda e: e.update(payloadType=PAYLOAD_TYPE)), 1, "payload-type"),
    ("signed as a statement", signed_as(PAYLOAD_TYPE), 1, "signature-invalid"),
    ("signed without its type", signed_as(""), 1, "signature-invalid"),
    ("one signature of two", ENVELOPE, 2, "signers-missing"),
    ("one signature twice", spoiled(ENVELOPE, lambda e: e["signatures"].append(e["signatures"][0])), 2,
     "signers-missing"),
    ("two of three", BOTH, 3, "signers-missing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("envelope", "required", "code"), [row[1:] for row in ENVELOPES], ids=[row[0] for row in ENVELOPES]
)
def test_bad_envelope_is_refused(envelope: bytes, required: int, code: str) -> None:
    assert code_of(lambda: verify_catalogue(envelope, KEYS, DenyList(), required=required)) == code


def test_enough_signatures_are_accepted() -> None:
    assert verify_catalogue(ENVELOPE, KEYS, DenyList(), required=1) == payload()
    assert verify_catalogue(BOTH, KEYS, DenyList(), required=2) == payload()
    assert verify_catalogue(BOTH, KEYS, DenyList(), required=1) == payload()


def test_second_signature_is_added() -> None:
    both = cosign_catalogue(ENVELOPE, OTHER_KEY)
    assert verify_catalogue(both, KEYS, DenyList(), required=2) == payload()
    assert len(json.loads(cosign_catalogue(both, OTHER_KEY))["signatures"]) == 2


def test_revoked_key_signs_no_catalogue() -> None:
    denied = DenyList(str(key_fingerprint(KEY.public_key())))
    assert code_of(lambda: verify_catalogue(BOTH, KEYS, denied, required=1)) == "signer-revoked"


def test_catalogue_that_nobody_would_accept_is_not_signed() -> None:
    assert code_of(lambda: sign_catalogue(b"{}", [KEY])) == "catalogue-malformed"


def test_no_changed_byte_changes_what_is_said() -> None:
    for position in range(len(BOTH)):
        for flip in (0x01, 0x20, 0x80):
            mutant = bytearray(BOTH)
            mutant[position] ^= flip
            try:
                said = verify_catalogue(bytes(mutant), KEYS, DenyList(), required=2)
            except Refused:
                continue
            assert said == payload()


# --- the keeper -------------------------------------------------------------------------------------------------------


class Place:
    def __init__(self, folder: Path) -> None:
        self.trust, self.store = folder / "trust", folder / "models"
        self.keys = self.trust / "catalogue-keys"
        self.seen = self.store / "catalogue" / "seen.json"
        for directory in (self.trust, self.keys, self.store):
            directory.mkdir(mode=0o700)
        (self.keys / "first.pem").write_bytes(public_pem(KEY.public_key()))
        (self.keys / "second.pem").write_bytes(public_pem(OTHER_KEY.public_key()))

    def publish(self, envelope: bytes) -> None:
        (self.trust / "catalogue.json").write_bytes(envelope)

    def current(self, now: int = NOW) -> Catalogue | None:
        return CatalogueKeeper(self.trust, self.store).current(now_seconds=now)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_current_catalogue_is_returned_and_remembered(place: Place) -> None:
    place.publish(ENVELOPE)
    found = place.current()
    assert found is not None
    assert found.version == 1
    assert json.loads(place.seen.read_bytes())["payload_digest"] == str(Digest.of(payload()))
    assert place.current() == found


def test_older_catalogue_is_refused_after_a_restart(place: Place) -> None:
    place.publish(sign_catalogue(payload(2), [KEY]))
    place.current()
    place.publish(ENVELOPE)
    assert code_of(place.current) == "catalogue-rollback"


def test_other_content_of_one_version_is_refused(place: Place) -> None:
    place.publish(ENVELOPE)
    place.current()
    place.publish(sign_catalogue(payload(signer="mallory"), [KEY]))
    assert code_of(place.current) == "catalogue-equivocation"


def test_expired_catalogue_is_refused(place: Place) -> None:
    place.publish(ENVELOPE)
    place.current()
    assert code_of(lambda: place.current(NOW + 100)) == "catalogue-expired"


def test_refused_catalogue_is_not_remembered(place: Place) -> None:
    place.publish(sign_catalogue(payload(9), [STRANGER]))
    assert code_of(place.current) == "signer-unknown"
    place.publish(sign_catalogue(payload(9, expires=1), [KEY]))
    assert code_of(place.current) == "catalogue-expired"
    place.publish(ENVELOPE)
    assert place.current() is not None


def test_catalogue_that_is_gone_refuses_everything(place: Place) -> None:
    assert code_of(place.current) == "catalogue-missing"
    place.publish(ENVELOPE)
    place.current()
    (place.trust / "catalogue.json").unlink()
    assert code_of(place.current) == "catalogue-missing"


def test_keys_that_are_gone_do_not_turn_the_catalogue_off(place: Place) -> None:
    place.publish(ENVELOPE)
    place.current()
    for key in place.keys.iterdir():
        key.unlink()
    assert code_of(place.current) == "signer-unknown"
    place.keys.rmdir()
    assert code_of(place.current) == "catalogue-missing"


def test_without_keys_there_is_no_catalogue(place: Place) -> None:
    for key in place.keys.iterdir():
        key.unlink()
    place.keys.rmdir()
    place.publish(ENVELOPE)
    assert place.current() is None


def test_policy_asks_for_two_keys(place: Place) -> None:
    (place.trust / "policy.toml").write_text("required_catalogue_signers = 2\n")
    place.publish(ENVELOPE)
    assert code_of(place.current) == "signers-missing"
    place.publish(BOTH)
    assert place.current() is not None


def test_deny_list_holds_for_catalogue_keys(place: Place) -> None:
    place.publish(ENVELOPE)
    (place.trust / "revoked.txt").write_text(f"{key_fingerprint(KEY.public_key())}\n")
    assert code_of(place.current) == "signer-revoked"


@pytest.mark.parametrize("text", ["", "{}", "junk", '{"version":0,"payload_digest":"sha256:00","models":{}}'])
def test_damaged_memory_is_a_fault_and_not_a_fresh_start(place: Place, text: str) -> None:
    place.publish(ENVELOPE)
    place.current()
    place.seen.chmod(0o600)
    place.seen.write_text(text)
    place.seen.chmod(0o444)
    with pytest.raises(Fault):
        place.current()


def test_memory_that_others_can_write_is_a_fault(place: Place) -> None:
    place.publish(ENVELOPE)
    place.current()
    place.seen.chmod(0o666)
    with pytest.raises(Fault):
        place.current()


def test_catalogue_that_others_can_write_is_a_fault(place: Place) -> None:
    place.publish(ENVELOPE)
    (place.trust / "catalogue.json").chmod(0o666)
    with pytest.raises(Fault, match=r"can be written by .*: chmod go-w /"):
        place.current()


@pytest.mark.parametrize("step", ["fsync", "rename", "write", "fchmod"])
def test_catalogue_that_cannot_be_remembered_is_not_relied_on(
    place: Place, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place.publish(ENVELOPE)
    place.current()
    place.publish(sign_catalogue(payload(2), [KEY]))

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(Fault):
            place.current()
    found = place.current()
    assert found is not None
    assert found.version == 2
    assert [path.name for path in place.seen.parent.iterdir()] == ["seen.json"]


def test_parallel_readers_agree_and_never_go_back(place: Place) -> None:
    envelopes = [sign_catalogue(payload(version), [KEY]) for version in range(1, 9)]
    place.publish(envelopes[0])
    versions: list[list[int]] = [[], [], []]
    done = threading.Event()

    def read(mine: list[int]) -> None:
        while not done.is_set():
            found = place.current()
            assert found is not None
            mine.append(found.version)

    threads = [threading.Thread(target=read, args=(mine,)) for mine in versions]
    for thread in threads:
        thread.start()
    for envelope in envelopes:
        fresh = place.trust / "fresh"
        fresh.write_bytes(envelope)
        fresh.rename(place.trust / "catalogue.json")
    done.set()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert all(mine == sorted(mine) for mine in versions)


def test_nothing_is_left_open(place: Place) -> None:
    place.publish(ENVELOPE)
    place.current()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        place.current()
        code_of(lambda: place.current(NOW + 100))
    assert len(os.listdir("/proc/self/fd")) == before


def test_payload_type_is_ours() -> None:
    assert json.loads(ENVELOPE)["payloadType"] == CATALOGUE_TYPE
    assert b64decode(json.loads(ENVELOPE)["payload"]) == payload()
    assert MAX_SIGNATURES >= 2
