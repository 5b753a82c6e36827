"""What a root may not say."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.catalogue_root import Root, decode_root, encode_root
from appliance.core.refusals import Reason, Refused

KEY = {"name": "board", "pem": "-----BEGIN PUBLIC KEY-----"}


def document(**values: Any) -> dict[str, Any]:
    return {"version": 1, "expires_at_seconds": 1_900_000_000, "required": 1, "keys": [KEY]} | values


def payload(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def keys(count: int) -> list[dict[str, str]]:
    return [KEY | {"name": f"k{number}"} for number in range(count)]


MALFORMED: list[tuple[str, Any]] = [
    ("empty", b""),
    ("not JSON", b"{"),
    ("an array", []),
    ("deep nesting", b"[" * 100_000),
    ("duplicate key", payload(document()).replace(b'"required"', b'"required": 2, "required"')),
    ("text after it", payload(document()) + b"{}"),
    ("unknown key", document(threshold=1)),
    *((f"without {key}", {name: value for name, value in document().items() if name != key}) for key in document()),
    ("version 0", document(version=0)),
    ("version 2^53", document(version=2**53)),
    ("version as text", document(version="1")),
    ("version true", document(version=True)),
    ("version and a half", document(version=1.5)),
    ("expiry 0", document(expires_at_seconds=0)),
    ("no expiry", document(expires_at_seconds=None)),
    ("nobody required", document(required=0)),
    ("fewer than nobody required", document(required=-1)),
    ("17 required", document(required=17, keys=keys(16))),
    ("two of one", document(required=2)),
    ("no keys", document(keys=[])),
    ("17 keys", document(keys=keys(17))),
    ("keys as an object", document(keys={"board": "x"})),
    ("one name twice", document(keys=[KEY, KEY | {"pem": "other"}])),
    ("unknown key of a key", document(keys=[KEY | {"role": "x"}])),
    ("empty name", document(keys=[KEY | {"name": ""}])),
    ("name that is a path", document(keys=[KEY | {"name": "../board"}])),
    ("name with a newline", document(keys=[KEY | {"name": "board\n"}])),
    ("empty PEM", document(keys=[KEY | {"pem": ""}])),
    ("long PEM", document(keys=[KEY | {"pem": "x" * 2049}])),
]


@pytest.mark.parametrize("value", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_root_is_refused(value: Any) -> None:
    with pytest.raises(Refused) as caught:
        decode_root(payload(value))
    assert caught.value.reason is Reason.MODEL_NOT_VERIFIED
    assert caught.value.detail.startswith("root-malformed: ")


def test_written_root_is_read() -> None:
    root = decode_root(payload(document(keys=keys(16), required=16)))
    assert decode_root(encode_root(root)) == root


@given(st.data())
def test_mutated_root_never_raises_anything_else(data: st.DataObject) -> None:
    mutant = bytearray(payload(document()))
    for _ in range(data.draw(st.integers(1, 3))):
        mutant[data.draw(st.integers(0, len(mutant) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(decode_root(bytes(mutant)), Root)
    except Refused as error:
        assert error.reason is Reason.MODEL_NOT_VERIFIED
