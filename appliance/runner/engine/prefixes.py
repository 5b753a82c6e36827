"""A radix tree of token sequences: which of them begins like a new prompt, and for how long.

Each edge carries the tokens that all sequences below it have in common, so that a lookup costs one pass over the
prompt, however many sequences there are.

Trusts: nothing; token ids are just numbers here.
Promises: a match is a common prefix, token by token, never a hash of one.
Not here: who may see whose sequences (``engine.streams`` keeps one tree per partition), and where keys and values lie.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from appliance.runner.engine.model import TokenIds


class _Node:
    """``edge`` leads here; ``members`` are the sequences that go on through it or end at its end."""

    __slots__ = ("children", "edge", "members")

    def __init__(self, edge: TokenIds, members: set[int]) -> None:
        self.edge = edge
        self.members = members
        self.children: dict[int, _Node] = {}


class PrefixTree:
    """Sequences under small numbers. Their arrays must not change afterwards."""

    def __init__(self) -> None:
        self._root: Final = _Node(np.zeros(0, np.int32), set())
        self._sequences: dict[int, TokenIds] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def put(self, number: int, tokens: TokenIds) -> None:
        """Adds a sequence, in place of the one that had its number."""
        self.drop(number)
        self._sequences[number] = tokens
        node, rest = self._root, tokens
        node.members.add(number)
        while len(rest):
            first = int(rest[0])
            child = node.children.get(first)
            if child is None:
                node.children[first] = _Node(rest, {number})
                return
            shared = common_length(child.edge, rest)
            if shared < len(child.edge):
                child = node.children[first] = _split(child, shared)
            child.members.add(number)
            node, rest = child, rest[shared:]

    def drop(self, number: int) -> None:
        """Takes a sequence out; no effect if there is none."""
        tokens = self._sequences.pop(number, None)
        if tokens is None:
            return
        self._root.members.discard(number)
        node, rest, path = self._root, tokens, []
        while len(rest):
            first = int(rest[0])
            child = node.children[first]
            child.members.discard(number)
            if not child.members:
                del node.children[first]
                break
            path.append(child)
            node, rest = child, rest[len(child.edge) :]
        for node in reversed(path):
            _join(node)

    def matches(self, tokens: TokenIds) -> Iterator[tuple[int, set[int]]]:
        """(length, sequences that have these first ``length`` tokens too), each longer than the one before."""
        node, length = self._root, 0
        while length < len(tokens):
            child = node.children.get(int(tokens[length]))
            if child is None:
                return
            shared = common_length(child.edge, tokens[length:])
            length += shared
            yield length, child.members
            if shared < len(child.edge):
                return
            node = child


def common_length(left: TokenIds, right: TokenIds) -> int:
    """How many first tokens are the same."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    place = int(differ.argmax()) if length else 0
    return place if length and differ[place] else length


def _split(node: _Node, length: int) -> _Node:
    """A node for the first ``length`` tokens of an edge, above what is left of it."""
    upper = _Node(node.edge[:length], set(node.members))
    node.edge = node.edge[length:]
    upper.children[int(node.edge[0])] = node
    return upper


def _join(node: _Node) -> None:
    """Makes one edge of two where nothing branches or ends between them, so that the tree does not grow with time."""
    if len(node.children) == 1:
        [child] = node.children.values()
        if child.members == node.members:
            node.edge = np.concatenate([node.edge, child.edge])
            node.children = child.children
