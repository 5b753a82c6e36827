"""Speculative decoding: several tokens of an answer from one step, where a guess of what comes next holds.

A drafter proposes tokens; the step decodes them behind the last token of their sequence, with logits for each; then
``draw_ahead`` draws from these with the request's own sampler, in order, for as long as what was drawn is what was
proposed. What is behind the first difference leaves the KV cache.

Theorem: for the same logits the tokens are those that single-token steps draw. Each draw sees the logits behind
exactly the tokens drawn before it, and moves the sampler on (penalties, grammar, random numbers, mirostat) exactly
once; no draw is made behind a difference. So the distribution is the model's too, whatever is proposed. It is the
acceptance of Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding" (ICML 2023), for
drafts that are certain of each token (in their terms q is 1 for it: it is taken with probability p, and what is drawn
instead has the rest of p), and that of llama.cpp's own speculative server.

The logits are the same but for rounding: llama.cpp multiplies batches of other sizes by other kernels. That is why it
is for an operator to switch on.

When it helps. A step is a pass over the weights, and llama.cpp makes one more for each different number of tokens of a
sequence, so all proposals of a step are equally long: everybody who answers gains, or nobody is made to wait. How long
follows from what was accepted (``Pace``) and from what steps were seen to cost (``Costs``). A step with prompts in it,
whose room is theirs, has no proposals.

Trusts: its caller to give each sequence's own lists, and to tell of every step.
Promises: whatever a drafter says, a proposal has tokens of the vocabulary only, none that ends an answer, and no more
than the answer and the batch have room for.
Not here: where proposals come from (``speculation_lookup``, ``speculation_draft``), batch and cache (``speculated``).
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from appliance.core.memory import SPECULATED_ROWS
from appliance.runner.engine.candidates import Row
from appliance.runner.engine.model import TokenIds
from appliance.runner.engine.sampling import Draw, Sampler
from appliance.runner.engine.search import Search
from appliance.runner.engine.speculation_pace import LENGTHS, Costs, Pace
from appliance.runner.engine.vocabulary import Vocabulary


class Text(NamedTuple):
    """What a drafter sees of one sequence. ``answer`` grows, and has at least one token; ``max_tokens`` is its most."""

    slot: int
    prompt: TokenIds
    answer: list[int]
    max_tokens: int


class Drafter(Protocol):
    """Guesses. What it says is believed in nothing."""

    def begin(self, text: Text) -> None:
        """A sequence that answers, in a slot that is free."""

    def end(self, slot: int) -> None:
        """Its slot is free again."""

    def propose(self, texts: Sequence[Text], length: int) -> Sequence[Iterable[int]]:
        """For each of some that have begun, at most ``length`` tokens that may come next."""

    def try_out(self) -> None:
        """Does everything once, before the first request. Raises ``LoadError``."""

    def close(self) -> None:
        """Frees what llama.cpp made for it."""


class _Wanted(Protocol):
    @property
    def prompt(self) -> TokenIds: ...
    @property
    def max_tokens(self) -> int: ...


class Answering(Protocol):
    """A sequence (``engine.sequence``)."""

    @property
    def job(self) -> _Wanted: ...
    @property
    def slot(self) -> int: ...
    @property
    def answer(self) -> list[int]: ...
    @property
    def position(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...


class _Course:
    __slots__ = ("pace", "text")

    def __init__(self, text: Text) -> None:
        self.text = text
        self.pace = Pace()

    @property
    def length(self) -> int:
        """The most that may be proposed now: the step draws one more."""
        answered = len(self.text.answer)
        return min(self.pace.length(answered), self.text.max_tokens - answered - 1)


class Speculation:
    """One engine's. The engine thread only."""

    def __init__(self, drafter: Drafter, vocabulary: Vocabulary, batch_tokens: int) -> None:
        self._drafter = drafter
        self._vocabulary_tokens = vocabulary.size
        self._ends = frozenset(vocabulary.ends.tolist())
        self._batch_tokens = batch_tokens
        self._courses: dict[int, _Course] = {}
        self._costs = Costs()
        self._shape: tuple[int, int] | None = None
        """Of the step under way: how many answer, and how many tokens are proposed for each."""

    def propose(self, sequences: Sequence[Answering]) -> list[list[int]]:
        """What to decode behind the last token of each sequence, equally much; nothing when a step without is better.

        ``sequences`` are all that have a slot.
        """
        self._shape = None
        count = len(sequences)
        if not 0 < count <= SPECULATED_ROWS or any(one.position < one.prompt_tokens for one in sequences):
            return []
        courses = self._follow(sequences)
        length = self._length(courses)
        if not length:
            self._shape = (count, 0)
            return []
        drafts = self._drafter.propose([course.text for course in courses], length)
        proposals = [self._sound(draft, length) for draft in drafts]
        length = min(map(len, proposals))
        if not length:
            return []
        self._shape = (count, length)
        return [proposal[:length] for proposal in proposals]

    def verified(self, slot: int, accepted: int, proposed: int) -> None:
        """So many of the tokens proposed for a sequence were drawn. Before its answer has them."""
        course = self._courses[slot]
        course.pace.learn(accepted, proposed, len(course.text.answer) + accepted + 1)

    def timed(self, seconds: float) -> None:
        """The last step took so long. One for which ``propose`` was not called says nothing."""
        shape, self._shape = self._shape, None
        if shape is not None:
            self._costs.learn(*shape, seconds)

    def most(self, count: int) -> int:
        """How many tokens can be proposed at most for each of so many."""
        return min(min(SPECULATED_ROWS, self._batch_tokens - count) // count, LENGTHS[-1])

    def try_out(self) -> None:
        """Raises ``LoadError``."""
        self._drafter.try_out()

    def close(self) -> None:
        self._drafter.close()

    def _follow(self, sequences: Sequence[Answering]) -> list[_Course]:
        before, self._courses = self._courses, {}
        for one in sequences:
            course = before.pop(one.slot, None)
            if course is not None and course.text.answer is not one.answer:
                self._drafter.end(one.slot)
                course = None
            if course is None:
                course = _Course(Text(one.slot, one.job.prompt, one.answer, one.job.max_tokens))
                self._drafter.begin(course.text)
            self._courses[one.slot] = course
        for slot in before:
            self._drafter.end(slot)
        return list(self._courses.values())

    def _length(self, courses: list[_Course]) -> int:
        count = len(courses)
        most = min(self.most(count), *(course.length for course in courses))
        if most < 1 or self._costs.lacks_plain(count):
            return 0
        length = self._costs.best(count, most, [course.pace.chance for course in courses])
        if not length:
            for course in courses:
                course.pace.rest(len(course.text.answer))
        return length

    def _sound(self, draft: Iterable[int], length: int) -> list[int]:
        """Up to the first token that no step could decode, or that nothing may follow."""
        proposal: list[int] = []
        for token in islice(draft, length):
            if not 0 <= token < self._vocabulary_tokens or token in self._ends:
                break
            proposal.append(token)
        return proposal


def draw_ahead(sampler: Sampler, rows: Sequence[Row] | Row, proposal: Sequence[int]) -> list[Draw | Search | None]:
    """The logits behind the last token and behind each proposed one -> the next tokens: those proposed ones that are
    drawn, and the first that differs or comes behind them all. The last is None when there is none, or the search for
    it (``Sampler.begin``).
    """
    draws: list[Draw | Search | None] = []
    for place in range(len(proposal) + 1):
        draw = sampler.begin(rows[place])
        draws.append(draw)
        if not isinstance(draw, Draw) or place == len(proposal) or draw.token != proposal[place]:
            break
    return draws
