"""The tree against RFC 6962 by definition, and proofs that must not verify."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.tree import (
    EMPTY_ROOT,
    ProofInvalid,
    TileTree,
    bundle_path,
    check_consistency,
    check_inclusion,
    consistency_ranges,
    decode_bundle,
    decode_tile,
    encode_bundle,
    inclusion_ranges,
    leaf_hash,
    partial_widths,
    range_root,
    subtree_root,
    tile_path,
)

# Certificate Transparency's customary test leaves.
LEAVES = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "60" * 16)]
LEAVES[7] = bytes.fromhex("606162636465666768696a6b6c6d6e6f")


def mth(entries: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word; shares nothing with the code under test."""
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:])).digest()


def path(m: int, entries: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1."""
    if len(entries) == 1:
        return []
    k = 1
    while k * 2 < len(entries):
        k *= 2
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def subproof(m: int, entries: list[bytes], known: bool) -> list[bytes]:
    """RFC 6962 section 2.1.2."""
    if m == len(entries):
        return [] if known else [mth(entries)]
    k = 1
    while k * 2 < len(entries):
        k *= 2
    if m <= k:
        return [*subproof(m, entries[:k], known), mth(entries[k:])]
    return [*subproof(m - k, entries[k:], False), mth(entries[:k])]


def numbered(count: int) -> list[bytes]:
    return [b"%d" % i for i in range(count)]


def hashes(ranges: list[tuple[int, int]], entries: list[bytes]) -> list[bytes]:
    return [mth(entries[start:end]) for start, end in ranges]


@pytest.mark.parametrize(
    ("size", "root"),
    [
        (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
        (2, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
        (3, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
        (4, "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
        (5, "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
        (6, "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
        (7, "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
        (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
    ],
)
def test_known_roots_of_certificate_transparency(size: int, root: str) -> None:
    assert mth(LEAVES[:size]).hex() == root
    tree = TileTree()
    for entry in LEAVES[:size]:
        tree.append(leaf_hash(entry))
    assert tree.root().hex() == root
    assert subtree_root([leaf_hash(entry) for entry in LEAVES[:size]]).hex() == root


def test_growing_tree_has_the_defined_root_and_tiles_at_every_size() -> None:
    entries = numbered(600)
    leaves = [leaf_hash(entry) for entry in entries]
    tree = TileTree()
    for size in range(601):
        if size % 50 == 0 or size in (255, 256, 257, 511, 512, 513):
            assert tree.root() == mth(entries[:size])
            assert tree.copy().root() == tree.root()
            assert [len(t.hashes) for t in tree.partials()] == [w for w in partial_widths(size) if w]
        if size < 600:
            for tile in tree.append(leaves[size]):
                assert tile.level == 0
                assert tile.hashes == tuple(leaves[tile.index * 256 : tile.index * 256 + 256])


def test_higher_tiles_hold_the_roots_of_lower_ones() -> None:
    tree = TileTree()
    completed = [tile for number in range(70_000) for tile in tree.append(leaf_hash(b"%d" % number))]
    names = [tile.path for tile in completed] + [tile.path for tile in tree.partials()]
    assert sum(name.startswith("tile/0/") for name in names) == 274
    assert {"tile/0/272", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"} <= set(names)
    first = next(tile for tile in completed if tile.level == 1)
    assert first.hashes == tuple(subtree_root(tile.hashes) for tile in completed if tile.level == 0)[:256]
    assert tree.root() == subtree_root([leaf_hash(b"%d" % number) for number in range(70_000)])


def test_tree_does_not_accept_partials_of_another_size() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        TileTree(300, [])
    with pytest.raises(ValueError, match="do not fit"):
        TileTree(2, [[b"x" * 32]])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_inclusion_proof_verifies_and_no_changed_one_does(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 400))
    index = data.draw(st.integers(0, size - 1))
    entries = numbered(size)
    proof = hashes(inclusion_ranges(index, size), entries)
    assert proof == path(index, entries)
    good = {"index": index, "size": size, "leaf": leaf_hash(entries[index]), "proof": proof, "root": mth(entries)}
    check_inclusion(**good)
    other = b"\xff" * 32
    for change in (
        {"leaf": other},
        {"root": other},
        {"proof": [*proof, other]},
        {"proof": proof[:-1] if proof else [other]},
        {"index": size},
        {"index": (index + 1) % size if size > 1 else 1},
        {"size": index},
    ):
        with pytest.raises(ProofInvalid):
            check_inclusion(**(good | change))
    for position in range(len(proof)):
        with pytest.raises(ProofInvalid):
            check_inclusion(**(good | {"proof": [*proof[:position], other, *proof[position + 1 :]]}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_consistency_proof_verifies_and_no_changed_one_does(data: st.DataObject) -> None:
    new_size = data.draw(st.integers(1, 400))
    old_size = data.draw(st.integers(1, new_size))
    entries = numbered(new_size)
    proof = hashes(consistency_ranges(old_size, new_size), entries)
    assert proof == subproof(old_size, entries, True)
    good = {
        "old_size": old_size,
        "new_size": new_size,
        "old_root": mth(entries[:old_size]),
        "new_root": mth(entries),
        "proof": proof,
    }
    check_consistency(**good)
    other = b"\xff" * 32
    for change in ({"old_root": other}, {"new_root": other}, {"proof": [*proof, other]}, {"old_size": new_size + 1}):
        with pytest.raises(ProofInvalid):
            check_consistency(**(good | change))
    for position in range(len(proof)):
        with pytest.raises(ProofInvalid):
            check_consistency(**(good | {"proof": [*proof[:position], other, *proof[position + 1 :]]}))
    if proof:
        with pytest.raises(ProofInvalid):
            check_consistency(**(good | {"proof": proof[:-1]}))


def test_small_trees_exhaustively() -> None:
    entries = numbered(40)
    for size in range(1, 41):
        for index in range(size):
            proof = hashes(inclusion_ranges(index, size), entries)
            check_inclusion(
                index=index, size=size, leaf=leaf_hash(entries[index]), proof=proof, root=mth(entries[:size])
            )
        for old in range(size + 1):
            check_consistency(
                old_size=old,
                new_size=size,
                old_root=mth(entries[:old]),
                new_root=mth(entries[:size]),
                proof=hashes(consistency_ranges(old, size), entries),
            )


def test_empty_old_tree_needs_the_empty_root() -> None:
    check_consistency(old_size=0, new_size=0, old_root=EMPTY_ROOT, new_root=EMPTY_ROOT, proof=[])
    with pytest.raises(ProofInvalid):
        check_consistency(old_size=0, new_size=5, old_root=b"x" * 32, new_root=b"y" * 32, proof=[])


def test_range_root_from_perfect_subtrees() -> None:
    entries = numbered(77)

    def perfect(level: int, index: int) -> bytes:
        return mth(entries[index << level : (index + 1) << level])

    for index in range(77):
        for start, end in inclusion_ranges(index, 77):
            assert range_root(perfect, start, end) == mth(entries[start:end])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 3)])
def test_no_proof_for_a_leaf_outside_the_tree(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        inclusion_ranges(index, size)


def test_no_proof_from_a_larger_to_a_smaller_tree() -> None:
    with pytest.raises(ValueError, match="larger"):
        consistency_ranges(5, 4)


def test_paths_are_those_of_tlog_tiles() -> None:
    assert tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tile_path(1, 0, 17) == "tile/1/000.p/17"
    assert bundle_path(1067) == "tile/entries/x001/067"
    assert bundle_path(5, 255) == "tile/entries/005.p/255"
    for bad in ((0, -1, 256), (0, 0, 0), (0, 0, 257)):
        with pytest.raises(ValueError, match="no such tile"):
            tile_path(*bad)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundle_round_trip(entries: list[bytes]) -> None:
    assert decode_bundle(encode_bundle(entries)) == entries


def test_malformed_bundle_and_tile_are_refused() -> None:
    for bad in (b"\x00", b"\x00\x05abc", b"\x00\x01a\x00"):
        with pytest.raises(ValueError, match="middle of an entry"):
            decode_bundle(bad)
    with pytest.raises(OverflowError):
        encode_bundle([b"x" * 65536])
    for bad in (b"", b"x" * 31, b"x" * 32 * 257):
        with pytest.raises(ValueError, match="256 hashes"):
            decode_tile(bad)
