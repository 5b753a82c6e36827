"""The log's Merkle tree (RFC 6962 section 2), its proofs, and its shape on disk (C2SP tlog-tiles).

Example: a log of 70,000 entries is 273 full tiles ``tile/0/000`` … ``tile/0/272`` of 256 leaf hashes, one partial
tile ``tile/0/273.p/112``, one full tile ``tile/1/000``, ``tile/1/001.p/17``, ``tile/2/000.p/1``, and as many entry
bundles under ``tile/entries/`` as there are tiles at level 0. A hash in a tile of level L+1 is the root of one full
tile of level L.

A proof is a list of hashes, each the root of a range of leaves. The generators below therefore name *ranges*, and
whoever holds the leaves or tiles turns them into hashes; the verifiers follow RFC 9162 sections 2.1.3.2 and 2.1.4.2
and share nothing with the generators.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Final

from appliance.core.values import Value

HASH_BYTES: Final = 32
TILE_WIDTH: Final = 256
MAX_ENTRY_BYTES: Final = 2**16 - 1
"""An entry bundle prefixes each entry with its length in two bytes (tlog-tiles, "Log entries")."""

EMPTY_ROOT: Final = sha256(b"").digest()

Range = tuple[int, int]
"""Leaves ``start`` up to, not including, ``end``."""


class ProofInvalid(Exception):
    """A proof does not lead to the root that it was checked against."""


# --- hashes ---------------------------------------------------------------------------------------------------------


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962 section 2.1: SHA-256(0x00 || entry)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962 section 2.1: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


def _perfect_root(hashes: Sequence[bytes]) -> bytes:
    """Root over a power of two of equally high subtrees."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
    return hashes[0]


def subtree_root(hashes: Sequence[bytes]) -> bytes:
    """Root over any number of equally high subtrees; of leaf hashes, the tree's root. Empty: SHA-256 of nothing."""
    return _fold((hashes,)) if hashes else EMPTY_ROOT


def _fold(levels: Sequence[Sequence[bytes]]) -> bytes:
    """Root of a tree given as its tile levels, lowest first, each the part that no higher level covers.

    RFC 6962's tree of any size is its perfect subtrees, largest on the left, folded from the right.
    """
    root: bytes | None = None
    for hashes in levels:
        end = len(hashes)
        while end:
            width = end & -end  # the lowest set bit: the smallest, rightmost perfect subtree
            left = _perfect_root(hashes[end - width : end])
            root = left if root is None else node_hash(left, root)
            end -= width
    return EMPTY_ROOT if root is None else root


# --- the growing tree -----------------------------------------------------------------------------------------------


class Tile(Value, frozen=True, kw_only=True):
    """``hashes`` of tile ``index`` at ``level``: 1 to 256 of them, and partial below 256."""

    level: int
    index: int
    hashes: tuple[bytes, ...]

    @property
    def path(self) -> str:
        return tile_path(self.level, self.index, len(self.hashes))

    @property
    def data(self) -> bytes:
        return b"".join(self.hashes)


class TileTree:
    """An append-only tree that remembers one partial tile per level: at most 255 hashes each, whatever its size."""

    def __init__(self, size: int = 0, partials: Sequence[Sequence[bytes]] = ()) -> None:
        """``partials[L]`` holds the ``(size // 256**L) % 256`` hashes of the partial tile at level L.

        Raises ``ValueError`` when they do not fit ``size``.
        """
        self.size = size
        self._levels = [list(hashes) for hashes in partials]
        if [len(hashes) for hashes in self._levels] != partial_widths(size):
            raise ValueError("the partial tiles do not fit the tree's size")

    def copy(self) -> "TileTree":
        return TileTree(self.size, self._levels)

    def append(self, leaf: bytes) -> tuple[Tile, ...]:
        """Adds one leaf hash and returns the tiles that it completed, lowest level first."""
        completed: list[Tile] = []
        rising: bytes | None = leaf
        self.size += 1
        level = 0
        while rising is not None:
            if level == len(self._levels):
                self._levels.append([])
            hashes = self._levels[level]
            hashes.append(rising)
            rising = None
            if len(hashes) == TILE_WIDTH:
                index = self.size // TILE_WIDTH ** (level + 1) - 1
                completed.append(Tile(level=level, index=index, hashes=tuple(hashes)))
                rising = _perfect_root(hashes)
                hashes.clear()
            level += 1
        return tuple(completed)

    def partials(self) -> tuple[Tile, ...]:
        """The partial tiles of the tree at its present size, without the empty ones."""
        return tuple(
            Tile(level=level, index=self.size // TILE_WIDTH ** (level + 1), hashes=tuple(hashes))
            for level, hashes in enumerate(self._levels)
            if hashes
        )

    def root(self) -> bytes:
        return _fold(self._levels)


def partial_widths(size: int) -> list[int]:
    """Width of the partial tile at each level of a tree of ``size`` leaves, zero where there is none."""
    widths = []
    while size:
        widths.append(size % TILE_WIDTH)
        size //= TILE_WIDTH
    return widths


# --- proofs ---------------------------------------------------------------------------------------------------------


def _split(width: int) -> int:
    """The largest power of two smaller than ``width`` (RFC 6962's k)."""
    return 1 << (width - 1).bit_length() - 1


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The ranges whose roots prove leaf ``index`` in a tree of ``size``, in the order of RFC 6962 section 2.1.1.

    Raises ``ValueError`` unless ``0 <= index < size``.
    """
    if not 0 <= index < size:
        raise ValueError("the index lies outside the tree")
    start, end, ranges = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return ranges[::-1]


def consistency_ranges(old_size: int, new_size: int) -> list[Range]:
    """The ranges whose roots prove that the tree of ``new_size`` extends that of ``old_size`` (RFC 6962 section 2.1.2).

    Raises ``ValueError`` unless ``0 <= old_size <= new_size``. Empty for equal sizes, and for an empty old tree.
    """
    if not 0 <= old_size <= new_size:
        raise ValueError("the old tree is larger than the new one")
    if old_size in (0, new_size):
        return []
    start, end, ranges = 0, new_size, []
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    if start:  # otherwise the old root is itself the subtree, and the verifier has it
        ranges.append((start, end))
    return ranges[::-1]


def range_root(root_of: Callable[[int, int], bytes], start: int, end: int) -> bytes:
    """Root of any range that a proof names, from ``root_of(level, index)``: the root of the perfect subtree of
    ``2**level`` leaves that starts at ``index * 2**level``."""
    width = end - start
    if width & (width - 1) == 0:
        level = width.bit_length() - 1
        return root_of(level, start >> level)
    middle = start + _split(width)
    return node_hash(range_root(root_of, start, middle), range_root(root_of, middle, end))


def check_inclusion(*, index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 section 2.1.3.2. Raises ``ProofInvalid``."""
    if not 0 <= index < size:
        raise ProofInvalid("the index lies outside the tree")
    fn, sn, result = index, size - 1, leaf
    for step in proof:
        if sn == 0:
            raise ProofInvalid("the proof is too long")
        if fn & 1 or fn == sn:
            result = node_hash(step, result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            result = node_hash(result, step)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ProofInvalid("the proof is too short")
    if result != root:
        raise ProofInvalid("the proof leads to another root")


def check_consistency(
    *, old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """RFC 9162 section 2.1.4.2, with the two cases that it leaves to the caller: equal sizes and an empty old tree.

    Raises ``ProofInvalid``.
    """
    if not 0 <= old_size <= new_size:
        raise ProofInvalid("the old tree is larger than the new one")
    if old_size in (0, new_size):
        expected = EMPTY_ROOT if old_size == 0 else new_root
        if proof or old_root != expected:
            raise ProofInvalid("the old root is not that of the new tree's beginning")
        return
    steps = list(proof)
    if old_size & (old_size - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        raise ProofInvalid("the proof is empty")
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_result = new_result = steps[0]
    for step in steps[1:]:
        if sn == 0:
            raise ProofInvalid("the proof is too long")
        if fn & 1 or fn == sn:
            old_result = node_hash(step, old_result)
            new_result = node_hash(step, new_result)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new_result = node_hash(new_result, step)
        fn, sn = fn >> 1, sn >> 1
    if sn:
        raise ProofInvalid("the proof is too short")
    if old_result != old_root:
        raise ProofInvalid("the proof leads to another old root")
    if new_result != new_root:
        raise ProofInvalid("the proof leads to another new root")


# --- tlog-tiles paths and bundles -----------------------------------------------------------------------------------


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """``tile/<L>/<N>[.p/<W>]``, relative to the log's directory."""
    return f"tile/{level}/{_index_path(index, width)}"


def bundle_path(index: int, width: int = TILE_WIDTH) -> str:
    """``tile/entries/<N>[.p/<W>]``, relative to the log's directory."""
    return f"tile/entries/{_index_path(index, width)}"


def _index_path(index: int, width: int) -> str:
    if index < 0 or not 1 <= width <= TILE_WIDTH:
        raise ValueError("no such tile")
    path = f"{index % 1000:03d}"
    while index >= 1000:
        index //= 1000
        path = f"x{index % 1000:03d}/{path}"
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Entries, each behind its length in two big-endian bytes. Raises ``OverflowError`` for an entry of 64 KiB."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(data: bytes) -> list[bytes]:
    """The reverse. Raises ``ValueError`` when the data ends in the middle of an entry."""
    return list(_split_bundle(data))


def _split_bundle(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        start = position + 2
        position = start + int.from_bytes(data[position:start], "big")
        if start > len(data) or position > len(data):
            raise ValueError("the bundle ends in the middle of an entry")
        yield data[start:position]


def decode_tile(data: bytes) -> tuple[bytes, ...]:
    """Tile bytes -> hashes. Raises ``ValueError`` unless they are 1 to 256 whole hashes."""
    if not data or len(data) % HASH_BYTES or len(data) > TILE_WIDTH * HASH_BYTES:
        raise ValueError("a tile is 1 to 256 hashes of 32 bytes")
    return tuple(data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES))
