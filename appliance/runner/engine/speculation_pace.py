"""How far ahead to speculate: as far as guesses have come true, and as it pays on this machine.

What it pays was measured (``bench/speculation.py``), one thread of a Zen 4 core. A small model of 22 MB, whose steps of
0.8 ms are short: each further token of a sequence adds 0.5 of a step, 0.37 of one with 16. One of 0.5 billion weights
in Q4_0, 20 ms a step: 0.9, since a core is busy with one token already; almost nothing can be won there, and every
wrong guess costs a token's time. On a machine that waits for memory and not for arithmetic, as accelerators do, the
further tokens are nearly free. So the engine looks at its own steps.

What came out, beside the same engine without: one run on a machine that was busy with other things, so read the CPU
times rather than the speed, and measure again before relying on either. The small model was 1.55 times as fast with
guesses that are all right, for one answer at 0.53 of the CPU time and for four at 0.83; with guesses that are all wrong
it took 1.03 to 1.04 of the CPU time, and 0.01 of its tokens were computed in vain.

Trusts: times as they are told; where none are told, or all are 0, a further token is taken to cost ``ASSUMED_COST``.
Promises: a sequence whose guesses fail is tried again at distances that double up to ``LONGEST_PAUSE`` tokens; so is,
every ``STALE_STEPS`` steps, a length of proposals that did not pay.
Not here: where guesses come from.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

LENGTHS: Final = (1, 2, 4, 8, 16)
FIRST_LENGTH: Final = 2
FIRST_PAUSE: Final = 8
LONGEST_PAUSE: Final = 128
ASSUMED_COST: Final = 0.1
STALE_STEPS: Final = 1024
_REMEMBERED_TIMES: Final = 16
_ENOUGH_TIMES: Final = 4
"""Before they are believed, since a machine that does other things too makes single ones much too long."""
_MEMORY: Final = 0.8
"""The weight of what was seen before, at each new proposal."""
_HOPE: Final = (0.8, 1.0)
"""Before anything was seen: accepted, of so many tried."""


class Pace:
    """Of one sequence: doubles while all is accepted, halves when less than half is, then pauses."""

    __slots__ = ("_accepted", "_length", "_pause", "_resumes_at", "_tried")

    def __init__(self) -> None:
        self._length = FIRST_LENGTH
        self._pause = FIRST_PAUSE
        self._resumes_at = 0
        self._accepted, self._tried = _HOPE

    @property
    def chance(self) -> float:
        """That a proposed token is accepted when those before it are: the share of late."""
        return self._accepted / self._tried

    def length(self, answered: int) -> int:
        """How many tokens to propose behind so many of the answer; 0 in a pause."""
        return self._length if answered >= self._resumes_at else 0

    def learn(self, accepted: int, proposed: int, answered: int) -> None:
        """``answered`` counts the answer's tokens from here on."""
        failed = accepted < proposed
        self._accepted = _MEMORY * self._accepted + accepted
        self._tried = _MEMORY * self._tried + accepted + failed
        if not failed:
            self._pause = FIRST_PAUSE
            if proposed >= self._length:
                self._length = min(2 * self._length, LENGTHS[-1])
        elif 2 * accepted < proposed and self._length > 1:
            self._length //= 2
        elif not accepted:
            self.rest(answered)

    def rest(self, answered: int) -> None:
        """Proposals do not pay now. What comes after the pause is another text, and may be as good as any."""
        self._resumes_at = answered + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._accepted, self._tried = _HOPE


class Costs:
    """What steps take, by how many answer and how many tokens are proposed for each.

    The mean of the latest is what counts. The least of them, or the middle one, would say of a machine that does other
    things too that short steps cost less than they do: most of those are not interrupted.
    """

    def __init__(self) -> None:
        self._times: dict[tuple[int, int], deque[float]] = {}
        self._seen_at: dict[tuple[int, int], int] = {}
        self._steps = 0

    def learn(self, count: int, length: int, seconds: float) -> None:
        self._steps += 1
        if seconds > 0:
            shape = (count, length)
            self._times.setdefault(shape, deque(maxlen=_REMEMBERED_TIMES)).append(seconds)
            self._seen_at[shape] = self._steps

    def best(self, count: int, most: int, chances: Sequence[float]) -> int:
        """The length, 0 to ``most``, with which a step gives most tokens for its time."""
        plain = self._mean(count, 0) or 1.0
        found, best = 0, count / plain
        for length in LENGTHS:
            if length > most:
                break
            expected = count + sum(_expected(chance, length) for chance in chances)
            rate = expected / (self._mean(count, length) or plain * (1 + ASSUMED_COST * length))
            if rate > best:
                found, best = length, rate
        return found

    def lacks_plain(self, count: int) -> bool:
        """Whether steps with proposals have been timed, and there is nothing to compare them with."""
        return self._mean(count, 0) is None and any(self._mean(count, length) for length in LENGTHS)

    def _mean(self, count: int, length: int) -> float | None:
        """None also for what has not been seen for long: the machine, or the texts, may be others by now."""
        shape = (count, length)
        if shape not in self._times:
            return None
        if self._steps - self._seen_at[shape] > STALE_STEPS:
            del self._times[shape], self._seen_at[shape]
            return None
        times = self._times[shape]
        return sum(times) / len(times) if len(times) >= _ENOUGH_TIMES else None


def _expected(chance: float, length: int) -> float:
    """How many of ``length`` tokens are accepted on average, each with ``chance`` if those before it are."""
    total, power = 0.0, 1.0
    for _ in range(length):
        power *= chance
        total += power
    return total
