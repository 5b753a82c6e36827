"""What one step decodes: the last token of every answering sequence, and prompts in the rest of the batch.

All of it is in the order of the slots, since llama.cpp cuts a batch wherever sequence ids do not rise one by one, and
reads the weights once per piece.

Whose prompt is computed first goes by principal (``engine.fair``), and within one by what is shortest. Another prompt
joins only while the step is not worth having without it (``engine.economy``): two that are computed together both wait
for the whole. While somebody is answering, a step computes at most ``PROMPT_TOKENS`` of prompts: that bounds the time
between two tokens, for everybody.

Trusts: no more slots than the batch has room for; no empty prompt.
Promises: what is given back is in the order of the batch.
Not here: steps with proposed tokens (``engine.speculated``); decoding (``engine.steps``).
"""

from operator import attrgetter
from typing import Final

from appliance.runner.engine.batch import Batch
from appliance.runner.engine.economy import Economy
from appliance.runner.engine.fair import deal
from appliance.runner.engine.sequence import Sequence
from appliance.runner.engine.slots import Slots

PROMPT_TOKENS: Final = 256
"""Of prompts in one step while somebody is answering. Measured in CPU time on one thread, 8 and 32 callers with prompts
of 128 and 512 tokens: with 256 the median time to the first token is that with 512 within 10 %, and the longest time
between two tokens half of it; with 128 the first token comes a third later, with 64 up to three times as late."""


def fill(
    batch: Batch, slots: Slots, economy: Economy, prompt_tokens: int
) -> tuple[list[tuple[Sequence, int]], list[Sequence]]:
    """Fills the batch. Gives the sequences that compute of their prompts, with how many tokens, and those whose logits
    will come out, in the order of the batch. One whose draw is not done sits out (``engine.searches``)."""
    shares = _shares(batch.capacity, slots, economy, prompt_tokens)
    batch.clear()
    prompted, wanted = [], []
    for sequence in slots.active:
        position = sequence.position
        if sequence.search is not None:
            continue
        if position >= sequence.prompt_tokens:
            batch.add_last(sequence.slot, sequence.answer[-1], position)
            wanted.append(sequence)
        elif share := shares.get(sequence.slot, 0):
            last = position + share == sequence.prompt_tokens
            batch.add(sequence.slot, sequence.job.prompt[position : position + share], position, output=last)
            prompted.append((sequence, share))
            if last:
                wanted.append(sequence)
    return prompted, wanted


def _shares(capacity: int, slots: Slots, economy: Economy, prompt_tokens: int) -> dict[int, int]:
    """Slot -> how many tokens of its prompt this step computes."""
    prompting = [sequence for sequence in slots.active if sequence.position < sequence.prompt_tokens]
    if not prompting:
        return {}
    slots.settle()
    answering = len(slots.active) - len(prompting)
    budget = capacity - answering
    if answering:
        budget = min(budget, prompt_tokens)
    groups: dict[str, list[Sequence]] = {}
    for sequence in sorted(prompting, key=attrgetter("number")):
        group = groups.setdefault(sequence.job.principal, [])
        if not sequence.waits or slots.catch_up(sequence, group):
            group.append(sequence)
    shares: dict[int, int] = {}
    for principal in slots.by_claim(groups):
        group = groups[principal]
        remaining = [sequence.prompt_tokens - sequence.position for sequence in group]
        if remaining and not shares:
            budget = min(budget, max(economy.worthwhile(budget), _for_one(remaining)))
        dealt = deal(budget, remaining)
        shares |= zip((sequence.slot for sequence in group), dealt, strict=True)
        budget -= sum(dealt)
    return shares


def _for_one(remaining: list[int]) -> int:
    """What ``deal`` needs to give the shortest all that it lacks, with the quarter that goes to the oldest before."""
    shortest = min(remaining)
    return shortest if remaining[0] == shortest else -(-4 * shortest // 3)
