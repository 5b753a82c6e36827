"""Refusals that are counted instead of recorded one by one, so that nobody steers the size of the log by being refused.

These are the refusals before a principal is known, and those of a principal that asks too often or too much at once.

Trusts: nothing; a reason is one of a closed list, and principals are as many as there are identities.
Promises: every count reaches exactly one summary. ``totals`` only grow.
Not here: writing the summaries (``serve``).
"""

from collections import Counter
from typing import Final

from appliance.core.records import Actor, RefusalSummary
from appliance.core.refusals import Reason

COUNTED: Final = frozenset({Reason.RATE_LIMITED, Reason.TOO_MANY_STREAMS})
"""All that a principal can be told without limit: every other refusal has first been counted against its rate."""


class Tally:
    """``strangers`` counts, per reason code, what was refused before anybody was identified; ``stripped_headers``,
    since the start, headers of proxies that came from others."""

    def __init__(self) -> None:
        self.stripped_headers = 0
        self.strangers: Counter[str] = Counter()
        self._known: dict[str, tuple[Actor, Counter[str]]] = {}
        self._past: Counter[str] = Counter()

    def count(self, actor: Actor, reason: Reason) -> None:
        """One refusal of a known principal. Its summary names the token of the first in the interval."""
        _actor, counts = self._known.setdefault(actor.key, (actor, Counter()))
        counts[reason.code] += 1

    def recorded(self, reason: Reason) -> None:
        """One refusal that has a record of its own, so that no summary needs to tell it."""
        self._past[reason.code] += 1

    def totals(self) -> Counter[str]:
        """All refusals per reason code since the start."""
        return sum((counts for _actor, counts in self._known.values()), self._past + self.strangers)

    def take(self, interval_seconds: int) -> list[RefusalSummary]:
        """The summaries of all that was counted since the last time, and counting starts again at nothing."""
        summaries = [
            RefusalSummary(interval_seconds=interval_seconds, counts=dict(counts), actor=actor)
            for actor, counts in self._known.values()
        ]
        if self.strangers:
            summaries.append(RefusalSummary(interval_seconds=interval_seconds, counts=dict(self.strangers)))
        self._past = self.totals()
        self.strangers.clear()  # not replaced: the wire counts into it too
        self._known.clear()
        return summaries
