"""Turns durable entries into the log that an auditor reads: bundles, tiles, checkpoint (C2SP tlog-tiles).

A publication is a function of the tree at the last full bundle and of the entries since. One that fails has changed
nothing that the next one does not write again, byte for byte.

Trusts: that the entries given are durable.
Promises: when ``publish`` returns, every bundle and tile of the tree at that size is durable, and so is a checkpoint
    that covers it. A checkpoint never names a tile that is not there, nor a tree that does not extend the last one
    signed: the root at that size is computed again on the way, and another one is a ``Fault``.
Not here: durability of the entries themselves (``notary.wal``); the schedule (``notary.journal``).
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from appliance.core.refusals import Fault
from appliance.core.tree import (
    TILE_WIDTH,
    TileTree,
    bundle_path,
    decode_bundle,
    decode_tile,
    encode_bundle,
    partial_widths,
    subtree_root,
    tile_path,
)
from appliance.notary.checkpoint import Checkpointer
from appliance.notary.files import Files, make_directories, replace, sync_directory


class Publisher:
    """Belongs to one thread at a time."""

    def __init__(self, files: Files, directory: Path, checkpointer: Checkpointer, tree: TileTree) -> None:
        """``tree`` ends at a full bundle: its size is a multiple of 256."""
        self._files = files
        self._directory = directory
        self._checkpointer = checkpointer
        self._tree = tree

    @property
    def boundary(self) -> int:
        """Index of the first entry that is in no full, published bundle."""
        return self._tree.size

    def publish(self, first_index: int, entries: Sequence[bytes], leaves: Sequence[bytes]) -> int:
        """Publishes ``entries`` (with their leaf hashes), which begin at ``boundary``, and returns the new boundary.

        Raises ``OSError`` when a file cannot be written, ``Fault`` when this is not the log that was signed before.
        """
        if first_index != self._tree.size:
            raise Fault(f"entries from {first_index} on do not follow the {self._tree.size} that are published")
        tree, full = self._tree.copy(), self._tree
        self._checkpointer.check(tree)
        written: dict[str, bytes] = {}
        for position, leaf in enumerate(leaves):
            for tile in tree.append(leaf):
                written[tile.path] = tile.data
            self._checkpointer.check(tree)
            if tree.size % TILE_WIDTH == 0:
                start = position + 1 - TILE_WIDTH
                index = (first_index + start) // TILE_WIDTH
                written[bundle_path(index)] = encode_bundle(entries[start : position + 1])
                full = tree.copy()
        completed = tuple(written)
        for tile in tree.partials():
            written[tile.path] = tile.data
        if width := tree.size % TILE_WIDTH:
            written[bundle_path(tree.size // TILE_WIDTH, width)] = encode_bundle(entries[-width:])
        self._write(written)
        self._checkpointer.sign(tree.size, tree.root())
        for path in completed:
            self._drop_partials(path)
        self._tree = full
        return full.size

    def _write(self, written: dict[str, bytes]) -> None:
        paths = {self._directory / name: data for name, data in written.items()}
        parents = {path.parent for path in paths}
        for parent in parents:
            make_directories(self._files, parent)
        for path, data in paths.items():
            replace(self._files, path, data, sync_name=False)
        for parent in parents:
            sync_directory(self._files, parent)

    def _drop_partials(self, path: str) -> None:
        """Partial tiles go once the full one is there, never before (tlog-tiles, "Partial Tiles")."""
        directory = self._directory / f"{path}.p"
        with suppress(OSError):  # mere waste: a leftover is a true prefix of the full tile
            for partial in tuple(directory.iterdir()):
                self._files.unlink(partial)
            self._files.remove_directory(directory)


def load_tree(directory: Path, size: int) -> TileTree:
    """The tree of the first ``size`` entries, a multiple of 256, from the full tiles on disk.

    Each partial level is hashed again from the full tiles below it. Raises ``Fault`` when one is missing or malformed.
    """
    levels: list[list[bytes]] = [[] for _ in partial_widths(size)]
    for level in range(1, len(levels)):
        total = size // TILE_WIDTH**level
        start = total - total % TILE_WIDTH
        levels[level] = [subtree_root(_full_tile(directory, level - 1, index)) for index in range(start, total)]
    return TileTree(size, levels)


def _full_tile(directory: Path, level: int, index: int) -> tuple[bytes, ...]:
    path = tile_path(level, index)
    try:
        hashes = decode_tile((directory / path).read_bytes())
    except (OSError, ValueError) as error:
        raise Fault(f"{path} cannot be read: {error}") from error
    if len(hashes) != TILE_WIDTH:
        raise Fault(f"{path} is not a full tile")
    return hashes


def read_leaves(directory: Path, start: int, end: int) -> tuple[bytes, ...]:
    """Entries of the full bundles that cover ``start`` up to ``end`` (a multiple of 256). Raises ``Fault``."""
    entries: list[bytes] = []
    for index in range(start // TILE_WIDTH, end // TILE_WIDTH):
        path = bundle_path(index)
        try:
            bundle = decode_bundle((directory / path).read_bytes())
        except (OSError, ValueError) as error:
            raise Fault(f"{path} cannot be read: {error}") from error
        if len(bundle) != TILE_WIDTH:
            raise Fault(f"{path} is not a full bundle")
        entries.extend(bundle)
    return tuple(entries[start % TILE_WIDTH :])
