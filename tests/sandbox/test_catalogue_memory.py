"""A warden that was taken over does not choose who signs the catalogue, with all that its fence leaves it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.core.catalogue import Seen
from appliance.core.catalogue_root import Root, RootKey, SeenRoot, encode_root
from appliance.core.codec import canonical_json
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.models.catalogue import CatalogueKeeper, sign_catalogue
from appliance.models.keys import public_pem
from appliance.models.roots import keys_in_force
from appliance.models.trust import load_deny_list

NOW = 1_800_000_000
OPERATOR, STRANGER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

TAKEN_OVER = """
import os, sys
from appliance import assemble, settings
config = settings.parse({"state_dir": sys.argv[1], "runtime_dir": sys.argv[1] + "/run"})
assemble.fence("warden", config)
memory = os.open(config.models_dir / "catalogue", os.O_RDONLY | os.O_DIRECTORY)
fd = os.open("planted", os.O_WRONLY | os.O_CREAT, 0o444, dir_fd=memory)
os.write(fd, sys.argv[2].encode())
os.close(fd)
os.rename("planted", "seen.json", src_dir_fd=memory, dst_dir_fd=memory)
for path in (config.trust_dir / "catalogue.json", config.trust_dir / "catalogue-roots/1.json"):
    try:
        os.open(path, os.O_WRONLY | os.O_CREAT)
    except OSError:
        continue
    print("written:", path)
print("planted")
"""


def catalogue(key: ec.EllipticCurvePrivateKey, version: int) -> bytes:
    return sign_catalogue(canonical_json({"version": version, "expires_at_seconds": NOW + 9, "models": []}), [key])


def strangers_root() -> Root:
    pem = public_pem(STRANGER.public_key()).decode()
    return Root(version=1, expires_at_seconds=NOW + 9, required=1, keys=(RootKey(name="stranger", pem=pem),))


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    for name in ("trust", "trust/catalogue-keys", "trust/catalogue-roots", "models"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "trust/catalogue-keys/operator.pem").write_bytes(public_pem(OPERATOR.public_key()))
    return tmp_path / "trust"


@pytest.mark.parametrize("with_the_keys", [False, True], ids=["as it is written", "with the keys"])
def test_root_that_is_planted_from_inside_the_fence_lets_nobody_sign(trust: Path, with_the_keys: bool) -> None:
    state, memory = trust.parent, trust.parent / "models/catalogue/seen.json"
    keeper = CatalogueKeeper(trust, state / "models")
    (trust / "catalogue.json").write_bytes(catalogue(OPERATOR, 5))
    assert keeper.current(now_seconds=NOW) is not None
    anchor = keys_in_force(trust, {}, load_deny_list(trust), required=1).anchor
    planted = json.loads(canonical_json(Seen(
        version=5, payload_digest=Digest.of(b"x"), models={}, roots={anchor.hex: SeenRoot.of(strangers_root())}
    )))  # fmt: skip
    if with_the_keys:
        planted["roots"][anchor.hex] = json.loads(encode_root(strangers_root()))
    command = [sys.executable, "-I", "-B", "-c", TAKEN_OVER, str(state), json.dumps(planted)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "planted\n"), done.stderr
    assert json.loads(memory.read_bytes()) == planted
    for key in (STRANGER, OPERATOR):
        (trust / "catalogue.json").write_bytes(catalogue(key, 6))
        with pytest.raises((Refused, Fault), match=r"root-rollback|seen\.json is damaged"):
            keeper.current(now_seconds=NOW)
    memory.unlink()
    assert keeper.current(now_seconds=NOW) is not None
    (trust / "catalogue.json").write_bytes(catalogue(STRANGER, 7))
    with pytest.raises(Refused, match="signer-unknown"):
        keeper.current(now_seconds=NOW)
