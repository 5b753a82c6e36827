"""The tokens of one row of logits that can matter, and the memory in which a chain chooses among them.

They are found exactly: cut the logits into blocks and take the maximum of each column; the k-th best of these maxima
is a lower bound for the k-th best logit, since k different tokens carry them. Nothing below it can be among the k best.

Trusts: its caller for ids inside the vocabulary and for a chain that leaves the array where it is, as llama.cpp's do.
Promises: nothing that is not a number reaches llama.cpp, whose sorting reads out of bounds on such.
Not here: what k must be (``engine.sampling``).
"""

import ctypes
import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.runner.engine.native import llama, short_call
from appliance.runner.engine.vocabulary import NO_IDS, Ids, Vocabulary

Row = NDArray[np.float32]

_NARROW, _WIDE = 512, 2048  # columns: the fewer, the less there is to sort; the bound needs several for each of the k
_COLUMNS_PER_BEST: Final = 2
MAX_DEPTH: Final = _WIDE
"""The largest k for which there is a bound."""
MAX_SHARED_DEPTH: Final = _NARROW // _COLUMNS_PER_BEST
_MAX_SHARED_LOGITS: Final = 2**21  # more than a cache holds are faster row by row
_SPARE: Final = 16
"""Of the forbidden tokens so many are expected among the best; more cost a second look."""
_ENTRY: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_apply = short_call("llama_sampler_apply")


def lower_bound(row: Row, depth: int) -> np.float32 | None:
    """A number that the ``depth`` best logits of a row reach; None when only looking at all of them would tell.

    Not a number when too many of the logits are not.
    """
    columns = _NARROW if depth * _COLUMNS_PER_BEST <= _NARROW else _WIDE
    blocks = len(row) // columns
    if depth > columns or blocks < 2:
        return None
    maxima = row[: blocks * columns].reshape(blocks, columns).max(axis=0)
    maxima.partition(columns - depth)
    return np.float32(maxima[columns - depth])


class Rules(NamedTuple):
    """What is to be done to a row before anything is drawn. Ids rise and are different within an array.

    ``always``: ids that are candidates however low they stand. ``never``: ids that are none. ``biased`` is part of
    ``always``; ``biases`` are added to its logits.
    """

    always: Ids = NO_IDS
    never: Ids = NO_IDS
    biased: Ids = NO_IDS
    biases: Row = np.zeros(0, np.float32)


class Candidates:
    """The vocabulary, and scratch memory for one row at a time. One per thread that draws."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary: Final = vocabulary
        self.numbers: Final = np.empty(vocabulary.size, np.float32)
        entries = np.zeros(vocabulary.size, _ENTRY)
        self._address = entries.ctypes.data
        self._entry_ids = entries["id"]
        self._entry_logits = entries["logit"]
        self._mask = np.zeros(vocabulary.size, np.bool_)
        self._shared_mask = np.zeros(_MAX_SHARED_LOGITS, np.bool_)
        self._array = llama.llama_token_data_array()
        self._data = ctypes.c_void_p.from_buffer(self._array, llama.llama_token_data_array.data.offset)
        self._reference = ctypes.byref(self._array)

    def near(self, row: Row, depth: int, rules: Rules) -> Ids:
        """Ids, rising: all tokens that can be among the ``depth`` best, by logit, of those that are not in ``never``,
        and ``always``. All ids when there is no bound for ``depth``, none when the logits are not numbers."""
        mask, never = self._mask, rules.never
        for spare in (min(len(never), _SPARE), len(never)):
            bound = lower_bound(row, depth + spare)
            if bound is None:
                mask.fill(True)
                break
            if math.isnan(bound):
                return NO_IDS
            np.greater_equal(row, bound, out=mask)
            mask[never] = False
            if not len(never) or np.count_nonzero(mask) >= depth:
                break
        if len(rules.always):
            mask[rules.always] = True
        mask[never] = False
        return np.flatnonzero(mask)

    def above(self, row: Row, bound: np.float32, rules: Rules) -> Ids:
        """Ids, rising: all tokens that reach ``bound`` and are not in ``never``, and ``always``."""
        mask = self._mask
        np.greater_equal(row, bound, out=mask)
        if len(rules.always):
            mask[rules.always] = True
        mask[rules.never] = False
        return np.flatnonzero(mask)

    def draw_each(self, chains: Sequence[Any], rows: Row, depth: int) -> list[int | None] | None:
        """``choose`` of every row among its ``depth`` best, without rules, by a few calls for all rows: right after a
        decode nothing is in the processor's caches, and a call costs more than what it does.

        None, and no chain has drawn, when it would not be quicker or a row needs a closer look. ``depth`` is from 1 to
        ``MAX_SHARED_DEPTH``.
        """
        count, size = rows.shape
        blocks = size // _NARROW
        if rows.size > _MAX_SHARED_LOGITS or blocks < 2:
            return None
        maxima = rows[:, : blocks * _NARROW].reshape(count, blocks, _NARROW).max(axis=1)
        maxima.partition(_NARROW - depth, axis=1)
        mask = self._shared_mask[: rows.size]
        np.greater_equal(rows, maxima[:, _NARROW - depth, None], out=mask.reshape(count, size))
        (found,) = mask.nonzero()
        logits = rows.take(found)
        cuts = found.searchsorted(_starts(count, size)).tolist()
        if len(found) > size or not all(map(operator.lt, cuts, cuts[1:])) or not np.isfinite(logits).all():
            return None
        self._entry_ids[: len(found)] = found % size
        self._entry_logits[: len(found)] = logits
        return list(map(self._draw, chains, cuts, cuts[1:]))

    def choose(self, chain: Any | None, row: Row, ids: Ids, rules: Rules) -> int | None:
        """The token that a chain draws from ``ids``, or without a chain the best; None when there is nothing to draw
        from, or a logit is not finite. Minus infinity is how a model says never."""
        logits = row[ids]
        if len(ids) and len(rules.biased):
            places = np.searchsorted(ids, rules.biased)
            places[places == len(ids)] = 0
            there = ids[places] == rules.biased
            logits[places[there]] += rules.biases[there]
        finite = np.isfinite(logits)
        if not finite.all():
            if not np.isneginf(logits[~finite]).all():
                return None
            ids, logits = ids[finite], logits[finite]
        if not len(ids):
            return None
        if chain is None:
            return int(ids[logits.argmax()])
        self._entry_ids[: len(ids)] = ids
        self._entry_logits[: len(ids)] = logits
        return self._draw(chain, 0, len(ids))

    def _draw(self, chain: Any, start: int, end: int) -> int | None:
        """Among the entries from ``start`` to before ``end``."""
        array = self._array
        self._data.value = self._address + start * _ENTRY.itemsize
        array.size, array.selected, array.sorted = end - start, -1, False
        _apply(chain, self._reference)
        selected = start + array.selected
        if not start <= selected < start + array.size or not math.isfinite(self._entry_logits[selected]):
            return None
        return int(self._entry_ids[selected])


@lru_cache
def _starts(rows: int, size: int) -> Ids:
    """Where each row of a matrix begins, and where the last ends."""
    return np.arange(rows + 1) * size
