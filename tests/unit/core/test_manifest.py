"""What a signed statement may not say."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.manifest import (
    WHOLE,
    Form,
    Observed,
    SignatureRefused,
    SignedStatement,
    Statement,
    decode_statement,
    encode_statement,
    pae,
    verified_model,
)
from appliance.core.values import Digest, GgufFacts, Signer
from tests.support.public_vectors import vectors_folder
from tests.support.signed_models import payload_of, resource, shards, statement_of

DATA = b"the model's bytes" * 10
RESOURCES = [resource("README.md", b"hello"), resource("model.gguf", DATA)]


def decoded(statement: dict[str, Any]) -> Statement:
    return decode_statement(json.dumps(statement).encode())


def refusal(statement: dict[str, Any] | bytes) -> str:
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    with pytest.raises(SignatureRefused) as caught:
        decode_statement(payload)
    assert caught.value.detail
    return caught.value.reason


def observed(data: bytes, shard_bytes: int | None = None) -> Observed:
    pieces = [data[i : i + shard_bytes] for i in range(0, len(data), shard_bytes)] if shard_bytes else [data]
    hashes = {form: tuple(Digest.of(piece).hex for piece in pieces) for form in (Form("sha256", shard_bytes),)}
    return Observed(digest=Digest.of(data), size_bytes=len(data), hashes={WHOLE: (Digest.of(data).hex,)} | hashes)


def facts(file_bytes: int) -> GgufFacts:
    return GgufFacts(
        architecture="llama",
        name="",
        context_tokens=1,
        vocabulary_tokens=1,
        block_count=1,
        embedding_length=1,
        parameter_count=1,
        tensor_count=1,
        has_chat_template=False,
        header_bytes=1,
        file_bytes=file_bytes,
    )


def verify(statement: Statement, found: Observed, file_bytes: int | None = None) -> None:
    signed = SignedStatement(
        statement=statement,
        signer=Signer(name="acme", fingerprint=Digest.of(b"key")),
        bundle_digest=Digest.of(b"bundle"),
    )
    header = facts(found.size_bytes if file_bytes is None else file_bytes)
    model = verified_model(signed, name="demo", observed=found, facts=header)
    assert (model.digest, model.size_bytes, model.signer.name) == (found.digest, found.size_bytes, "acme")


def test_pae_is_that_of_the_dsse_specification() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_listed_file_is_verified() -> None:
    verify(decoded(statement_of(RESOURCES)), observed(DATA))


def test_own_statement_is_verified() -> None:
    statement = decode_statement(encode_statement("model.gguf", observed(DATA)))
    verify(statement, observed(DATA))


@pytest.mark.parametrize("data", [DATA + b"x", DATA[:-1], b"", b"other"])
def test_file_that_is_not_listed_is_refused(data: bytes) -> None:
    with pytest.raises(SignatureRefused) as caught:
        verify(decoded(statement_of(RESOURCES)), observed(data))
    assert caught.value.reason == "digest-mismatch"


def test_header_of_another_file_is_refused() -> None:
    with pytest.raises(SignatureRefused) as caught:
        verify(decoded(statement_of(RESOURCES)), observed(DATA), file_bytes=5)
    assert caught.value.reason == "digest-mismatch"


def with_serialization(**values: Any) -> dict[str, Any]:
    return statement_of(RESOURCES, **values)


def with_resources(*resources: dict[str, Any]) -> dict[str, Any]:
    return statement_of(list(resources))


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    statement = statement_of([dict(item) for item in RESOURCES])
    change(statement)
    return statement


def named(name: str) -> dict[str, Any]:
    return with_resources(resource(name, DATA))


REFUSED: list[tuple[str, dict[str, Any] | bytes, str]] = [
    ("not JSON", b"{", "statement-malformed"),
    ("empty", b"", "statement-malformed"),
    ("an array", b"[]", "statement-malformed"),
    ("deep nesting", b"[" * 100_000, "statement-malformed"),
    ("not UTF-8", b'{"_type": "\xff"}', "statement-malformed"),
    ("v0.1 predicate", changed(lambda s: s.update(predicateType="https://model_signing/Digests/v0.1")),
     "predicate-unsupported"),
    ("another statement type", changed(lambda s: s.update(_type="https://in-toto.io/Statement/v0.1")),
     "predicate-unsupported"),
    ("no predicate", changed(lambda s: s.pop("predicate")), "statement-malformed"),
    ("unknown statement key", changed(lambda s: s.update(extra=1)), "statement-malformed"),
    ("unknown predicate key", changed(lambda s: s["predicate"].update(extra=1)), "statement-malformed"),
    ("unknown serialization key", with_serialization(extra=1), "statement-malformed"),
    ("unknown resource key", changed(lambda s: s["predicate"]["resources"][0].update(extra=1)), "statement-malformed"),
    ("no subject", changed(lambda s: s.update(subject=[])), "statement-malformed"),
    ("two subjects", changed(lambda s: s["subject"].append(s["subject"][0])), "statement-malformed"),
    ("subject without a digest", changed(lambda s: s["subject"][0].pop("digest")), "statement-malformed"),
    ("subject without sha256", changed(lambda s: s["subject"][0].update(digest={"sha512": "00"})), "subject-mismatch"),
    ("wrong root digest", changed(lambda s: s["subject"][0].update(digest={"sha256": "0" * 64})), "subject-mismatch"),
    ("upper-case root digest", changed(lambda s: s["subject"][0]["digest"].update(
        sha256=s["subject"][0]["digest"]["sha256"].upper())), "subject-mismatch"),
    ("swapped digests", changed(lambda s: s["predicate"]["resources"][0].update(digest=RESOURCES[1]["digest"])),
     "subject-mismatch"),
    ("no resources", with_resources(), "statement-malformed"),
    ("too many resources", with_resources(*(resource(f"{i:06}", b"") for i in range(10_001))), "statement-malformed"),
    ("short digest", with_resources(resource("a", b"") | {"digest": "00"}), "statement-malformed"),
    ("upper-case digest", with_resources(resource("a", b"") | {"digest": "A" * 64}), "statement-malformed"),
    ("digest with a newline", changed(lambda s: s["predicate"]["resources"][0].update(digest="0" * 64 + "\n")),
     "statement-malformed"),
    ("unsorted", with_resources(*reversed(RESOURCES)), "resources-unsorted"),
    ("duplicate", with_resources(resource("a", b"1"), resource("a", b"2")), "resources-unsorted"),
    ("absolute name", named("/etc/passwd"), "name-invalid"),
    ("parent", named("../model.gguf"), "name-invalid"),
    ("parent inside", named("a/../model.gguf"), "name-invalid"),
    ("dot", named("./model.gguf"), "name-invalid"),
    ("doubled slash", named("a//model.gguf"), "name-invalid"),
    ("slash at the end", named("a/"), "name-invalid"),
    ("backslash", named("a\\b"), "name-invalid"),
    ("NUL", named("model\0.gguf"), "name-invalid"),
    ("newline", named("model\n.gguf"), "name-invalid"),
    ("lone surrogate", named("\ud800"), "statement-malformed"),
    ("empty name", named(""), "statement-malformed"),
    ("name of 1025 characters", named("n" * 1025), "statement-malformed"),
    ("top-level .git", named(".git/config"), "name-invalid"),
    ("top-level .gitignore", named(".gitignore"), "name-invalid"),
    ("another method", with_serialization(method="chunks"), "statement-malformed"),
    ("blake2b", with_serialization(hash_type="blake2b"), "hash-unsupported"),
    ("blake3", with_serialization(hash_type="blake3"), "hash-unsupported"),
    ("unknown hash", with_serialization(hash_type="md5"), "hash-unsupported"),
    ("algorithm that is not the hash type", with_resources(resource("a", b"", "blake2b")), "hash-unsupported"),
    ("sharded algorithm on a whole file", with_resources(resource("a", b"", "sha256-sharded-8")), "hash-unsupported"),
    ("links allowed", with_serialization(allow_symlinks=True), "symlinks-allowed"),
    ("links as text", with_serialization(allow_symlinks="false"), "statement-malformed"),
    ("links as null", with_serialization(allow_symlinks=None), "statement-malformed"),
    ("links as 0", with_serialization(allow_symlinks=0), "statement-malformed"),
    ("shard size with whole files", with_serialization(shard_size=8), "statement-malformed"),
    ("ignored by name", with_serialization(ignore_paths=["model.gguf"]), "resource-ignored"),
    ("ignored with a dot", with_serialization(ignore_paths=["./model.gguf"]), "resource-ignored"),
    ("ignored with its root", with_serialization(ignore_paths=["."]), "resource-ignored"),
    ("ignored with its folder", statement_of([resource("a/b/c.gguf", DATA)], ignore_paths=["a/b/"]),
     "resource-ignored"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_statement_is_refused(statement: dict[str, Any] | bytes, reason: str) -> None:
    assert refusal(statement) == reason


def test_duplicate_key_is_refused() -> None:
    text = json.dumps(statement_of(RESOURCES))
    doubled = text.replace('"allow_symlinks": false', '"allow_symlinks": true, "allow_symlinks": false')
    assert refusal(doubled.encode()) == "statement-malformed"
    escaped = text.replace('"predicate":', '"predic\\u0061te": {}, "predicate":')
    assert refusal(escaped.encode()) == "statement-malformed"


@pytest.mark.parametrize(
    "ignore_paths", [[], [".git", ".github", "other"], ["model"], ["model.gguf/x"], ["MODEL.GGUF"]]
)
def test_ignored_paths_elsewhere_are_accepted(ignore_paths: list[str]) -> None:
    verify(decoded(with_serialization(ignore_paths=ignore_paths)), observed(DATA))


def test_ignored_fields_are_accepted() -> None:
    """The in-toto descriptor fields that name no bytes."""
    extra = {"uri": "file:x", "annotations": {"a": 1}, "mediaType": "x/y", "downloadLocation": "z", "content": "AA=="}
    statement = changed(lambda s: (s["subject"][0].update(extra), s["predicate"]["resources"][0].update(extra)))
    verify(decoded(statement), observed(DATA))


# --- shards -----------------------------------------------------------------------------------------------------------


def sharded(resources: list[dict[str, Any]], size: float = 50, **serialization: Any) -> dict[str, Any]:
    return statement_of(resources, **({"method": "shards", "shard_size": size} | serialization))


def by_name(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(resources, key=lambda item: str(item["name"]))


@pytest.mark.parametrize("size", [50, 50.0])
@pytest.mark.parametrize("algorithm", ["sha256", "sha256-sharded-50"])
def test_sharded_file_is_verified(size: float, algorithm: str) -> None:
    verify(decoded(sharded(by_name(shards("model.gguf", DATA, 50, algorithm)), size)), observed(DATA, 50))


def test_sharded_file_in_order_of_number_is_verified() -> None:
    verify(decoded(sharded(shards("model.gguf", DATA, 5), 5)), observed(DATA, 5))


def test_sharded_file_whose_name_has_colons_is_verified() -> None:
    verify(decoded(sharded(by_name(shards("m:1:2.gguf", DATA, 50)))), observed(DATA, 50))


@pytest.mark.parametrize("data", [DATA[:-1], DATA[:150], DATA + b"x", DATA[:-1] + b"x", b""])
def test_sharded_file_that_was_changed_is_refused(data: bytes) -> None:
    with pytest.raises(SignatureRefused) as caught:
        verify(decoded(sharded(by_name(shards("model.gguf", DATA, 50)))), observed(data, 50))
    assert caught.value.reason == "digest-mismatch"


def test_shards_of_two_files_are_not_mixed() -> None:
    resources = by_name([*shards("a", DATA[:50], 50), *shards("b", DATA[50:], 50)])
    with pytest.raises(SignatureRefused):
        verify(decoded(sharded(resources)), observed(DATA, 50))
    verify(decoded(sharded(resources)), observed(DATA[50:], 50))


def shard(name: str) -> dict[str, Any]:
    return resource(name, b"x")


BAD_SHARDS: list[tuple[str, list[dict[str, Any]], float | bool | None, str]] = [
    ("gap", [shard("a:0:50"), shard("a:60:100")], 50, "shards-invalid"),
    ("overlap", [shard("a:0:50"), shard("a:40:90")], 50, "shards-invalid"),
    ("start missing", [shard("a:50:100")], 50, "shards-invalid"),
    ("too long", [shard("a:0:60")], 50, "shards-invalid"),
    ("short in the middle", [shard("a:0:40"), shard("a:40:90")], 50, "shards-invalid"),
    ("backwards", [shard("a:50:40")], 50, "shards-invalid"),
    ("two ends", [shard("a:0:40"), shard("a:0:50")], 50, "shards-invalid"),
    ("empty file", [shard("a:0:0")], 50, "name-invalid"),
    ("empty shard", [shard("a:0:50"), shard("a:50:50")], 50, "shards-invalid"),
    ("no numbers", [shard("a")], 50, "name-invalid"),
    ("one number", [shard("a:5")], 50, "name-invalid"),
    ("sign", [shard("a:+0:50")], 50, "name-invalid"),
    ("leading zero", [shard("a:00:50")], 50, "name-invalid"),
    ("other digits", [shard("a:0:\u0665\u0660")], 50, "name-invalid"),
    ("parent", [shard("../a:0:50")], 50, "name-invalid"),
    ("no shard size", [shard("a:0:50")], None, "statement-malformed"),
    ("shard size 0", [shard("a:0:50")], 0, "statement-malformed"),
    ("shard size below 0", [shard("a:0:50")], -50, "statement-malformed"),
    ("shard size and a half", [shard("a:0:50")], 50.5, "statement-malformed"),
    ("shard size true", [shard("a:0:1")], True, "statement-malformed"),
    ("shard size 1e300", [shard("a:0:1")], 1e300, "statement-malformed"),
    ("another sharded algorithm", [shard("a:0:50") | {"algorithm": "sha256-sharded-51"}], 50, "hash-unsupported"),
]


@pytest.mark.parametrize(
    ("resources", "size", "reason"), [row[1:] for row in BAD_SHARDS], ids=[r[0] for r in BAD_SHARDS]
)
def test_bad_shards_are_refused(resources: list[dict[str, Any]], size: float | None, reason: str) -> None:
    assert refusal(statement_of(resources, method="shards", shard_size=size)) == reason


# --- vectors and mutations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["key", "certificate", "sigstore"])
def test_statement_of_the_specification_is_accepted(name: str) -> None:
    bundle = vectors_folder("oms") / "test-vectors" / "v1.0" / "valid" / f"{name}.bundle.json"
    statement = decoded(payload_of(bundle.read_bytes()))
    assert [item.path for item in statement.resources] == ["signme-1", "signme-2"]


def test_other_predicate_of_the_specification_is_refused() -> None:
    bundle = vectors_folder("oms") / "test-vectors" / "v1.0" / "invalid-payload" / "wrong-predicate.bundle.json"
    assert refusal(payload_of(bundle.read_bytes())) == "predicate-unsupported"


@given(st.data())
def test_mutated_statement_never_raises_anything_else(data: st.DataObject) -> None:
    payload = bytearray(json.dumps(sharded(by_name(shards("model.gguf", DATA, 50)))).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_statement(bytes(payload))
    except SignatureRefused as error:
        assert error.reason
