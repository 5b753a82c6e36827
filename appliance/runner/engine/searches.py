"""Draws that are not done: whose search goes on, and for how long in one step.

A draw that a grammar refused at first may take longer than a step (``engine.search``). All such draws together get
``SEARCH_TOKENS`` of each step, by principal in turn; a sequence whose draw is not done sits out the next steps, and
nobody else waits for it.

Trusts: its caller to begin no second search for a sequence before it had the draw of the first.
Promises: one step's looks end with the first that reaches ``SEARCH_TOKENS``; every search is paid for, also one that is
dropped.
Not here: what a look does (``engine.search``), what becomes of a draw (``engine.steps``).
"""

from collections.abc import Iterator
from typing import Final

from appliance.runner.engine.sampling import Draw
from appliance.runner.engine.search import Search
from appliance.runner.engine.sequence import Sequence
from appliance.runner.engine.slots import ANSWER_TOKEN_COST, Slots
from appliance.runner.rounds import Rounds

SEARCH_TOKENS: Final = 4096
"""Tokens about which grammars are asked in one step, but for one of each draw: 1 to 2 milliseconds, with the dearest
grammars that are let in 4."""


class Searches:
    """Those under way, of sequences that have ``slots``. Each sequence has its own in ``search`` meanwhile."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._rounds: Rounds[tuple[Sequence, Search]] = Rounds()

    def __len__(self) -> int:
        return len(self._rounds)

    def begin(self, sequence: Sequence, search: Search) -> None:
        sequence.search = search
        self._rounds.put(str(sequence.number), sequence.job.principal, (sequence, search))

    def keep_rows(self) -> None:
        """Before the logits of the last step are overwritten."""
        for sequence in self._slots.active if self._rounds else ():
            if sequence.search is not None:
                sequence.search.keep_row()

    def go_on(self) -> Iterator[tuple[Sequence, Draw | None]]:
        """One look of everybody's in turn, until what a step has for them is spent. Gives the draws that are done."""
        left = SEARCH_TOKENS
        while self._rounds and left > 0:
            number, principal, (sequence, search) = self._rounds.take()
            if looked := search.look():
                left -= looked
                self._rounds.put(number, principal, (sequence, search))
            else:
                self._charge(sequence, search)
                yield sequence, sequence.sampler.end(search)

    def drop(self, sequence: Sequence) -> None:
        """A sequence ends. If it has a search, nobody wants what that would find."""
        if sequence.search is not None:
            self._rounds.pop(str(sequence.number))
            self._charge(sequence, sequence.search)

    def _charge(self, sequence: Sequence, search: Search) -> None:
        """A search is over. All that a step has for searches costs as much as a token of an answer."""
        sequence.search = None
        self._slots.charge(sequence.job.principal, search.looked_at * ANSWER_TOKEN_COST / SEARCH_TOKENS)
