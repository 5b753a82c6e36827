"""Continuous batching: what one step decodes, and what comes out of it.

A step decodes the last token of every answering sequence and spends the rest of the batch on prompts. All of it is in
the order of the slots, since llama.cpp cuts a batch wherever sequence ids do not rise one by one, and reads the weights
once per piece.

Who gets a slot, and whose prompt is computed first, goes by principal (``engine.fair``), and within one by what is
shortest. While somebody is answering, a step computes at most ``PROMPT_TOKENS`` of prompts: that bounds the time
between two tokens, for everybody.

What is promised to a principal with less service behind it than all others that wait: it gets the next slot that comes
free. Nobody is turned out of a slot, so with all of them taken by others it waits for the shortest of their answers to
end. That is at most one service time, whatever number of requests the others have sent.

A prompt that begins like what its partition has in the cache is computed from there on (``engine.streams``). One that
begins like another of the same principal's that is being computed waits for it: so the choices of one request compute
its prompt once.

A draw that a grammar refused at first may take longer than a step (``engine.search``). All such draws together get
``SEARCH_TOKENS`` of each step, by principal in turn; a sequence whose draw is not done sits out the next steps, and
nobody else waits for it.

Where the operator allows it, a step may also decode tokens that are only expected to come (``engine.speculation``).
Computing them counts as service, taken or not.

Trusts: a job's prompt is not empty, its token ids are in range, and prompt and answer fit the context (``channel``);
the time that its caller gives never goes back.
Promises: each job ends with exactly one event that has ``ended`` set, within one step of being cancelled.
Not here: text, stop strings and counting (``channel``); threads and the clock (``engine.engine``).
"""

from bisect import insort
from collections.abc import Hashable
from operator import attrgetter
from typing import Final, Literal, NamedTuple

import numpy as np

from appliance.core.memory import SPECULATED_ROWS
from appliance.core.values import EngineFigures, FinishReason, Sampling
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.candidates import Candidates
from appliance.runner.engine.constraint import CompiledConstraint
from appliance.runner.engine.context import Context
from appliance.runner.engine.fair import FairQueue, deal
from appliance.runner.engine.figures import Counts
from appliance.runner.engine.logprobs import Logprobs
from appliance.runner.engine.model import LoadError, Model, TokenIds
from appliance.runner.engine.rehearsal import rehearse
from appliance.runner.engine.sampling import Draw, Sampler, draw_rows
from appliance.runner.engine.search import Search
from appliance.runner.engine.speculation import Drafter, Speculation, draw_ahead
from appliance.runner.engine.streams import Place, Streams
from appliance.runner.engine.vocabulary import Vocabulary
from appliance.runner.rounds import Rounds

MOST_WAITING: Final = 256
"""Jobs that wait for a slot. One more is refused."""
MOST_WAITING_OF_ONE: Final = 64
"""Of one principal, so that nobody fills the queue for the others."""
PROMPT_TOKENS: Final = 256
"""Of prompts in one step while somebody is answering. Measured in CPU time on one thread, 8 and 32 callers with prompts
of 128 and 512 tokens: with 256 the median time to the first token is that with 512 within 10 %, and the longest time
between two tokens half of it; with 128 the first token comes a third later, with 64 up to three times as late."""

SEARCH_TOKENS: Final = 4096
"""Tokens about which grammars are asked in one step, but for one of each draw: 1 to 2 milliseconds, with the dearest
grammars that are let in 4."""

_NO_ROOM: Final = 1
_ANSWER_TOKEN_COST: Final = 2  # of service, beside a prompt token's 1: it needs a slot for a step of its own
_LEAST_COPIED_TOKENS: Final = 16
_COPIED_CELLS_PER_TOKEN: Final = 128
"""Computing a token takes as long as copying so many cells, or longer."""
_LONGEST_RETRY_SECONDS: Final = 3600

Refusal = Literal["", "queue-full", "queue-timeout"]


class Job:
    """One answer that is asked of the engine. The channel sets ``cancelled``; the engine looks at it at every step.

    ``principal`` is whose turn it is, ``weight`` how much of one. A prefix is shared only within ``partition``; "" is a
    partition of the request's own. ``queue_ms`` bounds the wait for a slot; 0 is no bound. Jobs of one request differ
    in ``choice``, which counts from 0; they are queued together, and refused together. Each has a ``constraint`` of its
    own.

    The engine sets ``cached_tokens``, how many of the prompt's it did not compute, before the first event. It sets
    ``queue_position``, how many jobs were to get a slot up to this one when it came, 0 with a slot free for it, and
    with the slot ``queued_seconds``.
    """

    __slots__ = (
        "cached_tokens",
        "cancelled",
        "choice",
        "constraint",
        "max_tokens",
        "partition",
        "principal",
        "prompt",
        "queue_ms",
        "queue_position",
        "queued_seconds",
        "request_id",
        "sampling",
        "submitted_at",
        "weight",
    )

    def __init__(
        self,
        request_id: str,
        prompt: TokenIds,
        sampling: Sampling,
        max_tokens: int,
        *,
        principal: str = "",
        weight: int = 1,
        partition: str = "",
        queue_ms: int = 0,
        choice: int = 0,
        constraint: CompiledConstraint | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.principal = principal
        self.weight = weight
        self.partition = partition
        self.queue_ms = queue_ms
        self.choice = choice
        self.constraint = constraint
        self.cancelled = False
        self.submitted_at = 0.0
        self.cached_tokens = 0
        self.queue_position = 0
        self.queued_seconds = 0.0


class Event(NamedTuple):
    """A job has a slot (``begun``), or a token, or has ended (``token`` is then -1).

    A job that never had a slot ends with ``refused``, with a guess of when it is worth coming back, and with how many
    jobs were ``ahead`` of it.
    """

    job: Job
    token: int = -1
    logprobs: Logprobs | None = None
    begun: bool = False
    ended: FinishReason | None = None
    detail: str = ""
    refused: Refusal = ""
    retry_after_seconds: int = 0
    ahead: int = 0


class _Sequence:
    """A job in a slot. ``position`` counts the tokens in the KV cache; the last of ``answer`` is not yet there.

    ``waits`` for others that may have the same prompt, before it computes anything. ``search`` is that of a draw which
    is not done; the last of ``answer`` is in the cache meanwhile.
    """

    __slots__ = (
        "admitted_at",
        "answer",
        "job",
        "number",
        "position",
        "prompt_tokens",
        "sampler",
        "search",
        "settled",
        "slot",
        "waits",
    )

    def __init__(self, job: Job, number: int, sampler: Sampler, now: float) -> None:
        self.job = job
        self.number = number  # as they came into slots
        self.slot = -1
        self.sampler = sampler
        self.admitted_at = now
        self.prompt_tokens = len(job.prompt)
        self.position = 0
        self.settled = 0  # the position at the last ``Stepper._settle``
        self.answer: list[int] = []
        self.waits = True
        self.search: Search | None = None

    @property
    def partition(self) -> Hashable:
        return (self.job.partition, "" if self.job.partition else self.job.request_id)

    @property
    def computed(self) -> TokenIds:
        """The tokens whose keys and values are in the cache."""
        return np.concatenate([self.job.prompt, np.array(self.answer, np.int32)])[: self.position]


class Stepper:
    """The state of all sequences. One thread only. ``prompt_tokens`` is for tests and measurements.

    ``drafter`` is for a context that can be cut and has rows for ``SPECULATED_ROWS`` proposed tokens.
    """

    def __init__(
        self,
        model: Model,
        context: Context,
        *,
        prompt_tokens: int = PROMPT_TOKENS,
        drafter: Drafter | None = None,
    ) -> None:
        self._model = model
        self._context = context
        self._prompt_tokens = prompt_tokens
        self._batch = Batch(context.batch_tokens, context.slots)
        self.vocabulary: Final = Vocabulary.of(model)
        self._candidates = Candidates(self.vocabulary)
        self._speculation = Speculation(drafter, self.vocabulary, self._batch.capacity) if drafter else None
        self._queue: FairQueue[Job] = FairQueue(MOST_WAITING, MOST_WAITING_OF_ONE)
        least_copied = max(_LEAST_COPIED_TOKENS, context.stream_cells // _COPIED_CELLS_PER_TOKEN)
        self._streams = Streams(context.slots, least_copied if context.can_cut else None)
        self._active: list[_Sequence] = []  # in the order of the slots
        self._searching: Rounds[tuple[_Sequence, Search]] = Rounds()
        self._refused: list[Event] = []
        self._begun: list[Job] = []
        self._ends: dict[int, bool] = {}  # token -> whether it ends an answer
        self._unsettled_tokens = 0
        self._counts = Counts()
        self._service_seconds = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._active or self._refused or len(self._queue))

    def figures(self, arriving: int = 0) -> EngineFigures:
        """May be called by another thread, which knows of so many more that wait."""
        return self._counts.taken(
            waiting=arriving + len(self._queue),
            busy_slots=len(self._active),
            slots=self._context.slots,
            used_cells=self._streams.used_cells + self._unsettled_tokens,
            cells=self._context.slots * self._context.stream_cells,
        )

    @property
    def retry_after_seconds(self) -> int:
        """A guess of when a slot is free for a request that came now. May be called by another thread."""
        wait_seconds = self._service_seconds * (len(self._queue) + 1) / self._context.slots
        return min(max(1, round(wait_seconds)), _LONGEST_RETRY_SECONDS)

    def add(self, now: float, *choices: Job) -> None:
        """Queues all jobs of one request, or refuses them. ``now`` is when it came, in seconds of any clock."""
        first = choices[0]
        own = self._queue.waiting_of(first.principal)
        for job in choices:
            job.submitted_at = now
        if self._queue.offer(*choices):
            self._settle()
            free = self._context.slots - len(self._active)
            first.queue_position = max(0, self._queue.ahead(first.principal, own) + 1 - free)
            return
        is_own = own + len(choices) > MOST_WAITING_OF_ONE
        for job in choices:
            self._refuse(job, "queue-full", self._refused, own if is_own else len(self._queue))

    def step(self, now: float) -> list[Event]:
        """Decodes one batch. Raises ``RuntimeError`` when llama.cpp fails in a way that leaves its state unknown."""
        events, self._refused = self._refused, []
        self._leave(now, events)
        self._admit(now, events)
        if (
            self._speculation is not None
            and not self._searching
            and (proposals := self._speculation.propose(self._active))
        ):
            self._step_ahead(self._speculation, proposals, events, now)
            self._go_on(events, now)
            return events
        prompted, wanted = self._fill()
        if self._batch.size and self._decode(events, now):
            self._count(prompted)
            if wanted:
                draws = draw_rows([sequence.sampler for sequence in wanted], self._context.logits(len(wanted)))
                for sequence, draw in zip(wanted, draws, strict=True):
                    self._take(sequence, draw, events, now)
        self._go_on(events, now)
        return events

    def _decode(self, events: list[Event], now: float) -> bool:
        """Computes the batch. False when there was no room for it, and one that took much has been ended."""
        for sequence in self._active if self._searching else ():
            if sequence.search is not None:
                sequence.search.keep_row()
        status = self._context.decode(self._batch)
        if status == _NO_ROOM:
            largest = max(self._active, key=lambda sequence: sequence.position)
            self._end(largest, events, now, "error", "no room in the KV cache")
            return False
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        return True

    def _take(self, sequence: _Sequence, draw: Draw | Search | None, events: list[Event], now: float) -> None:
        """What was drawn behind the last token of a sequence, or is searched for. That token is in the cache now."""
        if sequence.answer:
            sequence.position += 1
        if isinstance(draw, Search):
            sequence.search = draw
            self._searching.put(str(sequence.number), sequence.job.principal, (sequence, draw))
        else:
            self._advance(sequence, draw, events, now)

    def _go_on(self, events: list[Event], now: float) -> None:
        """With draws that are not done, one look of everybody's in turn, until what a step has for them is spent."""
        left = SEARCH_TOKENS
        while self._searching and left > 0:
            number, principal, (sequence, search) = self._searching.take()
            if looked := search.look():
                left -= looked
                self._searching.put(number, principal, (sequence, search))
            else:
                self._charge_search(sequence)
                self._advance(sequence, sequence.sampler.end(search), events, now)

    def _charge_search(self, sequence: _Sequence) -> None:
        """A search is over. All that a step has for searches costs as much as a token of an answer."""
        search, sequence.search = sequence.search, None
        if search is not None:
            cost = search.looked_at * _ANSWER_TOKEN_COST / SEARCH_TOKENS
            self._queue.charge(sequence.job.principal, cost)

    def timed(self, start: float, end: float) -> None:
        """The last step took from ``start`` to ``end``."""
        self._counts.step_seconds += end - start
        if self._speculation is not None:
            self._speculation.timed(end - start)
        for job in self._begun:
            self._counts.first_token_seconds += end - job.submitted_at
        self._begun.clear()

    # --- into and out of the slots ----------------------------------------------------------------------------------

    def _leave(self, now: float, events: list[Event]) -> None:
        """Lets go of what nobody waits for any longer, and of what has waited too long for a slot."""
        for sequence in [sequence for sequence in self._active if sequence.job.cancelled]:
            self._end(sequence, events, now, "cancelled")
        if len(self._queue):
            self._leave_queue(now, events)

    def _leave_queue(self, now: float, events: list[Event]) -> None:
        late: set[str] = set()

        def leaves(job: Job) -> bool:
            if _has_waited_out(job, now):
                late.add(job.request_id)
            return job.cancelled or job.request_id in late

        gone = self._queue.remove(leaves)
        for job in gone:
            if job.cancelled:
                self._counts.cancelled += 1
                events.append(Event(job, ended="cancelled"))
            else:
                # None of its own is ahead: what came before it has waited longer still.
                self._refuse(job, "queue-timeout", events, self._queue.ahead(job.principal, 0))

    def _refuse(self, job: Job, why: Refusal, events: list[Event], ahead: int) -> None:
        self._counts.refused += 1
        detail = f"{len(self._queue)} requests wait for {self._context.slots} slots"
        retry = self.retry_after_seconds
        events.append(Event(job, ended="error", detail=detail, refused=why, retry_after_seconds=retry, ahead=ahead))

    def _admit(self, now: float, events: list[Event]) -> None:
        if not len(self._queue) or not self._streams.free:
            return
        self._settle()
        while self._streams.free and (job := self._queue.take()):
            self._counts.admitted += 1
            sequence = _Sequence(job, self._counts.admitted, self._new_sampler(job), now)
            self._put(sequence, self._streams.place(sequence.partition, job.prompt))
            insort(self._active, sequence, key=attrgetter("slot"))
            job.queued_seconds = now - job.submitted_at
            self._counts.queue_seconds += job.queued_seconds
            events.append(Event(job, begun=True))

    def _put(self, sequence: _Sequence, place: Place) -> None:
        """Has the first tokens of a sequence in its slot, and nothing besides."""
        if place.kept and place.source != place.slot:
            self._context.copy(place.source, place.slot)
        self._context.forget(place.slot, place.kept)
        sequence.slot = place.slot
        sequence.position = sequence.settled = sequence.job.cached_tokens = place.kept

    def _settle(self) -> None:
        """Tells the books of service and of streams what has been computed. Only before they are asked: told after
        every token, they would cost more than all the rest of a step."""
        for sequence in self._active:
            tokens = sequence.position - sequence.settled
            if tokens:
                answers = min(tokens, max(0, sequence.position - sequence.prompt_tokens))
                self._queue.charge(sequence.job.principal, tokens + (_ANSWER_TOKEN_COST - 1) * answers)
                self._streams.computed(sequence.slot, tokens)
                sequence.settled = sequence.position
        self._unsettled_tokens = 0

    def _end(
        self, sequence: _Sequence, events: list[Event], now: float, reason: FinishReason, detail: str = ""
    ) -> None:
        self._settle()
        if self._searching.pop(str(sequence.number)):
            self._charge_search(sequence)
        self._active.remove(sequence)
        self._queue.done(sequence.job.principal)
        keep = bool(sequence.job.partition) and reason != "error"
        self._streams.release(sequence.slot, sequence.computed, keep=keep)
        if not self._streams.holds(sequence.slot):
            self._context.forget(sequence.slot)
        sequence.sampler.close()
        took_seconds = now - sequence.admitted_at
        self._service_seconds += (took_seconds - self._service_seconds) / (8 if self._service_seconds else 1)
        self._counts.cancelled += reason == "cancelled"
        self._counts.failed += reason == "error"
        events.append(Event(sequence.job, ended=reason, detail=detail))

    # --- one batch --------------------------------------------------------------------------------------------------

    def _fill(self) -> tuple[list[tuple[_Sequence, int]], list[_Sequence]]:
        """Fills the batch. Gives the sequences that compute of their prompts, with how many tokens, and those whose
        logits will come out, in the order of the batch. There are never more answering sequences than slots, nor more
        slots than room."""
        batch, shares = self._batch, self._shares()
        batch.clear()
        prompted, wanted = [], []
        for sequence in self._active:
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

    def _step_ahead(
        self, speculation: Speculation, proposals: list[list[int]], events: list[Event], now: float
    ) -> None:
        """A step of answers only, each with as many tokens that may follow."""
        self._batch.clear()
        for sequence, proposal in zip(self._active, proposals, strict=True):
            self._batch.add_ahead(sequence.slot, [sequence.answer[-1], *proposal], sequence.position)
        if not self._decode(events, now):
            return
        self._count([])
        rows, first = self._context.logits(self._batch.size), 0
        drawn = []
        for sequence, proposal in zip(self._active, proposals, strict=True):
            draws = draw_ahead(sequence.sampler, rows[first:], proposal)
            first += 1 + len(proposal)
            speculation.verified(sequence.slot, len(draws) - 1, len(proposal))
            self._counts.proposed_tokens += len(proposal)
            self._counts.accepted_tokens += len(draws) - 1
            self._reject(sequence, sequence.position + len(draws), 1 + len(proposal) - len(draws))
            drawn.append((sequence, draws))
        for sequence, draws in drawn:
            for draw in draws:
                self._take(sequence, draw, events, now)

    def _reject(self, sequence: _Sequence, kept: int, tokens: int) -> None:
        """Takes what was computed in vain off the end of a sequence, which pays for it."""
        if tokens:
            self._context.forget(sequence.slot, kept)
            self._queue.charge(sequence.job.principal, tokens)
            self._unsettled_tokens -= tokens

    def _shares(self) -> dict[int, int]:
        """Slot -> how many tokens of its prompt this step computes."""
        prompting = [sequence for sequence in self._active if sequence.position < sequence.prompt_tokens]
        if not prompting:
            return {}
        self._settle()
        answering = len(self._active) - len(prompting)
        budget = self._batch.capacity - answering
        if answering:
            budget = min(budget, self._prompt_tokens)
        groups: dict[str, list[_Sequence]] = {}
        for sequence in sorted(prompting, key=attrgetter("number")):
            group = groups.setdefault(sequence.job.principal, [])
            if not sequence.waits or self._catch_up(sequence, group):
                group.append(sequence)
        shares: dict[int, int] = {}
        for principal in self._queue.order(groups):
            group = groups[principal]
            dealt = deal(budget, [sequence.prompt_tokens - sequence.position for sequence in group])
            shares |= zip((sequence.slot for sequence in group), dealt, strict=True)
            budget -= sum(dealt)
        return shares

    def _catch_up(self, sequence: _Sequence, before: list[_Sequence]) -> bool:
        """Whether a sequence need not wait for one of its principal's that are computing, and came before it."""
        place = self._streams.catch_up(sequence.slot, [other.slot for other in before])
        if place is None:
            return False
        sequence.waits = False
        if place.source != place.slot:
            self._put(sequence, place)
        self._counts.cached_tokens += place.kept
        self._counts.cache_hits += place.kept > 0
        return True

    def _count(self, prompted: list[tuple[_Sequence, int]]) -> None:
        """A batch is in the cache. The positions of those that answer are advanced with their tokens."""
        counts = self._counts
        counts.steps += 1
        counts.batch_tokens += self._batch.size
        self._unsettled_tokens += self._batch.size
        for sequence, tokens in prompted:
            sequence.position += tokens
            counts.prompt_tokens += tokens

    def _new_sampler(self, job: Job) -> Sampler:
        return Sampler(job.sampling, job.prompt, job.constraint, self._candidates, job.choice)

    def _advance(self, sequence: _Sequence, draw: Draw | None, events: list[Event], now: float) -> None:
        if draw is None:
            self._end(sequence, events, now, "error", sequence.sampler.failure)
        elif self._is_end(draw.token):
            self._end(sequence, events, now, "stop")
        else:
            if not sequence.answer:
                self._counts.answered += 1
                self._begun.append(sequence.job)
            sequence.answer.append(draw.token)
            self._counts.answer_tokens += 1
            events.append(Event(sequence.job, draw.token, draw.logprobs))
            if len(sequence.answer) >= sequence.job.max_tokens:
                self._end(sequence, events, now, "length")

    def _is_end(self, token: int) -> bool:
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = self._model.is_end(token)
        return known

    def close(self) -> None:
        """Frees what is not the caller's: the model and the context are."""
        if self._speculation is not None:
            self._speculation.close()

    # --- before the first request -----------------------------------------------------------------------------------

    def trial(self) -> None:
        """Decodes a full batch over all slots, then one token in each, then one alone, and samples in every way.

        Afterwards every thread and buffer exists. Raises ``LoadError``: ``decode-failed``, ``logits-not-finite``.
        """
        slots = self._context.slots
        length = min(self._batch.capacity // slots, self._context.context_tokens - 2)
        tokens = np.arange(length, dtype=np.int32) % self._model.vocabulary_tokens
        self._batch.clear()
        for slot in range(slots):
            self._batch.add(slot, tokens, 0, output=True)
        self._try_batch(slots)
        self._batch.clear()
        for slot in range(slots):
            self._batch.add_last(slot, 0, length)
        self._try_batch(slots)
        self._batch.clear()
        self._batch.add_last(0, 0, length + 1)
        self._try_batch(1)
        if self._context.can_cut and slots > 1:
            self._try_copy(length + 2)
        for slot in range(slots):
            self._context.forget(slot)
        if self._speculation is not None:
            self._try_ahead(self._speculation)

    def _try_copy(self, length: int) -> None:
        """Decodes behind a copy that was cut, in the second slot."""
        self._context.copy(0, 1)
        self._context.forget(1, length - 1)
        self._batch.clear()
        self._batch.add_last(1, 0, length - 1)
        self._try_batch(1)

    def _try_ahead(self, speculation: Speculation) -> None:
        """Decodes as many proposed tokens as a step may have, in one slot and over several, and takes them off."""
        speculation.try_out()
        for count in {1, min(self._context.slots, SPECULATED_ROWS)}:
            tokens = [0] * (1 + speculation.most(count))
            self._batch.clear()
            for slot in range(count):
                self._batch.add_ahead(slot, tokens, 0)
            self._try_batch(self._batch.size)
            for slot in range(count):
                self._context.forget(slot, 1)
                self._context.forget(slot)

    def _try_batch(self, rows: int) -> None:
        status = self._context.decode(self._batch)
        if status != 0:
            raise LoadError("decode-failed", f"llama_decode returned {status}")
        logits = self._context.logits(rows)
        if not np.isfinite(logits).all():
            raise LoadError("logits-not-finite", "a trial decode gave numbers that are not finite")
        if not rehearse(self._model, self._candidates, logits[-1]):
            raise LoadError("logits-not-finite", "a trial draw found no token")


def _has_waited_out(job: Job, now: float) -> bool:
    """The first choice of a request decides for the others, which come after it: once it has a slot, they may wait."""
    return job.choice == 0 and job.queue_ms > 0 and now - job.submitted_at >= job.queue_ms / 1000
