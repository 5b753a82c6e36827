"""Drawing the next token.

A request's own llama.cpp chain (penalties, top-k, top-p, min-p, temperature, seeded draw) sees only the tokens that
can matter. They are found exactly: cut the logits into blocks of 2,048 and take the maximum of each column; the k-th
best of these 2,048 maxima is a lower bound for the k-th best logit, since k different tokens carry them. ``k`` is
top-k plus the penalty window, because a penalty can push at most that many of the best ones down. A penalty below
zero pushes tokens up, so it looks at the whole vocabulary.

``top_k`` 0 means no limit to a caller; here it means 1,000, the largest that the wire accepts: sorting a whole
vocabulary of 152,000 takes 20 ms per token, and nothing beyond the thousandth has ever mattered.

Trusts: ``Sampling`` for its ranges (the message's decoder checked them) except that numbers are finite.
Promises: a token id below the vocabulary's size, or None when the logits are not finite.
Not here: what ends an answer (``engine.steps``).
"""

import ctypes
import math
import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from appliance.core.values import Sampling
from appliance.runner.engine.native import llama, short_call

PENALTY_WINDOW: Final = 64
MAX_TOP_K: Final = 1000
_BLOCK: Final = 2048
_SEEDS: Final = 2**32 - 1  # the one above them all means "random" to llama.cpp, which would open /dev/urandom
_ENTRY = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_apply = short_call("llama_sampler_apply")
_accept = short_call("llama_sampler_accept")


def plausible(row: NDArray[np.float32], keep: int) -> NDArray[np.int64] | None:
    """Ids, rising, of all tokens that can be among the ``keep`` best of one row of logits; None means all of them.

    Exact: never leaves out one of the ``keep`` best. Empty when the logits are not numbers.
    """
    whole_blocks = len(row) // _BLOCK
    if keep > _BLOCK or whole_blocks < 2:
        return None
    maxima = row[: whole_blocks * _BLOCK].reshape(whole_blocks, _BLOCK).max(axis=0)
    bound = np.partition(maxima, _BLOCK - keep)[_BLOCK - keep]
    return np.flatnonzero(row >= bound)


class Candidates:
    """The scratch memory in which a chain works: one entry per token of the vocabulary. One per engine thread."""

    def __init__(self, vocabulary_tokens: int) -> None:
        self._entries = np.zeros(vocabulary_tokens, _ENTRY)
        self._all = np.arange(vocabulary_tokens, dtype=np.int32)
        self._data = ctypes.cast(self._entries.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array()

    def choose(self, chain: Any, row: NDArray[np.float32], ids: NDArray[Any] | None) -> int | None:
        """Applies a chain to some tokens of a row and returns the one selected, None if it selects none."""
        if ids is None:
            ids = self._all
        count = len(ids)
        entries = self._entries[:count]
        entries["id"] = ids
        entries["logit"] = row if count == len(row) else row[ids]
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._data, count, -1, False
        if not count:
            return None
        _apply(chain, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            return None
        chosen = array.data[array.selected]
        return int(chosen.id) if math.isfinite(chosen.logit) else None


class Sampler:
    """The sampling state of one request. ``close`` frees it; only the engine thread touches it."""

    def __init__(self, sampling: Sampling, candidates: Candidates, vocabulary_tokens: int) -> None:
        self._candidates = candidates
        self._chain: Any = None
        presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
        penalised = bool(presence or frequency)
        greedy = sampling.temperature == 0.0
        if greedy and not penalised:
            return
        top_k = 1 if greedy else min(sampling.top_k or MAX_TOP_K, MAX_TOP_K)
        self._keep = top_k + (PENALTY_WINDOW if penalised else 0)
        if min(presence, frequency) < 0:
            self._keep = vocabulary_tokens
        parameters = llama.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self._chain = llama.llama_sampler_chain_init(parameters)
        if penalised:
            self._add(llama.llama_sampler_init_penalties(vocabulary_tokens, PENALTY_WINDOW, 1.0, frequency, presence))
        if greedy:
            self._add(llama.llama_sampler_init_greedy())
            return
        self._add(llama.llama_sampler_init_top_k(top_k))
        self._add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        self._add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(llama.llama_sampler_init_temp(sampling.temperature))
        seed = int.from_bytes(os.urandom(8)) if sampling.seed is None else sampling.seed
        self._add(llama.llama_sampler_init_dist(seed % _SEEDS))

    def _add(self, part: Any) -> None:
        if not part:
            raise MemoryError("llama.cpp could not make a sampler")
        llama.llama_sampler_chain_add(self._chain, part)  # the chain owns it from here on

    def draw(self, row: NDArray[np.float32]) -> int | None:
        """One row of logits -> the next token, or None when the row is not finite where it matters."""
        if self._chain is None:
            best = int(row.argmax())
            return best if math.isfinite(row[best]) else None
        token = self._candidates.choose(self._chain, row, plausible(row, self._keep))
        if token is not None:
            _accept(self._chain, token)
        return token

    def close(self) -> None:
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def is_finite(sampling: Sampling) -> bool:
    """Whether every number is one. msgspec's ranges let NaN through where a comparison decides."""
    return all(
        map(
            math.isfinite,
            (
                sampling.temperature,
                sampling.top_p,
                sampling.min_p,
                sampling.presence_penalty,
                sampling.frequency_penalty,
            ),
        )
    )
