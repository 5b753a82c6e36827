"""The engine of a model that embeds or ranks: one thread that computes batches of inputs for everybody.

Each batch has at most as many inputs as there are slots, whole and from all who wait, in turn; so nobody waits for
more than the batch under way and those before him in turn, however much another brought.

Trusts: ``Load``, from the warden; jobs, from ``runner.embeddings``.
Promises: each job ends with exactly one event that has ``ended`` set, within one batch of being cancelled.
Not here: text and counting (``runner.embeddings``), the thread (``engine.worker``), which models are for this
(``engine.model``).
"""

from typing import Final, NamedTuple

import numpy as np

from appliance.core.values import EngineFigures, FinishReason
from appliance.ipc.messages import Load
from appliance.runner.engine.embedding_context import EmbeddingContext, Rows
from appliance.runner.engine.figures import Counts
from appliance.runner.engine.model import LoadError, Model, TokenIds
from appliance.runner.engine.turns import Turns
from appliance.runner.engine.worker import Worker


class VectorJob:
    """The inputs of one request. ``dimensions`` 0 keeps all. The desk sets ``cancelled``."""

    __slots__ = ("begun", "cancelled", "dimensions", "inputs", "principal", "request_id", "rows_left", "submitted_at")

    def __init__(self, request_id: str, principal: str, inputs: list[TokenIds], dimensions: int) -> None:
        self.request_id = request_id
        self.principal = principal
        self.inputs = inputs
        self.dimensions = dimensions
        self.rows_left = len(inputs)
        self.cancelled = False
        self.begun = False
        self.submitted_at = 0.0


class VectorEvent(NamedTuple):
    """The next row of a job, or its end."""

    job: VectorJob
    row: Rows | None = None
    ended: FinishReason | None = None
    detail: str = ""


class _Input:
    """One input in ``Turns``."""

    __slots__ = ("job", "principal", "size", "tokens")

    def __init__(self, job: VectorJob, tokens: TokenIds) -> None:
        self.job = job
        self.principal = job.principal
        self.tokens = tokens
        self.size = len(tokens)


class VectorSteps:
    """One batch a step. The engine thread only, but for ``figures``."""

    def __init__(self, model: Model, context: EmbeddingContext) -> None:
        self._model = model
        self._context = context
        self._jobs: set[VectorJob] = set()
        self._turns: Turns[_Input] = Turns()
        self._counts = Counts()
        self._waiting = self._busy_slots = 0

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def figures(self, arriving: int) -> EngineFigures:
        """May be called by another thread, which knows of so many more requests that wait."""
        return self._counts.taken(
            waiting=arriving + self._waiting,
            busy_slots=self._busy_slots,
            slots=self._context.slots,
            used_cells=0,
            cells=0,
        )

    def add(self, now: float, *jobs: VectorJob) -> None:
        for job in jobs:
            job.submitted_at = now
            self._jobs.add(job)
            self._waiting += 1
            for tokens in job.inputs:
                self._turns.add(_Input(job, tokens))

    def step(self, now: float) -> list[VectorEvent]:
        events: list[VectorEvent] = []
        for job in [job for job in self._jobs if job.cancelled]:
            self._end(job, events, "cancelled")
        batch = self._turns.take(self._context.slots, self._context.batch_tokens)
        if batch:
            self._begin(batch, now)
            rows = self._context.rows([item.tokens for item in batch])
            self._busy_slots = 0
            for item, row in zip(batch, rows, strict=True):
                self._tell(item.job, row, events)
        return events

    def timed(self, start: float, end: float) -> None:
        self._counts.step_seconds += end - start

    def _begin(self, batch: list[_Input], now: float) -> None:
        """Counts a batch that is about to be computed."""
        counts = self._counts
        tokens = sum(item.size for item in batch)
        self._busy_slots = len(batch)
        counts.steps += 1
        counts.batch_tokens += tokens
        counts.prompt_tokens += tokens
        for job in {item.job for item in batch if not item.job.begun}:
            job.begun = True
            self._waiting -= 1
            counts.admitted += 1
            counts.queue_seconds += now - job.submitted_at

    def _tell(self, job: VectorJob, row: Rows, events: list[VectorEvent]) -> None:
        if job not in self._jobs:
            return None  # another row of it, in this batch, was no vector
        if not np.isfinite(row).all():
            return self._end(job, events, "error", "the model's numbers are not finite")
        events.append(VectorEvent(job, row[:1] if self._model.offers == "rerank" else vector(row, job.dimensions)))
        job.rows_left -= 1
        if not job.rows_left:
            self._end(job, events, "stop")
        return None

    def _end(self, job: VectorJob, events: list[VectorEvent], reason: FinishReason, detail: str = "") -> None:
        self._jobs.remove(job)
        self._waiting -= not job.begun
        self._counts.cancelled += reason == "cancelled"
        self._counts.failed += reason == "error"
        if job.rows_left:
            self._turns.keep(lambda item: item.job is not job)
        events.append(VectorEvent(job, ended=reason, detail=detail))

    def trial(self) -> None:
        """Computes the largest batch and the smallest. Raises ``LoadError``: ``decode-failed``,
        ``logits-not-finite``."""
        context = self._context
        tokens = np.arange(context.context_tokens, dtype=np.int32) % self._model.vocabulary_tokens
        each = min(context.batch_tokens // context.slots, context.context_tokens)
        for inputs in ([tokens], [tokens[: max(1, each)]] * min(context.slots, context.batch_tokens), [tokens[:1]]):
            try:
                rows = context.rows(inputs)
            except RuntimeError as error:
                raise LoadError("decode-failed", str(error)) from error
            if not np.isfinite(rows).all():
                raise LoadError("logits-not-finite", "a trial gave numbers that are not finite")


class Embedder(Worker[VectorJob, VectorEvent]):
    """Made over a loaded model; serves after ``warm_up``."""

    def __init__(self, model: Model, load: Load) -> None:
        """Raises ``LoadError``, also for a model that is for text."""
        if model.offers == "generate":
            raise LoadError("model-unsupported", "the model is for text")
        self._context = EmbeddingContext(model, load)
        self._vector_steps = VectorSteps(model, self._context)
        super().__init__(self._vector_steps)
        self.model: Final = model
        self.slots: Final = self._context.slots
        self.context_tokens: Final = self._context.context_tokens
        self.width: Final = 1 if model.offers == "rerank" else self._context.width

    def figures(self) -> EngineFigures:
        """What has been done and is being done, without a word about any one caller. A slot holds an input; nothing is
        kept in cells, and no token is answered."""
        return self._vector_steps.figures(self._inbox.qsize())

    def close(self) -> None:
        """Frees the model too."""
        super().close()
        self._context.close()
        self.model.close()


def vector(row: Rows, dimensions: int) -> Rows:
    """The first ``dimensions`` numbers of a row, or all for 0, at length 1. Of a row of zeros it makes zeros."""
    kept = row[:dimensions] if dimensions else row
    length = float(np.linalg.norm(kept.astype(np.float64)))
    return (kept / length).astype(np.float32) if length else kept
