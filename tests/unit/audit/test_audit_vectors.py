"""Writer and reader give what the vectors say, which were computed without them."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.audit.proof import check_proof
from appliance.audit.signatures import verify_checkpoint
from appliance.core.note import parse_vkey
from appliance.core.tree import (
    TileTree,
    bundle_path,
    check_consistency,
    check_inclusion,
    encode_bundle,
    leaf_hash,
    subtree_root,
    tile_path,
)
from appliance.notary.checkpoint import Checkpointer, verifier_key
from appliance.notary.files import Files

FOLDER = Path(__file__).resolve().parents[2] / "vectors" / "audit"


@pytest.fixture(scope="module")
def vectors() -> Any:
    return json.loads((FOLDER / "log.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def entries(vectors: Any) -> list[bytes]:
    return [entry.encode() for entry in vectors["entries"]]


def unhex(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


def test_vectors_are_what_their_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("audit_vectors", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.generate() == (FOLDER / "log.json").read_text(encoding="utf-8")


def test_tree_has_the_roots(vectors: Any, entries: list[bytes]) -> None:
    tree = TileTree()
    for size, root in enumerate(vectors["roots"]):
        assert tree.root().hex() == root
        assert subtree_root([leaf_hash(entry) for entry in entries[:size]]).hex() == root
        if size < len(entries):
            tree.append(leaf_hash(entries[size]))


def test_proofs_verify(vectors: Any, entries: list[bytes]) -> None:
    roots = unhex(vectors["roots"])
    for case in vectors["inclusion"]:
        check_inclusion(
            index=case["index"],
            size=case["size"],
            leaf=leaf_hash(entries[case["index"]]),
            proof=unhex(case["proof"]),
            root=roots[case["size"]],
        )
    for case in vectors["consistency"]:
        check_consistency(
            old_size=case["old"],
            new_size=case["new"],
            old_root=roots[case["old"]],
            new_root=roots[case["new"]],
            proof=unhex(case["proof"]),
        )


def test_notary_signs_exactly_the_checkpoint(vectors: Any, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vectors["private_key"]))
    origin = vectors["vkey"].partition("+")[0]
    assert str(verifier_key(origin, key)) == vectors["vkey"]
    path = tmp_path / "checkpoint"
    signing = Checkpointer(Files(), head_path=tmp_path / "head", checkpoint_path=path, origin=origin, key=key)
    signing.sign(len(vectors["entries"]), bytes.fromhex(vectors["roots"][-1]))
    assert path.read_text(encoding="utf-8") == vectors["checkpoint"]


def test_auditor_accepts_checkpoint_and_proof(vectors: Any, entries: list[bytes]) -> None:
    key = parse_vkey(vectors["vkey"])
    checkpoint = verify_checkpoint(vectors["checkpoint"].encode(), key)
    assert (checkpoint.size, checkpoint.root.hex()) == (11, vectors["roots"][-1])
    proof = vectors["tlog_proof"]
    assert check_proof(proof["text"], entries[proof["index"]], key) == proof["index"]


def test_bundle_and_paths(vectors: Any, entries: list[bytes]) -> None:
    assert encode_bundle(entries).hex() == vectors["bundle"]
    for case in vectors["paths"]:
        level, index, width = case["tile"]
        assert tile_path(level, index, width) == case["path"]
        assert bundle_path(index, width) == case["bundle"]
