"""BLAKE3 is the real one where the extra is installed, and a plain refusal where it is not."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from appliance.core.manifest import Form
from appliance.core.refusals import Refused
from appliance.models.descriptor import hash_shards, observe
from appliance.models.store import ModelStore
from tests.support.gguf_files import small_model_bytes
from tests.support.signed_models import TRUSTED, memory_file, signed_statement, statement_of

REQUIREMENTS = Path(__file__).parents[3] / "requirements"
MODEL = small_model_bytes("demo")

# From BLAKE3's own test_vectors.json: the input is 0, 1, … 250, 0, 1, … of so many bytes.
VECTORS = [
    (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
    (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
    (102_400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"),
]


def one(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "digest": blake3(data).hexdigest(), "algorithm": "blake3"}


def whole(data: bytes = MODEL) -> bytes:
    return signed_statement(statement_of([one("model.gguf", data)], hash_type="blake3"))


def in_shards(data: bytes = MODEL, size: int = 1000) -> bytes:
    parts = [(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    resources = sorted(
        (one(f"model.gguf:{start}:{end}", data[start:end]) for start, end in parts), key=lambda each: each["name"]
    )
    return signed_statement(statement_of(resources, hash_type="blake3", method="shards", shard_size=size))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore.open(tmp_path / "store") as opened:
        yield opened


def put(store: ModelStore, bundle: bytes) -> None:
    fd = memory_file(MODEL)
    try:
        store.import_model(fd, "demo", bundle, TRUSTED)
    finally:
        os.close(fd)


@pytest.mark.parametrize(("size", "expected"), VECTORS)
def test_hash_is_the_one_of_the_specification(size: int, expected: str) -> None:
    data = bytes(number % 251 for number in range(size))
    fd = memory_file(data)
    try:
        assert observe(fd, [Form("blake3", None)]).hashes[Form("blake3", None)] == (expected,)
        shards = tuple(blake3(data[start : start + 999]).hexdigest() for start in range(0, size, 999))
        assert hash_shards(fd, "blake3", 999, size) == shards
    finally:
        os.close(fd)


@pytest.mark.parametrize("bundle", [whole(), in_shards()], ids=["whole", "shards"])
def test_model_that_was_signed_with_blake3_is_loaded(store: ModelStore, bundle: bytes) -> None:
    put(store, bundle)
    for _ in range(2):  # the second time by its shards alone
        with store.open_verified("demo", TRUSTED) as opened:
            assert os.pread(opened.file, 2**24, 0) == MODEL


@pytest.mark.parametrize("bundle", [whole(MODEL + b"x"), in_shards(MODEL + b"x")], ids=["whole", "shards"])
def test_other_bytes_than_those_signed_with_blake3_are_refused(store: ModelStore, bundle: bytes) -> None:
    with pytest.raises(Refused, match="digest-mismatch"):
        put(store, bundle)


@pytest.mark.parametrize("bundle", [whole(), in_shards()], ids=["whole", "shards"])
def test_without_the_extra_neither_import_nor_load_believes_it(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, bundle: bytes
) -> None:
    put(store, bundle)
    monkeypatch.setitem(sys.modules, "blake3", None)
    for action in (lambda: put(store, bundle), lambda: store.open_verified("demo", TRUSTED)):
        with pytest.raises(Refused, match=r"hash-unavailable: .*extra 'blake3'"):
            action()


def test_digest_of_another_hash_that_calls_itself_blake3_is_refused(store: ModelStore) -> None:
    named = one("model.gguf", MODEL) | {"algorithm": "sha256"}
    with pytest.raises(Refused, match="hash-unsupported"):
        put(store, signed_statement(statement_of([named], hash_type="blake3")))


def pinned(name: str) -> set[str]:
    return set(re.findall(r"^blake3==(\S+)", (REQUIREMENTS / name).read_text(), re.MULTILINE))


def test_extra_is_locked_once_and_is_not_in_the_image() -> None:
    """The image takes ``runtime.txt`` alone."""
    assert pinned("runtime.txt") == set()
    assert len(pinned("blake3.txt") | pinned("dev.txt") | pinned("interop.txt")) == 1
    assert "blake3" not in json.dumps((REQUIREMENTS / "runtime.in").read_text())
