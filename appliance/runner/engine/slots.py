"""Into a slot and out of it: who waits, who has one, and the books of what was computed for whom.

Who gets a slot goes by principal (``engine.fair``), and within one by who came first. What is promised to a principal
with less service behind it than all others that wait: it gets the next slot that comes free. Nobody is turned out of a
slot, so with all of them taken by others it waits for the shortest of their answers to end. That is at most one service
time, whatever number of requests the others have sent.

A prompt that begins like what its partition has in the cache is computed from there on (``engine.streams``). One that
begins like another of the same principal's that is being computed waits for it: so the choices of one request compute
its prompt once.

Trusts: the time that its caller gives never goes back; its caller to say in ``unsettled_tokens`` what it has decoded.
Promises: a job that is refused here, or leaves the queue, has exactly one event with ``ended`` set; ``active`` is in
the order of the slots.
Not here: what a step computes (``engine.filling``), what comes out of it (``engine.steps``).
"""

from bisect import insort
from collections.abc import Iterable
from operator import attrgetter
from typing import Final

from appliance.core.values import EngineFigures, FinishReason
from appliance.runner.engine.candidates import Candidates
from appliance.runner.engine.context import Context
from appliance.runner.engine.fair import FairQueue
from appliance.runner.engine.figures import Counts
from appliance.runner.engine.jobs import Event, Job, Refusal
from appliance.runner.engine.sampling import Sampler
from appliance.runner.engine.sequence import Sequence
from appliance.runner.engine.streams import Place, Streams

MOST_WAITING: Final = 256
"""Jobs that wait for a slot. One more is refused."""
MOST_WAITING_OF_ONE: Final = 64
"""Of one principal, so that nobody fills the queue for the others."""
ANSWER_TOKEN_COST: Final = 2
"""Of service, beside a prompt token's 1: it needs a slot for a step of its own."""

_LEAST_COPIED_TOKENS: Final = 16
_COPIED_CELLS_PER_TOKEN: Final = 128
"""Computing a token takes as long as copying so many cells, or longer."""
_LONGEST_RETRY_SECONDS: Final = 3600


class Slots:
    """All of a context's. The engine thread only, but for ``figures`` and ``retry_after_seconds``."""

    def __init__(self, context: Context, candidates: Candidates, counts: Counts) -> None:
        self.active: Final[list[Sequence]] = []
        """Those that have a slot, in the order of the slots."""
        self.refused: list[Event] = []
        """Of jobs that found the queue full. The next step takes them."""
        self.unsettled_tokens = 0
        """Computed since ``settle``."""
        self._context = context
        self._candidates = candidates
        self._counts = counts
        self._queue: FairQueue[Job] = FairQueue(MOST_WAITING, MOST_WAITING_OF_ONE)
        least_copied = max(_LEAST_COPIED_TOKENS, context.stream_cells // _COPIED_CELLS_PER_TOKEN)
        self._streams = Streams(context.slots, least_copied if context.can_cut else None)
        self._service_seconds = 0.0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def figures(self, arriving: int) -> EngineFigures:
        """With so many more that wait."""
        return self._counts.taken(
            waiting=arriving + len(self._queue),
            busy_slots=len(self.active),
            slots=self._context.slots,
            used_cells=self._streams.used_cells + self.unsettled_tokens,
            cells=self._context.slots * self._context.stream_cells,
        )

    @property
    def retry_after_seconds(self) -> int:
        """A guess of when a slot is free for a request that came now."""
        wait_seconds = self._service_seconds * (len(self._queue) + 1) / self._context.slots
        return min(max(1, round(wait_seconds)), _LONGEST_RETRY_SECONDS)

    # --- queue, slot, end -------------------------------------------------------------------------------------------

    def add(self, now: float, *choices: Job) -> None:
        """Queues all jobs of one request, or refuses them."""
        first = choices[0]
        own = self._queue.waiting_of(first.principal)
        for job in choices:
            job.submitted_at = now
        if self._queue.offer(*choices):
            self.settle()
            free = self._context.slots - len(self.active)
            first.queue_position = max(0, self._queue.ahead(first.principal, own) + 1 - free)
            return
        is_own = own + len(choices) > MOST_WAITING_OF_ONE
        for job in choices:
            self._refuse(job, "queue-full", self.refused, own if is_own else len(self._queue))

    def serve_queue(self, now: float, events: list[Event]) -> None:
        """Lets go of what nobody waits for any longer, and of what has waited too long; then fills the free slots."""
        if not len(self._queue):
            return
        self._leave_queue(now, events)
        if len(self._queue) and self._streams.free:
            self._admit(now, events)

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
        self.settle()
        while self._streams.free and (job := self._queue.take()):
            self._counts.admitted += 1
            sampler = Sampler(job.sampling, job.prompt, job.constraint, self._candidates, job.choice)
            sequence = Sequence(job, self._counts.admitted, sampler, now)
            self._put(sequence, self._streams.place(sequence.partition, job.prompt))
            insort(self.active, sequence, key=attrgetter("slot"))
            job.queued_seconds = now - job.submitted_at
            self._counts.queue_seconds += job.queued_seconds
            events.append(Event(job, begun=True))

    def end(self, sequence: Sequence, now: float, reason: FinishReason, detail: str) -> Event:
        """Frees the slot of a sequence, whose last event this is. What its stream has may be kept for others."""
        self.settle()
        self.active.remove(sequence)
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
        return Event(sequence.job, ended=reason, detail=detail)

    # --- what is in a slot ------------------------------------------------------------------------------------------

    def catch_up(self, sequence: Sequence, before: list[Sequence]) -> bool:
        """Whether a sequence need not wait for one of its principal's that are computing, and came before it. If so, it
        has what others have computed of its prompt."""
        place = self._streams.catch_up(sequence.slot, [other.slot for other in before])
        if place is None:
            return False
        sequence.waits = False
        if place.source != place.slot:
            self._put(sequence, place)
        self._counts.cached_tokens += place.kept
        self._counts.cache_hits += place.kept > 0
        return True

    def take_back(self, sequence: Sequence, kept: int, tokens: int) -> None:
        """Takes so many tokens, computed in vain, off the end of a sequence, which pays for them. ``kept`` are left."""
        self._context.forget(sequence.slot, kept)
        self.charge(sequence.job.principal, tokens)
        self.unsettled_tokens -= tokens

    def _put(self, sequence: Sequence, place: Place) -> None:
        """Has the first tokens of a sequence in its slot, and nothing besides."""
        if place.kept and place.source != place.slot:
            self._context.copy(place.source, place.slot)
        self._context.forget(place.slot, place.kept)
        sequence.slot = place.slot
        sequence.position = sequence.settled = sequence.job.cached_tokens = place.kept

    # --- the books --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Tells the books of service and of streams what has been computed. Only before they are asked: told after
        every token, they would cost more than all the rest of a step."""
        for sequence in self.active:
            tokens = sequence.position - sequence.settled
            if tokens:
                answers = min(tokens, max(0, sequence.position - sequence.prompt_tokens))
                self._queue.charge(sequence.job.principal, tokens + (ANSWER_TOKEN_COST - 1) * answers)
                self._streams.computed(sequence.slot, tokens)
                sequence.settled = sequence.position
        self.unsettled_tokens = 0

    def charge(self, principal: str, tokens: float) -> None:
        """Counts as service to a principal that has a slot what ``settle`` does not see."""
        self._queue.charge(principal, tokens)

    def by_claim(self, principals: Iterable[str]) -> list[str]:
        """The same, which have slots, once each: who has the best claim to a step comes first. After ``settle``."""
        return self._queue.order(principals)


def _has_waited_out(job: Job, now: float) -> bool:
    """The first choice of a request decides for the others, which come after it: once it has a slot, they may wait."""
    return job.choice == 0 and job.queue_ms > 0 and now - job.submitted_at >= job.queue_ms / 1000
