"""What a grammar allows of one row of logits, looked for among the best tokens first and a few at a time.

A grammar is asked about a token in 0.2 to 2 microseconds: about a vocabulary of 152,000 in 30 to 100 milliseconds, for
which nobody else should wait. So a search goes by looks of at most ``LOOK_TOKENS``, and whoever has one may do
something else between two of them.

It ends as soon as nothing that was not looked at can change what is drawn:

- as many of the best are allowed as can matter (``Goal.best``);
- or all others are so far below one that is allowed that they have no part in the draw (``Goal.margin``);
- or the whole vocabulary was looked at, but for tokens that begin with one that is not allowed: they are not either.

Trusts: its caller for a goal that is true of its chain.
Promises: exactly what is drawn from all that is allowed is drawn from ``allowed``. ``row`` is read until the end: who
goes on after the next decode calls ``keep_row`` before.
Not here: whose search goes on (``engine.searches``), the draw (``engine.sampling``).
"""

import math
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

import numpy as np

from appliance.runner.engine.candidates import Candidates, Row, Rules
from appliance.runner.engine.constraint import CompiledConstraint
from appliance.runner.engine.vocabulary import NO_IDS, Ids

LOOK_TOKENS: Final = 512
"""The most tokens that the grammar is asked about in one look."""
LEAST_LOOK: Final = 128
"""What a look counts as at least: finding out whom to ask about has a price too."""

_FIRST_DEPTH, _NEXT_DEPTH, _LAST_DEPTH = 128, 1024, 8192  # of the best, more or less
_STRIDE: Final = 16


class Goal(NamedTuple):
    """When a search may end. ``best``: so many allowed tokens, from the best one down, are all that can matter.
    ``margin``: nothing matters that is so much below an allowed token; infinite when anything may."""

    best: int
    margin: float = math.inf


class Search:
    """One. ``looked_at`` counts the tokens that the grammar was asked about."""

    def __init__(
        self, row: Row, constraint: CompiledConstraint, candidates: Candidates, rules: Rules, goal: Goal
    ) -> None:
        self.row = row
        self.allowed: Ids = NO_IDS
        """Ids, rising, when the search is over."""
        self.looked_at = 0
        self._constraint = constraint
        self._candidates = candidates
        self._rules = rules
        self._goal = goal
        self._asked = np.zeros(len(row), np.bool_)
        self._fits = np.zeros(len(row), np.bool_)
        self._looks = self._search()

    def look(self) -> int:
        """Goes on by one look. What it counts as; 0 when the search is over."""
        return next(self._looks, 0)

    def finish(self) -> None:
        while self.look():
            pass

    def keep_row(self) -> None:
        """Goes on with a copy of the row, unless it does so already."""
        if not self.row.flags.owndata:
            self.row = self.row.copy()

    def _search(self) -> Iterator[int]:
        vocabulary, fits = self._candidates.vocabulary, self._fits
        for depth in self._depths():
            if (yield from self._ask_best(self.row, depth)):
                return
        yield from self._ask(vocabulary.ends)
        yield from self._ask(vocabulary.levels[0].ids if vocabulary.levels else NO_IDS)
        hopeful = self.row[fits[vocabulary.roots]]
        if len(hopeful) > _LAST_DEPTH and (yield from self._ask_best(hopeful, _LAST_DEPTH)):
            return
        for level in vocabulary.levels[1:]:
            yield from self._ask(level.ids[fits[level.parents]])
        fits[self._rules.never] = False
        self.allowed = self._best(np.flatnonzero(fits))

    def _depths(self) -> Iterator[int]:
        goal = self._goal
        if goal.best <= _FIRST_DEPTH or goal.margin < math.inf:
            yield _FIRST_DEPTH
        if 4 * goal.best < _LAST_DEPTH:
            yield max(_NEXT_DEPTH, 4 * goal.best)

    def _ask_best(self, logits: Row, depth: int) -> Generator[int, None, bool]:
        """About the best of the row, down to the one at about ``depth`` of ``logits``, but for those whose root is
        refused. Whether that is enough."""
        bound = _bound(logits, depth)
        if not math.isfinite(bound):
            return False
        near = self._candidates.above(self.row, bound, self._rules)
        roots = self._candidates.vocabulary.roots[near]
        yield from self._ask(near[self._fits[roots] | ~self._asked[roots]])
        self.allowed = near[self._fits[near]]
        return self._is_enough(bound)

    def _ask(self, ids: Ids) -> Iterator[int]:
        """About those of some tokens that were not asked about before."""
        fresh = ids[~self._asked[ids]]
        self._asked[fresh] = True
        for start in range(0, len(fresh), LOOK_TOKENS):
            part = fresh[start : start + LOOK_TOKENS]
            self._fits[self._constraint.allowed(part)] = True
            self.looked_at += len(part)
            yield max(len(part), LEAST_LOOK)

    def _is_enough(self, bound: np.float32) -> bool:
        """Whether nothing below ``bound`` matters. What a bias or a penalty may have moved says nothing of that."""
        if len(self.allowed) >= self._goal.best:
            return True
        unmoved = np.setdiff1d(self.allowed, self._rules.always, assume_unique=True)
        return len(unmoved) > 0 and bool(self.row[unmoved].max() >= float(bound) + self._goal.margin)

    def _best(self, ids: Ids) -> Ids:
        """Those that can be among the best of them."""
        if len(ids) <= self._goal.best:
            return ids
        logits = self.row[ids]
        bound = np.partition(logits, -self._goal.best)[-self._goal.best]
        best: Ids = ids[(logits >= bound) | np.isin(ids, self._rules.always)]
        return best


def _bound(row: Row, depth: int) -> np.float32:
    """What about ``depth`` of the logits reach, by a sample. Any number would do: it says who is asked about first."""
    sample = row[::_STRIDE]
    place = max(len(sample) - depth // _STRIDE, 0)
    return np.float32(np.partition(sample, place)[place])
