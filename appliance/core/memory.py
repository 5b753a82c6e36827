"""What a model takes while it is loaded, reckoned from its header before anything is started; and who makes room.

The figures are those of llama.cpp as the runner asks for it: a cache of ``slots`` times ``context_tokens`` tokens,
whole from the start, unified or not, and flash attention. A model that pools has one batch in place of a context, in
which whole inputs stand with a row of logits for each token. ``tests/integration/runner/test_memory_plan.py`` holds the
figures against what llama.cpp allocates.

Everything is a Python integer: a header that claims the most that its caps allow gives a large number, not a wrong one.
Only then is it cut to ``MOST_BYTES``, which no machine has, so that it fits a message.
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

from msgspec import Meta

from appliance.core.values import CacheShape, GgufFacts, Value

KvType = Literal["f16", "q8_0", "q4_0"]
"""How keys and values of a context are stored, in ggml's names."""


Speculating = Literal["off", "lookup", "draft"]
"""Where guesses of an answer's next tokens come from: nowhere, from the text itself, from a second model."""
SPECULATED_ROWS: Final = 32
"""Proposed tokens in one step at most, over all answers: each needs a row of logits. With 152,000 words in a vocabulary
a row is 0.6 MB, twice over; and by then few processors have anything to do in vain."""


class LoadOptions(Value, frozen=True, kw_only=True):
    """How one model is loaded, and for how long: the operator's choice, and nothing that a caller can change. -1
    ``keep_alive_seconds`` is for ever."""

    context_tokens: int
    slots: int
    kv_type: KvType = "f16"
    keep_alive_seconds: int = 300
    speculation: Speculating = "off"


_BLOCK_VALUES: Final = 32
_BLOCK_BYTES: Final[dict[KvType, int]] = {"f16": 64, "q8_0": 34, "q4_0": 18}
"""Of 32 values: ``ggml-common.h``, ``block_q8_0`` and ``block_q4_0``."""

_CONTEXT_STEP_TOKENS: Final = 256
"""llama.cpp rounds a cache up to it."""
_MICRO_BATCH_TOKENS: Final = 512
_FLOAT_BYTES: Final = 4
_MOST_KNOWN_HEADS: Final = 128
_FEED_FORWARD_COPIES, _EMBEDDING_COPIES, _QUERY_COPIES = 4, 8, 4
"""Vectors of a token that are alive at once in the widest part of a layer: gate, up and their product, quantised once
more; the residual stream, norms, and what attention reads and writes."""
_MASK_BYTES: Final = 2
"""Of one cached token and one of a step: who may look at whom."""
_ROW_COPIES: Final = 4
"""A row of logits for each slot, and the sampler's copies."""

PROCESS_BYTES: Final = 96 * 2**20
"""Python, numpy, llama.cpp's code and tables, and the text of requests and answers."""
_THREAD_BYTES: Final = 2**20

MOST_BYTES: Final = 2**56

COPIED_TYPES: Final = frozenset({2, 12, 20, 10, 39})
"""Q4_0, Q4_K, IQ4_NL, Q2_K, MXFP4: what llama.cpp arranges anew for an x86-64 processor, in memory of the runner's own,
beside the mapped model (``ggml-cpu/repack.cpp``)."""
COPIED_TYPES_ELSEWHERE: Final = frozenset(number for number in range(2, 42) if number not in {24, 25, 26, 27, 28, 30})
"""All that are quantised: on other processors, and on x86-64 with matrix extensions (AMX)."""


Bytes = Annotated[int, Meta(ge=0, le=MOST_BYTES)]


class MemoryPlan(Value, frozen=True, kw_only=True):
    """In bytes: the mapped ``weights``, the ``copies`` of some that are arranged for the processor, the ``cache`` of
    keys and values, what a step ``compute``s in, and the ``process`` itself.

    ``weights`` count in each seal mode. A sealed copy is memory that only its runner's end frees; a stored file is page
    cache, which the kernel may take back and every token then reads from the disk again.
    """

    weights: Bytes
    copies: Bytes
    cache: Bytes
    compute: Bytes
    process: Bytes

    @property
    def total(self) -> int:
        return self.weights + self.private

    @property
    def private(self) -> int:
        """What the runner has for itself."""
        return self.copies + self.cache + self.compute + self.process


def plan(
    facts: GgufFacts,
    *,
    context_tokens: int,
    slots: int,
    threads: int,
    kv_type: KvType,
    speculation: Speculating = "off",
    copied_types: Collection[int] = COPIED_TYPES,
) -> MemoryPlan:
    """``context_tokens`` is for each of the ``slots``; more than the model was made for is not loaded.

    A draft model's is a plan of its own, with ``speculation`` off and without its ``process``.
    """
    context = min(context_tokens, facts.context_tokens)
    step = max(context, _MICRO_BATCH_TOKENS) if facts.pools else _MICRO_BATCH_TOKENS
    tokens = _rounded(step) if facts.pools else slots * _rounded(context)
    shape = facts.cache or _worst(facts)
    activations = _FLOAT_BYTES * (
        _FEED_FORWARD_COPIES * (facts.feed_forward_length or 4 * facts.embedding_length)
        + _EMBEDDING_COPIES * facts.embedding_length
        + _QUERY_COPIES * shape.row_values
    )
    ahead = 0 if speculation == "off" else 2 * SPECULATED_ROWS
    rows = 2 * step if facts.pools else slots * _ROW_COPIES + ahead  # where they are computed, and where they are put
    logits = rows * facts.vocabulary_tokens * _FLOAT_BYTES
    copies = _copied_bytes(facts, copied_types)
    cache = _cache_bytes(shape.values_per_token, tokens, "f16" if facts.pools else kv_type)
    cache += slots * shape.state_bytes
    compute = step * (activations + tokens * _MASK_BYTES) + logits
    process = PROCESS_BYTES + threads * _THREAD_BYTES
    if facts.pools:
        compute += _scores_bytes(shape.heads, step, copies + cache + compute + process)
    return MemoryPlan(
        weights=min(facts.file_bytes, MOST_BYTES),
        copies=min(copies, MOST_BYTES),
        cache=min(cache, MOST_BYTES),
        compute=min(compute, MOST_BYTES),
        process=process,
    )


def _scores_bytes(heads: int, step: int, rest_bytes: int) -> int:
    """Whole attention scores, twice, which a model that pools keeps where they are an eighth of what it may have
    (``runner.engine.embedding_context``), and what it may have is a quarter more than is planned and a GiB."""
    return min(2 * _FLOAT_BYTES * heads * step**2, (rest_bytes + 2**30) // 2)


def _rounded(tokens: int) -> int:
    return -(-tokens // _CONTEXT_STEP_TOKENS) * _CONTEXT_STEP_TOKENS


def _cache_bytes(values_per_token: int, tokens: int, kv_type: KvType) -> int:
    return -(-values_per_token * tokens * _BLOCK_BYTES[kv_type] // _BLOCK_VALUES)


def _copied_bytes(facts: GgufFacts, copied_types: Collection[int]) -> int:
    if not facts.tensor_bytes:
        return facts.file_bytes
    return sum(n_bytes for number, n_bytes in facts.tensor_bytes if number in copied_types)


def _worst(facts: GgufFacts) -> CacheShape:
    """For facts that do not say: no heads are shared, and together they are twice as wide as the embedding, which is
    more than in any known model."""
    width = 2 * facts.embedding_length
    return CacheShape(
        values_per_token=2 * facts.block_count * width,
        heads=_MOST_KNOWN_HEADS,
        row_values=width,
        state_bytes=0,
        quantisable=True,
    )


def why_unfit(facts: GgufFacts, planned: MemoryPlan, *, kv_type: KvType, budget_bytes: int) -> str:
    """Why this can never be loaded, whatever else ends; empty if it can."""
    if kv_type != "f16" and not facts.pools and facts.cache is not None and not facts.cache.quantisable:
        return f"its heads are not whole blocks of {_BLOCK_VALUES} values, so its cache cannot be {kv_type}: f16 can"
    if planned.total > budget_bytes:
        return f"it needs {spelt(planned)}, and all runners together may have {mib(budget_bytes)}"
    return ""


def spelt(planned: MemoryPlan) -> str:
    """For an operator."""
    return (
        f"{mib(planned.total)} ({mib(planned.weights + planned.copies)} weights, {mib(planned.cache)} cache, "
        f"{mib(planned.compute + planned.process)} for the runner)"
    )


def mib(n_bytes: int) -> str:
    return f"{-(-n_bytes // 2**20)} MiB"


# --- who makes room -------------------------------------------------------------------------------------------------

Key = TypeVar("Key")


class Room(NamedTuple):
    """What is left: of memory, which may be less than nothing, and of places."""

    n_bytes: int
    places: int

    def fits(self, n_bytes: int) -> bool:
        return self.places >= 1 and self.n_bytes >= n_bytes

    def without(self, *sizes: int) -> "Room":
        """As it would be if loaded models of these sizes ended."""
        return Room(self.n_bytes + sum(sizes), self.places + len(sizes))


def who_makes_room(needed_bytes: int, room: Room, idle: Sequence[tuple[Key, int]]) -> tuple[Key, ...] | None:
    """The idle ones that have to end so that one of ``needed_bytes`` fits; None if that would not be enough.

    ``idle`` is in order, longest idle first, with what each takes. Those go from its front, except one whose end turns
    out to be of no use: nothing is unloaded in vain.
    """
    going: list[tuple[Key, int]] = []
    for one in idle:
        if room.without(*(size for _, size in going)).fits(needed_bytes):
            break
        going.append(one)
    if not room.without(*(size for _, size in going)).fits(needed_bytes):
        return None
    for one in reversed(tuple(going)):
        others = [other for other in going if other is not one]
        if room.without(*(size for _, size in others)).fits(needed_bytes):
            going = others
    return tuple(key for key, _ in going)
