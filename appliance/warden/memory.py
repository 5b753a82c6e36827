"""How much memory a runner may have for itself: more than any sound model of its kind takes, and not more than that.

A limit for a process that went mad, not a plan for what fits: it is refused nothing that it needs, so every figure is
an upper bound. The runner puts it on itself before it reads the model (``sandbox.layers.memory_limits``).

Trusts: the validator's facts, each within its cap.
Promises: a limit for every model, between ``LEAST_BYTES`` and ``MOST_BYTES``.
Not here: whether that much is free on this host; cgroups (``cgroups``).
"""

import os
from typing import Final

from appliance.core.values import GgufFacts

LEAST_BYTES: Final = 2**30
MOST_BYTES: Final = 2**46

_PROGRAM_BYTES: Final = 2**30
"""Python, numpy, llama.cpp, and the prompts and answers of all slots: some 200 MiB, most of it reserved buffers."""
_STACK_BYTES: Final = 8 * 2**20
_BYTES_PER_CACHED_VALUE: Final = 8
"""A key and a value of 2 bytes, twice, since heads may be wider than the embedding."""
_MICRO_BATCH_TOKENS: Final = 512
_ACTIVATION_BYTES: Final = 256
"""Per token of a step and number of its embedding: 64 floats, where a transformer's widest layers have some 20."""
_LOGIT_BYTES: Final = 4 * 4
"""A float per token of the vocabulary and slot, and the sampler's copies."""


def limit_bytes(facts: GgufFacts, *, tokens: int, slots: int, threads: int, host_bytes: int) -> int:
    """For a cache of ``tokens`` tokens, those of all ``slots`` together, on a host with so much memory.

    The weights count once although they are mapped: llama.cpp copies those that it arranges for the processor.
    """
    cache = tokens * facts.block_count * facts.embedding_length * _BYTES_PER_CACHED_VALUE
    activations = _MICRO_BATCH_TOKENS * facts.embedding_length * _ACTIVATION_BYTES
    logits = slots * facts.vocabulary_tokens * _LOGIT_BYTES
    wanted = facts.file_bytes + cache + activations + logits + threads * _STACK_BYTES + _PROGRAM_BYTES
    return max(LEAST_BYTES, min(wanted, host_bytes * 3 // 4, MOST_BYTES))


def host_bytes() -> int:
    """The memory of this host, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
