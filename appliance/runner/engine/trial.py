"""Every path of a step once, before the first request, so that serving needs nothing new from the kernel.

Trusts: a context that nobody uses yet.
Promises: afterwards every thread and buffer exists, and the cache is empty.
Not here: the ways of drawing (``engine.rehearsal``).
"""

from dataclasses import dataclass

import numpy as np

from appliance.core.memory import SPECULATED_ROWS
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.candidates import Candidates
from appliance.runner.engine.context import Context
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.rehearsal import rehearse
from appliance.runner.engine.speculation import Speculation


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Of one engine's parts."""

    model: Model
    context: Context
    batch: Batch
    candidates: Candidates
    speculation: Speculation | None

    def run(self) -> None:
        """Decodes a full batch over all slots, then one token in each, then one alone, and samples in every way.

        Raises ``LoadError``: ``decode-failed``, ``logits-not-finite``.
        """
        slots, batch = self.context.slots, self.batch
        length = min(batch.capacity // slots, self.context.context_tokens - 2)
        tokens = np.arange(length, dtype=np.int32) % self.model.vocabulary_tokens
        batch.clear()
        for slot in range(slots):
            batch.add(slot, tokens, 0, output=True)
        self._decode(slots)
        batch.clear()
        for slot in range(slots):
            batch.add_last(slot, 0, length)
        self._decode(slots)
        batch.clear()
        batch.add_last(0, 0, length + 1)
        self._decode(1)
        if self.context.can_cut and slots > 1:
            self._copy(length + 2)
        for slot in range(slots):
            self.context.forget(slot)
        if self.speculation is not None:
            self._speculate(self.speculation)

    def _copy(self, length: int) -> None:
        """Decodes behind a copy that was cut, in the second slot."""
        self.context.copy(0, 1)
        self.context.forget(1, length - 1)
        self.batch.clear()
        self.batch.add_last(1, 0, length - 1)
        self._decode(1)

    def _speculate(self, speculation: Speculation) -> None:
        """Decodes as many proposed tokens as a step may have, in one slot and over several, and takes them off."""
        speculation.try_out()
        for count in {1, min(self.context.slots, SPECULATED_ROWS)}:
            tokens = [0] * (1 + speculation.most(count))
            self.batch.clear()
            for slot in range(count):
                self.batch.add_ahead(slot, tokens, 0)
            self._decode(self.batch.size)
            for slot in range(count):
                self.context.forget(slot, 1)
                self.context.forget(slot)

    def _decode(self, rows: int) -> None:
        status = self.context.decode(self.batch)
        if status != 0:
            raise LoadError("decode-failed", f"llama_decode returned {status}")
        logits = self.context.logits(rows)
        if not np.isfinite(logits).all():
            raise LoadError("logits-not-finite", "a trial decode gave numbers that are not finite")
        if not rehearse(self.model, self.candidates, logits[-1]):
            raise LoadError("logits-not-finite", "a trial draw found no token")
