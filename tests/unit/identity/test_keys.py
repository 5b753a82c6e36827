"""A key set that holds anything but public ES256 keys with names verifies nothing, because it is not loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from appliance.core.refusals import Fault
from appliance.identity.keys import MAX_JWKS_BYTES, load_keys, parse_keys
from tests.vectors.jwt import generate

GOOD = generate.public_jwk("first", generate.KEYS["first"])
OTHER = generate.public_jwk("second", generate.KEYS["second"])
P384 = json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key()))
RSA = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))
ED25519 = json.loads(OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key()))
PRIVATE = json.loads(ECAlgorithm.to_jwk(generate.KEYS["first"]))


def refusal(data: bytes) -> str:
    with pytest.raises(Fault) as caught:
        parse_keys(data)
    return caught.value.detail


def of(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


def test_good_keys_are_found_by_their_ids_and_cannot_be_changed() -> None:
    keys = parse_keys(of(GOOD, OTHER))
    assert set(keys) == {"first", "second"}
    with pytest.raises(TypeError):
        keys["third"] = keys["first"]  # type: ignore[index]


BAD = [
    ("private", PRIVATE | {"kid": "first", "alg": "ES256"}, "must be a public key on P-256"),
    ("another curve under the name ES256", P384 | {"kid": "a", "alg": "ES256"}, "must be a public key on P-256"),
    ("ES384", P384 | {"kid": "a", "alg": "ES384"}, "keys are allowed"),
    ("RS256", RSA | {"kid": "a", "alg": "RS256"}, "keys are allowed"),
    ("EdDSA", ED25519 | {"kid": "a", "alg": "EdDSA"}, "keys are allowed"),
    ("RSA under the name ES256", RSA | {"kid": "a", "alg": "ES256"}, "malformed"),
    ("secret", {"kty": "oct", "k": "AAAA", "kid": "a", "alg": "HS256"}, "keys are allowed"),
    ("secret under the name ES256", {"kty": "oct", "k": "AAAA", "kid": "a", "alg": "ES256"}, "malformed"),
    ("none", GOOD | {"alg": "none"}, "keys are allowed"),
    ("algorithm as a list", GOOD | {"alg": []}, "keys are allowed"),
    ("point not on the curve", GOOD | {"y": GOOD["x"]}, "malformed"),
    ("short coordinate", GOOD | {"x": "AAAA"}, "malformed"),
    ("coordinate as a number", GOOD | {"x": 7}, "malformed"),
    ("for encryption", GOOD | {"use": "enc"}, "not for signatures"),
    ("use as a list", GOOD | {"use": []}, "malformed"),
    ("no id", {name: GOOD[name] for name in GOOD if name != "kid"}, "a key id must be"),
    ("no algorithm", {name: GOOD[name] for name in GOOD if name != "alg"}, "keys are allowed"),
    ("empty id", GOOD | {"kid": ""}, "a key id must be"),
    ("number as id", GOOD | {"kid": 7}, "a key id must be"),
    ("null as id", GOOD | {"kid": None}, "a key id must be"),
    ("list as id", GOOD | {"kid": []}, "a key id must be"),
    ("text in place of a key", "key", "malformed"),
    ("null in place of a key", None, "malformed"),
]


@pytest.mark.parametrize(("key", "why"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_key_spoils_the_set(key: Any, why: str) -> None:
    assert why in refusal(of(key))
    assert refusal(of(GOOD | {"kid": "good"}, key))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"1",
        b'{"keys":{}}',
        b'{"keys":null}',
        b'{"keys":"ab"}',
        b'{"keys":{"a":1}}',
        b"\xff",
        b"[" * 99,
    ],
)
def test_other_documents_are_refused(data: bytes) -> None:
    assert refusal(data)


def test_empty_set_is_refused() -> None:
    assert "empty" in refusal(of())


def test_repeated_id_is_refused() -> None:
    assert "repeats" in refusal(of(GOOD, OTHER | {"kid": "first"}))


def test_repeated_member_is_refused() -> None:
    assert "malformed" in refusal(of(GOOD)[:-2] + b',"kid":"other"}]}')


def test_large_or_absent_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(Fault, match="cannot read"):
        load_keys(path)
    path.write_bytes(of(GOOD).ljust(MAX_JWKS_BYTES))
    assert set(load_keys(path)) == {"first"}
    path.write_bytes(of(GOOD).ljust(MAX_JWKS_BYTES + 1))
    with pytest.raises(Fault, match="too large"):
        load_keys(path)
