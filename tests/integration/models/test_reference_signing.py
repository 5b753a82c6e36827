"""What we sign, the reference implementation verifies; what it signs, we verify; what is spoiled, neither accepts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.manifest import SignatureRefused
from appliance.core.refusals import Refused
from appliance.models.certificates import TrustedRoots
from appliance.models.keys import TrustedKeys, private_pem, public_pem
from appliance.models.oms import sign_model
from appliance.models.store import ModelStore
from appliance.models.trust import Trust
from tests.support.certificates import Party
from tests.support.gguf_files import small_model_bytes
from tests.support.reference_signing import reference

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(400)]

NOW = 1_800_000_000
MODEL = small_model_bytes("demo")
CURVES = [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()]
ROOT = Party("root")
ISSUER = Party("issuer", ROOT, ca=True)

SIGN = """
import sys
from pathlib import Path
from model_signing import hashing, signing
folder, mode, algorithm, shard = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
config = hashing.Config()
if shard:
    config.use_shard_serialization(hashing_algorithm=algorithm, shard_size=shard)
else:
    config.use_file_serialization(hashing_algorithm=algorithm)
one = signing.Config().set_hashing_config(config)
if mode == "key":
    one.use_elliptic_key_signer(private_key=folder / "key.pem")
else:
    one.use_certificate_signer(private_key=folder / "key.pem", signing_certificate=folder / "leaf.pem",
                               certificate_chain=[folder / "issuer.pem"])
one.sign(folder / "model", folder / "model.sig")
"""

VERIFY = """
import sys
from pathlib import Path
from model_signing import verifying
folder, mode = Path(sys.argv[1]), sys.argv[2]
one = verifying.Config()
if mode == "key":
    one.use_elliptic_key_verifier(public_key=folder / "public.pem")
else:
    one.use_certificate_verifier(certificate_chain=[folder / "root.pem"])
one.verify(folder / "model", folder / "model.sig")
print("verified")
"""


class Workshop:
    """A model, a key and certificates, as files for the reference implementation."""

    def __init__(self, folder: Path, curve: ec.EllipticCurve) -> None:
        self.folder, self.leaf = folder, Party("release", ISSUER, key=ec.generate_private_key(curve))
        self.model, self.bundle = folder / "model" / "model.gguf", folder / "model.sig"
        self.model.parent.mkdir()
        self.model.write_bytes(MODEL)
        for name, data in (
            ("key.pem", private_pem(self.leaf.key)),
            ("public.pem", public_pem(self.leaf.key.public_key())),
            ("leaf.pem", self.leaf.pem),
            ("issuer.pem", ISSUER.pem),
            ("root.pem", ROOT.pem),
        ):
            (folder / name).write_bytes(data)
        keys = TrustedKeys({"acme": public_pem(self.leaf.key.public_key())})
        self.trust = {
            "key": Trust(keys, now_seconds=NOW),
            "certificate": Trust(TrustedKeys({}), now_seconds=NOW, roots=TrustedRoots({"ca": ROOT.pem})),
        }

    def they(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(reference()), "-I", "-c", script, str(self.folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def we_verify(self, mode: str) -> str:
        """The signer's name, through the whole store: import, then open."""
        with ModelStore.open(self.folder / "store") as store, self.model.open("rb") as file:
            store.import_model(file.fileno(), "demo", self.bundle.read_bytes(), self.trust[mode])
            with store.open_verified("demo", self.trust[mode]) as opened:
                assert os.pread(opened.file, 2**24, 0) == MODEL
                return opened.model.signer.name

    def we_sign(self, mode: str, shard_bytes: int | None) -> None:
        chain = [self.leaf.cert, ISSUER.cert] if mode == "certificate" else []
        with self.model.open("rb") as file:
            made = sign_model(file.fileno(), path="model.gguf", key=self.leaf.key, chain=chain, shard_bytes=shard_bytes)
        self.bundle.write_bytes(made)


SIGNERS = {"key": "acme", "certificate": "ca:CN=release,O=Acme"}


@pytest.fixture
def workshop(tmp_path: Path) -> Callable[[ec.EllipticCurve], Workshop]:
    return lambda curve: Workshop(tmp_path, curve)


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
@pytest.mark.parametrize("shard", [0, 1000], ids=["files", "shards"])
@pytest.mark.parametrize("mode", SIGNERS)
def test_we_verify_what_the_reference_signs(
    workshop: Callable[[ec.EllipticCurve], Workshop], mode: str, shard: int, curve: ec.EllipticCurve
) -> None:
    here = workshop(curve)
    done = here.they(SIGN, mode, "sha256", str(shard))
    assert done.returncode == 0, done.stderr
    assert here.we_verify(mode) == SIGNERS[mode]


@pytest.mark.parametrize("shard", [0, 1000], ids=["files", "shards"])
def test_we_verify_blake2b_of_the_reference(workshop: Callable[[ec.EllipticCurve], Workshop], shard: int) -> None:
    here = workshop(CURVES[0])
    done = here.they(SIGN, "key", "blake2", str(shard))
    assert done.returncode == 0, done.stderr
    assert here.we_verify("key") == "acme"


@pytest.mark.parametrize("shard", [0, 1000], ids=["files", "shards"])
def test_we_verify_blake3_of_the_reference(
    workshop: Callable[[ec.EllipticCurve], Workshop], monkeypatch: pytest.MonkeyPatch, shard: int
) -> None:
    """And refuse it plainly where the extra is not installed."""
    here = workshop(CURVES[0])
    done = here.they(SIGN, "key", "blake3", str(shard))
    assert done.returncode == 0, done.stderr
    assert here.we_verify("key") == "acme"
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(Refused, match="hash-unavailable"):
        here.we_verify("key")


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
@pytest.mark.parametrize("mode", SIGNERS)
def test_the_reference_verifies_what_we_sign(
    workshop: Callable[[ec.EllipticCurve], Workshop], mode: str, curve: ec.EllipticCurve
) -> None:
    here = workshop(curve)
    here.we_sign(mode, None)
    done = here.they(VERIFY, mode)
    assert done.stdout == "verified\n", done.stderr


def test_shards_in_the_form_of_the_specification_still_puzzle_the_reference(
    workshop: Callable[[ec.EllipticCurve], Workshop],
) -> None:
    """It writes and wants ``sha256-sharded-<size>`` where the specification says ``sha256``; we read both."""
    here = workshop(CURVES[0])
    here.we_sign("key", 1000)
    assert here.we_verify("key") == "acme"
    done = here.they(VERIFY, "key")
    assert done.returncode != 0
    assert "Actual 'Digest(algorithm='sha256-sharded-1000'" in done.stderr


@pytest.mark.parametrize("mode", SIGNERS)
def test_neither_accepts_a_changed_model(workshop: Callable[[ec.EllipticCurve], Workshop], mode: str) -> None:
    here = workshop(CURVES[0])
    here.we_sign(mode, None)
    here.model.write_bytes(MODEL[:-1] + bytes([MODEL[-1] ^ 1]))
    assert here.they(VERIFY, mode).returncode != 0
    with pytest.raises(Refused, match="digest-mismatch"):
        here.we_verify(mode)


def test_expired_leaf_that_the_reference_accepts_is_refused_by_us(
    workshop: Callable[[ec.EllipticCurve], Workshop],
) -> None:
    """It verifies at the beginning of the leaf's validity; we verify now."""
    here = workshop(CURVES[0])
    here.leaf = Party("release", ISSUER, key=here.leaf.key, ends=NOW - 1)
    here.we_sign("certificate", None)
    assert here.they(VERIFY, "certificate").stdout == "verified\n"
    with pytest.raises((Refused, SignatureRefused), match="certificate-invalid"):
        here.we_verify("certificate")


def test_bundles_of_both_have_the_same_shape(workshop: Callable[[ec.EllipticCurve], Workshop]) -> None:
    here = workshop(CURVES[0])
    here.we_sign("key", None)
    ours = json.loads(here.bundle.read_bytes())
    here.they(SIGN, "key", "sha256", "0")
    theirs = json.loads(here.bundle.read_bytes())
    assert ours.keys() == theirs.keys()
    assert ours["verificationMaterial"]["publicKey"] == theirs["verificationMaterial"]["publicKey"]
