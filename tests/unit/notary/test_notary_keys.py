"""Keys that must not be used, and public parts that must fit them."""

import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.core.note import parse_vkey
from appliance.core.refusals import Fault
from appliance.notary.files import Files
from appliance.notary.keys import load_keys, publish_keys


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture
def keys_dir(tmp_path: Path) -> Path:
    load_keys(Files(), tmp_path / "keys", may_create=True)
    return tmp_path / "keys"


def load(directory: Path) -> None:
    load_keys(Files(), directory, may_create=False)


def test_keys_are_made_private_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        load_keys(Files(), tmp_path / "keys", may_create=True)
    finally:
        os.umask(previous)
    assert mode(tmp_path / "keys") == 0o700
    assert {path.name: mode(path) for path in (tmp_path / "keys").iterdir()} == {"log.key": 0o600, "token.key": 0o600}


def test_keys_are_made_once(keys_dir: Path) -> None:
    before = [(keys_dir / name).read_bytes() for name in ("log.key", "token.key")]
    load_keys(Files(), keys_dir, may_create=True)
    assert [(keys_dir / name).read_bytes() for name in ("log.key", "token.key")] == before


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o700])
def test_key_that_others_could_read_is_refused(keys_dir: Path, bits: int) -> None:
    (keys_dir / "log.key").chmod(bits)
    with pytest.raises(Fault, match="others could have read"):
        load(keys_dir)


def test_directory_that_others_may_enter_is_refused(keys_dir: Path) -> None:
    keys_dir.chmod(0o750)
    with pytest.raises(Fault, match="has mode 0750"):
        load(keys_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_key_of_another_owner_is_refused(keys_dir: Path) -> None:
    os.chown(keys_dir / "token.key", 12345, -1)
    with pytest.raises(Fault, match="belongs to uid 12345"):
        load(keys_dir)


def test_link_in_place_of_a_key_is_refused(keys_dir: Path) -> None:
    (keys_dir / "log.key").rename(keys_dir / "elsewhere")
    (keys_dir / "log.key").symlink_to(keys_dir / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        load(keys_dir)


def test_lost_log_key_is_not_replaced_behind_the_operators_back(keys_dir: Path) -> None:
    (keys_dir / "log.key").unlink()
    with pytest.raises(Fault, match=r"log.key is missing"):
        load(keys_dir)


def test_key_of_another_kind_is_refused(keys_dir: Path) -> None:
    (keys_dir / "log.key").write_bytes((keys_dir / "token.key").read_bytes())
    with pytest.raises(Fault, match="not an Ed25519 key"):
        load(keys_dir)
    (keys_dir / "log.key").write_bytes(b"nonsense")
    with pytest.raises(Fault, match="not a private key"):
        load(keys_dir)


def test_public_parts_fit_the_keys_and_hold_nothing_private(keys_dir: Path, tmp_path: Path) -> None:
    for name in ("public", "log"):
        (tmp_path / name).mkdir()
    keys = load_keys(Files(), keys_dir, may_create=False)
    publish_keys(Files(), keys, origin="paddock.test/log", public_dir=tmp_path / "public", log_dir=tmp_path / "log")
    vkey = parse_vkey((tmp_path / "public/log.vkey").read_text())
    assert vkey.public_key == keys.log.public_key().public_bytes_raw()
    assert (tmp_path / "log/log.vkey").read_bytes() == (tmp_path / "public/log.vkey").read_bytes()
    (jwk,) = json.loads((tmp_path / "public/jwks.json").read_bytes())["keys"]
    assert set(jwk) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (jwk["use"], jwk["alg"]) == ("sig", "ES256")
    thumbprint = sha256(
        json.dumps({k: jwk[k] for k in ("crv", "kty", "x", "y")}, separators=(",", ":")).encode()
    ).digest()
    assert jwk["kid"] == urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
    assert len(urlsafe_b64decode(jwk["x"] + "=")) == 32
    assert mode(tmp_path / "public/jwks.json") == 0o644
