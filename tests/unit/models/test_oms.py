"""No bundle counts unless a trusted key signed exactly what it says."""

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from appliance.core.manifest import SignatureRefused, pae
from appliance.core.refusals import Fault
from appliance.core.values import Digest
from appliance.models.oms import (
    MAX_BUNDLE_BYTES,
    TrustedKeys,
    key_fingerprint,
    key_hint,
    load_signing_key,
    private_pem,
    public_pem,
    sign_model,
    verify_bundle,
    verify_ecdsa,
)
from tests.support.public_vectors import vectors_folder
from tests.support.signed_models import (
    KEY,
    OTHER_KEY,
    TRUSTED,
    TRUSTS_OTHER,
    bundle_of,
    memory_file,
    resource,
    signed,
    signed_statement,
    spoiled,
    statement_of,
)

DATA = b"bytes of a model"
BUNDLE = signed(DATA)
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def refusal(bundle: bytes, trusted: TrustedKeys = TRUSTED) -> str:
    with pytest.raises(SignatureRefused) as caught:
        verify_bundle(bundle, trusted)
    assert caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_own_signature_is_accepted(curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    bundle = signed(DATA, key)
    result = verify_bundle(bundle, TrustedKeys({"acme": public_pem(key.public_key())}))
    assert (result.signer.name, result.signer.fingerprint) == ("acme", key_fingerprint(key.public_key()))
    assert result.bundle_digest == Digest.of(bundle)
    assert [(item.path, item.hash) for item in result.statement.resources] == [("model.gguf", Digest.of(DATA).hex)]


def test_unsigned_is_refused() -> None:
    assert refusal(b"") == "unsigned"


def test_unknown_key_is_refused() -> None:
    assert refusal(BUNDLE, TRUSTS_OTHER) == "signer-unknown"


def test_no_trusted_keys_refuse_everything() -> None:
    assert refusal(BUNDLE, TrustedKeys({})) == "signer-unknown"


def material(change: Callable[[dict[str, Any]], object]) -> bytes:
    return spoiled(BUNDLE, lambda bundle: change(bundle["verificationMaterial"]))


def envelope(change: Callable[[dict[str, Any]], object]) -> bytes:
    return spoiled(BUNDLE, lambda bundle: change(bundle["dsseEnvelope"]))


def signature(change: Callable[[bytes], bytes]) -> bytes:
    def apply(bundle: dict[str, Any]) -> None:
        entry = bundle["dsseEnvelope"]["signatures"][0]
        entry["sig"] = b64encode(change(b64decode(entry["sig"]))).decode()

    return spoiled(BUNDLE, apply)


def high_s(der: bytes) -> bytes:
    r, s = decode_dss_signature(der)
    return encode_dss_signature(r, P256_ORDER - s)


def resigned(payload: bytes, **kwargs: Any) -> bytes:
    return json.dumps(bundle_of(payload, **kwargs)).encode()


def wrong_payload_type() -> bytes:
    """Rightly signed, as another kind of document."""
    bundle = json.loads(BUNDLE)
    payload = b64decode(bundle["dsseEnvelope"]["payload"])
    sig = KEY.sign(pae("text/plain", payload), ec.ECDSA(hashes.SHA256()))
    bundle["dsseEnvelope"] |= {"payloadType": "text/plain", "signatures": [{"sig": b64encode(sig).decode()}]}
    return json.dumps(bundle).encode()


def without_pae() -> bytes:
    """A signature over the bare payload: what a verifier that skips the encoding would accept."""
    bundle = json.loads(BUNDLE)
    sig = KEY.sign(b64decode(bundle["dsseEnvelope"]["payload"]), ec.ECDSA(hashes.SHA256()))
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = b64encode(sig).decode()
    return json.dumps(bundle).encode()


OTHER_PAYLOAD = b64encode(json.dumps(statement_of([resource("model.gguf", b"other")])).encode()).decode()
P384 = ec.generate_private_key(ec.SECP384R1())

ATTACKS: list[tuple[str, bytes, str]] = [
    ("swapped payload", envelope(lambda e: e.update(payload=OTHER_PAYLOAD)), "signature-invalid"),
    ("signed by another key", resigned(b"{}", key=OTHER_KEY, hint=key_hint(KEY.public_key())), "signature-invalid"),
    ("signed on another curve", resigned(b"{}", key=P384, hint=key_hint(KEY.public_key())), "signature-invalid"),
    ("hint of another key", resigned(b"{}", hint=key_hint(OTHER_KEY.public_key())), "signer-unknown"),
    ("hint in upper case", material(lambda m: m["publicKey"].update(hint=m["publicKey"]["hint"].upper())),
     "signer-unknown"),
    ("hint that is not the PEM's", material(lambda m: m["publicKey"].update(
        hint=key_fingerprint(KEY.public_key()).hex)), "signer-unknown"),
    ("no hint", material(lambda m: m.update(publicKey={})), "key-hint-missing"),
    ("empty hint", material(lambda m: m["publicKey"].update(hint="")), "key-hint-missing"),
    ("null hint", material(lambda m: m["publicKey"].update(hint=None)), "key-hint-missing"),
    ("key in the bundle", material(lambda m: m["publicKey"].update(rawBytes="AA==")), "bundle-malformed"),
    ("a key and a chain", material(lambda m: m.update(x509CertificateChain={"certificates": [{"rawBytes": "AA=="}]})),
     "bundle-malformed"),
    ("empty chain", material(lambda m: m.update(x509CertificateChain={"certificates": []})), "bundle-malformed"),
    ("Sigstore mode", material(lambda m: m.update(certificate={"rawBytes": "AA=="})), "mode-unsupported"),
    ("log entries in key mode", material(lambda m: m.update(tlogEntries=[{}])), "bundle-malformed"),
    ("timestamps in key mode", material(lambda m: m.update(timestampVerificationData={"a": 1})), "bundle-malformed"),
    ("no material", material(lambda m: m.clear()), "bundle-malformed"),
    ("unknown material", material(lambda m: m.update(other=1)), "bundle-malformed"),
    ("payload type", wrong_payload_type(), "payload-type"),
    ("payload type changed only", envelope(lambda e: e.update(payloadType="text/plain")), "payload-type"),
    ("no encoding", without_pae(), "signature-invalid"),
    ("no signatures", envelope(lambda e: e.update(signatures=[])), "bundle-malformed"),
    ("null signatures", envelope(lambda e: e.update(signatures=None)), "bundle-malformed"),
    ("signature that is a number", envelope(lambda e: e.update(signatures=[1])), "bundle-malformed"),
    ("two signatures", envelope(lambda e: e["signatures"].append(e["signatures"][0])), "bundle-malformed"),
    ("empty signature", envelope(lambda e: e["signatures"][0].update(sig="")), "bundle-malformed"),
    ("signature without padding", envelope(lambda e: e["signatures"][0].update(sig="AA")), "bundle-malformed"),
    ("signature with spaces", envelope(lambda e: e["signatures"][0].update(sig="AA ==")), "bundle-malformed"),
    ("base64 with spare bits", envelope(lambda e: e["signatures"][0].update(sig="AB==")), "bundle-malformed"),
    ("payload in the URL alphabet", envelope(lambda e: e.update(payload="_-_-")), "bundle-malformed"),
    ("signature cut", signature(lambda der: der[:-1]), "signature-invalid"),
    ("signature with a tail", signature(lambda der: der + b"\0"), "signature-invalid"),
    ("signature of zeros", signature(lambda _: encode_dss_signature(0, 0)), "signature-invalid"),
    ("signature of one and the order", signature(lambda _: encode_dss_signature(1, P256_ORDER)), "signature-invalid"),
    ("keyid that is a number", envelope(lambda e: e["signatures"][0].update(keyid=1)), "bundle-malformed"),
    ("unknown bundle key", spoiled(BUNDLE, lambda b: b.update(other=1)), "bundle-malformed"),
    ("another media type", spoiled(BUNDLE, lambda b: b.update(mediaType="application/json")), "bundle-malformed"),
    ("older media type", spoiled(BUNDLE, lambda b: b.update(
        mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1")), "bundle-malformed"),
    ("not JSON", b"-----BEGIN SIGNATURE-----", "bundle-malformed"),
    ("an array", b"[]", "bundle-malformed"),
    ("deep nesting", b'{"a":' * 50_000, "bundle-malformed"),
    ("byte order mark", b"\xef\xbb\xbf" + BUNDLE, "bundle-malformed"),
    ("text after it", BUNDLE + b"{}", "bundle-malformed"),
    ("duplicate key", BUNDLE.replace(b'"payloadType"', b'"payload":"","payloadType"', 1), "bundle-malformed"),
    ("10 MiB", b" " * (10 * 1024 * 1024), "bundle-too-large"),
    ("one byte too many", BUNDLE + b" " * (MAX_BUNDLE_BYTES + 1 - len(BUNDLE)), "bundle-too-large"),
    ("payload that is not a statement", resigned(b"{}"), "statement-malformed"),
    ("v0.1 predicate", signed_statement(statement_of([resource("m", DATA)]) | {
        "predicateType": "https://model_signing/Digests/v0.1"}), "predicate-unsupported"),
    ("unsorted names", signed_statement(statement_of([resource("b", DATA), resource("a", DATA)])),
     "resources-unsorted"),
    ("ignored model", signed_statement(statement_of([resource("m", DATA)], ignore_paths=["m"])), "resource-ignored"),
]  # fmt: skip


@pytest.mark.parametrize(("bundle", "reason"), [row[1:] for row in ATTACKS], ids=[row[0] for row in ATTACKS])
def test_attack_on_a_bundle_is_refused(bundle: bytes, reason: str) -> None:
    assert refusal(bundle) == reason


@pytest.mark.parametrize("keyid", ["", None, "anything"])
def test_keyid_selects_nothing(keyid: str | None) -> None:
    verify_bundle(envelope(lambda e: e["signatures"][0].update(keyid=keyid)), TRUSTED)


def test_absent_keyid_and_log_entries_are_accepted() -> None:
    verify_bundle(envelope(lambda e: e["signatures"][0].pop("keyid")), TRUSTED)
    verify_bundle(material(lambda m: m.pop("tlogEntries")), TRUSTED)


def test_twin_signature_says_nothing_else() -> None:
    """(r, n - s) verifies too: it is the same signer's word on the same bytes, in a bundle with another digest."""
    twin = signature(high_s)
    first, second = verify_bundle(BUNDLE, TRUSTED), verify_bundle(twin, TRUSTED)
    assert (first.statement, first.signer) == (second.statement, second.signer)
    assert first.bundle_digest != second.bundle_digest


def test_no_changed_byte_changes_what_is_said() -> None:
    """Each byte, three ways: refused, or a bundle that says the same (the unsigned ``keyid``, white space)."""
    said = verify_bundle(BUNDLE, TRUSTED)
    accepted = 0
    for position in range(len(BUNDLE)):
        for flip in (0x01, 0x20, 0x80):
            changed = bytearray(BUNDLE)
            changed[position] ^= flip
            try:
                now = verify_bundle(bytes(changed), TRUSTED)
            except SignatureRefused:
                continue
            accepted += 1
            assert (now.statement, now.signer) == (said.statement, said.signer)
    assert accepted < 20


def test_path_that_a_verifier_would_refuse_is_not_signed() -> None:
    fd = memory_file(DATA)
    try:
        with pytest.raises(SignatureRefused):
            sign_model(fd, path="../model.gguf", key=KEY)
    finally:
        os.close(fd)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_loaded_from_a_directory(tmp_path: Path) -> None:
    for name, key in (("acme", KEY), ("other", OTHER_KEY)):
        (tmp_path / f"{name}.pem").write_bytes(public_pem(key.public_key()))
    (tmp_path / "README").write_text("not a key")
    trusted = TrustedKeys.load(tmp_path)
    assert [signer.name for signer in trusted.signers()] == ["acme", "other"]
    assert verify_bundle(BUNDLE, trusted).signer.name == "acme"


def test_line_ends_of_a_key_file_do_not_matter() -> None:
    pem = public_pem(KEY.public_key()).replace(b"\n", b"\r\n")
    assert verify_bundle(BUNDLE, TrustedKeys({"acme": pem})).signer.name == "acme"


def ed25519_pem() -> bytes:
    public = ed25519.Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"junk",
        private_pem(KEY),
        public_pem(ec.generate_private_key(ec.SECP256K1()).public_key()),
        public_pem(ec.generate_private_key(ec.SECP224R1()).public_key()),
        ed25519_pem(),
    ],
)
def test_key_of_another_kind_is_a_fault(pem: bytes) -> None:
    with pytest.raises(Fault):
        TrustedKeys({"acme": pem})


@pytest.mark.parametrize("name", ["", "../acme", "a b", "a\n", "a" * 129])
def test_signer_with_an_odd_name_is_a_fault(name: str) -> None:
    with pytest.raises(Fault):
        TrustedKeys({name: public_pem(KEY.public_key())})


def test_one_key_under_two_names_is_a_fault() -> None:
    pem = public_pem(KEY.public_key())
    with pytest.raises(Fault, match="the same key"):
        TrustedKeys({"a": pem, "b": pem})


@pytest.mark.parametrize("who", ["file", "directory"])
def test_key_that_others_can_write_is_a_fault(tmp_path: Path, who: str) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    pem = keys / "acme.pem"
    pem.write_bytes(public_pem(KEY.public_key()))
    (pem if who == "file" else keys).chmod(0o777)
    with pytest.raises(Fault, match=r"can be written by .*: chmod go-w /"):
        TrustedKeys.load(keys)


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_key_that_is_not_a_file_is_a_fault(tmp_path: Path, kind: str) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    real = tmp_path / "real.pem"
    real.write_bytes(public_pem(KEY.public_key()))
    if kind == "link":
        (keys / "acme.pem").symlink_to(real)
    elif kind == "fifo":
        os.mkfifo(keys / "acme.pem", 0o600)
    else:
        (keys / "acme.pem").mkdir(mode=0o700)
    with pytest.raises(Fault):
        TrustedKeys.load(keys)


def test_missing_key_directory_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(Fault):
        TrustedKeys.load(tmp_path / "none")


def test_signing_key_is_kept_and_read_back() -> None:
    key = load_signing_key(private_pem(KEY))
    assert key_hint(key.public_key()) == key_hint(KEY.public_key())
    for junk in (b"", public_pem(KEY.public_key()), private_pem(ec.generate_private_key(ec.SECP256K1()))):
        with pytest.raises(Fault):
            load_signing_key(junk)


# --- public vectors ---------------------------------------------------------------------------------------------------

OMS_VERDICTS = {
    "valid/key": "signer-unknown",  # well formed, and the specification does not publish its key
    "valid/certificate": "signer-unknown",
    "valid/sigstore": "mode-unsupported",
    "invalid/empty": "unsigned",
    "invalid/missing-envelope": "bundle-malformed",
    "invalid/missing-tlog-entries": "mode-unsupported",
    "invalid/missing-verification-material": "bundle-malformed",
    "invalid-payload/wrong-predicate": "signer-unknown",
}


def test_every_vector_of_the_specification_has_its_verdict() -> None:
    folder = vectors_folder("oms") / "test-vectors" / "v1.0"
    found = {str(path.relative_to(folder)).removesuffix(".bundle.json"): path for path in folder.rglob("*.json")}
    assert {name: refusal(path.read_bytes()) for name, path in found.items()} == OMS_VERDICTS


@pytest.mark.parametrize("name", ["ecdsa_secp256r1_sha256_test", "ecdsa_secp384r1_sha384_test"])
def test_wycheproof_signatures_have_their_verdict(name: str) -> None:
    vectors = json.loads((vectors_folder("wycheproof") / "testvectors_v1" / f"{name}.json").read_text())
    wrong = []
    for group in vectors["testGroups"]:
        key = load_pem_public_key(group["publicKeyPem"].encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        for test in group["tests"]:
            try:
                verify_ecdsa(key, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
                verdict = "valid"
            except SignatureRefused as error:
                assert error.reason == "signature-invalid"
                verdict = "invalid"
            if verdict != test["result"]:
                wrong.append((test["tcId"], test["comment"]))
    assert wrong == []
