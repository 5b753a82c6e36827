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
Not here: whose search goes on (``engine.steps``), the draw (``engine.sampling``).
"""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from appliance.runner.engine.candidates import Candidates, Row, Rules, lower_bound
from appliance.runner.engine.constraint import CompiledConstraint
from appliance.runner.engine.vocabulary import NO_IDS, Ids

LOOK_TOKENS: Final = 512
"""The most tokens that the grammar is asked about in one look."""
LEAST_LOOK: Final = 128
"""What a look counts as at least: finding out whom to ask about has a price too."""
DEPTHS: Final = (128, 2048)
"""So many of the best are looked at before the whole vocabulary is."""


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
        for depth in DEPTHS:
            bound = lower_bound(self.row, depth)
            if bound is None:
                break
            near = self._candidates.above(self.row, bound, self._rules)
            yield from self._ask(near)
            self.allowed = near[self._fits[near]]
            if self._is_enough(bound):
                return
        yield from self._ask_all()
        self._fits[self._rules.never] = False
        self.allowed = self._best(np.flatnonzero(self._fits))

    def _ask_all(self) -> Iterator[int]:
        vocabulary, fits = self._candidates.vocabulary, self._fits
        yield from self._ask(vocabulary.ends)
        for number, level in enumerate(vocabulary.levels):
            yield from self._ask(level.ids[fits[level.parents]] if number else level.ids)

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
