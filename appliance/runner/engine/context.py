"""One llama.cpp context: a KV cache with a stream of its own for each of a fixed number of sequences.

Trusts: ``Load`` for its ranges (the message's decoder checked them).
Promises: every sequence can grow to ``context_tokens`` at the same time, so a decode never lacks room.
Not here: which tokens go into a step (``engine.filling``), what the streams hold (``engine.streams``).
"""

import ctypes
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from appliance.ipc.messages import KvType, Load
from appliance.runner.engine.batch import Batch
from appliance.runner.engine.model import LoadError, Model
from appliance.runner.engine.native import llama, recent_log, short_call

Logits = NDArray[np.float32]

_MICRO_BATCH_TOKENS: Final = 512
_KV_TYPES: Final[dict[KvType, int]] = {
    "f16": llama.GGML_TYPE_F16,
    "q8_0": llama.GGML_TYPE_Q8_0,
    "q4_0": llama.GGML_TYPE_Q4_0,
}
_forget = short_call("llama_memory_seq_rm")
_copy = short_call("llama_memory_seq_cp")


class Context:
    """For one token with logits per sequence and step, and ``proposed_tokens`` more.

    Raises ``LoadError`` when there is no memory for it, or no way to keep values in ``kv_type``: what is quantised
    needs flash attention, and heads whose size is a multiple of 32.
    """

    def __init__(self, model: Model, load: Load, *, proposed_tokens: int = 0) -> None:
        self.slots: Final = load.slots
        self.context_tokens: Final = min(load.context_tokens, model.training_context_tokens)
        self.batch_tokens: Final = max(load.batch_tokens, load.slots)
        self.can_cut: Final = _can_cut(model)
        """Whether the end of a sequence can be taken off, and a sequence be copied and go on otherwise."""
        self._vocabulary_tokens = model.vocabulary_tokens
        wanted = llama.llama_context_default_params()
        wanted.n_ctx = self.context_tokens * load.slots
        wanted.n_batch = self.batch_tokens
        wanted.n_ubatch = min(self.batch_tokens, _MICRO_BATCH_TOKENS)
        wanted.n_seq_max = load.slots
        wanted.n_outputs_max = load.slots + proposed_tokens  # rows of logits in a step, in place of one per token
        wanted.n_threads = wanted.n_threads_batch = load.threads
        wanted.kv_unified = False
        wanted.swa_full = True  # cells behind a sliding window stay, so that a sequence can be cut there
        wanted.type_k = wanted.type_v = _KV_TYPES[load.kv_type]
        if load.kv_type != "f16":
            wanted.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        wanted.no_perf = True
        self._pointer = llama.llama_init_from_model(model.pointer, wanted)
        if not self._pointer:
            raise LoadError("context-failed", f"no context with {load.kv_type} keys and values: {recent_log()}")
        model.adapt(self._pointer)
        self.stream_cells: Final = int(llama.llama_n_ctx_seq(self._pointer))
        """The cells of one sequence: ``context_tokens``, rounded up by llama.cpp."""
        self._memory = llama.llama_get_memory(self._pointer)
        self._logits_address = 0
        self._logits_views: dict[int, Logits] = {}

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
        address = ctypes.addressof(first.contents)
        if address != self._logits_address:  # llama.cpp moves them only when a step has more rows than any before
            self._logits_address = address
            self._logits_views.clear()
        view = self._logits_views.get(rows)
        if view is None:
            kind = ctypes.c_float * (rows * self._vocabulary_tokens)
            memory: Any = kind.from_address(address)
            view = np.frombuffer(memory, np.float32).reshape(rows, self._vocabulary_tokens)
            self._logits_views[rows] = view
        return view

    def forget(self, slot: int, kept: int = 0) -> None:
        """Takes all but the first ``kept`` tokens off a sequence; with fewer than it has, only where ``can_cut``."""
        if not _forget(self._memory, slot, kept or -1, -1):
            raise RuntimeError("llama.cpp could not cut a sequence")

    def copy(self, source: int, slot: int) -> None:
        """Makes one sequence the same as another, in place of what it had. The bytes follow with the next decode, in
        the order of these calls; llama.cpp can only copy whole streams."""
        _copy(self._memory, source, slot, -1, -1)


def _can_cut(model: Model) -> bool:
    """Not a recurrent state, which is one for the whole sequence."""
    return not (llama.llama_model_is_recurrent(model.pointer) or llama.llama_model_is_hybrid(model.pointer))
