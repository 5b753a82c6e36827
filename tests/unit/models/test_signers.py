"""A model that needs several signers is not vouched for by fewer."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.manifest import TrustPolicy
from appliance.core.refusals import Fault
from appliance.core.values import Digest, VerifiedModel
from appliance.models.certificates import DenyList, TrustedRoots
from appliance.models.keys import TrustedKeys, key_fingerprint, public_pem
from appliance.models.oms import sign_model
from appliance.models.store import MAX_BUNDLES, ModelStore
from appliance.models.trust import Trust
from tests.support.certificates import NOW, Party
from tests.support.gguf_files import small_model_bytes
from tests.support.refusals import code_of
from tests.support.signed_models import KEY, OTHER_KEY, memory_file, shards, signed, signed_statement, statement_of

MODEL = small_model_bytes("demo")
THIRD = ec.generate_private_key(ec.SECP384R1())
KEYS = TrustedKeys({name: public_pem(key.public_key()) for name, key in
                    (("acme", KEY), ("board", OTHER_KEY), ("lab", THIRD))})  # fmt: skip
ACME, BOARD, LAB = signed(MODEL, KEY), signed(MODEL, OTHER_KEY), signed(MODEL, THIRD)
ROOT = Party("root")


def needs(required: int, *signers: str, denied: str = "") -> Trust:
    policy = TrustPolicy(required=required, signers=frozenset(signers) if signers else None)
    return Trust(KEYS, now_seconds=NOW, roots=TrustedRoots({"ca": ROOT.pem}), denied=DenyList(denied), policy=policy)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore.open(tmp_path / "store") as opened:
        yield opened


def put(store: ModelStore, trust: Trust, *bundles: bytes) -> VerifiedModel:
    fd = memory_file(MODEL)
    try:
        return store.import_model(fd, "demo", bundles, trust)
    finally:
        os.close(fd)


def by(name: str, root: Party = ROOT) -> bytes:
    """The same model, signed in certificate mode."""
    party = Party(name, root)
    fd = memory_file(MODEL)
    with open(fd, "rb"):
        return sign_model(fd, path="model.gguf", key=party.key, chain=[party.cert])


def test_two_signers_are_named(store: ModelStore) -> None:
    model = put(store, needs(2), ACME, BOARD)
    assert [one.name for one in (model.signer, *model.cosigners)] == ["acme", "board"]
    assert model.bundle_digest == Digest.of(ACME)
    assert store.verify("demo", needs(2)) == model
    assert store.check() == ()


def test_key_and_certificate_count_together(store: ModelStore) -> None:
    model = put(store, needs(3), ACME, by("release"), by("safety"))
    assert [one.name for one in model.cosigners] == ["ca:CN=release,O=Acme", "ca:CN=safety,O=Acme"]


CASES: list[tuple[str, Trust, tuple[bytes, ...], str]] = [
    ("no bundle", needs(1), (), "signers-missing"),
    ("one of two", needs(2), (ACME,), "signers-missing"),
    ("two of three", needs(3), (ACME, BOARD), "signers-missing"),
    ("one key, two bundles", needs(2), (ACME, signed(MODEL, KEY)), "signers-missing"),
    ("one key, two file names", needs(2), (ACME, signed(MODEL, KEY, "other.gguf")), "signers-missing"),
    ("one bundle twice", needs(1), (ACME, ACME), "bundles-invalid"),
    ("too many bundles", needs(1), tuple(signed(MODEL) for _ in range(MAX_BUNDLES + 1)), "bundles-invalid"),
    ("one subject, two keys", needs(2), (by("release"), by("release")), "signers-missing"),
    ("nobody who counts", needs(1, "lab"), (ACME, BOARD), "signers-missing"),
    ("one who counts of two", needs(2, "acme", "lab"), (ACME, BOARD), "signers-missing"),
    ("one for another model", needs(1), (ACME, signed(MODEL + b"x", OTHER_KEY)), "digest-mismatch"),
    ("a second one that is not trusted", needs(1), (ACME, by("x", Party("other"))), "certificate-invalid"),
    ("a second one that is empty", needs(1), (ACME, b""), "unsigned"),
    ("a second one that is revoked", needs(1, denied=str(key_fingerprint(OTHER_KEY.public_key()))), (ACME, BOARD),
     "signer-revoked"),
    ("policy that asks for nothing", needs(0), (ACME,), "signers-missing"),
]  # fmt: skip


@pytest.mark.parametrize(("trust", "bundles", "code"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_too_few_signers_are_refused(store: ModelStore, trust: Trust, bundles: tuple[bytes, ...], code: str) -> None:
    assert code_of(lambda: put(store, trust, *bundles)) == code
    assert store.entries() == ()
    assert store.check() == ()


def test_stricter_policy_holds_for_models_that_are_in_the_store(store: ModelStore) -> None:
    put(store, needs(1), ACME)
    store.verify("demo", needs(1))
    assert code_of(lambda: store.verify("demo", needs(2))) == "signers-missing"
    assert code_of(lambda: store.open_verified("demo", needs(1, "board"))) == "signers-missing"


def test_second_bundle_that_is_gone_or_changed_is_refused(store: ModelStore, tmp_path: Path) -> None:
    put(store, needs(2), ACME, BOARD)
    path = tmp_path / "store" / "bundles" / "sha256" / Digest.of(BOARD).hex
    path.chmod(0o600)
    path.write_bytes(LAB)
    path.chmod(0o444)
    assert code_of(lambda: store.verify("demo", needs(2))) == "bundle-mismatch"
    path.unlink()
    assert code_of(lambda: store.verify("demo", needs(1))) == "unsigned"
    assert len(store.check()) == 1


def test_bundles_of_different_forms_are_verified_together(store: ModelStore) -> None:
    pieces = sorted(shards("m.gguf", MODEL, 999), key=lambda item: str(item["name"]))
    sharded = signed_statement(statement_of(pieces, method="shards", shard_size=999), OTHER_KEY)
    model = put(store, needs(2), ACME, sharded)
    with store.open_verified("demo", needs(2)) as opened:
        assert opened.model == model


def test_bundles_go_with_their_model(store: ModelStore, tmp_path: Path) -> None:
    put(store, needs(1), ACME, BOARD)
    put(store, needs(1), BOARD, LAB)
    assert store.check() == ()
    store.remove("demo")
    assert list((tmp_path / "store" / "bundles" / "sha256").iterdir()) == []


# --- the policy file --------------------------------------------------------------------------------------------------


def test_policy_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('required_signers = 2\nsigners = ["acme", "board"]\n')
    policy = Trust.load(tmp_path, now_seconds=NOW).policy
    assert policy == TrustPolicy(required=2, signers=frozenset({"acme", "board"}))


def test_without_a_policy_file_one_signer_is_enough(tmp_path: Path) -> None:
    assert Trust.load(tmp_path, now_seconds=NOW).policy == TrustPolicy(required=1, signers=None)


@pytest.mark.parametrize(
    "text",
    ["required_signers = 0", "required_signers = -1", "required_signers = 17", 'required_signers = "2"',
     "required_signers = 1.5", "signers = []", 'signers = "acme"', "required_signer = 2", "required_signers =",
     'required_signers = 2\nsigners = ["acme"]', 'required_signers = 2\nsigners = ["acme", "acme"]',
     "required_catalogue_signers = 0"],
)  # fmt: skip
def test_policy_file_that_says_something_else_is_a_fault(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(Fault, match=r"policy\.toml"):
        Trust.load(tmp_path, now_seconds=NOW)
