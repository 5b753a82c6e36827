"""One llama.cpp context: a unified KV cache shared by a fixed number of sequences.

Trusts: ``Load`` for its ranges (the message's decoder checked them).
Promises: every sequence can grow to ``context_tokens`` at the same time, so a decode never lacks room.
Not here: which tokens go into a step (``engine.steps``).
"""

import ctypes
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from appliance.ipc.messages import Load
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.native import llama, recent_log, short_call

Logits = NDArray[np.float32]

_MICRO_BATCH_TOKENS: Final = 512
_forget = short_call("llama_memory_seq_rm")


class Context:
    """Raises ``LoadError`` when there is no memory for it."""

    def __init__(self, model: Model, load: Load) -> None:
        self.slots: Final = load.slots
        self.context_tokens: Final = min(load.context_tokens, model.training_context_tokens)
        self.batch_tokens: Final = max(load.batch_tokens, load.slots)
        self._vocabulary_tokens = model.vocabulary_tokens
        wanted = llama.llama_context_default_params()
        wanted.n_ctx = self.context_tokens * load.slots
        wanted.n_batch = self.batch_tokens
        wanted.n_ubatch = min(self.batch_tokens, _MICRO_BATCH_TOKENS)
        wanted.n_seq_max = load.slots
        wanted.n_outputs_max = load.slots  # one row of logits per sequence and step, in place of one per token
        wanted.n_threads = wanted.n_threads_batch = load.threads
        wanted.kv_unified = True
        wanted.no_perf = True
        self._pointer = llama.llama_init_from_model(model.pointer, wanted)
        if not self._pointer:
            raise LoadError("context-failed", recent_log())
        self._memory = llama.llama_get_memory(self._pointer)

    def close(self) -> None:
        llama.llama_free(self._pointer)

    def decode(self, batch: Batch) -> int:
        """Computes one batch without the GIL. 0 is success, 1 no room in the cache (nothing changed), others fatal."""
        return int(llama.llama_decode(self._pointer, batch.struct))

    def logits(self, rows: int) -> Logits:
        """A view, valid until the next decode, of the wanted rows in the order of the batch: (rows, vocabulary)."""
        first: Any = llama.llama_get_logits(self._pointer)
        if not first:
            raise RuntimeError("llama.cpp has no logits")
        kind = ctypes.c_float * (rows * self._vocabulary_tokens)
        memory: Any = kind.from_address(ctypes.addressof(first.contents))
        return np.frombuffer(memory, np.float32).reshape(rows, self._vocabulary_tokens)

    def forget(self, slot: int) -> None:
        """Empties one sequence. Nothing of a request stays behind for the next one in its slot."""
        if not _forget(self._memory, slot, -1, -1):
            raise RuntimeError("llama.cpp could not clear a sequence")
