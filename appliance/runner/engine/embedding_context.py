"""A llama.cpp context that gives one pooled row for each sequence of a batch: a vector, or the classes of a rank head.

A batch holds whole sequences, from their first token to their last, because what is pooled must be there at once; the
longest input is therefore a batch. llama.cpp sets aside a row of logits for every token of it, which nobody reads: that
bounds the batch of a model with a large vocabulary.

Trusts: ``Load`` for its ranges; its caller for token ids in range and for sequences that fit.
Promises: rows are copies; after each batch the context remembers nothing of it.
Not here: which inputs share a batch (``engine.turns``); what a row means to a caller (``engine.embedding``).
"""

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from appliance.ipc.messages import Load
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.model import LoadError, Model, TokenIds
from appliance.runner.engine.native import llama, recent_log

Rows = NDArray[np.float32]

_LOGIT_SHARE: Final = 2
"""Rows of logits may take one such part of what the runner has for itself."""
_SCORE_SHARE: Final = 8
"""And whole attention scores such a part. Where they fit they are kept in single precision: flash attention's half
makes an input's row depend on its company in the third digit."""
_NO_FLASH_ATTENTION: Final = 0
_MIN_TOKENS: Final = 16


class EmbeddingContext:
    """Raises ``LoadError``: ``context-failed`` when there is no memory for it."""

    def __init__(self, model: Model, load: Load) -> None:
        affordable = load.memory_bytes // _LOGIT_SHARE // (4 * model.vocabulary_tokens)
        self.slots: Final = load.slots
        self.width: Final = model.vector_width
        self.context_tokens: Final = min(load.context_tokens, model.training_context_tokens, affordable)
        self.batch_tokens: Final = min(max(load.batch_tokens, self.context_tokens), affordable)
        if self.context_tokens < _MIN_TOKENS:
            raise LoadError("context-failed", f"no memory for batches of {_MIN_TOKENS} tokens")
        wanted = llama.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = self.batch_tokens
        wanted.n_seq_max = load.slots
        wanted.n_threads = wanted.n_threads_batch = load.threads
        if 4 * llama.llama_model_n_head(model.pointer) * self.batch_tokens**2 <= load.memory_bytes // _SCORE_SHARE:
            wanted.flash_attn_type = _NO_FLASH_ATTENTION
        wanted.embeddings = True
        wanted.kv_unified = True
        wanted.no_perf = True
        self._batch = _WholeBatch(self.batch_tokens, load.slots)
        self._pointer = llama.llama_init_from_model(model.pointer, wanted)
        if not self._pointer:
            raise LoadError("context-failed", recent_log())
        self._memory = llama.llama_get_memory(self._pointer)  # None for an encoder: it keeps nothing

    def close(self) -> None:
        llama.llama_free(self._pointer)

    def rows(self, inputs: Sequence[TokenIds]) -> Rows:
        """One row for each input: (inputs, width). At most ``slots`` of them, none empty, ``batch_tokens`` in all.

        Without the GIL. Raises ``RuntimeError`` when llama.cpp fails.
        """
        self._batch.clear()
        for slot, tokens in enumerate(inputs):
            self._batch.add(slot, tokens, 0, output=True)
        status = llama.llama_decode(self._pointer, self._batch.struct)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        rows = np.stack([self._row(slot) for slot in range(len(inputs))])
        if self._memory:
            llama.llama_memory_clear(self._memory, False)
        return rows

    def _row(self, slot: int) -> Rows:
        first: Any = llama.llama_get_embeddings_seq(self._pointer, slot)
        if not first:
            raise RuntimeError("llama.cpp has no row for a sequence")
        memory: Any = (ctypes.c_float * self.width).from_address(ctypes.addressof(first.contents))
        return np.frombuffer(memory, np.float32).copy()


class _WholeBatch(Batch):
    """A batch in which every token counts, which llama.cpp is told by leaving out the marks of those that do."""

    def __init__(self, capacity: int, slots: int) -> None:
        super().__init__(capacity, slots)
        self._struct.logits = None
