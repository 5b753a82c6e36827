"""However bytes are hashed, whole or in shards, mapped or read, by one thread or several, it tells the same."""

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.core.manifest import WHOLE, Form, HashType, SignatureRefused, Statement, decode_statement
from appliance.core.values import Digest
from appliance.models import descriptor
from appliance.models.descriptor import Wholes, hash_shards, observe, observe_signed, sealed_copy
from tests.support.signed_models import memory_file, resource, shards, statement_of

DATA = random.Random(1).randbytes(300_001)
SIZES = [1, 4096, 65536, 100_000, 300_000, 300_001, 300_002, 10**9]


@pytest.fixture(params=["read", "mapped"])
def fd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(descriptor, "CHUNK_BYTES", 4096)
    plain = memory_file(DATA)
    opened = sealed_copy(plain) if request.param == "mapped" else os.dup(plain)
    os.close(plain)
    yield opened
    os.close(opened)


def expected(shard_bytes: int, hash_type: HashType = "sha256") -> tuple[str, ...]:
    starts = range(0, len(DATA), shard_bytes)
    return tuple(hashlib.new(hash_type, DATA[start : start + shard_bytes]).hexdigest() for start in starts)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("hash_type", ["sha256", "blake2b"])
def test_shards_are_those_of_the_bytes(fd: int, size: int, hash_type: HashType) -> None:
    form = Form(hash_type, size)
    found = observe(fd, [form])
    assert found.hashes == {WHOLE: (Digest.of(DATA).hex,), form: expected(size, hash_type)}
    assert (found.digest, found.size_bytes) == (Digest.of(DATA), len(DATA))
    for threads in (1, 2, 5):
        assert hash_shards(fd, hash_type, size, len(DATA), threads=threads) == expected(size, hash_type)


def test_more_shards_than_a_statement_lists_are_refused(fd: int) -> None:
    with pytest.raises(SignatureRefused, match="more shards"):
        observe(fd, [Form("sha256", 1)])


def statement(data: bytes = DATA, size: int = 65536, *more: bytes) -> Statement:
    import json

    resources = [one for number, part in enumerate((data, *more)) for one in shards(f"m{number}", part, size)]
    ordered = sorted(resources, key=lambda item: str(item["name"]))
    return decode_statement(json.dumps(statement_of(ordered, method="shards", shard_size=size)).encode())


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls: list[int] = []
    real: Callable[..., object] = getattr(descriptor, name)

    def call(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(descriptor, name, call)
    return calls


def test_whole_is_hashed_once_and_then_known_by_its_shards(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_full, by_shards = counted(monkeypatch, "observe"), counted(monkeypatch, "hash_shards")
    wholes = Wholes()
    first = observe_signed(fd, [statement()], wholes)
    second = observe_signed(fd, [statement()], wholes)
    assert first == second
    assert first.digest == Digest.of(DATA)
    assert (len(in_full), len(by_shards)) == (1, 1)


def test_known_whole_is_not_believed_of_other_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shards of what is there are hashed each time; only what they add up to is remembered."""
    wholes = Wholes()
    good = memory_file(DATA)
    observe_signed(good, [statement()], wholes)
    os.close(good)
    by_shards = counted(monkeypatch, "hash_shards")
    for position in (0, 65535, 65536, len(DATA) - 1):
        data = bytearray(DATA)
        data[position] ^= 1
        bad = memory_file(bytes(data))
        found = observe_signed(bad, [statement()], wholes)
        os.close(bad)
        assert found.digest == Digest.of(bytes(data))
    assert len(by_shards) == 4


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", DATA[:65536], b""])
def test_known_whole_is_not_believed_of_another_size(data: bytes) -> None:
    wholes = Wholes()
    good = memory_file(DATA)
    observe_signed(good, [statement()], wholes)
    os.close(good)
    bad = memory_file(data)
    found = observe_signed(bad, [statement()], wholes)
    os.close(bad)
    assert (found.digest, found.size_bytes) == (Digest.of(data), len(data))


def test_model_among_others_in_one_statement_is_found_by_its_shards(fd: int) -> None:
    wholes, listed = Wholes(), statement(b"y" * 100_000, 65536, DATA)
    assert observe_signed(fd, [listed], wholes) == observe_signed(fd, [listed], wholes)


def test_memory_of_wholes_is_bounded() -> None:
    wholes = Wholes()
    for number in range(Wholes.MAX + 10):
        wholes.learn(Form("sha256", 1), (str(number),), Digest.of(b""))
    assert wholes.find(Form("sha256", 1), (str(Wholes.MAX - 1),)) is not None
    assert wholes.find(Form("sha256", 1), (str(Wholes.MAX),)) is None


def test_blake3_without_its_package_is_refused_plainly(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(SignatureRefused) as caught:
        observe(fd, [Form("blake3", None)])
    assert caught.value.reason == "hash-unavailable"
    assert "extra" in caught.value.detail


def test_blake3_with_its_package_is_used(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another hash stands in for it: the package is optional, and its interface that of ``hashlib``."""
    monkeypatch.setitem(sys.modules, "blake3", SimpleNamespace(blake3=hashlib.sha3_256))
    assert observe(fd, [Form("blake3", None)]).hashes[Form("blake3", None)] == (hashlib.sha3_256(DATA).hexdigest(),)


def test_file_that_was_cut_while_it_is_hashed_kills_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping of a file that shrinks is SIGBUS: only what is sealed is mapped."""
    monkeypatch.setattr(descriptor, "_mapped_pieces", None)
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        observe(file.fileno())
        os.truncate(path, 10)
        assert observe(file.fileno()).size_bytes == 10


@pytest.mark.parametrize("name", ["blake2b", "blake3"])
def test_digest_with_the_length_of_another_algorithm_is_refused(name: str) -> None:
    import json

    wrong = resource("m", DATA, name) | {"digest": "0" * (64 if name == "blake2b" else 128)}
    with pytest.raises(SignatureRefused) as caught:
        decode_statement(json.dumps(statement_of([wrong], hash_type=name)).encode())
    assert caught.value.reason == "statement-malformed"
