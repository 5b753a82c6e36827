"""The engine of a model that embeds or ranks: one thread that computes batches of inputs for everybody.

Each batch has at most as many inputs as there are slots, whole and from all who wait, in turn; so nobody waits for
more than the batch under way and those before him in turn, however much another brought.

Trusts: ``Load``, from the warden; jobs, from ``runner.embeddings``.
Promises: after ``warm_up`` no thread is started and no file opened. Each job ends with exactly one event that has
``ended`` set, within one batch of being cancelled. An exception in the engine thread ends the process.
Not here: text and counting (``runner.embeddings``), which models are for this (``engine.model``).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

import numpy as np

from appliance.core.values import EngineFigures, FinishReason
from appliance.ipc.messages import Load
from appliance.runner.engine.embedding_context import EmbeddingContext, Rows
from appliance.runner.engine.figures import Counts
from appliance.runner.engine.model import LoadError, Model, TokenIds
from appliance.runner.engine.panic import end_process
from appliance.runner.engine.turns import Turns


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


class Embedder:
    """Made over a loaded model; serves after ``warm_up``."""

    def __init__(self, model: Model, load: Load) -> None:
        """Raises ``LoadError``, also for a model that is for text."""
        if model.offers == "generate":
            raise LoadError("model-unsupported", "the model is for text")
        self.model: Final = model
        self._context = EmbeddingContext(model, load)
        self.slots: Final = self._context.slots
        self.context_tokens: Final = self._context.context_tokens
        self.width: Final = 1 if model.offers == "rerank" else self._context.width
        self.on_events: Callable[[], None] = lambda: None
        """Called in the engine thread whenever there are new events."""
        self._jobs: set[VectorJob] = set()
        self._turns: Turns[_Input] = Turns()
        self._inbox: SimpleQueue[VectorJob | None] = SimpleQueue()
        self._events: deque[list[VectorEvent]] = deque()
        self._warmed: SimpleQueue[LoadError | None] = SimpleQueue()
        self._counts = Counts()
        self._waiting = self._busy_slots = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def warm_up(self) -> None:
        """Starts the engine thread and computes the largest batch and the smallest, so that serving needs nothing new
        from the kernel.

        Raises ``LoadError``: ``decode-failed``, ``logits-not-finite``. The process is of no use afterwards.
        """
        self._thread.start()
        failure = self._warmed.get()
        if failure is not None:
            raise failure

    def submit(self, job: VectorJob) -> None:
        job.submitted_at = time.monotonic()
        self._inbox.put(job)

    def figures(self) -> EngineFigures:
        """What has been done and is being done, without a word about any one caller. A slot holds an input; nothing is
        kept in cells, and no token is answered."""
        return self._counts.taken(
            waiting=self._inbox.qsize() + self._waiting,
            busy_slots=self._busy_slots,
            slots=self.slots,
            used_cells=0,
            cells=0,
        )

    def take_events(self) -> list[VectorEvent]:
        """What happened since the last call, in order."""
        events: list[VectorEvent] = []
        while self._events:
            events += self._events.popleft()
        return events

    def close(self) -> None:
        """Ends the thread and frees the model. Jobs in flight never end; only tests and an idle engine close."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()
        self._context.close()
        self.model.close()

    # --- the engine thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._try_out():
                while self._take():
                    self._events.append(self._step())
                    self.on_events()
        except BaseException as error:  # noqa: BLE001  a dead engine thread must not leave a live channel behind
            end_process(error)

    def _take(self) -> bool:
        """Moves new jobs to the turns, waiting for one when there is nothing to do. False when asked to end."""
        try:
            while True:
                job = self._inbox.get() if not self._jobs else self._inbox.get_nowait()
                if job is None:
                    return False
                self._jobs.add(job)
                self._waiting += 1
                for tokens in job.inputs:
                    self._turns.add(_Input(job, tokens))
        except Empty:
            return True

    def _step(self) -> list[VectorEvent]:
        """One batch."""
        events: list[VectorEvent] = []
        for job in [job for job in self._jobs if job.cancelled]:
            self._end(job, events, "cancelled")
        batch = self._turns.take(self._context.slots, self._context.batch_tokens)
        if batch:
            start = time.monotonic()
            self._begin(batch, start)
            rows = self._context.rows([item.tokens for item in batch])
            self._counts.step_seconds += time.monotonic() - start
            self._busy_slots = 0
            for item, row in zip(batch, rows, strict=True):
                self._tell(item.job, row, events)
        return events

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
        events.append(VectorEvent(job, row[:1] if self.model.offers == "rerank" else vector(row, job.dimensions)))
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

    def _try_out(self) -> bool:
        context = self._context
        tokens = np.arange(context.context_tokens, dtype=np.int32) % self.model.vocabulary_tokens
        each = min(context.batch_tokens // context.slots, context.context_tokens)
        failure: LoadError | None = None
        try:
            for inputs in ([tokens], [tokens[: max(1, each)]] * min(context.slots, context.batch_tokens), [tokens[:1]]):
                if not np.isfinite(context.rows(inputs)).all():
                    failure = LoadError("logits-not-finite", "a trial gave numbers that are not finite")
        except RuntimeError as error:
            failure = LoadError("decode-failed", str(error))
        self._warmed.put(failure)
        return failure is None


def vector(row: Rows, dimensions: int) -> Rows:
    """The first ``dimensions`` numbers of a row, or all for 0, at length 1. Of a row of zeros it makes zeros."""
    kept = row[:dimensions] if dimensions else row
    length = float(np.linalg.norm(kept.astype(np.float64)))
    return (kept / length).astype(np.float32) if length else kept
