"""What the KV cache holds, stream by stream, and which stream a new request gets.

Every slot has a stream of cells of its own, as long as the context: no request can take another's room, and nothing
that is kept for one tenant slows down the steps of another. What a request leaves behind stays in its stream until
somebody needs the slot. A request of the same partition whose prompt begins alike takes the stream over, or a copy of
it.

Streams and not one unified cache, by CPU time per decoding step on one thread. Unified costs 1.0 times as much as
streams with 8 sequences of 128 tokens, 1.2 with 8 of 700, 1.3 to 1.6 with 32 of 128, and 1.4 with 8 of 128 beside 8,192
cells that are only kept; with up to 384 prompt tokens in the same batch both cost the same within 15 %. What streams
take in exchange is that a prefix is shared by copying a whole stream: one of 4,096 cells takes as long as computing 3
tokens (a model of 130 MB) to 18 (one of 22 MB).

Trusts: its caller to do what a ``Place`` says, in order, and to tell what was computed.
Promises: nothing is taken over across partitions. A stream is emptied from the least recently used one on, first among
those of the partition that keeps most of them, so that nobody clears out the others by having many. At least one token
of a prompt is left to compute.
Not here: llama.cpp's own memory (``engine.context``), and whether a model's can be cut (recurrent ones cannot).
"""

from collections import Counter
from collections.abc import Collection, Hashable
from typing import Final, NamedTuple

import numpy as np

from appliance.runner.engine.model import TokenIds
from appliance.runner.engine.prefixes import PrefixTree

_NOTHING: Final = np.zeros(0, np.int32)


class Place(NamedTuple):
    """``slot`` is the request's from now on. Its first ``kept`` tokens are computed, in ``source``, which may be
    ``slot`` itself; what is behind them must be removed."""

    slot: int
    source: int
    kept: int


class _Stream:
    """``tokens`` are those of the sequence, of which the first ``computed`` have keys and values."""

    __slots__ = ("busy", "computed", "partition", "tokens", "used_at")

    def __init__(self) -> None:
        self.partition: Hashable = None
        self.tokens = _NOTHING
        self.computed = 0
        self.busy = False
        self.used_at = 0


class Streams:
    """``least_copied`` is the number of tokens from which on copying a stream is cheaper than computing them; None for
    a model whose memory cannot be cut or copied, where nothing is kept."""

    def __init__(self, slots: int, least_copied: int | None) -> None:
        self._streams = [_Stream() for _ in range(slots)]
        self._least_copied = least_copied
        self._trees: dict[Hashable, PrefixTree] = {}
        self._uses = 0

    @property
    def free(self) -> bool:
        return any(not stream.busy for stream in self._streams)

    @property
    def used_cells(self) -> int:
        return sum(stream.computed for stream in self._streams)

    def place(self, partition: Hashable, prompt: TokenIds) -> Place:
        """Gives the slot whose stream the prompt goes on, else the lowest empty one, else one that is emptied for it.

        Raises ``ValueError`` when none is free.
        """
        source, length = self._longest(partition, prompt)
        stream, empty = self._streams[source], self._empty()
        little_is_lost = length == stream.computed or (empty is None and 2 * length >= stream.computed)
        if length and not stream.busy and little_is_lost:
            return self._occupy(Place(source, source, length), partition, prompt)
        slot = self._victim() if empty is None else empty
        if slot != source and not self._worth_a_copy(length):
            length = 0
        return self._occupy(Place(slot, source, length), partition, prompt)

    def catch_up(self, slot: int, ahead: Collection[int]) -> Place | None:
        """For a request that has computed nothing yet: what others have computed of its prompt by now, or None when
        one of those in ``ahead``, which are computing, will soon have more of it."""
        mine = self._streams[slot]
        source, length = self._longest(mine.partition, mine.tokens)
        if self._promised(slot, ahead) > length:
            return None
        if source == slot or not self._worth_a_copy(length - mine.computed):
            return Place(slot, slot, mine.computed)
        self._touch(source)
        mine.computed = length
        return Place(slot, source, length)

    def computed(self, slot: int, tokens: int) -> None:
        """The request in ``slot`` has computed so many more."""
        self._streams[slot].computed += tokens

    def release(self, slot: int, tokens: TokenIds, *, keep: bool) -> None:
        """The request in ``slot`` has ended; its stream has the keys and values of ``tokens``, which may be kept."""
        self._touch(slot)
        stream = self._streams[slot]
        stream.busy = False
        if keep and len(tokens) and self._least_copied is not None:
            stream.tokens, stream.computed = tokens, len(tokens)
            self._trees[stream.partition].put(slot, tokens)
        else:
            self._clear(slot)

    def holds(self, slot: int) -> int:
        """How many tokens are kept in a stream."""
        return self._streams[slot].computed

    # --- choosing ---------------------------------------------------------------------------------------------------

    def _longest(self, partition: Hashable, prompt: TokenIds) -> tuple[int, int]:
        """The stream with most of the prompt's first tokens computed, and how many; of two, an idle one, and the one
        with less besides."""
        found = (0, False, 0, 0)
        tree = self._trees.get(partition)
        for length, members in tree.matches(prompt[:-1]) if tree else ():
            for slot in members:
                stream = self._streams[slot]
                found = max(found, (min(length, stream.computed), not stream.busy, -stream.computed, slot))
        return found[3], found[0]

    def _promised(self, slot: int, ahead: Collection[int]) -> int:
        """How many tokens of its prompt the request in ``slot`` could copy once those in ``ahead`` have them."""
        mine = self._streams[slot]
        tree = self._trees.get(mine.partition)
        lengths = [
            length
            for length, members in (tree.matches(mine.tokens[:-1]) if tree else ())
            if self._worth_a_copy(length - mine.computed) and not members.isdisjoint(ahead)
        ]
        return max(lengths, default=0)

    def _worth_a_copy(self, tokens: int) -> bool:
        return self._least_copied is not None and tokens >= self._least_copied

    def _empty(self) -> int | None:
        return next(
            (slot for slot, stream in enumerate(self._streams) if not stream.busy and not stream.computed), None
        )

    def _victim(self) -> int:
        idle = [slot for slot, stream in enumerate(self._streams) if not stream.busy]
        kept = Counter(self._streams[slot].partition for slot in idle)
        most = max(kept.values(), default=0)
        return min(
            (slot for slot in idle if kept[self._streams[slot].partition] == most),
            key=lambda slot: self._streams[slot].used_at,
        )

    # --- keeping the books ------------------------------------------------------------------------------------------

    def _occupy(self, place: Place, partition: Hashable, prompt: TokenIds) -> Place:
        if place.kept:
            self._touch(place.source)
        self._clear(place.slot)
        self._touch(place.slot)
        stream = self._streams[place.slot]
        stream.busy = True
        stream.partition, stream.tokens, stream.computed = partition, prompt, place.kept
        if self._least_copied is not None:
            self._trees.setdefault(partition, PrefixTree()).put(place.slot, prompt)
        return place

    def _touch(self, slot: int) -> None:
        self._uses += 1
        self._streams[slot].used_at = self._uses

    def _clear(self, slot: int) -> None:
        stream = self._streams[slot]
        if tree := self._trees.get(stream.partition):
            tree.drop(slot)
            if not len(tree):
                del self._trees[stream.partition]
        stream.partition, stream.tokens, stream.computed = None, _NOTHING, 0
