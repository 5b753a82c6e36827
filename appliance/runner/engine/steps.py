"""Continuous batching, one step after another: who has a slot, what is decoded, what comes out of it.

The parts of a step, each with the rules for it:

1. who leaves, who gets a slot, and whose service it counts as (``engine.slots``);
2. what is decoded (``engine.filling``), or, where the operator allows it and guesses are worth it, with tokens that are
   only expected to come (``engine.speculated``);
3. what is drawn behind it (``engine.sampling``);
4. how long draws go on that grammars make long (``engine.searches``).

Trusts: a job's prompt is not empty, its token ids are in range, and prompt and answer fit the context (``channel``);
the time that its caller gives never goes back.
Promises: each job ends with exactly one event that has ``ended`` set, within one step of being cancelled.
Not here: text, stop strings and counting (``channel``); threads and the clock (``engine.engine``).
"""

from typing import Final

from appliance.core.values import EngineFigures, FinishReason
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.candidates import Candidates
from appliance.runner.engine.context import Context
from appliance.runner.engine.economy import Economy
from appliance.runner.engine.figures import Counts
from appliance.runner.engine.filling import PROMPT_TOKENS, fill
from appliance.runner.engine.jobs import Event, Job
from appliance.runner.engine.model import Model
from appliance.runner.engine.sampling import Draw, draw_rows
from appliance.runner.engine.search import Search
from appliance.runner.engine.searches import Searches
from appliance.runner.engine.sequence import Sequence
from appliance.runner.engine.slots import Slots
from appliance.runner.engine.speculated import Proposed, fill_ahead, verify
from appliance.runner.engine.speculation import Drafter, Speculation
from appliance.runner.engine.trial import Trial
from appliance.runner.engine.vocabulary import Vocabulary

_NO_ROOM: Final = 1


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
        self._economy = Economy()
        self._counts = Counts()
        self._slots = Slots(context, self._candidates, self._counts)
        self._searches = Searches(self._slots)
        self._prompted_tokens = 0
        self._begun: list[Job] = []
        self._ends: dict[int, bool] = {}  # token -> whether it ends an answer

    @property
    def busy(self) -> bool:
        return bool(self._slots.active or self._slots.refused or self._slots.waiting)

    def figures(self, arriving: int = 0) -> EngineFigures:
        """May be called by another thread, which knows of so many more that wait."""
        return self._slots.figures(arriving)

    @property
    def retry_after_seconds(self) -> int:
        """A guess of when a slot is free for a request that came now. May be called by another thread."""
        return self._slots.retry_after_seconds

    def trial(self) -> None:
        """Does everything once, before the first request. Raises ``LoadError``."""
        Trial(
            model=self._model,
            context=self._context,
            batch=self._batch,
            candidates=self._candidates,
            speculation=self._speculation,
        ).run()

    def add(self, now: float, *choices: Job) -> None:
        """Queues all jobs of one request, or refuses them. ``now`` is when it came, in seconds of any clock."""
        self._slots.add(now, *choices)

    def step(self, now: float) -> list[Event]:
        """Decodes one batch. Raises ``RuntimeError`` when llama.cpp fails in a way that leaves its state unknown."""
        slots = self._slots
        self._prompted_tokens = 0
        events, slots.refused = slots.refused, []
        for sequence in [sequence for sequence in slots.active if sequence.job.cancelled]:
            self._end(sequence, events, now, "cancelled")
        slots.serve_queue(now, events)
        if self._speculation and not self._searches and (proposals := self._speculation.propose(slots.active)):
            self._step_ahead(self._speculation, list(zip(slots.active, proposals, strict=True)), events, now)
        else:
            self._step_plainly(events, now)
        for sequence, draw in self._searches.go_on():
            self._advance(sequence, draw, events, now)
        return events

    def timed(self, start: float, end: float) -> None:
        """The last step took from ``start`` to ``end``."""
        self._counts.step_seconds += end - start
        self._economy.learn(self._batch.size, self._prompted_tokens, end - start)
        if self._speculation is not None:
            self._speculation.timed(end - start)
        for job in self._begun:
            self._counts.first_token_seconds += end - job.submitted_at
        self._begun.clear()

    def close(self) -> None:
        """Frees what is not the caller's: the model and the context are."""
        if self._speculation is not None:
            self._speculation.close()

    # --- one batch --------------------------------------------------------------------------------------------------

    def _step_plainly(self, events: list[Event], now: float) -> None:
        prompted, wanted = fill(self._batch, self._slots, self._economy, self._prompt_tokens)
        if not self._batch.size or not self._decode(events, now):
            return
        for sequence, tokens in prompted:
            sequence.position += tokens
            self._counts.prompt_tokens += tokens
            self._prompted_tokens += tokens
        if wanted:
            draws = draw_rows([sequence.sampler for sequence in wanted], self._context.logits(len(wanted)))
            for sequence, draw in zip(wanted, draws, strict=True):
                self._take(sequence, draw, events, now)

    def _step_ahead(self, speculation: Speculation, proposed: Proposed, events: list[Event], now: float) -> None:
        fill_ahead(self._batch, proposed)
        if not self._decode(events, now):
            return
        rows = self._context.logits(self._batch.size)
        for sequence, draws in verify(proposed, rows, self._slots, speculation, self._counts):
            for draw in draws:
                self._take(sequence, draw, events, now)

    def _decode(self, events: list[Event], now: float) -> bool:
        """Computes the batch. False when there was no room for it, and one that took much has been ended."""
        self._searches.keep_rows()
        status = self._context.decode(self._batch)
        if status == _NO_ROOM:
            largest = max(self._slots.active, key=lambda sequence: sequence.position)
            self._end(largest, events, now, "error", "no room in the KV cache")
            return False
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        self._counts.steps += 1
        self._counts.batch_tokens += self._batch.size
        self._slots.unsettled_tokens += self._batch.size
        return True

    # --- what comes out of it ---------------------------------------------------------------------------------------

    def _take(self, sequence: Sequence, draw: Draw | Search | None, events: list[Event], now: float) -> None:
        """What was drawn behind the last token of a sequence, or is searched for. That token is in the cache now."""
        if sequence.answer:
            sequence.position += 1
        if isinstance(draw, Search):
            self._searches.begin(sequence, draw)
        else:
            self._advance(sequence, draw, events, now)

    def _advance(self, sequence: Sequence, draw: Draw | None, events: list[Event], now: float) -> None:
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

    def _end(self, sequence: Sequence, events: list[Event], now: float, reason: FinishReason, detail: str = "") -> None:
        self._searches.drop(sequence)
        events.append(self._slots.end(sequence, now, reason, detail))
