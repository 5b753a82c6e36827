"""A step of answers only, each with as many tokens that are only expected to come: its batch, and what holds of it.

Computing such tokens counts as service, taken or not.

Trusts: proposals of ``Speculation.propose`` for these sequences, in their order.
Promises: afterwards the KV cache of each sequence ends with the last token that was drawn as proposed.
Not here: what to propose and when (``engine.speculation``); decoding (``engine.steps``).
"""

from collections.abc import Sequence as SequenceOf

from appliance.runner.engine.batch import Batch
from appliance.runner.engine.candidates import Row
from appliance.runner.engine.figures import Counts
from appliance.runner.engine.sampling import Draw
from appliance.runner.engine.search import Search
from appliance.runner.engine.sequence import Sequence
from appliance.runner.engine.slots import Slots
from appliance.runner.engine.speculation import Speculation, draw_ahead

Proposed = list[tuple[Sequence, list[int]]]
"""What is proposed for each sequence that has a slot, equally much, in the order of the slots."""


def fill_ahead(batch: Batch, proposed: Proposed) -> None:
    """Fills the batch, with the logits after every token of it."""
    batch.clear()
    for sequence, proposal in proposed:
        batch.add_ahead(sequence.slot, [sequence.answer[-1], *proposal], sequence.position)


def verify(
    proposed: Proposed, rows: SequenceOf[Row] | Row, slots: Slots, speculation: Speculation, counts: Counts
) -> list[tuple[Sequence, list[Draw | Search | None]]]:
    """The logits of that batch -> what comes next in each sequence. What was computed in vain leaves the cache; the
    positions are advanced by whoever takes the draws."""
    first = 0
    drawn = []
    for sequence, proposal in proposed:
        draws = draw_ahead(sequence.sampler, rows[first:], proposal)
        first += 1 + len(proposal)
        speculation.verified(sequence.slot, len(draws) - 1, len(proposal))
        counts.proposed_tokens += len(proposal)
        counts.accepted_tokens += len(draws) - 1
        if vain := 1 + len(proposal) - len(draws):
            slots.take_back(sequence, sequence.position + len(draws), vain)
        drawn.append((sequence, draws))
    return drawn
