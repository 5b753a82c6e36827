"""Refusals that are counted instead of recorded one by one, so that nobody steers the size of the log by being refused.

These are the refusals before a principal is known, and those of a principal that asks too often or too much at once.
Of the former the operator's log tells each by a line, while they are not too many.

Trusts: nothing; a reason is one of a closed list, and principals are as many as there are identities.
Promises: every count reaches exactly one summary. ``totals`` only grow. However many strangers are refused, the lines
    about them are bounded, and say when some are missing.
Not here: writing the summaries (``serve``).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from appliance.core.records import Actor, RefusalSummary
from appliance.core.refusals import Reason

COUNTED: Final = frozenset({Reason.RATE_LIMITED, Reason.TOO_MANY_STREAMS})
"""All that a principal can be told without limit: every other refusal has first been counted against its rate."""

MAX_LINE_CHARACTERS: Final = 500
"""A header's name alone may be 16 kB."""

log = logging.getLogger(__name__)


class RefusalLines:
    """Lines of the operator's log: ``burst`` of them at any speed, and ``per_second`` more with time."""

    def __init__(
        self, *, burst: int = 2000, per_second: float = 20.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._seen_at = clock()
        self._left = float(burst)
        self._untold = 0

    def tell(self, reason: Reason, detail: str = "") -> None:
        self.say(f"refused: {reason.code}: {detail!r}")

    def say(self, line: str, *, level: int = logging.INFO, error: Exception | None = None) -> None:
        """Anything else that strangers may have said, or brought about, as often as they like."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._seen_at) * self._per_second)
        self._seen_at = now
        if self._left < 1:
            self._untold += 1
            return
        self._left -= 1
        if self._untold:
            log.info("%d lines before this one were left out", self._untold)
            self._untold = 0
        log.log(level, "%s", line[:MAX_LINE_CHARACTERS], exc_info=error)


LINES: Final = RefusalLines()
"""Of this process, whose log is one too."""
FAULTS: Final = RefusalLines(burst=200, per_second=1.0)
"""What is our own fault, whoever brought it about: nobody is refused so often that these are left out."""


class Tally:
    """``strangers`` counts, per reason code, what was refused before anybody was identified; ``stripped_headers``,
    since the start, headers of proxies that came from others."""

    def __init__(self) -> None:
        self.stripped_headers = 0
        self.strangers: Counter[str] = Counter()
        self._known: dict[tuple[str, tuple[str, str] | None], tuple[Actor, Counter[str]]] = {}
        self._past: Counter[str] = Counter()

    def count(self, actor: Actor, reason: Reason) -> None:
        """One refusal of a known principal. Its summary names the token of the first in the interval; one whom a
        service asks for, and who asks too, is in two, or one would be on record for what the other did."""
        nearest = next(((one.issuer, one.subject) for one in actor.acting), None)
        _actor, counts = self._known.setdefault((actor.key, nearest), (actor, Counter()))
        counts[reason.code] += 1

    def stranger(self, reason: Reason, detail: str) -> None:
        """One refusal before anybody was identified."""
        self.strangers[reason.code] += 1
        LINES.tell(reason, detail)

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
