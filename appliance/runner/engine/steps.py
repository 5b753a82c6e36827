"""Continuous batching: what one step decodes, and what comes out of it.

A step decodes the last token of every answering sequence first, then spends the rest of the batch on prompts, in equal
shares, so that a long prompt neither stops the others' answers nor their prompts. Jobs wait, first come first served,
for the lowest free slot.

There is no reuse of prefixes between requests yet: a slot is emptied when its request ends, so nothing of one caller
is there for the next (``Submit.cache_partition`` has nothing to separate).

Trusts: a job's prompt is not empty, its token ids are in range, and prompt and answer fit the context (``channel``).
Promises: each job ends with exactly one event that has ``ended`` set, within one step of being cancelled.
Not here: text, stop strings and counting (``channel``); threads (``engine.engine``).
"""

from collections import deque
from typing import Final, NamedTuple

import numpy as np

from appliance.core.values import FinishReason, Sampling
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.candidates import Candidates
from appliance.runner.engine.context import Context
from appliance.runner.engine.model import LoadError, Model, TokenIds
from appliance.runner.engine.rehearsal import rehearse
from appliance.runner.engine.sampling import Sampler, draw_rows
from appliance.runner.engine.vocabulary import Vocabulary

_NO_ROOM: Final = 1


class Job:
    """One request for the engine. The channel sets ``cancelled``; the engine looks at it at every step."""

    __slots__ = ("cancelled", "max_tokens", "prompt", "request_id", "sampling")

    def __init__(self, request_id: str, prompt: TokenIds, sampling: Sampling, max_tokens: int) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.cancelled = False


class Event(NamedTuple):
    """A sampled token, or the end of a job (``token`` is then -1)."""

    job: Job
    token: int = -1
    ended: FinishReason | None = None
    detail: str = ""


class _Sequence:
    """A job in a slot. ``position`` counts the tokens in the KV cache; ``last`` is sampled but not yet decoded."""

    __slots__ = ("job", "last", "position", "sampled", "sampler", "slot")

    def __init__(self, job: Job, slot: int, sampler: Sampler) -> None:
        self.job = job
        self.slot = slot
        self.sampler = sampler
        self.position = 0
        self.last = -1
        self.sampled = 0

    @property
    def answering(self) -> bool:
        return self.position >= len(self.job.prompt)


class Stepper:
    """The state of all sequences. One thread only."""

    def __init__(self, model: Model, context: Context) -> None:
        self._model = model
        self._context = context
        self._batch = Batch(context.batch_tokens, context.slots)
        self._candidates = Candidates(Vocabulary.of(model))
        self._waiting: deque[Job] = deque()
        self._active: list[_Sequence] = []
        self._free_slots = list(range(context.slots))

    @property
    def busy(self) -> bool:
        return bool(self._active or self._waiting)

    def add(self, job: Job) -> None:
        self._waiting.append(job)

    def step(self) -> list[Event]:
        """Decodes one batch. Raises ``RuntimeError`` when llama.cpp fails in a way that leaves its state unknown."""
        events: list[Event] = []
        self._drop_cancelled(events)
        self._admit()
        decoded, wanted = self._fill()
        if not decoded:
            return events
        status = self._context.decode(self._batch)
        if status == _NO_ROOM:
            largest = max(self._active, key=lambda sequence: sequence.position)
            self._end(largest, events, "error", "no room in the KV cache")
            return events
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        for sequence, tokens in decoded:
            sequence.position += tokens
        if wanted:
            draws = draw_rows([sequence.sampler for sequence in wanted], self._context.logits(len(wanted)))
            for sequence, draw in zip(wanted, draws, strict=True):
                self._advance(sequence, draw.token if draw else None, events)
        return events

    def _drop_cancelled(self, events: list[Event]) -> None:
        for sequence in [sequence for sequence in self._active if sequence.job.cancelled]:
            self._end(sequence, events, "cancelled")
        if any(job.cancelled for job in self._waiting):
            events.extend(Event(job, ended="cancelled") for job in self._waiting if job.cancelled)
            self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def _admit(self) -> None:
        while self._waiting and self._free_slots:
            job = self._waiting.popleft()
            slot = min(self._free_slots)
            self._free_slots.remove(slot)
            sampler = Sampler(job.sampling, job.prompt, None, self._candidates)
            self._active.append(_Sequence(job, slot, sampler))

    def _fill(self) -> tuple[list[tuple[_Sequence, int]], list[_Sequence]]:
        """Fills the batch. Gives the sequences in it with their token counts, and those whose logits will come out, in
        the order of the batch. There are never more answering sequences than slots, nor more slots than room."""
        batch = self._batch
        batch.clear()
        answering = sorted((s for s in self._active if s.answering), key=lambda s: s.slot)
        for sequence in answering:
            batch.add_one(sequence.slot, sequence.last, sequence.position)
        decoded, wanted = [(sequence, 1) for sequence in answering], answering
        prompting = [sequence for sequence in self._active if not sequence.answering]
        for index, sequence in enumerate(prompting):
            share = -(-batch.room // (len(prompting) - index))
            tokens = sequence.job.prompt[sequence.position : sequence.position + share]
            if not len(tokens):
                break
            last = sequence.position + len(tokens) == len(sequence.job.prompt)
            batch.add(sequence.slot, tokens, sequence.position, output=last)
            decoded.append((sequence, len(tokens)))
            if last:
                wanted.append(sequence)
        return decoded, wanted

    def _advance(self, sequence: _Sequence, token: int | None, events: list[Event]) -> None:
        if token is None:
            self._end(sequence, events, "error", sequence.sampler.failure)
        elif self._model.is_end(token):
            self._end(sequence, events, "stop")
        else:
            sequence.last = token
            sequence.sampled += 1
            events.append(Event(sequence.job, token))
            if sequence.sampled >= sequence.job.max_tokens:
                self._end(sequence, events, "length")

    def _end(self, sequence: _Sequence, events: list[Event], reason: FinishReason, detail: str = "") -> None:
        self._active.remove(sequence)
        self._context.forget(sequence.slot)
        self._free_slots.append(sequence.slot)
        sequence.sampler.close()
        events.append(Event(sequence.job, ended=reason, detail=detail))

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
            self._batch.add_one(slot, 0, length)
        self._try_batch(slots)
        self._batch.clear()
        self._batch.add_one(0, 0, length + 1)
        self._try_batch(1)
        for slot in range(slots):
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
